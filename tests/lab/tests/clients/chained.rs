//! Other plugins behind ours in a list.
use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Instant,
};

use lab::{
    Lab, LabConfig, Node, PodSpec, layout,
    probe::{Family, Flow, LIMIT, Place},
    tool,
};
use serde_json::{Value, json};

use crate::{client::Network, machine, traffic::Traces};

/// The node's port, and the pod's that it stands for.
const HOST_PORT: u16 = 8080;
const CONTAINER_PORT: u16 = 80;
/// Somebody on the nodes' wire who is no node.
const OUTSIDER: [&str; 2] = ["10.99.0.200", "fd99::200"];

/// The network of a node with portmap behind our plugin, asked to publish the one port.
fn published<'a>(node: &'a Node, further: &Value) -> Network<'a> {
    let mut portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    for (key, value) in further.as_object().expect("an object of keys") {
        portmap[key] = value.clone();
    }
    let mapping = json!({"hostPort": HOST_PORT, "containerPort": CONTAINER_PORT, "protocol": "tcp"});
    Network::of(node, "1.0.0").then(portmap).asking(json!({"portMappings": [mapping]}))
}

/// Tells everybody who connects whom it sees.
fn serve(place: &Place) {
    for family in Family::BOTH {
        let address = SocketAddr::new(place.address(family).unwrap(), CONTAINER_PORT);
        let listener = place.run(|| TcpListener::bind(address)).unwrap();
        // Ends with the test's machine.
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let seen = stream.peer_addr().map(|peer| peer.ip().to_string());
                drop(stream.write_all(seen.unwrap_or_default().as_bytes()));
            }
        });
    }
}

/// Whom the pod sees that answers at the published port of `address`; none if nobody does.
fn seen(from: &Place, address: IpAddr) -> Option<IpAddr> {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, HOST_PORT), LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    };
    from.run(ask).ok().map(|said| said.parse().unwrap())
}

/// A lab of two nodes, a pod on each, and the outsider.
fn rig() -> (Lab, [Place; 3]) {
    let mut lab = Lab::up(LabConfig::with_nodes(2)).unwrap();
    machine::install_plugins(&lab, &["portmap", "bandwidth"]);
    let mut pod = |node, name| lab.pod_add(node, &PodSpec::named(name)).unwrap().pod.place().unwrap();
    let [near, far] = [pod("node-1", "near"), pod("node-2", "far")];
    let addresses = OUTSIDER.map(|a| a.parse().unwrap());
    let outsider = Place::new("outsider", layout::UNDERLAY, addresses.to_vec()).unwrap();
    let [v4, v6] = OUTSIDER;
    let device = layout::BRIDGE;
    let lines = format!("ip addr add {v4}/24 dev {device}\nip addr add {v6}/64 dev {device} nodad");
    tool::script(&outsider, &lines).unwrap();
    (lab, [near, far, outsider])
}

#[test]
fn portmap_publishes_a_port_to_the_node_itself_and_to_the_outside() {
    machine::on_its_own(|| {
        let (lab, [_, _, outsider]) = rig();
        let node = lab.node("node-1").unwrap();
        let place = node.place().unwrap();
        for (backend, name) in [("iptables", "by-iptables"), ("nftables", "by-nftables")] {
            let network = published(node, &json!({"backend": backend}));
            let attachment = network.pod(name);
            let pod = attachment.place();
            serve(&pod);
            for family in Family::BOTH {
                let own = place.address(family).unwrap();
                assert_eq!(seen(&place, own), Some(own), "the node by {backend}, {family}");
                assert_eq!(seen(&pod, own), Some(own), "the pod's own port by {backend}, {family}");
                let other = outsider.address(family).unwrap();
                assert_eq!(seen(&outsider, own), Some(other), "the outside by {backend}, {family}");
            }
            let loopback = seen(&place, Ipv4Addr::LOCALHOST.into());
            assert_eq!(loopback, Some(place.address(Family::V4).unwrap()), "localhost by {backend}");

            attachment.del();
            for family in Family::BOTH {
                assert_eq!(seen(&place, place.address(family).unwrap()), None, "{backend}, {family}");
            }
        }
        lab.down().unwrap();
    });
}

