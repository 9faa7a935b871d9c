//! The 8254 interval timer and the part of port 0x61 that is wired to it.
//!
//! Owns three counters at 1.193182 MHz: channel 0 raises ISA interrupt 0, channel 1 drives nothing,
//! channel 2 has a gate and an output that software sees in port 0x61. A counter is not stepped: it
//! is an anchor, and everything else is computed from the time that has passed.
//!
//! Simplified against Intel's data sheet: a new count of a periodic mode takes effect at once, and
//! the output of a one-shot mode changes at zero rather than a tick later.

use serde::{Deserialize, Serialize};

use super::{Clock, PERIODIC_MINIMUM_NS, ticks};

/// Oscillator, in Hz.
pub(super) const PIT_FREQUENCY: u32 = 1_193_182;
/// What a count of 0 stands for, and the largest there is.
const COUNT_MAX: u32 = 0x1_0000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    #[default]
    TerminalCount,
    OneShot,
    Rate,
    SquareWave,
    SoftwareStrobe,
    HardwareStrobe,
}

impl Mode {
    fn from_bits(bits: u8) -> Self {
        match bits & 0b111 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::Rate,
            4 => Self::SoftwareStrobe,
            5 => Self::HardwareStrobe,
            _ => Self::SquareWave,
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::TerminalCount => 0,
            Self::OneShot => 1,
            Self::Rate => 2,
            Self::SquareWave => 3,
            Self::SoftwareStrobe => 4,
            Self::HardwareStrobe => 5,
        }
    }

    fn periodic(self) -> bool {
        matches!(self, Self::Rate | Self::SquareWave)
    }

    /// Whether a rising gate, rather than a new count, starts the counter.
    fn triggered_by_gate(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }
}

/// Which bytes of a count are transferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    #[default]
    Both,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    mode: Mode,
    access: Access,
    bcd: bool,
    gate: bool,
    /// The count register as written.
    reload: u16,
    /// The first byte of a count in two.
    written_low: Option<u8>,
    /// Whether the next read of an unlatched count gives the high byte.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    /// A count was loaded since the mode was set.
    loaded: bool,
    counting: bool,
    /// Tick at which the counter held `anchor_count`.
    anchor_tick: u64,
    /// 1 to 65536.
    anchor_count: u32,
    /// A one-shot that has not come to its end.
    armed: bool,
}

impl Channel {
    fn period(&self) -> u32 {
        let digits = |value: u16| {
            (0..4).rev().fold(0u32, |sum, digit| sum * 10 + u32::from(value >> (4 * digit) & 0xf))
        };
        match (self.reload, self.bcd) {
            (0, true) => 10_000,
            (0, false) => COUNT_MAX,
            (value, true) => digits(value),
            (value, false) => u32::from(value),
        }
    }

    fn set_mode(&mut self, control: u8) {
        *self = Self {
            mode: Mode::from_bits(control >> 1),
            access: match control >> 4 & 0b11 {
                1 => Access::Low,
                2 => Access::High,
                _ => Access::Both,
            },
            bcd: control & 1 != 0,
            gate: self.gate,
            reload: self.reload,
            ..Self::default()
        };
    }

