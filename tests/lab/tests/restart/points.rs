//! The agent dies at every point at which it may have done a part: the next one, and the runtime that tries again, put all right, and
//! pods beside notice nothing.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use cni_agent::{
    fault::Point,
    netlink::{MissingIsDone as _, Socket, link, names, netns, tc},
};
use cni_plugin::{
    client::{SocketTransport, Transport as _},
    protocol::{Request, Response, Verb},
    spec::{AddResult, Parameters},
    tombstone::{self, Tombstone},
};
use lab::{
    Ending, Hostile, Lab, LabConfig, Node, is_virtual,
    layout::{NODE_DEVICE, pod_netns},
    pair::until,
    probe::{
        self, Family, Place,
        load::{Load, Size},
    },
};
use serde_json::{Value, json};

use crate::{
    KILLED, OTHER,
    cases::{self, Case, Op},
    node_state::state,
    pod,
};

/// Of agents that test no wire of their own at their start: its endpoint would be counted too.
const PLAIN: [&str; 2] = ["--cni-install", "no"];
const CONTAINER: &str = "subject-1";
/// Enough to see a hole of some milliseconds, and no more, as it goes on for minutes; and what leaves an emulated processor to the agent.
const SIZE: Size = Size { flows: 12, datagrams: 300 };
const SIZE_VIRTUAL: Size = Size { flows: 6, datagrams: 30 };

/// A node with pods that talk, and a container that comes and goes.
struct Rig {
    lab: Lab,
    netns: String,
    /// How many deaths the agent's log tells of.
    deaths: usize,
}

impl Rig {
    fn new(nodes: u8) -> Self {
        let agent_args = PLAIN.map(str::to_owned).into();
        let config = LabConfig { hostile: Hostile::Nobody, agent_args, ..LabConfig::with_nodes(nodes) };
        let lab = Lab::up(config).expect("a lab");
        let netns = pod_netns("subject");
        drop(netns::create(&netns).expect("a network namespace"));
        let rig = Self { lab, netns, deaths: 0 };
        // One has come and gone: the first leaves a loopback device that is up.
        rig.assert_connects("eth0", "at first");
        rig.del("eth0").expect("DEL");
        until("it is gone", || !rig.state().iter().any(|fact| fact.contains("1 quarantined")))
            .expect("its device goes");
        rig
    }

    fn node(&self) -> &Node {
        self.lab.node(KILLED).expect("a node")
    }

    fn state(&self) -> BTreeSet<String> {
        state(self.node(), Some(&self.netns))
    }

    fn await_state(&self, wanted: &BTreeSet<String>, when: &str) {
        let reached = until("all is as it was", || self.state() == *wanted);
        let now = self.state();
        let (more, less): (Vec<_>, Vec<_>) = (now.difference(wanted).collect(), wanted.difference(&now).collect());
        assert!(reached.is_ok(), "{when}: too much: {more:#?}, too little: {less:#?}");
    }

    fn request(&self, verb: Verb, ifname: &str, further: &Value) -> Request {
        let mut config = json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni"});
        for (key, value) in further.as_object().expect("keys") {
            config[key] = value.clone();
        }
        let (container_id, netns) = if verb == Verb::Gc {
            Default::default()
        } else {
            (CONTAINER.to_owned(), netns::path_of(&self.netns).display().to_string())
        };
        let parameters =
            Parameters { container_id, netns, ifname: ifname.to_owned(), args: BTreeMap::new(), path: Vec::new() };
        Request::new(verb, parameters, config)
    }

    fn call(&self, request: &Request) -> Result<Option<AddResult>, String> {
        match SocketTransport::default().call(&self.node().paths().cni_socket(), request) {
            Ok(Response::Done(result)) => Ok(result),
            Ok(Response::Failed(e)) => Err(e.to_string()),
            Err(e) => Err(e.error.to_string()),
        }
    }

    fn add(&self, ifname: &str) -> Result<Option<AddResult>, String> {
        self.call(&self.request(Verb::Add, ifname, &json!({})))
    }

    fn del(&self, ifname: &str) -> Result<(), String> {
        self.call(&self.request(Verb::Del, ifname, &json!({}))).map(drop)
    }

    /// With all attachments but the container's.
    fn gc(&self) -> Result<(), String> {
        let valid: Vec<Value> =
            self.lab.pods().iter().map(|p| json!({"containerID": p.container_id, "ifname": lab::INTERFACE})).collect();
        self.call(&self.request(Verb::Gc, "", &json!({"cni.dev/valid-attachments": valid}))).map(drop)
    }

