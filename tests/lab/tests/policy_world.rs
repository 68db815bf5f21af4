//! Policies and what comes from outside of the cluster, from nodes, and through them; SCTP, echoes and what is said about a flow. On an ordinary node and a hostile
//! one, over both families. Needs root and `cargo xtask build`; run it with `cargo xtask test --suite lab`.
#[path = "support/policies.rs"]
mod policies;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use cni_common::{net::Mac, wire::SCTP};
use cni_ebpf::fake::frame::{self, Ip};
use lab::{
    Lab, LabConfig, PodSpec, hostile,
    pair::until,
    probe::{self, Family, Place, Wire},
};
use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};
use policies::{GONE, apply, connects, of, policy, settle};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

/// The port that policies here are about, and another one.
const ALLOWED: u16 = 8080;
const OTHER: u16 = 8081;
/// An association of SCTP that gets no answer is tried again after three seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// A node with two pods: `web` is who policies isolate.
struct Side {
    node: Place,
    web: Place,
    app: Place,
}

/// An ordinary node and a hostile one, and the world, which has routes to pods.
struct Rig {
    lab: Lab,
    sides: [Side; 2],
    router: Place,
    near: Place,
    narrow: Place,
}

impl Rig {
    fn new() -> Self {
        let mut lab = Lab::up(LabConfig::with_world()).expect("a lab with a world");
        let sides = ["node-1", "node-2"].map(|node| {
            let [web, app] = ["web", "app"].map(|app| {
                let spec = PodSpec { namespace: "shop".into(), ..PodSpec::named(&format!("{app}-{node}")) };
                lab.pod_add(node, &spec.label("app", app)).expect("a pod").pod.place().unwrap()
            });
            Side { node: lab.place(node).unwrap(), web, app }
        });
        assert!(lab.node("node-2").unwrap().is_hostile() && !lab.node("node-1").unwrap().is_hostile());
        for node in lab.nodes() {
            lab.world().unwrap().learn_pods(node).unwrap();
        }
        lab.hostile().unwrap().set_forward(hostile::Policy::Accept).unwrap();
        let [router, near, narrow] = lab.world().unwrap().places().unwrap();
        Self { lab, sides, router, near, narrow }
    }
    /// While a policy holds, with each node's `web` over each family; the other node's side is told as well.
    fn under(&self, policy: &Value, mut test: impl FnMut(&Side, &Side, Family)) {
        apply(&self.lab, std::slice::from_ref(policy));
        for [side, other] in [[0, 1], [1, 0]] {
            for family in Family::BOTH {
                let _with = With(&self.sides[side].web, family);
                test(&self.sides[side], &self.sides[other], family);
            }
        }
        delete(&self.lab, std::slice::from_ref(policy));
    }
}

/// Tells with whom a test has failed.
struct With<'a>(&'a Place, Family);
impl Drop for With<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("with {} over {}", self.0.name, self.1);
        }
    }
}

/// They are gone, for all agents.
fn delete(lab: &Lab, policies: &[Value]) {
    lab.delete(policies).unwrap();
    for node in lab.nodes() {
        until("the policies are gone", || {
            let all = node.ask("/v1/policies").unwrap();
            policies.iter().all(|p| {
                let end = format!("shop/{}", p["metadata"]["name"].as_str().unwrap());
                all["policies"].as_array().unwrap().iter().all(|k| !k["name"].as_str().unwrap().ends_with(&end))
            })
        })
        .unwrap();
    }
    settle(lab);
}

