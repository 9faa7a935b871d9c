//! The frame that tells the network's switches where a MAC lives now.
//!
//! Owns the bytes of a RARP request (RFC 903), which every switch learns from and no host
//! answers. Does not own when it is sent.

/// Length of a virtio-net header with the modern layout.
const VIRTIO_NET_HEADER_BYTES: usize = 12;
/// Ethernet frames are at least this long without their checksum.
const FRAME_LEAST_BYTES: usize = 60;
const ETHERTYPE_RARP: u16 = 0x8035;
const HARDWARE_ETHERNET: u16 = 1;
const PROTOCOL_IPV4: u16 = 0x0800;
const REQUEST_REVERSE: u16 = 3;

/// A RARP request from `mac`, as a back end takes it: behind an empty virtio-net header.
pub(super) fn reverse_arp(mac: [u8; 6]) -> Vec<u8> {
    let mut bytes = vec![0; VIRTIO_NET_HEADER_BYTES];
    bytes.extend([0xff; 6]);
    bytes.extend(mac);
    bytes.extend(ETHERTYPE_RARP.to_be_bytes());
    bytes.extend(HARDWARE_ETHERNET.to_be_bytes());
    bytes.extend(PROTOCOL_IPV4.to_be_bytes());
    bytes.extend([6, 4]);
    bytes.extend(REQUEST_REVERSE.to_be_bytes());
    for _ in 0..2 {
        bytes.extend(mac);
        bytes.extend([0; 4]);
    }
    bytes.resize(VIRTIO_NET_HEADER_BYTES + FRAME_LEAST_BYTES, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_sees_a_broadcast_from_the_guest() {
        let mac = [0x52, 0x54, 0, 1, 2, 3];
        let frame = reverse_arp(mac);
        assert_eq!(frame.len(), 72);
        assert_eq!(frame[12..18], [0xff; 6]);
        assert_eq!(frame[18..24], mac);
        assert_eq!(frame[24..26], [0x80, 0x35]);
        assert_eq!(frame[32..34], [0, 3]);
        assert_eq!(frame[34..40], mac);
    }
}
