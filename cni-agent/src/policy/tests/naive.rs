//! What the API says of a flow, read off the objects' JSON as literally as possible: slow, without classes, sets or maps. Rule numbers are those
//! of the project's notes on policy semantics.
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

/// Who may be at an end: the objects as the case has them.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub namespaces: Map<String, Value>,
    pub nodes: Map<String, Value>,
    /// By `namespace/name`.
    pub pods: Map<String, Value>,
    /// By kind, namespace and name.
    pub policies: Map<String, Value>,
    pub dns: Map<String, Value>,
}

#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// `None` for ICMP.
    pub proto: Option<&'static str>,
    pub port: u16,
    /// Whether the source is the node's own stack.
    pub from_node: bool,
}

fn text<'a>(v: &'a Value, key: &str) -> Option<&'a str> {
    v.get(key).and_then(Value::as_str)
}
fn list<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
fn is_set(v: &Value, key: &str) -> bool {
    v.get(key).is_some_and(|v| !v.is_null())
}

/// R10 to R13. `None` for a selector that the API refuses.
fn selects(selector: &Value, label: &dyn Fn(&str) -> Option<String>) -> Option<bool> {
    let mut all = true;
    for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
        all &= label(key).as_deref() == value.as_str();
    }
    for e in list(selector, "matchExpressions") {
        let key = text(e, "key")?;
        let values: Vec<&str> = list(e, "values").iter().filter_map(Value::as_str).collect();
        let value = label(key);
        let listed = value.as_deref().is_some_and(|v| values.contains(&v));
        all &= match text(e, "operator")? {
            "In" if !values.is_empty() => listed,
            "NotIn" if !values.is_empty() => !listed,
            "Exists" if values.is_empty() => value.is_some(),
            "DoesNotExist" if values.is_empty() => value.is_none(),
            _ => return None,
        };
    }
    Some(all)
}
fn labels_of(object: &Value) -> impl Fn(&str) -> Option<String> {
    move |key| object.get("labels").and_then(|l| text(l, key)).map(str::to_owned)
}

impl Objects {
    /// R50, R56: who is nobody.
    fn live(pod: &Value) -> bool {
        !pod["hostNetwork"].as_bool().unwrap_or_default() && !matches!(text(pod, "phase"), Some("Succeeded" | "Failed"))
    }
    fn pod_at(&self, ip: IpAddr) -> Option<&Value> {
        self.pods.values().find(|p| Self::live(p) && addresses(&p["ips"]).contains(&ip))
    }
    fn node_at(&self, ip: IpAddr) -> Option<&Value> {
        self.nodes.values().find(|n| addresses(&n["ips"]).contains(&ip))
    }
    /// R14, R15.
    fn namespace_selected(&self, selector: &Value, name: &str) -> Option<bool> {
        let nobody = json!({});
        let object = self.namespaces.get(name).unwrap_or(&nobody);
        let own = labels_of(object);
        selects(selector, &|key| if key == "kubernetes.io/metadata.name" { Some(name.to_owned()) } else { own(key) })
    }

    /// Whether the pod's side lets the flow pass.
    pub fn allows(&self, pod: &Value, ingress: bool, flow: Flow) -> bool {
        // R45, P4; R47.
        if flow.src == flow.dst || ingress && flow.from_node {
            return true;
        }
        let mut clusters: Vec<&Value> =
            self.policies.values().filter(|p| p["kind"] == "ClusterNetworkPolicy").collect();
        clusters.sort_by_key(|p| (p["spec"]["priority"].as_u64(), text(&p["metadata"], "name").map(str::to_owned)));
        // C1.
        if let Some(answer) = self.tier(&clusters, "Admin", pod, ingress, flow) {
            return answer;
        }
        let networks: Vec<&Value> =
            self.policies.values().filter(|p| p["kind"] == "NetworkPolicy" && self.holds(p, pod, ingress)).collect();
        if !networks.is_empty() {
            return networks.iter().any(|p| self.network_allows(p, pod, ingress, flow));
        }
        self.tier(&clusters, "Baseline", pod, ingress, flow).unwrap_or(true)
    }

