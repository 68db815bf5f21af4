//! Every way in and out of a node, ordinary and hostile, and whom the other end sees. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Result;
use cni_agent::netlink::{Socket, addr};
use cni_common::maps::OWN_ANNOUNCED;
use lab::{
    HostileNode, Lab, LabConfig, Node, PodSpec,
    hostile::{Advertisement, Direction, Foreign, Policy, Side},
    probe::{self, Family, Place, Reply},
};
use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};

/// What has not happened by then does not happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// More packets of a kind than a system sends on its own while we look.
const MANY: u64 = 20;

/// An ordinary node with the pod `one`, a hostile one with the pod `two`.
struct Rig {
    lab: Lab,
    ordinary: Place,
    hostile: Place,
    one: Place,
    two: Place,
}

impl Rig {
    fn new(agent_args: &[&str]) -> Self {
        let agent_args = agent_args.iter().map(|a| (*a).to_owned()).collect();
        let mut lab = Lab::up(LabConfig { agent_args, ..LabConfig::default() }).expect("a lab of two nodes");
        assert_eq!(lab.nodes().iter().map(Node::is_hostile).collect::<Vec<_>>(), [false, true]);
        let mut pod =
            |node, name| lab.pod_add(node, &PodSpec::named(name)).expect("a pod").pod.place().expect("its place");
        let (one, two) = (pod("node-1", "one"), pod("node-2", "two"));
        let node = |name| lab.node(name).unwrap().place().unwrap();
        Self { ordinary: node("node-1"), hostile: node("node-2"), one, two, lab }
    }

    fn node(&self, name: &str) -> &Node {
        self.lab.node(name).unwrap()
    }

    fn hostile(&self) -> &HostileNode {
        self.lab.hostile().unwrap()
    }
}

/// Goes on behind what is wrong and tells all of it in the end.
#[derive(Default)]
struct Checks {
    right: usize,
    wrong: Vec<String>,
}

impl Checks {
    fn expect(&mut self, right: bool, wrong: impl FnOnce() -> String) {
        if right {
            self.right += 1;
        } else {
            self.wrong.push(wrong());
        }
    }

    /// It comes back, and the other end saw `source`.
    fn sees(&mut self, what: &str, reply: Result<Reply>, source: IpAddr) {
        match reply {
            Err(e) => self.wrong.push(format!("{what}: {e:#}")),
            Ok(Reply { seen: Some(seen), .. }) => {
                self.expect(seen == source, || format!("{what}: the other end sees {seen} and not {source}"));
            }
            Ok(_) => self.right += 1,
        }
    }

    /// Every protocol gets there and back, from whichever address the stack takes; the other end sees `source`.
    fn reaches(&mut self, from: &Place, to: &Place, family: Family, source: IpAddr) {
        let what = |protocol: &str| format!("{protocol} {family} {} → {}", from.name, to.name);
        self.sees(&what("UDP"), probe::udp_bound(from, family.any(), to, to.address(family).unwrap()), source);
        self.sees(&what("TCP"), probe::tcp(from, to, family), source);
        self.sees(&what("echo"), probe::ping(from, to, family), source);
    }

    /// As [`reaches`](Self::reaches), both ways, each under its own address.
    fn reach_each_other(&mut self, a: &Place, b: &Place, family: Family) {
        for (from, to) in [(a, b), (b, a)] {
            self.reaches(from, to, family, from.address(family).unwrap());
        }
    }

    /// A process that has bound itself to `source`.
    fn bound_reaches(&mut self, from: &Place, source: IpAddr, to: &Place, family: Family) {
        let what = format!("UDP {family} {} as {source} → {}", from.name, to.name);
        self.sees(&what, probe::udp_bound(from, source, to, to.address(family).unwrap()), source);
    }

    /// Nothing arrives.
    fn lost(&mut self, from: &Place, to: &Place, family: Family) {
        let what = format!("UDP {family} {} → {}", from.name, to.name);
        match probe::udp(from, to, family) {
            Ok(_) => self.wrong.push(format!("{what}: it arrives, and must not")),
            Err(e) => self.expect(format!("{e:#}").contains("did not arrive"), || format!("{what}: {e:#}")),
        }
    }

