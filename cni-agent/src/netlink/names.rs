//! Names and numbers of ours that others on the node can see.
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU32,
};

/// The stack's side of the node's own wire: routes to pods point to it.
pub const HOST: &str = "weft_host";
/// The other side of the node's own wire: what the stack sends to pods enters the programs here.
pub const NET: &str = "weft_net";
/// The kernel's VXLAN device, which takes what the programs leave to it.
pub const VXLAN: &str = "weft_vxlan";
/// The anchor of the pods' shared tc block. It never comes up, so no packet ever enters it.
pub const BLOCK: &str = "weft_block";
/// The other end of the anchor's veth pair.
pub const BLOCK_PEER: &str = "weft_block_p";
/// What the names of the pods' host-side devices begin with; the endpoint id in hexadecimal digits follows.
pub const POD_PREFIX: &str = "weft";

/// Number of the shared tc block, "WEFT" in ASCII: unlikely to be anybody else's.
pub const BLOCK_INDEX: u32 = 0x5745_4654;
/// Priority of our tc filters. Others may stand before and behind it.
pub const FILTER_PRIORITY: u16 = 0x57;
/// Handle of our tc filters within that priority.
pub const FILTER_HANDLE: u32 = 1;

/// Group of the devices that are about to be deleted together, "WEFT" in ASCII. Whatever else is put into it goes with them.
pub const DOOMED_GROUP: NonZeroU32 = NonZeroU32::new(0x5745_4654).unwrap();

/// Routing protocol number of our routes and rules, 'W': how we know them from others. The kernel gives it no meaning.
pub const ROUTE_PROTOCOL: u8 = 87;
/// Priority of our policy rules in pods: before the main table's (32766), and behind what people write by hand, who begin low.
pub const RULE_PRIORITY: u32 = 22_359;
/// UDP port of VXLAN unless the settings say otherwise. Linux' own default, not IANA's 4789.
pub const VXLAN_PORT: u16 = 8472;

/// The pods' IPv4 gateway: link-local, the same for every pod, answered by a permanent neighbour entry.
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::from_octets(cni_common::net::GATEWAY4.bytes);
/// The pods' IPv6 gateway.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::from_octets(cni_common::net::GATEWAY6.bytes);

/// First of the interface indexes that we choose ourselves. The kernel counts up from 1 in each namespace and would need
/// years to come here.
pub const FIRST_IFINDEX: u32 = 0x5000_0000;

/// Name of the host-side device of endpoint `id`: `weft2a`.
#[must_use]
pub fn pod_device(id: u16) -> String {
    format!("{POD_PREFIX}{id:x}")
}

/// Whether this is the name of one of the node's own devices of ours; pods' devices are none.
#[must_use]
pub fn is_node_device(name: &str) -> bool {
    [HOST, NET, VXLAN, BLOCK, BLOCK_PEER].contains(&name)
}

/// Endpoint whose host-side device is called `name`; none if the name is not of that form.
#[must_use]
pub fn endpoint_of(name: &str) -> Option<u16> {
    let digits = name.strip_prefix(POD_PREFIX)?;
    // What we write has neither capitals, leading zeros nor a sign.
    let id = u16::from_str_radix(digits, 16).ok()?;
    (pod_device(id) == name).then_some(id)
}

/// The pods' gateway of the family of `addr`.
#[must_use]
pub const fn gateway_for(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(_) => IpAddr::V4(GATEWAY4),
        IpAddr::V6(_) => IpAddr::V6(GATEWAY6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_devices_name_gives_its_endpoint_back() {
        for id in [0, 1, 0x2a, u16::MAX] {
            assert_eq!(endpoint_of(&pod_device(id)), Some(id));
        }
    }

    #[test]
    fn other_names_belong_to_no_endpoint() {
        for name in ["weft_host", "weft_net", "weft", "weft+1", "weft01", "weftA", "weft10000", "eth0"] {
            assert_eq!(endpoint_of(name), None, "{name}");
        }
    }
}
