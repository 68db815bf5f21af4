//! The loaded programs in the look-up's place: each node of a case has its maps, and each flow is a frame that its nodes' programs let pass or not.
//!
//! Maps of policy are written as the engine says it, change by change and in its order. Around them stands as much of a cluster as the programs need to find
//! who is judged: addresses of pods, ways between nodes, and no pod CIDRs, as a case has none. Nothing is pinned, and no frame leaves.
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bytemuck::{Zeroable, bytes_of};
use cni_common::{
    drop::{DropReason, Point},
    maps::{CONFIG_READY, Config, Endpoint, Local, OWN, OWN_ANNOUNCED, REMOTE_NODE, Remote, TUNNEL_BY_MAC, Tunnel},
    net::{Be16, Mac},
    schema::{self, MapSpec},
};

use super::{
    case::{Case, Probe},
    frames,
    matrix::End,
    world::World,
};
use crate::{
    datapath::{Datapath, load::LoadError},
    policy::Change,
    tables::PodKey,
};

/// The programs cannot be asked, or say what is none of policy's.
#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    /// They are not here, or the kernel does not take them.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map was not written or read.
    #[error("use map {name}")]
    Map {
        /// Which one.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A frame was dropped, and not by policy.
    #[error("{point} drops {from} -> {to} {probe}, and policy does not say so: {reason}")]
    Other {
        /// The program.
        point: &'static str,
        /// Who sent it.
        from: IpAddr,
        /// To whom.
        to: IpAddr,
        /// What it was.
        probe: Probe,
        /// Why it was dropped.
        reason: &'static str,
    },
    /// An end is on a node that nobody has told of.
    #[error("nobody has told of the node {0}")]
    NoNode(String),
}

/// By this device all frames of a test run come in.
const LOOPBACK: u32 = 1;
const POD_MAC: Mac = Mac::new([0x0a, 0, 0, 0, 0, 1]);
/// Of a tunnel's next hop, and of the device before it.
const HOP_MAC: Mac = Mac::new([0x0a, 0, 0, 0, 0, 2]);
const MTU: u32 = 1500;
/// The tunnel's port, unless it is probed: then the one before.
const TUNNEL_PORT: u16 = 8472;

/// Loaded programs, one set for each node of the case at hand, and some to spare.
#[derive(Debug, Default)]
pub struct Programs {
    nodes: BTreeMap<String, Node>,
    spare: Vec<Datapath>,
    /// Nodes and pods by number, from 1.
    numbers: BTreeMap<String, u32>,
    ids: BTreeMap<PodKey, u32>,
    port: u16,
}

/// A node: its programs, and what stands in their maps.
#[derive(Debug)]
struct Node {
    datapath: Datapath,
    number: u32,
    /// Which agent's changes the policy maps have.
    agent: u64,
    places: BTreeMap<IpAddr, Place>,
    endpoint: Option<Endpoint>,
    /// Other nodes to which a way is written.
    ways: Vec<u32>,
    counted: BTreeMap<(u8, u8), u64>,
}

/// Where an address is, seen from a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A pod of this node: its id and its policy sets for ingress and egress.
    Here(u32, u32, u32),
    /// On another node, or another node itself.
    There(u32, bool),
    /// The node itself.
    Own,
    /// Outside.
    Nowhere,
}

impl Programs {
    /// For another case.
    pub fn begin(&mut self, case: &Case) -> Result<(), ProgramsError> {
        for (_, mut node) in std::mem::take(&mut self.nodes) {
            node.clear()?;
            self.spare.push(node.datapath);
        }
        self.numbers.clear();
        self.ids.clear();
        self.port = (1..=TUNNEL_PORT).rev().find(|n| case.probes.iter().all(|p| p.port != *n)).unwrap_or(TUNNEL_PORT);
        Ok(())
    }

    /// Does what the agents have written since.
    pub fn follow(&mut self, world: &mut World) -> Result<(), ProgramsError> {
        for (name, number, changes) in world.take_changes() {
            if !self.nodes.contains_key(&name) {
                let datapath = match self.spare.pop() {
                    Some(datapath) => datapath,
                    None => Datapath::load(None)?,
                };
                let node = Node::new(datapath, self.number(&name), number, self.port)?;
                self.nodes.insert(name.clone(), node);
            }
            let Some(node) = self.nodes.get_mut(&name) else { continue };
            if node.agent != number {
                // An agent that begins anew, at each step.
                node.clear_policy()?;
                node.agent = number;
            }
            for change in changes {
                node.apply(change)?;
            }
        }
        Ok(())
    }

