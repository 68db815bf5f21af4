//! The answer to ADD.
use std::net::IpAddr;

use cni_common::net::Mac;
use cni_plugin::spec::{AddResult, Cidr, Interface, IpConfig, Route, Version};

use crate::{netlink::names::gateway_for, tables::Endpoint};

/// What ADD answers for an endpoint, however often it is asked.
pub(super) fn answer(e: &Endpoint) -> AddResult {
    let host = Interface { name: e.device.clone(), mac: Mac::WEFT.to_string(), ..Interface::default() };
    let pod =
        Interface { name: e.ifname.clone(), mac: e.mac.to_string(), sandbox: e.netns.clone(), ..Interface::default() };
    let cidr = |a: IpAddr, len: u8| Cidr::new(a, len).ok();
    let width = |a: IpAddr| if a.is_ipv4() { 32 } else { 128 };
    AddResult {
        cni_version: Version::V1_1_0,
        interfaces: vec![host, pod],
        ips: e
            .ips()
            .filter_map(|a| {
                let address = cidr(a, width(a))?;
                Some(IpConfig { version: None, address, gateway: Some(gateway_for(a)), interface: Some(1) })
            })
            .collect(),
        routes: routes(e),
        dns: e.terms.dns.clone(),
    }
}

/// The routes in the pod.
fn routes(e: &Endpoint) -> Vec<Route> {
    let through = |dst: Cidr, gateway| Route { mtu: Some(e.mtu), ..Route::via(dst, gateway) };
    let any = |a: IpAddr| -> IpAddr { if a.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() } };
    // What stands in the interface's own table is the same whatever was asked for (`netlink/pod.rs`).
    let in_main = |dst: &ipnet::IpNet| !(e.terms.own_table && dst.prefix_len() == 0);
    let asked = e.terms.routes.iter().filter(|r| in_main(&r.dst)).filter_map(|r| {
        let dst = Cidr::new(r.dst.addr(), r.dst.prefix_len()).ok()?;
        Some(Route { priority: r.priority, ..through(dst, gateway_for(r.dst.addr())) })
    });
    let default = e.ips().filter(|_| e.terms.routes.is_empty() || e.terms.own_table).filter_map(|a| {
        let table = e.terms.own_table.then_some(e.ifindex);
        Some(Route { table, ..through(Cidr::new(any(a), 0).ok()?, gateway_for(a)) })
    });
    asked.chain(default).collect()
}

#[cfg(test)]
mod tests {
    use cni_plugin::spec::Dns;

    use super::*;
    use crate::tables::{PodRoute, Terms};

    fn endpoint(terms: Terms) -> Endpoint {
        Endpoint {
            id: 7,
            container_id: "c1".into(),
            ifname: "net1".into(),
            namespace: String::new(),
            pod_name: String::new(),
            netns: "/run/netns/c1".into(),
            ifindex: 0x5000_0007,
            device: "weft7".into(),
            mac: Mac::new([2, 0, 0, 0, 0, 7]),
            ipv4: Some([10, 0, 0, 7].into()),
            ipv6: "fd00::7".parse().ok(),
            mtu: 1450,
            terms,
        }
    }

    fn told(terms: Terms) -> Vec<String> {
        let routes = answer(&endpoint(terms)).routes;
        let table = |r: &Route| r.table.map(|t| format!(" table {t:x}")).unwrap_or_default();
        let metric = |r: &Route| r.priority.map(|p| format!(" metric {p}")).unwrap_or_default();
        assert!(routes.iter().all(|r| r.mtu == Some(1450) && r.gw == Some(gateway_for(r.dst.addr()))), "{routes:?}");
        routes.iter().map(|r| format!("{}{}{}", r.dst, metric(r), table(r))).collect()
    }

    #[test]
    fn the_routes_are_those_that_were_made() {
        let asked = |dst: &str| PodRoute { dst: dst.parse().expect("a CIDR"), priority: Some(5) };
        assert_eq!(told(Terms::default()), ["0.0.0.0/0", "::/0"]);
        let own = Terms { own_table: true, ..Terms::default() };
        assert_eq!(told(own.clone()), ["0.0.0.0/0 table 50000007", "::/0 table 50000007"]);
        let routes = vec![asked("10.0.0.0/8"), asked("0.0.0.0/0")];
        let given = Terms { delegated: true, routes: routes.clone(), ..Terms::default() };
        assert_eq!(told(given), ["10.0.0.0/8 metric 5", "0.0.0.0/0 metric 5"]);
        let beside = Terms { routes, ..own };
        assert_eq!(told(beside), ["10.0.0.0/8 metric 5", "0.0.0.0/0 table 50000007", "::/0 table 50000007"]);
    }

    #[test]
    fn addresses_belong_to_the_pods_end_and_name_resolution_is_handed_on() {
        let dns = Dns { nameservers: vec!["10.96.0.10".into()], ..Dns::default() };
        let result = answer(&endpoint(Terms { dns: dns.clone(), ..Terms::default() }));
        assert_eq!(result.dns, dns);
        assert_eq!(result.interfaces.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["weft7", "net1"]);
        let ips: Vec<_> = result.ips.iter().map(|ip| (ip.address.to_string(), ip.interface)).collect();
        assert_eq!(ips, [("10.0.0.7/32".to_owned(), Some(1)), ("fd00::7/128".to_owned(), Some(1))]);
    }
}