/// A policy of `web`, in this direction only.
fn web(name: &str, direction: &str, rules: Value) -> Value {
    let section = direction.to_lowercase();
    policy(name, json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": [direction], section: rules}))
}
/// The addresses of a place as peers, each by itself.
fn blocks(place: &Place) -> Vec<Value> {
    let of = |family: Family| {
        let address = place.address(family).unwrap();
        json!({"ipBlock": {"cidr": format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })}})
    };
    Family::BOTH.map(of).into()
}
fn tcp() -> Value {
    json!([{"protocol": "TCP", "port": ALLOWED}])
}
fn udp_at(place: &Place, family: Family, port: u16) -> UdpSocket {
    let socket = place.run(|| UdpSocket::bind(SocketAddr::new(family.any(), port))).unwrap();
    socket.set_read_timeout(Some(GONE)).unwrap();
    socket
}
/// What becomes of a datagram to a port at which nobody is.
fn told(from: &Place, to: IpAddr, port: u16) -> ErrorKind {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let socket = udp_at(from, family, 0);
    // Without it a socket hears only of what will never change.
    match family {
        Family::V4 => setsockopt(&socket, Ipv4RecvErr, &true).unwrap(),
        Family::V6 => setsockopt(&socket, Ipv6RecvErr, &true).unwrap(),
    }
    socket.connect(SocketAddr::new(to, port)).unwrap();
    socket.send(b"anybody?").unwrap();
    socket.recv(&mut [0; 8]).unwrap_err().kind()
}
/// Nobody has said anything.
fn is_silence(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[test]
fn the_world_is_judged_by_its_address_and_the_own_node_always_gets_in() {
    let rig = Rig::new();
    for family in Family::BOTH {
        for side in &rig.sides {
            for from in [&rig.near, &rig.narrow, &rig.router] {
                assert!(connects(from, &side.web, family, OTHER), "{} → {} without a policy", from.name, side.web.name);
            }
        }
    }
    let rules = json!([{"from": blocks(&rig.near), "ports": tcp()}]);
    rig.under(&web("world", "Ingress", rules), |side, other, family| {
        assert!(connects(&rig.near, &side.web, family, ALLOWED));
        assert!(!connects(&rig.near, &side.web, family, OTHER));
        for from in [&rig.narrow, &rig.router, &other.node, &side.app, &other.app] {
            assert!(!connects(from, &side.web, family, ALLOWED), "{}", from.name);
        }
        assert!(probe::ping(&rig.near, &side.web, family).is_err(), "a rule with ports says nothing of echoes");
        assert!(connects(&side.node, &side.web, family, OTHER) && probe::ping(&side.node, &side.web, family).is_ok());
        assert!(connects(&side.web, &rig.narrow, family, OTHER), "what it opens itself is not isolated");
    });
    // A hole in a wide block, by the other host's address.
    let wide = |net: &str, hole: IpAddr| json!({"ipBlock": {"cidr": net, "except": [format!("{hole}/{}", if hole.is_ipv4() { 32 } else { 128 })]}});
    let [v4, v6] = Family::BOTH.map(|f| rig.narrow.address(f).unwrap());
    let rules = json!([{"from": [wide("0.0.0.0/0", v4), wide("::/0", v6)]}]);
    rig.under(&web("hole", "Ingress", rules), |side, other, family| {
        assert!(connects(&rig.near, &side.web, family, OTHER) && probe::ping(&rig.near, &side.web, family).is_ok());
        assert!(
            !connects(&rig.narrow, &side.web, family, OTHER) && probe::ping(&rig.narrow, &side.web, family).is_err()
        );
        assert!(connects(&other.app, &side.web, family, OTHER), "a block holds pods, too");
        assert!(connects(&other.node, &side.web, family, OTHER), "and nodes");
    });
    rig.lab.down().unwrap();
}

#[test]
fn what_a_node_forwards_is_judged_by_its_source() {
    let rig = Rig::new();
    let container = rig.lab.hostile().unwrap().container().unwrap();
    let [_, side] = &rig.sides;
    for family in Family::BOTH {
        assert!(connects(&container, &side.web, family, OTHER), "without a policy");
    }
    let nobody = web("nobody", "Ingress", json!([]));
    apply(&rig.lab, std::slice::from_ref(&nobody));
    for family in Family::BOTH {
        assert!(!connects(&container, &side.web, family, ALLOWED), "{family}: it is not the node");
        assert!(connects(&side.node, &side.web, family, ALLOWED), "{family}");
    }
    delete(&rig.lab, std::slice::from_ref(&nobody));
    let rules = json!([{"from": blocks(&container), "ports": tcp()}]);
    rig.under(&web("container", "Ingress", rules), |side, _, family| {
        if side.node.name == "node-2" {
            assert!(connects(&container, &side.web, family, ALLOWED));
            assert!(!connects(&container, &side.web, family, OTHER));
        }
        assert!(!connects(&rig.near, &side.web, family, ALLOWED));
    });
    rig.lab.down().unwrap();
}

#[test]
fn a_pod_speaks_to_the_part_of_the_world_that_its_policies_name_and_hears_its_answers() {
    let rig = Rig::new();
    let rules = json!([{"to": blocks(&rig.near), "ports": tcp()}]);
    rig.under(&web("out", "Egress", rules), |side, other, family| {
        assert!(connects(&side.web, &rig.near, family, ALLOWED));
        assert!(!connects(&side.web, &rig.near, family, OTHER));
        for to in [&rig.narrow, &side.node, &other.node, &side.app, &other.app] {
            assert!(!connects(&side.web, to, family, ALLOWED), "{}", to.name);
        }
        // What it is asked it answers.
        for from in [&rig.narrow, &side.node, &other.node, &side.app, &other.app] {
            assert!(connects(from, &side.web, family, OTHER), "{}", from.name);
        }
        assert!(
            probe::ping(&rig.narrow, &side.web, family).is_ok() && probe::ping(&side.web, &rig.narrow, family).is_err()
        );
    });
    rig.lab.down().unwrap();
}

#[test]
fn errors_come_back_about_flows_that_may_pass_and_about_no_other() {
    let rig = Rig::new();
    let udp = json!([{"protocol": "UDP", "port": ALLOWED}]);
    // Isolated in both directions, and with no rule of its own for what it says about what reaches it.
    let both = policy(
        "errors",
        json!({
            "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [of("app")], "ports": udp}, {"from": blocks(&rig.near), "ports": udp}],
            "egress": [{"to": blocks(&rig.near), "ports": udp}],
        }),
    );
    rig.under(&both, |side, other, family| {
        let to = side.web.address(family).unwrap();
        // What a pod says about a flow that the world has opened leaves as it is, also where pods are masqueraded.
        for from in [&side.app, &other.app, &rig.near] {
            assert_eq!(told(from, to, ALLOWED), ErrorKind::ConnectionRefused, "{}", from.name);
            assert!(is_silence(told(from, to, OTHER)), "{}", from.name);
        }
        assert!(is_silence(told(&rig.narrow, to, ALLOWED)));
        assert_eq!(told(&side.node, to, OTHER), ErrorKind::ConnectionRefused);
        // The other way: what the world says about what the pod may send, though nothing of its kind may come in by itself.
        let near = rig.near.address(family).unwrap();
        assert_eq!(told(&side.web, near, ALLOWED), ErrorKind::ConnectionRefused);
        assert!(is_silence(told(&side.web, near, OTHER)));
    });
    // A router on the way is nobody that a rule names.
    let nowhere = |family| -> IpAddr {
        match family {
            Family::V4 => "192.0.2.7".parse().unwrap(),
            Family::V6 => "2001:db8:2::7".parse().unwrap(),
        }
    };
    let rules = json!([{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}, {"ipBlock": {"cidr": "2001:db8:2::/48"}}], "ports": udp}]);
    let mut both = web("router", "Egress", rules);
    both["spec"]["policyTypes"] = json!(["Ingress", "Egress"]);
    rig.under(&both, |side, _, family| {
        let kind = told(&side.web, nowhere(family), ALLOWED);
        assert!([ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable].contains(&kind), "{kind}");
        assert!(is_silence(told(&side.web, nowhere(family), OTHER)));
    });
    rig.lab.down().unwrap();
}