    /// ADD succeeds, and packets come and go.
    fn assert_connects(&self, ifname: &str, when: &str) {
        let result = self.add(ifname).unwrap_or_else(|e| panic!("{when}: ADD: {e}")).expect("a result");
        let addresses = result.ips.iter().map(|ip| ip.address.addr()).collect();
        let container = Place::new(CONTAINER, &self.netns, addresses).expect("its namespace");
        let node = self.node().place().expect("the node");
        for (family, address) in Family::BOTH.into_iter().zip(&container.addresses) {
            probe::udp_bound(&node, family.any(), &container, *address).unwrap_or_else(|e| panic!("{when}: {e:#}"));
            probe::tcp(&container, &node, family).unwrap_or_else(|e| panic!("{when}: {e:#}"));
        }
    }

    /// Ends the agent and starts one that is to die; whether it lived to be ready.
    fn arm(&mut self, point: Point, pass: u32, further: &[&str]) -> bool {
        let die_at = format!("{point}:{pass}");
        self.lab.stop_agent(KILLED, Ending::Killed).unwrap();
        let args: Vec<&str> = PLAIN.iter().chain(further).chain(&["--die-at", &die_at]).copied().collect();
        self.lab.set_agent_args(&args);
        let started = self.lab.start_agent(KILLED).is_ok();
        self.lab.set_agent_args(&PLAIN);
        started
    }

    /// The agent dies, at this point and of nothing else; another one comes.
    fn succeed(&mut self, point: Point, when: &str) {
        let dead = until("the agent dies", || self.node().agent_pid().is_none());
        assert!(dead.is_ok(), "{when}: the agent never passed the point");
        let log = fs::read_to_string(self.node().paths().log()).expect("its log");
        let deaths = log.matches(&format!("dies at {point}\n")).count();
        let all = log.matches("dies at ").count();
        assert!(deaths > 0 && all == self.deaths + 1, "{when}: it died of something else:\n{}", self.node().log_tail());
        self.deaths = all;
        self.lab.stop_agent(KILLED, Ending::Killed).unwrap();
        self.lab.start_agent(KILLED).unwrap_or_else(|e| panic!("{when}: the next agent: {e:#}"));
    }

    fn case(&mut self, case: Case, bare: &BTreeSet<String>) {
        let Case { point, pass, op } = case;
        let when = format!("{op:?}, dead at {point}, pass {pass}");
        let second = matches!(op, Op::AddSecond | Op::DelSecond | Op::Leftovers);
        if second {
            self.assert_connects("eth0", &when);
        }
        let before = if second { self.state() } else { bare.clone() };
        let ifname = if second { "net1" } else { "eth0" };
        if matches!(op, Op::Del | Op::DelSecond | Op::Gc | Op::Bury) {
            self.assert_connects(ifname, &when);
        }
        match op {
            Op::Add | Op::AddSecond => {
                assert!(self.arm(point, pass, &[]), "{when}: it died at its start");
                let added = self.add(ifname);
                assert!(added.is_err(), "{when}: {added:?}");
                self.succeed(point, &when);
                if point != Point::AddFinished {
                    self.await_state(&before, &format!("{when}, before DEL"));
                }
            }
            Op::Del | Op::DelSecond => {
                assert!(self.arm(point, pass, &[]), "{when}: it died at its start");
                // What is done behind the answer may come before or after it.
                drop(self.del(ifname));
                self.succeed(point, &when);
            }
            Op::Gc => {
                assert!(self.arm(point, pass, &[]), "{when}: it died at its start");
                assert!(self.gc().is_err(), "{when}");
                self.succeed(point, &when);
                self.gc().unwrap_or_else(|e| panic!("{when}: GC again: {e}"));
                self.await_state(&before, &format!("{when}, after GC"));
            }
            Op::Bury => {
                self.lab.stop_agent(KILLED, Ending::Killed).unwrap();
                let directory = self.node().paths().run().join(tombstone::DIRECTORY);
                Tombstone::new(CONTAINER, ifname).leave(&directory).unwrap();
                self.arm(point, pass, &[]);
                self.succeed(point, &when);
                self.await_state(&before, &when);
            }
            Op::Start => {
                self.arm(point, pass, &[]);
                self.succeed(point, &when);
                self.await_state(&before, &when);
            }
            Op::Move => {
                self.arm(point, pass, &["--without", "tcx"]);
                self.succeed(point, &when);
                self.await_state(&before, &when);
            }
            Op::Leftovers => {
                assert!(self.arm(Point::AddRules, 1, &[]), "{when}");
                self.add(ifname).unwrap_err();
                until("it dies", || self.node().agent_pid().is_none()).unwrap();
                self.deaths += 1;
                self.arm(point, pass, &[]);
                self.succeed(point, &when);
                self.await_state(&before, &format!("{when}, before DEL"));
            }
            Op::Fresh => unreachable!("on a node of its own"),
        }
        // As a runtime does: what failed is taken back, then tried again.
        self.del(ifname).unwrap_or_else(|e| panic!("{when}: DEL: {e}"));
        self.await_state(&before, &format!("{when}, after DEL"));
        self.assert_connects(ifname, &format!("{when}, tried again"));
        self.del(ifname).unwrap_or_else(|e| panic!("{when}: DEL at last: {e}"));
        if second {
            self.del("eth0").unwrap_or_else(|e| panic!("{when}: DEL of eth0: {e}"));
        }
        self.await_state(bare, &format!("{when}, at last"));
    }

