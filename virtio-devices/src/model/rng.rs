//! The entropy device (virtio 1.2, section 5.4): asks for random bytes, passes them on.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Context;
use crate::effect::Effect;
use crate::queue::Malformed;
use crate::segments::Chain;

pub(crate) const QUEUE_SIZE: u16 = 64;
const REQUESTS: usize = 0;

/// Most bytes that one request is given. A driver copes with less than it asked for (virtio 1.2,
/// section 5.4.6.1), and under protection every byte travels in the log.
const REQUEST_BYTES_MAX: u64 = 4096;

/// A buffer that waits for random bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEntropy {
    /// The buffer.
    pub chain: Chain,
    /// Bytes asked for.
    pub length: u32,
}

/// The entropy device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {
    /// Buffers that wait, oldest first.
    pub pending: VecDeque<PendingEntropy>,
}

impl RngState {
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.pending.len() > usize::from(QUEUE_SIZE) {
            return Err("it waits for more random bytes than its queue has room for");
        }
        let possible = |pending: &PendingEntropy| {
            let length = u64::from(pending.length);
            length > 0 && length == pending.chain.writable_bytes().min(REQUEST_BYTES_MAX)
        };
        if self.pending.iter().all(possible) {
            Ok(())
        } else {
            Err("a request for random bytes does not fit its buffer")
        }
    }

    pub(crate) fn kick(&mut self, context: &mut Context<'_>) -> Result<(), Malformed> {
        let Some(mut walk) = context.walk(REQUESTS)? else {
            return Ok(());
        };
        while self.pending.len() < usize::from(walk.size()) {
            let Some(chain) = walk.pop()? else {
                break;
            };
            // An empty or readable buffer can't be answered with bytes, and a driver that waits
            // for none would wait for ever: the queue is of no use any more.
            let length = chain.writable_bytes().min(REQUEST_BYTES_MAX) as u32;
            if length == 0 {
                return Err(Malformed);
            }
            self.pending.push_back(PendingEntropy { chain, length });
            context.effects.push(Effect::Entropy { device: context.device, length });
        }
        context.finish(REQUESTS, walk, 0)
    }

    pub(crate) fn entropy(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Result<(), Malformed> {
        let Some(mut walk) = context.walk(REQUESTS)? else {
            return Ok(());
        };
        let Some(pending) = self.pending.pop_front() else {
            return Ok(());
        };
        let length = bytes.len().min(pending.length as usize);
        pending.chain.write(context.memory, 0, &bytes[..length])?;
        walk.push(pending.chain.head, length as u32)?;
        context.finish(REQUESTS, walk, 0)
    }
}