    /// What is sent to `to` is dropped for this reason by this program on that node.
    fn dropped(&mut self, from: &Place, source: IpAddr, to: SocketAddr, (node, point, reason): (&Node, &str, &str)) {
        let what = format!("{} → {}", from.name, to.ip());
        let before = drops(node);
        if let Err(e) = send(from, source, to) {
            self.wrong.push(format!("{what}: {e:#}"));
            return;
        }
        let key = (point.to_owned(), reason.to_owned());
        let grown = || drops(node).get(&key).copied().unwrap_or(0) >= before.get(&key).copied().unwrap_or(0) + MANY;
        self.expect(until(grown), || {
            let after = drops(node);
            let new: Vec<_> = after.iter().filter(|(k, n)| before.get(*k) != Some(*n)).collect();
            format!("{what}: {MANY} drops {reason} of {point} on {} did not come, but {new:?}", node.name())
        });
    }

    /// What leaves the hostile node for a pod of the other one under `source`, or whichever address the stack takes, would be refused there.
    fn refused_as_foreign(&mut self, rig: &Rig, from: &Place, source: IpAddr) {
        let family = if source.is_ipv4() { Family::V4 } else { Family::V6 };
        let far = SocketAddr::new(rig.one.address(family).unwrap(), 7);
        self.dropped(from, source, far, (rig.node("node-2"), "from_host", "ForeignSource"));
    }

    fn finish(self) {
        assert!(self.wrong.is_empty(), "{} are right, wrong are:\n{}", self.right, self.wrong.join("\n"));
        println!("{} assertions", self.right);
    }
}

/// A node's drops by program and reason.
fn drops(node: &Node) -> BTreeMap<(String, String), u64> {
    let counts = node.ask("/v1/drops").unwrap();
    let text = |count: &serde_json::Value, key: &str| count[key].as_str().unwrap().to_owned();
    let list = counts["drops"].as_array().unwrap();
    list.iter().map(|c| ((text(c, "point"), text(c, "reason")), c["packets"].as_u64().unwrap())).collect()
}

/// Sends [`MANY`] datagrams to where perhaps nobody is.
fn send(from: &Place, source: IpAddr, to: SocketAddr) -> Result<()> {
    from.run(|| {
        let socket = UdpSocket::bind(SocketAddr::new(source, 0))?;
        socket.set_broadcast(true).or_else(|e| if to.is_ipv6() { Ok(()) } else { Err(e) })?;
        for _ in 0..MANY {
            match socket.send_to(b"to nobody", to) {
                // The answer to an earlier one.
                Err(e) if [io::ErrorKind::HostUnreachable, io::ErrorKind::NetworkUnreachable].contains(&e.kind()) => {}
                other => drop(other?),
            }
        }
        Ok(())
    })
}

fn until(mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() > deadline {
            return false;
        }
        lab::pause();
    }
    true
}

fn port(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), 7)
}

/// Between pods and nodes, each seen under its own address.
fn pods_and_nodes(checks: &mut Checks, rig: &Rig, family: Family) {
    let Rig { ordinary, hostile, one, two, .. } = rig;
    checks.reach_each_other(one, two, family);
    for (pod, own, other) in [(one, ordinary, hostile), (two, hostile, ordinary)] {
        checks.reach_each_other(pod, own, family);
        checks.reach_each_other(pod, other, family);
        // A process of the node's own network that answers where it is asked, and asks from where it says.
        for node in [own, other] {
            checks.bound_reaches(node, node.address(family).unwrap(), pod, family);
        }
    }
}

/// The hostile node's second NIC, before and after the Node object lists its addresses.
fn second_nic(checks: &mut Checks, rig: &mut Rig) {
    let nic = rig.hostile().on_second_nic().unwrap();
    for family in Family::BOTH {
        let address = nic.address(family).unwrap();
        let two = rig.two.address(family).unwrap();
        checks.reaches(&rig.two, &nic, family, two);
        checks.bound_reaches(&nic, address, &rig.two, family);
        // Nobody else knows whose this address is, so nobody would take the packet.
        checks.refused_as_foreign(rig, &nic, address);
    }
    rig.lab.list_addresses("node-2", &nic.addresses).unwrap();
    for family in Family::BOTH {
        let address = nic.address(family).unwrap();
        checks.expect(until(|| is_announced(rig, address)), || {
            format!("{address} is listed, and does not come into maps")
        });
        let one = rig.one.address(family).unwrap();
        checks.reaches(&rig.one, &nic, family, one);
        checks.bound_reaches(&nic, address, &rig.one, family);
        // The first address of the family stays the one that the stack takes.
        checks.reaches(&rig.hostile, &rig.one, family, rig.hostile.address(family).unwrap());
    }
    rig.lab.list_addresses("node-2", &[]).unwrap();
}

