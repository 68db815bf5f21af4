use std::sync::Arc;

use clap::CommandFactory;

use super::*;
use crate::api::{
    tests::{Fake, Served, event, flow},
    types::{DropCount, DropEvent, Drops, ExplainedFlow, Explanation, FlowStatus, NodeEnd, Side},
};
use crate::conntrack::{Filter, State};

#[test]
fn the_command_line_is_consistent_and_documented() {
    Cli::command().debug_assert();
    let help = Cli::command().render_long_help().to_string();
    for part in ["Output:", "Exit status:", "Examples:", "WEFT_API_SOCKET", "/run/weft/api.sock", "observe"] {
        assert!(help.contains(part), "{part} is missing in\n{help}");
    }
}

#[tokio::test]
async fn lists_are_tables_and_json_is_what_the_api_says() {
    let served = Served::new(Fake::default());
    let text = weft(&served, &["node", "list"]).await.unwrap();
    assert!(text.starts_with("NAME ") && text.contains("node-1  10.1.0.0/24"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&weft(&served, &["node", "list", "--json"]).await.unwrap()).unwrap();
    assert_eq!(json[0]["pod_cidrs"], serde_json::json!(["10.1.0.0/24"]));
    assert!(weft(&served, &["status"]).await.unwrap().contains("node-1"));
    assert!(weft(&served, &["map", "list"]).await.unwrap().contains("local_v1"));
    assert!(weft(&served, &["map", "dump", "local_v1"]).await.unwrap().contains("10.1.0.1  ifindex=7"));
    assert!(weft(&served, &["endpoint", "list"]).await.unwrap().contains("no endpoints"));
    assert!(weft(&served, &["pod", "list"]).await.unwrap().contains("No Pod objects"));
}

#[tokio::test]
async fn drift_is_listed_and_a_failure_and_its_absence_is_neither() {
    use crate::drift::{Item, Kind, Verified};
    let served = Served::new(Fake::default());
    assert_eq!(weft(&served, &["status", "--verify"]).await.unwrap(), "The kernel holds what it should.\n");
    let mended = Item::new(Kind::Route, "10.0.0.0/8 on weft_host", "nothing", "MTU 1450");
    let left = Item { failed: "no memory".into(), ..Item::new(Kind::Map, "local4_v2 10.0.0.1", "nothing", "{}") };
    let verified = Verified { items: vec![mended, left], unread: vec![] };
    let served = Served::new(Fake { verified: verified.clone(), ..Fake::default() });
    assert!(matches!(weft(&served, &["status", "--verify"]).await, Err(Failure::Unwell)));
    let text = show::verified(&verified);
    for part in [
        "route      10.0.0.0/8 on weft_host\n",
        "was     nothing\n",
        "should  MTU 1450\n  repaired\n",
        "NOT repaired: no memory",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
}

#[tokio::test]
async fn a_map_that_is_not_there_is_named_with_the_cure() {
    let served = Served::new(Fake::default());
    for name in ["none", "a/b c?"] {
        let error = weft(&served, &["map", "dump", name]).await.unwrap_err();
        assert_eq!(error.to_string(), format!("there is no map `{name}`: `weft map list` shows the maps"));
        assert_eq!(format!("{:?}", error.exit_code()), format!("{:?}", ExitCode::from(1)));
    }
}

#[tokio::test]
async fn drops_show_only_what_was_counted() {
    let count = |reason: &str, packets| DropCount {
        reason: reason.into(),
        point: "from_pod".into(),
        packets,
        bytes: 60 * packets,
        description: "it is so".into(),
    };
    let drops = Drops { drops: vec![count("Short", 3), count("Vlan", 0)], verdicts: vec![] };
    let served = Served::new(Fake { drops, ..Fake::default() });
    let text = weft(&served, &["drops"]).await.unwrap();
    assert!(text.contains("Short") && text.contains("it is so") && !text.contains("Vlan"), "{text}");
    let served = Served::new(Fake::default());
    assert_eq!(weft(&served, &["drops"]).await.unwrap(), "No packet was dropped.\n");
}

#[tokio::test]
async fn flows_are_shown_with_their_pods_and_what_is_left_out_is_told() {
    let fake = Fake { flows: vec![flow(4000), flow(4001)], ..Fake::default() };
    let served = Served::new(fake.clone());
    let text = weft(&served, &["ct", "list", "--limit", "1"]).await.unwrap();
    let line = "TCP       10.1.0.1:4000  shop/client  -   10.1.0.2:80  -    established  2h 13m  settled";
    assert!(text.lines().any(|l| l == line), "{text}");
    assert!(text.ends_with("1 more: narrow it down by filters, or raise --limit.\n"), "{text}");
    assert!(!weft(&served, &["ct", "list"]).await.unwrap().contains("more"));
    let counts = weft(&served, &["ct", "count"]).await.unwrap();
    assert!(counts.lines().any(|l| l == "IPv4    settled      2  131072  established 2"), "{counts}");
    let json: serde_json::Value =
        serde_json::from_str(&weft(&served, &["ct", "list", "--json"]).await.unwrap()).unwrap();
    assert_eq!((&json["matched"], &json["flows"][1]["source_port"]), (&2.into(), &4001.into()));
    let served = Served::new(Fake::default());
    assert_eq!(weft(&served, &["ct", "list"]).await.unwrap(), "No flow was found.\n");
}

#[tokio::test]
async fn a_flow_is_explained_with_what_is_known_of_it() {
    let side = |direction: &str, end: &str, allowed, why: &str| Side {
        direction: direction.into(),
        end: end.into(),
        allowed,
        why: why.into(),
        ..Side::default()
    };
    let explained = ExplainedFlow {
        from: "pod:shop/client@10.1.0.1".into(),
        to: "pod:shop/web@10.1.0.2".into(),
        allowed: Some(false),
        sides: vec![
            side("egress", "shop/client", Some(true), "no policy selects the pod"),
            side("ingress", "shop/web", Some(false), "so it is"),
        ],
        older: vec![flow(4000)],
        ..ExplainedFlow::default()
    };
    let problem = Some("a map is full".to_owned());
    let explanation = Explanation { epoch: 3, flows: vec![explained], problem, ..Explanation::default() };
    let served = Served::new(Fake { explanation, ..Fake::default() });
    let text = weft(&served, &["explain", "shop/client", "shop/web", "tcp/80"]).await.unwrap();
    let expected = "\
pod:shop/client@10.1.0.1 -> pod:shop/web@10.1.0.2 TCP/80: denied
egress of shop/client: allowed: no policy selects the pod
ingress of shop/web: denied: so it is
known: 10.1.0.1:4000 > 10.1.0.2:80, established: judged in epoch 1, and again in 3 at its next packet

! the maps are not as the objects say: a map is full
";
    assert_eq!(text, expected);
    let json = weft(&served, &["explain", "shop/client", "shop/web", "icmp", "--json"]).await.unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["probe"], &json["flows"][0]["allowed"]), (&"ICMP/0".into(), &false.into()));
    let error = weft(&served, &["explain", "shop/nobody", "shop/web", "TCP/80"]).await.unwrap_err();
    assert!(error.to_string().starts_with("there is no pod `shop/nobody`: `weft pod list`"), "{error}");
    assert_eq!(format!("{:?}", error.exit_code()), format!("{:?}", ExitCode::from(1)));
    for probe in ["TCP", "ICMP/1", "TCP/70000", "GRE/1"] {
        let wrong = Cli::try_parse_from(["weft", "explain", "a/b", "c/d", probe]).unwrap_err();
        assert_eq!(wrong.exit_code(), 2, "{probe}");
    }
}

