//! The power button.
//!
//! Owns the reading of input devices for it. A guest without any has no thread for it either.

use std::fs::File;
use std::io::Read;
use std::sync::mpsc::Sender;
use std::thread;

use super::End;

/// Size of the kernel's `struct input_event`: two numbers of time, then kind, code and value.
const EVENT_SIZE: usize = 24;
const KEY_KIND: u16 = 1;
const POWER_CODE: u16 = 116;
const PRESSED: i32 = 1;

/// Ends the guest when the button is pressed.
pub(super) fn watch(end: &Sender<End>) {
    let Ok(devices) = std::fs::read_dir("/dev/input") else { return };
    for device in devices.flatten() {
        if !device.file_name().to_string_lossy().starts_with("event") {
            continue;
        }
        if let Ok(file) = File::open(device.path()) {
            let end = end.clone();
            thread::spawn(move || wait_for_press(file, &end));
        }
    }
}

fn wait_for_press(mut device: File, end: &Sender<End>) {
    let mut event = [0; EVENT_SIZE];
    while device.read_exact(&mut event).is_ok() {
        if is_press(&event) {
            // Nobody listens any more only if the guest ends already.
            let _ = end.send(End::PowerOff);
        }
    }
}

fn is_press(event: &[u8; EVENT_SIZE]) -> bool {
    let [.., a, b, c, d, e, f, g, h] = *event;
    u16::from_le_bytes([a, b]) == KEY_KIND
        && u16::from_le_bytes([c, d]) == POWER_CODE
        && i32::from_le_bytes([e, f, g, h]) == PRESSED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_press_of_the_power_key_counts() {
        let event = |kind: u8, code: u8, value: u8| {
            let mut event = [0; EVENT_SIZE];
            (event[16], event[18], event[20]) = (kind, code, value);
            event
        };
        assert!(is_press(&event(1, 116, 1)));
        assert!(!is_press(&event(1, 116, 0)));
        assert!(!is_press(&event(1, 30, 1)));
        assert!(!is_press(&event(0, 0, 0)));
    }
}