/// The other node sends to this address of the hostile one, and the hostile one from it.
fn is_announced(rig: &Rig, address: IpAddr) -> bool {
    let number = if address.is_ipv4() { 4 } else { 6 };
    let entry = |node: &str, map: &str| {
        let entries = rig.node(node).ask(&format!("/v1/maps/{map}{number}")).unwrap();
        entries.as_array().unwrap().iter().find(|e| e["key"] == address.to_string()).cloned()
    };
    let flags = entry("node-2", "own").and_then(|e| e["value"].as_u64()).unwrap_or(0);
    entry("node-1", "remote").is_some() && flags & u64::from(OWN_ANNOUNCED) != 0
}

/// What the hostile node's stack forwards, once its firewall lets it.
fn forwarded(checks: &mut Checks, rig: &Rig) {
    let hostile = rig.hostile();
    let (container, outside) = (hostile.container().unwrap(), hostile.outside().unwrap());
    for family in Family::BOTH {
        checks.lost(&container, &rig.two, family);
        checks.lost(&outside, &rig.two, family);
        checks.lost(&rig.two, &outside, family);
    }
    hostile.set_forward(Policy::Accept).unwrap();
    for family in Family::BOTH {
        checks.reach_each_other(&container, &rig.two, family);
        checks.reach_each_other(&outside, &rig.two, family);
        checks.refused_as_foreign(rig, &container, family.any());
    }
    hostile.set_masquerade(true).unwrap();
    checks.reaches(&container, &rig.one, Family::V4, rig.hostile.address(Family::V4).unwrap());
    // The kernel takes an address of whichever device it likes, as the one that the packet leaves by has none: for IPv6 it is the bridge's,
    // whose first bits are those of the pods.
    checks.refused_as_foreign(rig, &container, Family::V6.any());
    hostile.set_masquerade(false).unwrap();
    hostile.set_forward(Policy::Drop).unwrap();
}

/// To everybody and to nobody.
fn nowhere(checks: &mut Checks, rig: &Rig) {
    let (v4, v6) = (Family::V4.any(), Family::V6.any());
    for (pod, node) in [(&rig.one, "node-1"), (&rig.two, "node-2")] {
        let node = rig.node(node);
        let multicast = (node, "from_pod", "Multicast");
        for (source, to) in [(v4, "224.0.0.5"), (v4, "239.1.2.3"), (v4, "255.255.255.255"), (v6, "ff05::1")] {
            checks.dropped(pod, source, port(to), multicast);
        }
        let device = pod.run(|| nix::net::if_::if_nametoindex("eth0").map_err(io::Error::from)).unwrap();
        let on_link = |address: &str| SocketAddrV6::new(address.parse().unwrap(), 7, 0, device).into();
        checks.dropped(pod, v6, on_link("ff02::1"), multicast);
        // The gateway is an entry in a table, and nobody to talk to.
        checks.dropped(pod, v4, port("169.254.1.1"), (node, "from_pod", "Unroutable"));
        checks.dropped(pod, v6, on_link("fe80::1"), (node, "from_pod", "Unroutable"));
    }
    let (node_1, node_2) = (rig.node("node-1"), rig.node("node-2"));
    for (source, near, far) in [(v4, "10.244.1.222", "10.244.2.222"), (v6, "fd10:244:1::222", "fd10:244:2::222")] {
        checks.dropped(&rig.one, source, port(near), (node_1, "from_pod", "NoPod"));
        checks.dropped(&rig.one, source, port(far), (node_2, "from_overlay", "NoPod"));
        checks.dropped(&rig.ordinary, source, port(near), (node_1, "from_host", "NoPod"));
        checks.dropped(&rig.ordinary, source, port(far), (node_2, "from_overlay", "NoPod"));
    }
    // The node's stack has no way to these and says so.
    for (source, to) in [(v4, "203.0.113.7"), (v6, "2001:db8::7")] {
        let refused = rig.one.run(|| {
            let socket = UdpSocket::bind(SocketAddr::new(source, 0))?;
            socket.set_read_timeout(Some(probe::LIMIT))?;
            // Without it a socket hears only of what will never change.
            if source.is_ipv4() {
                setsockopt(&socket, Ipv4RecvErr, &true)?
            } else {
                setsockopt(&socket, Ipv6RecvErr, &true)?
            }
            socket.connect(port(to))?;
            socket.send(b"anybody?")?;
            Ok(socket.recv(&mut [0; 8]).unwrap_err().kind())
        });
        let refused = refused.unwrap();
        let says = [io::ErrorKind::NetworkUnreachable, io::ErrorKind::HostUnreachable].contains(&refused);
        checks.expect(says, || format!("one → {to}: nobody says that it is unreachable ({refused})"));
    }
}