/// What portmap translates at the node comes back through it, also what pods and other nodes hear. With `masqAll` the pod sees the node in every
/// case.
#[test]
fn a_published_port_is_for_pods_and_other_nodes_too_with_and_without_masq_all() {
    machine::on_its_own(|| {
        let (lab, [near, far, outsider]) = rig();
        let node = lab.node("node-1").unwrap();
        let place = node.place().unwrap();
        let other = lab.node("node-2").unwrap().place().unwrap();
        for (all, name) in [(false, "sees-them"), (true, "sees-the-node")] {
            // Its backend for nftables knows no `masqAll`.
            let network = published(node, &json!({"backend": "iptables", "masqAll": all}));
            let attachment = network.pod(name);
            serve(&attachment.place());
            for family in Family::BOTH {
                let own = place.address(family).unwrap();
                for from in [&near, &far, &other] {
                    let shown = if all { own } else { from.address(family).unwrap() };
                    assert_eq!(seen(from, own), Some(shown), "{}, {family}", from.name);
                }
                let shown = if all { own } else { outsider.address(family).unwrap() };
                assert_eq!(seen(&outsider, own), Some(shown), "{family}");
            }
            attachment.del();
        }
        lab.down().unwrap();
    });
}

/// As the plugin `bandwidth` is asked, bits per second.
const LIMIT_RATE: u64 = 4_000_000;

fn limits(what: &str) -> Value {
    json!({"bandwidth": {format!("{what}Rate"): LIMIT_RATE, format!("{what}Burst"): LIMIT_RATE / 10}})
}

fn bandwidth() -> Value {
    json!({"type": "bandwidth", "capabilities": {"bandwidth": true}})
}

/// What a connection carries, bits per second.
fn rate(from: &Place, to: &Place) -> f64 {
    const BYTES: usize = 1 << 20;
    let mut flow = Flow::open(from, to, Family::V4).unwrap();
    let begin = Instant::now();
    flow.push(BYTES).unwrap();
    let rate = BYTES as f64 * 8.0 / begin.elapsed().as_secs_f64();
    println!("{} → {}: {:.1} Mbit/s", from.name, to.name, rate / 1e6);
    rate
}

/// What goes to a pod of ours is redirected past the qdisc of the host's end of its wire.
#[test]
fn bandwidth_behind_ours_limits_nothing_that_goes_to_the_pod() {
    machine::on_its_own(|| {
        let (lab, [near, far, _]) = rig();
        machine::install_plugins(&lab, &["bridge", "host-local"]);
        let node = lab.node("node-1").unwrap();
        let place = node.place().unwrap();
        let limit = LIMIT_RATE as f64;

        let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.55.0.0/24"}]]});
        let bridge = json!({"type": "bridge", "bridge": "bridge0", "isGateway": true, "ipam": ipam});
        let network = Network::made_of(node, "bridged", json!([bridge, bandwidth()])).asking(limits("ingress"));
        let attachment = network.pod("bridged");
        let limited = rate(&place, &attachment.place());
        assert!(limited < 2.0 * limit, "behind the bridge plugin it limits: {limited} bit/s");
        attachment.del();

        let network = Network::of(node, "1.0.0").then(bandwidth()).asking(limits("ingress"));
        let attachment = network.pod("ours");
        let pod = attachment.place();
        let qdiscs = tool::succeeds(&place, "tc qdisc show").unwrap();
        assert!(qdiscs.contains("qdisc tbf"), "it has done its part: {qdiscs}");
        for from in [&near, &far, &place] {
            // The best of four: a busy machine is slow now and then, a limit holds for each.
            let free = (0..4).map(|_| rate(from, &pod)).fold(0.0, f64::max);
            assert!(free > 4.0 * limit, "{}: {free} bit/s: if it limits now, docs/cni.md is wrong", from.name);
        }
        attachment.del();
        lab.down().unwrap();
    });
}

/// The ingress of the host's end of the wire is taken, by our program.
#[test]
fn bandwidth_behind_ours_fails_where_it_is_to_limit_what_comes_from_the_pod() {
    machine::on_its_own(|| {
        let (lab, _) = rig();
        let node = lab.node("node-1").unwrap();
        let before = Traces::of(node);
        let network = Network::of(node, "1.0.0").then(bandwidth()).asking(limits("egress"));
        let attachment = network.pod("limited");
        let said = attachment.fails("add");
        assert!(said.contains("create ingress qdisc: file exists"), "{said}");
        // As runtimes do behind an ADD that has failed.
        attachment.del();
        before.await_again(node);
        lab.down().unwrap();
    });
}
