//! Which hop of a way is the first that is broken, from what the agents at its ends say. Pure.
use std::net::IpAddr;

use crate::api::types::{DropEvent, EndpointStatus, FlowStatus, NodeStatus, Status};

/// A way that fails.
#[derive(Clone, Debug)]
pub(super) struct Failing {
    /// The node of who asks.
    pub(super) from_node: String,
    /// Who asks: a pod, or the node itself.
    pub(super) from_pod: Option<String>,
    pub(super) to_node: String,
    pub(super) to_pod: String,
    /// The addresses of the attempt.
    pub(super) source: IpAddr,
    pub(super) source_port: u16,
    pub(super) destination: IpAddr,
}

/// What one end's agent says.
#[derive(Clone, Debug, Default)]
pub(super) struct Witness {
    pub(super) status: Status,
    pub(super) endpoints: Vec<EndpointStatus>,
    pub(super) nodes: Vec<NodeStatus>,
    pub(super) flows: Vec<FlowStatus>,
    /// While it was tried again.
    pub(super) drops: Vec<DropEvent>,
}

impl Witness {
    fn drop_of(&self, way: &Failing) -> Option<&DropEvent> {
        let ends = [Some(way.source), Some(way.destination)];
        self.drops.iter().find(|d| [d.src, d.dst] == ends || [d.dst, d.src] == ends)
    }

    fn flow_of(&self, way: &Failing) -> Option<&FlowStatus> {
        self.flows
            .iter()
            .find(|f| (f.source, f.destination, f.source_port) == (way.source, way.destination, Some(way.source_port)))
    }

    /// What is wrong with the wire of a pod that has this address.
    fn wire(&self, address: IpAddr) -> Option<String> {
        let has = |e: &&EndpointStatus| [e.ipv4.map(IpAddr::V4), e.ipv6.map(IpAddr::V6)].contains(&Some(address));
        match self.endpoints.iter().find(has) {
            None => Some(format!("the agent has no endpoint with the address {address}")),
            Some(e) if e.kernel != "applied" => Some(format!("its device {} is not served: {}", e.device, e.kernel)),
            Some(_) => None,
        }
    }

    /// What is wrong with the way to another node.
    fn way_to(&self, node: &str) -> Option<String> {
        match self.nodes.iter().find(|n| n.name == node) {
            None => Some(format!("the node {node} is not known")),
            Some(n) if n.tunnel_address.is_none() => Some(format!("{node} has no address of the tunnel's family")),
            Some(n) if n.kernel != "applied" => Some(format!("the maps do not lead to {node}: {}", n.kernel)),
            Some(n) if n.next_hop.is_none() => Some(format!("no route leads to {node}")),
            Some(_) => None,
        }
    }
}

/// The first hop that is broken, and what is known of it.
pub(super) fn first_broken(way: &Failing, from: &Result<Witness, String>, to: &Result<Witness, String>) -> String {
    let Failing { from_node, from_pod, to_node, to_pod, .. } = way;
    let from = match from {
        Err(why) => return format!("the agent on {from_node} does not answer: {why}"),
        Ok(witness) => witness,
    };
    if let Some(why) = &from.status.not_ready {
        return format!("the agent on {from_node} is not ready: {why}");
    }
    if let (Some(pod), Some(why)) = (from_pod, from.wire(way.source)) {
        return format!("the wire of pod {pod} on {from_node}: {why}");
    }
    if let Some(drop) = from.drop_of(way) {
        return dropped(drop, from_node);
    }
    let across = from_node != to_node;
    if across && let Some(why) = from.way_to(to_node) {
        return format!("the tunnel from {from_node} to {to_node}: {why}");
    }
    let to = match to {
        Err(why) => return format!("the agent on {to_node} does not answer: {why}"),
        Ok(witness) => witness,
    };
    if let Some(drop) = to.drop_of(way) {
        return dropped(drop, to_node);
    }
    if let Some(why) = to.wire(way.destination) {
        return format!("the wire of pod {to_pod} on {to_node}: {why}");
    }
    let Some(flow) = to.flow_of(way) else {
        if !across {
            return format!(
                "between {} and pod {to_pod} on {to_node}: no packet reaches the pod's wire, and none is dropped by Weft",
                from_pod.as_deref().map_or("the node's own stack".to_owned(), |p| format!("pod {p}"))
            );
        }
        let address = to.status.datapath.tunnel_address.map_or_else(String::new, |a| format!(", {a}"));
        return format!(
            "the tunnel from {from_node} to {to_node}{address}: packets leave {from_node} and do not come in on {to_node}: does anything between \
             the nodes drop UDP port {}?",
            from.status.datapath.tunnel_port
        );
    };
    if let Some(why) = &to.status.not_ready {
        return format!("the agent on {to_node} is not ready: {why}");
    }
    if flow.state == "unanswered" {
        return format!("pod {to_pod} on {to_node}: packets reach its wire, and it does not answer");
    }
    if !across {
        return format!("the way back from pod {to_pod}: it answers, and the answer does not arrive");
    }
    let why = to.way_to(from_node).unwrap_or_else(|| {
        format!(
            "it answers, and the answer does not arrive: does anything between the nodes drop UDP port {}?",
            to.status.datapath.tunnel_port
        )
    });
    format!("the tunnel back from {to_node} to {from_node}: {why}")
}

