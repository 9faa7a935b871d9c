//! One virtual CPU: entering the guest, and what came out of it.
//!
//! This file owns the running. Registers and addresses are in `vcpu_registers`, saving and
//! restoring in `state`, interruption in `kick`.

use std::mem::offset_of;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_SYNC_X86_REGS, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_STI, kvm_cpuid_entry2,
    kvm_interrupt, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use crate::exit::{Pending, decode};
use crate::kick::Target;
use crate::quirks::{BREAKPOINT_VECTOR, WindowRule, is_breakpoint};
use crate::run_page::RunPage;
use crate::{Cpuid, Error, Exit, FaultInfo, FaultKind, GuestMemory, Kicker, Result};

ioctl_iow_nr!(KVM_INTERRUPT, kvm_bindings::KVMIO, 0x86, kvm_interrupt);

/// The boot processor's APIC: at its usual address, switched on.
const APIC_BASE: u64 = 0xfee0_0000 | 1 << 11 | 1 << 8;

/// More exits than this cannot come out of the completion of one instruction.
const COMPLETIONS_MAX: u32 = 4096;

/// A virtual CPU. It belongs to the thread that runs it
/// ([`bind_to_this_thread`](Vcpu::bind_to_this_thread)).
#[derive(Debug)]
pub struct Vcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) memory: Option<GuestMemory>,
    kick: Arc<Target>,
    pending: Pending,
    window_rule: WindowRule,
    /// Behind an `int3` whose breakpoint was injected by us and may not have been delivered yet.
    breakpoint_end: Option<u64>,
}

impl Vcpu {
    pub(crate) fn new(
        fd: VcpuFd,
        run_bytes: usize,
        cpuid: &Cpuid,
        memory: Option<GuestMemory>,
    ) -> Result<Self> {
        let page = RunPage::map(&fd, run_bytes).map_err(|source| Error::Request {
            action: "share a page with the virtual CPU",
            source,
        })?;
        let entries: Vec<_> = cpuid.0.iter().map(kvm_cpuid_entry2::from).collect();
        let entries = CpuId::from_entries(&entries)
            .map_err(|_| Error::Cpuid("it was given more CPUID leaves than KVM takes".into()))?;
        fd.set_cpuid2(&entries).map_err(Error::request("set the processor's features"))?;
        let mut vcpu = Self {
            fd,
            memory,
            kick: Target::new(page),
            pending: Pending::Nothing,
            window_rule: WindowRule::default(),
            breakpoint_end: None,
        };
        let mut sregs = vcpu.fd.get_sregs().map_err(Error::request("read system registers"))?;
        sregs.apic_base = APIC_BASE;
        vcpu.fd.set_sregs(&sregs).map_err(Error::request("switch the processor's APIC on"))?;
        let regs = vcpu.fd.get_regs().map_err(Error::request("read registers"))?;
        vcpu.fd.sync_regs_mut().regs = regs;
        vcpu.fd.get_kvm_run().kvm_valid_regs = u64::from(KVM_SYNC_X86_REGS);
        vcpu.fd.get_kvm_run().cr8 = sregs.cr8;
        Ok(vcpu)
    }

    /// Makes the calling thread the one that runs this CPU and that kicks go to. A CPU that moves
    /// to another thread must be bound there again.
    ///
    /// # Errors
    ///
    /// The signal or the timer cannot be set up.
    pub fn bind_to_this_thread(&mut self) -> Result<()> {
        self.kick.bind()
    }

    /// A handle that interrupts this CPU.
    #[must_use]
    pub fn kicker(&self) -> Kicker {
        Kicker::new(Arc::clone(&self.kick))
    }

    /// Runs the guest until it stops. What the last exit asked for must have been answered: it is
    /// completed first.
    ///
    /// # Errors
    ///
    /// KVM refuses to run the guest.
    pub fn run(&mut self) -> Result<Exit> {
        loop {
            if self.kick.take_kick_before_entry() {
                return Ok(Exit::Interrupted);
            }
            let exit = self.enter()?;
            if let Some(exit) = self.filter(exit)? {
                return Ok(exit);
            }
        }
    }

