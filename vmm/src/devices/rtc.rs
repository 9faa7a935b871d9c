//! The MC146818 real-time clock and its 128 bytes of memory, at ports 0x70 and 0x71.
//!
//! Owns the calendar as the guest set it, relative to machine time; alarm, periodic and update
//! interrupts. Nothing ticks: the registers are computed from the time of the access. Ports, data
//! formats and interrupt flags follow the MC146818A's data sheet; the century is in byte 0x32, as
//! the FADT says.

use serde::{Deserialize, Serialize};

use super::{Clock, calendar::Civil};

const NS: i128 = 1_000_000_000;
/// How long before a second's end the registers are announced to be changing.
const UPDATE_WARNING_NS: i128 = 244_000;
/// More than the 16,665 years that the registers can hold.
const EPOCH_NS_MAX: u128 = 1 << 72;
const CRYSTAL_HZ: i128 = 32_768;

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

const A_UPDATING: u8 = 0x80;
const B_SET: u8 = 0x80;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE: u8 = 0x10;
const INTERRUPTS: u8 = PERIODIC | ALARM | UPDATE;
const AFTERNOON: u8 = 0x80;
/// Alarm bytes from here on match any value.
const DO_NOT_CARE: u8 = 0xc0;

/// The clock and calendar registers in their order: second, minute, hour, day of week, day of
/// month, month, year, century.
type TimeRegisters = [u8; 8];

/// Registers of the clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    index: u8,
    /// Nanoseconds since 1970 at machine time 0, by this clock.
    epoch_ns: i128,
    /// The registers while the guest holds the clock to set it.
    held: Option<TimeRegisters>,
    alarm: [u8; 3],
    register_a: u8,
    register_b: u8,
    /// Interrupt flags.
    flags: u8,
    /// Machine time up to which `flags` are known.
    settled_ns: u64,
    /// Memory, 128 bytes; those that are registers are not used.
    memory: [[u8; 32]; 4],
}

impl RtcState {
    /// A clock that shows `boot_time_unix_ns` at machine time 0.
    pub(super) fn new(boot_time_unix_ns: i64) -> Self {
        Self {
            index: 0,
            epoch_ns: i128::from(boot_time_unix_ns),
            held: None,
            alarm: [0; 3],
            // A running divider and 1024 Hz, as firmware leaves it.
            register_a: 0x26,
            register_b: B_24_HOURS,
            flags: 0,
            settled_ns: 0,
            memory: [[0; 32]; 4],
        }
    }

    /// Whether a model can go on from here: no calendar gets further away from 1970 than this.
    pub(super) fn is_consistent(&self) -> bool {
        self.epoch_ns.unsigned_abs() <= EPOCH_NS_MAX && self.index < 0x80
    }

    /// The clock's own time, in ns since 1970.
    fn time_ns(&self, now: u64) -> i128 {
        self.epoch_ns + i128::from(now)
    }

    /// Level of the interrupt line.
    pub(super) fn interrupt(&self) -> bool {
        self.flags & self.register_b & INTERRUPTS != 0
    }

