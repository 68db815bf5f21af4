//! The comparison. Pure.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use cni_common::net::Mac;
use ipnet::IpNet;

use super::{Item, Kind};
use crate::{
    compile::ClusterRoute,
    datapath::attach::How,
    netlink::{
        addr::Address,
        link::Link,
        names,
        neigh::{self, Neighbour},
        nftables::own::{self, Table},
        rule::Rule,
        tc::Qdisc,
    },
};

/// What there should be.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Devices of ours, pods' among them.
    pub devices: Vec<Device>,
    /// Permanent neighbours: device and address.
    pub neighbours: Vec<(u32, IpAddr)>,
    /// Programs.
    pub hooks: Vec<Hook>,
    /// Routes into `weft_host` that were there.
    pub routes: BTreeSet<ClusterRoute>,
    /// Others are to go.
    pub routes_are_all: bool,
    /// Rules in pods, by the path of their namespace.
    pub rules: Vec<(String, Rule)>,
    /// Weft's table of nftables; none: it has none.
    pub table: Option<Table>,
}

/// A device of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Name.
    pub name: String,
    /// Interface index.
    pub index: u32,
    /// A pod's: if it is gone, so is the pod's end, and nothing here brings it back.
    pub is_pods: bool,
    /// Set up.
    pub up: bool,
    /// MTU, if that is known.
    pub mtu: Option<u32>,
    /// In the pods' tc block.
    pub joins: bool,
    /// UDP port of a VXLAN device.
    pub port: Option<u16>,
    /// It gets no IPv6 link-local address.
    pub no_link_local: bool,
}

/// A program at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Which one.
    pub program: &'static str,
    /// Where.
    pub device: String,
    /// The device's index; of the block, its anchor's.
    pub index: u32,
    /// How it came there; none: on the pods' block.
    pub how: Option<How>,
    /// The kernel's number of the program.
    pub id: Option<u32>,
}

/// What there is.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// All devices, by index.
    pub links: BTreeMap<u32, Link>,
    /// Whether a device's IPv6 address generation is off, by its name; left out where the kernel does not tell.
    pub no_link_local: BTreeMap<String, bool>,
    /// All qdiscs.
    pub qdiscs: Vec<Qdisc>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// All neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Number of the program that is at a place, in the order of [`Wanted::hooks`].
    pub hooks: Vec<Option<u32>>,
    /// Our routes into `weft_host`.
    pub routes: BTreeSet<ClusterRoute>,
    /// Our rules by namespace; of those that are there.
    pub rules: BTreeMap<String, Vec<Rule>>,
    /// The table of nftables that has Weft's name; not looked for where it has none.
    pub table: Option<Table>,
}

/// What makes a difference right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cure {
    /// Make the device again, with its former index.
    Make(Device),
    /// Set up or down.
    Up(u32, bool),
    /// Set the MTU.
    Mtu(u32, u32),
    /// Give it Weft's MAC address.
    Mac(u32),
    /// Delete it, and make it again.
    MakeAnew(Device),
    /// Join the block; there is a clsact that has not.
    Join(u32, bool),
    /// Turn IPv6 address generation off.
    NoLinkLocal(u32),
    /// Delete the address.
    NoAddress(u32, IpNet),
    /// Write the neighbour.
    Neighbour(u32, IpAddr),
    /// Attach the program.
    Attach(Hook),
    /// The reconciler's own routes.
    Routes,
    /// Add the rule in this namespace.
    Rule(String, Rule),
    /// Write Weft's table of nftables as a whole.
    Table,
}

/// A difference and its cure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What differs.
    pub item: Item,
    /// What makes it right.
    pub cure: Cure,
}

/// Compares. The order is that in which the cures work: what stands on a device comes behind it.
pub fn compare(wanted: &Wanted, seen: &Seen) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut say = |kind, name: String, was: String, should: String, cure| {
        found.push(Difference { item: Item::new(kind, name, was, should), cure });
    };
    for d in &wanted.devices {
        device(d, seen, &mut say);
    }
    for (index, address) in &wanted.neighbours {
        let there = seen.neighbours.iter().find(|n| n.index == *index && n.addr == *address);
        if !there.is_some_and(|n| n.state == neigh::State::Permanent && n.mac == Some(Mac::WEFT)) {
            let was = there.map_or_else(gone, |n| {
                format!("{} {:?}", n.mac.map_or_else(|| "no MAC address".into(), |m| m.to_string()), n.state)
            });
            let name = format!("{address} on {}", name_of(wanted, *index));
            say(Kind::Neighbour, name, was, format!("{} Permanent", Mac::WEFT), Cure::Neighbour(*index, *address));
        }
    }
    for (hook, there) in wanted.hooks.iter().zip(&seen.hooks) {
        // A device that is somebody's and gone: its end is told by an event. Ours comes again.
        let somebodys_and_gone = !seen.links.contains_key(&hook.index) && !names::is_node_device(&hook.device);
        if hook.id.is_some() && *there != hook.id && !somebodys_and_gone {
            let text = |id: Option<u32>| id.map_or_else(gone, |id| format!("program {id}"));
            let name = format!("{} on {}", hook.program, hook.device);
            say(Kind::Hook, name, text(*there), text(hook.id), Cure::Attach(hook.clone()));
        }
    }
    routes(wanted, seen, &mut say);
    for (netns, rule) in &wanted.rules {
        if seen.rules.get(netns).is_some_and(|there| !there.contains(rule)) {
            let name = format!("from {} in {netns}", rule.from);
            say(Kind::Rule, name, gone(), format!("table {}", rule.table), Cure::Rule(netns.clone(), *rule));
        }
    }
    if let Some(table) = wanted.table.as_ref().filter(|table| seen.table.as_ref() != Some(*table)) {
        let was = match &seen.table {
            None => gone(),
            Some(other) => format!("another table, of {} rules", other.len()),
        };
        say(Kind::Nftables, own::FULL_NAME.to_owned(), was, format!("Weft's {} rules", table.len()), Cure::Table);
    }
    found
}

