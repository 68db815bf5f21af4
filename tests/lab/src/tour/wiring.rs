//! What CNI ADD has made, read back from the kernel.
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use cni_agent::netlink::{Socket, addr, link, neigh, netns, route, tc};

use crate::{Added, Node, pod::INTERFACE};

/// Prints both ends of a pod's wire.
pub(super) fn show(node: &Node, added: &Added) -> Result<()> {
    let open = |name: &str| -> Result<Socket> {
        let netns = netns::open(netns::path_of(name)).with_context(|| format!("open the network namespace {name}"))?;
        Ok(Socket::open_in(std::os::fd::AsFd::as_fd(&netns))?)
    };
    let (mut outside, mut inside) = (open(&node.netns())?, open(&added.pod.netns())?);
    let eth0 = link::by_name(&mut inside, INTERFACE)?.context("the pod has no eth0")?;
    let host = eth0.link.map(|index| link::by_index(&mut outside, index)).transpose()?.flatten();
    let host = host.context("the pod's eth0 has no other end on its node")?;
    let block = tc::qdiscs(&mut outside)?.into_iter().filter(|q| q.index == host.index).find_map(|q| q.ingress_block);

    println!("               what that made on {}:", node.name());
    let joined = block.map_or_else(|| "no block".into(), |b| format!("tc block {b:#x}"));
    println!(
        "                 {} (index {}, MAC {}): its ingress joins {joined}",
        host.name,
        host.index,
        host.mac.map_or_else(String::new, |m| m.to_string()),
    );
    for filter in block.map(|b| tc::filters(&mut outside, tc::Place::Block(b))).transpose()?.unwrap_or_default() {
        println!(
            "                 in that block, for all pods: program {} (id {})",
            filter.name.unwrap_or_default(),
            filter.program_id.map_or_else(|| "?".into(), |id| id.to_string()),
        );
    }
    println!("               and in the pod:");
    println!(
        "                 {} (index {}, MAC {}, MTU {})",
        eth0.name,
        eth0.index,
        eth0.mac.map_or_else(String::new, |m| m.to_string()),
        eth0.mtu,
    );
    for address in addr::list(&mut inside)?.iter().filter(|a| a.index == eth0.index) {
        println!("                 address {}", address.net);
    }
    for route in route::list(&mut inside)?.iter().filter(|r| r.index == eth0.index && r.dst.prefix_len() == 0) {
        let gateway = route.gateway.map_or_else(String::new, |g: IpAddr| format!(" through {g}"));
        let mtu = route.mtu.map_or_else(String::new, |m| format!(", MTU {m}"));
        println!("                 route to {}{gateway}{mtu}", route.dst);
    }
    for entry in neigh::list(&mut inside)?.iter().filter(|n| n.state == neigh::State::Permanent) {
        let mac = entry.mac.map_or_else(String::new, |m| m.to_string());
        println!("                 the gateway {} is {mac}: nobody has to ask for it", entry.addr);
    }
    Ok(())
}
