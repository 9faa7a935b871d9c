//! One guest instruction as text, for people who read a divergence.

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

/// The bytes and the mnemonic of the first instruction in `bytes`, read as 64-bit code.
pub(super) fn text(bytes: &[u8]) -> String {
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    let length = instruction.len().min(bytes.len());
    let digits: Vec<String> = bytes[..length].iter().map(|byte| format!("{byte:02x}")).collect();
    let mut mnemonic = String::new();
    IntelFormatter::new().format(&instruction, &mut mnemonic);
    format!("{} ({mnemonic})", digits.join(" "))
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn an_instruction_is_shown_with_its_bytes() {
        assert_eq!(text(&[0x0f, 0x31, 0x90]), "0f 31 (rdtsc)");
        assert_eq!(text(&[]), " ((bad))");
    }
}
