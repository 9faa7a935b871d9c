//! What an exit does to the machine: each kind to the model that it addresses.
//!
//! Owns the dispatch of one exit and its answer. Does not own the models, nor when exits happen.

use hypervisor::Exit;

use super::Machine;
use crate::devices::Clock;
use crate::error::Error;
use crate::loader::{RDTSC_PORT, RDTSCP_PORT};

/// Frequency that rewritten `rdtsc` instructions pretend to count at: cycles a microsecond.
const TSC_CYCLES_PER_MICROSECOND: u64 = 2_600;

/// What the machine wants next, after an exit was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The guest goes on when it can.
    Run,
    /// The guest asked for a reset.
    Reset,
    /// The guest switched itself off.
    PowerOff,
}

impl Machine {
    /// Handles one deterministic exit. `exit` must not be [`Exit::Interrupted`], which is not a
    /// moment and has nothing to handle.
    ///
    /// # Errors
    /// The vCPU stopped in a way that no guest recovers from.
    pub fn handle(&mut self, exit: &Exit, clock: &mut dyn Clock) -> Result<Next, Error> {
        match exit {
            Exit::IoIn { port, size, count } => self.io_in(*port, *size, *count, clock),
            Exit::IoOut { port, size, data, .. } => return self.io_out(*port, *size, data, clock),
            Exit::MmioRead { address, size } => self.mmio_in(*address, *size, clock),
            Exit::MmioWrite { address, size, data } => {
                let length = usize::from(*size).min(data.len());
                return Ok(self.mmio_write(*address, &data[..length], clock));
            }
            Exit::Halt => self.halted = true,
            // The window is open now; `run` decides on injection before the next entry.
            Exit::WindowOpen => {}
            // `run` has copied the priority already.
            Exit::SetTpr { .. } => {}
            Exit::MsrRead { index } => {
                self.vcpu.answer_msr(hypervisor::answer_unknown_msr(*index));
            }
            Exit::MsrWrite { index, value } => {
                self.vcpu.answer_msr(hypervisor::accept_unknown_msr_write(*index, *value));
            }
            // A triple fault resets a PC.
            Exit::Shutdown => return Ok(Next::Reset),
            Exit::Interrupted => {}
            Exit::Fault(fault) => return Err(Error::GuestFault(fault.to_string())),
        }
        Ok(Next::Run)
    }

    fn io_in(&mut self, port: u16, size: u8, count: u32, clock: &mut dyn Clock) {
        if port == u16::from(RDTSC_PORT) || port == u16::from(RDTSCP_PORT) {
            return self.rewritten_tsc(port, clock);
        }
        let size = usize::from(size).clamp(1, 4);
        let mut data = [0xff_u8; 4096];
        let length = (size * count as usize).min(data.len() / size * size);
        for item in data[..length].chunks_exact_mut(size) {
            self.io_read(port, item, clock);
        }
        self.vcpu.answer_io(&data[..length]);
    }

    /// A rewritten `rdtsc` (or `rdtscp`) reads recorded time: EAX comes with the port read, EDX
    /// (and ECX) must be set beside it.
    fn rewritten_tsc(&mut self, port: u16, clock: &mut dyn Clock) {
        let cycles = u128::from(clock.now()) * u128::from(TSC_CYCLES_PER_MICROSECOND) / 1_000;
        let cycles = cycles as u64;
        self.vcpu.set_edx((cycles >> 32) as u32);
        if port == u16::from(RDTSCP_PORT) {
            self.vcpu.set_ecx(0);
        }
        self.vcpu.answer_io(&(cycles as u32).to_le_bytes());
    }

    fn io_out(
        &mut self,
        port: u16,
        size: u8,
        data: &[u8],
        clock: &mut dyn Clock,
    ) -> Result<Next, Error> {
        let size = usize::from(size).clamp(1, 4);
        let mut next = Next::Run;
        for item in data.chunks_exact(size) {
            let now = self.io_write(port, item, clock);
            if now != Next::Run {
                next = now;
            }
        }
        Ok(next)
    }

    fn mmio_in(&mut self, address: u64, size: u8, clock: &mut dyn Clock) {
        let mut data = [0xff_u8; 8];
        let length = usize::from(size).min(data.len());
        self.mmio_read(address, &mut data[..length], clock);
        self.vcpu.answer_mmio(&data[..length]);
    }
}
