//! Memory and the state of the processor: dirty pages, saving, restoring, replacing.

use super::guest::{DATA, Guest, MEMORY_BYTES, Outcome, same};
use crate::guest_code;
use hypervisor::{Exit, Kvm};
use vm_memory::{Bytes, GuestAddress};

guest_code!(
    dirty_log_code,
    ".code32",
    "out 0x80, al",
    "mov dword ptr [0x123000], 1",
    "mov dword ptr [0x124ffc], 1",
    "out 0x81, al",
    "mov dword ptr [0x123004], 1",
    "out 0x82, al",
    "hlt",
);

pub fn dirty_log(kvm: &Kvm) -> Outcome {
    let mut guest = Guest::new(kvm, dirty_log_code())?;
    guest.expect_port(0x80)?;
    guest.vm.track_dirty(true)?;
    same("it begins clean", guest.vm.take_dirty()?, vec![])?;
    guest.expect_port(0x81)?;
    guest.memory.write_obj(7_u32, GuestAddress(0x20_0ffe))?;
    same("both kinds of writes", guest.vm.take_dirty()?, vec![0x123, 0x124, 0x200, 0x201])?;
    same("each is told once", guest.vm.take_dirty()?, vec![])?;
    guest.expect_port(0x82)?;
    same("a page becomes dirty again", guest.vm.take_dirty()?, vec![0x123])?;
    guest.vm.track_dirty(false)?;
    guest.memory.write_obj(7_u32, GuestAddress(0x20_0000))?;
    guest.vm.track_dirty(true)?;
    same("the time between is forgotten", guest.vm.take_dirty()?, vec![])
}

guest_code!(
    save_and_restore_code,
    ".code32",
    "mov eax, cr4",
    "or eax, 0x200",
    "mov cr4, eax",
    "mov eax, 0x12345678",
    "movd xmm3, eax",
    "fld1",
    "ldmxcsr [0x9000]",
    "mov ecx, 0x176", // SYSENTER_EIP
    "xor edx, edx",
    "wrmsr",
    "mov ebp, 0x9100",
    "sti",
    "in eax, 0x5c",
    "movd ebx, xmm3",
    "fistp dword ptr [0x9004]",
    "stmxcsr [0x9008]",
    "mov ecx, 0x176",
    "rdmsr",
    "out 0x80, al",
    "hlt",
    ".org 9b + 0x100, 0x90",
    "out 0x90, al",
    "iretd",
);

pub fn save_and_restore(kvm: &Kvm) -> Outcome {
    let mut first = Guest::new(kvm, save_and_restore_code())?;
    first.set_handler(0x21, 0x100)?;
    first.memory.write_obj(0x9f80_u32, GuestAddress(DATA))?;
    first.expect(&Exit::IoIn { port: 0x5c, size: 4, count: 1 })?;
    same("an unfinished read cannot be saved", first.vcpu.save().is_err(), true)?;
    first.vcpu.answer_io(&[1, 2, 3, 4]);
    first.vcpu.set_tpr(5);
    same("nothing comes of it", first.vcpu.settle()?, None)?;
    first.vcpu.inject(0x21)?;
    let state = first.vcpu.save()?;
    same("the rounding", state.floating_point.mxcsr, 0x9f80)?;
    same("the task priority", state.system.cr8, 5)?;
    same("the interrupt", state.events.interrupt, Some((0x21, false)))?;

    let mut second = Guest::new(kvm, &[])?;
    let mut page = vec![0; MEMORY_BYTES];
    first.memory.read_slice(&mut page, GuestAddress(0))?;
    second.memory.write_slice(&page, GuestAddress(0))?;
    second.vcpu.restore(&state)?;
    same("saved again", second.vcpu.save()?, state.clone())?;
    same("the interrupt is still on its way", second.vcpu.can_inject(), false)?;
    for guest in [&mut first, &mut second] {
        guest.expect_port(0x90)?;
        guest.expect_port(0x80)?;
        let registers = guest.vcpu.registers()?;
        same("SSE", registers.rbx, 0x1234_5678)?;
        same("an MSR", registers.rax, 0x1234_5678)?;
        same("x87", guest.word(DATA + 4)?, 1)?;
        same("the rounding", guest.word(DATA + 8)?, 0x9f80)?;
        same("the task priority", guest.vcpu.tpr(), 5)?;
    }
    let (one, other) = (first.vcpu.registers()?, second.vcpu.registers()?);
    same("all registers", one, other)?;
    same("their digest", one.digest(), other.digest())?;
    first.expect(&Exit::Halt)?;
    second.expect(&Exit::Halt)?;
    same("all state at the end", first.vcpu.save()?, second.vcpu.save()?)
}

guest_code!(
    replacing_in_mid_access_code,
    ".code32",
    "out 0x80, al",
    "mov esi, 0x9000",
    "mov ecx, 2500",
    "mov dx, 0x3f9",
    "rep outsb",
    "hlt",
);

pub fn replacing_in_mid_access(kvm: &Kvm) -> Outcome {
    let mut guest = Guest::new(kvm, replacing_in_mid_access_code())?;
    guest.expect_port(0x80)?;
    same("nothing comes of it", guest.vcpu.settle()?, None)?;
    let state = guest.vcpu.save()?;
    guest.expect_port(0x3f9)?;
    guest.vcpu.restore(&state)?;
    same("back where it was", guest.vcpu.save()?, state)?;
    guest.expect_port(0x3f9)?;
    same("none was written yet", guest.vcpu.registers()?.rip > 0, true)
}

guest_code!(
    sixteen_bytes_exchanged_code,
    ".code64",
    "mov rsi, 0x9000",
    "mov r8d, 1000",
    "2:",
    "mov rax, [rsi]",
    "mov rdx, [rsi + 8]",
    "lea rbx, [rax + 1]",
    "lea rcx, [rdx + 2]",
    "lock cmpxchg16b [rsi]",
    "jnz 2b",
    "add rsi, 0x1000",
    "and rsi, 0xfffff",
    "or rsi, 0x100000",
    "dec r8d",
    "jnz 2b",
    "out 0x80, al",
    "hlt",
);

/// With the dirty log on, so that writes fault on the way.
pub fn sixteen_bytes_exchanged(kvm: &Kvm) -> Outcome {
    let mut guest = Guest::new(kvm, sixteen_bytes_exchanged_code())?;
    guest.enter_long_mode()?;
    guest.vm.track_dirty(true)?;
    guest.expect_port(0x80)?;
    same("the first place", (guest.word(DATA)?, guest.word(DATA + 8)?), (1, 2))?;
    let dirty = guest.vm.take_dirty()?;
    same("pages are logged", dirty.contains(&0x9) && dirty.contains(&0x1ff), true)
}