    /// R2 to R5, R9.
    fn holds(&self, policy: &Value, pod: &Value, ingress: bool) -> bool {
        let spec = &policy["spec"];
        let namespace = text(&policy["metadata"], "namespace").unwrap_or("default");
        if text(pod, "namespace") != Some(namespace) {
            return false;
        }
        let types: Vec<&str> = list(spec, "policyTypes").iter().filter_map(Value::as_str).collect();
        let direction = if types.is_empty() {
            ingress || !list(spec, "egress").is_empty()
        } else {
            types.contains(&if ingress { "Ingress" } else { "Egress" })
        };
        direction && selects(&spec["podSelector"], &labels_of(pod)) == Some(true)
    }

    /// R6, R7.
    fn network_allows(&self, policy: &Value, pod: &Value, ingress: bool, flow: Flow) -> bool {
        let namespace = text(&policy["metadata"], "namespace").unwrap_or("default");
        let (section, side) = if ingress { ("ingress", "from") } else { ("egress", "to") };
        list(&policy["spec"], section).iter().any(|rule| {
            let peers = list(rule, side);
            let ports = list(rule, "ports");
            let peer = if ingress { flow.src } else { flow.dst };
            (peers.is_empty() || peers.iter().any(|p| self.network_peer(p, namespace, peer)))
                && (ports.is_empty() || ports.iter().any(|p| self.network_port(p, pod, ingress, flow)))
        })
    }

    /// R18 to R27, R65.
    fn network_peer(&self, peer: &Value, namespace: &str, ip: IpAddr) -> bool {
        let selector = is_set(peer, "podSelector") || is_set(peer, "namespaceSelector");
        if is_set(peer, "ipBlock") {
            let block = &peer["ipBlock"];
            let Some(cidr) = text(block, "cidr").and_then(|c| c.parse::<IpNet>().ok()) else { return false };
            let except: Vec<Option<IpNet>> =
                list(block, "except").iter().map(|e| e.as_str().and_then(|e| e.parse().ok())).collect();
            let valid =
                except.iter().all(|e| e.is_some_and(|e| cidr.trunc().contains(&e) && cidr.trunc() != e.trunc()));
            return !selector && valid && cidr.contains(&ip) && !except.iter().flatten().any(|e| e.contains(&ip));
        }
        let Some(pod) = self.pod_at(ip).filter(|_| selector) else { return false };
        let of = text(pod, "namespace").unwrap_or_default();
        let by_namespace = if is_set(peer, "namespaceSelector") {
            self.namespace_selected(&peer["namespaceSelector"], of)
        } else {
            Some(of == namespace)
        };
        let by_labels =
            if is_set(peer, "podSelector") { selects(&peer["podSelector"], &labels_of(pod)) } else { Some(true) };
        by_namespace.is_some_and(|n| by_labels.is_some_and(|l| n && l))
    }

    /// R28 to R38, P1.
    fn network_port(&self, entry: &Value, pod: &Value, ingress: bool, flow: Flow) -> bool {
        let protocol = text(entry, "protocol").unwrap_or("TCP");
        if flow.proto != Some(protocol) {
            return false;
        }
        let end = entry.get("endPort").and_then(Value::as_u64);
        match &entry["port"] {
            Value::Null => end.is_none(),
            Value::String(name) => end.is_none() && self.named(pod, ingress, flow).iter().any(|(n, _)| n == name),
            port => {
                let Some(first) = port.as_u64().filter(|n| (1..=65_535).contains(n)) else { return false };
                let last = end.unwrap_or(first);
                first <= last && last <= 65_535 && (first..=last).contains(&u64::from(flow.port))
            }
        }
    }
    /// Names, with protocol, under which the pod that receives the flow has its port.
    fn named(&self, subject: &Value, ingress: bool, flow: Flow) -> Vec<(String, String)> {
        let receiver = if ingress { Some(subject) } else { self.pod_at(flow.dst) };
        let ports = receiver.map_or(&[][..], |r| list(r, "ports"));
        ports
            .iter()
            .filter(|p| p["port"] == flow.port && flow.proto == Some(text(p, "protocol").unwrap_or("TCP")))
            .filter_map(|p| Some((text(p, "name")?.to_owned(), text(p, "protocol").unwrap_or("TCP").to_owned())))
            .collect()
    }

