//! The pair of 8259A interrupt controllers of a PC, the second behind input 2 of the first.
//!
//! Owns the 15 ISA interrupts as seen without an APIC. Linux uses it early in its boot and then
//! masks it. Follows Intel's data sheet of the 8259A for what software can see, in the mode of
//! the 8086 only; the special fully nested mode is accepted and ignored.

use serde::{Deserialize, Serialize};

const CASCADE: u8 = 2;
/// What a chip answers when the interrupt vanished before it was acknowledged.
const SPURIOUS: u8 = 7;

/// What the next write to the odd port means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Expect {
    #[default]
    Mask,
    Vector,
    Cascade,
    Mode,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Chip {
    requested: u8,
    in_service: u8,
    mask: u8,
    lines: u8,
    /// Edge/level control: a set bit makes the input level-triggered.
    level: u8,
    /// Upper five bits of the vectors.
    vector_base: u8,
    /// The input with the highest priority.
    first: u8,
    expect: Expect,
    expect_mode: bool,
    single: bool,
    read_in_service: bool,
    poll: bool,
    special_mask: bool,
    automatic_end: bool,
    rotate_on_automatic_end: bool,
}

impl Chip {
    /// The set input that comes first in the present order of priorities.
    fn first_of(&self, inputs: u8) -> Option<u8> {
        let distance = inputs.rotate_right(u32::from(self.first)).trailing_zeros() as u8;
        (inputs != 0).then_some((self.first + distance) & 7)
    }

    fn distance(&self, input: u8) -> u8 {
        input.wrapping_sub(self.first) & 7
    }

    /// The input that asks for the processor now.
    fn pending(&self) -> Option<u8> {
        let input = self.first_of(self.requested & !self.mask)?;
        let blocking =
            if self.special_mask { self.in_service & !self.mask } else { self.in_service };
        match self.first_of(blocking) {
            Some(serving) if self.distance(serving) <= self.distance(input) => None,
            _ => Some(input),
        }
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << (input & 7);
        if self.level & bit != 0 {
            self.requested = if high { self.requested | bit } else { self.requested & !bit };
        } else if high && self.lines & bit == 0 {
            self.requested |= bit;
        }
        self.lines = if high { self.lines | bit } else { self.lines & !bit };
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << (input & 7);
        if self.level & bit == 0 {
            self.requested &= !bit;
        }
        if !self.automatic_end {
            self.in_service |= bit;
        } else if self.rotate_on_automatic_end {
            self.first = (input + 1) & 7;
        }
    }

    fn read(&mut self, mask_port: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return self.pending().map_or(0, |input| {
                self.acknowledge(input);
                0x80 | input
            });
        }
        match (mask_port, self.read_in_service) {
            (true, _) => self.mask,
            (false, true) => self.in_service,
            (false, false) => self.requested,
        }
    }

    fn write(&mut self, mask_port: bool, value: u8) {
        if mask_port {
            self.write_odd(value);
        } else if value & 0x10 != 0 {
            self.initialise(value);
        } else if value & 0x08 != 0 {
            self.write_operation_3(value);
        } else {
            self.write_operation_2(value);
        }
    }

    /// First initialisation word: everything but the wiring starts afresh.
    fn initialise(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            level: self.level,
            requested: self.lines & self.level,
            vector_base: self.vector_base,
            expect: Expect::Vector,
            expect_mode: value & 0x01 != 0,
            single: value & 0x02 != 0,
            ..Self::default()
        };
    }

    /// The initialisation words that follow the first, or the mask.
    fn write_odd(&mut self, value: u8) {
        let mode_next = if self.expect_mode { Expect::Mode } else { Expect::Mask };
        match self.expect {
            Expect::Mask => self.mask = value,
            Expect::Vector => {
                self.vector_base = value & 0xf8;
                self.expect = if self.single { mode_next } else { Expect::Cascade };
            }
            Expect::Cascade => self.expect = mode_next,
            Expect::Mode => {
                self.automatic_end = value & 0x02 != 0;
                self.expect = Expect::Mask;
            }
        }
    }

    /// End of interrupt and rotation of priorities.
    fn write_operation_2(&mut self, value: u8) {
        let (input, command) = (value & 7, value >> 5);
        match command {
            0b000 => self.rotate_on_automatic_end = false,
            0b100 => self.rotate_on_automatic_end = true,
            0b001 | 0b101 => {
                if let Some(served) = self.first_of(self.in_service) {
                    self.end(served, command == 0b101);
                }
            }
            0b011 | 0b111 => self.end(input, command == 0b111),
            0b110 => self.first = (input + 1) & 7,
            _ => {}
        }
    }

    fn end(&mut self, input: u8, rotate: bool) {
        self.in_service &= !(1 << input);
        if rotate {
            self.first = (input + 1) & 7;
        }
    }

    /// Special mask mode, polling, and which register the even port reads.
    fn write_operation_3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_in_service = value & 0x01 != 0;
        }
    }
}

