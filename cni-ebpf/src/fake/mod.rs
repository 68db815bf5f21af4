//! The host's side of the traits: a frame in a vector, maps in `BTreeMap`s. They behave as the kernel does; the differential test holds
//! both against each other.
#[cfg(test)]
mod answers;
pub mod corpus;
pub mod flows;
pub mod frame;
pub mod nat;
pub mod policy;
#[cfg(test)]
mod services;
#[cfg(test)]
mod tests;
pub mod world;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use bytemuck::Pod;
use cni_common::{
    drop::{Outcome, Point},
    maps::{
        CONFIG_READY, Cidr, Config, CtConfig, Endpoint, Local, NAT_FIRST_PORT, NAT_PORTS, NatConfig, Remote, Tunnel,
    },
    net::{Ip4, Ip6},
    wire::{ETH_LEN, OVERHEAD4, OVERHEAD6},
};

use self::{flows::FlowTables, nat::NatTables, policy::PolicyTables};
use crate::{
    DropReason as D, Env, Packet, Res, Room, Tables,
    ct::lifetime,
    family::{Family, V4, V6},
    packet::TunnelEnd,
};

/// A frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// All its bytes.
    pub data: Vec<u8>,
    /// How many of them direct access reaches: NICs leave some in pages.
    pub linear: usize,
    /// The device that received it.
    pub ifindex: u32,
    /// Payload bytes of a segment; 0 when it is none.
    pub gso: u32,
    /// What an outer IPv4 header is given as identification.
    pub identification: u16,
    /// A tag stands beside the bytes.
    pub vlan: bool,
    /// What the VXLAN device recorded.
    pub tunnel: Option<TunnelEnd>,
    /// The VNI that it recorded.
    pub tunnel_class: u32,
    /// Marked as addressed to this host.
    pub this_host: bool,
    /// What the kernel keeps beside it.
    pub mark: u32,
    /// Whether `shrink` can change the family (Linux 6.3).
    pub decap_l3: bool,
    /// Whether `grow` was told of an inner Ethernet header.
    pub inner_l2: bool,
    /// Whether it is a tunnel's packet already, as a pod's own VXLAN device makes: `grow` refuses it.
    pub encapsulated: bool,
    /// What the VXLAN device was told: to whom, VNI, DSCP.
    pub tunnel_out: Option<(TunnelEnd, u32, u32)>,
    /// Whether the NIC is to make the L4 checksum (`CHECKSUM_PARTIAL`): its field holds the sum of the pseudo header.
    pub partial: bool,
    /// What `linear` had to pull, for the test that nothing is pulled needlessly.
    pub pulls: Cell<u32>,
}

impl Frame {
    /// A whole, linear, ordinary frame from this device, on a new kernel.
    pub fn new(data: Vec<u8>, ifindex: u32) -> Self {
        Self {
            linear: data.len(),
            data,
            ifindex,
            gso: 0,
            identification: 0,
            vlan: false,
            tunnel: None,
            tunnel_class: 0,
            this_host: false,
            mark: 0,
            decap_l3: true,
            inner_l2: false,
            encapsulated: false,
            tunnel_out: None,
            partial: false,
            pulls: Cell::new(0),
        }
    }
}