fn sctp(place: &Place, family: Family) -> std::io::Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(family.any(), 0));
    let socket = place.run(|| Ok(Socket::new(domain, Type::STREAM, Some(Protocol::SCTP)))).unwrap()?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}
fn associates(from: &Place, to: &Place, family: Family, port: u16, patience: Duration) -> bool {
    let listener = sctp(to, family).unwrap();
    listener.bind(&SocketAddr::new(family.any(), port).into()).unwrap();
    listener.listen(2).unwrap();
    let mut client = sctp(from, family).unwrap();
    let target = SocketAddr::new(to.address(family).unwrap(), port);
    if client.connect_timeout(&target.into(), patience).is_err() {
        return false;
    }
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut heard = [0; 4];
    client.write_all(b"weft").unwrap();
    server.read_exact(&mut heard).unwrap();
    server.write_all(&heard).unwrap();
    client.read_exact(&mut heard).unwrap();
    &heard == b"weft"
}
/// Whether an INIT that a pod sends arrives; for kernels without SCTP.
fn arrives(from: &Place, to: &Place, family: Family, port: u16) -> bool {
    let [inside, outside] = [from, to].map(|place| Wire::open(place, "eth0").unwrap());
    let [src, dst] = [from, to].map(|place| place.address(family).unwrap());
    let packet = Ip::default().packet(src, dst, frame::sctp(5000, port));
    inside.send(&frame::eth(Mac::new(inside.mac()), Mac::WEFT, packet)).unwrap();
    let at = match family {
        Family::V4 => (23, 34),
        Family::V6 => (20, 54),
    };
    let is_it = |f: &[u8]| (*f.get(at.0)? == SCTP && f.get(at.1 + 2..at.1 + 4)? == port.to_be_bytes()).then_some(());
    outside.hear(GONE, is_it).is_ok()
}

#[test]
fn sctp_is_told_apart_from_other_protocols_by_its_ports() {
    let rig = Rig::new();
    let has_sctp = sctp(&rig.near, Family::V4).is_ok();
    let rules = json!([{"from": [of("app")], "ports": [{"protocol": "SCTP", "port": ALLOWED}]}]);
    rig.under(&web("sctp", "Ingress", rules), |side, other, family| {
        for from in [&side.app, &other.app] {
            if has_sctp {
                assert!(associates(from, &side.web, family, ALLOWED, PATIENCE), "{}", from.name);
                assert!(!associates(from, &side.web, family, OTHER, GONE), "{}", from.name);
            } else {
                assert!(arrives(from, &side.web, family, ALLOWED), "{}", from.name);
                assert!(!arrives(from, &side.web, family, OTHER), "{}", from.name);
            }
            assert!(!connects(from, &side.web, family, ALLOWED), "{}: another protocol", from.name);
        }
    });
    rig.lab.down().unwrap();
}
