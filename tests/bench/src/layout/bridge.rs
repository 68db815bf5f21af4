//! The reference `bridge` plugin's layout: what one gets by default with `isGateway` and `ipMasq`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context as _, Result};

use super::{Ends, Layout, LayoutName, forwarding};
use crate::netns::{Netns, sh};

/// One node with `cni0` and two pods.
#[derive(Default)]
pub struct Bridge {
    spaces: Vec<Arc<Netns>>,
}

impl Layout for Bridge {
    fn name(&self) -> LayoutName {
        LayoutName::Bridge
    }

    fn up(&mut self) -> Result<()> {
        for name in ["bridge-node", "bridge-1", "bridge-2"] {
            self.spaces.push(Arc::new(Netns::create(name)?));
        }
        let [node, a, b] = &self.spaces[..] else { return Ok(()) };
        let subnet = Subnet { v4: "10.202.0", v6: "fd00:202::", mtu: 1500 };
        subnet.bridge(node)?;
        for (number, pod) in [(2, a), (3, b)] {
            subnet.plug(node, pod, number)?;
            // `ipMasq`: for each address of a pod a chain of its own, which spares the pods' subnet and multicast.
            for (iptables, address, subnet, multicast) in [
                ("iptables", format!("10.202.0.{number}/32"), "10.202.0.0/24", "224.0.0.0/4"),
                ("ip6tables", format!("fd00:202::{number}/128"), "fd00:202::/64", "ff00::/8"),
            ] {
                let chain = format!("CNI-{number:024x}");
                node.script(&format!(
                    "{iptables} -w -t nat -N {chain}
                     {iptables} -w -t nat -A {chain} -d {subnet} -j ACCEPT -m comment --comment name:bench
                     {iptables} -w -t nat -A {chain} ! -d {multicast} -j MASQUERADE -m comment --comment name:bench
                     {iptables} -w -t nat -A POSTROUTING -s {address} -j {chain} -m comment --comment name:bench"
                ))?;
            }
        }
        Ok(())
    }

    fn ends(&self) -> Result<Ends> {
        let [_, client, server] = &self.spaces[..] else { return Err(anyhow::anyhow!("the layout is not up")) };
        Ok(Ends {
            client: Arc::clone(client),
            server: Arc::clone(server),
            device: "eth0".to_owned(),
            v4: Ipv4Addr::new(10, 202, 0, 3),
            v6: Ipv6Addr::new(0xfd00, 0x202, 0, 0, 0, 0, 0, 3),
        })
    }

    fn wire(&self) -> Result<Vec<(Arc<Netns>, String)>> {
        Ok(Vec::new())
    }

    fn down(&mut self) -> Result<()> {
        self.spaces.clear();
        Ok(())
    }
}

/// The pods' addresses on one node and the bridge that they hang on.
pub(super) struct Subnet<'a> {
    /// The /24, without its last byte.
    pub(super) v4: &'a str,
    /// The /64, with its colons.
    pub(super) v6: &'a str,
    /// MTU of the bridge and of the pods.
    pub(super) mtu: u32,
}

impl Subnet<'_> {
    /// Makes `cni0` with the subnet's first address, and sets the node's sysctls as the plugin and Kubernetes ask for.
    pub(super) fn bridge(&self, node: &Netns) -> Result<()> {
        let Self { v4, v6, mtu } = self;
        forwarding(node)?;
        for call in ["iptables", "ip6tables"] {
            node.sysctl(&format!("net/bridge/bridge-nf-call-{call}"), "1").context(
                "br_netfilter is needed (modprobe br_netfilter): without it the bridge peer is cheaper than a real one",
            )?;
        }
        node.script(&format!(
            "ip link add cni0 mtu {mtu} type bridge forward_delay 0
             ip addr add {v4}.1/24 dev cni0
             ip addr add {v6}1/64 dev cni0 nodad
             ip link set cni0 up"
        ))
    }

    /// Wires a pod with the subnet's address number `number` to the bridge.
    pub(super) fn plug(&self, node: &Netns, pod: &Netns, number: u8) -> Result<()> {
        let Self { v4, v6, mtu } = self;
        node.enter(|| {
            sh(&format!(
                "ip link add veth{number} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
                pod.path().display()
            ))?;
            sh(&format!("ip link set veth{number} master cni0 up"))
        })?;
        pod.script(&format!(
            "ip addr add {v4}.{number}/24 dev eth0
             ip addr add {v6}{number}/64 dev eth0 nodad
             ip link set eth0 up
             ip route add default via {v4}.1
             ip -6 route add default via {v6}1"
        ))
    }
}
