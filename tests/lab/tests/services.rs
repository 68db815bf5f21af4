//! Services that the node's stack translates, by the rules that kube-proxy makes in its nftables mode. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
#[path = "support/policies.rs"]
mod policies;

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Ending, Lab, LabConfig, Node, PodSpec,
    hostile::{Hostile, Policy},
    pair::until,
    probe::{self, Family, Flow, LIMIT, Place},
    tool,
};
use policies::{GONE, apply, connects, of, policy};
use serde_json::json;

/// More than any socket buffer or GSO packet holds.
const MUCH: usize = 2 * 1024 * 1024;
/// Services' addresses in both families, as a ServiceCIDR object tells the agents.
const SERVICES: [&str; 2] = ["10.96.0.0/12", "fd96::/108"];

fn service(family: Family) -> IpAddr {
    match family {
        Family::V4 => "10.96.0.10",
        Family::V6 => "fd96::10",
    }
    .parse()
    .unwrap()
}

/// Tells all agents which addresses are Services'.
fn tell(lab: &Lab) {
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": SERVICES},
    });
    lab.apply(&[object]).unwrap();
    for node in lab.nodes() {
        let knows = || node.ask("/v1/status").unwrap()["services"]["masqueraded"] == true;
        until("the agent knows which addresses are Services'", knows).unwrap();
    }
}

/// A port that no case has had.
fn fresh_port() -> u16 {
    static LAST: AtomicU16 = AtomicU16::new(20_000);
    LAST.fetch_add(1, Ordering::Relaxed)
}

/// Whom the backend sees.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Who has asked, unless that is the backend itself or somebody outside of the cluster: a Service's own address.
    Kept,
    /// The node: a node's port with `externalTrafficPolicy: Cluster`.
    Node,
    /// Who has asked, whoever it is: the same with `Local`.
    Asker,
}

struct Side {
    node: Place,
    pods: [Place; 2],
}

/// What it is about, and what must hold.
type Case = (&'static str, fn(&Rig));

/// An ordinary node and a hostile one, each with two pods, and the world.
struct Rig {
    lab: Lab,
    sides: [Side; 2],
    near: Place,
}

impl Rig {
    fn new() -> Self {
        let mut lab = Lab::up(LabConfig::with_world()).expect("a lab with a world");
        tell(&lab);
        let sides = [1_u8, 2].map(|n| {
            let pods = ["a", "b"].map(|letter| {
                let name = format!("{letter}{n}");
                let spec = PodSpec { namespace: "shop".into(), ..PodSpec::named(&name) }.label("app", &name);
                lab.pod_add(&format!("node-{n}"), &spec).expect("a pod").pod.place().unwrap()
            });
            Side { node: lab.place(&format!("node-{n}")).unwrap(), pods }
        });
        lab.hostile().unwrap().set_forward(Policy::Accept).unwrap();
        for side in &sides {
            proxy(&side.node);
        }
        let near = lab.world().unwrap().near().unwrap();
        Self { sides, near, lab }
    }

    fn node(&self, side: &Side) -> &Node {
        self.lab.node(&side.node.name).unwrap()
    }

    /// Runs one case after the other, also behind one that fails.
    fn run(self, cases: &[Case]) {
        let failed: Vec<_> = cases
            .iter()
            .filter(|(name, case)| {
                catch_unwind(AssertUnwindSafe(|| case(&self))).inspect_err(|_| eprintln!("that was {name}")).is_err()
            })
            .map(|(name, _)| *name)
            .collect();
        assert!(failed.is_empty(), "{} of {} failed: {}", failed.len(), cases.len(), failed.join(", "));
        self.lab.down().unwrap();
    }
}

fn word(family: Family) -> &'static str {
    if family == Family::V4 { "ip" } else { "ip6" }
}

