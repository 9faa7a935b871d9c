//! Ports, memory-mapped registers, MSRs and CPUID.

use super::guest::{DATA, Guest, Outcome, same};
use crate::guest_code;
use hypervisor::{Exit, IoData, Kvm, accept_unknown_msr_write, answer_unknown_msr};
use vm_memory::{Bytes, GuestAddress};

guest_code!(
    ports_and_mmio_code,
    ".code32",
    "mov al, 0x48",
    "mov dx, 0x3f8",
    "out dx, al",
    "mov edx, -1",
    "in eax, 0x5c",
    "mov [0x9000], eax",
    "mov [0x9004], edx",
    "mov eax, [0xd0000000]",
    "mov [0xd0000004], eax",
    "mov word ptr [0xd0000008], 0x1234",
    "in al, 0x5d",
    "mov [0x9008], eax",
    "hlt",
);

pub fn ports_and_mmio(kvm: &Kvm) -> Outcome {
    let mut guest = Guest::new(kvm, ports_and_mmio_code())?;
    let data = IoData::new(&[0x48]);
    guest.expect(&Exit::IoOut { port: 0x3f8, size: 1, count: 1, data })?;
    guest.expect(&Exit::IoIn { port: 0x5c, size: 4, count: 1 })?;
    same("the instruction is readable", guest.vcpu.instruction_bytes(&guest.memory)?[0], 0xe5)?;
    guest.vcpu.answer_io(&0x1122_3344_u32.to_le_bytes());
    guest.vcpu.set_edx(0x5566_7788);
    guest.expect(&Exit::MmioRead { address: 0xd000_0000, size: 4 })?;
    same("eax as answered", guest.word(DATA)?, 0x1122_3344)?;
    same("edx as set", guest.word(DATA + 4)?, 0x5566_7788)?;
    guest.vcpu.answer_mmio(&0xcafe_babe_u32.to_le_bytes());
    same("nothing comes of completing it", guest.vcpu.settle()?, None)?;
    same("eax after completing", guest.vcpu.registers()?.rax, 0xcafe_babe)?;
    let data = [0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0];
    guest.expect(&Exit::MmioWrite { address: 0xd000_0004, size: 4, data })?;
    let data = [0x34, 0x12, 0, 0, 0, 0, 0, 0];
    guest.expect(&Exit::MmioWrite { address: 0xd000_0008, size: 2, data })?;
    guest.expect(&Exit::IoIn { port: 0x5d, size: 1, count: 1 })?;
    guest.expect(&Exit::Halt)?;
    same("what nobody answers is all ones", guest.word(DATA + 8)?, 0xcafe_baff)
}

guest_code!(
    string_output_code,
    ".code32",
    "mov esi, 0x9000",
    "mov ecx, 3000",
    "mov dx, 0x3f9",
    "cld",
    "rep outsb",
    "mov edi, 0xa000",
    "mov ecx, 2",
    "rep insw",
    "hlt",
);

pub fn string_output(kvm: &Kvm) -> Outcome {
    let mut guest = Guest::new(kvm, string_output_code())?;
    let text: Vec<u8> = (0..3000_u32).map(|number| (number % 251) as u8).collect();
    guest.memory.write_slice(&text, GuestAddress(DATA))?;
    let mut received = Vec::new();
    while received.len() < text.len() {
        match guest.vcpu.run()? {
            Exit::IoOut { port: 0x3f9, size: 1, count, data } => {
                same("bytes", data.len(), count as usize)?;
                received.extend_from_slice(&data);
            }
            exit => return Err(format!("after {} bytes: {exit:?}", received.len()).into()),
        }
    }
    same("the bytes in order", received, text)?;
    let mut answers = [[1_u8, 2], [3, 4]].into_iter();
    let exit = loop {
        match guest.vcpu.run()? {
            Exit::IoIn { port: 0x3f9, size: 2, count } => {
                let answer: Vec<u8> = answers.by_ref().take(count as usize).flatten().collect();
                guest.vcpu.answer_io(&answer);
            }
            exit => break exit,
        }
    };
    same("the end", exit, Exit::Halt)?;
    same("what was read", guest.word(0xa000)?, 0x0403_0201)
}