fn gone() -> String {
    "nothing".to_owned()
}

fn name_of(wanted: &Wanted, index: u32) -> String {
    wanted.devices.iter().find(|d| d.index == index).map_or_else(|| index.to_string(), |d| d.name.clone())
}

fn device(d: &Device, seen: &Seen, say: &mut impl FnMut(Kind, String, String, String, Cure)) {
    let kind = if d.is_pods { Kind::PodDevice } else { Kind::Device };
    let Some(link) = seen.links.get(&d.index).filter(|l| l.name == d.name) else {
        if !d.is_pods {
            say(kind, d.name.clone(), gone(), format!("a device, index {}", d.index), Cure::Make(d.clone()));
        }
        return;
    };
    if let (Some(is), Some(should)) = (link.vxlan_port, d.port)
        && is != should
    {
        say(kind, d.name.clone(), format!("UDP port {is}"), format!("UDP port {should}"), Cure::MakeAnew(d.clone()));
        return;
    }
    let mut differs = |was: String, should: String, cure| say(kind, d.name.clone(), was, should, cure);
    if link.mac != Some(Mac::WEFT) {
        let was = link.mac.map_or_else(gone, |m| m.to_string());
        differs(format!("MAC address {was}"), format!("MAC address {}", Mac::WEFT), Cure::Mac(d.index));
    }
    if let Some(mtu) = d.mtu.filter(|mtu| *mtu != link.mtu) {
        differs(format!("MTU {}", link.mtu), format!("MTU {mtu}"), Cure::Mtu(d.index, mtu));
    }
    if d.no_link_local && seen.no_link_local.get(&d.name) == Some(&false) {
        let text = |mode: &str| format!("IPv6 address generation {mode}");
        differs(text("on"), text("off"), Cure::NoLinkLocal(d.index));
    }
    // A pod's device is the pod's wire: what somebody wants with an address on its node's end is not ours to judge.
    for a in seen.addresses.iter().filter(|a| !d.is_pods && a.index == d.index) {
        differs(format!("address {}", a.net), "no address".to_owned(), Cure::NoAddress(d.index, a.net));
    }
    let clsact = seen.qdiscs.iter().find(|q| q.index == d.index && (q.kind == "clsact" || q.kind == "ingress"));
    if d.joins && clsact.is_none_or(|q| q.ingress_block != Some(names::BLOCK_INDEX)) {
        let was = clsact.map_or_else(|| "no clsact".to_owned(), |q| format!("{}, block {:?}", q.kind, q.ingress_block));
        differs(was, format!("clsact, block {}", names::BLOCK_INDEX), Cure::Join(d.index, clsact.is_some()));
    }
    // Last: nothing passes before the program sees it.
    if link.up != d.up {
        let text = |up| if up { "up" } else { "down" }.to_owned();
        differs(text(link.up), text(d.up), Cure::Up(d.index, d.up));
    }
}

fn routes(wanted: &Wanted, seen: &Seen, say: &mut impl FnMut(Kind, String, String, String, Cure)) {
    let text = |r: &ClusterRoute| {
        let source = r.source.map_or_else(|| "no source".into(), |a| format!("source {a}"));
        format!("{source}, MTU {}", r.mtu)
    };
    for r in wanted.routes.difference(&seen.routes) {
        let was = seen.routes.iter().find(|there| there.to == r.to).map_or_else(gone, text);
        say(Kind::Route, format!("{} on {}", r.to, names::HOST), was, text(r), Cure::Routes);
    }
    if wanted.routes_are_all {
        for r in seen.routes.iter().filter(|there| !wanted.routes.iter().any(|w| w.to == there.to)) {
            say(Kind::Route, format!("{} on {}", r.to, names::HOST), text(r), gone(), Cure::Routes);
        }
    }
}
