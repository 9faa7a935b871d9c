//! The local APIC of one processor, in its memory-mapped form (no x2APIC).
//!
//! Owns which interrupt is delivered next: request, service and trigger-mode registers,
//! priorities, the local vector table, interrupts to itself. The counter of the timer is in
//! [`super::lapic_timer`]; the end of a level-triggered interrupt is handed on to the I/O APIC by
//! the platform. Intel SDM volume 3, chapter 11.
//!
//! Not modelled, since nothing raises them with one processor: NMI, SMI, INIT and start-up messages,
//! which are dropped, and the TSC deadline mode, which CPUID hides.

use serde::{Deserialize, Serialize};

use super::{Clock, LapicTimerState};

const DELIVERY_FIXED: u8 = 0;
const DELIVERY_LOWEST_PRIORITY: u8 = 1;
const DELIVERY_EXTERNAL: u32 = 7;

const LVT_MASKED: u32 = 1 << 16;
const LVT_PERIODIC: u32 = 1 << 17;
const SPURIOUS_ENABLE: u32 = 1 << 8;

const TIMER: usize = 0;
const LINT0: usize = 3;
const LINT1: usize = 4;
const ERROR: usize = 5;

const SEND_ILLEGAL_VECTOR: u8 = 1 << 5;
const RECEIVE_ILLEGAL_VECTOR: u8 = 1 << 6;

/// An interrupt on its way from the I/O APIC, a PCI function or a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InterruptMessage {
    /// Vector, 16 to 255 if legal.
    pub vector: u8,
    /// Delivery mode, 3 bit.
    pub delivery: u8,
    /// Whether `destination` is a set of logical ids.
    pub logical: bool,
    /// APIC id, or set of logical ids.
    pub destination: u8,
    /// Whether its end must be told to the I/O APIC.
    pub level_triggered: bool,
}

/// Registers of the local APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    /// APIC id.
    pub id: u8,
    /// Task priority.
    pub task_priority: u8,
    /// Logical destination, bits 31 to 24 of the register.
    pub logical_id: u8,
    /// Destination format: the upper nibble of the register is 0 for the cluster model.
    pub cluster_model: bool,
    /// Spurious interrupt vector register.
    pub spurious: u32,
    /// Interrupts waiting, a bit a vector.
    pub requested: [u32; 8],
    /// Interrupts being served.
    pub in_service: [u32; 8],
    /// Level-triggered ones among them.
    pub level_triggered: [u32; 8],
    /// Error status register as latched by the last write to it.
    pub error_status: u8,
    /// Errors since.
    pub error_pending: u8,
    /// Interrupt command register, low and high half.
    pub command: [u32; 2],
    /// Local vector table: timer, thermal sensor, performance counters, LINT0, LINT1, error.
    pub vectors: [u32; 6],
    /// The timer's counter.
    pub timer: LapicTimerState,
}

impl LapicState {
    /// The state after reset, except for LINT0: as firmware does, it lets the 8259's interrupts
    /// through ("virtual wire"), so that they work before the guest sets up its APIC.
    pub(super) fn new(id: u8) -> Self {
        let mut vectors = [LVT_MASKED; 6];
        vectors[LINT0] = DELIVERY_EXTERNAL << 8;
        Self {
            id,
            task_priority: 0,
            logical_id: 0,
            cluster_model: false,
            spurious: 0xff,
            requested: [0; 8],
            in_service: [0; 8],
            level_triggered: [0; 8],
            error_status: 0,
            error_pending: 0,
            command: [0; 2],
            vectors,
            timer: LapicTimerState::default(),
        }
    }

    fn enabled(&self) -> bool {
        self.spurious & SPURIOUS_ENABLE != 0
    }

    /// Whether the 8259's output reaches the processor.
    pub(super) fn passes_external(&self) -> bool {
        self.vectors[LINT0] & (LVT_MASKED | 0x700) == DELIVERY_EXTERNAL << 8
    }

