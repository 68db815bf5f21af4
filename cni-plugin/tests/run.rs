//! The whole plugin against a stand-in for the agent: every command, every version's shape, every kind of error.
mod stand_ins;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, Read},
    os::unix::ffi::OsStringExt,
    path::PathBuf,
};

use cni_plugin::{
    client::{CallError, Unanswered},
    protocol::{MAX_REQUEST, PROTOCOL, Request, Response, Verb},
    run::{Outcome, run},
    spec::{AddResult, CniError, ErrorCode, Version},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use stand_ins::{ADD, Agent, NoPlugins, config, document, edges, golden, lookup, newest, with};

#[test]
fn add_answers_in_the_shape_of_each_version() {
    for version in Version::ALL {
        let outcome = Agent::that_serves().run(&ADD, &config(version));
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{version}");
        assert_eq!(document(&outcome), golden("add", version), "{version}");
    }
}

#[test]
fn a_result_without_name_servers_has_no_dns() {
    let agent = Agent::that(|_| Ok(Response::Done(Some(AddResult::default()))));
    for version in Version::ALL {
        assert_eq!(document(&agent.run(&ADD, &config(version))), json!({"cniVersion": version.as_str()}));
    }
}

#[test]
fn each_versions_result_reads_back_into_the_newest_shape() {
    for version in Version::ALL {
        let old: AddResult = serde_json::from_value(golden("add", version)).unwrap();
        assert_eq!(old.in_version(version), old, "{version}");
        let new = old.in_version(Version::LATEST);
        assert!(new.ips.iter().all(|ip| ip.version.is_none()));
        assert_eq!(new.in_version(version), old, "{version}");
    }
}

#[test]
fn the_agent_is_asked_what_the_runtime_asked_at_the_socket_of_the_configuration() {
    let agent = Agent::that_serves();
    let conf = json!({"cniVersion": "1.1.0", "name": "weft", "agentSocket": "/run/other.sock", "x": {"y": [1]}});
    agent.run(&ADD, &conf);
    let calls = agent.calls.into_inner();
    let args =
        BTreeMap::from([("K8S_POD_NAMESPACE", "default"), ("K8S_POD_NAME", "web")].map(|(k, v)| (k.into(), v.into())));
    let wanted = Request {
        protocol: PROTOCOL,
        command: Verb::Add,
        container_id: "c1".into(),
        netns: "/run/netns/blue".into(),
        ifname: "eth0".into(),
        args,
        config: conf,
        ipam: None,
    };
    assert_eq!(calls, [(PathBuf::from("/run/other.sock"), wanted)]);
}

#[test]
fn del_succeeds_with_nothing_on_standard_output() {
    let agent = Agent::that(|_| Ok(Response::Done(None)));
    let conf = json!({"cniVersion": "0.4.0", "name": "weft", "prevResult": golden("add", Version::V0_4_0),
        "runtimeConfig": {"portMappings": [{"hostPort": 1}]}});
    let outcome = agent.run(&with(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "")]), &conf);
    assert_eq!(outcome, SILENT_SUCCESS);
    assert_eq!(agent.calls.borrow()[0].1.netns, "");
}

