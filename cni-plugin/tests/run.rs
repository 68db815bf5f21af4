//! The whole plugin against a stand-in for the agent: every command, every version's shape, every kind of error.
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ffi::OsString,
    io::{self, Read},
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use cni_plugin::{
    client::Transport,
    protocol::{MAX_REQUEST, PROTOCOL, Request, Response, Verb},
    run::{Outcome, run},
    spec::{AddResult, CniError, ErrorCode, Version},
};
use proptest::prelude::*;
use serde_json::{Value, json};

const ADD: [(&str, &str); 5] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/blue"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"),
];

#[test]
fn add_answers_in_the_shape_of_each_version() {
    for version in Version::ALL {
        let outcome = Agent::that_adds().run(&ADD, &config(version));
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{version}");
        assert_eq!(document(&outcome), golden(version), "{version}");
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
        let old: AddResult = serde_json::from_value(golden(version)).unwrap();
        assert_eq!(old.in_version(version), old, "{version}");
        let new = old.in_version(Version::LATEST);
        assert!(new.ips.iter().all(|ip| ip.version.is_none()));
        assert_eq!(new.in_version(version), old, "{version}");
    }
}

#[test]
fn the_agent_is_asked_what_the_runtime_asked_at_the_socket_of_the_configuration() {
    let agent = Agent::that_adds();
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
    };
    assert_eq!(calls, [(PathBuf::from("/run/other.sock"), wanted)]);
}

#[test]
fn del_succeeds_with_nothing_on_standard_output() {
    let agent = Agent::that(|_| Ok(Response::Done(None)));
    let conf = json!({"cniVersion": "0.4.0", "name": "weft", "prevResult": golden(Version::V0_4_0),
        "runtimeConfig": {"portMappings": [{"hostPort": 1}]}});
    let outcome = agent.run(&with(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "")]), &conf);
    assert_eq!(outcome, Outcome { stdout: String::new(), stderr: String::new(), code: 0 });
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
    let gone = || CniError::new(ErrorCode::TRY_AGAIN_LATER, "gone").with_details("start it");
    for command in ["ADD", "DEL"] {
        let outcome =
            Agent::that(move |_| Err(gone())).run(&with(&[("CNI_COMMAND", command)]), &config(Version::LATEST));
        assert_eq!(
            document(&outcome),
            json!({"cniVersion": "1.1.0", "code": 11, "msg": "gone", "details": "start it"})
        );
    }
}

#[test]
fn an_add_without_result_is_a_fault_of_ours() {
    let outcome = Agent::that(|_| Ok(Response::Done(None))).run(&ADD, &config(Version::LATEST));
    assert_eq!(document(&outcome)["code"], 100);
}

#[test]
fn commands_that_are_not_served_yet_say_so() {
    for (command, version, code) in [
        ("CHECK", Version::V0_3_1, 1),
        ("CHECK", Version::V0_4_0, 4),
        ("GC", Version::V1_0_0, 1),
        ("GC", Version::V1_1_0, 4),
        ("STATUS", Version::V0_4_0, 1),
        ("STATUS", Version::V1_1_0, 4),
    ] {
        let outcome = Agent::absent().run(&with(&[("CNI_COMMAND", command)]), &config(version));
        let error = document(&outcome);
        assert_eq!((outcome.code, &error["code"]), (1, &json!(code)), "{command} {version}: {error}");
        assert!(error["msg"].as_str().unwrap().contains(command), "{error}");
        assert_eq!(error["cniVersion"], version.as_str());
    }
}

