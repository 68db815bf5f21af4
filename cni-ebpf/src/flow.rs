//! What pods and the node's own stack send.
use cni_common::{
    drop::Point,
    maps::{Config, Endpoint, Local, NODE_SELF, OWN_ANNOUNCED, REMOTE_NODE},
    net::{Be16, Mac, Ports},
    wire::*,
};

use crate::{
    DropReason as D, Env, Of, Packet, Res, System, Tables, Verdict,
    ct::{self, Ask, EndSets, Ends, Track, Way},
    encap::{self, Inner},
    family::{self, Family, L3, V4, V6},
    nat, neigh,
};

/// Headers that must be readable before parsing: Ethernet, the network header and the ports.
pub(crate) const L4_WANT: u32 = 4;

/// A frame that a pod sent.
#[inline(always)]
pub fn from_pod<P: Packet, S: System<P>>(p: &mut P, s: &S) -> Res<Verdict> {
    let cfg = s.config().ok_or(D::NoConfig)?;
    let epoch = s.epoch();
    let ep = s.endpoint(p.ifindex()).ok_or(D::NoEndpoint)?;
    let eth: Eth = p.read(0)?;
    if !same_mac(&eth.src, &ep.mac) {
        return Err(D::SourceMac);
    }
    if p.has_vlan() {
        return Err(D::Vlan);
    }
    // The group bit: multicast and broadcast (IEEE 802.3 section 3.2.3).
    if eth.dst.bytes[0] & 1 != 0 {
        return neigh::to_group(p, ep, eth.proto);
    }
    match eth.proto {
        ETH_IP4 => pod::<V4, P, S>(p, s, cfg, epoch, ep),
        ETH_IP6 => pod::<V6, P, S>(p, s, cfg, epoch, ep),
        ETH_ARP => neigh::arp(p, ep),
        _ => Err(D::UnknownL3),
    }
}

/// Arrays of six bytes compare byte by byte; three words do it in three steps.
#[inline(always)]
fn same_mac(a: &Mac, b: &Mac) -> bool {
    let ([a0, a1, a2], [b0, b1, b2]): ([u16; 3], [u16; 3]) = (bytemuck::must_cast(*a), bytemuck::must_cast(*b));
    (a0 ^ b0) | (a1 ^ b1) | (a2 ^ b2) == 0
}

#[inline(always)]
fn pod<F: Family, P: Packet, S: Env + Of<P, F>>(
    p: &mut P,
    s: &S,
    cfg: &Config,
    epoch: u32,
    ep: &Endpoint,
) -> Res<Verdict> {
    let ip = family::parse::<F, P>(p, ETH_LEN, L4_WANT)?;
    if !F::is_source(ep, &ip.src) {
        return Err(D::SourceAddress);
    }
    if F::is_multicast(&ip.dst) {
        return Err(D::Multicast);
    }
    let ports = family::ports(p, &ip)?;
    // Two hashes know addresses, and a miss costs nearly what a hit does: the likelier one is asked first.
    let far = if F::is_probably_here(cfg, &ip.dst) { None } else { s.remote(&ip.dst) };
    let near = if far.is_none() { s.local(&ip.dst) } else { None };
    let node = if near.is_some() {
        NODE_SELF
    } else {
        let to_tunnel_port =
            ip.proto == u32::from(UDP) && ports.dst().raw() == cfg.tunnel_port.raw() && !ip.part.is_later();
        let way = match far {
            Some(r) => Some((r.node, r.flags)),
            None => s.cidr(&ip.dst).map(|c| (c.node, 0)),
        };
        match way {
            Some((_, flags)) if to_tunnel_port && flags & REMOTE_NODE != 0 => return Err(D::TunnelPort),
            Some((NODE_SELF, _)) => return Err(D::NoPod),
            Some((node, _)) => node,
            None if to_tunnel_port && s.own(&ip.dst) != 0 => return Err(D::TunnelPort),
            None if F::is_unroutable(&ip.dst) => return neigh::unroutable::<F, P>(p, ep),
            None => NO_NODE,
        }
    };
    // One call: the verifier walks it anew for each.
    let (to, theirs) = near.map_or((0, EndSets::default()), |l| (l.id, sets(l)));
    let ask = Ask::of(p, s, Point::FromPod, ETH_LEN, &ip, Ends { from: ep.id, to });
    let way = ct::admit(p, s, epoch, ask, EndSets { ingress: ep.set_in, egress: ep.set_out }, theirs)?;
    if way == Way::Host {
        p.set_mark(p.mark() | MARK_ANSWER);
        return to_stack(p);
    }
    if let Some(l) = near {
        F::dec_ttl(p, ETH_LEN)?;
        p.write(0, Eth { dst: l.mac, src: Mac::WEFT, proto: F::ETHERTYPE })?;
        return Ok(Verdict::Peer(l.ifindex));
    }
    if node == NO_NODE {
        return match nat::leave(p, s, ask)? {
            0 => to_stack(p),
            ifindex => Ok(Verdict::Neigh(ifindex)),
        };
    }
    F::dec_ttl(p, ETH_LEN)?;
    encap::to_node(p, s, cfg, node, &inner(&ip, ports, ep.vni))
}

/// No node's number: what is outside of the cluster.
const NO_NODE: u32 = u32::MAX;

/// Into the stack, which takes only what has its device's MAC.
#[inline(always)]
fn to_stack<P: Packet>(p: &mut P) -> Res<Verdict> {
    p.write(0, Mac::WEFT)?;
    Ok(Verdict::Host)
}

