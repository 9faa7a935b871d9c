//! The packet that tells a network where a MAC address has moved to.
//!
//! Owns its bytes only; when it is sent is the shell's decision.

use crate::effect::NET_HEADER_BYTES;

const ETHERTYPE_RARP: [u8; 2] = [0x80, 0x35];
/// Ethernet, IPv4, 6 and 4 bytes of address, request reverse (RFC 903).
const RARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 3];
/// The shortest Ethernet frame without its checksum.
const FRAME_BYTES: usize = 60;

/// A broadcast RARP request from `mac` about `mac`, behind an empty virtio-net header. Switches
/// learn the port from its source address; nobody answers it.
pub fn announcement(mac: [u8; 6]) -> Vec<u8> {
    let mut packet = vec![0; NET_HEADER_BYTES];
    packet.extend_from_slice(&[0xff; 6]);
    packet.extend_from_slice(&mac);
    packet.extend_from_slice(&ETHERTYPE_RARP);
    packet.extend_from_slice(&RARP_REQUEST);
    for _sender_and_target in 0..2 {
        packet.extend_from_slice(&mac);
        packet.extend_from_slice(&[0; 4]);
    }
    packet.resize(NET_HEADER_BYTES + FRAME_BYTES, 0);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announcement_is_a_broadcast_from_the_guest_of_minimal_size() {
        let mac = [2, 0, 0, 1, 2, 3];
        let packet = announcement(mac);
        assert_eq!(packet.len(), 12 + 60);
        assert_eq!(packet[..12], [0; 12]);
        assert_eq!(packet[12..18], [0xff; 6]);
        assert_eq!(packet[18..24], mac);
        assert_eq!(packet[24..26], [0x80, 0x35]);
        assert_eq!(packet[34..40], mac, "sender");
        assert_eq!(packet[44..50], mac, "target");
    }
}
