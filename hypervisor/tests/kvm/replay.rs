//! The promise the project rests on, in small: the same guest takes the same exits, with the same
//! registers, however the host interrupts it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::guest::{Guest, Outcome, same};
use crate::guest_code;
use hypervisor::{Exit, Kvm};

guest_code!(
    busy_code,
    ".code32",
    "mov ebp, 0x12345",
    "xor edi, edi",
    "2:",
    "imul ebp, ebp, 1103515245", // pseudo-random length of the next stretch
    "add ebp, 12345",
    "mov ecx, ebp",
    "shr ecx, 18",
    "inc ecx",
    "3:",
    "mov [0x100000 + ecx * 4], ecx",
    "dec ecx",
    "jnz 3b",
    "cli",
    "in al, 0x40", // interrupts are off: an interrupt that comes here waits for its window
    "add ebx, eax",
    "sti",
    "inc ebx",
    "inc edi",
    "out 0x41, al",
    "pushfd",
    "cli",
    "popfd",
    "inc edi",
    "test ebp, 0x40000",
    "jz 2b",
    "sti",
    "hlt",
    "jmp 2b",
    ".org 9b + 0x100, 0x90",
    "inc esi",
    "push eax",
    "mov eax, [esp + 4]",
    "xor ebx, eax", // where the interrupt struck becomes part of all that follows
    "mov [0xfee000b0], eax",
    "pop eax",
    "iretd",
);

/// An exit, and the digest of the registers at it.
type Moment = (u64, Exit);

/// All exits, and how many windows there were among them.
fn run_once(kvm: &Kvm, exits: usize) -> Outcome<(Vec<Moment>, u32)> {
    let mut guest = Guest::new(kvm, busy_code())?;
    guest.set_handler(0x20, 0x100)?;
    let mut trace = Vec::new();
    let (mut pending, mut windows) = (0_u32, 0);
    while trace.len() < exits {
        if pending > 0 && guest.vcpu.can_inject() {
            guest.vcpu.inject(0x20)?;
            pending -= 1;
        }
        guest.vcpu.request_window(pending > 0);
        let exit = guest.vcpu.run()?;
        match &exit {
            Exit::Interrupted => continue,
            Exit::IoIn { .. } => {
                guest.vcpu.answer_io(&[trace.len() as u8]);
                // Deterministic, and at both kinds of exits.
                pending += u32::from(trace.len() % 3 == 0);
            }
            Exit::IoOut { .. } => pending += u32::from(trace.len() % 7 == 0),
            Exit::Halt => pending += 1,
            Exit::WindowOpen => windows += 1,
            Exit::MmioWrite { address: 0xfee0_00b0, .. } => {}
            exit => return Err(format!("after {} exits: {exit:?}", trace.len()).into()),
        }
        trace.push((guest.vcpu.registers()?.digest(), exit));
    }
    Ok((trace, windows))
}

pub fn same_exits_in_spite_of_kicks(kvm: &Kvm) -> Outcome {
    let exits = 5_000;
    let (calm, windows) = run_once(kvm, exits)?;
    same("there are windows to get wrong", windows > 100, true)?;
    for period_us in [37, 150, 611] {
        let (disturbed, _) = disturbed(period_us, || run_once(kvm, exits))?;
        let differs = calm.iter().zip(&disturbed).position(|(one, other)| one != other);
        if let Some(place) = differs {
            let (from, to) = (place.saturating_sub(3), (place + 3).min(exits));
            let (one, other) = (&calm[from..to], &disturbed[from..to]);
            let text = format!("period {period_us} µs, exit {place}: {one:x?}\nthen {other:x?}");
            return Err(text.into());
        }
    }
    Ok(())
}

/// Signals this thread all the time while `what` runs.
fn disturbed<T>(period_us: u64, what: impl FnOnce() -> T) -> T {
    // SAFETY: a handler that does nothing, for a signal that nobody else uses.
    unsafe { libc::signal(libc::SIGUSR1, ignore as extern "C" fn(i32) as libc::sighandler_t) };
    // SAFETY: no arguments, cannot fail.
    let thread = unsafe { libc::pthread_self() };
    let done = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&done);
    let disturber = std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_micros(period_us));
            // SAFETY: the thread lives until this one is joined.
            unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
        }
    });
    let result = what();
    done.store(true, Ordering::Relaxed);
    disturber.join().expect("the disturbing thread only sleeps and signals");
    result
}

extern "C" fn ignore(_signal: i32) {}
