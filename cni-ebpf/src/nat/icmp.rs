//! ICMP errors about masqueraded flows, in both directions (RFC 5508 section 4.2).
//!
//! What an error quotes is given back the form that its sender knows: REQ-4 a) and REQ-5 a) ask for the IP and transport headers. The quoted
//! transport checksum, where the quote reaches that far, is adjusted as well: with it the headers are what was sent, byte for byte. It is not checked
//! (REQ-3 c). Type and code stay. ICMP extensions (RFC 4884) lie behind what is changed.
use cni_common::{maps::CT_HI_OPENED, net::Be16, wire::UDP};

use super::{
    entry::{self, Pair, is_of, living, turned},
    family::NatFamily,
    quote::{self, Quote},
    rewrite::{Cover, End, Layout, Mend, Side},
    sum::Diff,
    table::{NatSystem, Step},
};
use crate::{DropReason as D, Packet, Res, family::L3};

/// The ICMP checksum, in the message.
const CSUM: usize = 2;

/// An error from the world to an address of the node: if it is about a packet of a pod's, it is that pod's. The pod's address is answered.
/// `None`: it is no error that quotes a packet, or about one of the node's own.
///
/// # Errors
/// [`NatOrphan`](D::NatOrphan), and [`Short`](D::Short), before anything is written.
#[inline(always)]
pub fn error_back<F, P, S>(p: &mut P, s: &S, at: usize, ip: &L3<F>) -> Res<Option<F::Addr>>
where
    F: NatFamily,
    P: Mend,
    S: NatSystem<F>,
{
    let Some(quote) = quote::read(p, ip, |n| s.blur(n, s.jiffies())) else { return Ok(None) };
    if !F::is_same(&quote.ip.src, &ip.dst) {
        return Ok(None);
    }
    let Some(pod) = entry::back(s, &quote.ip.dst, &quote.ip.src, turned(quote.rest))? else { return Ok(None) };
    translate(p, at, ip, &quote, (Side::SOURCE, Side::DESTINATION), &pod)?;
    Ok(Some(pod.addr))
}

/// An error of a pod's about a packet from the world: translated with its flow, or itself, if the world has opened that by the pod's own address.
///
/// # Errors
/// [`NatOrphan`](D::NatOrphan): it is about no flow that is known, or no error that quotes a packet; so there is no address under which it could leave.
#[inline(always)]
pub fn error_forth<F, P, S>(p: &mut P, s: &S, at: usize, ip: &L3<F>) -> Res<Step>
where
    F: NatFamily,
    P: Mend,
    S: NatSystem<F>,
{
    let Some(quote) = quote::read(p, ip, |n| s.blur(n, s.jiffies())) else { return Err(D::NatOrphan) };
    if !F::is_same(&quote.ip.dst, &ip.src) {
        return Err(D::NatOrphan);
    }
    let pair = Pair::<F>::received(&quote.ip.dst, &quote.ip.src, quote.rest);
    let (key, is_hi) = pair.flow();
    let Some(flow) = living::<F, S>(s, &key) else { return Err(D::NatOrphan) };
    if (flow.verdicts.get() & CT_HI_OPENED != 0) != is_hi {
        return Ok(Step::Itself);
    }
    let Some(said) = s.forth(&key) else { return Err(D::NatOrphan) };
    let node = F::node_end(&said);
    if !is_of::<F, S>(s, &pair.key(&node), &pair.pod) {
        return Err(D::NatOrphan);
    }
    translate(p, at, ip, &quote, (Side::DESTINATION, Side::SOURCE), &node)?;
    Ok(Step::Done)
}

/// One end of the quoted packet, and the error's own other one, become `to`.
#[inline(always)]
fn translate<F: NatFamily, P: Mend>(
    p: &mut P,
    at: usize,
    ip: &L3<F>,
    quote: &Quote<F>,
    (inner, outer): (Side, Side),
    to: &End<F>,
) -> Res<()> {
    let csum_at = ip.l4 + CSUM;
    p.read::<Be16>(csum_at)?;
    let quoted = requote(p, F::end(p, at)?, quote, inner, to)?;
    F::set_address(p, at, outer, &to.addr)?;
    p.mend(csum_at, quoted.folded(), Cover::CONTENT)?;
    if F::ICMP_COVER.is_pseudo() {
        p.mend(csum_at, F::diff(&outer.address(ip), &to.addr).folded(), F::ICMP_COVER)?;
    }
    Ok(())
}

/// Gives one end of the quoted packet its other form; `end`: where the error ends. The change of the sum of all that is quoted.
#[inline(always)]
fn requote<F: NatFamily, P: Packet>(p: &mut P, end: usize, quote: &Quote<F>, side: Side, to: &End<F>) -> Res<Diff> {
    let address = F::diff(&side.address(&quote.ip), &to.addr);
    let layout = Layout::of::<F>(quote.ip.proto);
    if !layout.has_port() {
        return F::set_address(p, quote.at, side, &to.addr);
    }
    let (port_at, csum_at) = (quote.ip.l4 + layout.port(side), quote.ip.l4 + layout.csum());
    if csum_at + 2 <= end {
        p.linear(csum_at as u32 + 2);
    }
    // It is among the bytes that were read to know the flow.
    let port: Be16 = p.read(port_at)?;
    let changed = F::set_address(p, quote.at, side, &to.addr)?.half(port, to.port);
    p.write(port_at, to.port)?;
    let Ok(csum) = p.read::<Be16>(csum_at) else { return Ok(changed) };
    let is_udp = quote.ip.proto == u32::from(UDP);
    if csum_at + 2 > end || is_udp && csum.raw() == 0 {
        return Ok(changed);
    }
    let covered = if layout.cover().is_pseudo() { address } else { Diff::NONE };
    let mended = covered.half(port, to.port).apply(csum);
    let mended = if is_udp && mended.raw() == 0 { Be16::new([0xff; 2]) } else { mended };
    p.write(csum_at, mended)?;
    Ok(changed.half(csum, mended))
}
