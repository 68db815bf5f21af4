//! Under which address of the node masqueraded pods leave by a device: the one that the kernel gives what the node itself sends there. Pure.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::{
    addr::{Address, Flags, Scope},
    link::LOOPBACK,
    route::Route,
};

/// What the choice is made from.
#[derive(Clone, Copy, Debug)]
pub struct Leave<'a> {
    /// Addresses of the node's devices, in the kernel's order.
    pub addresses: &'a [Address],
    /// The main table.
    pub routes: &'a [Route],
    /// The InternalIPs of this node's Node object.
    pub internal: &'a [IpAddr],
}

impl Leave<'_> {
    /// For IPv4 as `inet_select_addr` of the kernel chooses: what the route names; else of the device's primary addresses the first in the gateway's
    /// network, or else the first. `None` where the kernel has none.
    pub fn v4(&self, index: u32) -> Option<Ipv4Addr> {
        let way = self.way(index, true);
        let named = way.and_then(|r| r.source).filter(|a| self.has(*a));
        let primary = |a: &&Address| is_global(a) && !a.flags.contains(Flags::Secondary);
        let gateway = way.and_then(|r| r.gateway);
        let of_device = || self.of(index, true).filter(primary);
        let chosen = named
            .or_else(|| of_device().find(|a| gateway.is_some_and(|g| a.net.contains(&g))).map(|a| a.net.addr()))
            .or_else(|| of_device().next().map(|a| a.net.addr()))
            .or_else(|| self.elsewhere(way, true));
        chosen.and_then(|a| if let IpAddr::V4(a) = a { Some(a) } else { None })
    }

    /// For IPv6 the kernel chooses anew for each destination (RFC 6724), and we once: what the route names; else of the device's addresses
    /// one that others know to be there, is routed everywhere, is the node's InternalIP, is not deprecated, and does not change every day,
    /// in this order.
    pub fn v6(&self, index: u32) -> Option<Ipv6Addr> {
        let way = self.way(index, false);
        let named = way.and_then(|r| r.source).filter(|a| self.has(*a));
        let rank = |a: &&Address| {
            let has = |flag| a.flags.contains(flag);
            let unique_local = matches!(a.net.addr(), IpAddr::V6(a) if a.is_unique_local());
            (
                has(Flags::Tentative) && !has(Flags::Optimistic),
                unique_local,
                !self.internal.contains(&a.net.addr()),
                has(Flags::Deprecated),
                // `IFA_F_TEMPORARY` is the same bit.
                has(Flags::Secondary),
            )
        };
        let usable = |a: &&Address| is_global(a) && !a.flags.contains(Flags::Dadfailed);
        let chosen = named
            .or_else(|| self.of(index, false).filter(usable).min_by_key(rank).map(|a| a.net.addr()))
            .or_else(|| self.elsewhere(way, false));
        chosen.and_then(|a| if let IpAddr::V6(a) = a { Some(a) } else { None })
    }

    /// The widest route that leads by the device further than to its link.
    fn way(&self, index: u32, v4: bool) -> Option<&Route> {
        let further = |r: &&Route| {
            r.index == index && r.dst.addr().is_ipv4() == v4 && (r.gateway.is_some() || r.dst.prefix_len() == 0)
        };
        let metric = |r: &Route| r.priority.unwrap_or(if v4 { 0 } else { 1024 });
        self.routes.iter().filter(further).min_by_key(|r| (r.dst.prefix_len(), metric(r)))
    }

    /// Where a route leads by a device without an address: the kernel takes another device's. The loopback device has those that are the node's, whichever way
    /// packets go.
    fn elsewhere(&self, way: Option<&Route>, v4: bool) -> Option<IpAddr> {
        way?;
        let internal = self.internal.iter().copied().find(|a| a.is_ipv4() == v4 && self.has(*a));
        internal.or_else(|| self.of(LOOPBACK, v4).find(|a| is_global(a)).map(|a| a.net.addr()))
    }

    fn of(&self, index: u32, v4: bool) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |a| a.index == index && a.net.addr().is_ipv4() == v4)
    }

    fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.net.addr() == address)
    }
}

