//! Explicit congestion notification through the tunnel (RFC 6040, normal mode).
use crate::{DropReason as D, Packet, Res, family::Family};

/// Not ECN-capable.
pub const NOT_ECT: u32 = 0;
/// ECN-capable, codepoint 1.
pub const ECT_1: u32 = 1;
/// Congestion experienced.
pub const CE: u32 = 3;

/// The two bits of DSCP/ECN.
#[inline(always)]
pub const fn bits(tos: u32) -> u32 {
    tos & 3
}

/// The inner codepoint after decapsulation, `None` to drop (RFC 6040, figure 4).
#[inline(always)]
pub const fn combine(outer: u32, inner: u32) -> Option<u32> {
    match (outer, inner) {
        (CE, NOT_ECT) => None,
        (CE, _) => Some(CE),
        (ECT_1, 2) => Some(ECT_1),
        _ => Some(inner),
    }
}

/// Writes what [`combine`] says into the inner header at `off`. Out of line: congestion marks are rare.
#[inline(never)]
pub fn carry<F: Family, P: Packet>(p: &mut P, off: usize, outer: u32, inner: u32) -> Res<()> {
    match combine(outer, inner) {
        None => Err(D::EcnNotCapable),
        Some(ecn) if ecn == inner => Ok(()),
        Some(ecn) => F::set_ecn(p, off, ecn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decapsulation_follows_figure_4_of_rfc_6040() {
        const ECT_0: u32 = 2;
        let table = [
            // outer Not-ECT, ECT(0), ECT(1), CE for each inner
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, row) in table {
            for (outer, want) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
                assert_eq!(combine(outer, inner), want, "outer {outer}, inner {inner}");
            }
        }
    }
}
