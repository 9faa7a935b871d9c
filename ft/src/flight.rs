//! The chunks that a primary has sent and its backup has not executed yet.

use alloc::collections::VecDeque;

use crate::chunk::Chunk;
use crate::event::Trail;
use crate::message::Ack;

#[derive(Clone, Debug)]
struct Sent {
    number: u64,
    outputs: Trail,
    end_moment: u64,
    bytes: u64,
    sent_ms: u64,
}

/// What is wrong with an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadAck {
    /// It names chunks that were not sent, or fewer than before.
    Nonsense,
    /// The backup's outputs differ at this moment.
    Outputs { moment: u64, recorded: Trail },
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Flight {
    sent: VecDeque<Sent>,
    last_sent: u64,
    received: u64,
    executed: u64,
    executed_moment: u64,
    bytes: u64,
}

impl Flight {
    /// # Panics
    ///
    /// If a chunk is missing: the recorder's chunks come in order, by construction.
    pub(crate) fn send(&mut self, chunk: &Chunk, now_ms: u64) {
        assert_eq!(chunk.number, self.last_sent + 1, "chunks are appended in order");
        self.last_sent = chunk.number;
        let bytes = chunk.records.len() as u64;
        self.bytes += bytes;
        self.sent.push_back(Sent {
            number: chunk.number,
            outputs: chunk.outputs,
            end_moment: chunk.end_moment,
            bytes,
            sent_ms: now_ms,
        });
    }

    pub(crate) fn acknowledge(&mut self, ack: &Ack) -> Result<(), BadAck> {
        if ack.received > self.last_sent
            || ack.received < self.received
            || ack.executed > ack.received
            || ack.executed < self.executed
        {
            return Err(BadAck::Nonsense);
        }
        self.received = ack.received;
        while let Some(sent) = self.sent.pop_front_if(|sent| sent.number <= ack.executed) {
            if sent.number == ack.executed && sent.outputs != ack.outputs {
                let (moment, recorded) = (sent.end_moment, sent.outputs);
                return Err(BadAck::Outputs { moment, recorded });
            }
            self.bytes -= sent.bytes;
            self.executed = sent.number;
            self.executed_moment = sent.end_moment;
        }
        Ok(())
    }

    pub(crate) fn last_sent(&self) -> u64 {
        self.last_sent
    }

    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    pub(crate) fn executed(&self) -> u64 {
        self.executed
    }

    /// The moment up to which the backup has executed the log.
    pub(crate) fn executed_moment(&self) -> u64 {
        self.executed_moment
    }

    /// Bytes of log not yet executed.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Milliseconds for which the oldest chunk after `number` has been under way.
    pub(crate) fn waiting_ms(&self, number: u64, now_ms: u64) -> u64 {
        let oldest = self.sent.iter().find(|sent| sent.number > number);
        oldest.map_or(0, |sent| now_ms.saturating_sub(sent.sent_ms))
    }
}