/// kube-proxy's chains without a Service, in both families.
fn proxy(node: &Place) {
    for family in Family::BOTH {
        let ip = word(family);
        let lines = format!(
            "nft add table {ip} kube-proxy
             nft add chain {ip} kube-proxy services
             nft add chain {ip} kube-proxy nat-prerouting {{ type nat hook prerouting priority -100 ; }}
             nft add chain {ip} kube-proxy nat-output {{ type nat hook output priority -100 ; }}
             nft add chain {ip} kube-proxy nat-postrouting {{ type nat hook postrouting priority 100 ; }}
             nft add rule {ip} kube-proxy nat-prerouting jump services
             nft add rule {ip} kube-proxy nat-output jump services
             nft add rule {ip} kube-proxy nat-postrouting meta mark & 0x4000 == 0 return
             nft add rule {ip} kube-proxy nat-postrouting meta mark set mark xor 0x4000
             nft add rule {ip} kube-proxy nat-postrouting masquerade fully-random"
        );
        tool::script(node, &lines).unwrap();
    }
}

/// Puts this backend behind a port of `at`, a Service's address or the node's own.
fn serve(node: &Place, protocol: &str, at: SocketAddr, backend: SocketAddr, source: Source) {
    let ip = if at.is_ipv4() { "ip" } else { "ip6" };
    let rule = format!("nft add rule {ip} kube-proxy services {ip} daddr {} {protocol} dport {}", at.ip(), at.port());
    let mark = "meta mark set mark or 0x4000";
    let pods = if at.is_ipv4() { "10.244.0.0/16" } else { "fd10::/16" };
    let marks = match source {
        Source::Kept => format!("{rule} {ip} saddr != {pods} {mark}\n{rule} {ip} saddr {} {mark}\n", backend.ip()),
        Source::Node => format!("{rule} {mark}\n"),
        Source::Asker => String::new(),
    };
    tool::script(node, &format!("{marks}{rule} dnat to {backend}")).unwrap();
}

fn listen(place: &Place, family: Family) -> TcpListener {
    place.run(|| TcpListener::bind(SocketAddr::new(family.any(), 0))).unwrap()
}

fn udp_socket(place: &Place, family: Family) -> UdpSocket {
    let bind = || {
        let socket = UdpSocket::bind(SocketAddr::new(family.any(), 0))?;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(socket)
    };
    place.run(bind).unwrap()
}

/// Asks `at`, where something answers, and must be answered from there; whom the backend has seen.
fn ask(client: &UdpSocket, server: &UdpSocket, at: SocketAddr) -> Result<SocketAddr> {
    let mut buffer = [0; 100];
    client.send_to(b"who", at).with_context(|| format!("ask {at}"))?;
    let (_, seen) = server.recv_from(&mut buffer).with_context(|| format!("{at} was not asked"))?;
    server.send_to(b"me", seen).with_context(|| format!("answer {seen}"))?;
    let (length, who) = client.recv_from(&mut buffer).with_context(|| format!("{at} answers {seen}, in vain"))?;
    ensure!(who == at && buffer.get(..length) == Some(b"me"), "{who} answers for {at}");
    Ok(seen)
}

/// TCP and UDP from `client` to a port of `at` that the node translates to `backend` and back; whom the backend sees.
fn reaches(client: &Place, node: &Place, at: IpAddr, backend: &Place, source: Source) -> Result<[IpAddr; 2]> {
    Ok(reaches_as(client, node, at, backend, source)?.map(|seen| seen.ip()))
}

/// The same, with the port.
fn reaches_as(client: &Place, node: &Place, at: IpAddr, backend: &Place, source: Source) -> Result<[SocketAddr; 2]> {
    let family = if at.is_ipv4() { Family::V4 } else { Family::V6 };
    let what = || format!("{} → {at} at {} → {}", client.name, node.name, backend.name);
    let behind = |port| SocketAddr::new(backend.address(family).unwrap(), port);
    let (at, listener) = (SocketAddr::new(at, fresh_port()), listen(backend, family));
    serve(node, "tcp", at, behind(listener.local_addr()?.port()), source);
    let mut flow = Flow::open_from(client, 0, &listener, at).with_context(what)?;
    flow.exchange(MUCH).with_context(what)?;
    let (socket, server) = (udp_socket(client, family), udp_socket(backend, family));
    serve(node, "udp", at, behind(server.local_addr()?.port()), source);
    // The second question is one of a flow that is known.
    ask(&socket, &server, at).with_context(what)?;
    let asked = ask(&socket, &server, at).with_context(what)?;
    Ok([flow.seen(), asked])
}

/// Each in both families on both nodes; `works` says what must be seen of whom.
fn each(rig: &Rig, works: impl Fn(&Side, &Side, Family)) {
    for (here, there) in [(0, 1), (1, 0)] {
        for family in Family::BOTH {
            works(&rig.sides[here], &rig.sides[there], family);
        }
    }
}

