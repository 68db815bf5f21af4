//! Random clusters, policies and events, out of small pools, so that things meet.
use serde_json::{Map, Value, json};

use crate::policy::rulesets::MANY_PORTS;

/// A source of choices (xorshift, 64 bits): the same for the same seed.
pub struct Dice {
    state: u64,
}
impl Dice {
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % n
    }
    /// True in `n` of 100 cases.
    pub fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }
    pub fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len() as u64) as usize]
    }
    pub fn some<T>(&mut self, max: u64, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..=self.below(max)).map(|_| make(self)).collect()
    }
}

pub const NAMESPACES: [&str; 4] = ["alpha", "beta", "gamma", "default"];
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
const NODE_IPS: [[&str; 2]; 3] = [["192.0.2.1", "fd99::1"], ["192.0.2.2", "fd99::2"], ["192.0.2.130", "fd99::3"]];
/// Of pods, in odd prefixes of each other.
const IPS4: [&str; 10] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.8",
    "10.0.1.1",
    "10.0.1.2",
    "10.0.2.1",
    "10.1.0.1",
    "10.1.0.2",
    "10.64.0.1",
];
const IPS6: [&str; 5] = ["fd00::1", "fd00::2", "fd00::1:1", "fd00:1::1", "fd00:1::2"];
pub const OUTSIDE: [&str; 6] = ["203.0.113.1", "203.0.113.129", "198.51.100.7", "10.0.0.9", "2001:db8::1", "fd00::3"];
pub const PROBES: [&str; 10] =
    ["TCP/80", "TCP/81", "TCP/443", "TCP/8080", "TCP/65535", "UDP/80", "UDP/53", "SCTP/80", "SCTP/81", "ICMP/0"];
const CIDRS: [&str; 16] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.0.0.0/24",
    "10.0.0.0/30",
    "10.0.0.2/32",
    "10.0.0.9/29",
    "10.1.0.0/16",
    "192.0.2.0/24",
    "192.0.2.128/25",
    "203.0.113.0/24",
    "203.0.113.129/32",
    "::/0",
    "fd00::/16",
    "fd00::/64",
    "fd99::/32",
];
const KEYS: [&str; 2] = ["app", "env"];
const VALUES: [&str; 3] = ["a", "b", ""];
const PORT_NAMES: [&str; 3] = ["web", "adm", "dns"];
const PORTS: [u16; 5] = [80, 81, 443, 8080, 53];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const NAMES: [&str; 5] = ["a.test", "www.a.test", "x.www.a.test", "b.test", "ba.test"];
const PATTERNS: [&str; 5] = ["a.test", "*.a.test", "*.test", "B.TEST.", "*.www.a.test"];