/// The hostile node's address comes from a router, and comes again; somebody else's filters see what goes by.
fn stays_hostile(checks: &mut Checks, rig: &Rig) {
    let address = rig.hostile.address(Family::V6).unwrap();
    let mut socket = Socket::open_in(rig.hostile.netns()).unwrap();
    let own = addr::list(&mut socket).unwrap().into_iter().find(|a| a.net.addr() == address).unwrap();
    checks.expect(!own.flags.contains(addr::Flags::Permanent), || format!("a router's address is for a time: {own:?}"));

    let prefix = "fd99::/64".parse().unwrap();
    rig.hostile().advertise(&Advertisement { valid: 7 * 24 * 3600, ..Advertisement::of(prefix) }).unwrap();
    let [ingress, egress] = [Direction::Ingress, Direction::Egress].map(|d| rig.hostile().foreign(d).unwrap());
    let seen = |foreign: &Foreign| Side::BOTH.map(|side| foreign.seen(side).unwrap());
    let before = [seen(ingress), seen(egress)];
    for family in Family::BOTH {
        checks.reaches(&rig.ordinary, &rig.hostile, family, rig.ordinary.address(family).unwrap());
        checks.reach_each_other(&rig.one, &rig.two, family);
    }
    let [[first, last], out] = [seen(ingress), seen(egress)];
    let [plain, all] = [6, 18];
    // What we take they see only where they stand before us: with TCX we come before all filters.
    let ours_is_first = how(rig.node("node-2"), "from_netdev") == "tcx";
    for (what, seen, before, least) in [
        ("before ours", first, before[0][0], if ours_is_first { plain } else { all }),
        ("after ours", last, before[0][1], plain),
        ("first at the egress", out[0], before[1][0], all),
        ("last at the egress", out[1], before[1][1], all),
    ] {
        let seen = seen - before;
        checks.expect(seen >= least, || format!("somebody else's filter {what} has seen {seen} packets, not {least}"));
    }
}

/// By which means a program is attached.
fn how(node: &Node, program: &str) -> String {
    let status = node.ask("/v1/status").unwrap();
    let hooks = status["datapath"]["programs"].as_array().expect("a list of programs").clone();
    let hook = hooks.iter().find(|h| h["program"] == program).expect("the program is attached");
    hook["how"].as_str().unwrap().to_owned()
}

#[test]
fn every_way_in_and_out_of_a_node_is_open_under_the_right_address() {
    let mut rig = Rig::new(&[]);
    let mut checks = Checks::default();
    for family in Family::BOTH {
        pods_and_nodes(&mut checks, &rig, family);
    }
    second_nic(&mut checks, &mut rig);
    forwarded(&mut checks, &rig);
    nowhere(&mut checks, &rig);
    stays_hostile(&mut checks, &rig);
    checks.finish();
    rig.lab.down().unwrap();
}

#[test]
fn every_way_between_nodes_is_open_over_an_ipv6_underlay() {
    let mut rig = Rig::new(&["--underlay", "ipv6"]);
    let mut checks = Checks::default();
    for family in Family::BOTH {
        pods_and_nodes(&mut checks, &rig, family);
    }
    second_nic(&mut checks, &mut rig);
    forwarded(&mut checks, &rig);
    stays_hostile(&mut checks, &rig);
    checks.finish();
    rig.lab.down().unwrap();
}