fn a_pod_reaches_one_of_its_node(rig: &Rig) {
    each(rig, |side, _, family| {
        let [a, b] = &side.pods;
        assert_eq!(reaches(a, &side.node, service(family), b, Source::Kept).unwrap(), [a.address(family).unwrap(); 2]);
    });
}

fn a_pod_reaches_one_of_another_node(rig: &Rig) {
    each(rig, |here, there, family| {
        let (a, far) = (&here.pods[0], &there.pods[0]);
        assert_eq!(
            reaches(a, &here.node, service(family), far, Source::Kept).unwrap(),
            [a.address(family).unwrap(); 2]
        );
    });
}

fn a_pod_reaches_itself(rig: &Rig) {
    each(rig, |side, _, family| {
        let a = &side.pods[0];
        let seen = reaches(a, &side.node, service(family), a, Source::Kept).unwrap();
        assert!(seen.iter().all(|s| *s != a.address(family).unwrap()), "{} sees itself, not its node", a.name);
    });
}

/// What netfilter keeps from Weft's own masquerade, and from the ports that pods have.
const STACK_PORTS: RangeInclusive<u16> = 16_384..=32_767;

fn a_pod_reaches_other_nodes_and_the_world_as_its_node(rig: &Rig) {
    each(rig, |here, there, family| {
        let a = &here.pods[0];
        let reach = |who: &Place| reaches_as(a, &here.node, service(family), who, Source::Kept);
        let by_the_node = |who: &Place| {
            let seen = reach(who).unwrap();
            let is_nodes = |s: &SocketAddr| s.ip() != a.address(family).unwrap() && STACK_PORTS.contains(&s.port());
            assert!(seen.iter().all(is_nodes), "{} → {}: {seen:?}", a.name, who.name);
        };
        by_the_node(&there.node);
        by_the_node(&rig.near);
        // Pods behind Services see who asks.
        assert_eq!(reach(&there.pods[0]).unwrap().map(|s| s.ip()), [a.address(family).unwrap(); 2]);
    });
}

/// The agent's table is what does it, and the agent brings it back when somebody takes it away.
fn without_the_agents_table_only_pods_are_reached_until_it_is_back(rig: &Rig) {
    each(rig, |here, there, family| {
        let a = &here.pods[0];
        let reach = |who: &Place| reaches(a, &here.node, service(family), who, Source::Kept);
        tool::succeeds(&here.node, "nft delete table inet weft").unwrap();
        reach(&there.node).unwrap_err();
        assert_eq!(reach(&there.pods[0]).unwrap(), [a.address(family).unwrap(); 2]);
        let found = rig.node(here).ask("/v1/verify").unwrap();
        let items = found["items"].as_array().expect("a list");
        assert!(items.iter().any(|i| i["kind"] == "nftables" && i["failed"] == ""), "{found:#}");
        reach(&there.node).unwrap();
    });
}

/// A pod of another node sees the node's InternalIP; but where the kernel masquerades as another address of the node, it sees nothing (docs/paths.md).
fn masqueraded(rig: &Rig, node: &Side, family: Family, asks: impl Fn() -> Result<[IpAddr; 2]>) {
    let before = dropped(rig.node(node), "ForeignSource");
    if rig.node(node).is_hostile() && family == Family::V6 {
        // Docker's address is more like the pods'.
        asks().unwrap_err();
        assert!(dropped(rig.node(node), "ForeignSource") > before);
    } else {
        assert_eq!(asks().unwrap(), [node.node.address(family).unwrap(); 2]);
    }
}

fn a_node_reaches_pods_here_and_elsewhere(rig: &Rig) {
    each(rig, |here, there, family| {
        reaches(&here.node, &here.node, service(family), &here.pods[0], Source::Kept).unwrap();
        masqueraded(rig, here, family, || {
            reaches(&here.node, &here.node, service(family), &there.pods[0], Source::Kept)
        });
    });
}

