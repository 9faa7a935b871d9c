//! The block device (virtio 1.2, section 5.2).
//!
//! Owns parsing and bounds of requests, and everything needed to complete one or to issue it again.
//! The data of a write is copied out when the guest hands it over, and kept until the write is
//! complete: a request issued again is the same byte for byte. Which requests may run side by side
//! is the backend's business.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};

use super::{ConfigImage, Context};
use crate::effect::{BlockKind, BlockRequest, BlockStatus, Effect, SECTOR_BYTES};
use crate::queue::Malformed;
use crate::segments::Chain;

pub(crate) const QUEUE_SIZE: u16 = 128;
const REQUESTS: usize = 0;

/// Bytes of the header in front of every request.
const HEADER_BYTES: u64 = 16;
const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Data segments a request may have: a full queue's worth less header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes a data segment may have: [`SEGMENTS_MAX`] of them stay below [`REQUEST_BYTES_MAX`].
const SEGMENT_BYTES_MAX: u32 = 32 * 1024;
/// Data bytes of one request; a driver that keeps to the limits above can't exceed it.
const REQUEST_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Data bytes of all open requests together. Beyond, requests wait in the guest's queue.
const OPEN_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What a disk is told when it is built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockConfig {
    /// Size in sectors of 512 bytes.
    pub capacity_sectors: u64,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Serial number, at most 20 bytes of ASCII.
    pub serial: String,
}

/// A request that was handed out and not completed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRequest {
    /// What was asked for.
    pub kind: BlockKind,
    /// Where the answer goes; none if the driver reset the device since. The request still runs to
    /// its end, as it does on a real disk.
    pub chain: Option<Chain>,
}

/// The disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// What it was told when it was built.
    pub config: BlockConfig,
    /// The token of the next request.
    pub next_token: u64,
    /// Requests that were handed out and not completed, by token and so in order.
    pub open: BTreeMap<u64, OpenRequest>,
    /// Whether requests wait in the queue because too many are open.
    pub stalled: bool,
}

/// What a chain asks for.
enum Parsed {
    /// Something for the disk.
    Disk(BlockKind),
    /// The serial number.
    Identify,
    /// Nothing that can be done: the status to answer with.
    Refused(u32),
}

