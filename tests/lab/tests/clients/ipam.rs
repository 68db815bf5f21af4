//! Addresses from another plugin: `ipam` in the configuration names one.
use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use lab::{Ending, Lab, LabConfig, Node, PodSpec, probe::Place};
use serde_json::{Value, json};

use crate::{
    client::{Attachment, Network, addresses},
    machine::{self, PLUGINS},
    traffic::{Traces, assert_reaches},
};

/// Where host-local writes down what it has given.
const GIVEN: &str = "/run/host-local";
/// The plugin that leases, and where it writes leases down.
const LEASE_IPAM: &str = include_str!("../../../clients/lease-ipam.sh");
const LEASES: &str = "/run/leases";

/// A lab of two nodes with a pod on each.
fn rig() -> (Lab, [Place; 2]) {
    let mut lab = Lab::up(LabConfig::with_nodes(2)).unwrap();
    machine::install_plugins(&lab, &["host-local", "static", "dhcp"]);
    let mut pod = |node, name| lab.pod_add(node, &PodSpec::named(name)).unwrap().pod.place().unwrap();
    let pods = [pod("node-1", "near"), pod("node-2", "far")];
    (lab, pods)
}

/// host-local with a range of each family.
fn host_local(ranges: [&str; 2]) -> Value {
    let ranges = ranges.map(|subnet| json!([{"subnet": subnet}]));
    json!({"ipam": {"type": "host-local", "dataDir": GIVEN, "ranges": ranges}})
}

/// Addresses that host-local holds for this network.
fn given(network: &Network<'_>) -> BTreeSet<IpAddr> {
    let entries = fs::read_dir(Path::new(GIVEN).join(network.name())).into_iter().flatten();
    entries.filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok()).collect()
}

fn assert_within(addresses: &[IpAddr], ranges: [&str; 2]) {
    let ranges = ranges.map(|r| r.parse::<IpNet>().unwrap());
    let inside = addresses.iter().zip(ranges).all(|(address, range)| range.contains(address));
    assert!(inside && addresses.len() == 2, "{addresses:?} are of {ranges:?}");
}

/// A pod that was connected answers, is checked, and leaves nothing when it is disconnected.
fn live(attachment: &Attachment<'_>, others: &[&Place]) {
    let pod = attachment.place();
    for other in others {
        assert_reaches(other, &pod);
        assert_reaches(&pod, other);
    }
    attachment.says("check");
    attachment.del();
}

#[test]
fn host_local_gives_addresses_of_the_nodes_range_and_takes_them_back() {
    const RANGES: [&str; 2] = ["10.244.1.192/26", "fd10:244:1::c000/120"];
    machine::on_its_own(|| {
        let (lab, [near, far]) = rig();
        let node = lab.node("node-1").unwrap();
        let before = Traces::of(node);
        for (version, name) in [("0.3.1", "a"), ("0.4.0", "b"), ("1.0.0", "c"), ("1.1.0", "d")] {
            let network = Network::of(node, version).with(&host_local(RANGES));
            assert!(network.call("status").status.success());
            let attachment = network.pod(name);
            let result = attachment.add();
            let pod = attachment.place_of(&result);
            assert_within(&pod.addresses, RANGES);
            assert_eq!(given(&network), pod.addresses.iter().copied().collect(), "{version}");
            for other in [&near, &far, &node.place().unwrap()] {
                assert_reaches(other, &pod);
                assert_reaches(&pod, other);
            }
            // As after an answer that was lost: host-local refuses, the agent knows.
            assert_eq!(attachment.add(), result, "{version}");
            assert_eq!(given(&network), pod.addresses.iter().copied().collect(), "{version}");
            if version != "0.3.1" {
                attachment.says("check");
            }
            attachment.del();
            assert_eq!(given(&network), BTreeSet::new(), "{version}");
            attachment.says("del");
            before.await_again(node);
        }
        lab.down().unwrap();
    });
}

/// Other nodes do not know where such addresses are.
#[test]
fn addresses_outside_the_cluster_are_reached_from_their_node() {
    const RANGES: [&str; 2] = ["10.77.0.0/24", "fd77::/64"];
    machine::on_its_own(|| {
        let (lab, [near, _]) = rig();
        let node = lab.node("node-1").unwrap();
        let before = Traces::of(node);
        let network = Network::of(node, "1.1.0").with(&host_local(RANGES));
        live(&network.pod("pod"), &[&near, &node.place().unwrap()]);
        before.await_again(node);
        lab.down().unwrap();
    });
}

