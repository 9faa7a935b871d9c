//! Why the guest stopped, as plain data: the decoding of the page that KVM shares with us.
//!
//! Nothing here decides what an exit means; that is the machine's part.

use std::fmt;
use std::ops::Deref;

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_IN, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SET_TPR, KVM_EXIT_SHUTDOWN,
    KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, KVM_INTERNAL_ERROR_EMULATION, kvm_run,
};

use crate::run_page::RunPage;

/// Why the guest stopped.
///
/// All but [`Exit::Interrupted`] come at the same instruction whenever the guest starts from the
/// same state with the same inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest reads a port. Answer with [`Vcpu::answer_io`](crate::Vcpu::answer_io).
    IoIn {
        /// The port.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        size: u8,
        /// Number of accesses: more than one for string instructions.
        count: u32,
    },
    /// The guest wrote to a port.
    IoOut {
        /// The port.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        size: u8,
        /// Number of accesses: more than one for string instructions.
        count: u32,
        /// What was written: `size * count` bytes.
        data: IoData,
    },
    /// The guest reads an address that is not memory. Answer with
    /// [`Vcpu::answer_mmio`](crate::Vcpu::answer_mmio).
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// Bytes read: 1 to 8.
        size: u8,
    },
    /// The guest wrote to an address that is not memory.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// Bytes written: 1 to 8.
        size: u8,
        /// What was written, in the first `size` bytes; the others are zero.
        data: [u8; 8],
    },
    /// The guest waits for an interrupt.
    Halt,
    /// The guest can take an interrupt now, as asked by
    /// [`Vcpu::request_window`](crate::Vcpu::request_window).
    WindowOpen,
    /// The guest lowered its task priority through CR8.
    SetTpr {
        /// The new CR8: the upper four bits of the task priority register.
        value: u8,
    },
    /// The guest reads an MSR that KVM does not answer. Answer with
    /// [`Vcpu::answer_msr`](crate::Vcpu::answer_msr).
    MsrRead {
        /// The register.
        index: u32,
    },
    /// The guest writes an MSR that KVM does not take. Answer with
    /// [`Vcpu::answer_msr`](crate::Vcpu::answer_msr): any value accepts the write.
    MsrWrite {
        /// The register.
        index: u32,
        /// What the guest writes.
        value: u64,
    },
    /// The guest's processor shut down (a triple fault).
    Shutdown,
    /// A kick or another signal. Not deterministic: not a moment.
    Interrupted,
    /// KVM cannot go on with this guest.
    Fault(FaultInfo),
}

/// The bytes of an output instruction: at most a page, and without allocation for all but string
/// instructions.
#[derive(Clone, PartialEq, Eq)]
pub struct IoData(Bytes);

#[derive(Clone, PartialEq, Eq)]
enum Bytes {
    Few { bytes: [u8; 4], length: u8 },
    Many(Box<[u8]>),
}

impl IoData {
    /// Copies `bytes`.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut few = [0; 4];
        match few.get_mut(..bytes.len()) {
            Some(place) => {
                place.copy_from_slice(bytes);
                Self(Bytes::Few { bytes: few, length: bytes.len() as u8 })
            }
            None => Self(Bytes::Many(bytes.into())),
        }
    }
}

impl Deref for IoData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Few { bytes, length } => &bytes[..usize::from(*length).min(4)],
            Bytes::Many(bytes) => bytes,
        }
    }
}

impl fmt::Debug for IoData {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:02x?}", &self[..])
    }
}

/// What kind of end an [`Exit::Fault`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The processor refused the guest's state.
    EntryFailed,
    /// KVM had to emulate an instruction that it does not know.
    Emulation,
    /// Any other internal error of KVM.
    Internal,
    /// An exit that this VMM does not know.
    Unknown,
}

/// Why KVM gave up on a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultInfo {
    /// What kind of end it is.
    pub kind: FaultKind,
    /// What KVM said about it.
    pub text: String,
    /// Where the guest was.
    pub instruction_pointer: u64,
    /// The bytes at that place, as far as they can be read: up to 15.
    pub instruction: Vec<u8>,
}

impl FaultInfo {
    pub(crate) fn new(kind: FaultKind, text: String) -> Self {
        Self { kind, text, instruction_pointer: 0, instruction: Vec::new() }
    }
}

impl fmt::Display for FaultInfo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}; the guest was at {:#x}, with the instruction bytes {:02x?}",
            self.text, self.instruction_pointer, self.instruction
        )
    }
}

/// What an exit still waits for: where the answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pending {
    /// Nothing is to be completed by the next run.
    Nothing,
    /// An instruction is completed by the next run and needs no answer.
    Completion,
    /// A port read: `length` bytes at `offset` of the shared page.
    Io { offset: usize, length: usize },
    /// A memory-mapped read of so many bytes.
    Mmio { length: usize },
    /// An MSR access.
    Msr,
}