    /// Completes the input or output of the last exit without running the guest any further, so
    /// that registers can be read and replaced. Most often nothing comes of it; an instruction
    /// with several accesses may give its next exit, which is to be handled (and settled) like any
    /// other.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn settle(&mut self) -> Result<Option<Exit>> {
        self.kick.page().set_immediate_exit(true);
        // Afterwards `immediate_exit` stays set: `run` clears it, after a look at the kicks.
        match self.enter()? {
            Exit::Interrupted => Ok(None),
            exit => self.filter(exit),
        }
    }

    /// Settles for good: throws away what comes of completing the last exit.
    pub(crate) fn abandon(&mut self, purpose: &'static str) -> Result<()> {
        for _ in 0..COMPLETIONS_MAX {
            if self.settle()?.is_none() {
                return Ok(());
            }
        }
        Err(Error::Unsettled(purpose))
    }

    /// Whether nothing waits to be completed by the next run.
    pub(crate) fn is_settled(&self) -> bool {
        self.pending == Pending::Nothing
    }

    fn enter(&mut self) -> Result<Exit> {
        self.put_answer_beside_registers();
        self.pending = Pending::Nothing;
        let (exit, pending) = match self.fd.run() {
            Ok(VcpuExit::MemoryFault { gpa, .. }) => {
                let text = format!("KVM cannot reach guest memory at {gpa:#x}");
                (Exit::Fault(FaultInfo::new(FaultKind::Internal, text)), Pending::Nothing)
            }
            Ok(_) => decode(self.fd.get_kvm_run(), self.kick.page()),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                (Exit::Interrupted, Pending::Nothing)
            }
            Err(error) => return Err(Error::request("run the guest")(error)),
        };
        self.pending = pending;
        self.fill_in_answer();
        Ok(exit)
    }

    /// If registers were set beside the answer to a port read (`set_edx`), puts the answer in the
    /// accumulator, too: when KVM completes the read in its emulator, new registers make it
    /// forget the answer.
    fn put_answer_beside_registers(&mut self) {
        let Pending::Io { offset, length } = self.pending else { return };
        if length > 4 || self.fd.get_kvm_run().kvm_dirty_regs == 0 {
            return;
        }
        let rax = self.fd.sync_regs().regs.rax;
        // A 32-bit read clears the upper half, a shorter one keeps what is above it.
        let mut bytes = if length == 4 { [0; 8] } else { rax.to_le_bytes() };
        if self.kick.page().read(offset, &mut bytes[..length]) {
            self.fd.sync_regs_mut().regs.rax = u64::from_le_bytes(bytes);
        }
    }

    /// The answer that stands if nobody gives one: an empty bus, or no such register. Without it
    /// the guest would get what an earlier exit left in the page.
    fn fill_in_answer(&mut self) {
        match self.pending {
            Pending::Io { offset, length } => self.kick.page().fill(offset, length, 0xff),
            Pending::Mmio { .. } => self.fd.get_kvm_run().__bindgen_anon_1.mmio.data = [0xff; 8],
            Pending::Msr => self.answer_msr(None),
            Pending::Nothing | Pending::Completion => {}
        }
    }

    /// Takes away what is no exit to the rest of the world. `None`: enter the guest again.
    fn filter(&mut self, exit: Exit) -> Result<Option<Exit>> {
        match exit {
            Exit::Interrupted => {
                self.kick.served();
                self.take_back_breakpoint()?;
                return Ok(Some(Exit::Interrupted));
            }
            Exit::WindowOpen => {
                self.breakpoint_end = None;
                let rip = self.rip();
                let before = self.byte_before(rip)?;
                if self.window_rule.report(rip, before) {
                    return Ok(Some(Exit::WindowOpen));
                }
                self.cast_shadow()?;
                return Ok(None);
            }
            Exit::Fault(info) => {
                let instruction = self.own_instruction_bytes()?;
                if info.kind == FaultKind::Emulation && is_breakpoint(&instruction) {
                    self.inject_breakpoint()?;
                    return Ok(None);
                }
                let instruction_pointer = self.rip();
                let info = FaultInfo { instruction_pointer, instruction, ..info };
                return Ok(Some(Exit::Fault(info)));
            }
            _ => {}
        }
        self.window_rule.forget();
        self.breakpoint_end = None;
        Ok(Some(exit))
    }

    /// Answers [`Exit::IoIn`]: `size * count` bytes. What is missing reads as an empty bus (all
    /// ones), what is too much is dropped.
    pub fn answer_io(&mut self, data: &[u8]) {
        if let Pending::Io { offset, length } = self.pending {
            let data = &data[..data.len().min(length)];
            self.kick.page().write(offset, data);
        }
    }

    /// Answers [`Exit::MmioRead`]: `size` bytes. What is missing reads as an empty bus (all ones).
    pub fn answer_mmio(&mut self, data: &[u8]) {
        if let Pending::Mmio { length } = self.pending {
            let mut bytes = [0xff; 8];
            let length = data.len().min(length).min(bytes.len());
            bytes[..length].copy_from_slice(&data[..length]);
            self.fd.get_kvm_run().__bindgen_anon_1.mmio.data = bytes;
        }
    }

    /// Answers [`Exit::MsrRead`] with a value, [`Exit::MsrWrite`] with any value; `None` gives the
    /// guest a general protection fault.
    pub fn answer_msr(&mut self, value: Option<u64>) {
        if self.pending == Pending::Msr {
            let run = self.fd.get_kvm_run();
            // SAFETY: the last exit was about an MSR, so KVM filled this member of the union.
            let msr = unsafe { &mut run.__bindgen_anon_1.msr };
            msr.error = u8::from(value.is_none());
            msr.data = value.unwrap_or(0);
        }
    }

    /// Whether [`inject`](Vcpu::inject) is possible now.
    ///
    /// It is a function of the guest's state alone. KVM's own answer is not at an exit for input or
    /// output: there it depends on whether the instruction stands in the shadow of an `sti`, which
    /// emulated processors get wrong in both directions, by when the host was interrupted. But
    /// such an instruction completes before an interrupt is delivered, which ends any shadow. So
    /// only the interrupt flag counts, and that nothing else is half delivered.
    ///
    /// At an MSR exit the answer is no: completing it may raise a fault, and KVM would drop an
    /// interrupt that was queued before.
    #[must_use]
    pub fn can_inject(&self) -> bool {
        let page = self.kick.page();
        if self.pending == Pending::Msr {
            return false;
        }
        if page.byte(offset_of!(kvm_run, if_flag)) == 0 {
            return false;
        }
        if page.byte(offset_of!(kvm_run, ready_for_interrupt_injection)) != 0 {
            return true;
        }
        if self.is_settled() {
            return false;
        }
        self.fd.get_vcpu_events().is_ok_and(|events| {
            events.exception.injected == 0
                && events.exception.pending == 0
                && events.interrupt.injected == 0
                && events.nmi.injected == 0
                && events.nmi.pending == 0
        })
    }

    /// Makes the guest take an interrupt before its next instruction. Only when
    /// [`can_inject`](Vcpu::can_inject) says so; after it, not again before the next run.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn inject(&mut self, vector: u8) -> Result<()> {
        let interrupt = kvm_interrupt { irq: u32::from(vector) };
        // SAFETY: the file is a virtual CPU and `interrupt` a live local of the type that the
        // request reads.
        let result = unsafe { ioctl_with_ref(&self.fd, KVM_INTERRUPT(), &interrupt) };
        if result != 0 {
            return Err(Error::Request {
                action: "inject an interrupt",
                source: std::io::Error::last_os_error(),
            });
        }
        self.fd.get_kvm_run().ready_for_interrupt_injection = 0;
        Ok(())
    }

    /// Asks for [`Exit::WindowOpen`] as soon as the guest can take an interrupt, or no longer.
    pub fn request_window(&mut self, on: bool) {
        self.fd.get_kvm_run().request_interrupt_window = u8::from(on);
    }

    /// CR8: the upper four bits of the guest's task priority register.
    #[must_use]
    pub fn tpr(&self) -> u8 {
        self.kick.page().byte(offset_of!(kvm_run, cr8)) & 0xf
    }

    /// Sets CR8, after the guest wrote the task priority register of its APIC.
    pub fn set_tpr(&mut self, value: u8) {
        self.fd.get_kvm_run().cr8 = u64::from(value & 0xf);
    }

    /// Steps over the `int3` at the guest's instruction pointer and has it raise its exception.
    fn inject_breakpoint(&mut self) -> Result<()> {
        let mut registers = self.registers()?;
        registers.rip = registers.rip.wrapping_add(1);
        self.set_registers(&registers)?;
        self.set_breakpoint(true)?;
        self.breakpoint_end = Some(registers.rip);
        Ok(())
    }

    /// If the guest was interrupted before it took our breakpoint: back to the `int3`. KVM does not
    /// report such an exception with its state, so a saved CPU would lose it.
    fn take_back_breakpoint(&mut self) -> Result<()> {
        let Some(end) = self.breakpoint_end.take() else { return Ok(()) };
        let mut registers = self.registers()?;
        if registers.rip == end {
            registers.rip = end.wrapping_sub(1);
            self.set_registers(&registers)?;
            self.set_breakpoint(false)?;
        }
        Ok(())
    }

    /// Puts the guest in the shadow of an `sti`, for one instruction.
    fn cast_shadow(&self) -> Result<()> {
        let read = Error::request("read pending exceptions");
        let mut events = self.fd.get_vcpu_events().map_err(read)?;
        events.interrupt.shadow = KVM_X86_SHADOW_INT_STI as u8;
        events.flags |= KVM_VCPUEVENT_VALID_SHADOW;
        self.fd.set_vcpu_events(&events).map_err(Error::request("delay an interrupt"))
    }

    fn set_breakpoint(&mut self, on: bool) -> Result<()> {
        let read = Error::request("read pending exceptions");
        let mut events = self.fd.get_vcpu_events().map_err(read)?;
        events.exception.injected = u8::from(on);
        events.exception.pending = 0;
        events.exception.nr = BREAKPOINT_VECTOR;
        events.exception.has_error_code = 0;
        self.fd.set_vcpu_events(&events).map_err(Error::request("inject a breakpoint"))
    }

    /// The byte in memory before `rip`, if there is one.
    fn byte_before(&self, rip: u64) -> Result<Option<u8>> {
        let Some(address) = self.linear_address(rip)?.checked_sub(1) else { return Ok(None) };
        let Some(memory) = &self.memory else { return Ok(None) };
        let Some(physical) = self.translate(address)? else { return Ok(None) };
        Ok(memory.read_obj(GuestAddress(physical)).ok())
    }

    fn own_instruction_bytes(&self) -> Result<Vec<u8>> {
        match &self.memory {
            Some(memory) => self.instruction_bytes(memory),
            None => Ok(Vec::new()),
        }
    }

    /// What the rules of `quirks` remember of the past is void: the state was replaced, or
    /// somebody else goes on from a copy of it, who remembers nothing.
    pub fn forget_past(&mut self) {
        self.window_rule.forget();
        self.breakpoint_end = None;
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.kick.unbind();
    }
}
