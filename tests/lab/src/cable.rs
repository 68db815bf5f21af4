//! A namespace at the end of a wire: how whoever is no node is joined to the others.
use std::{net::IpAddr, os::fd::AsFd as _};

use anyhow::{Context as _, Result};
use cni_agent::netlink::{
    Socket, addr,
    link::{self, End},
    netns,
    route::{self, Route},
};
use ipnet::IpNet;

/// Device in such a namespace.
pub(crate) const DEVICE: &str = "eth0";

/// Makes a namespace and a wire into it, both ends up; gives the near one's index.
pub(crate) fn lay(
    socket: &mut Socket,
    near: &End<'_>,
    far: &str,
    addresses: &[IpNet],
    routes: impl FnOnce(u32) -> Vec<Route>,
) -> Result<u32> {
    let netns = netns::create(far).with_context(|| format!("make the network namespace {far}"))?;
    let end = End { name: DEVICE, netns: Some(netns.as_fd()), ..End::default() };
    socket.run(link::create_veth(near, &end))?;
    let mut inside = Socket::open_in(netns.as_fd())?;
    inside.run(link::up(link::LOOPBACK))?;
    // As on the nodes: nobody waits for the search for duplicates.
    netns::set_sysctl(&netns, &format!("ipv6/conf/{DEVICE}/accept_dad"), "0")?;
    let (index, other) = (index_of(socket, near.name)?, index_of(&mut inside, DEVICE)?);
    socket.run(link::up(index))?;
    inside.run(link::up(other))?;
    inside.batch(addresses.iter().map(|net| addr::add(other, *net)).collect())?;
    inside.batch(routes(other).iter().map(route::add).collect())?;
    Ok(index)
}

/// A route to `to`, or the default one, as `ip route add` makes it.
pub(crate) fn way(via: IpAddr, to: Option<IpNet>, device: u32) -> Route {
    let all = Route::default_through(via, device);
    // Not one of Weft's, although made by its functions: protocol "boot".
    Route { dst: to.unwrap_or(all.dst), onlink: false, protocol: 3, ..all }
}

/// Index of the device called `name`.
pub(crate) fn index_of(socket: &mut Socket, name: &str) -> Result<u32> {
    Ok(link::by_name(socket, name)?.with_context(|| format!("device {name} has vanished"))?.index)
}