fn dropped(drop: &DropEvent, node: &str) -> String {
    let mut text = format!("{node} drops it at {}: {}, {}", drop.point, drop.reason, drop.description);
    if !drop.policies.is_empty() {
        text.push_str(&format!("; isolated by {}", drop.policies.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn way() -> Failing {
        Failing {
            from_node: "n1".into(),
            from_pod: Some("a".into()),
            to_node: "n2".into(),
            to_pod: "b".into(),
            source: "10.0.1.1".parse().unwrap(),
            source_port: 40000,
            destination: "10.0.2.1".parse().unwrap(),
        }
    }

    /// All is well with a node, its pod with this address, and the way to the other node.
    fn well(address: &str, other: &str) -> Witness {
        let endpoint = json!({"id": 1, "namespace": "t", "pod": "p", "ipv4": address, "ipv6": null, "mac": "", "container_id": "", "ifname": "eth0",
            "netns": "", "device": "weft1", "ifindex": 4, "mtu": 1450, "label_class": 0, "kernel": "applied"});
        let node = json!({"name": other, "own": false, "pod_cidrs": [], "internal_ips": [], "tunnel_address": "192.0.2.1",
            "next_hop": {"ifindex": 2, "mac": null, "mtu": 1500}, "kernel": "applied"});
        let mut witness = Witness {
            endpoints: vec![serde_json::from_value(endpoint).unwrap()],
            nodes: vec![serde_json::from_value(node).unwrap()],
            ..Witness::default()
        };
        witness.status.datapath.tunnel_port = 8472;
        witness
    }

    fn flow(state: &str) -> FlowStatus {
        serde_json::from_value(json!({"family": "IPv4", "protocol": 6, "source": "10.0.1.1", "source_port": 40000,
            "destination": "10.0.2.1", "destination_port": 8099, "echo_id": null, "state": state, "seconds_left": 1,
            "source_pod": null, "destination_pod": null, "table": "new"}))
        .unwrap()
    }

    fn drop() -> DropEvent {
        serde_json::from_value(
            json!({"time": 0, "pod": null, "endpoint": 0, "ifindex": 0, "src": "10.0.1.1", "dst": "10.0.2.1",
            "protocol": 6, "src_port": 1, "dst_port": 2, "length": 60, "reason": "PolicyDenied", "point": "from_netdev",
            "description": "no rule", "policies": ["NetworkPolicy t/deny"]}),
        )
        .unwrap()
    }

    #[test]
    fn hops_are_named_in_the_order_in_which_packets_meet_them() {
        let (a, b) = (well("10.0.1.1", "n2"), well("10.0.2.1", "n1"));
        let told = |from: &Result<Witness, String>, to: &Result<Witness, String>| first_broken(&way(), from, to);
        // From the last hop to the first: what is broken further on is not told any more.
        let mut to = Ok(Witness { flows: vec![flow("handshake")], ..b.clone() });
        let mut from = Ok(a.clone());
        assert!(told(&from, &to).starts_with("the tunnel back from n2 to n1: it answers"));
        to = Ok(Witness { flows: vec![flow("unanswered")], ..b.clone() });
        assert_eq!(told(&from, &to), "pod b on n2: packets reach its wire, and it does not answer");
        to = Ok(b.clone());
        let tunnel = told(&from, &to);
        assert!(tunnel.starts_with("the tunnel from n1 to n2") && tunnel.contains("UDP port 8472"), "{tunnel}");
        to = Ok(Witness { endpoints: Vec::new(), ..b.clone() });
        assert!(told(&from, &to).starts_with("the wire of pod b on n2: the agent has no endpoint"));
        to = Ok(Witness { drops: vec![drop()], ..to.unwrap() });
        assert_eq!(
            told(&from, &to),
            "n2 drops it at from_netdev: PolicyDenied, no rule; isolated by NetworkPolicy t/deny"
        );
        to = Err("it hangs".into());
        assert_eq!(told(&from, &to), "the agent on n2 does not answer: it hangs");
        from = Ok(Witness { nodes: Vec::new(), ..a.clone() });
        assert_eq!(told(&from, &to), "the tunnel from n1 to n2: the node n2 is not known");
        from = Ok(Witness { drops: vec![drop()], ..from.unwrap() });
        assert!(told(&from, &to).starts_with("n1 drops it at from_netdev"));
        from = Ok(Witness { endpoints: Vec::new(), ..from.unwrap() });
        assert!(told(&from, &to).starts_with("the wire of pod a on n1"));
        let mut not_ready = from.unwrap();
        not_ready.status.not_ready = Some("no podCIDRs".into());
        from = Ok(not_ready);
        assert_eq!(told(&from, &to), "the agent on n1 is not ready: no podCIDRs");
        assert_eq!(told(&Err("x".into()), &to), "the agent on n1 does not answer: x");
    }

    #[test]
    fn on_one_node_there_is_no_tunnel_and_a_node_has_no_wire() {
        let way = Failing { from_pod: None, from_node: "n2".into(), source: "192.0.2.1".parse().unwrap(), ..way() };
        let witness = Ok(Witness { nodes: Vec::new(), ..well("10.0.2.1", "n1") });
        let told = first_broken(&way, &witness, &witness);
        assert!(told.starts_with("between the node's own stack and pod b on n2"), "{told}");
    }
}
