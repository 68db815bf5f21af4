//! What the node's own stack masquerades: what it, and not Weft's programs, has given another destination, as kube-proxy does with a Service's address. Of that the programs
//! see nothing on its way out, so a pod's address would be on it, and the answer would not pass the stack again that has translated the question.
use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::Facts;
use crate::{
    netlink::nftables::own::Rule,
    ports::{PortRange, PortSet},
    tables::Contents,
};

/// The rules of the table, in their order; none where there are no Services or nothing is masqueraded. `None`: nobody knows yet, and what is there stands.
///
/// What goes to pods leaves by `weft_host`, which the rules spare. Nodes are masqueraded towards: they answer a pod's address through the tunnel, past the stack that has
/// translated. `--no-masquerade-cidr` holds, but for the nodes in it.
pub fn stack_rules(contents: &Contents, facts: &Facts) -> Option<Vec<Rule>> {
    let Some(masquerade) = facts.masquerade.as_ref().filter(|_| !facts.services(contents).is_empty()) else {
        return Some(Vec::new());
    };
    let own = contents.nodes.get(&facts.node)?;
    let pods: BTreeSet<IpNet> = {
        let elsewhere = |a: &IpAddr| !own.pod_cidrs.iter().any(|cidr| cidr.contains(a));
        // Another IPAM plugin's, or of a range that the Node object has no more.
        let ends = contents.endpoints.values().flat_map(|e| e.ips()).filter(elsewhere).map(IpNet::from);
        own.pod_cidrs.iter().copied().chain(ends).collect()
    };
    let ports = stack_ports(masquerade.ports, facts.tunnel_port);
    let spared: BTreeSet<IpNet> = masquerade.spared.iter().copied().collect();
    let nodes: BTreeSet<IpNet> = match spared.is_empty() {
        true => BTreeSet::new(),
        false => {
            let others = contents.nodes.values().filter(|n| n.name != facts.node);
            let addresses = others.flat_map(|n| n.internal_ips.iter().chain(&n.addresses));
            addresses.filter(|a| spared.iter().any(|cidr| cidr.contains(*a))).map(|a| IpNet::from(*a)).collect()
        }
    };
    let of_family = |a: &IpNet, b: &IpNet| a.addr().is_ipv4() == b.addr().is_ipv4();
    let to_nodes = nodes.iter().flat_map(|node| {
        let from = pods.iter().filter(move |from| of_family(from, node));
        from.map(move |from| Rule::Masquerade { from: *from, to: Some(*node), ports })
    });
    let kept = spared.iter().map(|to| Rule::Keep { to: *to });
    let to_all = pods.iter().map(|from| Rule::Masquerade { from: *from, to: None, ports });
    Some(to_nodes.chain(kept).chain(to_all).collect())
}