/// A frame that the node's own stack sent into `weft_host`. What the stack forwards, it has already counted a hop for.
#[inline(always)]
pub fn from_host<P: Packet, S: System<P>>(p: &mut P, s: &S) -> Res<Verdict> {
    // Nothing but neighbour discovery comes this way before there are routes.
    let Some(cfg) = s.config() else { return Ok(Verdict::Pass) };
    let eth: Eth = p.read(0)?;
    if p.has_vlan() {
        return Err(D::Vlan);
    }
    if eth.dst.bytes[0] & 1 != 0 {
        return Err(D::Multicast);
    }
    match eth.proto {
        ETH_IP4 => host::<V4, P, S>(p, s, cfg),
        ETH_IP6 => host::<V6, P, S>(p, s, cfg),
        _ => Err(D::UnknownL3),
    }
}

#[inline(always)]
fn host<F: Family, P: Packet, S: Env + Of<P, F>>(p: &mut P, s: &S, cfg: &Config) -> Res<Verdict> {
    let ip = family::parse::<F, P>(p, ETH_LEN, L4_WANT)?;
    let ports = family::ports(p, &ip)?;
    let epoch = s.epoch();
    let to = s.local(&ip.dst);
    let node = match to {
        Some(_) => NODE_SELF,
        None => match way_to::<F, S>(s, &ip.dst) {
            Some((node, _)) if node != NODE_SELF => node,
            None if s.is_service(&ip.dst) => return Err(D::NoService),
            _ => return Err(D::NoPod),
        },
    };
    // A pod's packet comes back out of the stack when that has translated a Service's address: its own policy is asked here, of the address that the stack has chosen.
    let from = s.local(&ip.src);
    if to.is_none() && from.is_none() && !is_believed::<F, S>(s, cfg, &ip.src) {
        return Err(D::ForeignSource);
    }
    if to.is_some() || from.is_some() {
        let ends = Ends { from: from.map_or(0, |l| l.id), to: to.map_or(0, |l| l.id) };
        let ask = Ask::of(p, s, Point::FromHost, ETH_LEN, &ip, ends);
        ct::admit(p, s, epoch, ask, from.map_or(EndSets::default(), sets), to.map_or(EndSets::default(), sets))?;
    }
    if p.mark() & MARK_ANSWER != 0 {
        p.set_mark(p.mark() & !MARK_ANSWER);
    }
    if let Some(l) = to {
        return into(p, l, F::ETHERTYPE);
    }
    let vni = from.and_then(|l| s.endpoint(l.ifindex)).map_or(0, |ep| ep.vni);
    encap::to_node(p, s, cfg, node, &inner(&ip, ports, vni))
}

/// The policy sets of a pod of this node.
#[inline(always)]
pub(crate) fn sets(l: &Local) -> EndSets {
    EndSets { ingress: l.set_in, egress: l.set_out }
}

/// Into the pod that it is for, which was looked up after `epoch` was read.
#[inline(always)]
pub(crate) fn to_local<F: Family, P: Packet, S: Track<P, F>>(
    p: &mut P,
    s: &S,
    epoch: u32,
    point: Point,
    ip: &L3<F>,
    l: &Local,
) -> Res<Verdict> {
    let ask = Ask::of(p, s, point, ETH_LEN, ip, Ends { from: 0, to: l.id });
    ct::admit(p, s, epoch, ask, EndSets::default(), sets(l))?;
    into(p, l, F::ETHERTYPE)
}

#[inline(always)]
fn into<P: Packet>(p: &mut P, l: &Local, proto: Be16) -> Res<Verdict> {
    p.write(0, Eth { dst: l.mac, src: Mac::WEFT, proto })?;
    p.for_this_host();
    Ok(Verdict::Peer(l.ifindex))
}

/// What came through the tunnel for a pod: to it, or to the stack, which has translated what it answers.
#[inline(always)]
pub(crate) fn by<P: Packet>(p: &mut P, way: Way, l: &Local, proto: Be16) -> Res<Verdict> {
    if way == Way::Straight {
        return into(p, l, proto);
    }
    p.set_mark(p.mark() | MARK_ANSWER);
    // A redirect into `weft_host` with another destination MAC is lost.
    p.write(0, Eth { dst: Mac::WEFT, src: Mac::WEFT, proto })?;
    Ok(Verdict::Host)
}

/// Whether another node takes the address for one of this node's own: see `decap::sent_by`.
#[inline(always)]
fn is_believed<F: Family, S: Tables<F>>(s: &S, cfg: &Config, a: &F::Addr) -> bool {
    F::is_node(cfg, a) || s.own(a) & OWN_ANNOUNCED != 0
}

/// The node behind an address of the cluster, and the address's flags.
#[inline(always)]
pub(crate) fn way_to<F: Family, S: Tables<F>>(s: &S, a: &F::Addr) -> Option<(u32, u32)> {
    match s.remote(a) {
        Some(r) => Some((r.node, r.flags)),
        None => s.cidr(a).map(|c| (c.node, 0)),
    }
}

#[inline(always)]
fn inner<F: Family>(ip: &L3<F>, ports: Ports, vni: u32) -> Inner {
    // Parts of one datagram must not overtake each other on ways that their ports chose.
    let ports = if ip.part.is_whole() { ports } else { Ports::NONE };
    Inner {
        hash: encap::flow_hash(F::hash(&ip.src), F::hash(&ip.dst), ports.raw() ^ ip.proto),
        vni,
        tos: ip.tos,
        proto: F::ETHERTYPE,
        l4: ip.l4,
        l4_proto: ip.proto,
    }
}
