//! A log's records as bytes: packed tight, every byte checked on the way in.
//!
//! Format version 1. A record starts with one byte: its kind in the low five bits, the moments
//! since the record before it in the high three (7: a varint with the rest follows). Times are
//! differences to the last time in the same chunk, registers to the last registers in it. State
//! starts afresh with each chunk, so any chunk can be read alone. Kinds are numbered for ever: a number is never used again.

use alloc::{boxed::Box, vec::Vec};

use crate::bytes::{Reader, put_bytes, put_varint};
use crate::error::DecodeError;
use crate::event::{Input, Trail};
use crate::patch::PATCH_BYTES_MAX;
use crate::record::{
    EndReason, PAGE_SIZE, PAGES_PER_RECORD_MAX, Page, REGISTERS, Record, RegisterValues,
};

const TIME_READ: u8 = 1;
const TICK: u8 = 2;
const PACKET: u8 = 3;
const BLOCK_DONE: u8 = 4;
const CONSOLE: u8 = 5;
const SERIAL: u8 = 6;
const ENTROPY: u8 = 7;
const ANNOUNCE: u8 = 8;
const POWER_BUTTON: u8 = 9;
const RESET: u8 = 10;
const DIGEST: u8 = 16;
const STATE_DIGEST: u8 = 17;
const PAGES: u8 = 18;
const DELTA: u8 = 19;
const RELEASED: u8 = 20;
const END: u8 = 21;
const REGISTER_VALUES: u8 = 22;
const DEVICES: u8 = 23;
const PATCHES: u8 = 24;
const MODELS: u8 = 25;
const HEALS: u8 = 26;

/// The record's kind on disk and wire.
fn record_kind(record: &Record) -> u8 {
    match record {
        Record::Input(input) => input_kind(input),
        Record::Digest { .. } => DIGEST,
        Record::Registers(_) => REGISTER_VALUES,
        Record::Devices { .. } => DEVICES,
        Record::StateDigest { .. } => STATE_DIGEST,
        Record::Pages { .. } => PAGES,
        Record::Patches { .. } => PATCHES,
        Record::Models { .. } => MODELS,
        Record::Heals => HEALS,
        Record::Delta { .. } => DELTA,
        Record::Released { .. } => RELEASED,
        Record::End { .. } => END,
    }
}

fn input_kind(input: &Input) -> u8 {
    match input {
        Input::TimeRead { .. } => TIME_READ,
        Input::Tick { .. } => TICK,
        Input::Packet { .. } => PACKET,
        Input::BlockDone { .. } => BLOCK_DONE,
        Input::Console { .. } => CONSOLE,
        Input::Serial { .. } => SERIAL,
        Input::Entropy { .. } => ENTROPY,
        Input::Announce { .. } => ANNOUNCE,
        Input::PowerButton => POWER_BUTTON,
        Input::Reset => RESET,
    }
}

/// Writes the records of one chunk.
#[derive(Clone, Debug)]
pub struct Encoder {
    moment: u64,
    time_ns: u64,
    registers: RegisterValues,
}

impl Encoder {
    /// Starts a chunk at `start_moment`; the decoder must be given the same.
    #[must_use]
    pub fn new(start_moment: u64) -> Self {
        Self { moment: start_moment, time_ns: 0, registers: [0; REGISTERS] }
    }

    /// Appends `record` at `moment` to `out`.
    ///
    /// # Panics
    ///
    /// If `moment` lies before that of the record before it: time does not run backwards in a log,
    /// and one written so could not be read. With more pages than a record may hold.
    pub fn append(&mut self, moment: u64, record: &Record, out: &mut Vec<u8>) {
        self.head(moment, record_kind(record), out);
        self.record(record, out);
    }

    /// The same for an input that the caller keeps.
    ///
    /// # Panics
    ///
    /// As [`Encoder::append`].
    pub fn append_input(&mut self, moment: u64, input: &Input, out: &mut Vec<u8>) {
        self.head(moment, input_kind(input), out);
        self.input(input, out);
    }

    /// The same for registers.
    ///
    /// # Panics
    ///
    /// As [`Encoder::append`].
    pub fn append_registers(&mut self, moment: u64, values: &RegisterValues, out: &mut Vec<u8>) {
        self.head(moment, REGISTER_VALUES, out);
        self.registers(values, out);
    }