    fn processor_priority(&self) -> u8 {
        let serving = highest(&self.in_service).unwrap_or(0);
        if self.task_priority >> 4 >= serving >> 4 { self.task_priority } else { serving & 0xf0 }
    }

    /// The vector that the processor can be given now.
    pub(super) fn deliverable(&self) -> Option<u8> {
        let vector = highest(&self.requested)?;
        (self.enabled() && vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// Hands the next vector to the processor.
    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        assign(&mut self.requested, vector, false);
        assign(&mut self.in_service, vector, true);
        Some(vector)
    }

    fn matches(&self, message: &InterruptMessage) -> bool {
        if !message.logical {
            return message.destination == self.id || message.destination == 0xff;
        }
        if self.cluster_model {
            let cluster = message.destination >> 4;
            (cluster == self.logical_id >> 4 || cluster == 0xf)
                && message.destination & self.logical_id & 0xf != 0
        } else {
            message.destination & self.logical_id != 0
        }
    }

    /// Takes a message from the bus; whether it was for this processor and could be taken.
    pub(super) fn receive(&mut self, message: &InterruptMessage) -> bool {
        let deliverable = matches!(message.delivery, DELIVERY_FIXED | DELIVERY_LOWEST_PRIORITY);
        deliverable
            && self.enabled()
            && self.matches(message)
            && self.request(message.vector, message.level_triggered)
    }

    fn request(&mut self, vector: u8, level_triggered: bool) -> bool {
        if vector < 16 {
            self.error(RECEIVE_ILLEGAL_VECTOR);
            return false;
        }
        assign(&mut self.requested, vector, true);
        assign(&mut self.level_triggered, vector, level_triggered);
        true
    }

    fn error(&mut self, error: u8) {
        let known = self.error_pending & error != 0;
        self.error_pending |= error;
        // The error vector itself may be illegal: `known` ends the recursion.
        if !known {
            self.raise_local(ERROR);
        }
    }

    fn raise_local(&mut self, entry: usize) {
        let value = self.vectors[entry];
        let fixed = value >> 8 & 0b111 == u32::from(DELIVERY_FIXED);
        if value & LVT_MASKED == 0 && fixed && self.enabled() {
            self.request(value as u8, false);
        }
    }

    /// Fires the timer if it is due.
    pub(super) fn advance(&mut self, now: u64) {
        if self.timer.settle(now) {
            self.raise_local(TIMER);
        }
    }

    /// When the timer will raise an interrupt next. A masked timer has no deadline.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        if self.vectors[TIMER] & LVT_MASKED != 0 || !self.enabled() {
            return None;
        }
        self.timer.deadline()
    }

    /// Reads the 32-bit register at `offset` into the page, a multiple of 16.
    pub(super) fn read(&self, offset: u16, clock: &mut dyn Clock) -> u32 {
        let bank = usize::from(offset >> 4 & 0b111);
        match offset {
            0x020 => u32::from(self.id) << 24,
            // Version 0x14 with six entries in the local vector table.
            0x030 => 0x0005_0014,
            0x080 => u32::from(self.task_priority),
            0x0a0 => u32::from(self.processor_priority()),
            0x0d0 => u32::from(self.logical_id) << 24,
            0x0e0 if self.cluster_model => 0x0fff_ffff,
            0x0e0 => 0xffff_ffff,
            0x0f0 => self.spurious,
            0x100..=0x170 => self.in_service[bank],
            0x180..=0x1f0 => self.level_triggered[bank],
            0x200..=0x270 => self.requested[bank],
            0x280 => u32::from(self.error_status),
            0x300 => self.command[0],
            0x310 => self.command[1],
            0x320..=0x370 => self.vectors[lvt_index(offset)],
            0x380 => self.timer.initial,
            0x390 if self.timer.running() => self.timer.count(clock.now()),
            0x3e0 => u32::from(self.timer.divide),
            _ => 0,
        }
    }

    /// Writes a register; the vector whose level-triggered service thereby ended, if any.
    pub(super) fn write(&mut self, offset: u16, value: u32, clock: &mut dyn Clock) -> Option<u8> {
        match offset {
            0x080 => self.task_priority = value as u8,
            0x0b0 => return self.end_of_interrupt(),
            0x0d0 => self.logical_id = (value >> 24) as u8,
            0x0e0 => self.cluster_model = value >> 28 == 0,
            0x0f0 => self.write_spurious(value),
            0x280 => {
                self.error_status = self.error_pending;
                self.error_pending = 0;
            }
            0x300 => self.send(value),
            0x310 => self.command[1] = value & 0xff00_0000,
            0x320 => self.write_timer_vector(value, clock),
            0x330..=0x370 => self.write_vector(lvt_index(offset), value),
            0x380 if value == 0 => self.timer.start(0, 0),
            0x380 => self.timer.start(value, clock.now()),
            0x3e0 if self.timer.running() => self.timer.set_divide(value as u8, clock.now()),
            0x3e0 => self.timer.set_divide(value as u8, 0),
            _ => {}
        }
        None
    }

    fn end_of_interrupt(&mut self) -> Option<u8> {
        let vector = highest(&self.in_service)?;
        assign(&mut self.in_service, vector, false);
        is_set(&self.level_triggered, vector).then_some(vector)
    }

    fn write_spurious(&mut self, value: u32) {
        self.spurious = value & 0x1ff;
        if !self.enabled() {
            for entry in &mut self.vectors {
                *entry |= LVT_MASKED;
            }
        }
    }

    fn write_vector(&mut self, entry: usize, value: u32) {
        let writable = match entry {
            TIMER => 0x3_00ff,
            LINT0 | LINT1 => 0x1_a7ff,
            ERROR => 0x1_00ff,
            _ => 0x1_07ff,
        };
        self.vectors[entry] = value & writable;
        if !self.enabled() {
            self.vectors[entry] |= LVT_MASKED;
        }
    }

    fn write_timer_vector(&mut self, value: u32, clock: &mut dyn Clock) {
        // What the timer did until now counts by the old mask and mode.
        let changed = (self.vectors[TIMER] ^ value) & (LVT_MASKED | LVT_PERIODIC) != 0;
        if changed && self.timer.running() {
            self.advance(clock.now());
        }
        self.write_vector(TIMER, value);
        self.timer.periodic = self.vectors[TIMER] & LVT_PERIODIC != 0;
    }

    fn send(&mut self, value: u32) {
        // The delivery status (bit 12) always reads as idle: sending takes no time.
        self.command[0] = value & 0x000c_cfff;
        let message = InterruptMessage {
            vector: value as u8,
            delivery: (value >> 8 & 0b111) as u8,
            logical: value & 1 << 11 != 0,
            destination: (self.command[1] >> 24) as u8,
            level_triggered: false,
        };
        let to_self = match value >> 18 & 0b11 {
            0b00 => self.matches(&message),
            0b01 | 0b10 => true,
            _ => false,
        };
        let fixed = matches!(message.delivery, DELIVERY_FIXED | DELIVERY_LOWEST_PRIORITY);
        if fixed && message.vector < 16 {
            self.error(SEND_ILLEGAL_VECTOR);
        } else if to_self && fixed && self.enabled() {
            self.request(message.vector, false);
        }
    }
}

/// Index into the local vector table for the registers at 0x320 to 0x370.
fn lvt_index(offset: u16) -> usize {
    usize::from((offset.clamp(0x320, 0x370) - 0x320) >> 4)
}

fn highest(set: &[u32; 8]) -> Option<u8> {
    let bank = set.iter().rposition(|bits| *bits != 0)?;
    Some((bank as u8) << 5 | (31 - set[bank].leading_zeros() as u8))
}

fn is_set(set: &[u32; 8], vector: u8) -> bool {
    set[usize::from(vector >> 5)] & 1 << (vector & 31) != 0
}

fn assign(set: &mut [u32; 8], vector: u8, value: bool) {
    let bank = &mut set[usize::from(vector >> 5)];
    *bank = *bank & !(1 << (vector & 31)) | u32::from(value) << (vector & 31);
}