    fn write_count(&mut self, value: u8, clock: &mut dyn Clock) {
        let count = match (self.access, self.written_low.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::Both, None) => {
                self.written_low = Some(value);
                // In mode 0 the first byte stops the counter (data sheet, "mode definitions").
                if self.mode == Mode::TerminalCount {
                    self.counting = false;
                    self.armed = false;
                }
                return;
            }
        };
        self.reload = count;
        self.loaded = true;
        if !self.mode.triggered_by_gate() {
            self.start(clock.now());
        }
    }

    fn start(&mut self, now: u64) {
        self.anchor_tick = ticks::at(now, PIT_FREQUENCY);
        self.anchor_count = self.period();
        self.counting = self.gate || self.mode.triggered_by_gate();
        self.armed = true;
    }

    fn set_gate(&mut self, gate: bool, clock: &mut dyn Clock) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        if !self.loaded {
            return;
        }
        match (self.mode, gate) {
            (Mode::OneShot | Mode::HardwareStrobe | Mode::Rate | Mode::SquareWave, true) => {
                self.start(clock.now());
            }
            (Mode::OneShot | Mode::HardwareStrobe, false) => {}
            (Mode::Rate | Mode::SquareWave, false) => self.counting = false,
            (Mode::TerminalCount | Mode::SoftwareStrobe, _) => {
                // The gate holds the counter: it stays where it is and goes on from there.
                let now = ticks::at(clock.now(), PIT_FREQUENCY);
                if self.passed(now) >= u64::from(self.anchor_count) {
                    self.armed = false;
                }
                self.anchor_count = self.count(now);
                self.anchor_tick = now;
                self.counting = gate;
            }
        }
    }

    fn passed(&self, tick: u64) -> u64 {
        if self.counting { tick.saturating_sub(self.anchor_tick) } else { 0 }
    }

    /// The counter at `tick`, 1 to 65536.
    fn count(&self, tick: u64) -> u32 {
        let (passed, anchor) = (self.passed(tick), u64::from(self.anchor_count));
        let period = u64::from(self.period()).max(1);
        let left = if self.mode.periodic() {
            let into = passed % period;
            // A square wave counts down twice a period, by two.
            let step = if self.mode == Mode::SquareWave { 2 * into % period } else { into };
            period - step
        } else {
            // Modes that stop at zero in meaning go on counting in fact, from 0xffff.
            let wrap = if self.bcd { 10_000 } else { 0x1_0000 };
            (anchor + wrap - passed % wrap - 1) % wrap + 1
        };
        left as u32
    }

    fn output(&self, tick: u64) -> bool {
        let passed = self.passed(tick);
        let ended = !self.armed || passed >= u64::from(self.anchor_count);
        match self.mode {
            Mode::TerminalCount => self.loaded && self.written_low.is_none() && ended,
            Mode::OneShot => !self.loaded || ended,
            Mode::Rate => !self.counting || self.count(tick) != 1,
            Mode::SquareWave => {
                let period = u64::from(self.period()).max(1);
                !self.counting || passed % period < period.div_ceil(2)
            }
            Mode::SoftwareStrobe | Mode::HardwareStrobe => true,
        }
    }

    fn deadline(&self) -> Option<u64> {
        if !(self.armed && self.counting) {
            return None;
        }
        let tick = self.anchor_tick.saturating_add(u64::from(self.anchor_count));
        let minimum =
            if self.mode.periodic() { ticks::at(PERIODIC_MINIMUM_NS, PIT_FREQUENCY) } else { 0 };
        Some(ticks::reached(tick.max(self.anchor_tick.saturating_add(minimum)), PIT_FREQUENCY))
    }

    /// Whether the output rose at or before `now` and since it was last asked.
    fn settle(&mut self, now: u64) -> bool {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return false;
        }
        if self.mode.periodic() {
            let period = u64::from(self.period()).max(1);
            let passed = ticks::at(now, PIT_FREQUENCY).saturating_sub(self.anchor_tick);
            let over = passed.saturating_sub(u64::from(self.anchor_count));
            self.anchor_tick += u64::from(self.anchor_count) + over / period * period;
            self.anchor_count = self.period();
        } else {
            self.armed = false;
        }
        true
    }

    fn register(&self, tick: u64) -> u16 {
        let count = if self.loaded { self.count(tick) } else { u32::from(self.reload) };
        if self.bcd {
            let digit = |divisor: u32, shift: u32| (count / divisor % 10) << shift;
            (digit(1000, 12) | digit(100, 8) | digit(10, 4) | digit(1, 0)) as u16
        } else {
            count as u16
        }
    }

    fn latch_count(&mut self, clock: &mut dyn Clock) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.register(ticks::at(clock.now(), PIT_FREQUENCY)));
            self.read_high = false;
        }
    }

    fn latch_status(&mut self, clock: &mut dyn Clock) {
        if self.latched_status.is_none() {
            let output = self.output(ticks::at(clock.now(), PIT_FREQUENCY));
            let access = match self.access {
                Access::Low => 1,
                Access::High => 2,
                Access::Both => 3,
            };
            self.latched_status = Some(
                u8::from(output) << 7
                    | u8::from(!self.loaded) << 6
                    | access << 4
                    | self.mode.bits() << 1
                    | u8::from(self.bcd),
            );
        }
    }

    fn read(&mut self, clock: &mut dyn Clock) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let value = match self.latched_count {
            Some(value) => value,
            None => self.register(ticks::at(clock.now(), PIT_FREQUENCY)),
        };
        let [low, high] = value.to_le_bytes();
        let (byte, last) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::Both if self.read_high => (high, true),
            Access::Both => (low, false),
        };
        self.read_high = !last;
        if last {
            self.latched_count = None;
        }
        byte
    }
}