#[tokio::test]
async fn a_masqueraded_flow_is_shown_with_the_nodes_end() {
    let node = |port, echo_id| NodeEnd { address: "192.0.2.1".parse().unwrap(), port, echo_id };
    let tcp = FlowStatus { masqueraded_as: Some(node(Some(61_000), None)), ..flow(4000) };
    let echo = FlowStatus {
        protocol: 1,
        source_port: None,
        destination_port: None,
        echo_id: Some(7),
        masqueraded_as: Some(node(None, Some(9))),
        ..flow(4000)
    };
    let served = Served::new(Fake { flows: vec![tcp, echo], ..Fake::default() });
    let text = weft(&served, &["ct", "list"]).await.unwrap();
    for line in [
        "TCP       10.1.0.1:4000  shop/client  192.0.2.1:61000  10.1.0.2:80    -    established  2h 13m  settled",
        "ICMP      10.1.0.1 id 7  shop/client  192.0.2.1 id 9   10.1.0.2 id 7  -    established  2h 13m  settled",
    ] {
        assert!(text.lines().any(|l| l == line), "{text}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&weft(&served, &["ct", "list", "--json"]).await.unwrap()).unwrap();
    assert_eq!(
        json["flows"][0]["masqueraded_as"],
        serde_json::json!({"address": "192.0.2.1", "port": 61000, "echo_id": null})
    );
}

#[tokio::test]
async fn flush_asks_for_what_its_filters_say_and_for_nothing_without_one() {
    let fake = Fake { flows: vec![flow(4000)], ..Fake::default() };
    let served = Served::new(fake.clone());
    let refused = weft(&served, &["ct", "flush"]).await.unwrap_err();
    assert!(refused.to_string().contains("--all") && fake.flushed.lock().unwrap().is_none(), "{refused}");
    assert_eq!(format!("{:?}", refused.exit_code()), format!("{:?}", ExitCode::from(2)));
    let arguments =
        ["ct", "flush", "--pod=shop/web", "--address=fd00::1", "--port=80", "--port=443", "--protocol=icmpv6"];
    let text = weft(&served, &[&arguments[..], &["--state=closing", "-4", "-6"]].concat()).await.unwrap();
    assert_eq!(text, "removed 1 flow\n");
    let filter = Filter {
        pods: vec!["shop/web".into()],
        addresses: vec!["fd00::1".parse().unwrap()],
        ports: vec![80, 443],
        protocols: vec![58],
        states: vec![State::Closing],
        families: vec![4, 6],
    };
    assert_eq!(fake.flushed.lock().unwrap().take(), Some(filter));
    assert_eq!(weft(&served, &["ct", "flush", "--all", "--json"]).await.unwrap(), "{\n  \"flushed\": 1\n}\n");
    assert_eq!(fake.flushed.lock().unwrap().take(), Some(Filter::default()));
    for (option, part) in [("--state=open", "a flow is unanswered"), ("--protocol=quic", "`quic` is no protocol")] {
        let wrong = Cli::try_parse_from(["weft", "ct", "list", option]).unwrap_err().to_string();
        assert!(wrong.contains(part), "{wrong}");
    }
}

#[tokio::test]
async fn observe_ends_after_the_count() {
    let fake = Fake::default();
    let served = Served::new(fake.clone());
    for json in [false, true] {
        let arguments: &[&str] = if json { &["observe", "--count=2", "--json"] } else { &["observe", "--count=2"] };
        let (text, ()) = tokio::join!(weft(&served, arguments), async {
            while fake.events.receiver_count() == 0 {
                tokio::task::yield_now().await;
            }
            fake.events.send(Arc::new(event("Short"))).unwrap();
            fake.events.send(Arc::new(event("Vlan"))).unwrap();
        });
        let text = text.unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert_eq!(text.lines().all(|line| line.starts_with('{')), json);
        while fake.events.receiver_count() != 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn observe_shows_what_policies_in_audit_mode_let_pass_alone_when_asked() {
    let fake = Fake { events: tokio::sync::broadcast::channel(8).0, ..Fake::default() };
    let served = Served::new(fake.clone());
    let (text, ()) = tokio::join!(weft(&served, &["observe", "--audit", "--count=1"]), async {
        while fake.events.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        for audit in [false, true] {
            fake.events.send(Arc::new(DropEvent { audit, ..event("PolicyIngress") })).unwrap();
        }
    });
    assert!(text.unwrap().contains("passed, and would be PolicyIngress"));
}

#[tokio::test]
async fn observe_shows_what_every_filter_takes_and_counts_that_alone() {
    let fake = Fake { events: tokio::sync::broadcast::channel(8).0, ..Fake::default() };
    let served = Served::new(fake.clone());
    let arguments = ["observe", "--reason=short", "--reason=NoPod", "--pod=web", "--address=10.244.1.9", "--count=2"];
    let of = |reason: &str, pod: Option<&str>, dst: &str| {
        let (pod, dst) = (pod.map(str::to_owned), Some(dst.parse().unwrap()));
        Arc::new(DropEvent { pod, dst, ..event(reason) })
    };
    let (text, ()) = tokio::join!(weft(&served, &arguments), async {
        while fake.events.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
        for event in [
            of("Vlan", Some("default/web"), "10.244.1.9"),
            of("Short", Some("other/web"), "10.244.1.9"),
            of("Short", None, "10.244.1.9"),
            of("Short", Some("default/web"), "10.244.1.8"),
            of("Short", Some("default/web"), "10.244.1.9"),
            of("NoPod", Some("default/web"), "10.244.1.9"),
        ] {
            fake.events.send(event).unwrap();
        }
    });
    let text = text.unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.lines().all(|l| l.contains("default/web") && l.contains("10.244.1.9")), "{text}");
    let wrong = Cli::try_parse_from(["weft", "observe", "--reason", "Nonsense"]).unwrap_err().to_string();
    assert!(wrong.contains("NoPod"), "it names the reasons: {wrong}");
}

#[tokio::test]
async fn observe_ends_after_the_timeout_and_at_once_when_nothing_is_asked_for() {
    let served = Served::new(Fake::default());
    assert_eq!(weft(&served, &["observe", "--timeout", "0.01"]).await.unwrap(), "");
    assert_eq!(weft(&served, &["observe", "--count", "0"]).await.unwrap(), "");
}

#[test]
fn without_an_agent_it_says_where_it_looked_and_what_to_do_and_exits_with_2() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("api.sock");
    let abandoned = |path: &PathBuf| drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    for prepare in [None, Some(abandoned)] {
        if let Some(prepare) = prepare {
            prepare(&path);
        }
        let socket = path.display().to_string();
        let cli = Cli::try_parse_from(["weft", "--socket", &socket, "status"]).unwrap();
        let error = execute(&cli, &mut Vec::new()).unwrap_err();
        let text = error.to_string();
        for part in [socket.as_str(), "does not run", "Start the agent", "WEFT_API_SOCKET"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
        assert_eq!(format!("{:?}", error.exit_code()), format!("{:?}", ExitCode::from(2)));
    }
}

#[test]
fn words_are_escaped_in_paths() {
    assert_eq!(escaped("local_v1"), "local_v1");
    assert_eq!(escaped("a/b ?ü"), "a%2Fb%20%3F%C3%BC");
}

async fn weft(served: &Served, arguments: &[&str]) -> Result<String, Failure> {
    let socket = served.path.display().to_string();
    let line = ["weft", "--socket", &socket];
    let cli = Cli::try_parse_from(line.iter().chain(arguments)).unwrap();
    let mut out = Vec::new();
    run(&cli, &mut out).await?;
    Ok(String::from_utf8(out).unwrap())
}
