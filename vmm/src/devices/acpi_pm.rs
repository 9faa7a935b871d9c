//! ACPI fixed hardware: PM1 event and control registers, PM timer, general-purpose events.
//!
//! Owns the power button, soft off and the system control interrupt (SCI). The machine is always in
//! ACPI mode. ACPI 6.5, section 4.8.

use serde::{Deserialize, Serialize};

use super::{Clock, Effect, ticks};
use crate::board::layout::{
    GPE0_PORT, PM_TIMER_PORT, PM1_CONTROL_PORT, PM1_EVENT_PORT, SLEEP_TYPE_S5,
};

/// PM timer, in Hz.
pub(super) const PM_TIMER_FREQUENCY: u32 = 3_579_545;

const TIMER: u16 = 1 << 0;
const GLOBAL_LOCK: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const SLEEP_BUTTON: u16 = 1 << 9;
const REAL_TIME_CLOCK: u16 = 1 << 10;
/// Events that can be enabled. Some never come, but ACPICA complains if the bit does not stick.
const EVENTS: u16 = TIMER | GLOBAL_LOCK | POWER_BUTTON | SLEEP_BUTTON | REAL_TIME_CLOCK;

const CONTROL_SCI_ENABLED: u16 = 1 << 0;
const CONTROL_BUS_MASTER_RELOAD: u16 = 1 << 1;
const CONTROL_SLEEP_TYPE_SHIFT: u16 = 10;
const CONTROL_SLEEP_TYPE: u16 = 0b111 << CONTROL_SLEEP_TYPE_SHIFT;
const CONTROL_SLEEP_ENABLE: u16 = 1 << 13;

/// Ticks between two changes of the timer's highest bit, which are its events.
const TIMER_EVENT_TICKS: u64 = 1 << 31;

/// Registers of the fixed hardware.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiPmState {
    status: u16,
    enable: u16,
    control: u16,
    /// The timer's next event, in its ticks since the start. Watched only while it is enabled.
    timer_event_tick: u64,
    gpe_status: u16,
    gpe_enable: u16,
}

impl AcpiPmState {
    /// In ACPI mode, all events disabled.
    pub(super) fn new() -> Self {
        Self {
            status: 0,
            enable: 0,
            control: CONTROL_SCI_ENABLED,
            timer_event_tick: 0,
            gpe_status: 0,
            gpe_enable: 0,
        }
    }

    /// Level of the SCI.
    pub(super) fn interrupt(&self) -> bool {
        self.status & self.enable & EVENTS != 0 || self.gpe_status & self.gpe_enable != 0
    }

    /// Somebody pressed the power button.
    pub(super) fn press_power_button(&mut self) {
        self.status |= POWER_BUTTON;
    }

    /// When the timer will raise its event next.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        (self.enable & TIMER != 0 && self.status & TIMER == 0)
            .then(|| ticks::reached(self.timer_event_tick, PM_TIMER_FREQUENCY))
    }

    /// Raises the timer's event if it is due.
    pub(super) fn advance(&mut self, now: u64) {
        if self.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.status |= TIMER;
            self.watch_timer(now);
        }
    }

    fn watch_timer(&mut self, now: u64) {
        let periods = ticks::at(now, PM_TIMER_FREQUENCY) / TIMER_EVENT_TICKS;
        self.timer_event_tick = (periods + 1) * TIMER_EVENT_TICKS;
    }

    /// Reads from one of the blocks; whether the port is one of theirs.
    pub(super) fn read(&mut self, port: u16, data: &mut [u8], clock: &mut dyn Clock) -> bool {
        let (base, value) = match block(port) {
            Some(PM1_EVENT_PORT) => (PM1_EVENT_PORT, pair(self.status, self.enable)),
            Some(PM1_CONTROL_PORT) => (PM1_CONTROL_PORT, u32::from(self.control)),
            Some(PM_TIMER_PORT) => {
                (PM_TIMER_PORT, ticks::at(clock.now(), PM_TIMER_FREQUENCY) as u32)
            }
            Some(GPE0_PORT) => (GPE0_PORT, pair(self.gpe_status, self.gpe_enable)),
            _ => return false,
        };
        for (index, byte) in data.iter_mut().enumerate() {
            let offset = usize::from(port - base) + index;
            *byte = value.to_le_bytes().get(offset).copied().unwrap_or(0xff);
        }
        true
    }

    /// Writes to one of the blocks; whether the port is one of theirs.
    pub(super) fn write(
        &mut self,
        port: u16,
        data: &[u8],
        clock: &mut dyn Clock,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(base) = block(port) else { return false };
        for (index, byte) in data.iter().enumerate() {
            let offset = usize::from(port - base) + index;
            let shift = 8 * (offset & 1);
            let (mask, value) = (0xff << shift, u16::from(*byte) << shift);
            match (base, offset) {
                (PM1_EVENT_PORT, 0 | 1) => self.status &= !value,
                (PM1_EVENT_PORT, 2 | 3) => self.write_enable(self.enable & !mask | value, clock),
                (PM1_CONTROL_PORT, 0 | 1) => {
                    self.write_control(self.control & !mask | value, effects);
                }
                (GPE0_PORT, 0 | 1) => self.gpe_status &= !value,
                (GPE0_PORT, 2 | 3) => self.gpe_enable = self.gpe_enable & !mask | value,
                _ => {}
            }
        }
        true
    }

    fn write_enable(&mut self, value: u16, clock: &mut dyn Clock) {
        if value & !self.enable & TIMER != 0 {
            self.watch_timer(clock.now());
        }
        self.enable = value & EVENTS;
    }

    fn write_control(&mut self, value: u16, effects: &mut Vec<Effect>) {
        let kept = CONTROL_BUS_MASTER_RELOAD | CONTROL_SLEEP_TYPE;
        self.control = value & kept | CONTROL_SCI_ENABLED;
        let sleep_type = (value & CONTROL_SLEEP_TYPE) >> CONTROL_SLEEP_TYPE_SHIFT;
        if value & CONTROL_SLEEP_ENABLE != 0 && sleep_type == u16::from(SLEEP_TYPE_S5) {
            effects.push(Effect::PowerOff);
        }
    }
}

/// The first port of the block that `port` is in.
fn block(port: u16) -> Option<u16> {
    let blocks = [(PM1_EVENT_PORT, 4), (PM1_CONTROL_PORT, 2), (PM_TIMER_PORT, 4), (GPE0_PORT, 4)];
    blocks.into_iter().find(|(base, length)| (*base..base + length).contains(&port)).map(|b| b.0)
}

fn pair(status: u16, enable: u16) -> u32 {
    u32::from(status) | u32::from(enable) << 16
}
