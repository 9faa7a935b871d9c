//! From a configuration to a machine: which device sits in which slot, guest RAM, the kernel.
//!
//! Owns the order of PCI slots and the first state of everything. Does not own back ends
//! (`crate::shell::world`) or the meaning of addresses (`crate::board`).

use std::time::{SystemTime, UNIX_EPOCH};

use hypervisor::{Cpuid, GuestMemory, Kvm, VcpuState};
use virtio_devices::{BlockConfig, NetConfig as NetModel, PciSlot, VirtioPci};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::board::acpi::{AcpiConfig, write_acpi};
use crate::board::layout;
use crate::config::{ConsoleMode, FtConfig, VmConfig};
use crate::devices::{Platform, PlatformConfig};
use crate::engine::Rebuild;
use crate::error::Error;
use crate::loader::{self, LoadOptions, LoadRequest, MemoryKind, MemoryMapEntry};
use crate::machine::Machine;

/// What sits in a PCI slot. The place in [`slots`]' list is the device's index everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The virtio console.
    Console,
    /// The disk with this place in the configuration.
    Disk(usize),
    /// The network device with this place in the configuration.
    Net(usize),
    /// The entropy device.
    Rng,
}

/// The slots of a configuration, in order.
pub fn slots(config: &VmConfig) -> Vec<Slot> {
    let console = (config.console.mode != ConsoleMode::Off).then_some(Slot::Console);
    console
        .into_iter()
        .chain((0..config.disks().len()).map(Slot::Disk))
        .chain((0..config.nets().len()).map(Slot::Net))
        .chain([Slot::Rng])
        .collect()
}

/// Guest RAM of `size` bytes, all zero.
///
/// # Errors
/// The host has not that much to give.
pub fn memory(size: u64) -> Result<GuestMemory, Error> {
    // The kernel gives out more than there is, and ends a process when the rest is asked for.
    if let Some(most) = host_memory_bytes()
        && size > most
    {
        return Err(Error::Memory { size, reason: format!("this host has {most} bytes") });
    }
    let ranges: Vec<(GuestAddress, usize)> = layout::ram_regions(size)
        .into_iter()
        .map(|(start, size)| (GuestAddress(start), size as usize))
        .collect();
    GuestMemory::from_ranges(&ranges)
        .map_err(|error| Error::Memory { size, reason: error.to_string() })
}

/// RAM and swap of this host in bytes, if it tells.
fn host_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((kib("MemTotal:")? + kib("SwapTotal:").unwrap_or(0)) << 10)
}

/// Everything that is needed to put a machine into its first state, again and again.
pub struct Blueprint {
    config: VmConfig,
    /// Sectors of each disk.
    capacities: Vec<u64>,
    boot_time_unix_ns: i64,
    rewrite_tsc: bool,
    /// The vCPU as KVM made it.
    pristine: Option<VcpuState>,
    /// The guest's kernel is one that can be replayed.
    treated: bool,
    /// Kernel and initramfs, if they were read and are not in memory yet.
    prepared: Option<loader::Prepared>,
}

impl Blueprint {
    /// `capacities` are the sectors of each disk of `config`, in its order.
    pub fn new(config: VmConfig, capacities: Vec<u64>, rewrite_tsc: bool) -> Self {
        let boot_time_unix_ns = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
        Self {
            config,
            capacities,
            boot_time_unix_ns,
            rewrite_tsc,
            pristine: None,
            treated: true,
            prepared: None,
        }
    }

