//! The limits: two namespaces and one veth pair.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::{Ends, Layout, LayoutName};
use crate::netns::Netns;

/// Two namespaces joined by one veth pair.
pub struct Direct {
    name: LayoutName,
    spaces: Option<[Arc<Netns>; 2]>,
}

impl Direct {
    /// `name` is `Veth` or `Node`: they differ in what the namespaces stand for.
    pub fn new(name: LayoutName) -> Self {
        Self { name, spaces: None }
    }
}

impl Layout for Direct {
    fn name(&self) -> LayoutName {
        self.name
    }

    fn up(&mut self) -> Result<()> {
        let pair = [
            Netns::create(&format!("{}-1", self.name.as_str()))?,
            Netns::create(&format!("{}-2", self.name.as_str()))?,
        ];
        let [a, b] = self.spaces.insert(pair.map(Arc::new));
        join(a, b, "10.201.0", "fd00:201:")?;
        if self.name == LayoutName::Node {
            forwarding(a)?;
            forwarding(b)?;
        }
        Ok(())
    }

    fn ends(&self) -> Result<Ends> {
        let [client, server] = self.spaces.clone().context("the layout is not up")?;
        Ok(Ends {
            client,
            server,
            device: "eth0".to_owned(),
            v4: Ipv4Addr::new(10, 201, 0, 2),
            v6: Ipv6Addr::new(0xfd00, 0x201, 0, 0, 0, 0, 0, 2),
        })
    }

    fn wire(&self) -> Result<Vec<(Arc<Netns>, String)>> {
        let nodes = self.spaces.iter().flatten().filter(|_| self.name == LayoutName::Node);
        Ok(nodes.map(|node| (Arc::clone(node), "eth0".to_owned())).collect())
    }

    fn down(&mut self) -> Result<()> {
        self.spaces = None;
        Ok(())
    }
}

/// Joins two namespaces by a veth pair with an `eth0` at each end: addresses .1 and .2 of `v4`.0/24, ::1 and ::2 of
/// `v6`:/64.
pub(super) fn join(a: &Netns, b: &Netns, v4: &str, v6: &str) -> Result<()> {
    a.enter(|| {
        crate::netns::sh("ip link add eth0 mtu 1500 type veth peer name wb0 mtu 1500")?;
        crate::netns::sh(&format!("ip link set wb0 netns {}", b.path().display()))
    })?;
    b.sh("ip link set wb0 name eth0")?;
    for (number, netns) in [(1, a), (2, b)] {
        netns.script(&format!(
            "ip addr add {v4}.{number}/24 dev eth0
             ip addr add {v6}:{number}/64 dev eth0 nodad
             ip link set eth0 up"
        ))?;
    }
    Ok(())
}

/// Makes a namespace forward, as a node does.
pub(crate) fn forwarding(node: &Netns) -> Result<()> {
    node.sysctl("net/ipv4/ip_forward", "1")?;
    node.sysctl("net/ipv6/conf/all/forwarding", "1")
}