impl Packet for Frame {
    fn len(&self) -> u32 {
        self.data.len() as u32
    }
    fn ifindex(&self) -> u32 {
        self.ifindex
    }
    fn gso_size(&self) -> u32 {
        self.gso
    }
    fn identification(&self) -> u16 {
        self.identification
    }
    fn has_vlan(&self) -> bool {
        self.vlan
    }
    fn blur(&self, n: u64) -> u64 {
        n
    }
    fn linear(&mut self, want: u32) {
        if self.linear < want as usize && self.linear < self.data.len() {
            self.linear = self.data.len().min(want as usize);
            self.pulls.set(self.pulls.get() + 1);
        }
    }
    fn read<T: Pod>(&self, off: usize) -> Res<T> {
        let reachable = self.data.get(..self.linear).ok_or(D::Short)?;
        let bytes = off.checked_add(size_of::<T>()).and_then(|end| reachable.get(off..end)).ok_or(D::Short)?;
        Ok(bytemuck::pod_read_unaligned(bytes))
    }
    fn write<T: Pod>(&mut self, off: usize, v: T) -> Res<()> {
        let reachable = self.data.get_mut(..self.linear).ok_or(D::Short)?;
        let bytes = off.checked_add(size_of::<T>()).and_then(|end| reachable.get_mut(off..end)).ok_or(D::Short)?;
        bytes.copy_from_slice(bytemuck::bytes_of(&v));
        Ok(())
    }
    fn sum<const N: usize>(&self, off: usize) -> Res<u64> {
        let reachable = self.data.get(..self.linear).ok_or(D::Short)?;
        let bytes = reachable.get(off..off + N).ok_or(D::Short)?;
        Ok(bytes.chunks_exact(4).map(|w| u64::from(bytemuck::pod_read_unaligned::<u32>(w))).sum())
    }
    fn grow(&mut self, room: Room, l2: bool) -> Res<()> {
        if self.encapsulated {
            return Err(D::AdjustRoom);
        }
        self.inner_l2 = l2;
        let bytes = match room {
            Room::Vxlan4 => OVERHEAD4,
            Room::Vxlan6 => OVERHEAD6,
        } as usize;
        self.data.splice(ETH_LEN..ETH_LEN, std::iter::repeat_n(0, bytes));
        self.linear += bytes;
        Ok(())
    }
    /// The kernel's rules (`bpf_skb_adjust_room`): what stays must hold the network header that it believes in, that of the
    /// inner family if it was told, else that of the frame's EtherType.
    fn shrink(&mut self, bytes: u32, inner: Option<u8>) -> Res<()> {
        if inner.is_some() && !self.decap_l3 {
            return Err(D::AdjustRoom);
        }
        let least = match (inner, self.data.get(12..14)) {
            (Some(4), _) | (None, Some([0x08, 0x00])) => 20,
            _ => 40,
        };
        let bytes = bytes as usize;
        if self.data.len() < ETH_LEN + bytes + least {
            return Err(D::AdjustRoom);
        }
        self.data.drain(ETH_LEN..ETH_LEN + bytes);
        self.linear = self.linear.saturating_sub(bytes);
        Ok(())
    }
    fn resize(&mut self, len: u32) -> Res<()> {
        self.data.resize(len as usize, 0);
        self.linear = self.data.len();
        self.gso = 0;
        Ok(())
    }
    fn push(&mut self, bytes: u32) -> Res<()> {
        self.data.splice(ETH_LEN..ETH_LEN, std::iter::repeat_n(0, bytes as usize));
        self.linear += bytes as usize;
        Ok(())
    }
    fn set_tunnel(&mut self, to: TunnelEnd, vni: u32, tos: u32) -> Res<()> {
        self.tunnel_out = Some((to, vni, tos));
        Ok(())
    }
    fn for_this_host(&mut self) {
        self.this_host = true;
    }
    fn mark(&self) -> u32 {
        self.mark
    }
    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }
    fn tunnel_source(&self) -> Option<TunnelEnd> {
        self.tunnel
    }
    fn tunnel_class(&self) -> u32 {
        self.tunnel_class
    }
}

/// The maps of one family. Keys are addresses, whose order is that of their bytes.
#[derive(Clone, Debug)]
pub struct FamilyMaps<A: Ord> {
    /// Pods of this node.
    pub local: BTreeMap<A, Local>,
    /// Pods of other nodes, and other nodes.
    pub remote: BTreeMap<A, Remote>,
    /// Prefix length and address → node.
    pub cidr: Vec<(u32, A, Cidr)>,
    /// Tunnel addresses.
    pub nodes: BTreeMap<A, u32>,
    /// This node's addresses, with `OWN_*` bits.
    pub own: BTreeMap<A, u32>,
    /// Under which address masqueraded pods leave, by device, and its MTU.
    pub leave: BTreeMap<u32, (A, u32)>,
    /// The device of the default route, there being no other; 0: none.
    pub default_route: u32,
    /// Prefix length and address, towards which pods keep theirs.
    pub spared: Vec<(u32, A)>,
    /// Prefix length and address of Services' addresses.
    pub services: Vec<(u32, A)>,
}
impl<A: Ord> Default for FamilyMaps<A> {
    fn default() -> Self {
        Self {
            local: BTreeMap::new(),
            remote: BTreeMap::new(),
            cidr: Vec::new(),
            nodes: BTreeMap::new(),
            own: BTreeMap::new(),
            leave: BTreeMap::new(),
            default_route: 0,
            spared: Vec::new(),
            services: Vec::new(),
        }
    }
}

