//! What is compared, as the kernel shows it, and what makes it right.
use std::{collections::BTreeMap, fs, path::Path};

use cni_common::net::Mac;

use super::compare::{Cure, Device, Hook, Seen, Wanted};
use crate::{
    compile::ClusterRoute,
    datapath::{Datapath, attach, object},
    error_chain,
    netlink::{
        NetlinkError, Socket, addr,
        link::{self, End},
        names, neigh,
        nftables::own,
        pod, route, rule,
        tc::{self, Place},
    },
};

/// Reads what `wanted` is about.
///
/// # Errors
/// When a list cannot be had.
pub fn look(wanted: &Wanted, socket: &mut Socket, pin_dir: &Path, weft_host: u32) -> Result<Seen, String> {
    let said = |e: NetlinkError| error_chain(&e);
    let links: BTreeMap<u32, link::Link> =
        link::list(socket).map_err(said)?.into_iter().map(|l| (l.index, l)).collect();
    let no_link_local = wanted.devices.iter().filter_map(|d| Some((d.name.clone(), no_link_local(&d.name)?))).collect();
    let mut rules = BTreeMap::new();
    for (netns, _) in &wanted.rules {
        // One that is gone needs no rules.
        if !rules.contains_key(netns)
            && let Some(mut inside) = pod::socket_at(netns).map_err(said)?
        {
            rules.insert(netns.clone(), rule::list(&mut inside).map_err(said)?);
        }
    }
    let ours = |r: &route::Route| r.protocol == names::ROUTE_PROTOCOL && r.index == weft_host;
    let routes = route::list(socket).map_err(said)?.into_iter().filter(ours);
    let table = match &wanted.table {
        Some(_) => own::read().map_err(|e| error_chain(&e))?,
        None => None,
    };
    Ok(Seen {
        links,
        no_link_local,
        qdiscs: tc::qdiscs(socket).map_err(said)?,
        addresses: addr::list(socket).map_err(said)?,
        neighbours: neigh::list(socket).map_err(said)?,
        hooks: wanted.hooks.iter().map(|h| at_hook(h, socket, pin_dir)).collect::<Result<_, _>>()?,
        routes: routes.map(|r| ClusterRoute { to: r.dst, source: r.source, mtu: r.mtu.unwrap_or(0) }).collect(),
        rules,
        table,
    })
}

fn at_hook(hook: &Hook, socket: &mut Socket, pin_dir: &Path) -> Result<Option<u32>, String> {
    let place = match hook.how {
        Some(attach::How::Tcx) => {
            return attach::linked_program(pin_dir, hook.program, (&hook.device, hook.index))
                .map_err(|e| e.to_string());
        }
        Some(attach::How::Clsact) => Place::Ingress(hook.index),
        None => Place::Block(names::BLOCK_INDEX),
    };
    let there = tc::filters(socket, place).map_err(|e| error_chain(&e))?;
    Ok(there.iter().find(|f| f.is_ours()).and_then(|f| f.program_id))
}

/// The setting is `IN6_ADDR_GEN_MODE_NONE`. None: there is no IPv6, or no such device.
fn no_link_local(device: &str) -> Option<bool> {
    let mode = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{device}/addr_gen_mode")).ok()?;
    Some(mode.trim() == "1")
}

/// What cures need beside the socket.
pub struct Hands<'a> {
    /// Whose programs are attached.
    pub datapath: &'a Datapath,
    /// Where links are pinned.
    pub pin_dir: &'a Path,
    /// By TCX where it may be.
    pub tcx: bool,
    /// Devices as they should be: of a pair, both.
    pub devices: &'a [Device],
}

