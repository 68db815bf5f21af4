//! What somebody changes by hand is found, told, and made right. Needs root and `cargo xtask build`; run it with
//! `cargo xtask test --suite lab`.
use std::{
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use cni_agent::{
    datapath::{RawMap, syscall},
    netlink::{
        Socket, link, names, netns,
        nftables::own::{self, Rule, Table},
        tc::{self, Place as TcPlace},
    },
};
use cni_common::schema;
use lab::{
    Ending, Lab, LabConfig, PodSpec,
    hostile::Hostile,
    probe::{self, Family, Place},
};

/// What has not happened by then does not happen.
const PATIENCE: Duration = Duration::from_secs(60);

struct Rig {
    lab: Lab,
    web: Place,
    client: Place,
    socket: Socket,
}

impl Rig {
    /// Two nodes with a pod each, and one more beside the first.
    fn new(agent_args: &[&str]) -> Self {
        let agent_args = agent_args.iter().map(|a| (*a).to_owned()).collect();
        let config = LabConfig { hostile: Hostile::Nobody, agent_args, ..LabConfig::with_nodes(2) };
        let mut lab = Lab::up(config).expect("a lab of two nodes");
        let [web, client] = [("node-1", "web"), ("node-2", "client")]
            .map(|(node, name)| lab.pod_add(node, &PodSpec::named(name)).expect("a pod").pod.place().unwrap());
        let socket = Socket::open_in(lab.node("node-1").unwrap().place().unwrap().netns()).unwrap();
        Self { lab, web, client, socket }
    }

    fn verify(&self) -> (Option<i32>, String) {
        let node = self.lab.node("node-1").unwrap();
        let mut command = Command::new(self.lab.bin_dir().join("weft"));
        command.arg("--socket").arg(node.paths().api_socket()).args(["status", "--verify"]);
        let Output { status, stdout, stderr } = command.output().unwrap();
        (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
    }

    fn assert_clean(&self, when: &str) {
        assert_eq!(self.verify(), (Some(0), "The kernel holds what it should.\n".into()), "{when}");
    }

    /// What was changed is named, repaired, and not found again; packets go.
    fn finds(&self, named: &[&str]) {
        let (code, text) = self.verify();
        assert_eq!(code, Some(1), "{named:?} were not found:\n{text}");
        for name in named {
            assert!(text.contains(name), "{name} is missing in\n{text}");
        }
        assert!(text.contains("  repaired\n") && !text.contains("NOT repaired"), "{text}");
        self.assert_clean(&format!("after {named:?}"));
        self.packets_go();
    }

    fn packets_go(&self) {
        let node = self.lab.node("node-1").unwrap().place().unwrap();
        for family in Family::BOTH {
            probe::udp(&self.client, &self.web, family).unwrap();
            probe::tcp(&self.web, &self.client, family).unwrap();
            probe::udp(&node, &self.web, family).unwrap();
        }
    }

    fn run(&self, words: &str) {
        let mut words_of = words.split(' ');
        let mut command = Command::new(words_of.next().unwrap());
        command.args(words_of).stdin(Stdio::null());
        let node = self.lab.node("node-1").unwrap().place().unwrap();
        let status = netns::spawn_in(node.netns(), &mut command).unwrap().wait().unwrap();
        assert!(status.success(), "{words}");
    }

    fn index(&mut self, name: &str) -> u32 {
        link::by_name(&mut self.socket, name).unwrap().unwrap_or_else(|| panic!("no device {name}")).index
    }

    fn pods_device(&mut self) -> String {
        let links = link::list(&mut self.socket).unwrap();
        links.into_iter().find(|l| names::endpoint_of(&l.name).is_some()).unwrap().name
    }

    fn map(&self, spec: &schema::MapSpec) -> RawMap {
        let path = self.lab.node("node-1").unwrap().paths().bpf().join("weft").join(spec.name);
        RawMap::new(syscall::open_pin(&path).unwrap().unwrap(), *spec).unwrap()
    }

    /// How `from_netdev` came to the node's device.
    fn how(&self) -> String {
        let status = self.lab.node("node-1").unwrap().ask("/v1/status").unwrap();
        let programs = status["datapath"]["programs"].as_array().unwrap().clone();
        programs.iter().find(|p| p["program"] == "from_netdev").unwrap()["how"].as_str().unwrap().to_owned()
    }
}

#[test]
fn entries_of_every_map_that_are_changed_are_written_again() {
    let rig = Rig::new(&[]);
    rig.assert_clean("nobody has changed anything");
    for spec in cni_agent::compile::maps() {
        let map = rig.map(spec);
        let Some((key, value)) = map.dump().unwrap().into_iter().next() else { continue };
        let other: Vec<u8> = value.iter().map(|b| b ^ 0x5a).collect();
        map.update(&key, &other).unwrap();
        rig.finds(&[spec.name]);
        assert_eq!(map.lookup(&key).unwrap(), Some(value.clone()), "{}", spec.name);
        map.delete(&key).unwrap();
        rig.finds(&[spec.name, "nothing"]);
        assert_eq!(map.lookup(&key).unwrap(), Some(value), "{}", spec.name);
    }
    // One too many.
    let local = rig.map(&schema::LOCAL4);
    let (_, value) = local.dump().unwrap().into_iter().next().unwrap();
    local.update(&[203, 0, 113, 9], &value).unwrap();
    rig.finds(&["local4_v2 203.0.113.9", "should  nothing"]);
    rig.lab.down().unwrap();
}

#[test]
fn attributes_of_devices_routes_and_neighbours_are_set_again() {
    let mut rig = Rig::new(&[]);
    let pod = rig.pods_device();
    let gateway = names::GATEWAY4;
    for (words, named) in [
        ("ip link set weft_host down".to_owned(), vec!["weft_host", "down"]),
        ("ip link set weft_net mtu 1400".into(), vec!["weft_net", "MTU 1400", "MTU 65535"]),
        ("ip link set weft_vxlan address 02:00:00:00:00:09".into(), vec!["weft_vxlan", "02:00:00:00:00:09"]),
        ("ip link set weft_vxlan down".into(), vec!["weft_vxlan", "down"]),
        ("ip link set weft_block up".into(), vec!["weft_block", "was     up"]),
        ("ip link set weft_host addrgenmode eui64".into(), vec!["weft_host", "address generation on"]),
        ("ip addr add 192.0.2.77/32 dev weft_host".into(), vec!["weft_host", "address 192.0.2.77/32"]),
        (format!("ip link set {pod} down"), vec![&pod, "pod-device"]),
        (format!("ip link set {pod} mtu 1300"), vec![&pod, "MTU 1300", "MTU 1500"]),
        (format!("tc qdisc del dev {pod} clsact"), vec![&pod, "no clsact"]),
        (format!("ip neigh del {gateway} dev weft_host"), vec!["neighbour", "169.254.1.1 on weft_host"]),
        (
            format!("ip neigh replace {gateway} lladdr 02:00:00:00:00:09 dev weft_host nud permanent"),
            vec!["169.254.1.1 on weft_host", "02:00:00:00:00:09"],
        ),
        ("ip route del 10.244.1.0/24 dev weft_host".into(), vec!["route", "10.244.1.0/24 on weft_host"]),
        ("ip -6 route flush dev weft_host proto 87".into(), vec!["route", "fd10:244:1::/64 on weft_host"]),
    ] {
        rig.run(&words);
        rig.finds(&named);
    }
    let status = rig.lab.node("node-1").unwrap().ask("/v1/status").unwrap();
    let drift = &status["reconciler"]["drift"];
    assert!(drift["device"].as_u64() >= Some(6) && drift["pod-device"].as_u64() >= Some(3), "{drift}");
    rig.lab.down().unwrap();
}

/// Weft's table in the node's namespace, once it is there, or is gone.
fn await_table(lab: &Lab, there: bool) -> Option<Table> {
    let node = lab.node("node-1").unwrap().place().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let table = node.run(|| own::read().map_err(std::io::Error::other)).unwrap();
        if table.is_some() == there {
            return table;
        }
        assert!(Instant::now() < deadline, "it is {}: {table:?}", if there { "not there" } else { "still there" });
        lab::pause();
    }
}

#[test]
fn the_table_of_nftables_is_written_again_stays_over_a_restart_and_goes_with_its_setting() {
    let mut rig = Rig::new(&["--service-cidr", "10.96.0.0/12"]);
    let written = await_table(&rig.lab, true);
    rig.assert_clean("nobody has changed anything");
    // Deleted, emptied, and with somebody else's rule in the place of ours.
    let changes: [(&[&str], Option<&[Rule]>); 3] = [
        (&["nftables", "inet weft", "was     nothing"], None),
        (&["another table, of 0 rules"], Some(&[])),
        (&["another table, of 1 rules"], Some(&[Rule::Keep { to: "10.0.0.0/8".parse().unwrap() }])),
    ];
    for (named, rules) in changes {
        let change = || rules.map_or_else(own::delete, own::replace).map_err(std::io::Error::other);
        rig.lab.node("node-1").unwrap().place().unwrap().run(change).unwrap();
        rig.finds(named);
        assert_eq!(await_table(&rig.lab, true), written);
    }
    rig.lab.stop_agent("node-1", Ending::Killed).unwrap();
    assert_eq!(await_table(&rig.lab, true), written, "packets go on without an agent");
    rig.lab.start_agent("node-1").unwrap();
    rig.assert_clean("after the restart");
    assert_eq!(await_table(&rig.lab, true), written);
    rig.lab.set_agent_args(&[]);
    rig.lab.restart_agent("node-1", Ending::Killed).unwrap();
    await_table(&rig.lab, false);
    rig.assert_clean("without Services");
    rig.lab.down().unwrap();
}

#[test]
fn devices_that_are_deleted_are_made_again_with_all_that_stands_on_them() {
    let mut rig = Rig::new(&[]);
    for (device, named) in [
        ("weft_vxlan", vec!["weft_vxlan", "from_overlay on weft_vxlan"]),
        ("weft_block", vec!["weft_block"]),
        ("weft_host", vec!["weft_host", "weft_net", "from_host on weft_net", "10.244.1.0/24", "neighbour"]),
    ] {
        let before = rig.index(device);
        rig.run(&format!("ip link del {device}"));
        rig.finds(&named);
        assert_eq!(rig.index(device), before, "the maps go by the index of {device}");
    }
    rig.lab.down().unwrap();
}

/// What can be done to the programs, however they are attached.
fn programs_come_back(agent_args: &[&str]) {
    let mut rig = Rig::new(agent_args);
    rig.socket.run(tc::delete_filter(TcPlace::Block(names::BLOCK_INDEX))).unwrap();
    rig.finds(&["from_pod on weft_block"]);
    for (program, device) in [("from_netdev", "eth0"), ("from_host", "weft_net"), ("from_overlay", "weft_vxlan")] {
        if rig.how() == "tcx" {
            let pin = format!("weft/link_{program}_{device}");
            std::fs::remove_file(rig.lab.node("node-1").unwrap().paths().bpf().join(pin)).unwrap();
        } else {
            let index = rig.index(device);
            rig.socket.run(tc::delete_filter(TcPlace::Ingress(index))).unwrap();
        }
        rig.finds(&[&format!("{program} on {device}"), "was     nothing"]);
    }
    rig.lab.down().unwrap();
}

#[test]
fn programs_that_are_taken_away_come_back() {
    programs_come_back(&[]);
}

#[test]
fn filters_that_are_taken_away_come_back() {
    programs_come_back(&["--without", "tcx"]);
}

#[test]
fn what_the_node_does_by_itself_is_no_drift() {
    let mut rig = Rig::new(&[]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let api = rig.lab.node("node-1").unwrap().paths().api_socket();
    let weft = rig.lab.bin_dir().join("weft");
    let lab = &mut rig.lab;
    let found = std::thread::scope(|scope| {
        let verifier = scope.spawn(|| {
            let mut found = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let output =
                    Command::new(&weft).arg("--socket").arg(&api).args(["status", "--verify"]).output().unwrap();
                if !output.status.success() {
                    found.push(String::from_utf8([output.stdout, output.stderr].concat()).unwrap());
                }
            }
            found
        });
        for round in 0..30 {
            let name = format!("p{round}");
            lab.pod_add("node-1", &PodSpec::named(&name)).unwrap();
            if round % 3 == 0 {
                // As a runtime that does not wait: the namespace goes first.
                netns::delete(&lab.pod(&name).unwrap().netns()).unwrap();
                netns::create(&lab.pod(&name).unwrap().netns()).unwrap();
            }
            lab.pod_del(&name).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        verifier.join().unwrap()
    });
    assert!(found.is_empty(), "{found:#?}");
    rig.packets_go();
    let drift = rig.lab.node("node-1").unwrap().ask("/v1/status").unwrap()["reconciler"]["drift"].clone();
    assert_eq!(drift, serde_json::json!({}), "what was compared in between");
    rig.lab.down().unwrap();
}

#[test]
fn it_is_found_without_being_asked_for() {
    let rig = Rig::new(&["--verify-every", "10"]);
    rig.run("ip link set weft_host mtu 1400");
    let deadline = Instant::now() + PATIENCE;
    let node = rig.lab.node("node-1").unwrap();
    while node.ask("/v1/status").unwrap()["reconciler"]["drift"]["device"] != 1 {
        assert!(Instant::now() < deadline, "{}", node.log_tail());
        lab::pause();
    }
    assert!(node.log_tail().contains("MTU 1400"), "{}", node.log_tail());
    rig.assert_clean("it is repaired");
    rig.packets_go();
    rig.lab.down().unwrap();
}
