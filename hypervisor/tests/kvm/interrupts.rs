//! Interrupts, exceptions, and kicks.

use std::time::{Duration, Instant};

use super::guest::{CODE, DATA, Guest, Outcome, same};
use crate::guest_code;
use hypervisor::{Exit, Kvm};
use vm_memory::{Bytes, GuestAddress};

guest_code!(
    halt_injection_and_window_code,
    ".code32",
    "sti",
    "hlt",
    "cli",
    "out 0x80, al",
    "sti",
    "nop",
    "nop",
    "out 0x81, al",
    "cli",
    "out 0x82, al",
    "sti",
    "in al, 0x84", // in the shadow of sti
    "hlt",
    ".org 9b + 0x100, 0x90",
    "out 0x90, al",
    "iretd",
);

pub fn halt_injection_and_window(kvm: &Kvm) -> Outcome {
    let mut guest = Guest::new(kvm, halt_injection_and_window_code())?;
    guest.set_handler(0x20, 0x100)?;
    same("interrupts are off", guest.vcpu.can_inject(), false)?;
    guest.expect(&Exit::Halt)?;
    same("a halted guest takes interrupts", guest.vcpu.can_inject(), true)?;
    guest.vcpu.inject(0x20)?;
    same("one at a time", guest.vcpu.can_inject(), false)?;
    guest.expect_port(0x90)?;
    same("the handler runs with interrupts off", guest.vcpu.can_inject(), false)?;

    guest.expect_port(0x80)?;
    same("interrupts are off again", guest.vcpu.can_inject(), false)?;
    guest.vcpu.request_window(true);
    guest.expect(&Exit::WindowOpen)?;
    let sti = halt_injection_and_window_code()
        .windows(3)
        .position(|bytes| bytes == [0xfb, 0x90, 0x90])
        .ok_or("no sti in the code")? as u64;
    same("after the instruction in the shadow", guest.vcpu.registers()?.rip, CODE + sti + 2)?;
    same("the window is open", guest.vcpu.can_inject(), true)?;
    guest.vcpu.request_window(false);
    guest.vcpu.inject(0x20)?;
    guest.expect_port(0x90)?;
    guest.expect_port(0x81)?;

    guest.expect_port(0x82)?;
    guest.expect(&Exit::IoIn { port: 0x84, size: 1, count: 1 })?;
    same("the read ends the shadow", guest.vcpu.can_inject(), true)?;
    guest.vcpu.answer_io(&[7]);
    guest.vcpu.inject(0x20)?;
    guest.expect_port(0x90)?;
    same("the read was completed before", guest.vcpu.registers()?.rax & 0xff, 7)?;
    guest.expect(&Exit::Halt)
}

guest_code!(
    window_after_a_return_code,
    ".code32",
    "out 0x80, al",
    "pushfd",
    "or dword ptr [esp], 0x200",
    "push 0x8",
    "call 2f",
    "sti",
    "inc ebx",
    "inc ecx",
    "out 0x81, al",
    "cli",
    "out 0x82, al",
    "sti",
    "3: jmp 3b",
    "2:",
    "inc dword ptr [esp]", // behind the sti
    "iretd",
);

/// An interrupt window opens one instruction after an `sti`, also if the guest did not come by it.
pub fn window_after_a_return(kvm: &Kvm) -> Outcome {
    let mut guest = Guest::new(kvm, window_after_a_return_code())?;
    guest.expect_port(0x80)?;
    let before = guest.vcpu.registers()?;
    guest.vcpu.request_window(true);
    guest.expect(&Exit::WindowOpen)?;
    let after = guest.vcpu.registers()?;
    let done = (after.rbx - before.rbx, after.rcx - before.rcx);
    same("one instruction in the shadow", done, (1, 0))?;
    guest.vcpu.request_window(false);
    guest.expect_port(0x81)?;
    guest.expect_port(0x82)?;
    guest.vcpu.request_window(true);
    guest.expect(&Exit::WindowOpen)
}

