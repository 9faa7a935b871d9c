//! What a backup has to do again when it goes live: the outputs that may not have left, and the
//! requests that may not have been carried out.
//!
//! Doing something twice must be harmless, and is: a network forgives a doubled packet, a disk
//! request asked twice has the same effect, a console shows a few bytes twice. Losing one is not.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::event::{Input, Output};

/// Packets kept beyond this many bytes are given up, oldest first: a network forgives that too.
const PACKET_BYTES_MAX: usize = 16 << 20;

/// The outputs of a replayed machine that nobody has confirmed yet.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// In the order they were produced.
    open: VecDeque<(u64, Output)>,
    packet_bytes: usize,
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The machine produced `output`. Requests that were open before the log began are noted with
    /// sequence 0, before everything else.
    pub fn output(&mut self, sequence: u64, output: Output) {
        if let Output::Packet { bytes, .. } = &output {
            self.packet_bytes += bytes.len();
        }
        if let Output::NetOffloads { device, .. } = &output {
            // A setting: only the last one counts.
            let device = *device;
            self.forget(
                |_, open| matches!(open, Output::NetOffloads { device: d, .. } if *d == device),
            );
        }
        self.open.push_back((sequence, output));
        while self.packet_bytes > PACKET_BYTES_MAX {
            let oldest = self.open.iter().position(|(_, o)| matches!(o, Output::Packet { .. }));
            match oldest.and_then(|at| self.open.remove(at)) {
                Some((_, output)) => self.packet_bytes -= output.payload_length(),
                None => break,
            }
        }
    }

    /// Everything up to this sequence has left the primary's host. A disk request that has left is
    /// still open until its completion is in the log.
    pub fn released(&mut self, sequence: u64) {
        self.forget(|at, output| {
            at <= sequence
                && match output {
                    Output::Packet { .. }
                    | Output::Console { .. }
                    | Output::Serial { .. }
                    | Output::Reset
                    | Output::PowerOff => true,
                    Output::Block { .. } | Output::Entropy { .. } | Output::NetOffloads { .. } => {
                        false
                    }
                }
        });
    }

    /// An input is applied: it may be the answer to a request.
    pub fn input(&mut self, input: &Input) {
        match input {
            Input::BlockDone { device, token, .. } => self.forget(|_, output| {
                matches!(output, Output::Block { device: d, token: t, .. }
                    if d == device && t == token)
            }),
            Input::Entropy { device, .. } => {
                let first = self.open.iter().position(|(_, output)| {
                    matches!(output, Output::Entropy { device: d, .. } if d == device)
                });
                first.and_then(|at| self.open.remove(at));
            }
            Input::TimeRead { .. }
            | Input::Tick { .. }
            | Input::Packet { .. }
            | Input::Console { .. }
            | Input::Serial { .. }
            | Input::Announce { .. }
            | Input::PowerButton
            | Input::Reset => {}
        }
    }

    /// The machine here was not the one that was recorded, and is again: what it put out after
    /// `sequence` was not that one's, and which requests are open, and what is set, its new state
    /// says.
    pub fn heal(&mut self, sequence: u64) {
        self.forget(|at, output| {
            at > sequence
                || match output {
                    Output::Block { .. } | Output::Entropy { .. } | Output::NetOffloads { .. } => {
                        true
                    }
                    Output::Packet { .. }
                    | Output::Console { .. }
                    | Output::Serial { .. }
                    | Output::Reset
                    | Output::PowerOff => false,
                }
        });
    }

    /// What to do again, in order, with its sequence. The ledger is empty then.
    pub fn redo(&mut self) -> Vec<(u64, Output)> {
        self.packet_bytes = 0;
        self.open.drain(..).collect()
    }

    /// Outputs kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn forget(&mut self, gone: impl Fn(u64, &Output) -> bool) {
        let packet_bytes = &mut self.packet_bytes;
        self.open.retain(|(sequence, output)| {
            let gone = gone(*sequence, output);
            if let (true, Output::Packet { bytes, .. }) = (gone, output) {
                *packet_bytes -= bytes.len();
            }
            !gone
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::BlockOp;
    use alloc::vec;

    fn packet(byte: u8) -> Output {
        Output::Packet { device: 0, bytes: vec![byte] }
    }

    fn write(token: u64) -> Output {
        Output::Block { device: 0, token, op: BlockOp::Write { sector: 0, data: vec![0; 512] } }
    }

    fn done(token: u64) -> Input {
        Input::BlockDone { device: 0, token, status: 0, data: vec![] }
    }

    #[test]
    fn what_is_confirmed_is_forgotten_and_the_rest_is_redone_in_order() {
        let mut ledger = Ledger::new();
        for (at, output) in
            [packet(1), write(7), packet(2), write(8), packet(3)].into_iter().enumerate()
        {
            ledger.output(at as u64 + 1, output);
        }
        ledger.released(4);
        ledger.input(&done(7));
        let redo = ledger.redo();
        assert_eq!(redo, [(4, write(8)), (5, packet(3))], "a released write may not be complete");
        assert!(ledger.is_empty());
    }

    #[test]
    fn of_a_machine_that_was_healed_what_it_put_out_by_mistake_is_not_done_again() {
        let mut ledger = Ledger::new();
        let offloads = Output::NetOffloads { device: 0, offloads: 1 };
        ledger.output(0, offloads);
        for (at, output) in [packet(1), write(7), packet(2), packet(9)].into_iter().enumerate() {
            ledger.output(at as u64 + 1, output);
        }
        ledger.heal(3);
        ledger.output(8, packet(3));
        assert_eq!(ledger.redo(), [(1, packet(1)), (3, packet(2)), (8, packet(3))]);
    }

    #[test]
    fn asks_for_entropy_are_answered_in_order_and_only_the_last_offloads_count() {
        let mut ledger = Ledger::new();
        let ask = |length| Output::Entropy { device: 1, length };
        let offloads = |offloads| Output::NetOffloads { device: 0, offloads };
        for output in [ask(1), offloads(1), ask(2), offloads(2)] {
            ledger.output(1, output);
        }
        ledger.input(&Input::Entropy { device: 1, bytes: vec![1] });
        ledger.released(9);
        assert_eq!(ledger.redo(), [(1, ask(2)), (1, offloads(2))]);
    }

    #[test]
    fn packets_that_nobody_confirms_do_not_pile_up_for_ever() {
        let mut ledger = Ledger::new();
        ledger.output(1, write(1));
        for at in 0..1000 {
            ledger.output(at, Output::Packet { device: 0, bytes: vec![0; 60_000] });
        }
        assert_eq!(ledger.len(), 1 + PACKET_BYTES_MAX / 60_000);
        assert_eq!(ledger.redo().first(), Some(&(1, write(1))));
    }
}