    fn number(&mut self, node: &str) -> u32 {
        number(&mut self.numbers, &node.to_owned())
    }

    /// What each side says of a flow: whether it may pass. `None` for a flow that there is not.
    pub fn sides(
        &mut self,
        world: &World,
        src: &End,
        dst: &End,
        probe: Probe,
    ) -> Result<Option<(bool, bool)>, ProgramsError> {
        if src.ip().is_ipv4() != dst.ip().is_ipv4() || src.pod().is_none() && dst.pod().is_none() {
            return Ok(None);
        }
        let flow = (src, dst, probe);
        let Some((pod, at)) = src.pod() else { return Ok(Some((true, self.lets_in(world, flow)?))) };
        let is_here = dst.pod().is_some_and(|(_, node)| node == at);
        let egress = self.out_of_pod(world, flow, pod, at, false)?;
        Ok(Some(match (is_here, egress) {
            (true, None) => (true, true),
            (true, Some(DropReason::PolicyIngress)) => (true, false),
            // What the other side says is asked of a pod that nobody isolates.
            (true, Some(_)) => (false, self.out_of_pod(world, flow, pod, at, true)?.is_none()),
            (false, denied) => (denied.is_none(), dst.pod().is_none() || self.lets_in(world, flow)?),
        }))
    }

    /// Why a pod's frame is dropped, if it is; with `open`, as if its egress were not isolated.
    fn out_of_pod(
        &mut self,
        world: &World,
        flow: (&End, &End, Probe),
        pod: &PodKey,
        at: &str,
        open: bool,
    ) -> Result<Option<DropReason>, ProgramsError> {
        let (src, dst, probe) = flow;
        let id = number(&mut self.ids, pod);
        self.place(world, at, &[src, dst])?;
        let sets = world.agent(at).and_then(|a| a.image.endpoints.get(pod).copied()).unwrap_or_default();
        let node = self.nodes.get_mut(at).ok_or_else(|| ProgramsError::NoNode(at.to_owned()))?;
        let mut endpoint =
            Endpoint { id, mac: POD_MAC, set_in: sets.set_in, set_out: sets.set_out, ..Endpoint::zeroed() };
        match src.ip() {
            IpAddr::V4(a) => endpoint.addr4 = a.into(),
            IpAddr::V6(a) => endpoint.addr6 = a.into(),
        }
        if open {
            endpoint.set_out = 0;
        }
        if node.endpoint != Some(endpoint) {
            node.put(&schema::ENDPOINTS, &LOOPBACK.to_ne_bytes(), bytes_of(&endpoint))?;
            node.endpoint = Some(endpoint);
        }
        let packet = frames::opening(src.ip(), dst.ip(), probe.number(src.ip().is_ipv4()), probe.port);
        node.ask(Point::FromPod, &frames::ethernet(POD_MAC, Mac::WEFT, &packet), flow)
    }

    /// Whether the node of the pod that it is for lets a frame from elsewhere in.
    fn lets_in(&mut self, world: &World, flow: (&End, &End, Probe)) -> Result<bool, ProgramsError> {
        let (src, dst, probe) = flow;
        let Some((_, at)) = dst.pod() else { return Ok(true) };
        self.place(world, at, &[src, dst])?;
        let from = match src {
            End::Pod { node, .. } => Some(node.as_str()),
            End::Node { name, .. } => Some(name.as_str()).filter(|name| *name != at),
            End::Outside(_) => None,
        };
        let from = from.map(|name| self.number(name));
        let port = self.port;
        let node = self.nodes.get_mut(at).ok_or_else(|| ProgramsError::NoNode(at.to_owned()))?;
        let v4 = src.ip().is_ipv4();
        let packet = frames::opening(src.ip(), dst.ip(), probe.number(v4), probe.port);
        let denied = match from {
            Some(from) => {
                let ends = (underlay(from, v4), underlay(node.number, v4));
                let outer = frames::tunnelled(ends, port, &packet);
                node.ask(Point::FromNetdev, &frames::ethernet(HOP_MAC, HOP_MAC, &outer), flow)?
            }
            // Of the node itself, or forwarded by it.
            None => node.ask(Point::FromHost, &frames::ethernet(Mac::WEFT, Mac::WEFT, &packet), flow)?,
        };
        Ok(denied.is_none())
    }

