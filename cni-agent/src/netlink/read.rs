//! Reading the kernel's answers.
//!
//! Only the attributes that we use are looked at. The packet crate's own parser reads all of them and gives a whole message up
//! for one that it does not understand, and a list of devices must not fail because of somebody else's device.
use std::net::IpAddr;

use cni_common::net::Mac;
use netlink_packet_core::{NLA_HEADER_SIZE, NlasIterator};

/// The attributes behind a header of `header` bytes: type without its flag bits, and value.
pub(super) fn attributes(payload: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(payload.get(header..).unwrap_or_default()).map_while(Result::ok).filter_map(|a| {
        let (kind, end) = (a.kind(), usize::from(a.length()));
        Some((kind, a.into_inner().get(NLA_HEADER_SIZE..end)?))
    })
}

/// The attributes nested in `value`.
pub(super) fn nested(value: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(value, 0)
}

/// A number in host order.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// Text, up to its terminating zero.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or(value)).into_owned()
}

/// An address of either family, by its length.
pub(super) fn address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
}

/// An Ethernet address; none for links of another kind.
pub(super) fn mac(value: &[u8]) -> Option<Mac> {
    value.try_into().ok().map(Mac::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type 3 with the value "ab\0" and its padding, then type 1 with the nested flag and a number.
    const TWO: [u8; 16] = [7, 0, 3, 0, b'a', b'b', 0, 0xee, 8, 0, 1, 0x80, 5, 0, 0, 0];

    #[test]
    fn attributes_come_without_padding_and_flag_bits() {
        let all: Vec<_> = nested(&TWO).collect();
        assert_eq!(all, [(3, &b"ab\0"[..]), (1, &[5, 0, 0, 0][..])]);
        assert_eq!(text(all[0].1), "ab");
        assert_eq!(number(all[1].1), Some(u32::from_ne_bytes([5, 0, 0, 0])));
    }

    #[test]
    fn a_cut_attribute_ends_the_list_without_a_panic() {
        for cut in 0..TWO.len() {
            assert!(nested(&TWO[..cut]).count() <= 1, "{cut}");
        }
        assert_eq!(attributes(&TWO, 40).count(), 0);
    }

    #[test]
    fn values_of_another_length_are_no_addresses() {
        assert_eq!(address(&[10, 0, 0, 1]), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(address(&[0; 6]), None);
        assert_eq!(mac(&[0; 4]), None);
        assert_eq!(number(&[0; 2]), None);
    }
}