/// Makes one difference right.
///
/// # Errors
/// Why not.
pub fn cure(cure: &Cure, socket: &mut Socket, hands: &Hands<'_>) -> Result<(), String> {
    let done = match cure {
        Cure::Make(device) => make(device, socket, hands.devices),
        Cure::MakeAnew(device) => {
            socket.run(link::delete(device.index)).and_then(|()| make(device, socket, hands.devices))
        }
        Cure::Up(index, true) => socket.run(link::up(*index)),
        Cure::Up(index, false) => socket.run(link::down(*index)),
        Cure::Mtu(index, mtu) => socket.run(link::set_mtu(*index, *mtu)),
        Cure::Mac(index) => socket.run(link::set_mac(*index, Mac::WEFT)),
        Cure::Join(index, other) => {
            let gone = if *other { socket.run(tc::delete_clsact(*index)) } else { Ok(()) };
            gone.and_then(|()| socket.run(tc::add_clsact(*index, Some(names::BLOCK_INDEX))))
        }
        Cure::NoLinkLocal(index) => socket.run(link::no_link_local(*index)),
        Cure::NoAddress(index, net) => socket.run(addr::delete(*index, *net)),
        Cure::Neighbour(index, address) => socket.run(neigh::set_permanent(*index, *address, Mac::WEFT)),
        Cure::Attach(hook) => return put(hook, socket, hands).map(drop),
        // The reconciler does these.
        Cure::Routes | Cure::Table => Ok(()),
        Cure::Rule(netns, rule) => match pod::socket_at(netns) {
            Ok(Some(mut inside)) => inside.run(rule::add(*rule)),
            other => other.map(drop),
        },
    };
    match done {
        // Of a pair, the other end's cure has made both; a rule or a qdisc that has come meanwhile.
        Err(e) if e.is_exists() => Ok(()),
        other => other.map_err(|e| error_chain(&e)),
    }
}

/// Puts a program back; answers how, which may be another way than before.
///
/// # Errors
/// Why not.
pub fn put(hook: &Hook, socket: &mut Socket, hands: &Hands<'_>) -> Result<Option<attach::How>, String> {
    let program = hands.datapath.program(hook.program).map_err(|e| error_chain(&e))?;
    let done = match hook.how {
        None => attach::block(socket, object::FROM_POD, program).map(|()| None),
        Some(_) => {
            let device = (hook.device.as_str(), hook.index);
            attach::device(socket, hands.pin_dir, (hook.program, program), device, hands.tcx).map(Some)
        }
    };
    done.map_err(|e| error_chain(&e))
}

/// With its former index, which other parts of the agent, and the maps, go by.
fn make(device: &Device, socket: &mut Socket, all: &[Device]) -> Result<(), NetlinkError> {
    // The other end's cure has made both.
    if link::by_name(socket, &device.name)?.is_some_and(|l| l.index == device.index) {
        return Ok(());
    }
    if device.name == names::VXLAN {
        let port = device.port.unwrap_or(names::VXLAN_PORT);
        socket.run(link::create_vxlan_at(Some(device.index), names::VXLAN, port, Mac::WEFT, device.mtu))?;
    } else {
        let other = match device.name.as_str() {
            names::HOST => names::NET,
            names::NET => names::HOST,
            names::BLOCK => names::BLOCK_PEER,
            _ => names::BLOCK,
        };
        let Some(peer) = all.iter().find(|d| d.name == other) else { return Ok(()) };
        // Half a pair of another making.
        if socket.run(link::delete(peer.index)).is_ok() {
            tracing::debug!(device = other, "the other end is made anew too");
        }
        let end = |d: &Device| End { index: Some(d.index), mac: Some(Mac::WEFT), mtu: d.mtu, ..End::default() };
        let (one, two) = (End { name: &device.name, ..end(device) }, End { name: &peer.name, ..end(peer) });
        socket.run(link::create_veth(&one, &two))?;
        finish(peer, socket)?;
    }
    finish(device, socket)
}

fn finish(device: &Device, socket: &mut Socket) -> Result<(), NetlinkError> {
    socket.run(link::no_link_local(device.index))?;
    if device.joins {
        socket.run(tc::add_clsact(device.index, Some(names::BLOCK_INDEX)))?;
    }
    if device.up { socket.run(link::up(device.index)) } else { Ok(()) }
}
