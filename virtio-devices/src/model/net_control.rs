//! The control queue of the network device (virtio 1.2, section 5.1.6.5): announcements
//! acknowledged, receive offloads switched. Every other command is answered with an error.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
};

use super::super::Context;
use super::{CONTROL, NetState};
use crate::queue::Malformed;
use crate::segments::Chain;

const OK: u8 = 0;
const ERROR: u8 = 1;

const ANNOUNCE_ACK: [u8; 2] = [VIRTIO_NET_CTRL_ANNOUNCE as u8, VIRTIO_NET_CTRL_ANNOUNCE_ACK as u8];
const OFFLOADS_SET: [u8; 2] =
    [VIRTIO_NET_CTRL_GUEST_OFFLOADS as u8, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET as u8];

impl NetState {
    pub(super) fn control(&mut self, context: &mut Context<'_>) -> Result<(), Malformed> {
        let Some(mut walk) = context.walk(CONTROL)? else {
            return Ok(());
        };
        for _ in 0..walk.size() {
            let Some(chain) = walk.pop()? else {
                break;
            };
            let answer = self.command(context, &chain)?;
            // The driver waits for this byte; without room for it nothing can go on.
            let end = chain.writable_bytes().checked_sub(1).ok_or(Malformed)?;
            chain.write(context.memory, end, &[answer])?;
            walk.push(chain.head, 1)?;
        }
        context.finish(CONTROL, walk, 0)
    }

    fn command(&mut self, context: &mut Context<'_>, chain: &Chain) -> Result<u8, Malformed> {
        if chain.readable_bytes() < 2 {
            return Ok(ERROR);
        }
        let mut class = [0; 2];
        chain.read(context.memory, 0, &mut class)?;
        match class {
            ANNOUNCE_ACK if context.negotiated(VIRTIO_NET_F_GUEST_ANNOUNCE) => {
                self.announce = false;
                Ok(OK)
            }
            OFFLOADS_SET
                if context.negotiated(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)
                    && chain.readable_bytes() >= 10 =>
            {
                let mut wanted = [0; 8];
                chain.read(context.memory, 2, &mut wanted)?;
                // Only what was negotiated can be switched on again.
                let wanted = u64::from_le_bytes(wanted);
                if wanted & !context.features != 0 {
                    return Ok(ERROR);
                }
                self.set_offloads(context, wanted);
                Ok(OK)
            }
            _ => Ok(ERROR),
        }
    }
}
