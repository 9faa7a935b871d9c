//! The machine: one vCPU, guest RAM and every device model, as one deterministic state machine.
//!
//! Owns the order in which things happen to the guest: an exit is handled, inputs are applied, an
//! interrupt is perhaps injected, the guest runs on. Nothing here reads a clock, a file, a socket
//! or randomness: time comes from the [`Clock`] that the caller passes, everything else through
//! [`Machine::apply`]. Does not own: threads, queues, where inputs come from (`crate::engine`) or
//! what becomes of outputs (`crate::shell`).

mod bus;
mod exit;
mod input;
mod instruction;
mod memory;
mod state;

pub use exit::Next;
pub use input::status_byte;
pub use memory::{PAGE_SIZE, content_pages, memory_digest, page_at, write_pages};
pub use state::{MachineState, StateDigest};

use ft::Output;
use hypervisor::{Cpuid, Exit, GuestMemory, Kvm, Vcpu, VcpuState, Vm};
use virtio_devices::VirtioPci;

use crate::devices::{Clock, Platform};
use crate::error::Error;

/// The deterministic core of a VM.
pub struct Machine {
    pub(crate) vm: Vm,
    pub(crate) vcpu: Vcpu,
    pub(crate) memory: GuestMemory,
    pub(crate) platform: Platform,
    /// PCI functions in slot order: slot 1 is the first.
    pub(crate) virtio: Vec<VirtioPci>,
    /// Logical time: deterministic exits taken so far.
    pub(crate) moment: u64,
    /// The guest executed HLT and no interrupt has ended that yet.
    pub(crate) halted: bool,
    /// The interval after the current moment has begun: whether an interrupt is injected in it is
    /// decided, and not to be decided again when a kick had the guest leave on the way.
    inside_interval: bool,
    /// Outputs produced since the last [`Machine::take_outputs`].
    outputs: Vec<Output>,
    /// Scratch space for device effects, kept to spare allocations.
    effects: Vec<virtio_devices::Effect>,
}

impl Machine {
    /// A machine at moment 0 with an empty memory.
    ///
    /// # Errors
    /// KVM refused to create the VM, to map its memory or to take its CPUID table.
    pub fn new(
        kvm: &Kvm,
        memory: GuestMemory,
        cpuid: &Cpuid,
        platform: Platform,
        virtio: Vec<VirtioPci>,
    ) -> Result<Self, Error> {
        let mut vm = kvm.create_vm()?;
        vm.map_memory(&memory)?;
        let vcpu = vm.create_vcpu(cpuid)?;
        Ok(Self {
            vm,
            vcpu,
            memory,
            platform,
            virtio,
            moment: 0,
            halted: false,
            inside_interval: false,
            outputs: Vec::new(),
            effects: Vec::new(),
        })
    }

    /// The current moment.
    pub fn moment(&self) -> u64 {
        self.moment
    }

    /// Puts every model into its state after a reset.
    pub(crate) fn power_cycle(&mut self) {
        self.platform.power_cycle();
        // What devices want of the world on the way is dropped: a follower takes the state after
        // the reset over and would not want it, and the guest's drivers say it all again.
        for device in &mut self.virtio {
            device.power_cycle(&mut Vec::new());
        }
        self.halted = false;
        self.inside_interval = false;
    }

