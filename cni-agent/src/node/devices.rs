//! The node's own devices of ours: made once, adopted ever after.
//!
//! Whose: by name and constant MAC. What deletes them: `weft uninstall`, or a reboot. They carry no addresses.
use std::net::IpAddr;

use cni_common::net::Mac;
use tracing::info;

use crate::{
    fault::{self, Point},
    netlink::{
        NetlinkError, Socket, link,
        link::{End, Link},
        names::{self, GATEWAY4, GATEWAY6},
        neigh, tc,
    },
};

/// Indexes of our devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Devices {
    /// The stack's side: routes point to it, and what is for the stack is redirected into it.
    pub weft_host: u32,
    /// The programs' side.
    pub weft_net: u32,
    /// The kernel's VXLAN device: lends its GRO, and takes what the programs leave to it.
    pub weft_vxlan: u32,
}

/// A device of ours cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The kernel said no.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The tunnel's port is in use.
    #[error(
        "UDP port {port} is in use by another VXLAN device or program on this node; give all nodes another one \
         by --tunnel-port, or stop the other (`ss -lunp`, `ip -d link show type vxlan`)"
    )]
    PortInUse {
        /// The port.
        port: u16,
    },
    /// A device of our name that is not like ours.
    #[error("a device {name} is there that Weft did not make; remove it: `ip link delete {name}`")]
    Foreign {
        /// Its name.
        name: String,
    },
    /// Made, and gone at once.
    #[error("device {name} vanished while it was set up; is another agent or network manager at work on this node?")]
    Vanished {
        /// Its name.
        name: String,
    },
}

/// Makes or adopts them. The larger the devices' MTU, the better: what a route allows is said by the route.
pub fn ensure(socket: &mut Socket, tunnel_port: u16) -> Result<Devices, DeviceError> {
    let (host, net) = pair(socket, names::HOST, names::NET)?;
    for index in [host, net] {
        socket.batch(vec![link::no_link_local(index), link::up(index)])?;
    }
    for gateway in [IpAddr::V4(GATEWAY4), IpAddr::V6(GATEWAY6)] {
        socket.run(neigh::set_permanent(host, gateway, Mac::WEFT))?;
    }
    let (block, block_peer) = pair(socket, names::BLOCK, names::BLOCK_PEER)?;
    socket.batch(vec![link::no_link_local(block), link::no_link_local(block_peer)])?;
    match socket.run(tc::add_clsact(block, Some(names::BLOCK_INDEX))) {
        Err(e) if !e.is_exists() => return Err(e.into()),
        _ => {}
    }
    let vxlan = vxlan(socket, tunnel_port)?;
    Ok(Devices { weft_host: host, weft_net: net, weft_vxlan: vxlan })
}

/// MTU of our own pair: routes say what fits, so the devices must not say less.
pub const PAIR_MTU: u32 = 65_535;

/// MTU of the VXLAN device, the kernel's own choice. Other devices' MTU and the programs decide what fits.
pub const VXLAN_MTU: u32 = 1500;

fn pair(socket: &mut Socket, name: &str, peer: &str) -> Result<(u32, u32), DeviceError> {
    if link::by_name(socket, name)?.is_none() {
        let end = |name| End { name, mac: Some(Mac::WEFT), mtu: Some(PAIR_MTU), ..End::default() };
        socket.run(link::create_veth(&end(name), &end(peer)))?;
        info!(device = name, peer, "made a veth pair");
        fault::pass(Point::PairMade);
    }
    Ok((ours(socket, name)?.index, ours(socket, peer)?.index))
}

fn vxlan(socket: &mut Socket, port: u16) -> Result<u32, DeviceError> {
    let found = link::by_name(socket, names::VXLAN)?;
    if let Some(old) = found.as_ref().filter(|l| l.mac == Some(Mac::WEFT) && l.vxlan_port != Some(port)) {
        // The kernel does not change the port of a VXLAN device.
        socket.run(link::delete(old.index))?;
        info!(device = names::VXLAN, old = old.vxlan_port, new = port, "the tunnel's port is another one now");
    }
    if found.is_none_or(|l| l.mac == Some(Mac::WEFT) && l.vxlan_port != Some(port)) {
        match socket.run(link::create_vxlan(names::VXLAN, port, Mac::WEFT, Some(VXLAN_MTU))) {
            Err(e) if e.is_exists() => return Err(DeviceError::PortInUse { port }),
            other => other?,
        }
        info!(device = names::VXLAN, port, "made the VXLAN device");
        fault::pass(Point::VxlanMade);
    }
    let index = ours(socket, names::VXLAN)?.index;
    match socket.batch(vec![link::no_link_local(index), link::up(index)]) {
        // The socket is opened when the device comes up.
        Err(e) if e.errno() == Some(nix::errno::Errno::EADDRINUSE) => Err(DeviceError::PortInUse { port }),
        other => Ok(other.map(|()| index)?),
    }
}

fn ours(socket: &mut Socket, name: &str) -> Result<Link, DeviceError> {
    let found = link::by_name(socket, name)?.ok_or_else(|| DeviceError::Vanished { name: name.to_owned() })?;
    if found.mac == Some(Mac::WEFT) { Ok(found) } else { Err(DeviceError::Foreign { name: name.to_owned() }) }
}
