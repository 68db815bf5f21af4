use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::{
    api::{
        tests::event as an_event,
        types::{
            Attachment, ConntrackStatus, DatapathStatus, FailedRow, Foreign, MasqueradeStatus, MissingFeature,
            NextHopStatus, PolicySummary, ReconcilerStatus, Refusal, ServicesStatus, SourceStatus, TableFill,
            VerdictCount,
        },
    },
    ipam::Usage,
};

#[test]
fn a_healthy_agents_status_is_short() {
    let expected = "\
Node       node-1, kernel 6.18.0
Agent      weft-agent 0.1.0, pid 42, up 1h 1m
Ready      yes
Tunnel     VXLAN over IPv4, from 10.0.0.1, UDP port 8472
MTU        1500 between nodes, 1450 for pods' routes
Program    from_netdev on eth0 (tcx)
           from_pod on block 87 (block)
Layout     00000000000000aa
Features   1 of 2 that the kernel was tried for
           - tcx, missing (Linux 6.6): Weft does so
Source     manifests /etc/weft/manifests: in sync, 4 objects
Policy     3 known, 1 pod here isolated, map entries 17, identities 2, epoch 5
Installed  /opt/cni/bin/weft-cni, /etc/cni/net.d/05-weft.conflist; self-test: packets went in IPv4, 3.1 ms
Known      2 nodes, 2 pods, 1 endpoint here
Addresses  10.244.1.0/24: 1 of 254 in use, 2 not free yet
Kernel     revision 9 of 9, all is in the kernel
Flows      IPv4: 12 of 131072
Masquerade ports 61000-65535
           by eth0 as 10.0.0.1, fd00::1
           IPv4: 3 of 131072
Drops      none
";
    assert_eq!(super::status(&healthy()), expected);
}

#[test]
fn a_status_with_troubles_names_them() {
    let mut s = healthy();
    s.not_ready = Some("no Node object named node-1 was seen".into());
    s.datapath.tunnel_address = None;
    s.sources[0].synced = false;
    s.sources[0].problems = vec!["a.yaml: line 3: no".into()];
    s.reconciler = ReconcilerStatus {
        revision: 9,
        applied: 8,
        pending: 1,
        failed: vec![FailedRow { row: "node node-2".into(), error: "map is full".into(), retries: 4 }],
        pruning: false,
        drift: [(crate::drift::Kind::Route, 2)].into(),
    };
    s.install.stage = Stage::Failed;
    s.install.why = "a datagram did not arrive".into();
    s.install.plugin_differs = "/opt/cni/bin/weft-cni is not the agent's own".into();
    s.install.foreign = [("00-a.conf", true), ("10-b.conf", false)]
        .map(|(name, first)| Foreign { path: format!("/etc/cni/net.d/{name}").into(), first })
        .into();
    s.dropped_packets = 12;
    let text = super::status(&s);
    for line in [
        "Ready      no: no Node object named node-1 was seen",
        "Tunnel     VXLAN, UDP port 8472; the tunnel address is not known yet",
        "Source     manifests /etc/weft/manifests: not in sync yet, 4 objects",
        "           ! a.yaml: line 3: no",
        "Installed  failed; tried again when something changes; self-test: packets went in IPv4, 3.1 ms",
        "           ! a datagram did not arrive",
        "           ! /opt/cni/bin/weft-cni is not the agent's own",
        "           ! the runtime takes this one first: /etc/cni/net.d/00-a.conf",
        "           another configuration: /etc/cni/net.d/10-b.conf",
        "Kernel     revision 8 of 9, 1 row waiting, 1 failing; leftovers stay until all sources are in sync",
        "           ! node node-2: map is full (4 attempts; tried again)",
        "Drops      12 packets; `weft drops` says why",
    ] {
        assert!(text.lines().any(|l| l == line), "{line:?} is missing in\n{text}");
    }
}