guest_code!(
    breakpoint_code,
    ".code32",
    "mov ebx, 1",
    "int3",
    "mov ebx, 2",
    "out 0x80, al",
    "hlt",
    ".org 9b + 0x100, 0x90",
    "mov ecx, [esp]",
    "out 0x91, al",
    "iretd",
);

pub fn breakpoint(kvm: &Kvm) -> Outcome {
    let mut guest = Guest::new(kvm, breakpoint_code())?;
    guest.set_handler(3, 0x100)?;
    guest.expect_port(0x91)?;
    let registers = guest.vcpu.registers()?;
    same("before the next instruction", registers.rbx, 1)?;
    same("the address pushed is behind the int3", registers.rcx, CODE + 6)?;
    guest.expect_port(0x80)?;
    same("and it goes on", guest.vcpu.registers()?.rbx, 2)
}

guest_code!(
    task_priority_code,
    ".code64",
    "mov rax, cr8",
    "mov [0x9000], eax",
    "mov eax, 9",
    "mov cr8, rax",
    "mov eax, 4",
    "mov cr8, rax", // lower than before: an exit
    "hlt",
);

pub fn task_priority(kvm: &Kvm) -> Outcome {
    let mut guest = Guest::new(kvm, task_priority_code())?;
    guest.enter_long_mode()?;
    guest.vcpu.set_tpr(3);
    guest.expect(&Exit::SetTpr { value: 4 })?;
    same("what user space set", guest.word(DATA)?, 3)?;
    same("what the guest set", guest.vcpu.tpr(), 4)?;
    guest.expect(&Exit::Halt)
}

guest_code!(
    endless_loop_code,
    ".code32",
    "xor ebx, ebx",
    "2:",
    "inc ebx",
    "cmp dword ptr [0x9000], 0",
    "je 2b",
    "out 0x80, al",
    "hlt",
);

pub fn kick_of_an_endless_loop(kvm: &Kvm) -> Outcome {
    let mut guest = Guest::new(kvm, endless_loop_code())?;
    let kicker = guest.vcpu.kicker();
    let thread = std::thread::spawn(move || {
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(5));
            kicker.kick();
        }
    });
    // Kicks may fall together, but each that falls into a run of its own ends it.
    guest.expect(&Exit::Interrupted)?;
    let first = guest.vcpu.registers()?.rbx;
    guest.expect(&Exit::Interrupted)?;
    thread.join().map_err(|_| "the kicking thread died")?;
    guest.memory.write_obj(1_u32, GuestAddress(DATA))?;
    loop {
        match guest.vcpu.run()? {
            Exit::Interrupted => {}
            Exit::IoOut { port: 0x80, .. } => break,
            exit => return Err(format!("{exit:?}").into()),
        }
    }
    same("the loop ran between kicks", guest.vcpu.registers()?.rbx > first, true)
}

pub fn kick_between_two_runs(kvm: &Kvm) -> Outcome {
    let mut guest = Guest::new(kvm, endless_loop_code())?;
    let kicker = guest.vcpu.kicker();
    for _ in 0..100 {
        kicker.kick();
        // The kick came before the run and during a settlement: it must not be lost.
        same("nothing to settle", guest.vcpu.settle()?, None)?;
        guest.expect(&Exit::Interrupted)?;
    }
    Ok(())
}

pub fn kick_at_a_deadline(kvm: &Kvm) -> Outcome {
    let mut guest = Guest::new(kvm, endless_loop_code())?;
    let kicker = guest.vcpu.kicker();
    for _ in 0..10 {
        let before = Instant::now();
        kicker.kick_at(monotonic_ns() + 3_000_000);
        guest.expect(&Exit::Interrupted)?;
        same("not too early", before.elapsed() >= Duration::from_millis(3), true)?;
    }
    kicker.kick_at(monotonic_ns() + 60_000_000_000);
    kicker.disarm();
    Ok(())
}

fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a live local that the call fills.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
