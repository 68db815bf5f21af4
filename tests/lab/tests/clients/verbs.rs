//! Every verb by `cnitool` (GC with a list by `libcni-gc`, which is made of the same library).
use std::process::Output;

use lab::{
    Ending, Lab, LabConfig, PodSpec,
    probe::{self, Family},
    tool,
};
use serde_json::{Value, json};

use crate::{
    client::Network,
    machine,
    traffic::{Traces, assert_reaches},
};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A lab of one node.
fn lab() -> Lab {
    let lab = Lab::up(LabConfig::with_nodes(1)).unwrap();
    machine::install_plugins(&lab, &["bridge", "host-local", "loopback"]);
    lab
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

/// What it said on standard error; it must have failed.
fn failed(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_verb_is_served_in_every_version_that_has_it() {
    machine::on_its_own(|| {
        let lab = lab();
        let node = lab.node("node-1").unwrap();
        let before = Traces::of(node);
        for (version, pod) in VERSIONS.into_iter().zip(["a", "b", "c", "d"]) {
            let network = Network::of(node, version);
            let attachment = network.pod(pod);
            succeeded(&network.call("status"));
            attachment.add();
            if version == "0.3.1" {
                // libcni itself does not ask: CHECK came with 0.4.0.
                attachment.fails("check");
            } else {
                attachment.says("check");
            }
            succeeded(&network.call("status"));
            succeeded(&network.collect(&[(&attachment.container(), "eth0")]));
            assert_eq!(Traces::of(node).endpoints(), 1, "{version}: what is listed stays");
            attachment.del();
            before.await_again(node);
        }
        lab.down().unwrap();
    });
}

#[test]
fn check_names_what_is_gone() {
    machine::on_its_own(|| {
        let lab = lab();
        let network = Network::of(lab.node("node-1").unwrap(), "1.1.0");
        let attachment = network.pod("pod");
        let pod = attachment.place();
        attachment.says("check");
        let address = pod.address(Family::V6).unwrap().to_string();
        tool::script(&pod, &format!("ip route delete default\nip addr delete {address}/128 dev eth0")).unwrap();
        let said = attachment.fails("check");
        assert!(said.contains(&address) && said.contains("route"), "both are named: {said}");
        attachment.del();
        lab.down().unwrap();
    });
}

#[test]
fn gc_removes_what_the_runtime_does_not_list_and_nothing_of_other_networks() {
    machine::on_its_own(|| {
        let mut lab = lab();
        // Of the network `weft`.
        let other = lab.pod_add("node-1", &PodSpec::named("other")).unwrap().pod.place().unwrap();
        let node = lab.node("node-1").unwrap();
        let before = Traces::of(node);
        let network = Network::of(node, "1.1.0");
        let [kept, lost] = ["kept", "lost"].map(|name| network.pod(name));
        let place = kept.place();
        lost.add();
        lost.forget();
        assert_eq!(Traces::of(node).endpoints(), before.endpoints() + 2);

        succeeded(&network.collect(&[(&kept.container(), "eth0")]));
        assert_eq!(Traces::of(node).endpoints(), before.endpoints() + 1);
        assert_reaches(&place, &other);
        kept.says("check");
        // The same container under another interface is another attachment.
        let container = kept.container();
        kept.forget();
        succeeded(&network.collect(&[(&container, "eth1")]));
        before.await_again(node);
        assert_reaches(&node.place().unwrap(), &other);
        lab.down().unwrap();
    });
}

/// `cnitool gc` passes no list at all. What it knows of it has deleted by then.
#[test]
fn gc_without_a_list_is_refused_and_cuts_nobody_off() {
    machine::on_its_own(|| {
        let mut lab = lab();
        lab.pod_add("node-1", &PodSpec::named("other")).unwrap();
        let node = lab.node("node-1").unwrap();
        let before = Traces::of(node);
        let network = Network::of(node, "1.1.0");
        let unknown = network.pod("unknown");
        unknown.add();
        unknown.forget();
        network.pod("known").add();
        let said = failed(&network.call("gc"));
        assert!(said.contains("cni.dev/valid-attachments"), "{said}");
        assert_eq!(Traces::of(node).endpoints(), before.endpoints() + 1, "the unknown one stays");
        succeeded(&network.collect(&[]));
        before.await_again(node);
        lab.down().unwrap();
    });
}

#[test]
fn status_says_that_the_agent_is_down() {
    machine::on_its_own(|| {
        let mut lab = lab();
        lab.stop_agent("node-1", Ending::Asked).unwrap();
        let said = failed(&Network::of(lab.node("node-1").unwrap(), "1.1.0").call("status"));
        assert!(said.contains("weft-agent"), "{said}");
        lab.start_agent("node-1").unwrap();
        succeeded(&Network::of(lab.node("node-1").unwrap(), "1.1.0").call("status"));
        lab.down().unwrap();
    });
}

#[test]
fn del_works_while_the_agent_is_down_and_the_agent_forgets_the_pod_later() {
    machine::on_its_own(|| {
        let mut lab = lab();
        let before = Traces::of(lab.node("node-1").unwrap());
        Network::of(lab.node("node-1").unwrap(), "1.1.0").pod("pod").add();
        lab.stop_agent("node-1", Ending::Killed).unwrap();
        let network = Network::of(lab.node("node-1").unwrap(), "1.1.0");
        let attachment = network.known_pod("pod");
        attachment.del();
        assert_eq!(attachment.devices(), ["lo"]);
        lab.start_agent("node-1").unwrap();
        before.await_again(lab.node("node-1").unwrap());
        lab.down().unwrap();
    });
}

#[test]
fn a_pod_may_have_several_interfaces_each_deleted_alone() {
    machine::on_its_own(|| {
        let mut lab = lab();
        let other = lab.pod_add("node-1", &PodSpec::named("other")).unwrap().pod.place().unwrap();
        let node = lab.node("node-1").unwrap();
        let before = Traces::of(node);
        let network = Network::of(node, "1.1.0");
        let first = network.pod("pod");
        let second = first.also(&network, "net1");
        let [one, two] = [first.place(), second.place()];
        assert_reaches(&other, &one);
        for family in Family::BOTH {
            probe::tcp(&other, &two, family).unwrap();
            probe::ping(&other, &two, family).unwrap();
            // Bound: what answers a datagram unbound has the address of the pod's first interface.
            probe::udp_bound(&other, family.any(), &two, two.address(family).unwrap()).unwrap();
        }
        second.says("check");
        second.del();
        assert_eq!(first.devices(), ["lo", "eth0"]);
        assert_reaches(&other, &one);
        assert_reaches(&one, &other);
        first.says("check");
        first.del();
        before.await_again(node);
        lab.down().unwrap();
    });
}

#[test]
fn asked_addresses_and_mac_are_given_and_other_capabilities_refused() {
    const ASKED: [&str; 2] = ["10.244.1.77", "fd10:244:1::77"];
    const MAC: &str = "02:11:22:33:44:55";
    machine::on_its_own(|| {
        let lab = lab();
        let node = lab.node("node-1").unwrap();
        let network = Network::of(node, "1.1.0")
            .with(&json!({"capabilities": {"ips": true, "mac": true}}))
            .asking(json!({"ips": ASKED, "mac": MAC}));
        let attachment = network.pod("pod");
        let result = attachment.add();
        let pod = attachment.place_of(&result);
        assert_eq!(pod.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ASKED, "{result}");
        let inside = result["interfaces"].as_array().unwrap().iter().find(|i| i["name"] == "eth0").unwrap();
        assert_eq!(inside["mac"], MAC, "{result}");
        assert!(tool::succeeds(&pod, "ip link show dev eth0").unwrap().contains(MAC));
        attachment.says("check");
        // Taken: nobody else gets it.
        let said = network.pod("second").fails("add");
        assert!(said.contains(ASKED[0]), "{said}");
        attachment.del();

        for (capability, asked) in [
            ("portMappings", json!([{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}])),
            ("bandwidth", json!({"ingressRate": 1000, "ingressBurst": 1000})),
            ("aliases", json!(["web"])),
        ] {
            let network = Network::of(node, "1.1.0")
                .with(&json!({"capabilities": {capability: true}}))
                .asking(json!({capability: asked}));
            let said = network.known_pod("second").fails("add");
            assert!(said.contains(capability), "{said}");
        }
        assert_eq!(Traces::of(node).endpoints(), 0);
        lab.down().unwrap();
    });
}

/// A list of these plugins and then ours.
fn behind(network: &Network<'_>, first: Value) -> Value {
    json!([first, network.plugin()])
}

#[test]
fn behind_another_plugin_ours_adds_its_interface() {
    machine::on_its_own(|| {
        let lab = lab();
        let node = lab.node("node-1").unwrap();
        let before = Traces::of(node);
        let ours = Network::of(node, "1.0.0");
        let network = Network::made_of(node, "chained", behind(&ours, json!({"type": "loopback"})));
        let attachment = network.pod("pod");
        let result = attachment.add();
        let names: Vec<_> = result["interfaces"].as_array().unwrap().iter().map(|i| &i["name"]).collect();
        assert_eq!((names[0], names.last().unwrap()), (&json!("lo"), &&json!("eth0")), "{result}");
        let own = result["ips"].as_array().unwrap().iter().filter(|ip| {
            let interface = ip["interface"].as_u64().and_then(|i| names.get(usize::try_from(i).unwrap()));
            interface == Some(&&json!("eth0"))
        });
        assert_eq!(own.count(), 2, "{result}");
        attachment.says("check");
        attachment.del();

        // The same interface twice in one pod.
        let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.55.0.0/24"}]]});
        let bridge = json!({"type": "bridge", "bridge": "bridge0", "ipam": ipam});
        let network = Network::made_of(node, "twice", behind(&ours, bridge));
        let attachment = network.known_pod("pod");
        let said = attachment.fails("add");
        assert!(said.contains("eth0") && said.contains("first plugin"), "cause and cure: {said}");
        attachment.del();
        assert_eq!(Traces::of(node).endpoints(), before.endpoints());
        lab.down().unwrap();
    });
}

#[test]
fn an_add_that_is_repeated_gives_the_same() {
    machine::on_its_own(|| {
        let lab = lab();
        let node = lab.node("node-1").unwrap();
        let network = Network::of(node, "1.1.0");
        let attachment = network.pod("pod");
        let first = attachment.add();
        assert_eq!(attachment.add(), first);
        for family in Family::BOTH {
            probe::ping(&node.place().unwrap(), &attachment.place_of(&first), family).unwrap();
        }
        assert_eq!(Traces::of(node).endpoints(), 1);
        attachment.del();
        lab.down().unwrap();
    });
}