/// All maps.
#[derive(Clone, Debug)]
pub struct Fake {
    /// The configuration, if it was written.
    pub config: Option<Config>,
    /// By interface index.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// By node.
    pub tunnels: BTreeMap<u32, Tunnel>,
    /// IPv4.
    pub v4: FamilyMaps<Ip4>,
    /// IPv6.
    pub v6: FamilyMaps<Ip6>,
    /// ICMP errors that may still be sent.
    pub answers: Cell<u32>,
    /// What conntrack is told.
    pub ct_config: CtConfig,
    /// Jiffies.
    pub now: Cell<u64>,
    /// IPv4 flows.
    pub ct4: FlowTables,
    /// IPv6 flows.
    pub ct6: FlowTables,
    /// What masquerade is told.
    pub nat_config: NatConfig,
    /// IPv4 translations.
    pub nat4: NatTables,
    /// IPv6 translations.
    pub nat6: NatTables,
    /// What policy says.
    pub policy: PolicyTables,
    /// What was counted beside the packets.
    pub notes: RefCell<Vec<(Point, Outcome)>>,
}
impl Default for Fake {
    fn default() -> Self {
        Self {
            config: None,
            endpoints: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            v4: FamilyMaps::default(),
            v6: FamilyMaps::default(),
            answers: Cell::new(u32::MAX),
            ct_config: lifetime::config(1, 250),
            // Linux begins five minutes before a counter of 32 bits turns over.
            now: Cell::new(u64::from(u32::MAX) - 300 * 250),
            ct4: FlowTables::default(),
            ct6: FlowTables::default(),
            nat_config: NatConfig { first_port: NAT_FIRST_PORT, ports: NAT_PORTS },
            nat4: NatTables::default(),
            nat6: NatTables::default(),
            policy: PolicyTables::default(),
            notes: RefCell::default(),
        }
    }
}

impl Env for Fake {
    fn config(&self) -> Option<&Config> {
        self.config.as_ref().filter(|c| c.flags & CONFIG_READY != 0)
    }
    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint> {
        self.endpoints.get(&ifindex)
    }
    fn tunnel(&self, node: u32) -> Option<&Tunnel> {
        static NEVER_WRITTEN: std::sync::LazyLock<Tunnel> = std::sync::LazyLock::new(bytemuck::Zeroable::zeroed);
        if node >= cni_common::maps::MAX_NODES {
            return None;
        }
        Some(self.tunnels.get(&node).unwrap_or(&NEVER_WRITTEN))
    }
    fn may_answer(&self) -> bool {
        let left = self.answers.get();
        self.answers.set(left.saturating_sub(1));
        left > 0
    }
    fn epoch(&self) -> u32 {
        self.ct_config.epoch
    }
}

/// Whether the prefix of this length holds the address.
fn holds<A: Pod>(len: u32, prefix: &A, a: &A) -> bool {
    let bit = |x: &A, i: u32| bytemuck::bytes_of(x)[(i / 8) as usize] >> (7 - i % 8) & 1;
    (0..len).all(|i| bit(prefix, i) == bit(a, i))
}

fn longest<'a, A: Pod>(prefixes: &'a [(u32, A, Cidr)], a: &A) -> Option<&'a Cidr> {
    prefixes.iter().filter(|(len, p, _)| holds(*len, p, a)).max_by_key(|(len, ..)| *len).map(|(.., c)| c)
}

macro_rules! tables {
    ($family:ty, $maps:ident) => {
        impl Tables<$family> for Fake {
            fn local(&self, a: &<$family as Family>::Addr) -> Option<&Local> {
                self.$maps.local.get(a)
            }
            fn remote(&self, a: &<$family as Family>::Addr) -> Option<&Remote> {
                self.$maps.remote.get(a)
            }
            fn cidr(&self, a: &<$family as Family>::Addr) -> Option<&Cidr> {
                longest(&self.$maps.cidr, a)
            }
            fn node_of(&self, underlay: &<$family as Family>::Addr) -> Option<u32> {
                self.$maps.nodes.get(underlay).copied()
            }
            fn own(&self, a: &<$family as Family>::Addr) -> u32 {
                self.$maps.own.get(a).copied().unwrap_or(0)
            }
            fn is_service(&self, a: &<$family as Family>::Addr) -> bool {
                self.$maps.services.iter().any(|(len, prefix)| holds(*len, prefix, a))
            }
        }
    };
}
tables!(V4, v4);
tables!(V6, v6);
