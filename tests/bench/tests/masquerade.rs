//! `weft-bench masquerade` and the figures of `weft-bench ct` on the real kernel. Needs root.

use std::fs;
use std::time::Duration;

use bench::inline::Test;
use bench::layout::Family;
use bench::masquerade::{self, Plan, ways::Way};
use bench::netns::{self, PREFIX};
use bench::{map_memory, packet_cost};

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
const TESTS: [Test; 3] = [Test::UdpRr, Test::TcpRr, Test::TcpCrr];

#[test]
fn each_way_out_carries_every_test_in_both_families_and_leaves_no_namespace() {
    let _claim = netns::claim().unwrap();
    let plan =
        Plan { tests: TESTS.to_vec(), families: FAMILIES.to_vec(), rounds: 1, duration: Duration::from_millis(10) };

    let report = masquerade::run(&plan).unwrap();

    assert_eq!(report.failures(), Vec::<String>::new());
    assert_eq!(report.results.len(), Way::ALL.len() * TESTS.len() * FAMILIES.len());
    for row in &report.results {
        assert!(row.value.is_some_and(|value| value > 0.0), "{row:?}");
        let beside = [row.to_veth, row.ratio, row.to_nftables].map(|ratio| ratio.is_some());
        let want = [Way::Veth, Way::Routed, Way::Nftables].map(|other| other < row.way);
        assert_eq!(beside, want, "{row:?}");
    }
    let names = fs::read_dir(cni_agent::netlink::netns::DIRECTORY).unwrap().map(|entry| entry.unwrap().file_name());
    let ours: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with(PREFIX)).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[test]
fn the_programs_take_time_and_a_masqueraded_flow_takes_more() {
    let figures = packet_cost::measure(1).unwrap();
    for family in FAMILIES.map(Family::name) {
        for what in ["new_flow_ns", "answered_ns", "packet_ns", "back_ns", "flows_per_s"] {
            for way in ["ct", "nat"] {
                assert!(figures[&format!("{way} {family} {what}")] > 0.0, "{way} {family} {what}");
            }
        }
        let new = |way: &str| figures[&format!("{way} {family} new_flow_ns")];
        assert!(new("nat") > new("ct"), "{figures:?}");
    }
}

#[test]
fn a_masqueraded_flow_takes_the_memory_of_three_entries() {
    let figures = map_memory::measure().unwrap();
    let figure = |name: &str| figures.get(name).copied();
    // Below 6.4 the kernel does not count entries.
    let Some(flow) = figure("ct ipv4 bytes_per_flow") else { return };
    // Key and value, and what the kernel puts before them.
    assert!(flow > 48.0 && flow < 200.0, "{figures:?}");
    assert!(figure("nat ipv4 bytes_per_flow") > Some(2.0 * flow), "{figures:?}");
    assert!(figure("nat full_mib") > figure("ct full_mib"), "{figures:?}");
    assert!(figure("ct full_mib") > figure("ct empty_mib"), "{figures:?}");
}
