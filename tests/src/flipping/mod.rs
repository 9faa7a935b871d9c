//! A register of a VM is not what it should be: what no cosmic ray does on time.
//!
//! Owns which register it is, and KVM's part in it. KVM lets nobody but the VMM's own process change a virtual CPU: its
//! thread is made to ([`captive`]), and knows nothing of it afterwards.

pub mod captive;
pub mod find;

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use captive::{Captive, WORD_SIZE};

/// What a VMM calls the thread of its virtual CPU.
const THREAD: &str = "vcpu0";
/// What Linux calls the descriptor of a first virtual CPU.
const DESCRIPTOR: &str = "anon_inode:kvm-vcpu:0";

/// The numbers of KVM's requests, and the words of what they read and write.
const KVM_GET_REGS: u64 = 0x8090_ae81;
const KVM_SET_REGS: u64 = 0x4090_ae82;
const REGISTERS: usize = 18;
/// A thread that follows a log comes to wait for more of it within this time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where `r15` is among the words. A compiler takes it last of those registers that a function must preserve, and Linux's idle
/// loop gets along without it: if the guest waits for an interrupt, it differs whenever the guest comes back to that.
const R15: usize = 15;
/// So often it is looked at, until it is not zero. Linux clears its registers when it begins with an interrupt, and has the
/// old ones back afterwards: whatever is done to a register in between is soon forgotten.
const LOOKS: u32 = 100;
const LOOK_INTERVAL: Duration = Duration::from_millis(17);
/// The lowest bit: a pointer still leads to memory that is there, and the guest does not just crash.
const BIT: u64 = 1;

/// What `r15` was, and what it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flipped {
    /// Before.
    pub before: u64,
    /// Afterwards, as KVM says.
    pub after: u64,
}

/// Flips a bit of `r15` of the VM that the VMM with this process number runs or follows. It does so while the VMM's thread
/// waits for something, and so while its guest stands at a moment; if it can, at one where the guest has a use for `r15`.
///
/// # Errors
/// There is no such process, it has no virtual CPU, its thread does not come to wait, or KVM refuses. The VMM then is as it
/// was.
pub fn flip_register(pid: i32) -> Result<Flipped> {
    let process = Path::new("/proc").join(pid.to_string());
    let thread = find::thread(&process, THREAD)?;
    let descriptor = u64::try_from(find::descriptor(&process, DESCRIPTOR)?)?;
    for looks_left in (0..LOOKS).rev() {
        let mut captive = Captive::take(thread, PATIENCE, |call| call == libc::SYS_futex as u64)?;
        let flipped = flip(&mut captive, descriptor, looks_left == 0);
        captive.release()?;
        if let Some(flipped) = flipped? {
            return Ok(flipped);
        }
        sleep(LOOK_INTERVAL);
    }
    bail!("r15 was looked at {LOOKS} times, and never flipped")
}

/// Flips the bit, unless all of `r15` is zero and that is to be left alone.
fn flip(captive: &mut Captive, descriptor: u64, even_zero: bool) -> Result<Option<Flipped>> {
    let place = captive.scratch(REGISTERS);
    let request = |captive: &mut Captive, name: &str, request: u64| -> Result<()> {
        let result = captive.call(libc::SYS_ioctl as u64, [descriptor, request, place])?;
        ensure!(result == 0, "{name} on the descriptor {descriptor} gave {result} instead of 0");
        Ok(())
    };
    let register = place + (R15 * WORD_SIZE) as u64;
    request(captive, "KVM_GET_REGS", KVM_GET_REGS)?;
    let before = captive.read_word(register)?;
    if before == 0 && !even_zero {
        return Ok(None);
    }
    captive.write_word(register, before ^ BIT)?;
    request(captive, "KVM_SET_REGS", KVM_SET_REGS)?;
    captive.write_word(register, before)?;
    request(captive, "KVM_GET_REGS", KVM_GET_REGS)?;
    let after = captive.read_word(register)?;
    ensure!(after == before ^ BIT, "KVM says that r15 is {after:#x}, and it was {before:#x}");
    Ok(Some(Flipped { before, after }))
}
