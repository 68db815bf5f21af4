//! The bench itself, on real namespaces. Needs root.

use std::collections::BTreeSet;
use std::fs;
use std::mem;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bench::inline::Test;
use bench::layout::{Family, LayoutName};
use bench::netns::{self, Netns, PREFIX};
use bench::no_tso::BYTES_BOUND;
use bench::path::{self, Plan};

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// The machine can be claimed once.
static ALONE: Mutex<()> = Mutex::new(());

fn plan(layouts: &[LayoutName]) -> Plan {
    let layouts = BTreeSet::from_iter(layouts.iter().copied());
    Plan {
        layouts,
        tests: Test::ALL.to_vec(),
        families: FAMILIES.to_vec(),
        rounds: 1,
        duration: Duration::from_millis(10),
    }
}

#[test]
fn each_peer_carries_every_test_in_both_families_and_leaves_no_namespace() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let _claim = netns::claim().unwrap();
    let peers = [LayoutName::Veth, LayoutName::Bridge, LayoutName::Node, LayoutName::Flannel];

    let report = path::run(&plan(&peers)).unwrap();

    assert_eq!(report.failures(), Vec::<String>::new());
    assert_eq!(report.results.len(), peers.len() * Test::ALL.len() * FAMILIES.len());
    for row in &report.results {
        assert!(row.value.is_some_and(|value| value > 0.0), "{row:?}");
        assert_eq!(row.ratio.is_some(), row.layout != row.layout.limit(), "{row:?}");
    }
    assert_eq!(ours(), Vec::<String>::new());
}

#[test]
fn weft_carries_every_test_in_both_families_and_keeps_receive_coalescing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let _claim = netns::claim().unwrap();

    let ours = [LayoutName::WeftSame, LayoutName::WeftNode, LayoutName::WeftToNode, LayoutName::WeftVxlan];
    let all: Vec<_> = ours.into_iter().chain([LayoutName::WeftVxlanNotso]).collect();
    let report = path::run(&plan(&all)).unwrap();

    assert_eq!(report.failures(), Vec::<String>::new());
    assert_eq!(report.results.len(), ours.len() * Test::ALL.len() * FAMILIES.len());
    for row in &report.no_tso {
        assert!(row.bytes_per_packet.is_some_and(|average| average >= BYTES_BOUND), "{row:?}");
    }
}

#[test]
fn a_run_removes_what_a_killed_one_left() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let killed = netns::claim().unwrap();
    mem::forget(Netns::create("left-behind").unwrap());
    drop(killed);
    assert_eq!(ours(), ["wb-left-behind"]);

    let _claim = netns::claim().unwrap();

    assert_eq!(ours(), Vec::<String>::new());
}

#[test]
fn a_second_run_at_the_same_time_is_refused() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let first = netns::claim().unwrap();
    assert!(netns::claim().unwrap_err().to_string().contains("another weft-bench runs"));

    drop(first);

    netns::claim().unwrap();
}

fn ours() -> Vec<String> {
    let names = fs::read_dir("/run/netns").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(PREFIX)).collect()
}