#[test]
fn bad_input_is_refused_with_cause_and_cure_and_the_agent_is_not_asked() {
    let large = format!("{{{}", " ".repeat(MAX_REQUEST));
    for (env, stdin, code) in [
        (vec![], "{}", 4),
        (with(&[("CNI_COMMAND", "PLAY")]), "{}", 4),
        (with(&[("CNI_IFNAME", "a/b")]), "{}", 4),
        (with(&[("CNI_NETNS", "")]), "{}", 4),
        (with(&[]), "", 6),
        (with(&[]), "{\"cniVersion\":", 6),
        (with(&[]), "[]", 7),
        (with(&[]), r#"{"cniVersion":"1.1.0"}"#, 7),
        (with(&[]), r#"{"cniVersion":"0.2.0","name":"weft"}"#, 1),
        (with(&[]), r#"{"cniVersion":"1.1.0","name":"weft","ipam":{"type":"host-local"}}"#, 2),
        (with(&[]), large.as_str(), 7),
        (with(&[("CNI_COMMAND", "DEL")]), "{\"cniVersion\":", 6),
    ] {
        let agent = Agent::that_adds();
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
    let outcome = run(&|name| lookup(&ADD, name), &mut Broken, &Agent::absent());
    assert_eq!(document(&outcome)["code"], 5);
    assert!(document(&outcome)["msg"].as_str().unwrap().contains("the pipe is gone"));
}

proptest! {
    #[test]
    fn whatever_comes_in_what_goes_out_is_json_and_an_exit_code_that_fits(
        env in any_env(), stdin in any_stdin(), answer in any_answer(),
    ) {
        let agent = Agent::that(move |_| answer.clone());
        let outcome = run(&|name| env.get(name).cloned(), &mut stdin.as_slice(), &agent);
        let command = env.get("CNI_COMMAND").map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
        match outcome.code {
            0 if command == "DEL" => prop_assert_eq!(outcome.stdout.as_str(), ""),
            0 => {
                let cni_version = &document(&outcome)["cniVersion"];
                prop_assert!(Version::ALL.iter().any(|v| cni_version == v.as_str()));
                prop_assert!(outcome.stderr.is_empty());
            }
            1 => {
                let error = document(&outcome);
                prop_assert!(error["cniVersion"].is_string() && error["code"].is_u64() && error["msg"].is_string());
                prop_assert!(!outcome.stderr.is_empty() && !outcome.stderr.contains('\n'));
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

fn any_answer() -> impl Strategy<Value = Result<Response, CniError>> {
    let error = (any::<u32>(), ".{0,20}", ".{0,20}").prop_map(|(code, msg, details)| CniError {
        code: ErrorCode(code),
        msg,
        details,
    });
    prop_oneof![
        Just(Ok(Response::Done(Some(newest())))),
        Just(Ok(Response::Done(None))),
        error.clone().prop_map(|e| Ok(Response::Failed(e))),
        error.prop_map(Err),
    ]
}

type Answer = dyn Fn(&Request) -> Result<Response, CniError>;

/// A stand-in for the agent that remembers what it was asked.
struct Agent {
    answer: Box<Answer>,
    calls: RefCell<Vec<(PathBuf, Request)>>,
    may_be_asked: Cell<bool>,
}

impl Agent {
    fn that(answer: impl Fn(&Request) -> Result<Response, CniError> + 'static) -> Self {
        Self { answer: Box::new(answer), calls: RefCell::default(), may_be_asked: Cell::new(true) }
    }
    fn that_adds() -> Self {
        Self::that(|_| Ok(Response::Done(Some(newest()))))
    }
    fn absent() -> Self {
        let agent = Self::that_adds();
        agent.may_be_asked.set(false);
        agent
    }
    fn run(&self, env: &[(&str, &str)], config: &Value) -> Outcome {
        self.run_text(env, &config.to_string())
    }
    fn run_text(&self, env: &[(&str, &str)], stdin: &str) -> Outcome {
        run(&|name| lookup(env, name), &mut stdin.as_bytes(), self)
    }
}

impl Transport for Agent {
    fn call(&self, socket: &Path, request: &Request) -> Result<Response, CniError> {
        assert!(self.may_be_asked.get(), "asked the agent for {request:?}");
        self.calls.borrow_mut().push((socket.to_owned(), request.clone()));
        (self.answer)(request)
    }
}

fn lookup(env: &[(&str, &str)], name: &str) -> Option<OsString> {
    env.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value))
}

/// The variables of [`ADD`], with others in front.
fn with(over: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    [over, &ADD].concat()
}

fn config(version: Version) -> Value {
    json!({"cniVersion": version.as_str(), "name": "weft", "type": "weft-cni"})
}

fn golden(version: Version) -> Value {
    let path = format!("{}/tests/golden/add-{version}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn newest() -> AddResult {
    serde_json::from_value(golden(Version::LATEST)).unwrap()
}

fn document(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("standard output is not JSON ({e}): {outcome:?}"))
}