#[test]
fn another_builds_programs_and_maps_are_told_of_as_long_as_they_are_there() {
    let mut s = healthy();
    (s.datapath.waits, s.datapath.other_maps) = (true, vec!["counters_v9".into(), "endpoints_v9".into()]);
    let text = super::status(&s);
    let told = "Layout     00000000000000aa\n           ! another build's programs run on until this one's maps are filled\n           \
                ! maps of another build: counters_v9, endpoints_v9\n";
    assert!(text.contains(told), "{text}");
}

#[test]
fn a_refused_load_is_told_with_the_verifiers_last_lines_and_since_when_the_others_run() {
    let log = vec!["0: (79) r0 = *(u64 *)(r10 +8)".to_owned(), "invalid read from stack".to_owned()];
    let refusal = Refusal { what: "from_pod".into(), error: "Permission denied: invalid read from stack".into(), log };
    let mut s = healthy();
    s.datapath.refused = Some(RefusedLoad { refusal, at: 1_800_000_060, running_since: Some(1_800_000_000) });
    let text = super::status(&s);
    for line in [
        "Ready      yes, with an earlier agent's programs: its own were refused",
        "Refused    ! from_pod at 2027-01-15T08:01:00Z: Permission denied: invalid read from stack",
        "           ! the programs of 2027-01-15T08:00:00Z run on",
        "           | 0: (79) r0 = *(u64 *)(r10 +8)",
        "           | invalid read from stack",
    ] {
        assert!(text.lines().any(|l| l == line), "{line:?} is missing in\n{text}");
    }
    let json = serde_json::to_value(&s.datapath).unwrap();
    assert_eq!((&json["refused"]["what"], &json["refused"]["at"]), (&json!("from_pod"), &json!(1_800_000_060)));
    assert_eq!(serde_json::from_value::<DatapathStatus>(json).unwrap(), s.datapath);
}

#[test]
fn how_full_conntrack_is_stands_there_and_what_found_no_room_only_then() {
    let mut s = healthy();
    let text = super::status(&s);
    assert!(text.contains("\nFlows      IPv4: 12 of 131072\nMasquerade "), "{text}");
    (s.conntrack.full, s.conntrack.quota) = (1, 2);
    let text = super::status(&s);
    assert!(text.contains("           ! once a flow found its table full"), "{text}");
    assert!(text.contains("           ! 2 times a pod had its share"), "{text}");
}