/// The ports that the stack gives. Neither of Weft's own masquerade, which does not know what the stack has given away, nor those that pods have from their kernel (32768-60999),
/// as Weft's masquerade leaves a pod its own port where it can; and not the tunnel's, which the programs take for other nodes'. Where the settings leave too little of that, what is
/// left elsewhere.
pub fn stack_ports(ours: PortRange, tunnel: u16) -> Option<PortRange> {
    const USUAL: PortRange = PortRange::new(16_384, 32_767).expect("not empty");
    const ALL: PortRange = PortRange::new(1_024, u16::MAX).expect("not empty");
    /// Connections to one port of one host.
    const ENOUGH: u32 = 1_024;
    let tunnel = PortRange::new(tunnel, tunnel).map(PortSet::from).unwrap_or_default();
    let free = |all| PortSet::from(all).minus(&ours.into()).minus(&tunnel).widest();
    free(USUAL).filter(|r| r.len() >= ENOUGH).or_else(|| free(ALL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::{Masquerade, fixtures},
        tables::{Endpoint, Tables, Terms},
    };

    fn facts(spared: &[&str]) -> Facts {
        let net = |c: &&str| c.parse().expect("a CIDR");
        let masquerade =
            Masquerade { ports: "61000-65535".parse().expect("a range"), spared: spared.iter().map(net).collect() };
        Facts {
            service_cidrs: ["10.96.0.0/12", "fd96::/108"].iter().map(net).collect(),
            masquerade: Some(masquerade),
            ..fixtures::facts()
        }
    }
    fn tables() -> Tables {
        let t = Tables::of_node("here");
        t.set_node(fixtures::node("here", 1));
        t.set_node(fixtures::node("there", 2));
        t
    }
    /// As nft would write the rules, without what is in each.
    fn text(rules: &[Rule]) -> Vec<String> {
        let ports = |p: &Option<PortRange>| p.map_or("-".to_owned(), |p| p.to_string());
        let line = |r: &Rule| match r {
            Rule::Keep { to } => format!("keep {to}"),
            Rule::Masquerade { from, to: Some(to), ports: p } => format!("{from} {to} {}", ports(p)),
            Rule::Masquerade { from, to: None, ports: p } => format!("{from} {}", ports(p)),
        };
        rules.iter().map(line).collect()
    }
    fn rules(t: &Tables, facts: &Facts) -> Vec<String> {
        text(&stack_rules(&t.read(), facts).expect("the node is known"))
    }

    #[test]
    fn there_is_a_rule_for_each_pod_cidr_of_this_node() {
        assert_eq!(rules(&tables(), &facts(&[])), ["10.244.1.0/24 16384-32767", "fd10:1::/64 16384-32767"]);
    }

    #[test]
    fn an_address_that_no_pod_cidr_holds_has_a_rule_of_its_own() {
        let t = tables();
        for (id, address) in [(1, [10, 244, 1, 5]), (2, [192, 0, 2, 200])] {
            t.set_endpoint(Endpoint {
                id,
                container_id: format!("c{id}"),
                ifname: "eth0".into(),
                namespace: String::new(),
                pod_name: String::new(),
                netns: String::new(),
                ifindex: id.into(),
                device: format!("weft{id}"),
                mac: fixtures::HOP_MAC,
                ipv4: Some(address.into()),
                ipv6: None,
                mtu: 1450,
                terms: Terms::default(),
            });
        }
        let all = rules(&t, &facts(&[]));
        assert!(all.len() == 3 && all.contains(&"192.0.2.200/32 16384-32767".to_owned()), "{all:?}");
    }

    #[test]
    fn towards_spared_networks_pods_keep_their_addresses_but_not_towards_nodes_in_them() {
        let spared = ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"];
        let expected = [
            "10.244.1.0/24 192.0.2.2/32 16384-32767",
            "keep 192.0.2.0/24",
            "keep 198.51.100.0/24",
            "keep 2001:db8::/32",
            "10.244.1.0/24 16384-32767",
            "fd10:1::/64 16384-32767",
        ];
        assert_eq!(rules(&tables(), &facts(&spared)), expected);
    }

    #[test]
    fn without_services_or_masquerade_there_are_none_and_before_the_node_is_known_nobody_knows() {
        let t = tables();
        let on = facts(&[]);
        assert_eq!(rules(&t, &Facts { service_cidrs: Vec::new(), ..on.clone() }), [""; 0]);
        assert_eq!(rules(&t, &Facts { masquerade: None, ..on.clone() }), [""; 0]);
        let t = Tables::of_node("here");
        t.set_node(fixtures::node("there", 2));
        assert_eq!(stack_rules(&t.read(), &on), None);
        assert_eq!(
            stack_rules(&t.read(), &Facts { masquerade: None, ..on }),
            Some(Vec::new()),
            "that is in the settings"
        );
    }

    #[test]
    fn which_addresses_are_services_the_cluster_tells_unless_the_settings_do() {
        let t = tables();
        let of = |name: &str, cidrs: &[&str]| crate::tables::ServiceCidr {
            name: name.into(),
            cidrs: cidrs.iter().map(|c| c.parse().expect("a CIDR")).collect(),
        };
        let services = |facts: &Facts| facts.services(&t.read()).iter().map(ToString::to_string).collect::<Vec<_>>();
        let untold = Facts { service_cidrs: Vec::new(), ..facts(&[]) };
        assert_eq!(services(&untold), [""; 0]);
        t.set_service_cidr(of("kubernetes", &["10.96.0.0/16", "fd96::/112"]));
        t.set_service_cidr(of("twice", &["10.96.0.0/16", "10.98.0.0/24"]));
        t.set_service_cidr(of("pods", &["10.244.0.0/16", "10.244.1.128/25"]));
        assert_eq!(services(&untold), ["10.96.0.0/16", "10.98.0.0/24", "fd96::/112"], "no pods' addresses");
        assert_eq!(rules(&t, &untold), ["10.244.1.0/24 16384-32767", "fd10:1::/64 16384-32767"]);
        assert_eq!(services(&facts(&[])), ["10.96.0.0/12", "fd96::/108"], "of the settings");
    }

    #[test]
    fn the_stack_has_ports_that_neither_weft_nor_the_tunnel_nor_pods_have() {
        for (ours, tunnel, stack) in [
            ("61000-65535", 8472, "16384-32767"),
            ("61000-65535", 20_000, "20001-32767"),
            ("30000-65535", 4789, "16384-29999"),
            ("16384-32767", 8472, "32768-65535"),
            ("1024-32000", 8472, "32001-65535"),
            ("1024-65535", 8472, "-"),
        ] {
            let given = stack_ports(ours.parse().expect("a range"), tunnel);
            assert_eq!(given.map_or("-".to_owned(), |r| r.to_string()), stack, "{ours} {tunnel}");
        }
    }
}