    fn head(&mut self, moment: u64, kind: u8, out: &mut Vec<u8>) {
        assert!(moment >= self.moment, "a record's moment lies before that of the one before it");
        let step = moment - self.moment;
        self.moment = moment;
        if step < 7 {
            out.push(kind | (step as u8) << 5);
        } else {
            out.push(kind | 7 << 5);
            put_varint(out, step - 7);
        }
    }

    fn record(&mut self, record: &Record, out: &mut Vec<u8>) {
        match record {
            Record::Input(input) => self.input(input, out),
            Record::Digest { value } => out.extend_from_slice(&value.to_le_bytes()),
            Record::Registers(values) => self.registers(values, out),
            Record::Devices { state: bytes } | Record::Models { part: bytes } => {
                put_bytes(out, bytes);
            }
            Record::StateDigest { devices, memory } => {
                out.extend_from_slice(&devices.to_le_bytes());
                out.push(u8::from(memory.is_some()));
                if let Some(memory) = memory {
                    out.extend_from_slice(&memory.to_le_bytes());
                }
            }
            Record::Heals => {}
            Record::Pages { pages } => put_pages(pages, out),
            Record::Patches { patches } => put_patches(patches, out),
            Record::Delta { vcpu, machine, outputs } => {
                put_bytes(out, vcpu);
                out.push(u8::from(machine.is_some()));
                if let Some(machine) = machine {
                    put_bytes(out, machine);
                }
                put_varint(out, outputs.count);
                out.extend_from_slice(&outputs.digest.to_le_bytes());
            }
            Record::Released { output } => put_varint(out, *output),
            Record::End { reason } => out.push(match reason {
                EndReason::PowerOff => 1,
                EndReason::Stopped => 2,
                EndReason::Failover => 3,
            }),
        }
    }

    /// A bit per register that changed, then by how much each did.
    fn registers(&mut self, values: &RegisterValues, out: &mut Vec<u8>) {
        let pairs = || values.iter().zip(&self.registers);
        let changed = pairs()
            .enumerate()
            .fold(0, |bits, (place, (value, last))| bits | u64::from(value != last) << place);
        put_varint(out, changed);
        for (value, last) in pairs().filter(|(value, last)| value != last) {
            put_varint(out, zigzag(value.wrapping_sub(*last)));
        }
        self.registers = *values;
    }

    fn input(&mut self, input: &Input, out: &mut Vec<u8>) {
        match input {
            Input::TimeRead { now_ns } | Input::Tick { now_ns } => {
                // Time hardly ever runs backwards; where it does, wrapping costs ten bytes.
                put_varint(out, now_ns.wrapping_sub(self.time_ns));
                self.time_ns = *now_ns;
            }
            Input::Packet { device, bytes }
            | Input::Console { device, bytes }
            | Input::Entropy { device, bytes } => {
                put_varint(out, u64::from(*device));
                put_bytes(out, bytes);
            }
            Input::BlockDone { device, token, status, data } => {
                put_varint(out, u64::from(*device));
                put_varint(out, *token);
                out.push(*status);
                put_bytes(out, data);
            }
            Input::Serial { bytes } => put_bytes(out, bytes),
            Input::Announce { device } => put_varint(out, u64::from(*device)),
            Input::PowerButton | Input::Reset => {}
        }
    }
}

/// Small steps in either direction become small numbers.
fn zigzag(difference: u64) -> u64 {
    difference << 1 ^ ((difference as i64) >> 63) as u64
}

/// The opposite of [`zigzag`].
fn unzigzag(number: u64) -> u64 {
    number >> 1 ^ (number & 1).wrapping_neg()
}

/// Count, a bit per page for "has bytes", the page numbers as differences, then the bytes.
///
/// # Panics
///
/// With more pages than a record may hold.
fn put_pages(pages: &[(u64, Page)], out: &mut Vec<u8>) {
    assert!(pages.len() <= PAGES_PER_RECORD_MAX, "too many pages for one record");
    put_varint(out, pages.len() as u64);
    for group in pages.chunks(8) {
        let bits = group.iter().enumerate().map(|(bit, (_, page))| match page {
            Page::Zero => 0,
            Page::Data(_) => 1 << bit,
        });
        out.push(bits.fold(0, |all: u8, bit: u8| all | bit));
    }
    let mut expected = 0u64;
    for (number, _) in pages {
        put_varint(out, number.wrapping_sub(expected));
        expected = number.wrapping_add(1);
    }
    for (_, page) in pages {
        match page {
            Page::Zero => {}
            Page::Data(bytes) => out.extend_from_slice(bytes.as_slice()),
        }
    }
}