    /// Reads and checks kernel and initramfs, so that what is wrong with them is known before
    /// anything is set up for them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read_kernel(&mut self) -> Result<(), Error> {
        let prepared = loader::prepare(&self.load_request()?)?;
        self.treated = prepared.is_treated();
        self.prepared = Some(prepared);
        Ok(())
    }

    /// Whether the kernel that was read is one that can be replayed once it is loaded.
    pub fn is_treated(&self) -> bool {
        self.treated
    }

    /// The machine in its first state, with its kernel loaded.
    ///
    /// # Errors
    /// KVM, RAM or the kernel file.
    pub fn build(&mut self, kvm: &Kvm, cpuid: &Cpuid) -> Result<Machine, Error> {
        let memory = memory(self.config.memory.size)?;
        let mut machine = Machine::new(kvm, memory, cpuid, self.platform(), self.functions()?)?;
        self.pristine = Some(machine.save_vcpu()?);
        self.load(&mut machine)?;
        Ok(machine)
    }

    /// A machine without a state, for a log to fill. It can be reset later all the same, if the
    /// kernel's file is on this host, too.
    ///
    /// # Errors
    /// KVM.
    pub fn build_blank(
        &mut self,
        kvm: &Kvm,
        cpuid: &Cpuid,
        memory: GuestMemory,
    ) -> Result<Machine, Error> {
        let mut machine = Machine::new(kvm, memory, cpuid, self.platform(), Vec::new())?;
        self.pristine = Some(machine.save_vcpu()?);
        Ok(machine)
    }

    fn platform(&self) -> Platform {
        Platform::new(PlatformConfig {
            serial: self.config.serial.mode != ConsoleMode::Off,
            boot_time_unix_ns: self.boot_time_unix_ns,
        })
    }

    fn functions(&self) -> Result<Vec<VirtioPci>, Error> {
        slots(&self.config)
            .into_iter()
            .enumerate()
            .map(|(index, slot)| self.function(index as u16, slot))
            .collect()
    }

    fn function(&self, index: u16, slot: Slot) -> Result<VirtioPci, Error> {
        let number = index as u8 + 1;
        let pci = PciSlot { number, bar_address: layout::bar_address(number) as u32 };
        Ok(match slot {
            Slot::Console => VirtioPci::new_console(index, pci)?,
            Slot::Rng => VirtioPci::new_rng(index, pci)?,
            Slot::Disk(place) => {
                let disk = &self.config.disks()[place];
                let config = BlockConfig {
                    capacity_sectors: self.capacities[place],
                    read_only: disk.readonly,
                    serial: disk.serial.clone().or(disk.id.clone()).unwrap_or_default(),
                };
                VirtioPci::new_block(index, config, pci)?
            }
            Slot::Net(place) => {
                let net = &self.config.nets()[place];
                let mac = net.mac.map(|mac| mac.bytes()).unwrap_or_default();
                VirtioPci::new_net(index, NetModel { mac, mtu: net.mtu }, pci)?
            }
        })
    }

    /// Puts tables, kernel and initramfs into memory and the vCPU at the kernel's entry.
    fn load(&mut self, machine: &mut Machine) -> Result<(), Error> {
        let acpi = AcpiConfig { cpus: 1, serial: self.config.serial.mode != ConsoleMode::Off };
        write_acpi(&machine.memory, &acpi).map_err(|error| Error::Memory {
            size: self.config.memory.size,
            reason: error.to_string(),
        })?;
        let loaded = self.load_kernel(&machine.memory)?;
        log::info!(
            "kernel loaded; {} rdtsc and {} rdtscp instructions rewritten",
            loaded.tsc_sites.rdtsc,
            loaded.tsc_sites.rdtscp
        );
        machine.vcpu.set_pvh_entry(loaded.entry, loaded.start_info)?;
        Ok(())
    }

    fn load_kernel(&mut self, memory: &GuestMemory) -> Result<loader::Loaded, Error> {
        let prepared = self.prepared.take();
        let request = self.load_request()?;
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => loader::prepare(&request)?,
        };
        Ok(prepared.write(memory, &request)?)
    }

    fn load_request(&self) -> Result<LoadRequest<'_>, Error> {
        let payload = &self.config.payload;
        let kernel = payload
            .kernel
            .as_deref()
            .ok_or_else(|| Error::Refused("there is no kernel to boot; give --kernel".into()))?;
        Ok(LoadRequest {
            kernel,
            initramfs: payload.initramfs.as_deref(),
            cmdline: payload.cmdline.as_deref().unwrap_or_default(),
            rsdp_address: layout::RSDP_ADDRESS,
            memory_map: memory_map(self.config.memory.size),
            options: LoadOptions {
                rewrite_tsc: self.rewrite_tsc,
                may_leave_tsc: !self.config.ft.as_ref().is_some_and(FtConfig::needs_replay),
            },
        })
    }
}

impl Rebuild for Blueprint {
    fn rebuild(&mut self, machine: &mut Machine) -> Result<(), Error> {
        if let Some(state) = &self.pristine {
            machine.restore_vcpu(state)?;
        }
        clear(&machine.memory)?;
        machine.power_cycle();
        self.load(machine)
    }
}

/// The board's memory map in the loader's words.
fn memory_map(size: u64) -> Vec<MemoryMapEntry> {
    layout::memory_map(size)
        .into_iter()
        .map(|range| MemoryMapEntry {
            start: range.address,
            size: range.size,
            kind: match range.kind {
                layout::MemoryKind::Ram => MemoryKind::Ram,
                layout::MemoryKind::Reserved => MemoryKind::Reserved,
            },
        })
        .collect()
}

/// Makes all of guest RAM zero.
fn clear(memory: &GuestMemory) -> Result<(), Error> {
    let zeros = vec![0; 1 << 20];
    for region in memory.iter() {
        let mut at = region.start_addr().0;
        let mut left = region.len();
        while left > 0 {
            let step = left.min(zeros.len() as u64);
            memory
                .write_slice(&zeros[..step as usize], GuestAddress(at))
                .map_err(|_| Error::NoSuchPage(at >> 12))?;
            at += step;
            left -= step;
        }
    }
    Ok(())
}