pub fn labels(d: &mut Dice) -> Value {
    let mut map = Map::new();
    for key in KEYS {
        if d.percent(70) {
            map.insert(key.into(), json!(d.one(&VALUES)));
        }
    }
    map.into()
}
pub fn namespace(d: &mut Dice) -> Value {
    json!({"labels": labels(d)})
}
pub fn node(d: &mut Dice, n: usize) -> Value {
    let both = d.percent(70);
    let ips = if both { json!(NODE_IPS[n]) } else { json!([NODE_IPS[n][0]]) };
    json!({"name": NODES[n], "ips": ips, "labels": labels(d)})
}
/// With addresses that no pod of `taken` has, but for now and then.
pub fn pod(d: &mut Dice, namespace: &str, name: &str, taken: &[Value]) -> Value {
    let claims = d.percent(10);
    let free = |ips: &[&'static str]| -> Vec<&'static str> {
        ips.iter().copied().filter(|ip| claims || !taken.contains(&json!(ip))).collect()
    };
    let mut ips = Vec::new();
    for (pool, percent) in [(&IPS4[..], 90), (&IPS6[..], 45)] {
        let free = free(pool);
        if !free.is_empty() && d.percent(percent) {
            ips.push(d.one(&free));
        }
    }
    let node = d.below(3) as usize;
    let host = d.percent(8);
    if host {
        ips = vec![NODE_IPS[node][0]];
    }
    let ports = d.some(3, |d| {
        let mut p = json!({"port": PORTS[d.below(5) as usize], "protocol": d.one(&PROTOCOLS)});
        if d.percent(85) {
            p["name"] = json!(d.one(&PORT_NAMES));
        }
        p
    });
    let mut pod = json!({"namespace": namespace, "name": name, "labels": labels(d), "node": NODES[node], "ips": ips, "ports": ports});
    if host {
        pod["hostNetwork"] = json!(true);
    }
    if d.percent(20) {
        pod["phase"] = json!(d.one(&["Pending", "Running", "Succeeded", "Failed"]));
    }
    pod
}
pub fn dns(d: &mut Dice) -> (String, Value) {
    let pools: Vec<&str> = OUTSIDE.iter().chain(&IPS4[..3]).chain(&NODE_IPS[0]).copied().collect();
    (d.one(&NAMES).to_owned(), json!(d.some(2, |d| d.one(&pools))))
}

fn selector(d: &mut Dice, keys: &[&str]) -> Value {
    if d.percent(25) {
        return json!({});
    }
    let mut s = json!({});
    if d.percent(60) {
        let key = d.one(keys);
        let value = if key.contains('/') { d.one(&NAMESPACES) } else { d.one(&VALUES) };
        s["matchLabels"] = json!({ key: value });
    }
    if d.percent(45) {
        s["matchExpressions"] = json!(d.some(2, |d| {
            let key = d.one(keys);
            let values =
                |d: &mut Dice| d.some(2, |d| if key.contains('/') { d.one(&NAMESPACES) } else { d.one(&VALUES) });
            match d.below(4) {
                0 => json!({"key": key, "operator": "In", "values": values(d)}),
                1 => json!({"key": key, "operator": "NotIn", "values": values(d)}),
                2 => json!({"key": key, "operator": "Exists"}),
                _ => json!({"key": key, "operator": "DoesNotExist"}),
            }
        }));
    }
    s
}
fn of_pods(d: &mut Dice) -> Value {
    selector(d, &KEYS)
}
fn of_namespaces(d: &mut Dice) -> Value {
    selector(d, &["app", "env", "kubernetes.io/metadata.name"])
}

/// Parts of a block; now and then something else, and the peer matches nothing.
fn holes(d: &mut Dice, cidr: &str) -> Vec<&'static str> {
    let net = |text: &str| text.parse::<ipnet::IpNet>().ok().map(|n| n.trunc());
    let inside = |hole: &&&str| net(cidr).zip(net(hole)).is_some_and(|(all, part)| all != part && all.contains(&part));
    let parts: Vec<&'static str> = CIDRS.iter().filter(inside).copied().collect();
    let of = if parts.is_empty() || d.percent(8) { CIDRS.to_vec() } else { parts };
    d.some(2, |d| d.one(&of))
}