#[test]
fn version_is_answered_with_and_without_a_configuration() {
    let supported = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for (stdin, told) in [
        ("", "1.1.0"),
        ("{}", "1.1.0"),
        ("garbage", "1.1.0"),
        (r#"{"cniVersion":"0.2.0"}"#, "1.1.0"),
        (r#"{"cniVersion":"1.0.0"}"#, "1.0.0"),
        (r#"{"cniVersion":"0.3.1"}"#, "0.3.1"),
    ] {
        let outcome = Agent::absent().run_text(&[("CNI_COMMAND", "VERSION")], stdin);
        assert_eq!(outcome.code, 0);
        assert_eq!(document(&outcome), json!({"cniVersion": told, "supportedVersions": supported}), "{stdin}");
    }
}

#[test]
fn the_agents_error_is_passed_on_in_the_asked_version_and_on_one_line_for_people() {
    let agent = Agent::that(|_| {
        Ok(Response::Failed(CniError::new(ErrorCode::ADDRESSES_EXHAUSTED, "all taken").with_details("add\na CIDR")))
    });
    let outcome = agent.run(&ADD, &config(Version::V0_4_0));
    assert_eq!(outcome.code, 1);
    assert_eq!(
        document(&outcome),
        json!({"cniVersion": "0.4.0", "code": 103, "msg": "all taken", "details": "add\na CIDR"})
    );
    assert_eq!(outcome.stderr, "weft-cni: all taken: add a CIDR");
}

#[test]
fn what_keeps_the_agent_from_answering_is_the_error() {
    let error = CniError::new(ErrorCode::NOT_PERMITTED, "gone").with_details("start it");
    let gone = CallError { unanswered: Unanswered::NotSent, error };
    for command in ["ADD", "DEL"] {
        let gone = gone.clone();
        let outcome =
            Agent::that(move |_| Err(gone.clone())).run(&with(&[("CNI_COMMAND", command)]), &config(Version::LATEST));
        assert_eq!(
            document(&outcome),
            json!({"cniVersion": "1.1.0", "code": 102, "msg": "gone", "details": "start it"})
        );
    }
}

#[test]
fn an_add_without_result_is_a_fault_of_ours() {
    let outcome = Agent::that(|_| Ok(Response::Done(None))).run(&ADD, &config(Version::LATEST));
    assert_eq!(document(&outcome)["code"], 100);
}

#[test]
fn a_verb_is_refused_in_a_version_that_does_not_have_it() {
    for (command, since) in [("CHECK", Version::V0_4_0), ("GC", Version::V1_1_0), ("STATUS", Version::V1_1_0)] {
        for version in Version::ALL.into_iter().filter(|version| *version < since) {
            let outcome = Agent::absent().run(&with(&[("CNI_COMMAND", command)]), &config(version));
            let error = document(&outcome);
            assert_eq!((outcome.code, &error["code"]), (1, &json!(1)), "{command} {version}: {error}");
            let msg = error["msg"].as_str().unwrap();
            assert!(msg.contains(command) && msg.contains(since.as_str()), "{error}");
            assert_eq!(error["cniVersion"], version.as_str());
        }
    }
}

#[test]
fn check_asks_the_agent_and_succeeds_with_nothing_on_standard_output() {
    for version in [Version::V0_4_0, Version::V1_0_0, Version::V1_1_0] {
        let agent = Agent::that_serves();
        let mut conf = config(version);
        conf["prevResult"] = golden("add", version);
        let outcome = agent.run(&with(&[("CNI_COMMAND", "CHECK")]), &conf);
        assert_eq!(outcome, SILENT_SUCCESS);
        let (_, request) = &agent.calls.borrow()[0];
        assert_eq!((request.command, request.netns.as_str(), &request.config), (Verb::Check, "/run/netns/blue", &conf));
    }
}

#[test]
fn check_without_the_result_of_add_is_refused() {
    for extra in [json!(null), json!({})] {
        let mut conf = config(Version::LATEST);
        conf["prevResult"] = extra;
        let error = document(&Agent::absent().run(&with(&[("CNI_COMMAND", "CHECK")]), &conf));
        assert_eq!(error["code"], 7);
        assert!(error["msg"].as_str().unwrap().contains("prevResult"), "{error}");
    }
}

#[test]
fn gc_and_status_ask_the_agent_without_a_container() {
    for command in ["GC", "STATUS"] {
        let agent = Agent::that_serves();
        let mut conf = config(Version::LATEST);
        conf["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
        let outcome = agent.run(&[("CNI_COMMAND", command), ("CNI_PATH", "/opt/cni/bin")], &conf);
        assert_eq!(outcome, SILENT_SUCCESS);
        let (_, request) = &agent.calls.borrow()[0];
        assert_eq!((request.command.as_str(), request.container_id.as_str(), &request.config), (command, "", &conf));
        assert_eq!(Request::decode(&request.encode().unwrap()), Ok(request.clone()));
    }
}

#[test]
fn gc_without_a_list_cuts_nobody_off() {
    let error = document(&Agent::absent().run(&[("CNI_COMMAND", "GC")], &config(Version::LATEST)));
    assert_eq!(error["code"], 7);
    assert!(error["msg"].as_str().unwrap().contains("cni.dev/valid-attachments"), "{error}");
}

#[test]
fn an_agent_that_is_down_makes_the_network_unavailable() {
    let error = CniError::new(ErrorCode::TRY_AGAIN_LATER, "weft-agent is not running").with_details("start it");
    let agent = Agent::that(move |_| Err(CallError { unanswered: Unanswered::Absent, error: error.clone() }));
    let error = document(&agent.run(&[("CNI_COMMAND", "STATUS")], &config(Version::LATEST)));
    assert_eq!((&error["code"], &error["msg"]), (&json!(50), &json!("weft-agent is not running")));
}

#[test]
fn what_the_agent_finds_missing_is_passed_on_as_it_says_it() {
    let error = CniError::new(ErrorCode::LIMITED_CONNECTIVITY, "programs are gone").with_details("restart it");
    let outcome = Agent::that_refuses(error).run(&[("CNI_COMMAND", "STATUS")], &config(Version::LATEST));
    assert_eq!(
        document(&outcome),
        json!({"cniVersion": "1.1.0", "code": 51, "msg": "programs are gone", "details": "restart it"})
    );
}

#[test]
fn behind_another_plugin_the_result_has_both_in_the_shape_of_each_version() {
    for version in Version::ALL {
        let agent = Agent::that_serves();
        let mut conf = config(version);
        conf["prevResult"] = golden("previous", version);
        let outcome = agent.run(&with(&[("CNI_IFNAME", "net1")]), &conf);
        assert_eq!(document(&outcome), golden("chained", version), "{version}");
        assert_eq!(agent.calls.borrow()[0].1.config, conf);
    }
}

#[test]
fn the_interface_of_another_plugin_is_not_taken_over() {
    let mut conf = config(Version::LATEST);
    conf["prevResult"] = golden("previous", Version::LATEST);
    let error = document(&Agent::absent().run(&ADD, &conf));
    assert_eq!(error["code"], 7);
    assert!(error["msg"].as_str().unwrap().contains("eth0"), "{error}");
}

#[test]
fn name_servers_of_the_configuration_are_handed_on() {
    let mut conf = config(Version::LATEST);
    conf["dns"] = json!({"nameservers": ["10.9.9.9"]});
    assert_eq!(document(&Agent::that_serves().run(&ADD, &conf))["dns"], conf["dns"]);
}

#[test]
fn run_by_hand_it_says_what_it_is_and_a_runtime_still_gets_its_error() {
    let outcome = Agent::absent().run_text(&[], "");
    assert_eq!(document(&outcome)["code"], 4);
    for word in ["CNI plugin of Weft", "1.1.0", "container runtime", "weft doctor"] {
        assert!(outcome.stderr.contains(word), "{}", outcome.stderr);
    }
}

#[test]
fn an_agent_of_the_former_release_is_asked_again_in_its_own_protocol() {
    for command in ["ADD", "DEL"] {
        let agent = Agent::that(former_release);
        let outcome = agent.run(&with(&[("CNI_COMMAND", command)]), &config(Version::LATEST));
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert_eq!(agent.calls.borrow().iter().map(|(_, r)| r.protocol).collect::<Vec<_>>(), [2, 1]);
    }
}

#[test]
fn what_the_former_protocol_cannot_say_is_not_asked_in_it() {
    let previous = json!({"prevResult": golden("previous", Version::LATEST)});
    let listed = json!({"prevResult": golden("add", Version::LATEST), "cni.dev/valid-attachments": []});
    for (command, ifname, extra) in [
        ("ADD", "eth0", json!({"runtimeConfig": {"mac": "0a:58:0a:00:00:05"}})),
        ("ADD", "eth0", json!({"runtimeConfig": {"ips": ["10.0.0.5"]}})),
        ("ADD", "net1", previous),
        ("CHECK", "eth0", listed.clone()),
        ("GC", "eth0", listed),
    ] {
        let agent = Agent::that(former_release);
        let mut conf = config(Version::LATEST);
        for (key, value) in extra.as_object().unwrap() {
            conf[key] = value.clone();
        }
        let error = document(&agent.run(&with(&[("CNI_COMMAND", command), ("CNI_IFNAME", ifname)]), &conf));
        assert_eq!(error["code"], 101, "{command} {extra}: {error}");
        assert!(error["details"].as_str().unwrap().contains("upgrade"), "{error}");
        assert_eq!(agent.verbs().len(), 1);
    }
}

#[test]
fn status_says_of_an_agent_of_the_former_release_whether_it_serves_add() {
    for (extra, code, protocols) in
        [(json!({}), 0, &[2, 1][..]), (json!({"runtimeConfig": {"mac": "0a:58:0a:00:00:05"}}), 101, &[2])]
    {
        let agent = Agent::that(former_release);
        let mut conf = config(Version::LATEST);
        for (key, value) in extra.as_object().unwrap() {
            conf[key] = value.clone();
        }
        let outcome = agent.run(&[("CNI_COMMAND", "STATUS")], &conf);
        assert_eq!(if outcome.code == 0 { 0 } else { document(&outcome)["code"].as_u64().unwrap() }, code, "{extra}");
        assert_eq!(agent.calls.borrow().iter().map(|(_, r)| r.protocol).collect::<Vec<_>>(), protocols, "{extra}");
    }
    // One that speaks neither serves nothing.
    let agent = Agent::that_refuses(CniError::new(ErrorCode::VERSION_SKEW, "the agent speaks 3 to 4"));
    let error = document(&agent.run(&[("CNI_COMMAND", "STATUS")], &config(Version::LATEST)));
    assert_eq!((&error["code"], agent.verbs().len()), (&json!(101), 2));
}

#[test]
fn bad_input_is_refused_with_cause_and_cure_and_the_agent_is_not_asked() {
    let large = format!("{{{}", " ".repeat(MAX_REQUEST));
    for (env, stdin, code) in [
        (vec![("CNI_COMMAND", "")], "{}", 4),
        (with(&[("CNI_COMMAND", "PLAY")]), "{}", 4),
        (with(&[("CNI_IFNAME", "a/b")]), "{}", 4),
        (with(&[("CNI_NETNS", "")]), "{}", 4),
        (with(&[]), "", 6),
        (with(&[]), "{\"cniVersion\":", 6),
        (with(&[]), "[]", 7),
        (with(&[]), r#"{"cniVersion":"1.1.0"}"#, 7),
        (with(&[]), r#"{"cniVersion":"0.2.0","name":"weft"}"#, 1),
        (with(&[]), r#"{"cniVersion":"1.1.0","name":"weft","ipam":{"type":"host-local"}}"#, 4),
        (with(&[]), r#"{"cniVersion":"1.1.0","name":"weft","ipam":{"type":"../host-local"}}"#, 7),
        (with(&[]), r#"{"cniVersion":"1.1.0","name":"weft","ipam":{"subnet":"10.0.0.0/8"}}"#, 7),
        (with(&[]), r#"{"cniVersion":"1.1.0","name":"weft","runtimeConfig":{"portMappings":[{"hostPort":1}]}}"#, 2),
        (with(&[]), r#"{"cniVersion":"1.1.0","name":"weft","runtimeConfig":{"mac":"x"}}"#, 7),
        (with(&[]), r#"{"cniVersion":"1.1.0","name":"weft","prevResult":{"ips":[{"address":"x"}]}}"#, 6),
        (with(&[("CNI_COMMAND", "CHECK"), ("CNI_NETNS", "")]), "{}", 4),
        (with(&[("CNI_COMMAND", "GC")]), "{", 6),
        (
            with(&[("CNI_COMMAND", "GC")]),
            r#"{"cniVersion":"1.1.0","name":"weft","cni.dev/valid-attachments":[{"containerID":"c1"}]}"#,
            7,
        ),
        (with(&[("CNI_COMMAND", "STATUS")]), r#"{"cniVersion":"1.1.0","name":"?"}"#, 7),
        (with(&[]), large.as_str(), 7),
        (with(&[("CNI_COMMAND", "DEL")]), "{\"cniVersion\":", 6),
    ] {
        let agent = Agent::that_serves();
        let outcome = agent.run_text(&env, stdin);
        let error = document(&outcome);
        assert_eq!((outcome.code, &error["code"]), (1, &json!(code)), "{error}");
        assert!(error["details"].as_str().is_some_and(|cure| !cure.is_empty()), "no cure: {error}");
        assert!(outcome.stderr.starts_with("weft-cni: "), "{}", outcome.stderr);
        assert!(agent.calls.borrow().is_empty());
    }
}

#[test]
fn a_wrong_environment_is_reported_in_the_version_of_the_configuration() {
    let outcome = Agent::absent().run(&with(&[("CNI_IFNAME", "")]), &config(Version::V0_3_1));
    assert_eq!(document(&outcome)["cniVersion"], "0.3.1");
}

#[test]
fn standard_input_that_cannot_be_read_is_an_io_failure() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the pipe is gone"))
        }
    }
    let agent = Agent::absent();
    let edges = edges(&agent, &NoPlugins);
    let outcome = run(&|name| lookup(&ADD, name), &mut Broken, &edges);
    assert_eq!(document(&outcome)["code"], 5);
    assert!(document(&outcome)["msg"].as_str().unwrap().contains("the pipe is gone"));
}

proptest! {
    #[test]
    fn whatever_comes_in_what_goes_out_is_json_and_an_exit_code_that_fits(
        env in any_env(), stdin in any_stdin(), answer in any_answer(),
    ) {
        let agent = Agent::that(move |_| answer.clone());
        let edges = edges(&agent, &NoPlugins);
        let outcome = run(&|name| env.get(name).cloned(), &mut stdin.as_slice(), &edges);
        let command = env.get("CNI_COMMAND").map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
        match outcome.code {
            0 if !matches!(command.as_str(), "ADD" | "VERSION") => prop_assert_eq!(outcome.stdout.as_str(), ""),
            0 => {
                let cni_version = &document(&outcome)["cniVersion"];
                prop_assert!(Version::ALL.iter().any(|v| cni_version == v.as_str()));
                prop_assert!(outcome.stderr.is_empty());
            }
            1 => {
                let error = document(&outcome);
                prop_assert!(error["cniVersion"].is_string() && error["code"].is_u64() && error["msg"].is_string());
                prop_assert!(!outcome.stderr.is_empty() && (!env.contains_key("CNI_COMMAND") || !outcome.stderr.contains('\n')));
            }
            code => prop_assert!(false, "exit code {}", code),
        }
    }
}

/// Mostly what a runtime would set, with one or the other variable missing, wrong or not even text.
fn any_env() -> impl Strategy<Value = BTreeMap<&'static str, OsString>> {
    let value = |good: &'static str| {
        prop_oneof![
            12 => Just(Some(OsString::from(good))),
            1 => Just(None),
            2 => "\\PC{0,20}".prop_map(|s| Some(s.into())),
            1 => prop::collection::vec(1u8.., 0..20).prop_map(|bytes| Some(OsString::from_vec(bytes))),
        ]
    };
    let command = prop::sample::select(vec!["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]);
    (
        command.prop_flat_map(value),
        value("c1"),
        value("/run/netns/blue"),
        value("eth0"),
        value("A=B;IgnoreUnknown=1"),
        value("/opt"),
    )
        .prop_map(|(command, id, netns, ifname, args, path)| {
            let names = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];
            names.into_iter().zip([command, id, netns, ifname, args, path]).filter_map(|(n, v)| Some((n, v?))).collect()
        })
}

fn any_stdin() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from)
    ];
    let any_json = leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,6}", inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    });
    let keys = ["cniVersion", "name", "type", "agentSocket", "ipam", "runtimeConfig", "prevResult"];
    let edited = (
        prop::sample::select(Version::ALL.to_vec()),
        prop::option::weighted(0.3, (prop::sample::select(keys.to_vec()), any_json.clone())),
    )
        .prop_map(|(version, edit)| {
            let mut conf = config(version);
            if let Some((key, value)) = edit {
                conf[key] = value;
            }
            conf.to_string().into_bytes()
        });
    prop_oneof![
        5 => edited,
        2 => any_json.prop_map(|v| v.to_string().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..200),
        // Deeper than any parser should follow.
        1 => (1usize..100_000).prop_map(|n| vec![b'['; n]),
    ]
}

fn any_answer() -> impl Strategy<Value = Result<Response, CallError>> {
    let error = (any::<u32>(), ".{0,20}", ".{0,20}").prop_map(|(code, msg, details)| CniError {
        code: ErrorCode(code),
        msg,
        details,
    });
    prop_oneof![
        Just(Ok(Response::Done(Some(newest())))),
        Just(Ok(Response::Done(None))),
        error.clone().prop_map(|e| Ok(Response::Failed(e))),
        (any_unanswered(), error).prop_map(|(unanswered, error)| Err(CallError { unanswered, error })),
    ]
}

fn any_unanswered() -> impl Strategy<Value = Unanswered> {
    use Unanswered::{Absent, HungUp, NotSent, Silent, Unreadable};
    prop::sample::select(vec![Absent, NotSent, HungUp, Silent, Unreadable])
}

const SILENT_SUCCESS: Outcome = Outcome { stdout: String::new(), stderr: String::new(), code: 0 };

/// An agent that knows protocol 1 only, with what it says of another protocol, and of a verb that it does not know.
fn former_release(request: &Request) -> Result<Response, CallError> {
    if request.protocol == 1 && matches!(request.command, Verb::Add | Verb::Del) {
        return Ok(Response::Done((request.command == Verb::Add).then(newest)));
    }
    if request.protocol == 1 {
        let error = CniError::new(ErrorCode::DECODING_FAILURE, "the agent cannot read the request: unknown variant");
        return Ok(Response::Failed(error));
    }
    let msg = format!("weft-cni and weft-agent do not fit together: the plugin speaks protocol {}", request.protocol);
    let error = CniError::new(ErrorCode::VERSION_SKEW, msg);
    Ok(Response::Failed(
        error.with_details("install the plugin of the agent's release, or finish the upgrade of the agent"),
    ))
}