    /// Moves to filters and back, so that the device has its qdisc: when the kernel gives it one, it stops its sending for a moment, which
    /// costs packets (docs/paths.md), once.
    fn make_qdiscs(&mut self) {
        for args in [[&PLAIN[..], &["--without", "tcx"]].concat(), PLAIN.into()] {
            self.lab.set_agent_args(&args);
            self.lab.restart_agent(KILLED, Ending::Asked).unwrap();
        }
    }

    fn has_tcx(&self) -> bool {
        self.node().ask("/v1/status").expect("a status")["datapath"]["features"]["tcx"] == true
    }
}

#[test]
fn wherever_an_agent_dies_nothing_is_left_and_pods_beside_notice_nothing() {
    let mut rig = Rig::new(2);
    let [web, near, far] =
        [(KILLED, "web"), (KILLED, "near"), (OTHER, "far")].map(|(node, name)| pod(&mut rig.lab, node, name));
    rig.make_qdiscs();
    let bare = rig.state();
    let load =
        Load::start(&[(&near, &web), (&far, &web), (&near, &far)], if is_virtual() { SIZE_VIRTUAL } else { SIZE })
            .unwrap();
    let mut times = Vec::new();
    let all = cases::all(rig.has_tcx());
    for case in all.iter().filter(|c| c.op != Op::Fresh) {
        times.push((load.age(), *case));
        rig.case(*case, &bare);
    }
    let tally = load.stop().unwrap();
    println!("{} deaths: {tally}", rig.deaths);
    println!("figure restart deaths {}", rig.deaths);
    let drops = || [KILLED, OTHER].map(|n| rig.lab.node(n).expect("a node").ask("/v1/drops").expect("its counters"));
    let during = |at| times.iter().rfind(|(begin, _)| *begin <= at);
    tally.whole().unwrap_or_else(|e| {
        let during: Vec<_> = tally.missing.iter().map(|lost| during(lost.at)).collect();
        panic!("{e:#}\n{during:?}\n{}", drops().map(|node| node.to_string()).join("\n"))
    });
    drop(netns::delete(&rig.netns));
    rig.lab.down().unwrap();
}

#[test]
fn wherever_the_first_agent_of_a_node_dies_the_next_one_makes_the_rest() {
    let mut rig = Rig::new(1);
    let bare = rig.state();
    for case in cases::all(rig.has_tcx()).iter().filter(|c| c.op == Op::Fresh) {
        let when = format!("{case:?}");
        rig.lab.stop_agent(KILLED, Ending::Killed).unwrap();
        let mut host = Socket::open_in(rig.node().place().unwrap().netns()).unwrap();
        for device in link::list(&mut host).unwrap() {
            if [names::HOST, names::BLOCK, names::VXLAN].contains(&device.name.as_str()) {
                host.run(link::delete(device.index)).unwrap();
            } else if device.name == NODE_DEVICE {
                // Of Weft's making where there is no TCX, and what tells so goes with the pins.
                host.run(tc::delete_clsact(device.index)).missing_is_done().unwrap();
            }
        }
        for pin in fs::read_dir(rig.node().paths().bpf().join("weft")).unwrap() {
            fs::remove_file(pin.unwrap().path()).unwrap();
        }
        rig.arm(case.point, case.pass, &[]);
        rig.succeed(case.point, &when);
        rig.await_state(&bare, &when);
        rig.assert_connects("eth0", &when);
        rig.del("eth0").unwrap();
        rig.await_state(&bare, &format!("{when}, after DEL"));
    }
    drop(netns::delete(&rig.netns));
    rig.lab.down().unwrap();
}

#[test]
fn every_point_is_tried() {
    let tried: BTreeSet<Point> = cases::all(true).iter().map(|case| case.point).collect();
    assert_eq!(tried, Point::ALL.iter().copied().collect());
}