fn network_peer(d: &mut Dice) -> Value {
    match d.below(100) {
        0..18 => json!({"podSelector": of_pods(d)}),
        18..32 => json!({"namespaceSelector": of_namespaces(d)}),
        32..48 => json!({"namespaceSelector": of_namespaces(d), "podSelector": of_pods(d)}),
        48..94 => {
            let mut block = json!({"cidr": d.one(&CIDRS)});
            if d.percent(60) {
                block["except"] = json!(holes(d, block["cidr"].as_str().unwrap_or_default()));
            }
            json!({"ipBlock": block})
        }
        94..96 => json!({}),
        96..98 => json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}),
        _ => json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": []}]}}),
    }
}
fn network_port(d: &mut Dice) -> Value {
    let mut p = json!({});
    if d.percent(70) {
        p["protocol"] = json!(d.one(&PROTOCOLS));
    }
    match d.below(100) {
        0..15 => {}
        15..55 => p["port"] = json!(PORTS[d.below(5) as usize]),
        55..75 => {
            let first = PORTS[d.below(5) as usize];
            p["port"] = json!(first);
            p["endPort"] = json!(d.one(&[&81_u16, &443, &9000, &65_535]));
        }
        75..95 => p["port"] = json!(d.one(&PORT_NAMES)),
        95..97 => p["endPort"] = json!(443),
        97..99 => {
            p["port"] = json!("web");
            p["endPort"] = json!(443);
        }
        _ => p["port"] = json!(0),
    }
    p
}
/// Of a rule. Now and then they are so many, and lie apart, that a rule set has them in the map of single ports; what is probed is among them, or between them.
fn network_ports(d: &mut Dice) -> Vec<Value> {
    let mut ports = d.some(3, network_port);
    if d.percent(20) {
        let (first, protocol) = (60 + d.below(2), d.one(&PROTOCOLS));
        let many = MANY_PORTS as u64 + 2 * d.below(2);
        ports.extend((0..many).map(|n| json!({"protocol": protocol, "port": first + 2 * n})));
    }
    ports
}
fn network_rule(d: &mut Dice, side: &str) -> Value {
    let mut rule = json!({});
    match d.below(10) {
        0..2 => {}
        2 => rule[side] = json!([]),
        _ => rule[side] = json!(d.some(3, network_peer)),
    }
    match d.below(10) {
        0..3 => {}
        3 => rule["ports"] = json!([]),
        _ => rule["ports"] = json!(network_ports(d)),
    }
    rule
}
pub fn network_policy(d: &mut Dice, namespace: &str, name: &str) -> Value {
    let mut spec = json!({});
    if d.percent(90) {
        spec["podSelector"] = of_pods(d);
    }
    for (section, side) in [("ingress", "from"), ("egress", "to")] {
        match d.below(10) {
            0..4 => {}
            4 => spec[section] = json!([]),
            _ => spec[section] = json!(d.some(3, |d| network_rule(d, side))),
        }
    }
    match d.below(10) {
        0..3 => {}
        3 => spec["policyTypes"] = json!([]),
        4..6 => spec["policyTypes"] = json!(["Ingress"]),
        6..8 => spec["policyTypes"] = json!(["Egress"]),
        _ => spec["policyTypes"] = json!(["Ingress", "Egress"]),
    }
    let mut metadata = json!({"name": name});
    if namespace != "default" || d.percent(50) {
        metadata["namespace"] = json!(namespace);
    }
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
}

fn cluster_pods(d: &mut Dice) -> Value {
    if d.percent(50) {
        return json!({"namespaces": of_namespaces(d)});
    }
    let mut pods = json!({"podSelector": of_pods(d)});
    if d.percent(80) {
        pods["namespaceSelector"] = of_namespaces(d);
    }
    json!({ "pods": pods })
}
fn cluster_rule(d: &mut Dice, side: &str) -> Value {
    let action = d.one(&["Accept", "Deny", "Pass"]);
    let peer = |d: &mut Dice| match d.below(100) {
        97.. => json!({}),
        0..55 => cluster_pods(d),
        // Not of an ingress peer: the rule fails closed.
        _ if side == "from" => {
            if d.percent(90) {
                cluster_pods(d)
            } else {
                json!({"networks": ["10.0.0.0/8"]})
            }
        }
        55..75 => json!({"networks": d.some(2, |d| d.one(&CIDRS))}),
        75..88 => json!({"nodes": selector(d, &KEYS)}),
        _ if action == "Accept" => json!({"domainNames": d.some(2, |d| d.one(&PATTERNS))}),
        _ => json!({"networks": ["0.0.0.0/0"]}),
    };
    let mut rule = json!({"action": action, side: d.some(2, peer)});
    let protocol = |d: &mut Dice| {
        let name = d.one(&["tcp", "udp", "sctp"]);
        match d.below(100) {
            0..45 => json!({name: {"destinationPort": {"number": PORTS[d.below(5) as usize]}}}),
            45..65 => {
                json!({name: {"destinationPort": {"range": {"start": 80, "end": d.one(&[&81_u16, &443, &65_535])}}}})
            }
            65..75 => json!({name: {}}),
            75..98 => json!({"destinationNamedPort": d.one(&PORT_NAMES)}),
            _ => json!({"quic": {}}),
        }
    };
    match d.below(10) {
        0..4 => {}
        4 => rule["protocols"] = json!([]),
        _ => rule["protocols"] = json!(d.some(2, protocol)),
    }
    rule
}
pub fn cluster_policy(d: &mut Dice, name: &str) -> Value {
    let mut spec = json!({
        "tier": d.one(&["Admin", "Baseline"]), "priority": d.below(4) * 100, "subject": cluster_pods(d),
    });
    for (section, side) in [("ingress", "from"), ("egress", "to")] {
        if d.percent(65) {
            spec[section] = json!(d.some(3, |d| cluster_rule(d, side)));
        }
    }
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": name}, "spec": spec,
    })
}