impl BlockState {
    pub(crate) fn new(config: BlockConfig) -> Self {
        Self { config, next_token: 0, open: BTreeMap::new(), stalled: false }
    }

    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let BlockConfig { capacity_sectors, serial, .. } = &self.config;
        if *capacity_sectors > u64::MAX / SECTOR_BYTES {
            return Err("a disk can't have that many sectors");
        }
        if serial.len() > ID_BYTES || !serial.is_ascii() {
            return Err("the serial number of a disk has at most 20 ASCII characters");
        }
        if self.open.len() > usize::from(QUEUE_SIZE) || self.open_bytes() > OPEN_BYTES_MAX {
            return Err("it has more open requests than a disk may have");
        }
        if self.open.keys().any(|token| *token >= self.next_token) {
            return Err("it has open requests that were never handed out");
        }
        let possible = |open: &OpenRequest| {
            let bytes = open.kind.transfer_bytes();
            match &open.kind {
                BlockKind::Read { sector, .. } | BlockKind::Write { sector, .. } => {
                    bytes <= REQUEST_BYTES_MAX && self.contains(*sector, bytes)
                }
                BlockKind::Flush => true,
            }
        };
        if self.open.values().all(possible) {
            Ok(())
        } else {
            Err("it has an open request that does not lie within the disk")
        }
    }

    pub(crate) fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH;
        if self.config.read_only { always | 1 << VIRTIO_BLK_F_RO } else { always }
    }

    pub(crate) fn config_image(&self) -> ConfigImage {
        ConfigImage::new(60)
            .put(0, &self.config.capacity_sectors.to_le_bytes())
            .put(8, &SEGMENT_BYTES_MAX.to_le_bytes())
            .put(12, &SEGMENTS_MAX.to_le_bytes())
            .put(20, &(SECTOR_BYTES as u32).to_le_bytes())
    }

    pub(crate) fn reset(&mut self) {
        self.stalled = false;
        for open in self.open.values_mut() {
            open.chain = None;
        }
    }

    /// Hands out every request the driver made available, as far as the bounds allow.
    pub(crate) fn process(&mut self, context: &mut Context<'_>) -> Result<(), Malformed> {
        let Some(mut walk) = context.walk(REQUESTS)? else {
            return Ok(());
        };
        let mut bytes = self.open_bytes();
        self.stalled = false;
        for _ in 0..walk.size() {
            if self.open.len() >= usize::from(QUEUE_SIZE)
                || bytes + REQUEST_BYTES_MAX > OPEN_BYTES_MAX
            {
                self.stalled = true;
                break;
            }
            let Some(chain) = walk.pop()? else {
                break;
            };
            match self.parse(context, &chain)? {
                Parsed::Disk(kind) => {
                    bytes += kind.transfer_bytes();
                    self.hand_out(context, kind, Some(chain));
                }
                Parsed::Identify => {
                    let mut id = [0; ID_BYTES];
                    let serial = self.config.serial.as_bytes();
                    id[..serial.len()].copy_from_slice(serial);
                    let written = answer(context, &chain, VIRTIO_BLK_S_OK, &id)?;
                    walk.push(chain.head, written)?;
                }
                Parsed::Refused(status) => {
                    let written = answer(context, &chain, status, &[])?;
                    walk.push(chain.head, written)?;
                }
            }
        }
        context.finish(REQUESTS, walk, 0)
    }

    /// Ends a request. `live` says whether there is a driver to be told.
    pub(crate) fn complete(
        &mut self,
        context: &mut Context<'_>,
        live: bool,
        token: u64,
        status: BlockStatus,
        data: &[u8],
    ) -> Result<(), Malformed> {
        let Some(OpenRequest { kind, chain }) = self.open.remove(&token) else {
            return Ok(());
        };
        if !live {
            return Ok(());
        }
        // A driver that can't flush relies on every write being durable when it completes (virtio
        // 1.2, section 5.2.6.2).
        let durable = context.negotiated(VIRTIO_BLK_F_FLUSH);
        if matches!(kind, BlockKind::Write { .. }) && status == BlockStatus::Ok && !durable {
            self.hand_out(context, BlockKind::Flush, chain);
        } else if let (Some(chain), Some(mut walk)) = (chain, context.walk(REQUESTS)?) {
            let (code, data) = match (&kind, status) {
                (BlockKind::Read { length, .. }, BlockStatus::Ok) => {
                    if data.len() == *length as usize {
                        (VIRTIO_BLK_S_OK, data)
                    } else {
                        (VIRTIO_BLK_S_IOERR, &[][..])
                    }
                }
                (BlockKind::Write { .. } | BlockKind::Flush, BlockStatus::Ok) => {
                    (VIRTIO_BLK_S_OK, &[][..])
                }
                (_, BlockStatus::IoError) => (VIRTIO_BLK_S_IOERR, &[][..]),
                (_, BlockStatus::Unsupported) => (VIRTIO_BLK_S_UNSUPP, &[][..]),
            };
            let written = answer(context, &chain, code, data)?;
            walk.push(chain.head, written)?;
            context.finish(REQUESTS, walk, 0)?;
        }
        if self.stalled { self.process(context) } else { Ok(()) }
    }

    fn hand_out(&mut self, context: &mut Context<'_>, kind: BlockKind, chain: Option<Chain>) {
        let token = self.next_token;
        self.next_token = self.next_token.wrapping_add(1);
        let request = BlockRequest { token, kind: kind.clone() };
        self.open.insert(token, OpenRequest { kind, chain });
        context.effects.push(Effect::Block { device: context.device, request });
    }

    fn open_bytes(&self) -> u64 {
        self.open.values().map(|open| open.kind.transfer_bytes()).sum()
    }

    fn contains(&self, sector: u64, bytes: u64) -> bool {
        sector
            .checked_add(bytes / SECTOR_BYTES)
            .is_some_and(|end| end <= self.config.capacity_sectors)
    }

    fn parse(&self, context: &Context<'_>, chain: &Chain) -> Result<Parsed, Malformed> {
        const IO_ERROR: Parsed = Parsed::Refused(VIRTIO_BLK_S_IOERR);
        // Without a status byte the driver can't learn anything about its request.
        let data_in = chain.writable_bytes().checked_sub(1).ok_or(Malformed)?;
        let Some(data_out) = chain.readable_bytes().checked_sub(HEADER_BYTES) else {
            return Ok(IO_ERROR);
        };
        let mut header = [0; HEADER_BYTES as usize];
        if chain.read(context.memory, 0, &mut header).is_err() {
            return Ok(IO_ERROR);
        }
        let (kind, sector) = decode(&header);
        let fits = |bytes: u64| {
            bytes > 0
                && bytes.is_multiple_of(SECTOR_BYTES)
                && bytes <= REQUEST_BYTES_MAX
                && self.contains(sector, bytes)
        };
        Ok(match kind {
            VIRTIO_BLK_T_IN if fits(data_in) => {
                Parsed::Disk(BlockKind::Read { sector, length: data_in as u32 })
            }
            VIRTIO_BLK_T_OUT if fits(data_out) && !self.config.read_only => {
                let mut data = vec![0; data_out as usize];
                match chain.read(context.memory, HEADER_BYTES, &mut data) {
                    Ok(()) => Parsed::Disk(BlockKind::Write { sector, data }),
                    Err(Malformed) => IO_ERROR,
                }
            }
            VIRTIO_BLK_T_FLUSH => Parsed::Disk(BlockKind::Flush),
            VIRTIO_BLK_T_GET_ID if data_in >= ID_BYTES as u64 => Parsed::Identify,
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_GET_ID => IO_ERROR,
            _ => Parsed::Refused(VIRTIO_BLK_S_UNSUPP),
        })
    }
}

/// Type and first sector of a request.
fn decode(header: &[u8; HEADER_BYTES as usize]) -> (u32, u64) {
    let [a, b, c, d, _, _, _, _, sector @ ..] = *header;
    (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector))
}

/// Writes data and status to a chain. Returns how many bytes the driver finds in it: the status is
/// the last of the writable bytes, so with less data than room only those before it count.
fn answer(
    context: &Context<'_>,
    chain: &Chain,
    status: u32,
    data: &[u8],
) -> Result<u32, Malformed> {
    let end = chain.writable_bytes().checked_sub(1).ok_or(Malformed)?;
    let (status, written) = match chain.write(context.memory, 0, data) {
        Ok(()) => (status, data.len() as u64),
        Err(Malformed) => (VIRTIO_BLK_S_IOERR, 0),
    };
    chain.write(context.memory, end, &[status as u8])?;
    Ok(if written == end { written as u32 + 1 } else { written.min(end) as u32 })
}
