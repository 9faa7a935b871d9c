//! A machine's state from elsewhere: decoded, restored, and then used.
//!
//! It comes with a join and with a delta in a log, so a damaged or a forged one must be refused, or
//! do no harm: no panic, no memory, no loop, whatever the guest then does with it.

use arbitrary::{Arbitrary, Unstructured};
use hypervisor::VcpuState;
use virtio_devices::VirtioPci;
use vmm::devices::Platform;
use vmm::machine::MachineState;

use crate::{device, platform};

const STEPS_MAX: usize = 100;

/// First the length of the state in two bytes, then the state, then what happens to it.
pub(crate) fn run(data: &[u8]) {
    if let Ok(state) = postcard::from_bytes::<VcpuState>(data) {
        let bytes = postcard::to_stdvec(&state).expect("it fits in memory");
        assert_eq!(postcard::from_bytes(&bytes), Ok(state));
    }
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let (state, steps) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    let Ok(state) = MachineState::decode(state) else { return };
    let bytes = state.encode().expect("it fits in memory");
    assert_eq!(MachineState::decode(&bytes).ok().as_ref(), Some(&state));
    if let Ok((mut platform, mut devices)) = state.into_models() {
        use_it(&mut platform, &mut devices, &mut Unstructured::new(steps));
    }
}

fn use_it(platform: &mut Platform, devices: &mut [VirtioPci], source: &mut Unstructured<'_>) {
    let memory = device::memory();
    let mut now = 0;
    platform.advance(now);
    for _ in 0..STEPS_MAX {
        if source.is_empty() {
            return;
        }
        if bool::arbitrary(source).unwrap_or(true) {
            let Ok(step) = platform::Step::arbitrary(source) else { return };
            platform::take(platform, &step, &mut now);
        } else {
            let Ok((number, step)) = <(u8, device::Step)>::arbitrary(source) else { return };
            let count = devices.len().max(1);
            if let Some(device) = devices.get_mut(usize::from(number) % count) {
                device::take(device, &memory, &step);
                device::check(device);
            }
        }
    }
}
