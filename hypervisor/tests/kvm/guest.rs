//! A very small machine for checks against a real KVM: 4 MiB of memory, flat segments, an interrupt
//! table, and code written in assembly beside the check that runs it.
//!
//! Addresses: code at 0x1000, tables from 0x2000, the stack ends at 0x8000, data from 0x9000,
//! page tables for 64-bit mode from 0x10000.

use hypervisor::{Cpuid, Exit, GuestMemory, Kvm, Segment, Vcpu, Vm, guest_cpuid};
use vm_memory::{Bytes, GuestAddress};

/// What a check gives: nothing, or what went wrong.
pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

pub const CODE: u64 = 0x1000;
const GDT: u64 = 0x2000;
const IDT: u64 = 0x2800;
const TABLE_REGISTERS: u64 = 0x2100;
const PAGE_TABLES: u64 = 0x10000;
pub const DATA: u64 = 0x9000;
pub const MEMORY_BYTES: usize = 4 << 20;

/// Defines a function that gives the bytes of some 32-bit or 64-bit guest code. The label 9 is at
/// its beginning.
#[macro_export]
macro_rules! guest_code {
    ($name:ident, $mode:literal, $($line:literal),+ $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata",
            concat!(".globl ", stringify!($name), "_begin"),
            concat!(".globl ", stringify!($name), "_end"),
            concat!(stringify!($name), "_begin:"),
            "9:",
            $mode,
            $($line),+,
            ".code64",
            concat!(stringify!($name), "_end:"),
            ".popsection",
        );

        fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!(stringify!($name), "_begin")]
                static BEGIN: u8;
                #[link_name = concat!(stringify!($name), "_end")]
                static END: u8;
            }
            let (begin, end) = (&raw const BEGIN, &raw const END);
            // SAFETY: both labels are in the one block of read-only bytes above, begin before end.
            unsafe { std::slice::from_raw_parts(begin, end.offset_from_unsigned(begin)) }
        }
    };
}

pub struct Guest {
    pub vm: Vm,
    pub vcpu: Vcpu,
    pub memory: GuestMemory,
}

impl Guest {
    /// A machine that is about to run `code` at 0x1000, in 32-bit mode, with interrupts off.
    pub fn new(kvm: &Kvm, code: &[u8]) -> Outcome<Self> {
        Self::with_cpuid(kvm, code, &guest_cpuid(&kvm.supported_cpuid()?))
    }

    fn with_cpuid(kvm: &Kvm, code: &[u8], cpuid: &Cpuid) -> Outcome<Self> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])?;
        memory.write_slice(code, GuestAddress(CODE))?;
        // Null, 32-bit code, data, a place for the task segment (two entries), 64-bit code.
        let descriptors: [u64; 6] =
            [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0, 0, 0x00af_9b00_0000_ffff];
        for (place, descriptor) in (0..).zip(descriptors) {
            memory.write_obj(descriptor, GuestAddress(GDT + place * 8))?;
        }
        write_table_register(&memory, TABLE_REGISTERS, 6 * 8 - 1, GDT)?;
        write_table_register(&memory, TABLE_REGISTERS + 8, 256 * 8 - 1, IDT)?;
        let mut vm = kvm.create_vm()?;
        vm.map_memory(&memory)?;
        let mut vcpu = vm.create_vcpu(cpuid)?;
        vcpu.bind_to_this_thread()?;
        vcpu.set_pvh_entry(CODE, 0x6000)?;
        let mut state = vcpu.save()?;
        state.system.gdt = hypervisor::DescriptorTable { base: GDT, limit: 6 * 8 - 1 };
        state.system.idt = hypervisor::DescriptorTable { base: IDT, limit: 256 * 8 - 1 };
        state.registers.rsp = 0x8000;
        vcpu.restore(&state)?;
        Ok(Self { vm, vcpu, memory })
    }

    /// Directs an interrupt or exception (32-bit) to so many bytes into the code.
    pub fn set_handler(&self, vector: u8, offset: u64) -> Outcome {
        let address = CODE + offset;
        let gate = (address & 0xffff) | 0x8 << 16 | 0x8e00 << 32 | (address >> 16 & 0xffff) << 48;
        self.memory.write_obj(gate, GuestAddress(IDT + u64::from(vector) * 8))?;
        Ok(())
    }

    /// Switches to 64-bit mode, with the first gigabyte mapped to itself by 2 MiB pages.
    pub fn enter_long_mode(&mut self) -> Outcome {
        let tables = [PAGE_TABLES, PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000];
        self.memory.write_obj(tables[1] | 3, GuestAddress(tables[0]))?;
        self.memory.write_obj(tables[2] | 3, GuestAddress(tables[1]))?;
        for page in 0..512 {
            self.memory.write_obj(page << 21 | 0x83, GuestAddress(tables[2] + page * 8))?;
        }
        let mut state = self.vcpu.save()?;
        state.system.cr3 = PAGE_TABLES;
        state.system.cr4 |= 1 << 5 | 1 << 9;
        state.system.cr0 |= 1 << 31;
        state.system.efer = 1 << 8 | 1 << 10;
        state.system.cs = Segment { selector: 0x28, l: 1, db: 0, ..state.system.cs };
        self.vcpu.restore(&state)?;
        Ok(())
    }

    /// Runs and demands a certain exit.
    pub fn expect(&mut self, wanted: &Exit) -> Outcome {
        let exit = self.vcpu.run()?;
        if exit == *wanted {
            return Ok(());
        }
        let registers = self.vcpu.registers()?;
        Err(format!("expected {wanted:x?}, but got {exit:x?} with\n{registers}").into())
    }

    /// Runs and demands that a byte is written to a port.
    pub fn expect_port(&mut self, port: u16) -> Outcome {
        let exit = self.vcpu.run()?;
        match exit {
            Exit::IoOut { port: found, .. } if found == port => Ok(()),
            exit => {
                let registers = self.vcpu.registers()?;
                Err(format!("expected port {port:#x}, but got {exit:x?} with\n{registers}").into())
            }
        }
    }

    pub fn word(&self, address: u64) -> Outcome<u32> {
        Ok(self.memory.read_obj(GuestAddress(address))?)
    }
}

fn write_table_register(memory: &GuestMemory, place: u64, limit: u16, base: u64) -> Outcome {
    memory.write_obj(limit, GuestAddress(place))?;
    memory.write_obj(base, GuestAddress(place + 2))?;
    Ok(())
}

/// Demands that two values are equal.
#[expect(clippy::needless_pass_by_value)] // callers read better without borrowing literals
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Outcome {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what}: found {found:#x?}, wanted {wanted:#x?}").into())
}