/// The three counters, and the speaker's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    channels: [Channel; 3],
    /// Bits 0 (gate of channel 2) and 1 (speaker) of port 0x61 as written.
    speaker: u8,
    /// Bit 4 of port 0x61, which changes with each refresh of memory: here, with each read.
    refresh: bool,
}

impl PitState {
    /// As firmware leaves it: channel 0 counts the full 65536 over and over. Linux's early entropy
    /// (`kaslr.c`) waits for a count to read. The gates of channels 0 and 1 are wired to high.
    pub(super) fn new() -> Self {
        let gated = |gate| Channel { gate, ..Channel::default() };
        let mut timer = Channel { mode: Mode::SquareWave, loaded: true, ..gated(true) };
        timer.start(0);
        Self { channels: [timer, gated(true), gated(false)], speaker: 0, refresh: false }
    }

    /// Whether a model can go on from here: counts are of 16 bits, ticks of a time that there is.
    pub(super) fn is_consistent(&self) -> bool {
        let last_tick = ticks::at(u64::MAX, PIT_FREQUENCY) + u64::from(COUNT_MAX);
        self.channels
            .iter()
            .all(|channel| channel.anchor_count <= COUNT_MAX && channel.anchor_tick <= last_tick)
    }

    /// Whether channel 0 raises its interrupt again and again.
    pub(super) fn periodic(&self) -> bool {
        self.channels[0].mode.periodic()
    }

    /// When channel 0 will raise its interrupt next.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.channels[0].deadline()
    }

    /// Whether channel 0's output has risen; several periods count as one.
    pub(super) fn advance(&mut self, now: u64) -> bool {
        self.channels[0].settle(now)
    }

    /// Reads a port from 0x40 to 0x43, or 0x61.
    pub(super) fn read(&mut self, port: u16, clock: &mut dyn Clock) -> u8 {
        match port {
            0x40 => self.channels[0].read(clock),
            0x41 => self.channels[1].read(clock),
            0x42 => self.channels[2].read(clock),
            0x61 => self.read_speaker(clock),
            _ => 0xff,
        }
    }

    fn read_speaker(&mut self, clock: &mut dyn Clock) -> u8 {
        self.refresh = !self.refresh;
        let channel = &self.channels[2];
        // Linux reads this port for other reasons, too: a counter at rest needs no time.
        let now = if channel.counting { ticks::at(clock.now(), PIT_FREQUENCY) } else { 0 };
        self.speaker | u8::from(self.refresh) << 4 | u8::from(channel.output(now)) << 5
    }

    /// Writes one of these ports; whether that took channel 0's output low.
    pub(super) fn write(&mut self, port: u16, value: u8, clock: &mut dyn Clock) -> bool {
        match port {
            0x40 => self.channels[0].write_count(value, clock),
            0x41 => self.channels[1].write_count(value, clock),
            0x42 => self.channels[2].write_count(value, clock),
            0x43 => return self.write_control(value, clock),
            0x61 => {
                self.speaker = value & 0b11;
                self.channels[2].set_gate(value & 1 != 0, clock);
            }
            _ => {}
        }
        false
    }

    fn write_control(&mut self, value: u8, clock: &mut dyn Clock) -> bool {
        let select = value >> 6;
        if let Some(channel) = self.channels.get_mut(usize::from(select)) {
            if value & 0x30 == 0 {
                channel.latch_count(clock);
                return false;
            }
            channel.set_mode(value);
            return select == 0;
        }
        // Read-back command: both halves are active low.
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if value & 2 << index != 0 {
                if value & 0x20 == 0 {
                    channel.latch_count(clock);
                }
                if value & 0x10 == 0 {
                    channel.latch_status(clock);
                }
            }
        }
        false
    }
}