    /// Writes where these ends are, seen from a node.
    fn place(&mut self, world: &World, at: &str, ends: &[&End]) -> Result<(), ProgramsError> {
        for end in ends {
            let place = match end {
                End::Pod { key, node, .. } if node == at => {
                    let sets = world.agent(at).and_then(|a| a.image.endpoints.get(key).copied()).unwrap_or_default();
                    Place::Here(number(&mut self.ids, key), sets.set_in, sets.set_out)
                }
                End::Pod { node, .. } => Place::There(self.number(node), false),
                End::Node { name, .. } if name == at => Place::Own,
                End::Node { name, .. } => Place::There(self.number(name), true),
                End::Outside(_) => Place::Nowhere,
            };
            let node = self.nodes.get_mut(at).ok_or_else(|| ProgramsError::NoNode(at.to_owned()))?;
            node.place(end.ip(), place)?;
        }
        Ok(())
    }
}

/// A number for each, from 1.
fn number<K: Ord + Clone>(numbers: &mut BTreeMap<K, u32>, key: &K) -> u32 {
    let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX).saturating_add(1);
    *numbers.entry(key.clone()).or_insert(next)
}

/// Under which address a node's tunnel ends: none that a case has for anybody would matter, as tunnels have maps of their own.
fn underlay(node: u32, v4: bool) -> IpAddr {
    if v4 { Ipv4Addr::from(0xf000_0000 | node).into() } else { Ipv6Addr::from(0xfd00 << 112 | u128::from(node)).into() }
}

/// Maps that differ from case to case, those of policy first.
const WRITTEN: [&MapSpec; 15] = [
    &schema::POLICY_RULE,
    &schema::POLICY_PORT,
    &schema::POLICY_PEER,
    &schema::IDENTITY4,
    &schema::IDENTITY6,
    &schema::BLOCK4,
    &schema::BLOCK6,
    &schema::ENDPOINTS,
    &schema::LOCAL4,
    &schema::LOCAL6,
    &schema::REMOTE4,
    &schema::REMOTE6,
    &schema::OWN4,
    &schema::OWN6,
    &schema::CONFIG,
];
const OF_POLICY: usize = 7;

impl Node {
    fn new(datapath: Datapath, number: u32, agent: u64, port: u16) -> Result<Self, ProgramsError> {
        let (tunnel4, tunnel6) = ends(number);
        let config = Config {
            tunnel4,
            tunnel6,
            flags: CONFIG_READY,
            weft_host: LOOPBACK,
            weft_vxlan: LOOPBACK,
            // No events: nobody reads them.
            hz: u32::MAX,
            tunnel_port: Be16::from_host(port),
            ..Config::zeroed()
        };
        let mut counted = BTreeMap::new();
        // Programs that another case has had.
        for (point, reason) in POINTS.into_iter().flat_map(|p| DropReason::ALL.iter().map(move |r| (p, *r))) {
            counted.insert((point as u8, reason as u8), count(&datapath, point, reason)?);
        }
        let node = Self { datapath, number, agent, places: BTreeMap::new(), endpoint: None, ways: Vec::new(), counted };
        // What conntrack is told is left zero: so it remembers nothing, and each frame is judged.
        node.put(&schema::CONFIG, &0_u32.to_ne_bytes(), bytes_of(&config))?;
        Ok(node)
    }

    fn put(&self, map: &'static MapSpec, key: &[u8], value: &[u8]) -> Result<(), ProgramsError> {
        self.datapath.map(map).update(key, value).map_err(|source| ProgramsError::Map { name: map.name, source })
    }
    fn delete(&self, map: &'static MapSpec, key: &[u8]) -> Result<(), ProgramsError> {
        self.datapath.map(map).delete(key).map_err(|source| ProgramsError::Map { name: map.name, source })
    }

    fn apply(&self, change: Change) -> Result<(), ProgramsError> {
        match change {
            Change::Entry { map, key, value: Some(value) } => self.put(map.spec(), &key, &value),
            Change::Entry { map, key, value: None } => self.delete(map.spec(), &key),
            // Entries of endpoints are written when a frame asks for them.
            Change::Endpoint { .. } => Ok(()),
        }
    }

