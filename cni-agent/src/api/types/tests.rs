use cni_common::net::{Be16, Ip4, Ip6};

use super::*;

const BOOT: u64 = 1_700_000_000_000_000_000;

#[test]
fn an_event_with_ports_shows_the_tuple() {
    let event = DropEvent::new(&raw(), BOOT, Some("default/web".into()));
    assert_eq!(event.time, BOOT + 5);
    assert_eq!(event.src, Some("10.1.0.1".parse().unwrap()));
    assert_eq!(event.dst, Some("10.2.0.1".parse().unwrap()));
    assert_eq!((event.protocol, event.src_port, event.dst_port), (Some(6), Some(4000), Some(80)));
    assert_eq!((event.reason.as_str(), event.point.as_str()), ("SourceAddress", "from_pod"));
}

#[test]
fn an_event_without_an_ip_header_shows_no_address() {
    let event =
        DropEvent::new(&event::DropEvent { family: 0, sport: Be16::ZERO, dport: Be16::ZERO, ..raw() }, BOOT, None);
    assert_eq!((event.src, event.dst, event.protocol, event.src_port), (None, None, None, None));
}

#[test]
fn an_event_of_an_unknown_number_is_shown_with_it() {
    let event = DropEvent::new(&event::DropEvent { reason: 255, point: 9, ..raw() }, BOOT, None);
    assert_eq!((event.reason.as_str(), event.point.as_str()), ("unknown (255)", "unknown (9)"));
}

#[test]
fn a_line_is_an_event_or_a_loss() {
    let event = Observed::Drop(Box::new(DropEvent::new(&raw(), BOOT, None)));
    for line in [Observed::Lost { lost: 3 }, event] {
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(serde_json::from_str::<Observed>(&text).unwrap(), line, "{text}");
    }
    assert_eq!(serde_json::to_string(&Observed::Lost { lost: 3 }).unwrap(), r#"{"lost":3}"#);
}

#[test]
fn the_reconcilers_status_tells_waiting_rows_from_failing_ones() {
    use crate::tables::{Revision, Tables};
    let tables = Tables::new();
    tables.set_node(Node {
        name: "a".into(),
        pod_cidrs: vec![],
        internal_ips: vec![],
        labels: std::collections::BTreeMap::new(),
        addresses: std::collections::BTreeSet::new(),
    });
    tables.set_node(Node {
        name: "b".into(),
        pod_cidrs: vec![],
        internal_ips: vec![],
        labels: std::collections::BTreeMap::new(),
        addresses: std::collections::BTreeSet::new(),
    });
    tables.applied_except(Revision(1), &BTreeMap::from([(Row::Node("a".into()), "full".to_owned())]));
    let expected = ReconcilerStatus {
        revision: 2,
        applied: 1,
        pending: 1,
        failed: vec![FailedRow { row: "node a".into(), error: "full".into(), retries: 1 }],
        pruning: false,
        drift: BTreeMap::new(),
    };
    assert_eq!(ReconcilerStatus::of(&tables), expected);
}

fn raw() -> event::DropEvent {
    event::DropEvent {
        src: Ip6::mapped(Ip4::new([10, 1, 0, 1])),
        dst: Ip6::mapped(Ip4::new([10, 2, 0, 1])),
        time: 5,
        ifindex: 7,
        endpoint: 3,
        len: 60,
        sport: Be16::from_host(4000),
        dport: Be16::from_host(80),
        proto: 6,
        family: 4,
        reason: DropReason::SourceAddress as u8,
        point: Point::FromPod as u8,
        cookie: 0,
        class: 0,
        pad: 0,
    }
}