guest_code!(
    model_specific_registers_code,
    ".code32",
    "mov ecx, 0x8b",
    "rdmsr",
    "mov [0x9000], eax",
    "mov ecx, 0xc0011029",
    "wrmsr",
    "mov ecx, 0x277", // PAT: KVM answers it
    "rdmsr",
    "mov [0x9004], eax",
    "mov ecx, 0x1b", // APIC base
    "rdmsr",
    "mov [0x9008], eax",
    "mov ecx, 0x10", // the time stamp counter
    "rdmsr",
    "out 0x71, al", // not reached
    "mov ecx, 0x10",
    ".org 9b + 0x100, 0x90",
    "out 0x90, al", // general protection fault
    "mov ecx, 0x10",
    "wrmsr",
    "hlt",
);

pub fn model_specific_registers(kvm: &Kvm) -> Outcome {
    let mut guest = Guest::new(kvm, model_specific_registers_code())?;
    guest.set_handler(13, 0x100)?;
    guest.expect(&Exit::MsrRead { index: 0x8b })?;
    guest.vcpu.answer_msr(answer_unknown_msr(0x8b));
    match guest.vcpu.run()? {
        Exit::MsrWrite { index, value } => {
            same("the register written", index, 0xc001_1029)?;
            guest.vcpu.answer_msr(accept_unknown_msr_write(index, value));
        }
        exit => return Err(format!("expected a write, but got {exit:?}").into()),
    }
    guest.expect(&Exit::MsrRead { index: 0x10 })?;
    same("the microcode's revision", guest.word(DATA)?, 0x0100_0065)?;
    same("the page attributes after reset", guest.word(DATA + 4)?, 0x0007_0406)?;
    same("the APIC is on", guest.word(DATA + 8)?, 0xfee0_0900)?;
    guest.vcpu.answer_msr(answer_unknown_msr(0x10));
    guest.expect_port(0x90)?;
    guest.expect(&Exit::MsrWrite { index: 0x10, value: 0xfee0_0900 })?;
    guest.vcpu.answer_msr(None);
    guest.expect_port(0x90)
}

guest_code!(
    processor_identification_code,
    ".code32",
    "mov eax, 1",
    "cpuid",
    "mov [0x9000], ebx",
    "mov [0x9004], ecx",
    "mov [0x9008], edx",
    "mov eax, 0x40000000",
    "xor ecx, ecx",
    "cpuid",
    "mov [0x900c], ebx",
    "mov eax, 0x80000007",
    "xor ecx, ecx",
    "cpuid",
    "mov [0x9010], edx",
    "mov eax, 0x8000001e",
    "xor ecx, ecx",
    "cpuid",
    "mov [0x9014], eax",
    "hlt",
);

pub fn processor_identification(kvm: &Kvm) -> Outcome {
    let mut guest = Guest::new(kvm, processor_identification_code())?;
    guest.expect(&Exit::Halt)?;
    same("APIC id and number of processors", guest.word(DATA)?, 0x0001_0800)?;
    let (ecx, edx) = (guest.word(DATA + 4)?, guest.word(DATA + 8)?);
    same("neither hypervisor, rdrand, xsave, tsc deadline nor x2apic", ecx & 0xc520_0000, 0)?;
    same("no time stamp counter", edx & 1 << 4, 0)?;
    same("an APIC", edx >> 9 & 1, 1)?;
    // Out of range, Intel processors give the last basic leaf and AMD's give zeros.
    let signature = guest.word(DATA + 12)?;
    same("no signature of KVM", signature == u32::from_le_bytes(*b"KVMK"), false)?;
    same("no invariant time stamp counter", guest.word(DATA + 16)? & 1 << 8, 0)
}