    fn clear_policy(&self) -> Result<(), ProgramsError> {
        WRITTEN.into_iter().take(OF_POLICY).try_for_each(|map| self.empty(map))
    }
    fn clear(&mut self) -> Result<(), ProgramsError> {
        WRITTEN.into_iter().try_for_each(|map| self.empty(map))
    }
    fn empty(&self, map: &'static MapSpec) -> Result<(), ProgramsError> {
        let open = self.datapath.map(map);
        let all = open.dump().map_err(|source| ProgramsError::Map { name: map.name, source })?;
        all.keys().try_for_each(|key| self.delete(map, key))
    }

    fn place(&mut self, address: IpAddr, place: Place) -> Result<(), ProgramsError> {
        if self.places.get(&address) == Some(&place) {
            return Ok(());
        }
        let (local, remote, own, key) = match address {
            IpAddr::V4(a) => (&schema::LOCAL4, &schema::REMOTE4, &schema::OWN4, a.octets().to_vec()),
            IpAddr::V6(a) => (&schema::LOCAL6, &schema::REMOTE6, &schema::OWN6, a.octets().to_vec()),
        };
        for map in [local, remote, own] {
            self.delete(map, &key)?;
        }
        match place {
            Place::Here(id, set_in, set_out) => {
                let value = Local { ifindex: LOOPBACK, id, set_in, set_out, mac: POD_MAC, ..Local::zeroed() };
                self.put(local, &key, bytes_of(&value))?;
            }
            Place::There(node, is_node) => {
                self.way_to(node)?;
                let flags = if is_node { REMOTE_NODE } else { 0 };
                self.put(remote, &key, bytes_of(&Remote { node, flags, ..Remote::zeroed() }))?;
            }
            Place::Own => self.put(own, &key, &(OWN | OWN_ANNOUNCED).to_ne_bytes())?,
            Place::Nowhere => {}
        }
        self.places.insert(address, place);
        Ok(())
    }

    fn way_to(&mut self, node: u32) -> Result<(), ProgramsError> {
        if self.ways.contains(&node) {
            return Ok(());
        }
        let (addr4, addr6) = ends(node);
        let tunnel = Tunnel {
            addr4,
            addr6,
            ifindex: LOOPBACK,
            mtu: MTU,
            dmac: HOP_MAC,
            smac: HOP_MAC,
            family: 4,
            ready: TUNNEL_BY_MAC,
            ..Tunnel::zeroed()
        };
        self.put(&schema::TUNNELS, &node.to_ne_bytes(), bytes_of(&tunnel))?;
        self.ways.push(node);
        Ok(())
    }

    /// Why a program drops a frame, if it does.
    fn ask(
        &mut self,
        point: Point,
        frame: &[u8],
        (src, dst, probe): (&End, &End, Probe),
    ) -> Result<Option<DropReason>, ProgramsError> {
        if self.datapath.lets_pass(point, frame)? {
            return Ok(None);
        }
        use DropReason::{PolicyEgress, PolicyIngress, PolicyUnknown};
        let mut other = "it does not count why";
        for reason in [PolicyIngress, PolicyEgress, PolicyUnknown].iter().chain(DropReason::ALL) {
            let counted = count(&self.datapath, point, *reason)?;
            let before = self.counted.insert((point as u8, *reason as u8), counted).unwrap_or_default();
            if counted == before {
                continue;
            }
            if matches!(reason, PolicyEgress | PolicyIngress | PolicyUnknown) {
                return Ok(Some(*reason));
            }
            other = reason.name();
        }
        Err(ProgramsError::Other { point: point.name(), from: src.ip(), to: dst.ip(), probe, reason: other })
    }
}

/// Programs that are asked.
const POINTS: [Point; 3] = [Point::FromPod, Point::FromHost, Point::FromNetdev];

fn count(datapath: &Datapath, point: Point, reason: DropReason) -> Result<u64, ProgramsError> {
    datapath.dropped(point, reason).map_err(|source| ProgramsError::Map { name: schema::COUNTS.name, source })
}

/// A node's two tunnel addresses.
fn ends(node: u32) -> (cni_common::net::Ip4, cni_common::net::Ip6) {
    match (underlay(node, true), underlay(node, false)) {
        (IpAddr::V4(a), IpAddr::V6(b)) => (a.into(), b.into()),
        _ => (Zeroable::zeroed(), Zeroable::zeroed()),
    }
}