#[test]
fn masquerade_tells_under_which_addresses_how_full_it_is_and_what_was_dropped_for_it() {
    let mut s = healthy();
    let lines =
        "\nMasquerade ports 61000-65535\n           by eth0 as 10.0.0.1, fd00::1\n           IPv4: 3 of 131072\nDrops ";
    let text = super::status(&s);
    assert!(text.contains(lines), "{text}");
    (s.masquerade.exhausted, s.masquerade.full, s.masquerade.quota) = (1, 2, 3);
    let text = super::status(&s);
    for line in [
        "           ! 1 packet was dropped: every port that was tried was in use towards its destination",
        "           ! 2 packets were dropped: the table was full",
        "           ! 3 packets were dropped: the pod had its share of the table already",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    s.masquerade.leaves.clear();
    assert!(super::status(&s).contains("\nMasquerade ports 61000-65535, but by no device yet"));
    s.masquerade = MasqueradeStatus::default();
    assert!(
        super::status(&s).contains("\nMasquerade off (--masquerade no): pods leave with their own addresses\nDrops ")
    );
}

#[test]
fn services_of_the_stack_are_told_with_what_becomes_of_those_without_pods() {
    let mut s = healthy();
    s.services.cidrs = ["10.96.0.0/12", "fd96::/108"].map(|c| c.parse().unwrap()).into();
    let said = |s: &Status| {
        let text = super::status(s);
        text.split_once("\nServices ")
            .map(|(_, behind)| behind.lines().take(2).map(|l| l.trim().to_owned()).collect::<Vec<_>>())
    };
    let first = "10.96.0.0/12, fd96::/108, by the node's stack";
    let after = |second: &str| Some(vec![first.to_owned(), second.to_owned()]);
    assert_eq!(said(&s), after("to other hosts than pods not yet as the node"));
    s.services = ServicesStatus { masqueraded: true, ports: Some("16384-32767".into()), ..s.services };
    assert_eq!(said(&s), after("to other hosts than pods as the node, ports 16384-32767"));
    s.services.problem = Some("the kernel lacks X".into());
    assert_eq!(
        said(&s),
        after("! other hosts than pods behind them do not answer: the kernel lacks X; `weft doctor` has the cure")
    );
    s.services = ServicesStatus { masqueraded: false, ports: None, problem: None, ..s.services };
    s.masquerade = MasqueradeStatus::default();
    assert_eq!(said(&s), after("to other hosts than pods with the pod's own address"));
    assert_eq!(said(&healthy()), None, "where there are none");
}

#[test]
fn a_node_shows_the_way_to_it() {
    let hop = NextHopStatus { ifindex: 2, mac: Some("02:00:00:00:00:02".into()), mtu: 1500 };
    let other = NodeStatus {
        name: "node-2".into(),
        own: false,
        pod_cidrs: vec!["10.2.0.0/24".parse().unwrap(), "fd00:2::/64".parse().unwrap()],
        internal_ips: vec!["10.0.0.2".parse().unwrap()],
        tunnel_address: Some("10.0.0.2".parse().unwrap()),
        next_hop: Some(hop.clone()),
        kernel: "applied".into(),
    };
    let unresolved = NodeStatus { next_hop: Some(NextHopStatus { mac: None, ..hop }), ..other.clone() };
    let own = NodeStatus { name: "node-1".into(), own: true, next_hop: None, ..other.clone() };
    let text = nodes(&[own, other, unresolved]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].contains("this node"), "{text}");
    assert!(
        lines[2].contains("10.2.0.0/24,fd00:2::/64  10.0.0.2   10.0.0.2   02:00:00:00:00:02 on device 2"),
        "{text}"
    );
    assert!(lines[3].contains("resolved by the kernel on device 2"), "{text}");
}

#[test]
fn map_entries_show_fields_without_padding() {
    let entry = MapEntry { key: json!("10.1.0.1"), value: json!({"ifindex": 7, "mac": "02:00:00:00:00:01", "pad": 0}) };
    let text = entries(&[entry]);
    assert!(text.ends_with("10.1.0.1  ifindex=7 mac=02:00:00:00:00:01\n"), "{text}");
    assert_eq!(fields(&json!([1, 2])), "[1,2]");
}

#[test]
fn verdicts_stand_apart_from_drops() {
    let verdict = VerdictCount { verdict: "peer".into(), point: "from_pod".into(), packets: 5, bytes: 500 };
    let text = drops(&Drops { drops: vec![], verdicts: vec![verdict] });
    assert_eq!(
        text,
        "No packet was dropped.\n\nNOT DROPPED  WHERE     PACKETS  BYTES\npeer         from_pod        5    500\n"
    );
}

#[test]
fn an_event_is_one_line() {
    let line = observed(&Observed::Drop(Box::new(an_event("Short"))));
    let expected =
        "2023-11-14T22:13:20.123Z default/web TCP 10.1.0.1:4000 > [fd00::1]:80 74 bytes: Short at from_pod: it is so";
    assert_eq!(line, expected);
    let bare = DropEvent { pod: None, src: None, dst: None, protocol: None, ..an_event("Short") };
    assert!(event(&bare).contains(" device 7 no IP header 74 bytes: "), "{}", event(&bare));
    let ping = DropEvent { protocol: Some(1), src_port: None, dst_port: None, ..an_event("Short") };
    assert!(event(&ping).contains(" ICMP 10.1.0.1 > fd00::1 74 bytes"), "{}", event(&ping));
    let audited = DropEvent {
        audit: true,
        policies: vec!["NetworkPolicy shop/web".into()],
        rule: Some("ClusterNetworkPolicy c, spec.ingress[0]".into()),
        ends: Some([None, Some("shop/web".into())]),
        ..an_event("PolicyIngress")
    };
    let text = event(&audited);
    assert!(text.contains(" 74 bytes: passed, and would be PolicyIngress at from_pod: "), "{text}");
    let ends =
        "(no pod > shop/web; in audit mode NetworkPolicy shop/web; denied by ClusterNetworkPolicy c, spec.ingress[0])";
    assert!(text.ends_with(ends), "{text}");
    assert_eq!(observed(&Observed::Lost { lost: 3 }), "3 events came too fast and are not shown here");
}

