//! The reference client, `cnitool` of containernetworking/cni, calls every verb.
use lab::{
    Ending, Lab, LabConfig, PodSpec,
    probe::{self, Family},
};

use crate::{client::Network, machine, traffic::Traces};

#[test]
fn cnitool_connects_and_disconnects_a_pod_in_every_version_of_the_specification() {
    machine::on_its_own(|| {
        let mut lab = Lab::up(LabConfig::with_nodes(1)).unwrap();
        machine::install_plugins(&lab, &[]);
        let neighbour = lab.pod_add("node-1", &PodSpec::named("neighbour")).unwrap().pod.place().unwrap();
        let node = lab.node("node-1").unwrap();
        let before = Traces::of(node);
        for (version, pod) in [("0.3.1", "a"), ("0.4.0", "b"), ("1.0.0", "c"), ("1.1.0", "d")] {
            let network = Network::of(node, version);
            let attachment = network.pod(pod);
            let result = attachment.add();
            assert_eq!(result["cniVersion"], version, "{result}");
            let ips = result["ips"].as_array().unwrap();
            assert_eq!(ips.len(), 2, "an address of each family: {result}");
            // The family stood beside the address until 1.0.0 dropped it.
            let families: Vec<_> = ips.iter().filter_map(|ip| ip["version"].as_str()).collect();
            assert_eq!(families.is_empty(), version.starts_with('1'), "{result}");
            let interfaces = result["interfaces"].as_array().unwrap();
            let inside: Vec<_> =
                interfaces.iter().filter(|i| i["sandbox"].as_str().is_some_and(|s| !s.is_empty())).collect();
            assert_eq!(inside.iter().map(|i| &i["name"]).collect::<Vec<_>>(), ["eth0"], "{result}");

            let place = attachment.place_of(&result);
            for family in Family::BOTH {
                probe::tcp(&place, &neighbour, family).unwrap();
                probe::udp(&neighbour, &place, family).unwrap();
            }

            attachment.del();
            // Once more: there is nothing left to do, and that is success.
            attachment.del();
            before.await_again(node);
        }
        lab.down().unwrap();
    });
}

#[test]
fn cnitool_gets_the_plugins_error_with_cause_and_cure() {
    machine::on_its_own(|| {
        let mut lab = Lab::up(LabConfig::with_nodes(1)).unwrap();
        machine::install_plugins(&lab, &[]);
        lab.stop_agent("node-1", Ending::Asked).unwrap();
        let network = Network::of(lab.node("node-1").unwrap(), "1.1.0");
        let attachment = network.pod("pod");
        let said = attachment.fails("add");
        assert!(said.contains("weft-agent"), "it says who does not answer: {said}");
        assert_eq!(attachment.devices(), ["lo"]);
        lab.start_agent("node-1").unwrap();
        let network = Network::of(lab.node("node-1").unwrap(), "1.1.0");
        let result = network.pod("other").add();
        assert_eq!(result["ips"].as_array().unwrap().len(), 2, "{result}");
        lab.down().unwrap();
    });
}