    /// C1 to C9; `None` to ask the next tier.
    fn tier(&self, policies: &[&Value], tier: &str, pod: &Value, ingress: bool, flow: Flow) -> Option<bool> {
        for policy in policies.iter().filter(|p| p["spec"]["tier"] == tier) {
            if !self.is_pods(&policy["spec"]["subject"], pod) {
                continue;
            }
            let (section, side) = if ingress { ("ingress", "from") } else { ("egress", "to") };
            for rule in list(&policy["spec"], section) {
                match self.cluster_rule(rule, side, pod, ingress, flow) {
                    None => {}
                    Some("Accept") => return Some(true),
                    Some("Deny") => return Some(false),
                    Some(_) => return None,
                }
            }
        }
        None
    }

    /// C10, C14, C17: what the rule does with the flow.
    fn cluster_rule<'a>(&self, rule: &'a Value, side: &str, pod: &Value, ingress: bool, flow: Flow) -> Option<&'a str> {
        let action = text(rule, "action")?;
        let known: &[&str] =
            if ingress { &["namespaces", "pods"] } else { &["namespaces", "pods", "networks", "nodes", "domainNames"] };
        let clear = |v: &Value, known: &[&str]| {
            let keys: Vec<&String> = v.as_object().into_iter().flatten().map(|(k, _)| k).collect();
            keys.len() == 1 && known.contains(&keys[0].as_str())
        };
        let protocols = list(rule, "protocols");
        let fine = list(rule, side).iter().all(|p| clear(p, known))
            && protocols.iter().all(|p| clear(p, &["tcp", "udp", "sctp", "destinationNamedPort"]));
        if !fine {
            return if action == "Accept" { None } else { Some("Deny") };
        }
        let peer = if ingress { flow.src } else { flow.dst };
        let met = list(rule, side).iter().any(|p| self.cluster_peer(p, peer))
            && (protocols.is_empty() || protocols.iter().any(|p| self.cluster_port(p, pod, ingress, flow)));
        met.then_some(action)
    }

    /// C9.
    fn is_pods(&self, subject: &Value, pod: &Value) -> bool {
        let namespace = text(pod, "namespace").unwrap_or_default();
        if is_set(subject, "namespaces") {
            return self.namespace_selected(&subject["namespaces"], namespace) == Some(true);
        }
        let pods = &subject["pods"];
        self.namespace_selected(&pods["namespaceSelector"], namespace) == Some(true)
            && selects(&pods["podSelector"], &labels_of(pod)) == Some(true)
    }

    /// C10 to C13.
    fn cluster_peer(&self, peer: &Value, ip: IpAddr) -> bool {
        if is_set(peer, "namespaces") || is_set(peer, "pods") {
            return self.pod_at(ip).is_some_and(|pod| self.is_pods(peer, pod));
        }
        if is_set(peer, "nodes") {
            return self.node_at(ip).is_some_and(|n| selects(&peer["nodes"], &labels_of(n)) == Some(true));
        }
        if is_set(peer, "domainNames") {
            return list(peer, "domainNames").iter().filter_map(Value::as_str).any(|pattern| {
                let pattern = pattern.trim_end_matches('.').to_lowercase();
                self.dns.iter().filter(|(_, ips)| addresses(ips).contains(&ip)).any(|(name, _)| {
                    let name = name.trim_end_matches('.').to_lowercase();
                    match pattern.strip_prefix('*') {
                        Some(rest) => name.len() > rest.len() && name.ends_with(rest),
                        None => name == pattern,
                    }
                })
            });
        }
        list(peer, "networks").iter().filter_map(|n| n.as_str()?.parse::<IpNet>().ok()).any(|n| n.contains(&ip))
    }

    /// C14, C15.
    fn cluster_port(&self, entry: &Value, pod: &Value, ingress: bool, flow: Flow) -> bool {
        if let Some(name) = text(entry, "destinationNamedPort") {
            return self.named(pod, ingress, flow).iter().any(|(n, _)| n == name);
        }
        let (key, fields) = entry.as_object().and_then(|e| e.iter().next()).unwrap();
        if flow.proto.map(str::to_lowercase) != Some(key.clone()) {
            return false;
        }
        let port = &fields["destinationPort"];
        let at = u64::from(flow.port);
        if let Some(number) = port["number"].as_u64() {
            return number == at;
        }
        match (port["range"]["start"].as_u64(), port["range"]["end"].as_u64()) {
            (Some(start), Some(end)) => (start..=end).contains(&at),
            _ => true,
        }
    }
}

pub fn addresses(ips: &Value) -> Vec<IpAddr> {
    ips.as_array().into_iter().flatten().filter_map(|a| a.as_str()?.parse().ok()).collect()
}