fn the_world_reaches_pods_by_a_port_of_a_node(rig: &Rig) {
    each(rig, |here, there, family| {
        let at = here.node.address(family).unwrap();
        reaches(&rig.near, &here.node, at, &here.pods[0], Source::Node).unwrap();
        masqueraded(rig, here, family, || reaches(&rig.near, &here.node, at, &there.pods[0], Source::Node));
        let seen = reaches(&rig.near, &here.node, at, &here.pods[1], Source::Asker).unwrap();
        assert_eq!(seen, [rig.near.address(family).unwrap(); 2]);
        // A pod of the other node, by the same port: the stack of this one has translated its question too.
        let asker = &there.pods[0];
        let seen = reaches(asker, &here.node, at, &here.pods[1], Source::Asker).unwrap();
        assert_eq!(seen, [asker.address(family).unwrap(); 2]);
    });
}

/// One that a Service has and nobody listens at: the error is about what the pod has sent.
fn who_asks_a_closed_port_hears_so(rig: &Rig) {
    each(rig, |here, there, family| {
        for backend in [&here.pods[1], &there.pods[0]] {
            let at = SocketAddr::new(service(family), fresh_port());
            serve(&here.node, "udp", at, SocketAddr::new(backend.address(family).unwrap(), 9), Source::Kept);
            let socket = udp_socket(&here.pods[0], family);
            socket.connect(at).unwrap();
            socket.send(b"who").unwrap();
            let heard = socket.recv(&mut [0; 10]).unwrap_err();
            assert_eq!(heard.kind(), io::ErrorKind::ConnectionRefused, "{} of {}: {heard}", at, backend.name);
        }
    });
}

/// How often the node has dropped something for this reason.
fn dropped(node: &Node, reason: &str) -> u64 {
    let drops = node.ask("/v1/drops").unwrap();
    let of_name = drops["drops"].as_array().expect("a list").iter().filter(|d| d["reason"] == reason).cloned();
    of_name.map(|d| d["packets"].as_u64().expect("a count")).sum()
}

/// Nothing of it goes on, and this is why.
fn is_refused(client: &Place, at: SocketAddr, node: &Node, reason: &str) {
    let before = dropped(node, reason);
    assert!(client.run(|| TcpStream::connect_timeout(&at, GONE)).is_err(), "{} connects to {at}", client.name);
    until(&format!("a drop as {reason} is counted"), || dropped(node, reason) > before).unwrap();
}

fn what_nothing_translates_does_not_leave_the_node(rig: &Rig) {
    each(rig, |side, _, family| {
        is_refused(&side.pods[0], SocketAddr::new(service(family), 7), rig.node(side), "NoService");
    });
}

/// The first node's pod may open TCP to the second pod there and to the first one of the other node; to that one only it may.
fn policy_judges_the_backend(rig: &Rig) {
    let [here, there] = &rig.sides;
    let tcp = json!([{"protocol": "TCP"}]);
    let from_a1 = json!({"podSelector": {"matchLabels": {"app": "a1"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [of("b1"), of("a2")], "ports": tcp}]});
    let to_a2 = json!({"podSelector": {"matchLabels": {"app": "a2"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [of("a1")]}]});
    apply(&rig.lab, &[policy("from-a1", from_a1), policy("to-a2", to_a2)]);
    let [a1, b1] = &here.pods;
    let [a2, b2] = &there.pods;
    for family in Family::BOTH {
        let behind = |backend: &Place| {
            let (at, listener) = (SocketAddr::new(service(family), fresh_port()), listen(backend, family));
            let to = SocketAddr::new(backend.address(family).unwrap(), listener.local_addr().unwrap().port());
            serve(&here.node, "tcp", at, to, Source::Kept);
            (at, listener)
        };
        for backend in [b1, a2] {
            let (at, listener) = behind(backend);
            Flow::open_from(a1, 0, &listener, at).unwrap().exchange(MUCH).unwrap();
        }
        let (at, _listener) = behind(b2);
        is_refused(a1, at, rig.node(here), "PolicyEgress");
        let (at, _listener) = behind(a2);
        is_refused(b1, at, rig.node(there), "PolicyIngress");
        is_refused(a1, SocketAddr::new(service(family), 7), rig.node(here), "NoService");
        // Behind this one is no pod, and the policy does not name its address. Nobody keeps the other pod from it.
        let (at, listener) = (SocketAddr::new(service(family), fresh_port()), listen(&here.node, family));
        let node = here.node.address(family).unwrap();
        serve(&here.node, "tcp", at, SocketAddr::new(node, listener.local_addr().unwrap().port()), Source::Kept);
        is_refused(a1, at, rig.node(here), "PolicyEgress");
        Flow::open_from(b1, 0, &listener, at).unwrap().exchange(MUCH).unwrap();
        // By the pods' own addresses nothing is otherwise.
        let port = fresh_port();
        assert!(connects(a1, a2, family, port) && connects(b1, b2, family, port) && !connects(a1, b2, family, port));
        // Itself, whatever policy says.
        let (at, listener) = behind(a1);
        Flow::open_from(a1, 0, &listener, at).unwrap().exchange(MUCH).unwrap();
    }
}

