//! One small cluster, the same for the native maps and for the kernel's: roles, not numbers.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Fake;
use bytemuck::Zeroable;
use cni_common::{
    maps::{
        CONFIG_READY, Cidr, Config, Endpoint, Local, NODE_SELF, OWN, OWN_ANNOUNCED, REMOTE_NODE, Remote, TUNNEL_BY_MAC,
        TUNNEL_BY_NEIGHBOUR, TUNNEL_BY_STACK, Tunnel,
    },
    net::{Be16, Ip4, Ip6, Mac},
};

/// Frames of TEST_RUN come in by the loopback device.
pub const CLIENT_IFINDEX: u32 = 1;
/// The sending pod of this node.
pub const CLIENT_MAC: Mac = Mac::new([0x0a, 0, 0, 0, 0, 0x11]);
/// Its endpoint id.
pub const CLIENT_ID: u32 = 11;
/// Its label class.
pub const CLIENT_VNI: u32 = 0x00ab_cdef;
/// Another pod of this node.
pub const SERVER_MAC: Mac = Mac::new([0x0a, 0, 0, 0, 0, 0x12]);
/// The device behind which it is.
pub const SERVER_IFINDEX: u32 = 12;
/// The port of the tunnel.
pub const PORT: u16 = 8472;
/// MTU of the underlay.
pub const MTU: u32 = 1500;
/// The underlay device's MAC and the next hop's.
pub const UNDERLAY_MAC: Mac = Mac::new([0x02, 0, 0, 0, 0, 0x41]);
/// See above.
pub const NEXT_HOP_MAC: Mac = Mac::new([0x02, 0, 0, 0, 0, 0x42]);
/// The underlay device.
pub const UNDERLAY_IFINDEX: u32 = 2;
/// The stack's device.
pub const HOST_IFINDEX: u32 = 3;
/// The kernel's VXLAN device.
pub const VXLAN_IFINDEX: u32 = 4;

/// Nodes that have a number: over IPv4 and IPv6 with a known next hop, over IPv4 without one, one whose tunnel entry was never written, and
/// one to which the kernel's device has to find the way.
pub const NODE_V4: u32 = 1;
/// See above.
pub const NODE_V6: u32 = 2;
/// See above.
pub const NODE_UNRESOLVED: u32 = 3;
/// See above.
pub const NODE_EMPTY: u32 = 4;
/// See above.
pub const NODE_BY_STACK: u32 = 5;

/// An address of pod `pod` on node `node`, 0 being this one.
pub fn pod(v6: bool, node: u8, pod: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd10, 0x244, 0, node.into(), 0, 0, 0, pod.into()).into()
    } else {
        Ipv4Addr::new(10, 244, node, pod).into()
    }
}
/// The underlay address of node `node`, 0 being this one.
pub fn underlay(v6: bool, node: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(node) + 1).into()
    } else {
        Ipv4Addr::new(10, 77, 0, node + 1).into()
    }
}
/// Somebody outside of the cluster.
pub fn outside(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9).into() } else { Ipv4Addr::new(198, 51, 100, 9).into() }
}
/// A Service's address.
pub fn service(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x10).into() } else { Ipv4Addr::new(10, 96, 0, 10).into() }
}
/// The client's address.
pub fn client(v6: bool) -> IpAddr {
    pod(v6, 0, 11)
}
/// The server's address.
pub fn server(v6: bool) -> IpAddr {
    pod(v6, 0, 12)
}

fn ip4(a: IpAddr) -> Ip4 {
    match a {
        IpAddr::V4(a) => a.into(),
        IpAddr::V6(a) => panic!("{a} is not IPv4"),
    }
}
fn ip6(a: IpAddr) -> Ip6 {
    match a {
        IpAddr::V6(a) => a.into(),
        IpAddr::V4(a) => panic!("{a} is not IPv6"),
    }
}

