use std::{sync::Arc, thread};

use cni_common::net::Mac;
use proptest::prelude::*;

use super::*;

const LONG: Duration = Duration::from_secs(20);
const NOW: Duration = Duration::ZERO;

#[test]
fn this_nodes_own_row_outlives_its_object() {
    let tables = Tables::of_node("a");
    for name in ["a", "b"] {
        tables.set_node(Node {
            name: name.into(),
            pod_cidrs: Vec::new(),
            internal_ips: Vec::new(),
            labels: BTreeMap::new(),
            addresses: BTreeSet::new(),
        });
    }
    let before = tables.read().revision();
    assert_eq!(tables.remove_node("a"), before, "nothing to wait for");
    assert!(tables.remove_node("b") > before);
    assert_eq!(tables.read().nodes.keys().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn an_equal_value_is_no_change() {
    let tables = Tables::new();
    let first = tables.set_node(node("a", 1));
    assert_eq!(first, Revision(1));
    assert_eq!(tables.wait_dirty(NOW), (Revision(1), BTreeSet::from([Row::Node("a".into())])));
    assert_eq!(tables.set_node(node("a", 1)), first, "answers with the revision that holds the value");
    assert_eq!(tables.wait_dirty(NOW), (Revision(1), BTreeSet::new()));
    assert_eq!(tables.remove_node("b"), Revision(0), "nothing to wait for");
    assert_eq!(tables.revision(), Revision(1));
}

#[test]
fn two_changes_of_one_row_are_one_dirty_row() {
    let tables = Tables::new();
    tables.set_pod(pod("a", 1));
    tables.set_pod(pod("a", 2));
    tables.remove_pod(&PodKey::new("default", "b"));
    assert_eq!(tables.wait_dirty(NOW), (Revision(2), BTreeSet::from([Row::Pod(PodKey::new("default", "a"))])));
}

#[test]
fn a_row_is_pending_until_its_revision_is_applied() {
    let tables = Tables::new();
    let row = Row::Endpoint(7);
    assert_eq!(tables.status(&row), None);
    let first = tables.set_endpoint(endpoint(7, 1));
    let second = tables.set_endpoint(endpoint(7, 2));
    tables.applied(first);
    assert_eq!(tables.status(&row), Some(RowStatus::Pending), "the newer value is not in the kernel");
    tables.applied(second);
    assert_eq!(tables.status(&row), Some(RowStatus::Applied));
    assert_eq!(tables.unsettled(), BTreeMap::new());
}

#[test]
fn a_removed_row_is_pending_until_its_removal_is_applied() {
    let tables = Tables::new();
    tables.applied(tables.set_endpoint(endpoint(7, 1)));
    let removal = tables.remove_endpoint(7);
    assert_eq!(tables.status(&Row::Endpoint(7)), Some(RowStatus::Pending));
    tables.applied(removal);
    assert_eq!(tables.status(&Row::Endpoint(7)), None);
    assert_eq!(tables.wait_settled(&Row::Endpoint(7), NOW), None);
}

#[test]
fn failures_are_counted_until_the_row_is_applied_or_changed() {
    let tables = Tables::new();
    let row = Row::NextHop(Box::new("10.0.0.2".parse().unwrap()));
    let failed = BTreeMap::from([(row.clone(), "no space".to_owned())]);
    let revision = tables.set_next_hop("10.0.0.2".parse().unwrap(), hop(1));
    for retries in 1..=3 {
        tables.applied_except(revision, &failed);
        assert_eq!(tables.status(&row), Some(RowStatus::Failed { error: "no space".into(), retries }));
    }
    let changed = tables.set_next_hop("10.0.0.2".parse().unwrap(), hop(2));
    assert_eq!(tables.status(&row), Some(RowStatus::Pending));
    tables.applied_except(revision, &failed);
    assert_eq!(tables.status(&row), Some(RowStatus::Pending), "an old report says nothing of the new value");
    tables.applied(changed);
    assert_eq!(tables.status(&row), Some(RowStatus::Applied));
    tables.applied_except(changed, &failed);
    assert_eq!(tables.status(&row), Some(RowStatus::Failed { error: "no space".into(), retries: 1 }));
}

#[test]
fn a_waiter_is_released_by_the_report_that_covers_its_revision() {
    let tables = Arc::new(Tables::new());
    let revision = tables.set_endpoint(endpoint(1, 1));
    let reconciler = thread::spawn({
        let tables = Arc::clone(&tables);
        move || {
            let (revision, rows) = tables.wait_dirty(LONG);
            tables.applied(revision);
            rows
        }
    });
    assert_eq!(tables.wait_applied(revision, LONG), Ok(()));
    assert_eq!(reconciler.join().unwrap(), BTreeSet::from([Row::Endpoint(1)]));
    assert_eq!(tables.wait_settled(&Row::Endpoint(1), NOW), Some(RowStatus::Applied));
}

#[test]
fn a_waiter_that_gives_up_says_how_far_the_kernel_is() {
    let tables = Tables::new();
    tables.applied(tables.set_endpoint(endpoint(1, 1)));
    let wanted = tables.set_endpoint(endpoint(2, 1));
    let error = tables.wait_applied(wanted, NOW).unwrap_err();
    assert_eq!(error, NotApplied { wanted: Revision(2), applied: Revision(1), waited: NOW });
    assert_eq!(tables.wait_settled(&Row::Endpoint(2), NOW), Some(RowStatus::Pending));
}

#[test]
fn pruning_waits_for_all_sources_and_the_last_one_wakes_the_reconciler() {
    let tables = Arc::new(Tables::new());
    for source in [Source::Cluster, Source::Netlink] {
        tables.mark_synced(source);
        assert!(tables.is_synced(source) && !tables.all_synced());
    }
    tables.wait_dirty(NOW);
    let reconciler = thread::spawn({
        let tables = Arc::clone(&tables);
        move || tables.wait_dirty(LONG)
    });
    tables.mark_synced(Source::Records);
    let started = Instant::now();
    assert_eq!(reconciler.join().unwrap(), (Revision(0), BTreeSet::new()));
    assert!(started.elapsed() < LONG);
    assert!(tables.all_synced());
}

#[test]
fn pruning_waits_until_the_rows_of_a_source_are_taken_too() {
    let tables = Tables::new();
    let (taken, _) = tables.wait_dirty(NOW);
    // Between the reconciler's taking and its pruning.
    let delivered = tables.set_endpoint(endpoint(1, 1));
    Source::ALL.iter().for_each(|s| tables.mark_synced(*s));
    assert!(tables.all_synced() && !tables.all_synced_by(taken));
    let (taken, rows) = tables.wait_dirty(NOW);
    assert_eq!((taken, rows), (delivered, BTreeSet::from([Row::Endpoint(1)])));
    assert!(tables.all_synced_by(taken));
}

#[test]
fn a_row_that_is_marked_again_is_dirty_without_a_new_revision() {
    let tables = Tables::new();
    let revision = tables.set_node_addresses(BTreeSet::from(["10.0.0.1".parse().unwrap()]));
    tables.wait_dirty(NOW);
    tables.mark_dirty(Row::NodeAddresses);
    assert_eq!(tables.wait_dirty(NOW), (revision, BTreeSet::from([Row::NodeAddresses])));
}

#[derive(Clone, Debug)]
enum Op {
    SetNode(u8, u8),
    RemoveNode(u8),
    SetPod(u8, u8),
    RemovePod(u8),
    SetEndpoint(u8, u8),
    RemoveEndpoint(u8),
    SetAddresses(u8),
    SetDevices(u8),
    SetNextHop(u8, u8),
    RemoveNextHop(u8),
    Take,
    Report { fail: bool },
}

fn any_op() -> impl Strategy<Value = Op> {
    let (k, v) = (0u8..3, 0u8..3);
    prop_oneof![
        (k.clone(), v.clone()).prop_map(|(k, v)| Op::SetNode(k, v)),
        k.clone().prop_map(Op::RemoveNode),
        (k.clone(), v.clone()).prop_map(|(k, v)| Op::SetPod(k, v)),
        k.clone().prop_map(Op::RemovePod),
        (k.clone(), v.clone()).prop_map(|(k, v)| Op::SetEndpoint(k, v)),
        k.clone().prop_map(Op::RemoveEndpoint),
        v.clone().prop_map(Op::SetAddresses),
        v.clone().prop_map(Op::SetDevices),
        (k.clone(), v).prop_map(|(k, v)| Op::SetNextHop(k, v)),
        k.prop_map(Op::RemoveNextHop),
        Just(Op::Take),
        any::<bool>().prop_map(|fail| Op::Report { fail }),
    ]
}

proptest! {
    /// The model: compare the contents before and after each operation. The revision rises by one when they differ and not
    /// otherwise; the taken rows are those that changed since the last taking; a row is unsettled exactly when it changed
    /// after the last report's revision or that report named it.
    #[test]
    fn revisions_count_changes_and_dirty_rows_are_those_changed(ops in proptest::collection::vec(any_op(), 0..60)) {
        let tables = Tables::new();
        let mut dirty = BTreeSet::new();
        let mut taken = Revision(0);
        let mut unsettled: BTreeMap<Row, (Revision, bool)> = BTreeMap::new();
        for op in ops {
            let before = look(&tables);
            let row = run(&tables, &op);
            let after = look(&tables);
            prop_assert_eq!(after.1.0 - before.1.0, u64::from(after.0 != before.0));
            if after.1 > before.1 {
                let row = row.clone().expect("only operations on rows change contents");
                dirty.insert(row.clone());
                unsettled.insert(row, (after.1, false));
            }
            match op {
                Op::Take => {
                    let (revision, rows) = tables.wait_dirty(NOW);
                    prop_assert_eq!((revision, rows), (after.1, std::mem::take(&mut dirty)));
                    taken = revision;
                }
                Op::Report { fail } => {
                    let failing = unsettled.iter().find(|(_, (r, _))| fail && *r <= taken).map(|(row, _)| row.clone());
                    let failures = failing.iter().map(|r| (r.clone(), "refused".to_owned())).collect();
                    tables.applied_except(taken, &failures);
                    unsettled.retain(|row, (changed, failed)| {
                        *failed = failing.as_ref() == Some(row);
                        *changed > taken || *failed
                    });
                    prop_assert_eq!(tables.applied_revision(), taken);
                }
                _ => {}
            }
            let seen: BTreeMap<Row, bool> = tables.unsettled().into_iter()
                .map(|(row, status)| (row, matches!(status, RowStatus::Failed { .. }))).collect();
            let expected: BTreeMap<Row, bool> = unsettled.iter().map(|(row, (_, failed))| (row.clone(), *failed)).collect();
            prop_assert_eq!(seen, expected);
        }
        tables.applied(tables.revision());
        prop_assert_eq!(tables.unsettled(), BTreeMap::new());
    }
}

fn look(tables: &Tables) -> (Contents, Revision) {
    let view = tables.read();
    (view.clone(), view.revision())
}

/// Runs an operation; names the row that it was about.
fn run(tables: &Tables, op: &Op) -> Option<Row> {
    let name = |k: u8| format!("n{k}");
    let ip = |k: u8| IpAddr::from([10, 0, 0, k]);
    match *op {
        Op::SetNode(k, v) => {
            tables.set_node(node(&name(k), v));
            Some(Row::Node(name(k)))
        }
        Op::RemoveNode(k) => {
            tables.remove_node(&name(k));
            Some(Row::Node(name(k)))
        }
        Op::SetPod(k, v) => {
            tables.set_pod(pod(&name(k), v));
            Some(Row::Pod(PodKey::new("default", name(k))))
        }
        Op::RemovePod(k) => {
            tables.remove_pod(&PodKey::new("default", name(k)));
            Some(Row::Pod(PodKey::new("default", name(k))))
        }
        Op::SetEndpoint(k, v) => {
            tables.set_endpoint(endpoint(k.into(), v));
            Some(Row::Endpoint(k.into()))
        }
        Op::RemoveEndpoint(k) => {
            tables.remove_endpoint(k.into());
            Some(Row::Endpoint(k.into()))
        }
        Op::SetAddresses(v) => {
            tables.set_node_addresses(BTreeSet::from([ip(v)]));
            Some(Row::NodeAddresses)
        }
        Op::SetDevices(v) => {
            tables.set_devices(BTreeMap::from([(
                2,
                Device { name: "eth0".into(), mtu: 1500 + u32::from(v), leads: true, ..Default::default() },
            )]));
            Some(Row::Devices)
        }
        Op::SetNextHop(k, v) => {
            tables.set_next_hop(ip(k), hop(v));
            Some(Row::NextHop(ip(k).into()))
        }
        Op::RemoveNextHop(k) => {
            tables.remove_next_hop(ip(k));
            Some(Row::NextHop(ip(k).into()))
        }
        Op::Take | Op::Report { .. } => None,
    }
}

fn node(name: &str, v: u8) -> Node {
    Node {
        name: name.into(),
        pod_cidrs: vec![],
        internal_ips: vec![IpAddr::from([10, 0, 0, v])],
        labels: BTreeMap::new(),
        addresses: BTreeSet::new(),
    }
}
fn pod(name: &str, v: u8) -> Pod {
    Pod {
        namespace: "default".into(),
        name: name.into(),
        node: None,
        labels: BTreeMap::new(),
        ips: vec![IpAddr::from([10, 1, 0, v])],
        phase: Phase::Running,
        host_network: false,
        ports: BTreeSet::new(),
    }
}
fn endpoint(id: u16, v: u8) -> Endpoint {
    Endpoint {
        id,
        container_id: "c1".into(),
        ifname: "eth0".into(),
        namespace: "default".into(),
        pod_name: "a".into(),
        netns: "/run/netns/a".into(),
        ifindex: 12,
        device: format!("weft{id:x}"),
        mac: Mac::new([2, 0, 0, 0, 0, v]),
        ipv4: Some([10, 1, 0, v].into()),
        ipv6: Some("fd00::1".parse().unwrap()),
        mtu: 1430,
        terms: crate::tables::Terms::default(),
    }
}
fn hop(v: u8) -> NextHop {
    NextHop {
        ifindex: 2,
        source_mac: Mac::WEFT,
        next_hop_mac: Some(Mac::new([2, 0, 0, 0, 0, v])),
        mtu: 1500,
        ethernet: true,
    }
}
