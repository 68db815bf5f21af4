//! What a request for a connection asks for, read before anything is done.
use std::{collections::BTreeSet, net::IpAddr};

use cni_common::net::Mac;
use cni_plugin::{
    protocol::Request,
    spec::{AddResult, CniError, ErrorCode, NetConf, Route},
};
use ipnet::IpNet;

use crate::tables::{PodRoute, Terms};

/// A connection as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// The MAC address of the pod's end, if the runtime minds.
    pub(super) mac: Option<Mac>,
    /// Where the addresses come from.
    pub(super) addresses: Addresses,
    /// What is kept of it.
    pub(super) terms: Terms,
}

/// Where an endpoint's addresses come from; at most one a family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Addresses {
    /// From this node's ranges: these, and where a family is missing any.
    Own(Vec<IpAddr>),
    /// Another IPAM plugin gave exactly these.
    Given(Vec<IpAddr>),
}

impl Wish {
    /// Reads configuration and IPAM result. `node` are the addresses of this node, which no pod may have.
    pub(super) fn read(request: &Request, node: &BTreeSet<IpAddr>) -> Result<Self, CniError> {
        let conf = NetConf::from_json(&request.config)?;
        let mac = conf.requested_mac()?.map(Mac::new);
        if let Some(ours) = mac.filter(|mac| [Mac::WEFT, Mac::OVERLAY].contains(mac)) {
            let text = format!("runtimeConfig.mac = \"{ours}\" is the address of Weft's own devices");
            return Err(CniError::new(ErrorCode::INVALID_CONFIG, text).with_details("ask for another MAC address"));
        }
        let terms = Terms { network: conf.name.clone(), ..Terms::default() };
        let own_dns = conf.dns.clone().filter(|dns| !dns.is_empty());
        let Some(given) = &request.ipam else {
            if let Some(plugin) = conf.ipam_type() {
                let text = format!("the configuration names the IPAM plugin {plugin}, and weft-cni did not ask it");
                return Err(CniError::new(ErrorCode::VERSION_SKEW, text)
                    .with_details("install the plugin of the agent's release"));
            }
            let terms = Terms { dns: own_dns.unwrap_or_default(), ..terms };
            return Ok(Self { mac, addresses: Addresses::Own(conf.requested_ips()?), terms });
        };
        let plugin = conf.ipam_type().unwrap_or("?");
        let addresses = addresses(given, plugin, node)?;
        let terms = Terms {
            delegated: true,
            routes: routes(given, plugin, &addresses)?,
            dns: own_dns.unwrap_or_else(|| given.dns.clone()),
            ..terms
        };
        Ok(Self { mac, addresses: Addresses::Given(addresses), terms })
    }
}

fn unusable(plugin: &str, why: &str) -> CniError {
    CniError::new(ErrorCode::INVALID_CONFIG, format!("what the IPAM plugin {plugin} gave cannot be used: {why}"))
        .with_details("correct `ipam` in the network configuration")
}

fn addresses(given: &AddResult, plugin: &str, node: &BTreeSet<IpAddr>) -> Result<Vec<IpAddr>, CniError> {
    let mut all: Vec<IpAddr> = Vec::new();
    for address in given.ips.iter().map(|ip| ip.address.addr()) {
        let refuse = |why: &str| Err(unusable(plugin, &format!("{address} {why}")));
        if let Some(other) = all.iter().find(|a| a.is_ipv4() == address.is_ipv4()) {
            return refuse(&format!(
                "is of the same family as {other}; Weft gives an interface one address a family, so ask for a further interface"
            ));
        }
        if !is_for_a_pod(address) {
            return refuse("is no address that a pod can have");
        }
        if node.contains(&address) {
            return refuse("is an address of this node");
        }
        all.push(address);
    }
    if all.is_empty() {
        return Err(unusable(plugin, "there is no address in it"));
    }
    all.sort_by_key(IpAddr::is_ipv6);
    Ok(all)
}

fn is_for_a_pod(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let of_family = match address {
        IpAddr::V4(a) => !a.is_broadcast() && !a.is_link_local(),
        IpAddr::V6(a) => !a.is_unicast_link_local() && a.to_ipv4_mapped().is_none(),
    };
    !special && of_family
}