/// Valid beyond the link.
fn is_global(a: &Address) -> bool {
    let addr = match a.net.addr() {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    };
    addr && !matches!(a.scope, Scope::Link | Scope::Host | Scope::Nowhere)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETH0: u32 = 2;
    const INTERNAL: &str = "192.0.2.7";

    fn at(index: u32, net: &str, flags: Flags) -> Address {
        Address { index, net: net.parse().unwrap(), scope: Scope::Universe, flags }
    }
    fn plain(net: &str) -> Address {
        at(ETH0, net, Flags::Permanent)
    }
    fn default(gateway: &str, source: Option<&str>, priority: u32) -> Route {
        let route = Route::default_through(gateway.parse().unwrap(), ETH0);
        Route { source: source.map(|s| s.parse().unwrap()), priority: Some(priority), ..route }
    }
    /// What is chosen, in words.
    fn chosen(addresses: &[Address], routes: &[Route], internal: &[&str]) -> String {
        let internal: Vec<IpAddr> = internal.iter().map(|a| a.parse().unwrap()).collect();
        let leave = Leave { addresses, routes, internal: &internal };
        let text = |a: Option<IpAddr>| a.map_or("-".to_owned(), |a| a.to_string());
        match addresses.iter().find(|a| a.index == ETH0).or(addresses.first()).is_some_and(|a| a.net.addr().is_ipv4()) {
            true => text(leave.v4(ETH0).map(IpAddr::V4)),
            false => text(leave.v6(ETH0).map(IpAddr::V6)),
        }
    }

    #[test]
    fn the_first_primary_address_is_taken_as_the_kernel_does() {
        let two = [
            at(ETH0, "198.51.100.9/24", Flags::Permanent),
            at(ETH0, "198.51.100.10/24", Flags::Permanent | Flags::Secondary),
            plain("192.0.2.7/24"),
        ];
        assert_eq!(chosen(&two, &[], &[INTERNAL]), "198.51.100.9");
        assert_eq!(chosen(&two[1..], &[], &[]), "192.0.2.7", "no secondary one");
        assert_eq!(chosen(&[at(3, "192.0.2.7/24", Flags::Permanent)], &[], &[INTERNAL]), "-", "another device's");
    }

    #[test]
    fn of_several_networks_the_one_of_the_gateway_counts() {
        let two = [plain("198.51.100.9/24"), plain("192.0.2.7/24")];
        assert_eq!(chosen(&two, &[default("192.0.2.1", None, 100)], &[]), "192.0.2.7");
        let both = [default("198.51.100.1", None, 200), default("192.0.2.1", None, 100)];
        assert_eq!(chosen(&two, &both, &[]), "192.0.2.7", "the route with the lower metric");
        let narrow = Route { dst: "10.0.0.0/8".parse().unwrap(), ..default("192.0.2.1", None, 0) };
        assert_eq!(chosen(&two, &[narrow, both[0].clone()], &[]), "198.51.100.9", "the wider route");
    }

    #[test]
    fn a_source_that_the_route_names_goes_before_all() {
        let two = [plain("192.0.2.7/24"), plain("192.0.2.8/24")];
        assert_eq!(chosen(&two, &[default("192.0.2.1", Some("192.0.2.8"), 0)], &[INTERNAL]), "192.0.2.8");
        let six = [plain("2001:db8::7/64"), plain("2001:db8::8/64")];
        assert_eq!(chosen(&six, &[default("fe80::1", Some("2001:db8::8"), 1024)], &["2001:db8::7"]), "2001:db8::8");
    }

    #[test]
    fn addresses_that_do_not_reach_beyond_the_link_are_none() {
        let link = Address { scope: Scope::Link, ..plain("192.0.2.7/24") };
        assert_eq!(chosen(&[link, plain("169.254.7.7/16")], &[], &[]), "-");
        assert_eq!(chosen(&[plain("fe80::7/64")], &[default("fe80::1", None, 1024)], &[]), "-");
    }

    #[test]
    fn of_ipv6_addresses_the_internal_ip_goes_first_and_passing_ones_last() {
        let (plain1, plain2) = (plain("2001:db8::1/64"), plain("2001:db8::2/64"));
        let all = [
            at(ETH0, "2001:db8::a/64", Flags::Tentative),
            at(ETH0, "2001:db8::b/64", Flags::Deprecated),
            at(ETH0, "2001:db8::c/64", Flags::Secondary),
            plain1.clone(),
            plain2.clone(),
            plain("fe80::7/64"),
        ];
        assert_eq!(chosen(&all, &[], &["2001:db8::2"]), "2001:db8::2");
        assert_eq!(chosen(&all, &[], &[]), "2001:db8::1");
        assert_eq!(chosen(&all[..3], &[], &[]), "2001:db8::c");
        assert_eq!(chosen(&all[..2], &[], &[]), "2001:db8::b");
        assert_eq!(chosen(&all[..1], &[], &[]), "2001:db8::a");
        assert_eq!(chosen(&[at(ETH0, "2001:db8::d/64", Flags::Dadfailed)], &[], &[]), "-", "somebody else's");
    }

    #[test]
    fn a_unique_local_address_is_none_for_the_world_if_another_is_there() {
        let both = [plain("fd00::7/64"), plain("2001:db8::7/64")];
        assert_eq!(chosen(&both, &[], &["fd00::7"]), "2001:db8::7");
        assert_eq!(chosen(&both[..1], &[], &["fd00::7"]), "fd00::7");
    }

    #[test]
    fn a_device_without_an_address_has_the_nodes_if_a_route_leads_by_it() {
        let lo = [at(LOOPBACK, "127.0.0.1/8", Flags::Permanent), at(LOOPBACK, "192.0.2.7/32", Flags::Permanent)];
        let route = [default("169.254.0.1", None, 0)];
        assert_eq!(chosen(&lo, &route, &[INTERNAL]), "192.0.2.7");
        assert_eq!(chosen(&lo, &route, &[]), "192.0.2.7");
        assert_eq!(chosen(&lo, &[], &[INTERNAL]), "-", "no route");
        assert_eq!(chosen(&lo[..1], &route, &[INTERNAL]), "-", "the Node object names what the node has not");
    }
}