/// Reads an exit out of the shared page after a successful `KVM_RUN`.
pub(crate) fn decode(run: &kvm_run, page: &RunPage) -> (Exit, Pending) {
    match run.exit_reason {
        KVM_EXIT_IO => decode_io(run, page),
        KVM_EXIT_MMIO => decode_mmio(run),
        KVM_EXIT_HLT => (Exit::Halt, Pending::Nothing),
        KVM_EXIT_IRQ_WINDOW_OPEN => (Exit::WindowOpen, Pending::Nothing),
        KVM_EXIT_SET_TPR => (Exit::SetTpr { value: (run.cr8 & 0xf) as u8 }, Pending::Nothing),
        KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR => decode_msr(run),
        KVM_EXIT_SHUTDOWN => (Exit::Shutdown, Pending::Nothing),
        KVM_EXIT_INTR => (Exit::Interrupted, Pending::Nothing),
        _ => (Exit::Fault(decode_fault(run)), Pending::Nothing),
    }
}

fn decode_io(run: &kvm_run, page: &RunPage) -> (Exit, Pending) {
    // SAFETY: the exit reason says that KVM filled this member of the union.
    let io = unsafe { run.__bindgen_anon_1.io };
    let offset = usize::try_from(io.data_offset).unwrap_or(usize::MAX);
    let length = usize::from(io.size).saturating_mul(io.count as usize);
    if u32::from(io.direction) == KVM_EXIT_IO_IN {
        let exit = Exit::IoIn { port: io.port, size: io.size, count: io.count };
        return (exit, Pending::Io { offset, length });
    }
    let mut bytes = vec![0; 0];
    let mut few = [0; 4];
    let data = match few.get_mut(..length) {
        Some(place) => page.read(offset, place).then(|| IoData::new(place)),
        None => {
            bytes.resize(length.min(page.size()), 0);
            page.read(offset, &mut bytes).then(|| IoData::new(&bytes))
        }
    };
    match data {
        Some(data) => {
            let exit = Exit::IoOut { port: io.port, size: io.size, count: io.count, data };
            (exit, Pending::Completion)
        }
        None => {
            let text = format!("KVM reports port output outside its own page, at {offset:#x}");
            (Exit::Fault(FaultInfo::new(FaultKind::Internal, text)), Pending::Nothing)
        }
    }
}

fn decode_mmio(run: &kvm_run) -> (Exit, Pending) {
    // SAFETY: the exit reason says that KVM filled this member of the union.
    let mmio = unsafe { run.__bindgen_anon_1.mmio };
    let length = (mmio.len as usize).min(mmio.data.len());
    let size = length as u8;
    if mmio.is_write == 0 {
        (Exit::MmioRead { address: mmio.phys_addr, size }, Pending::Mmio { length })
    } else {
        let mut data = [0; 8];
        data[..length].copy_from_slice(&mmio.data[..length]);
        (Exit::MmioWrite { address: mmio.phys_addr, size, data }, Pending::Completion)
    }
}

fn decode_msr(run: &kvm_run) -> (Exit, Pending) {
    // SAFETY: the exit reason says that KVM filled this member of the union.
    let msr = unsafe { run.__bindgen_anon_1.msr };
    let exit = if run.exit_reason == KVM_EXIT_X86_RDMSR {
        Exit::MsrRead { index: msr.index }
    } else {
        Exit::MsrWrite { index: msr.index, value: msr.data }
    };
    (exit, Pending::Msr)
}

fn decode_fault(run: &kvm_run) -> FaultInfo {
    match run.exit_reason {
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: the exit reason says that KVM filled this member of the union.
            let entry = unsafe { run.__bindgen_anon_1.fail_entry };
            let reason = entry.hardware_entry_failure_reason;
            let text = format!("the processor refused to run the guest (reason {reason:#x})");
            FaultInfo::new(FaultKind::EntryFailed, text)
        }
        KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: the exit reason says that KVM filled this member of the union.
            let internal = unsafe { run.__bindgen_anon_1.internal };
            if internal.suberror == KVM_INTERNAL_ERROR_EMULATION {
                let text = "KVM cannot emulate an instruction of the guest".to_owned();
                return FaultInfo::new(FaultKind::Emulation, text);
            }
            let count = (internal.ndata as usize).min(internal.data.len());
            let text = format!(
                "KVM had an internal error {} with the data {:x?}",
                internal.suberror,
                &internal.data[..count]
            );
            FaultInfo::new(FaultKind::Internal, text)
        }
        reason => {
            let text = format!("KVM stopped the guest for a reason not known here ({reason})");
            FaultInfo::new(FaultKind::Unknown, text)
        }
    }
}
