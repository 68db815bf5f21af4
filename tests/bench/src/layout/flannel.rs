//! Flannel's layout with its VXLAN backend: `cni0` on each node, a kernel vxlan device in between, masquerade rules.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::Result;

use super::bridge::Subnet;
use super::direct::join;
use super::{Ends, Layout, LayoutName};
use crate::netns::Netns;

const CLUSTER4: &str = "10.203.0.0/16";
const CLUSTER6: &str = "fd00:203::/48";

/// Two nodes with one pod each.
#[derive(Default)]
pub struct Flannel {
    spaces: Vec<Arc<Netns>>,
}

impl Layout for Flannel {
    fn name(&self) -> LayoutName {
        LayoutName::Flannel
    }

    fn up(&mut self) -> Result<()> {
        for name in ["flannel-node-1", "flannel-node-2", "flannel-1", "flannel-2"] {
            self.spaces.push(Arc::new(Netns::create(name)?));
        }
        let [node1, node2, pod1, pod2] = &self.spaces[..] else { return Ok(()) };
        join(node1, node2, "192.168.203", "fd00:fe:203:")?;
        for (node, pod, own, other) in [(node1, pod1, 1, 2), (node2, pod2, 2, 1)] {
            let (v4, v6) = (format!("10.203.{own}"), format!("fd00:203:0:{own}::"));
            let subnet = Subnet { v4: &v4, v6: &v6, mtu: 1450 };
            subnet.bridge(node)?;
            subnet.plug(node, pod, 2)?;
            // Flannel announces one MTU for both families; the larger outer header of the second overlay leaves room
            // for less.
            pod.sh(&format!("ip -6 route replace default via {v6}1 mtu 1430"))?;
            tunnels(node, own, other)?;
            rules(node, "iptables", CLUSTER4, &format!("{v4}.0/24"), "224.0.0.0/4")?;
            rules(node, "ip6tables", CLUSTER6, &format!("{v6}/64"), "ff00::/8")?;
        }
        Ok(())
    }

    fn ends(&self) -> Result<Ends> {
        let [_, _, client, server] = &self.spaces[..] else { return Err(anyhow::anyhow!("the layout is not up")) };
        Ok(Ends {
            client: Arc::clone(client),
            server: Arc::clone(server),
            device: "eth0".to_owned(),
            v4: Ipv4Addr::new(10, 203, 2, 2),
            v6: Ipv6Addr::new(0xfd00, 0x203, 0, 2, 0, 0, 0, 2),
        })
    }

    fn wire(&self) -> Result<Vec<(Arc<Netns>, String)>> {
        Ok(self.spaces.iter().take(2).map(|node| (Arc::clone(node), "eth0".to_owned())).collect())
    }

    fn down(&mut self) -> Result<()> {
        self.spaces.clear();
        Ok(())
    }
}

/// The vxlan device of each family and the way to the other node through it: neighbour, forwarding entry, route. What
/// flanneld does for each lease.
fn tunnels(node: &Netns, own: u8, other: u8) -> Result<()> {
    node.script(&format!(
        "ip link add flannel.1 address 02:57:04:00:00:0{own} mtu 1450 type vxlan id 1 dev eth0 local 192.168.203.{own} dstport 8472 nolearning
         ip addr add 10.203.{own}.0/32 dev flannel.1
         ip link set flannel.1 up
         ip neigh replace 10.203.{other}.0 lladdr 02:57:04:00:00:0{other} dev flannel.1 nud permanent
         bridge fdb append 02:57:04:00:00:0{other} dev flannel.1 dst 192.168.203.{other}
         ip route replace 10.203.{other}.0/24 via 10.203.{other}.0 dev flannel.1 onlink
         ip link add flannel-v6.1 address 02:57:06:00:00:0{own} mtu 1430 type vxlan id 1 dev eth0 local fd00:fe:203::{own} dstport 8472 nolearning
         ip addr add fd00:203:0:{own}::/128 dev flannel-v6.1 nodad
         ip link set flannel-v6.1 up
         ip -6 neigh replace fd00:203:0:{other}:: lladdr 02:57:06:00:00:0{other} dev flannel-v6.1 nud permanent
         bridge fdb append 02:57:06:00:00:0{other} dev flannel-v6.1 dst fd00:fe:203::{other}
         ip -6 route replace fd00:203:0:{other}::/64 via fd00:203:0:{other}:: dev flannel-v6.1 onlink"
    ))
}

/// flanneld's chains: traffic between pods keeps its addresses, what leaves or enters the cluster is masqueraded,
/// forwarding is allowed.
fn rules(node: &Netns, iptables: &str, cluster: &str, own: &str, multicast: &str) -> Result<()> {
    node.script(&format!(
        "{iptables} -w -t nat -N FLANNEL-POSTRTG
         {iptables} -w -t nat -A POSTROUTING -m comment --comment flanneld -j FLANNEL-POSTRTG
         {iptables} -w -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
         {iptables} -w -t nat -A FLANNEL-POSTRTG -s {own} -d {cluster} -j RETURN
         {iptables} -w -t nat -A FLANNEL-POSTRTG -s {cluster} -d {own} -j RETURN
         {iptables} -w -t nat -A FLANNEL-POSTRTG ! -s {cluster} -d {own} -j RETURN
         {iptables} -w -t nat -A FLANNEL-POSTRTG -s {cluster} ! -d {multicast} -j MASQUERADE --random-fully
         {iptables} -w -t nat -A FLANNEL-POSTRTG ! -s {cluster} -d {cluster} -j MASQUERADE --random-fully
         {iptables} -w -N FLANNEL-FWD
         {iptables} -w -A FORWARD -m comment --comment flanneld -j FLANNEL-FWD
         {iptables} -w -A FLANNEL-FWD -s {cluster} -j ACCEPT
         {iptables} -w -A FLANNEL-FWD -d {cluster} -j ACCEPT"
    ))
}