/// Count, then each page's number as a difference and its patch.
///
/// # Panics
///
/// With more pages than a record may hold.
fn put_patches(patches: &[(u64, Vec<u8>)], out: &mut Vec<u8>) {
    assert!(patches.len() <= PAGES_PER_RECORD_MAX, "too many pages for one record");
    put_varint(out, patches.len() as u64);
    let mut expected = 0u64;
    for (number, patch) in patches {
        put_varint(out, number.wrapping_sub(expected));
        put_bytes(out, patch);
        expected = number.wrapping_add(1);
    }
}

/// Reads the records of one chunk. Hostile bytes give errors: no panic, and no memory beyond a
/// small multiple of the bytes that are there.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    reader: Reader<'a>,
    moment: u64,
    time_ns: u64,
    registers: RegisterValues,
}

impl<'a> Decoder<'a> {
    /// Starts reading a chunk whose encoder was given the same `start_moment`.
    #[must_use]
    pub fn new(start_moment: u64, bytes: &'a [u8]) -> Self {
        Self {
            reader: Reader::new(bytes),
            moment: start_moment,
            time_ns: 0,
            registers: [0; REGISTERS],
        }
    }

    /// Bytes not yet read.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.reader.remaining()
    }

    /// The next record and its moment, or `None` after the last.
    ///
    /// # Errors
    ///
    /// When the bytes are not records. Reading on after an error gives nonsense, not danger.
    pub fn next_record(&mut self) -> Result<Option<(u64, Record)>, DecodeError> {
        if self.reader.remaining() == 0 {
            return Ok(None);
        }
        let first = self.reader.u8("kind")?;
        let mut step = u64::from(first >> 5);
        if step == 7 {
            step = self
                .reader
                .varint("moment")?
                .checked_add(7)
                .ok_or(DecodeError::OutOfRange { what: "moment" })?;
        }
        self.moment =
            self.moment.checked_add(step).ok_or(DecodeError::OutOfRange { what: "moment" })?;
        let record = self.body(first & 0x1f)?;
        Ok(Some((self.moment, record)))
    }

    fn body(&mut self, kind: u8) -> Result<Record, DecodeError> {
        let reader = &mut self.reader;
        Ok(match kind {
            DIGEST => Record::Digest { value: reader.u64("digest")? },
            REGISTER_VALUES => {
                take_registers(reader, &mut self.registers)?;
                Record::Registers(Box::new(self.registers))
            }
            DEVICES => Record::Devices { state: reader.bytes("state of the devices")? },
            STATE_DIGEST => {
                let devices = reader.u64("digest of the devices")?;
                let memory = match flag(reader)? {
                    true => Some(reader.u64("digest of memory")?),
                    false => None,
                };
                Record::StateDigest { devices, memory }
            }
            PAGES => Record::Pages { pages: take_pages(reader)? },
            PATCHES => Record::Patches { patches: take_patches(reader)? },
            MODELS => Record::Models { part: reader.bytes("part of the models")? },
            HEALS => Record::Heals,
            DELTA => {
                let vcpu = reader.bytes("vCPU state")?;
                let machine = match flag(reader)? {
                    true => Some(reader.bytes("machine state")?),
                    false => None,
                };
                let count = reader.varint("outputs")?;
                let outputs = Trail { count, digest: reader.u64("digest of the outputs")? };
                Record::Delta { vcpu, machine, outputs }
            }
            RELEASED => Record::Released { output: reader.varint("output")? },
            END => Record::End {
                reason: match reader.u8("reason")? {
                    1 => EndReason::PowerOff,
                    2 => EndReason::Stopped,
                    3 => EndReason::Failover,
                    value => return Err(DecodeError::Unknown { what: "an end of reason", value }),
                },
            },
            other => Record::Input(self.input(other)?),
        })
    }

    fn input(&mut self, kind: u8) -> Result<Input, DecodeError> {
        let reader = &mut self.reader;
        Ok(match kind {
            TIME_READ | TICK => {
                let now_ns = self.time_ns.wrapping_add(reader.varint("time")?);
                self.time_ns = now_ns;
                if kind == TICK { Input::Tick { now_ns } } else { Input::TimeRead { now_ns } }
            }
            PACKET => {
                let device = reader.varint_u16("device")?;
                Input::Packet { device, bytes: reader.bytes("packet")? }
            }
            BLOCK_DONE => {
                let device = reader.varint_u16("device")?;
                let token = reader.varint("token")?;
                let status = reader.u8("status")?;
                Input::BlockDone { device, token, status, data: reader.bytes("disk data")? }
            }
            CONSOLE => {
                let device = reader.varint_u16("device")?;
                Input::Console { device, bytes: reader.bytes("console input")? }
            }
            SERIAL => Input::Serial { bytes: reader.bytes("serial input")? },
            ENTROPY => {
                let device = reader.varint_u16("device")?;
                Input::Entropy { device, bytes: reader.bytes("entropy")? }
            }
            ANNOUNCE => Input::Announce { device: reader.varint_u16("device")? },
            POWER_BUTTON => Input::PowerButton,
            RESET => Input::Reset,
            value => return Err(DecodeError::Unknown { what: "a record of kind", value }),
        })
    }
}