#[test]
fn spans_of_time_show_their_two_largest_parts() {
    assert_eq!([0, 59, 61, 3661, 90_000].map(span), ["0s", "59s", "1m 1s", "1h 1m", "1d 1h"]);
}

fn healthy() -> Status {
    Status {
        node: "node-1".into(),
        version: "0.1.0".into(),
        kernel: "6.18.0".into(),
        pid: 42,
        uptime_seconds: 3660,
        not_ready: None,
        datapath: DatapathStatus {
            layout: "00000000000000aa".into(),
            waits: false,
            other_maps: Vec::new(),
            tunnel_address: Some("10.0.0.1".parse().unwrap()),
            tunnel_port: 8472,
            underlay_mtu: 1500,
            pod_mtu: 1450,
            programs: vec![
                Attachment { program: "from_netdev".into(), device: "eth0".into(), how: "tcx".into() },
                Attachment { program: "from_pod".into(), device: "block 87".into(), how: "block".into() },
            ],
            refused: None,
            features: BTreeMap::from([("encap-l2-eth".into(), true), ("tcx".into(), false)]),
            missing_features: vec![MissingFeature {
                name: "tcx".into(),
                why: "missing".into(),
                origin: "Linux 6.6".into(),
                without: "Weft does so".into(),
                ..MissingFeature::default()
            }],
        },
        sources: vec![SourceStatus {
            name: "manifests".into(),
            origin: "/etc/weft/manifests".into(),
            synced: true,
            objects: 4,
            problems: vec![],
            kinds: vec![],
        }],
        install: InstallStatus {
            stage: Stage::Installed,
            self_test: "packets went in IPv4, 3.1 ms".into(),
            plugin: "/opt/cni/bin/weft-cni".into(),
            conflist: "/etc/cni/net.d/05-weft.conflist".into(),
            ..InstallStatus::default()
        },
        reconciler: ReconcilerStatus {
            revision: 9,
            applied: 9,
            pending: 0,
            failed: vec![],
            pruning: true,
            ..ReconcilerStatus::default()
        },
        nodes: 2,
        pods: 2,
        endpoints: 1,
        addresses: vec![Usage {
            cidr: "10.244.1.0/24".parse().unwrap(),
            size: 254,
            used: 1,
            quarantined: 2,
            draining: false,
        }],
        dropped_packets: 0,
        conntrack: ConntrackStatus {
            tables: vec![TableFill { family: "IPv4".into(), flows: 12, size: 131_072 }],
            full: 0,
            quota: 0,
        },
        services: ServicesStatus::default(),
        masquerade: MasqueradeStatus {
            ports: Some("61000-65535".into()),
            leaves: [("eth0".to_owned(), ["10.0.0.1", "fd00::1"].map(|a| a.parse().unwrap()).into())].into(),
            tables: vec![TableFill { family: "IPv4".into(), flows: 3, size: 131_072 }],
            ..MasqueradeStatus::default()
        },
        policy: PolicySummary {
            in_force: true,
            policies: 3,
            isolated: 1,
            entries: 17,
            identities: 2,
            epoch: 5,
            ..PolicySummary::default()
        },
    }
}

#[test]
fn policies_that_are_not_in_force_are_told_with_the_reason() {
    let mut s = healthy();
    s.policy.in_force = false;
    assert!(super::status(&s).contains("epoch 5\n           ! not in force yet: the sources are not in sync\n"));
    s.policy.problem = Some("map policy_rule_v2 is full".into());
    s.policy.unknown = 2;
    let text = super::status(&s);
    assert!(
        text.contains(
            "! isolated until it is known which policies hold: 2 pods\n           ! map policy_rule_v2 is full\n"
        ),
        "{text}"
    );
}
