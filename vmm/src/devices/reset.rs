//! The three old ways to reset a PC: keyboard controller, port 0x92, port 0xcf9.
//!
//! None has state. There is no keyboard controller; its status port reads as idle, because a kernel
//! told to reset that way waits for that first.

/// Keyboard controller's status and command.
pub(super) const KEYBOARD_PORT: u16 = 0x64;
/// "System control port A" of the PS/2.
pub(super) const CONTROL_PORT: u16 = 0x92;

const KEYBOARD_PULSE_RESET: u8 = 0xfe;

/// Reads a port of this module.
pub(super) fn read(port: u16) -> u8 {
    match port {
        // The A20 line is open.
        CONTROL_PORT => 0x02,
        _ => 0,
    }
}

/// Whether writing `value` to a port of this module resets the machine.
pub(super) fn resets(port: u16, value: u8) -> bool {
    match port {
        KEYBOARD_PORT => value == KEYBOARD_PULSE_RESET,
        CONTROL_PORT => value & 0x01 != 0,
        // Bit 2 starts the reset, bits 1 and 3 say how thorough it is to be.
        _ => value & 0x04 != 0,
    }
}