fn flag(reader: &mut Reader<'_>) -> Result<bool, DecodeError> {
    match reader.u8("flag")? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(DecodeError::Unknown { what: "a flag", value }),
    }
}

/// Reads what changed since `values`. A difference of nothing is refused: one encoding per log.
fn take_registers(reader: &mut Reader<'_>, values: &mut RegisterValues) -> Result<(), DecodeError> {
    let out_of_range = DecodeError::OutOfRange { what: "a register" };
    let changed = reader.varint("registers")?;
    if changed >> REGISTERS != 0 {
        return Err(out_of_range);
    }
    for (_, value) in values.iter_mut().enumerate().filter(|(place, _)| changed >> place & 1 == 1) {
        let difference = unzigzag(reader.varint("register")?);
        if difference == 0 {
            return Err(out_of_range);
        }
        *value = value.wrapping_add(difference);
    }
    Ok(())
}

fn take_patches(reader: &mut Reader<'_>) -> Result<Vec<(u64, Vec<u8>)>, DecodeError> {
    let count = reader.varint("patches")?;
    if count > PAGES_PER_RECORD_MAX as u64 {
        return Err(DecodeError::OutOfRange { what: "a count of patches" });
    }
    let mut expected = 0u64;
    let mut patches = Vec::new();
    for _ in 0..count {
        let number = expected.wrapping_add(reader.varint("page number")?);
        let patch = reader.bytes("patch")?;
        if patch.len() > PATCH_BYTES_MAX {
            return Err(DecodeError::OutOfRange { what: "a patch" });
        }
        patches.push((number, patch));
        expected = number.wrapping_add(1);
    }
    Ok(patches)
}

fn take_pages(reader: &mut Reader<'_>) -> Result<Vec<(u64, Page)>, DecodeError> {
    let count = usize::try_from(reader.varint("pages")?)
        .ok()
        .filter(|count| *count <= PAGES_PER_RECORD_MAX)
        .ok_or(DecodeError::OutOfRange { what: "a count of pages" })?;
    let bits = reader.take(count.div_ceil(8), "pages")?;
    let has_bytes =
        |index: usize| bits.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1);
    if (count..bits.len() * 8).any(has_bytes) {
        return Err(DecodeError::OutOfRange { what: "a page's kind" });
    }
    let mut pages = Vec::with_capacity(count);
    let mut expected = 0u64;
    for _ in 0..count {
        let number = expected.wrapping_add(reader.varint("page number")?);
        pages.push((number, Page::Zero));
        expected = number.wrapping_add(1);
    }
    for (_, (_, page)) in pages.iter_mut().enumerate().filter(|(index, _)| has_bytes(*index)) {
        let bytes: [u8; PAGE_SIZE] = reader
            .take(PAGE_SIZE, "page")?
            .try_into()
            .map_err(|_| DecodeError::Truncated { what: "page" })?;
        *page = Page::Data(Box::new(bytes));
    }
    Ok(pages)
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