    /// When the interrupt line will rise.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        if self.interrupt() || self.held.is_some() {
            return None;
        }
        let time = self.time_ns(self.settled_ns);
        let second = time.div_euclid(NS);
        let enabled = |source| self.register_b & source != 0;
        let periodic = self.period().filter(|_| enabled(PERIODIC)).map(|period| {
            let ticks = (time * CRYSTAL_HZ).div_euclid(NS);
            let next = (ticks.div_euclid(period) + 1) * period * NS;
            -(-next).div_euclid(CRYSTAL_HZ)
        });
        let update = enabled(UPDATE).then(|| (second + 1) * NS);
        let alarm = enabled(ALARM).then(|| self.next_alarm(second)).flatten().map(|s| s * NS);
        let next = [periodic, update, alarm].into_iter().flatten().min()?;
        u64::try_from(next - self.epoch_ns).ok()
    }

    /// Period of the periodic interrupt, in periods of the crystal.
    fn period(&self) -> Option<i128> {
        match self.register_a & 0xf {
            0 => None,
            // The two fastest rates of the other oscillators repeat slower ones here.
            rate @ (1 | 2) => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// The first second after `second` at which the alarm matches.
    fn next_alarm(&self, second: i128) -> Option<i128> {
        let field = |index: usize, hour: bool| {
            let raw = self.alarm[index];
            (raw < DO_NOT_CARE).then(|| if hour { self.decode_hour(raw) } else { self.decode(raw) })
        };
        let (at_second, at_minute, at_hour) = (field(0, false), field(1, false), field(2, true));
        let fits = |field: Option<i64>, value: i128| field.is_none_or(|at| i128::from(at) == value);
        let from = second + 1;
        let mut time = from;
        // At most a day's hours, an hour's minutes and a minute's seconds are looked at, then the
        // same once more for what was skipped at the start.
        for _ in 0..=24 + 2 * 120 {
            let (hour, minute) =
                (time.div_euclid(3600).rem_euclid(24), time.div_euclid(60).rem_euclid(60));
            if !fits(at_hour, hour) {
                time = (time.div_euclid(3600) + 1) * 3600;
            } else if !fits(at_minute, minute) {
                time = (time.div_euclid(60) + 1) * 60;
            } else if !fits(at_second, time.rem_euclid(60)) {
                time += 1;
            } else {
                return Some(time);
            }
        }
        None
    }

    /// Raises the interrupts that are due at `now`.
    ///
    /// With none enabled there is nothing to do: the flags are made up when somebody looks.
    pub(super) fn advance(&mut self, now: u64) {
        if self.register_b & INTERRUPTS != 0 {
            self.settle(now);
        }
    }

    /// Sets the flags of all that happened up to `now`.
    fn settle(&mut self, now: u64) {
        if now <= self.settled_ns {
            return;
        }
        if self.held.is_none() {
            let (from, to) = (self.time_ns(self.settled_ns), self.time_ns(now));
            let (from_second, to_second) = (from.div_euclid(NS), to.div_euclid(NS));
            if from_second < to_second {
                self.flags |= UPDATE;
                if self.next_alarm(from_second).is_some_and(|alarm| alarm <= to_second) {
                    self.flags |= ALARM;
                }
            }
            if self.period().is_some_and(|period| {
                let periods = |time: i128| (time * CRYSTAL_HZ).div_euclid(NS * period);
                periods(from) < periods(to)
            }) {
                self.flags |= PERIODIC;
            }
        }
        self.settled_ns = now;
    }

    /// Reads port 0x70 or 0x71.
    pub(super) fn read(&mut self, port: u16, clock: &mut dyn Clock) -> u8 {
        if port == 0x70 {
            return 0xff;
        }
        if let Some(register) = time_register(self.index) {
            return self.held.unwrap_or_else(|| self.encode_time(clock.now()))[register];
        }
        match self.index {
            0x01 | 0x03 | 0x05 => self.alarm[usize::from(self.index >> 1)],
            REGISTER_A => self.register_a | self.updating(clock),
            REGISTER_B => self.register_b,
            REGISTER_C => self.take_flags(clock),
            // The battery is good.
            REGISTER_D => 0x80,
            index => self.memory[usize::from(index >> 5 & 3)][usize::from(index & 31)],
        }
    }

    fn updating(&self, clock: &mut dyn Clock) -> u8 {
        if self.held.is_some() {
            return 0;
        }
        let left = NS - self.time_ns(clock.now()).rem_euclid(NS);
        if left <= UPDATE_WARNING_NS { A_UPDATING } else { 0 }
    }

    fn take_flags(&mut self, clock: &mut dyn Clock) -> u8 {
        self.settle(clock.now());
        let flags = self.flags | if self.interrupt() { 0x80 } else { 0 };
        self.flags = 0;
        flags
    }

    /// Writes port 0x70 or 0x71.
    pub(super) fn write(&mut self, port: u16, value: u8, clock: &mut dyn Clock) {
        if port == 0x70 {
            // Bit 7 would mask the NMI, which nothing raises.
            self.index = value & 0x7f;
        } else if let Some(register) = time_register(self.index) {
            self.write_time(register, value, clock);
        } else {
            match self.index {
                0x01 | 0x03 | 0x05 => self.write_alarm(usize::from(self.index >> 1), value, clock),
                REGISTER_A => self.write_control(value & !A_UPDATING, self.register_b, clock),
                REGISTER_B => self.write_control(self.register_a, value, clock),
                REGISTER_C | REGISTER_D => {}
                index => self.memory[usize::from(index >> 5 & 3)][usize::from(index & 31)] = value,
            }
        }
    }

    fn write_alarm(&mut self, field: usize, value: u8, clock: &mut dyn Clock) {
        if self.alarm[field] != value {
            self.settle(clock.now());
            self.alarm[field] = value;
        }
    }

    fn write_time(&mut self, register: usize, value: u8, clock: &mut dyn Clock) {
        if let Some(held) = &mut self.held {
            held[register] = value;
            return;
        }
        let now = clock.now();
        self.settle(now);
        let mut registers = self.encode_time(now);
        registers[register] = value;
        let fraction = self.time_ns(now).rem_euclid(NS);
        self.set_time(&registers, fraction, now);
    }

    fn write_control(&mut self, register_a: u8, register_b: u8, clock: &mut dyn Clock) {
        if (register_a, register_b) == (self.register_a, self.register_b) {
            return;
        }
        let now = clock.now();
        self.settle(now);
        let was_reset = in_reset(self.register_a);
        let hold = in_reset(register_a) || register_b & B_SET != 0;
        if hold && self.held.is_none() {
            self.held = Some(self.encode_time(now));
        }
        let set_b = if register_b & B_SET != 0 { register_b & !UPDATE } else { register_b };
        let held = if hold { None } else { self.held.take() };
        if let Some(registers) = held {
            // A divider that leaves reset makes its first update half a second later.
            let fraction = if was_reset { NS / 2 } else { self.time_ns(now).rem_euclid(NS) };
            self.set_time(&registers, fraction, now);
        }
        (self.register_a, self.register_b) = (register_a, set_b);
    }

    fn set_time(&mut self, registers: &TimeRegisters, fraction_ns: i128, now: u64) {
        let [second, minute, hour, _, day, month, year, century] = *registers;
        let civil = Civil {
            year: self.decode(century) * 100 + self.decode(year),
            month: self.decode(month),
            day: self.decode(day),
            hour: self.decode_hour(hour),
            minute: self.decode(minute),
            second: self.decode(second),
        };
        self.epoch_ns = i128::from(civil.to_unix()) * NS + fraction_ns - i128::from(now);
    }

    fn encode_time(&self, now: u64) -> TimeRegisters {
        let seconds = self.time_ns(now).div_euclid(NS);
        let civil = Civil::from_unix(i64::try_from(seconds).unwrap_or(i64::MAX / 2));
        [
            self.encode(civil.second),
            self.encode(civil.minute),
            self.encode_hour(civil.hour),
            self.encode(civil.weekday()),
            self.encode(civil.day),
            self.encode(civil.month),
            self.encode(civil.year.rem_euclid(100)),
            self.encode(civil.year.div_euclid(100).rem_euclid(100)),
        ]
    }

    fn encode(&self, value: i64) -> u8 {
        let value = value as u8;
        if self.register_b & B_BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> i64 {
        if self.register_b & B_BINARY != 0 {
            i64::from(value)
        } else {
            i64::from(value >> 4) * 10 + i64::from(value & 0xf)
        }
    }

    fn encode_hour(&self, hour: i64) -> u8 {
        if self.register_b & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let half_day = if hour >= 12 { AFTERNOON } else { 0 };
        self.encode((hour + 11) % 12 + 1) | half_day
    }

    fn decode_hour(&self, value: u8) -> i64 {
        if self.register_b & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let half_day = if value & AFTERNOON != 0 { 12 } else { 0 };
        self.decode(value & !AFTERNOON) % 12 + half_day
    }
}

/// Whether register A holds the divider in reset.
fn in_reset(register_a: u8) -> bool {
    register_a & 0x60 == 0x60
}

/// Place among [`TimeRegisters`] of the byte at `index`.
fn time_register(index: u8) -> Option<usize> {
    match index {
        0x00 => Some(0),
        0x02 => Some(1),
        0x04 => Some(2),
        0x06..=0x09 => Some(usize::from(index) - 3),
        CENTURY => Some(7),
        _ => None,
    }
}
