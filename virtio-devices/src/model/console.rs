//! The console device with one port (virtio 1.2, section 5.3), without size or multiport.

use serde::{Deserialize, Serialize};

use super::{ConfigImage, Context};
use crate::GuestMemory;
use crate::effect::Effect;
use crate::queue::{Malformed, QueueState};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Most bytes taken from one chain of output; what is beyond them is dropped. Linux writes at most
/// 32 KiB at a time, so that only a driver that floods its host meets the bound.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;

/// The console. All it is lies in its queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {}

impl ConsoleState {
    pub(crate) fn config_image(&self) -> ConfigImage {
        // Columns, rows, port count and emergency write: none of them is offered.
        ConfigImage::new(12)
    }

    pub(crate) fn kick(
        &mut self,
        queue: usize,
        context: &mut Context<'_>,
    ) -> Result<(), Malformed> {
        if queue != TRANSMIT {
            return Ok(());
        }
        let Some(mut walk) = context.walk(TRANSMIT)? else {
            return Ok(());
        };
        for _ in 0..walk.size() {
            let Some(chain) = walk.pop()? else {
                break;
            };
            let mut bytes = vec![0; chain.readable_bytes().min(OUTPUT_BYTES_MAX) as usize];
            chain.read(context.memory, 0, &mut bytes)?;
            walk.push(chain.head, 0)?;
            if !bytes.is_empty() {
                context.effects.push(Effect::Console { device: context.device, bytes });
            }
        }
        context.finish(TRANSMIT, walk, 0)
    }

    pub(crate) fn can_take_input(&self, memory: &GuestMemory, queues: &[QueueState]) -> bool {
        queues.get(RECEIVE).is_some_and(|queue| queue.ready && queue.has_available(memory))
    }

    pub(crate) fn input(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Result<usize, Malformed> {
        let Some(mut walk) = context.walk(RECEIVE)? else {
            return Ok(0);
        };
        let mut taken = 0;
        for _ in 0..walk.size() {
            let rest = bytes.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            let Some(chain) = walk.pop()? else {
                break;
            };
            let length = chain.writable_bytes().min(rest.len() as u64) as usize;
            chain.write(context.memory, 0, &rest[..length])?;
            walk.push(chain.head, length as u32)?;
            taken += length;
        }
        // Nothing may change where nothing was taken: the caller will not log such an input.
        if taken > 0 {
            context.finish(RECEIVE, walk, 0)?;
        }
        Ok(taken)
    }
}
