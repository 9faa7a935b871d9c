//! A machine small enough to simulate, and as deterministic as a real one: registers, memory, one
//! device model with open requests. It changes only by `run`, `handle`, `apply`, and takes over
//! states.

use std::collections::{BTreeMap, BTreeSet};

use ft::{BlockOp, Input, Output, PAGE_SIZE, Page, Trail};
use serde::{Deserialize, Serialize};

use crate::rng::mix;

pub const PAGES: u64 = 10;
const SECTORS: u64 = 8;

/// How the guest left, and what it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Idle,
    ReadTime,
    Send,
    Print,
    Write,
    Read,
    Flush,
    Entropy,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Devices {
    /// Everything that ever came in, folded.
    seen: u64,
    last_time_ns: u64,
    next_token: u64,
    /// Requests without a completion.
    pub open: BTreeMap<u64, Output>,
    /// All outputs since the machine was created, through all generations.
    pub total: Trail,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toy {
    pub moment: u64,
    registers: u64,
    memory: Vec<u64>,
    pub devices: Devices,
    /// Pages written since the last delta.
    dirty: BTreeSet<u64>,
}

/// An output with its place in the machine's whole history.
#[derive(Clone, Debug)]
pub struct Emitted {
    pub total: Trail,
    pub output: Output,
}

impl Toy {
    pub fn new(seed: u64) -> Self {
        Self {
            moment: 0,
            registers: mix(seed),
            memory: (0..PAGES).map(|page| mix(seed ^ page) * (page & 1)).collect(),
            devices: Devices::default(),
            dirty: BTreeSet::new(),
        }
    }

    pub fn blank() -> Self {
        Self { memory: vec![0; PAGES as usize], registers: 0, ..Self::new(0) }
    }

    /// Its memory in a machine that has nothing else.
    pub fn remains(&self) -> Self {
        Self { memory: self.memory.clone(), ..Self::blank() }
    }

    /// Runs the guest to its next exit.
    pub fn run(&mut self) -> Exit {
        self.moment += 1;
        self.touch(self.devices.seen);
        match self.registers >> 59 {
            0..=7 => Exit::Idle,
            8..=13 => Exit::ReadTime,
            14..=19 => Exit::Send,
            20..=21 => Exit::Print,
            22..=26 => Exit::Write,
            27..=28 => Exit::Read,
            29 => Exit::Flush,
            _ => Exit::Entropy,
        }
    }

    /// Part of an interval, stopped wherever a signal happened to hit: not deterministic.
    pub fn run_partly(&mut self, chance: u64) {
        for step in 0..chance % 4 {
            self.touch(mix(chance ^ step));
        }
    }

    /// Runs the guest to its next exit, and lets it do on the way what no log could reproduce:
    /// another processor writes to memory, and what the guest asks of its own one nobody hears.
    pub fn run_freely(&mut self, chance: u64) -> Exit {
        self.run_partly(chance);
        self.registers = mix(self.registers ^ chance);
        self.run()
    }

    /// The page that the guest reads and writes next.
    pub fn next_page(&self) -> u64 {
        self.registers % PAGES
    }

    fn touch(&mut self, salt: u64) {
        let page = self.next_page();
        let word = &mut self.memory[page as usize];
        // Now and then a page is cleared.
        *word = if self.registers >> 40 & 7 == 0 { 0 } else { mix(*word ^ self.registers) };
        self.registers = mix(self.registers ^ *word ^ salt);
        self.dirty.insert(page);
    }

    pub fn handle<E>(
        &mut self,
        exit: Exit,
        out: &mut Vec<Emitted>,
        mut time: impl FnMut() -> Result<u64, E>,
    ) -> Result<(), E> {
        let word = self.registers;
        match exit {
            Exit::Idle => {}
            Exit::ReadTime => {
                let now_ns = time()?;
                self.see_time(now_ns);
            }
            Exit::Send => self.packet(word, out),
            Exit::Print => {
                let bytes = word.to_le_bytes()[..2].to_vec();
                self.emit(Output::Console { device: 0, bytes }, out);
            }
            Exit::Write => {
                let sector = word % SECTORS;
                let busy = self.devices.open.values().any(|open| touches(open, sector));
                if !busy {
                    let data = word.to_le_bytes().to_vec();
                    self.request(BlockOp::Write { sector, data }, out);
                }
            }
            Exit::Read => self.request(BlockOp::Read { sector: word % SECTORS, length: 8 }, out),
            Exit::Flush => self.request(BlockOp::Flush, out),
            Exit::Entropy => {
                let asked = self.devices.open.values().any(|o| matches!(o, Output::Entropy { .. }));
                if !asked {
                    let output = Output::Entropy { device: 0, length: 4 };
                    self.devices.open.insert(u64::MAX, output.clone());
                    self.emit(output, out);
                }
            }
        }
        Ok(())
    }

    pub fn apply(&mut self, input: &Input, out: &mut Vec<Emitted>) {
        match input {
            Input::TimeRead { .. } => unreachable!("consumed by a handler"),
            Input::Tick { now_ns } => self.see_time(*now_ns),
            Input::Packet { bytes, .. } => {
                self.see(bytes);
                // A service: every request is answered.
                self.packet(self.devices.seen, out);
            }
            Input::BlockDone { token, data, .. } => {
                let open = self.devices.open.remove(token);
                assert!(open.is_some(), "a completion of a request that is not open");
                self.see(data);
            }
            Input::Entropy { bytes, .. } => {
                self.devices.open.remove(&u64::MAX);
                self.see(bytes);
            }
            Input::Console { bytes, .. } | Input::Serial { bytes } => self.see(bytes),
            Input::Announce { .. } | Input::PowerButton | Input::Reset => {}
        }
    }

    fn see(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.devices.seen = mix(self.devices.seen ^ u64::from(*byte));
        }
    }

    fn see_time(&mut self, now_ns: u64) {
        assert!(now_ns >= self.devices.last_time_ns, "the machine's time ran backwards");
        self.devices.last_time_ns = now_ns;
        self.see(&now_ns.to_le_bytes());
    }

    fn packet(&mut self, word: u64, out: &mut Vec<Emitted>) {
        self.emit(Output::Packet { device: 0, bytes: word.to_le_bytes().to_vec() }, out);
    }

    fn request(&mut self, op: BlockOp, out: &mut Vec<Emitted>) {
        if self.devices.open.len() < 4 {
            let token = self.devices.next_token;
            self.devices.next_token += 1;
            let output = Output::Block { device: 0, token, op };
            self.devices.open.insert(token, output.clone());
            self.emit(output, out);
        }
    }

    fn emit(&mut self, output: Output, out: &mut Vec<Emitted>) {
        self.devices.total.note(&output);
        out.push(Emitted { total: self.devices.total, output });
    }

    pub fn register_digest(&self) -> u64 {
        mix(self.registers)
    }

    pub fn state_digest(&self) -> u64 {
        let devices = postcard::to_allocvec(&self.devices).unwrap();
        let devices = devices.iter().fold(self.moment, |all, byte| mix(all ^ u64::from(*byte)));
        self.memory.iter().fold(mix(devices ^ self.registers), |all, word| mix(all ^ word))
    }

    /// What a log that is followed by checkpoints compares: device models and memory.
    pub fn digests(&self) -> (u64, u64) {
        let fold = |all, byte: u8| mix(all ^ u64::from(byte));
        let devices = self.save_machine().into_iter().fold(0, fold);
        (devices, self.memory.iter().fold(0, |all, word| mix(all ^ word)))
    }

    /// The last time the machine saw.
    pub fn last_time_ns(&self) -> u64 {
        self.devices.last_time_ns
    }

    pub fn save_vcpu(&self) -> Vec<u8> {
        self.registers.to_le_bytes().to_vec()
    }

    pub fn save_machine(&self) -> Vec<u8> {
        postcard::to_allocvec(&self.devices).unwrap()
    }

    /// The pages written since this was last asked.
    pub fn take_dirty(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.dirty).into_iter().collect()
    }

    pub fn dirty_count(&self) -> usize {
        self.dirty.len()
    }

    /// The pages written since the last delta.
    pub fn dirty(&self) -> BTreeSet<u64> {
        self.dirty.clone()
    }

    pub fn page(&self, page: u64) -> Page {
        let mut bytes = [0; PAGE_SIZE];
        bytes[..8].copy_from_slice(&self.memory[page as usize].to_le_bytes());
        Page::from_bytes(&bytes)
    }

    pub fn load_page(&mut self, page: u64, content: &Page) {
        self.memory[page as usize] = match content {
            Page::Zero => 0,
            Page::Data(bytes) => u64::from_le_bytes(*bytes.first_chunk().unwrap()),
        };
    }

    pub fn load_vcpu(&mut self, moment: u64, vcpu: &[u8]) {
        self.moment = moment;
        self.registers = u64::from_le_bytes(vcpu.try_into().unwrap());
    }

    pub fn load_machine(&mut self, machine: &[u8]) {
        self.devices = postcard::from_bytes(machine).unwrap();
    }

    /// A bit flips where it should not.
    pub fn spoil(&mut self) {
        self.registers ^= 1 << 20;
    }

    /// The same in a page.
    pub fn spoil_page(&mut self, page: u64) {
        self.memory[page as usize] ^= 1 << 20;
    }
}

fn touches(output: &Output, at: u64) -> bool {
    matches!(output, Output::Block { op: BlockOp::Write { sector, .. }, .. } if *sector == at)
}
