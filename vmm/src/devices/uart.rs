//! A 16550A serial line, as far as software can tell.
//!
//! Owns the registers and the receive buffer. Bytes sent are gone at once, so the transmitter is
//! always empty; line speed is remembered and ignored. Written here rather than taken from
//! `vm-superio`, whose interrupts are edges that an object of the caller's carries: we need the
//! level of the line as a function of the state.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Bytes that the receive buffer holds. More than the chip's 16, which no driver minds and which
/// makes fewer and larger inputs of what a user types or pastes.
pub(super) const RECEIVE_CAPACITY: usize = 64;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMIT_EMPTY: u8 = 1 << 1;

const IIR_NONE: u8 = 0b0001;
const IIR_TRANSMIT_EMPTY: u8 = 0b0010;
const IIR_RECEIVED: u8 = 0b0100;
const IIR_FIFO: u8 = 0b1100_0000;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVE: u8 = 1 << 1;

const LCR_DIVISOR: u8 = 1 << 7;

const LSR_DATA: u8 = 1 << 0;
const LSR_TRANSMITTER_EMPTY: u8 = 0b0110_0000;

const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;

/// Clear to send, data set ready, carrier: somebody is there.
const MSR_CONNECTED: u8 = 0b1011_0000;

/// Registers of the serial line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartState {
    received: VecDeque<u8>,
    interrupt_enable: u8,
    fifo: bool,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    /// The transmitter ran empty, or its interrupt was enabled, and software was not told yet.
    transmit_pending: bool,
}

impl UartState {
    /// After reset, at 9600 baud.
    pub(super) fn new() -> Self {
        Self {
            received: VecDeque::new(),
            interrupt_enable: 0,
            fifo: false,
            line_control: 0b11,
            modem_control: 0,
            scratch: 0,
            divisor: [12, 0],
            transmit_pending: false,
        }
    }

    /// Whether a model can go on from here.
    pub(super) fn is_consistent(&self) -> bool {
        self.received.len() <= RECEIVE_CAPACITY
    }

    fn cause(&self) -> u8 {
        if self.interrupt_enable & IER_RECEIVED != 0 && !self.received.is_empty() {
            IIR_RECEIVED
        } else if self.interrupt_enable & IER_TRANSMIT_EMPTY != 0 && self.transmit_pending {
            IIR_TRANSMIT_EMPTY
        } else {
            IIR_NONE
        }
    }

    /// Level of the interrupt line. A PC lets it through only with OUT2 set.
    pub(super) fn interrupt(&self) -> bool {
        self.modem_control & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 && self.cause() != IIR_NONE
    }

    /// Bytes that [`Self::receive`] would take now.
    pub(super) fn room(&self) -> usize {
        RECEIVE_CAPACITY.saturating_sub(self.received.len())
    }

    /// Bytes arrive on the line; how many of them were taken.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.received.extend(&bytes[..taken]);
        taken
    }

    /// Reads the register at `offset`, 0 to 7.
    pub(super) fn read(&mut self, offset: u16) -> u8 {
        let divisor = self.line_control & LCR_DIVISOR != 0;
        match offset & 7 {
            0 if divisor => self.divisor[0],
            1 if divisor => self.divisor[1],
            0 => self.received.pop_front().unwrap_or(0),
            1 => self.interrupt_enable,
            2 => self.identify_interrupt(),
            3 => self.line_control,
            4 => self.modem_control,
            5 if self.received.is_empty() => LSR_TRANSMITTER_EMPTY,
            5 => LSR_TRANSMITTER_EMPTY | LSR_DATA,
            6 => self.modem_status(),
            _ => self.scratch,
        }
    }

    fn identify_interrupt(&mut self) -> u8 {
        let cause = self.cause();
        if cause == IIR_TRANSMIT_EMPTY {
            self.transmit_pending = false;
        }
        cause | if self.fifo { IIR_FIFO } else { 0 }
    }

    fn modem_status(&self) -> u8 {
        if self.modem_control & MCR_LOOP == 0 {
            return MSR_CONNECTED;
        }
        // The outputs come back: RTS as CTS, DTR as DSR, OUT1 as ring, OUT2 as carrier.
        let outputs = self.modem_control;
        (outputs & 0b0010) << 3 | (outputs & 0b0001) << 5 | (outputs & 0b1100) << 4
    }

    /// Writes a register; the byte that leaves on the line, if any.
    pub(super) fn write(&mut self, offset: u16, value: u8) -> Option<u8> {
        let divisor = self.line_control & LCR_DIVISOR != 0;
        match offset & 7 {
            0 if divisor => self.divisor[0] = value,
            1 if divisor => self.divisor[1] = value,
            0 => return self.transmit(value),
            1 => {
                // Enabling the transmitter's interrupt while it is empty raises it.
                let enabled = !self.interrupt_enable & value & IER_TRANSMIT_EMPTY != 0;
                self.transmit_pending |= enabled;
                self.interrupt_enable = value & 0x0f;
            }
            2 => {
                let fifo = value & FCR_ENABLE != 0;
                if fifo != self.fifo || value & FCR_CLEAR_RECEIVE != 0 {
                    self.received.clear();
                }
                self.fifo = fifo;
            }
            3 => self.line_control = value,
            4 => self.modem_control = value & 0x1f,
            7 => self.scratch = value,
            _ => {}
        }
        None
    }

    fn transmit(&mut self, value: u8) -> Option<u8> {
        self.transmit_pending = true;
        if self.modem_control & MCR_LOOP == 0 {
            return Some(value);
        }
        self.receive(&[value]);
        None
    }
}