#[test]
fn services_that_the_nodes_stack_translates_have_pods_behind_them() {
    let cases: &[Case] = &[
        ("a pod reaches one of its node", a_pod_reaches_one_of_its_node),
        ("a pod reaches one of another node", a_pod_reaches_one_of_another_node),
        ("a pod reaches itself", a_pod_reaches_itself),
        ("a node reaches pods here and elsewhere", a_node_reaches_pods_here_and_elsewhere),
        ("a pod reaches other nodes and the world as its node", a_pod_reaches_other_nodes_and_the_world_as_its_node),
        (
            "without the agent's table only pods are reached, until it is back",
            without_the_agents_table_only_pods_are_reached_until_it_is_back,
        ),
        ("the world reaches pods by a port of a node", the_world_reaches_pods_by_a_port_of_a_node),
        ("who asks a closed port hears so", who_asks_a_closed_port_hears_so),
        ("what nothing translates does not leave the node", what_nothing_translates_does_not_leave_the_node),
        ("policy judges the backend", policy_judges_the_backend),
    ];
    Rig::new().run(cases);
}

/// Asks the agent of the first node.
fn weft(lab: &Lab) -> String {
    let socket = lab.node("node-1").unwrap().paths().api_socket();
    format!("{} --socket {}", lab.bin_dir().join("weft").display(), socket.display())
}

#[test]
fn a_kube_proxy_whose_services_addresses_nobody_tells_is_named_until_somebody_does() {
    let lab = Lab::up(LabConfig { hostile: Hostile::Nobody, ..LabConfig::with_nodes(1) }).expect("a lab of one node");
    let place = lab.place("node-1").unwrap();
    proxy(&place);
    let doctor = format!("{} doctor --json", weft(&lab));
    let told = || tool::says(&place, &doctor).unwrap().text.contains("services-unknown");
    assert!(told());
    tell(&lab);
    assert!(!told());
    lab.down().unwrap();
}

#[test]
fn a_table_of_our_name_that_others_made_stays_and_is_told_of() {
    let config = LabConfig { hostile: Hostile::Nobody, ..LabConfig::with_nodes(1) };
    let mut lab = Lab::up(config).expect("a lab of one node");
    let place = lab.place("node-1").unwrap();
    tool::script(&place, "nft add table inet weft\nnft add chain inet weft mine").unwrap();
    lab.set_agent_args(&["--service-cidr", "10.96.0.0/12"]);
    lab.restart_agent("node-1", Ending::Asked).unwrap();
    let problem = || lab.node("node-1").unwrap().ask("/v1/status").unwrap()["services"]["problem"].clone();
    until("the agent tells of it", || problem().as_str().is_some_and(|p| p.contains("its chain mine"))).unwrap();
    let weft = weft(&lab);
    let doctor = tool::says(&place, &format!("{weft} doctor --json")).unwrap();
    assert!(!doctor.well && doctor.text.contains("services-masquerade"), "{}", doctor.text);
    // All else is as ever.
    let pods = ["a", "b"].map(|name| lab.pod_add("node-1", &PodSpec::named(name)).unwrap().pod.place().unwrap());
    for family in Family::BOTH {
        probe::udp(&pods[0], &pods[1], family).unwrap();
    }
    let listed = tool::succeeds(&place, &format!("{weft} uninstall --node --dry-run")).unwrap();
    assert!(listed.contains("the nftables table inet weft was not made by Weft: it has a chain mine"), "{listed}");
    tool::succeeds(&place, "nft list chain inet weft mine").unwrap();
    lab.down().unwrap();
}
