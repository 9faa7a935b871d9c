//! Disk requests that are held back, and those that must wait behind them.
//!
//! A write waits for its log to be acknowledged; a read normally does not. But a read must never
//! overtake a write to the same sectors, so it waits with it. Owns that rule; the back end's own
//! order begins where a request leaves here.

use std::collections::VecDeque;

use ft::{BlockOp, Output};

const SECTOR_BYTES: u64 = 512;

/// A held write: device, first sector, sector behind the last.
type Range = (u16, u64, u64);

/// The writes that are held.
#[derive(Debug, Default)]
pub(super) struct HeldWrites {
    ranges: VecDeque<Range>,
}

impl HeldWrites {
    /// Whether `output` has to wait for the log. Notes it if it is a write.
    pub(super) fn must_wait(&mut self, output: &Output) -> bool {
        match output {
            Output::Block { device, op: BlockOp::Read { sector, length }, .. } => {
                let end = sector.saturating_add(u64::from(*length).div_ceil(SECTOR_BYTES));
                self.ranges
                    .iter()
                    .any(|(held, from, to)| held == device && *from < end && *sector < *to)
            }
            other => {
                self.ranges.extend(range(other));
                other.is_gated()
            }
        }
    }

    /// An output has been let go. They go in order, so the oldest write is the one.
    pub(super) fn released(&mut self, output: &Output) {
        if range(output).is_some() {
            self.ranges.pop_front();
        }
    }
}

fn range(output: &Output) -> Option<Range> {
    match output {
        Output::Block { device, op: BlockOp::Write { sector, data }, .. } => {
            let sectors = (data.len() as u64).div_ceil(SECTOR_BYTES);
            Some((*device, *sector, sector.saturating_add(sectors)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(device: u16, sector: u64, sectors: u64) -> Output {
        let data = vec![0; (sectors * SECTOR_BYTES) as usize];
        Output::Block { device, token: 0, op: BlockOp::Write { sector, data } }
    }

    fn read(device: u16, sector: u64, sectors: u32) -> Output {
        let length = sectors * SECTOR_BYTES as u32;
        Output::Block { device, token: 0, op: BlockOp::Read { sector, length } }
    }

    #[test]
    fn a_read_waits_only_behind_a_write_to_its_own_sectors() {
        let mut held = HeldWrites::default();
        assert!(!held.must_wait(&read(0, 0, 100)));
        assert!(held.must_wait(&write(0, 8, 8)));
        assert!(held.must_wait(&read(0, 15, 1)));
        assert!(held.must_wait(&read(0, 0, 9)));
        assert!(!held.must_wait(&read(0, 16, 8)));
        assert!(!held.must_wait(&read(0, 0, 8)));
        assert!(!held.must_wait(&read(1, 8, 8)));
    }

    #[test]
    fn once_the_write_has_left_reads_go_free() {
        let mut held = HeldWrites::default();
        held.must_wait(&write(0, 8, 8));
        held.must_wait(&write(0, 32, 8));
        held.released(&write(0, 8, 8));
        assert!(!held.must_wait(&read(0, 8, 8)));
        assert!(held.must_wait(&read(0, 32, 1)));
    }

    #[test]
    fn packets_wait_and_entropy_does_not() {
        let mut held = HeldWrites::default();
        assert!(held.must_wait(&Output::Packet { device: 0, bytes: vec![] }));
        assert!(!held.must_wait(&Output::Entropy { device: 0, length: 8 }));
    }
}
