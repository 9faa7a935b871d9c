//! A guest's accesses to every virtio device, over queues and buffers of any content.
//!
//! Besides that nothing panics: two devices that are told the same stay equal, with equal memory,
//! though one of them is saved and restored on the way.

use arbitrary::{Arbitrary, Unstructured};
use vm_memory::{Bytes, GuestAddress};

use crate::device::{self, Step};

const STEPS_MAX: usize = 400;

pub(crate) fn run(data: &[u8]) {
    let mut source = Unstructured::new(data);
    let memory = [device::memory(), device::memory()];
    let mut devices = [device::devices(), device::devices()];
    for _ in 0..STEPS_MAX {
        if source.is_empty() {
            break;
        }
        let Ok((number, step)) = <(u8, Step)>::arbitrary(&mut source) else { break };
        let number = usize::from(number) % devices[0].len();
        let effects = device::take(&mut devices[0][number], &memory[0], &step);
        // The other is never saved.
        if !matches!(step, Step::SaveAndRestore) {
            assert_eq!(device::take(&mut devices[1][number], &memory[1], &step), effects);
        }
        device::check(&devices[0][number]);
        assert_eq!(devices[0][number], devices[1][number]);
    }
    assert!(content(&memory[0]) == content(&memory[1]), "equal devices wrote other memory");
}

fn content(memory: &virtio_devices::GuestMemory) -> Vec<u8> {
    let mut bytes = vec![0; device::MEMORY_BYTES];
    memory.read_slice(&mut bytes, GuestAddress(0)).expect("the memory is that large");
    bytes
}