/// Both controllers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    first: Chip,
    second: Chip,
}

impl PicState {
    /// As firmware leaves them: every input masked, vectors from 8 and 0x70, `level_irqs`
    /// level-triggered.
    pub(super) fn new(level_irqs: u16) -> Self {
        let chip = |vector_base, level| Chip { mask: 0xff, vector_base, level, ..Chip::default() };
        Self { first: chip(0x08, level_irqs as u8), second: chip(0x70, (level_irqs >> 8) as u8) }
    }

    /// Whether a model can go on from here.
    pub(super) fn is_consistent(&self) -> bool {
        [&self.first, &self.second].into_iter().all(|chip| chip.first < 8)
    }

    /// Sets the level of ISA interrupt `irq`, 0 to 15 without 2.
    pub(super) fn set_line(&mut self, irq: u8, high: bool) {
        match irq {
            CASCADE => {}
            0..=7 => self.first.set_line(irq, high),
            8..=15 => self.second.set_line(irq - 8, high),
            _ => {}
        }
        self.cascade();
    }

    /// Whether `irq` could get through, were it requested.
    pub(super) fn unmasked(&self, irq: u8) -> bool {
        match irq {
            0..=7 => self.first.mask & 1 << irq == 0,
            8..=15 => self.second.mask & 1 << (irq - 8) == 0 && self.first.mask & 1 << CASCADE == 0,
            _ => false,
        }
    }

    /// Passes the second chip's output on to the first's input.
    fn cascade(&mut self) {
        // The wire may fall and rise again while the second chip goes from one interrupt to the
        // next; the first chip must see an edge for each.
        let output = self.second.pending().is_some();
        let unseen = self.first.requested & 1 << CASCADE == 0;
        if output && unseen {
            self.first.set_line(CASCADE, false);
        }
        self.first.set_line(CASCADE, output);
        if !output {
            self.first.requested &= !(1 << CASCADE);
        }
    }

    /// Whether the pair asks for the processor.
    pub(super) fn pending(&self) -> bool {
        self.first.pending().is_some()
    }

