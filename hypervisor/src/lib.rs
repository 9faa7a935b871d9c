//! Everything the project knows about KVM: the virtual machine, its one virtual CPU, the exits as
//! plain data, the dirty log, the CPU identification and MSR policy, and the state of a CPU.
//!
//! This crate owns nearly all `unsafe` code of the project. It knows no device, no log and no
//! replica: it reports what the guest did ([`Exit`]) and does what it is told. What decides *when*
//! something happens lives in `vmm`.
//!
//! What record and replay rest on, and where it is kept:
//!
//! * [`guest_cpuid`]: an allow-list of what a guest may know about its processor;
//! * [`answer_unknown_msr`] and the MSR filter behind it: no MSR that reads a clock reaches the
//!   guest;
//! * [`Vcpu::run`]: an exit is either deterministic (it comes at the same instruction in every run
//!   from the same state) or it is [`Exit::Interrupted`];
//! * [`Vcpu::can_inject`]: whether an interrupt can be injected is a function of the guest's state
//!   alone.

mod cpuid;
mod error;
mod exit;
mod heap;
mod kick;
mod kvm;
mod msr;
mod quirks;
mod registers;
mod run_page;
mod state;
mod vcpu;
mod vcpu_registers;
mod vm;

pub use cpuid::{Cpuid, CpuidEntry, CpuidPolicy, check_cpuid, guest_cpuid, guest_cpuid_with};
pub use error::{Error, Result};
pub use exit::{Exit, FaultInfo, FaultKind, IoData};
pub use heap::keep_freed_memory;
pub use kick::{Kicker, boottime_ms, monotonic_ns};
pub use kvm::Kvm;
pub use msr::{accept_unknown_msr_write, answer_unknown_msr};
pub use registers::Registers;
pub use state::{
    DebugRegisters, DescriptorTable, Events, FloatingPoint, Msr, Segment, SystemRegisters,
    VcpuState,
};
pub use vcpu::Vcpu;
pub use vm::Vm;

/// Guest RAM. Its bitmap remembers the pages that user space wrote, which KVM does not see.
pub type GuestMemory = vm_memory::GuestMemoryMmap<vm_memory::bitmap::AtomicBitmap>;

/// A virtual CPU is made on one thread and run on another; kickers are everywhere.
const _: () = {
    const fn sendable<T: Send>() {}
    const fn shareable<T: Send + Sync>() {}
    sendable::<Vcpu>();
    sendable::<Vm>();
    shareable::<Kicker>();
};