fn routes(given: &AddResult, plugin: &str, addresses: &[IpAddr]) -> Result<Vec<PodRoute>, CniError> {
    let read = |route: &Route| {
        let dst = IpNet::new(route.dst.addr(), route.dst.prefix_len()).map_err(|e| unusable(plugin, &e.to_string()))?;
        let dst = dst.trunc();
        if !addresses.iter().any(|a| a.is_ipv4() == dst.addr().is_ipv4()) {
            return Err(unusable(plugin, &format!("it has a route to {dst}, and no address of that family")));
        }
        for (key, value) in
            [("table", route.table), ("scope", route.scope), ("advmss", route.advmss), ("mtu", route.mtu)]
        {
            // What asks for the kernel's usual asks for nothing: table main, scope global.
            if value.is_some_and(|v| v != 0 && (key, v) != ("table", 254)) {
                let text =
                    format!("the IPAM plugin {plugin} asks for a route to {dst} with {key} = {}", value.unwrap_or(0));
                return Err(CniError::new(ErrorCode::UNSUPPORTED_FIELD, text).with_details(
                    "Weft's routes go through its own gateway with its own MTU; take the key from the plugin's configuration",
                ));
            }
        }
        Ok(PodRoute { dst, priority: route.priority })
    };
    let mut routes: Vec<PodRoute> = Vec::new();
    for route in &given.routes {
        let route = read(route)?;
        if !routes.contains(&route) {
            routes.push(route);
        }
    }
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use cni_plugin::{
        protocol::Verb,
        spec::{Dns, Parameters},
    };
    use serde_json::{Value, json};

    use super::*;

    /// An address of the node itself.
    const NODE: &str = "192.0.2.1";

    fn request(extra: &Value, ipam: Option<Value>) -> Request {
        let mut config = json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni"});
        for (k, v) in extra.as_object().expect("an object") {
            config[k] = v.clone();
        }
        let parameters = Parameters {
            container_id: "c1".into(),
            netns: "/run/netns/c1".into(),
            ifname: "eth0".into(),
            args: std::collections::BTreeMap::new(),
            path: Vec::new(),
        };
        let ipam = ipam.map(|text| serde_json::from_value(text).expect("a result"));
        Request { ipam, ..Request::new(Verb::Add, parameters, config) }
    }

    fn read(extra: &Value, ipam: Option<Value>) -> Result<Wish, CniError> {
        Wish::read(&request(extra, ipam), &[NODE.parse().expect("an address")].into())
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|a| a.parse().expect("an address")).collect()
    }

    #[test]
    fn without_wishes_everything_is_wefts_own() {
        let wish = read(&json!({}), None).expect("a plain configuration");
        assert_eq!((wish.mac, wish.addresses), (None, Addresses::Own(vec![])));
        assert_eq!(wish.terms, Terms { network: "weft".into(), ..Terms::default() });
    }

    #[test]
    fn capabilities_and_name_resolution_are_taken_over() {
        let config = json!({"dns": {"nameservers": ["10.96.0.10"]},
            "runtimeConfig": {"mac": "0a:58:0a:00:00:05", "ips": ["10.0.0.5/24"]}});
        let wish = read(&config, None).expect("it is served");
        assert_eq!(wish.mac, Some(Mac::new([0x0a, 0x58, 0x0a, 0, 0, 5])));
        assert_eq!(wish.addresses, Addresses::Own(ips(&["10.0.0.5"])));
        assert_eq!(wish.terms.dns.nameservers, ["10.96.0.10"]);
    }

    #[test]
    fn the_mac_addresses_of_wefts_own_devices_are_refused() {
        for mac in [Mac::WEFT, Mac::OVERLAY] {
            let error = read(&json!({"runtimeConfig": {"mac": mac.to_string()}}), None).unwrap_err();
            assert!(error.code == ErrorCode::INVALID_CONFIG && error.msg.contains(&mac.to_string()), "{error}");
        }
    }

    #[test]
    fn what_an_ipam_plugin_gave_is_taken_as_it_is() {
        let ipam = json!({"cniVersion": "1.1.0", "dns": {"domain": "lab"},
            "ips": [{"address": "fd00::9/64"}, {"address": "172.30.0.9/24", "gateway": "172.30.0.1"}],
            "routes": [{"dst": "10.1.2.3/8", "gw": "172.30.0.1", "priority": 7}, {"dst": "0.0.0.0/0"}, {"dst": "0.0.0.0/0"}]});
        let wish = read(&json!({"ipam": {"type": "host-local"}}), Some(ipam.clone())).expect("it is served");
        assert_eq!(wish.addresses, Addresses::Given(ips(&["172.30.0.9", "fd00::9"])));
        let route = |dst: &str, priority| PodRoute { dst: dst.parse().expect("a CIDR"), priority };
        assert!(wish.terms.delegated);
        assert_eq!(wish.terms.routes, [route("10.0.0.0/8", Some(7)), route("0.0.0.0/0", None)]);
        assert_eq!(wish.terms.dns, Dns { domain: "lab".into(), ..Dns::default() });
        let own = json!({"ipam": {"type": "host-local"}, "dns": {"domain": "own"}});
        assert_eq!(read(&own, Some(ipam)).expect("it is served").terms.dns.domain, "own");
    }

    #[test]
    fn what_cannot_be_served_of_it_is_refused_by_name() {
        let four = json!({"address": "172.30.0.9/24"});
        for (ipam, part) in [
            (json!({}), "no address"),
            (json!({"ips": [four, {"address": "172.30.0.8/24"}]}), "172.30.0.8 is of the same family as 172.30.0.9"),
            (json!({"ips": [{"address": format!("{NODE}/24")}]}), "192.0.2.1 is an address of this node"),
            (json!({"ips": [{"address": "169.254.1.1/32"}]}), "169.254.1.1 is no address that a pod can have"),
            (json!({"ips": [{"address": "fe80::1/64"}]}), "fe80::1 is no address"),
            (json!({"ips": [{"address": "224.0.0.5/32"}]}), "224.0.0.5 is no address"),
            (json!({"ips": [{"address": "127.0.0.5/8"}]}), "127.0.0.5 is no address"),
            (json!({"ips": [four], "routes": [{"dst": "::/0"}]}), "a route to ::/0, and no address of that family"),
            (json!({"ips": [four], "routes": [{"dst": "0.0.0.0/0", "table": 7}]}), "0.0.0.0/0 with table = 7"),
            (json!({"ips": [four], "routes": [{"dst": "0.0.0.0/0", "scope": 253}]}), "scope = 253"),
            (json!({"ips": [four], "routes": [{"dst": "0.0.0.0/0", "mtu": 1300}]}), "mtu = 1300"),
        ] {
            let error = read(&json!({"ipam": {"type": "static"}}), Some(ipam)).unwrap_err();
            assert!(error.msg.contains(part) && error.msg.contains("static"), "{part}: {error}");
            assert!(!error.details.is_empty(), "no cure: {error}");
        }
    }

    #[test]
    fn an_ipam_plugin_that_was_not_asked_is_not_passed_over() {
        let error = read(&json!({"ipam": {"type": "host-local"}}), None).unwrap_err();
        assert!(error.code == ErrorCode::VERSION_SKEW && error.msg.contains("host-local"), "{error}");
    }
}