    /// The processor acknowledges: the vector to be delivered, if there is one.
    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        let input = self.first.pending()?;
        self.first.acknowledge(input);
        let vector = if input == CASCADE {
            let second = self.second.pending();
            if let Some(input) = second {
                self.second.acknowledge(input);
            }
            self.second.vector_base | second.unwrap_or(SPURIOUS)
        } else {
            self.first.vector_base | input
        };
        self.cascade();
        Some(vector)
    }

    /// Reads one of the ports 0x20, 0x21, 0xa0, 0xa1, 0x4d0 and 0x4d1.
    pub(super) fn read(&mut self, port: u16) -> u8 {
        let value = match port {
            0x20 | 0x21 => self.first.read(port & 1 != 0),
            0xa0 | 0xa1 => self.second.read(port & 1 != 0),
            0x4d0 => self.first.level,
            0x4d1 => self.second.level,
            _ => 0xff,
        };
        self.cascade();
        value
    }

    /// Writes one of these ports.
    pub(super) fn write(&mut self, port: u16, value: u8) {
        match port {
            0x20 | 0x21 => self.first.write(port & 1 != 0, value),
            0xa0 | 0xa1 => self.second.write(port & 1 != 0, value),
            // The timer, the keyboard, the cascade and the clock are edge-triggered for good.
            0x4d0 => self.first.level = value & 0xf8,
            0x4d1 => self.second.level = value & 0xde,
            _ => {}
        }
        self.cascade();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux writes in `init_8259A`.
    fn initialised(automatic_end: bool) -> PicState {
        let mut pic = PicState::new(0);
        pic.write(0x21, 0xff);
        let mode = if automatic_end { 3 } else { 1 };
        for value in [(0x20, 0x11), (0x21, 0x30), (0x21, 1 << 2), (0x21, mode)] {
            pic.write(value.0, value.1);
        }
        for value in [(0xa0, 0x11), (0xa1, 0x38), (0xa1, 2), (0xa1, 1)] {
            pic.write(value.0, value.1);
        }
        pic.write(0x21, 0);
        pic.write(0xa1, 0);
        pic
    }

    fn pulse(pic: &mut PicState, irq: u8) {
        pic.set_line(irq, true);
        pic.set_line(irq, false);
    }

    #[test]
    fn the_mask_reads_back_as_linux_probes_it() {
        let mut pic = PicState::new(0);
        pic.write(0xa1, 0xff);
        pic.write(0x21, !(1 << 2));
        assert_eq!(pic.read(0x21), 0xfb);
    }

    #[test]
    fn priorities_nest_and_specific_ends_release_them() {
        let mut pic = initialised(false);
        pulse(&mut pic, 4);
        assert_eq!(pic.acknowledge(), Some(0x34));
        pulse(&mut pic, 5);
        assert!(!pic.pending());
        pulse(&mut pic, 0);
        assert_eq!(pic.acknowledge(), Some(0x30));
        pic.write(0x20, 0x60);
        assert!(!pic.pending());
        pic.write(0x20, 0x64);
        assert_eq!(pic.acknowledge(), Some(0x35));
    }

    #[test]
    fn the_second_chip_comes_through_the_cascade() {
        let mut pic = initialised(false);
        pulse(&mut pic, 8);
        pulse(&mut pic, 14);
        assert_eq!(pic.acknowledge(), Some(0x38));
        assert!(!pic.pending());
        pic.write(0xa0, 0x60);
        pic.write(0x20, 0x62);
        assert_eq!(pic.acknowledge(), Some(0x3e));
        pic.write(0xa0, 0x66);
        pic.write(0x20, 0x62);
        assert_eq!(pic.acknowledge(), None);
    }

    #[test]
    fn a_masked_edge_waits() {
        let mut pic = initialised(false);
        pic.write(0x21, 0xff);
        pulse(&mut pic, 4);
        assert!(!pic.pending());
        pic.write(0x21, 0);
        assert_eq!(pic.acknowledge(), Some(0x34));
    }

    #[test]
    fn a_level_holds_until_it_falls() {
        let mut pic = initialised(false);
        pic.write(0x4d1, 0x02);
        pic.set_line(9, true);
        for _ in 0..2 {
            assert_eq!(pic.acknowledge(), Some(0x39));
            pic.write(0xa0, 0x61);
            pic.write(0x20, 0x62);
        }
        pic.set_line(9, false);
        assert!(!pic.pending());
    }

    #[test]
    fn automatic_end_leaves_nothing_in_service() {
        let mut pic = initialised(true);
        pulse(&mut pic, 0);
        assert_eq!(pic.acknowledge(), Some(0x30));
        pulse(&mut pic, 0);
        assert_eq!(pic.acknowledge(), Some(0x30));
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), 0);
    }

    #[test]
    fn polling_acknowledges() {
        let mut pic = initialised(false);
        pulse(&mut pic, 3);
        pic.write(0x20, 0x0c);
        assert_eq!(pic.read(0x20), 0x83);
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), 0x08);
    }

    #[test]
    fn rotation_makes_the_served_input_last() {
        let mut pic = initialised(false);
        pulse(&mut pic, 3);
        assert_eq!(pic.acknowledge(), Some(0x33));
        pic.write(0x20, 0xa0);
        pulse(&mut pic, 3);
        pulse(&mut pic, 4);
        assert_eq!(pic.acknowledge(), Some(0x34));
    }
}