/// The cluster.
pub fn world() -> Fake {
    let mut w = Fake {
        config: Some(Config {
            tunnel4: ip4(underlay(false, 0)),
            tunnel6: ip6(underlay(true, 0)),
            pods4: ip4(pod(false, 0, 0)),
            mask4: Ip4::new([255, 255, 255, 0]),
            pods6: ip6(pod(true, 0, 0)),
            mask6: Ip6::new([255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]),
            node4: ip4(underlay(false, 0)),
            node6: ip6(underlay(true, 0)),
            flags: CONFIG_READY,
            weft_host: HOST_IFINDEX,
            weft_vxlan: VXLAN_IFINDEX,
            // Windows that are over at once: nothing is limited.
            hz: 0,
            event_rate: 1_000_000,
            tunnel_port: Be16::from_host(PORT),
            pad: 0,
        }),
        ..Fake::default()
    };
    w.endpoints.insert(
        CLIENT_IFINDEX,
        Endpoint {
            addr4: ip4(client(false)),
            addr6: ip6(client(true)),
            id: CLIENT_ID,
            vni: CLIENT_VNI,
            mac: CLIENT_MAC,
            ..Endpoint::zeroed()
        },
    );
    let local = |ifindex, id, mac| Local { ifindex, id, mac, ..Local::zeroed() };
    for (p, l) in [
        (client as fn(bool) -> IpAddr, local(CLIENT_IFINDEX, CLIENT_ID, CLIENT_MAC)),
        (server, local(SERVER_IFINDEX, 12, SERVER_MAC)),
    ] {
        w.v4.local.insert(ip4(p(false)), l);
        w.v6.local.insert(ip6(p(true)), l);
    }
    for node in [NODE_V4, NODE_V6, NODE_UNRESOLVED, NODE_EMPTY, NODE_BY_STACK] {
        let n = node as u8;
        // Pod 1 of each node is known by its Pod object, the others by the node's CIDR only.
        w.v4.remote.insert(ip4(pod(false, n, 1)), Remote { node, ..Remote::zeroed() });
        w.v6.remote.insert(ip6(pod(true, n, 1)), Remote { node, ..Remote::zeroed() });
        let is_node = Remote { node, flags: REMOTE_NODE, ..Remote::zeroed() };
        w.v4.remote.insert(ip4(underlay(false, n)), is_node);
        w.v6.remote.insert(ip6(underlay(true, n)), is_node);
        w.v4.nodes.insert(ip4(underlay(false, n)), node);
        w.v6.nodes.insert(ip6(underlay(true, n)), node);
        w.v4.cidr.push((24, ip4(pod(false, n, 0)), Cidr { node }));
        w.v6.cidr.push((64, ip6(pod(true, n, 0)), Cidr { node }));
    }
    w.v4.cidr.push((24, ip4(pod(false, 0, 0)), Cidr { node: NODE_SELF }));
    w.v6.cidr.push((64, ip6(pod(true, 0, 0)), Cidr { node: NODE_SELF }));
    w.v4.own.insert(ip4(underlay(false, 0)), OWN | OWN_ANNOUNCED);
    w.v6.own.insert(ip6(underlay(true, 0)), OWN | OWN_ANNOUNCED);
    w.v4.own.insert(second_own(), OWN);
    w.v4.services.push((12, ip4(service(false))));
    w.v6.services.push((108, ip6(service(true))));
    let tunnel = |node: u32, family, ready| Tunnel {
        addr4: ip4(underlay(false, node as u8)),
        addr6: ip6(underlay(true, node as u8)),
        ifindex: UNDERLAY_IFINDEX,
        mtu: MTU,
        dmac: NEXT_HOP_MAC,
        smac: UNDERLAY_MAC,
        family,
        ready,
        ..Tunnel::zeroed()
    };
    w.tunnels.insert(NODE_V4, tunnel(NODE_V4, 4, TUNNEL_BY_MAC));
    w.tunnels.insert(NODE_V6, tunnel(NODE_V6, 6, TUNNEL_BY_MAC));
    w.tunnels.insert(NODE_UNRESOLVED, tunnel(NODE_UNRESOLVED, 4, TUNNEL_BY_NEIGHBOUR));
    w.tunnels.insert(NODE_BY_STACK, tunnel(NODE_BY_STACK, 6, TUNNEL_BY_STACK));
    w
}
/// An address of this node that is not its tunnel address.
pub fn second_own() -> Ip4 {
    Ip4::new([192, 0, 2, 200])
}
