//! A MAC address as text, bytes and JSON. Where a random one comes from is `identity.rs`'s affair.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An Ethernet address, written `aa:bb:cc:dd:ee:ff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The six bytes in the order they go over the wire.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// A unicast, locally administered address made of `random` (IEEE 802, two lowest bits of the
    /// first byte).
    pub fn local_from(mut random: [u8; 6]) -> Self {
        random[0] = (random[0] & !0x01) | 0x02;
        MacAddress(random)
    }

    /// Whether the address may belong to one network card: neither multicast nor all zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "a MAC address such as 52:54:00:12:34:56";
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(EXPECTED)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(EXPECTED);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| EXPECTED)?;
        }
        if parts.next().is_some() { Err(EXPECTED) } else { Ok(MacAddress(bytes)) }
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|expected| {
            serde::de::Error::custom(format!("\"{text}\" cannot be read: {expected} is needed"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_are_the_same_address() {
        let mac: MacAddress = "52:54:00:aB:cd:ef".parse().unwrap();
        assert_eq!(mac.bytes(), [0x52, 0x54, 0, 0xab, 0xcd, 0xef]);
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
    }

    #[test]
    fn what_is_not_a_mac_address_is_refused() {
        for text in ["", "52:54", "52:54:00:ab:cd:eg", "52:54:00:ab:cd:ef:01", "+2:54:00:ab:cd:ef"]
        {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_generated_address_is_unicast_and_local() {
        for first in 0..=255 {
            let mac = MacAddress::local_from([first, 1, 2, 3, 4, 5]);
            assert!(mac.is_unicast());
            assert_eq!(mac.bytes()[0] & 2, 2);
        }
    }
}