    /// Machine time of the next timer that is due, in nanoseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        self.platform.next_deadline()
    }

    /// Whether the guest can go on: it is not halted, or an interrupt ends the halt.
    pub fn runnable(&self) -> bool {
        !self.halted || self.platform.pending_interrupt()
    }

    /// Whether the interval after the current moment has begun. Nothing may be applied to the
    /// machine, and no digest of it taken, before it ends.
    pub fn inside_interval(&self) -> bool {
        self.inside_interval
    }

    /// Runs the guest until its next exit. An exit that is a moment is counted as one.
    ///
    /// Inside an interval that a kick interrupted, what was decided at its beginning stands: an
    /// interrupt injected here would come at a point that no log names. A window that was asked for
    /// and has opened meanwhile exits at once.
    ///
    /// # Errors
    /// KVM failed to run the vCPU.
    pub fn run(&mut self) -> Result<Exit, Error> {
        if !self.inside_interval {
            self.begin_interval()?;
        }
        let exit = self.vcpu.run()?;
        self.copy_task_priority();
        if exit != Exit::Interrupted {
            self.end_interval();
        }
        Ok(exit)
    }

    /// Begins an interval: decides on interrupt injection, from state that is itself deterministic.
    fn begin_interval(&mut self) -> Result<(), Error> {
        self.vcpu.set_tpr(self.platform.tpr() >> 4);
        if let Some(vector) = self.decide_injection() {
            self.vcpu.inject(vector)?;
        }
        self.vcpu.request_window(self.platform.pending_interrupt());
        Ok(())
    }

    /// What the beginning of an interval changes in the models, and the vector that the vCPU is to
    /// be given. The only place that decides on injection.
    fn decide_injection(&mut self) -> Option<u8> {
        self.inside_interval = true;
        self.halted = false;
        let possible = self.platform.pending_interrupt() && self.vcpu.can_inject();
        possible.then(|| self.platform.acknowledge()).flatten()
    }

    fn end_interval(&mut self) {
        self.inside_interval = false;
        self.moment += 1;
    }

    /// Completes what the guest waits for where a kick found it inside an interval. An exit that
    /// comes of that ends the interval; without one, the vCPU's state may be read.
    ///
    /// # Errors
    /// KVM failed to run the vCPU.
    pub fn settle_inside(&mut self) -> Result<Option<Exit>, Error> {
        let exit = self.vcpu.settle()?;
        if exit.is_some() {
            self.end_interval();
        }
        Ok(exit)
    }

    /// Ends an interval, begun or not, where the guest is now: its state there is known to whoever
    /// follows, who never runs that interval.
    pub fn end_interval_here(&mut self) {
        self.vcpu.forget_past();
        self.end_interval();
    }

    /// Takes over the state at the end of an interval that is not run here: what beginning it would
    /// have changed in the models, then the vCPU.
    ///
    /// # Errors
    /// KVM refused a part of the state.
    pub fn skip_interval(&mut self, end: &VcpuState) -> Result<(), Error> {
        // The vCPU gets no vector: if it was given one, that is part of its state.
        let _ = self.decide_injection();
        self.restore_vcpu(end)?;
        self.end_interval();
        Ok(())
    }

    /// CR8 and the APIC's task priority register are two names for one thing.
    fn copy_task_priority(&mut self) {
        let priority = self.vcpu.tpr() << 4;
        if priority != self.platform.tpr() & 0xf0 {
            self.platform.set_tpr(priority);
        }
    }

    /// The instruction that the guest has at an instruction pointer, for reports.
    pub fn instruction_text(&self, rip: u64) -> String {
        match self.vcpu.instruction_bytes_at(rip, &self.memory) {
            Ok(bytes) if bytes.is_empty() => "no memory there".to_owned(),
            Ok(bytes) => instruction::text(&bytes),
            Err(error) => format!("cannot be read: {error}"),
        }
    }

    /// Takes the outputs produced so far, oldest first.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Whether outputs wait to be taken.
    pub fn has_outputs(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// Completes an I/O exit whose answer KVM has not consumed yet, so that the vCPU's state may
    /// be read. String I/O that KVM splits may exit again meanwhile: those exits are moments like
    /// any other and are handled here.
    ///
    /// # Errors
    /// KVM failed, or the guest stopped in a way that cannot be handled.
    pub fn settle(&mut self, clock: &mut dyn Clock) -> Result<(), Error> {
        while let Some(exit) = self.vcpu.settle()? {
            self.end_interval();
            self.handle(&exit, clock)?;
        }
        self.inside_interval = false;
        Ok(())
    }

    /// Saves the vCPU. The machine must be settled or just interrupted.
    ///
    /// # Errors
    /// KVM refused to hand out a part of the state.
    pub fn save_vcpu(&mut self) -> Result<VcpuState, Error> {
        Ok(self.vcpu.save()?)
    }

    /// Replaces the vCPU's state and what the models derive from it.
    ///
    /// # Errors
    /// KVM refused a part of the state.
    pub fn restore_vcpu(&mut self, state: &VcpuState) -> Result<(), Error> {
        self.vcpu.restore(state)?;
        self.copy_task_priority();
        Ok(())
    }
}