#[test]
fn del_of_the_unknown_and_failure_give_addresses_back() {
    machine::on_its_own(|| {
        // Two addresses of one family, many of the other.
        let few = json!([{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.200", "rangeEnd": "10.244.1.201"}]);
        let many = json!([{"subnet": "fd10:244:1::c000/120"}]);
        let ipam = json!({"ipam": {"type": "host-local", "dataDir": GIVEN, "ranges": [few, many]}});
        let (mut lab, _) = rig();
        let node = lab.node("node-1").unwrap();
        let before = Traces::of(node);
        let network = Network::of(node, "1.1.0").with(&ipam);
        let kept = network.pod("kept");
        let own: BTreeSet<IpAddr> = addresses(&kept.add()).into_iter().collect();
        let lost = network.pod("lost");
        lost.add();
        lost.forget();
        assert_eq!(given(&network).len(), 4);
        assert!(network.collect(&[(&kept.container(), "eth0")]).status.success());
        assert_eq!(Traces::of(node).endpoints(), before.endpoints() + 1);
        // host-local has no GC: it is a DEL, though to us of an unknown one, that gives the addresses back.
        assert_eq!(given(&network).len(), 4);
        lost.says("del");
        assert_eq!(given(&network), own);
        kept.says("check");

        let last = lost.also(&network, "net1");
        last.add();
        let said = network.pod("third").fails("add");
        assert!(said.contains("the IPAM plugin host-local"), "it says who has none: {said}");
        assert_eq!(given(&network).len(), 4, "what it had of the other family it takes back");
        last.del();
        kept.del();
        assert_eq!(given(&network), BTreeSet::new());
        before.await_again(node);

        // Nobody wires it, so nobody needs its address.
        lab.stop_agent("node-1", Ending::Asked).unwrap();
        let network = Network::of(lab.node("node-1").unwrap(), "1.1.0").with(&ipam);
        let said = network.known_pod("third").fails("add");
        assert!(said.contains("weft-agent"), "{said}");
        assert_eq!(given(&network), BTreeSet::new());
        lab.down().unwrap();
    });
}

#[test]
fn static_addresses_are_those_of_the_configuration() {
    const ADDRESSES: [&str; 2] = ["10.244.1.210/24", "fd10:244:1::d210/64"];
    machine::on_its_own(|| {
        let (lab, [near, far]) = rig();
        let node = lab.node("node-1").unwrap();
        let before = Traces::of(node);
        let list = ADDRESSES.map(|address| json!({"address": address}));
        let network = Network::of(node, "1.1.0").with(&json!({"ipam": {"type": "static", "addresses": list}}));
        // It has neither of these verbs, and that is none of the runtime's business.
        assert!(network.call("status").status.success());
        assert!(network.collect(&[]).status.success());
        let attachment = network.pod("pod");
        let result = attachment.add();
        let pod = attachment.place_of(&result);
        let expected = ADDRESSES.map(|a| a.parse::<IpNet>().unwrap().addr());
        assert_eq!(pod.addresses, expected, "{result}");
        for other in [&near, &far] {
            assert_reaches(other, &pod);
        }
        attachment.says("check");
        attachment.del();

        // Asked for by capability: the IPAM plugin's business.
        let network = Network::of(node, "1.1.0")
            .with(&json!({"ipam": {"type": "static"}, "capabilities": {"ips": true}}))
            .asking(json!({"ips": ["10.244.1.211/24"]}));
        let attachment = network.known_pod("pod");
        assert_eq!(addresses(&attachment.add()), ["10.244.1.211".parse::<IpAddr>().unwrap()]);
        attachment.del();
        before.await_again(node);
        lab.down().unwrap();
    });
}

/// The leases that there are.
fn leases() -> Vec<PathBuf> {
    let entries = fs::read_dir(LEASES).unwrap().map(|e| e.unwrap());
    entries.filter(|e| e.file_name().to_string_lossy().starts_with("lease-")).map(|e| e.path()).collect()
}

fn leasing(node: &Node) -> Network<'_> {
    let program = Path::new(PLUGINS).join("lease-ipam");
    fs::write(&program, LEASE_IPAM).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(LEASES).unwrap();
    let ipam = json!({"type": "lease-ipam", "lease4": "10.244.1.220/24", "lease6": "fd10:244:1::d220/64"});
    Network::of(node, "1.1.0").with(&json!({"ipam": ipam}))
}

#[test]
fn a_plugin_that_leases_is_asked_at_every_verb() {
    machine::on_its_own(|| {
        let (lab, [near, far]) = rig();
        let node = lab.node("node-1").unwrap();
        let before = Traces::of(node);
        let network = leasing(node);
        assert!(network.call("status").status.success());
        let attachment = network.pod("pod");
        let result = attachment.add();
        assert_eq!(result["dns"]["nameservers"], json!(["192.0.2.53"]), "{result}");
        let pod = attachment.place_of(&result);
        for other in [&near, &far] {
            assert_reaches(other, &pod);
        }
        attachment.says("check");
        // The lease runs out.
        let lease = leases().remove(0);
        fs::remove_file(&lease).unwrap();
        let said = attachment.fails("check");
        assert!(said.contains("lease-ipam") && said.contains("the lease is lost"), "{said}");
        fs::write(&lease, "").unwrap();
        attachment.says("check");

        // A second one has the same address: it is in use, and the lease is not kept.
        network.pod("second").fails("add");
        assert_eq!(leases(), [lease]);

        fs::write(format!("{LEASES}/full"), "").unwrap();
        let status = network.call("status");
        assert!(String::from_utf8_lossy(&status.stderr).contains("no address left"), "{status:?}");
        fs::remove_file(format!("{LEASES}/full")).unwrap();

        attachment.forget();
        assert!(network.collect(&[]).status.success());
        assert!(leases().is_empty(), "{:?}", leases());
        before.await_again(node);
        lab.down().unwrap();
    });
}

/// The reference plugin asks by broadcasts from the pod's interface, which is not there yet, and its daemon does not run.
#[test]
fn the_reference_dhcp_plugin_is_a_clear_error() {
    machine::on_its_own(|| {
        let (lab, _) = rig();
        let node = lab.node("node-1").unwrap();
        let before = Traces::of(node);
        let network = Network::of(node, "1.1.0").with(&json!({"ipam": {"type": "dhcp"}}));
        let attachment = network.pod("pod");
        let said = attachment.fails("add");
        assert!(said.contains("the IPAM plugin dhcp"), "{said}");
        assert_eq!(attachment.devices(), ["lo"]);
        before.await_again(node);
        lab.down().unwrap();
    });
}
