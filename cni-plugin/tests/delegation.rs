//! The whole plugin with a stand-in for the IPAM plugin that its configuration names: who is asked what, in which order,
//! and what becomes of each failure.
mod stand_ins;

use std::{
    cell::RefCell,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use cni_plugin::{
    client::{CallError, Unanswered},
    delegate::{Ended, Plugins},
    protocol::{Response, Verb},
    run::Outcome,
    spec::{CniError, ErrorCode, Version},
};
use serde_json::{Value, json};
use stand_ins::{Agent, NoPlugins, config, document, golden, newest, with};

#[test]
fn add_hands_the_addresses_of_the_ipam_plugin_to_the_agent() {
    for version in Version::ALL {
        let home = Home::new();
        let ipam = Ipam::that_serves();
        let agent = Agent::that_serves();
        let conf = delegated(version);
        let outcome = home.run(&agent, &ipam, "ADD", &conf);
        assert_eq!(document(&outcome), golden("add", version), "{version}");
        assert_eq!(ipam.verbs(), [Verb::Add]);
        let execution = &ipam.calls.borrow()[0];
        assert_eq!(execution.executable, home.plugin());
        assert_eq!(execution.config, conf.to_string().into_bytes(), "not byte by byte what came in");
        let (_, request) = &agent.calls.borrow()[0];
        let given = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1"}],
            "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.9.0.2"]}});
        assert_eq!(serde_json::to_value(request.ipam.as_ref().unwrap()).unwrap(), given);
    }
}

#[test]
fn name_servers_come_from_the_configuration_or_the_agent_or_the_ipam_plugin() {
    let mut silent = newest();
    silent.dns = Default::default();
    let home = Home::new();
    let mut conf = delegated(Version::LATEST);
    let agent = Agent::that(move |_| Ok(Response::Done(Some(silent.clone()))));
    let dns = |agent: &Agent, conf: &Value| {
        document(&home.run(agent, &Ipam::that_serves(), "ADD", conf))["dns"]["nameservers"][0].clone()
    };
    assert_eq!(dns(&agent, &conf), "10.9.0.2");
    assert_eq!(dns(&Agent::that_serves(), &conf), "10.96.0.10");
    conf["dns"] = json!({"nameservers": ["10.1.1.1"]});
    assert_eq!(dns(&Agent::that_serves(), &conf), "10.1.1.1");
}

#[test]
fn what_the_agent_refuses_is_given_back() {
    let home = Home::new();
    let ipam = Ipam::that_serves();
    let agent = Agent::that_refuses(CniError::new(ErrorCode::WIRING_FAILED, "no veth").with_details("load it"));
    let error = document(&home.run(&agent, &ipam, "ADD", &delegated(Version::LATEST)));
    assert_eq!(error, json!({"cniVersion": "1.1.0", "code": 104, "msg": "no veth", "details": "load it"}));
    assert_eq!(ipam.verbs(), [Verb::Add, Verb::Del]);
}

#[test]
fn a_failing_undo_is_told_beside_the_first_error() {
    let home = Home::new();
    let ipam = Ipam::that(|verb| match verb {
        Verb::Add => success(GIVEN),
        _ => failure(r#"{"cniVersion":"1.0.0","code":99,"msg":"disk full"}"#),
    });
    let agent = Agent::that_refuses(CniError::new(ErrorCode::WIRING_FAILED, "no veth").with_details("load it"));
    let error = document(&home.run(&agent, &ipam, "ADD", &delegated(Version::LATEST)));
    assert_eq!((&error["code"], &error["msg"]), (&json!(104), &json!("no veth")));
    let details = error["details"].as_str().unwrap();
    assert!(details.starts_with("load it; ") && details.contains("disk full"), "{details}");
}

#[test]
fn addresses_that_the_agent_may_still_use_stay_until_del() {
    use Unanswered::{Absent, HungUp, NotSent, Silent, Unreadable};
    for (unanswered, undone) in [(Absent, true), (NotSent, true), (HungUp, false), (Silent, false), (Unreadable, false)]
    {
        let home = Home::new();
        let ipam = Ipam::that_serves();
        let error = CniError::new(ErrorCode::TRY_AGAIN_LATER, "no answer");
        let agent = Agent::that(move |_| Err(CallError { unanswered, error: error.clone() }));
        let error = document(&home.run(&agent, &ipam, "ADD", &delegated(Version::LATEST)));
        assert_eq!(ipam.verbs().contains(&Verb::Del), undone, "{unanswered:?}");
        assert_eq!(error.to_string().contains("until DEL"), !undone, "{unanswered:?}: {error}");
    }
}

#[test]
fn addresses_on_a_device_that_the_agent_could_not_remove_stay_until_del() {
    let home = Home::new();
    let ipam = Ipam::that_serves();
    let agent = Agent::that_refuses(CniError::new(ErrorCode::NOT_UNDONE, "no route").with_details("call DEL"));
    let error = document(&home.run(&agent, &ipam, "ADD", &delegated(Version::LATEST)));
    assert_eq!((&error["code"], ipam.verbs()), (&json!(106), vec![Verb::Add]));
    assert!(error["details"].as_str().unwrap().contains("until DEL"), "{error}");
}

#[test]
fn what_the_agent_could_not_collect_the_ipam_plugin_is_not_asked_to_free() {
    use Unanswered::{Absent, HungUp, Silent};
    for unanswered in [None, Some(Absent), Some(HungUp), Some(Silent)] {
        let home = Home::new();
        let ipam = Ipam::that_serves();
        let error = CniError::new(ErrorCode::TRY_AGAIN_LATER, "busy").with_details("wait");
        let agent = Agent::that(move |_| match unanswered {
            None => Ok(Response::Failed(error.clone())),
            Some(unanswered) => Err(CallError { unanswered, error: error.clone() }),
        });
        let error = document(&home.run(&agent, &ipam, "GC", &complete()));
        assert_eq!((&error["code"], &error["msg"]), (&json!(11), &json!("busy")));
        let details = error["details"].as_str().unwrap();
        assert!(details.starts_with("wait; ") && details.contains("fake-ipam was not asked"), "{error}");
        assert_eq!(ipam.verbs(), []);
    }
}

#[test]
fn the_ipam_plugins_error_is_passed_on_with_code_and_words() {
    for command in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        let home = Home::new();
        let ipam =
            Ipam::that(|_| failure(r#"{"cniVersion":"1.0.0","code":107,"msg":"no lease","details":"ask again"}"#));
        let error = document(&home.run(&Agent::that_serves(), &ipam, command, &complete()));
        let wanted = json!({"cniVersion": "1.1.0", "code": 107, "msg": "the IPAM plugin fake-ipam: no lease",
            "details": "ask again"});
        assert_eq!(error, wanted, "{command}");
    }
}

#[test]
fn an_ipam_plugin_that_gives_nothing_usable_is_named() {
    for (stdout, code, why) in [
        ("", 6, "no CNI result"),
        ("[]", 6, "no CNI result"),
        (r#"{"ips":[{"address":"x"}]}"#, 6, "\"x\""),
        (r#"{"cniVersion":"7.0.0"}"#, 6, "7.0.0"),
        (r#"{"cniVersion":"1.0.0"}"#, 7, "no address"),
    ] {
        let home = Home::new();
        let ipam = Ipam::that(move |_| success(stdout));
        let error = document(&home.run(&Agent::absent(), &ipam, "ADD", &delegated(Version::LATEST)));
        assert_eq!(error["code"], code, "{stdout}: {error}");
        let msg = error["msg"].as_str().unwrap();
        assert!(msg.contains("fake-ipam") && msg.contains(why), "{error}");
        assert!(!error["details"].as_str().unwrap().is_empty());
    }
}

#[test]
fn an_ipam_plugin_that_fails_without_an_error_document_is_named_with_what_it_said() {
    let home = Home::new();
    let ipam = Ipam::that(|_| failure("panic: oh no"));
    let error = document(&home.run(&Agent::that_serves(), &ipam, "DEL", &delegated(Version::LATEST)));
    let msg = error["msg"].as_str().unwrap();
    assert!(["fake-ipam", "DEL", "exit status: 1", "oh no"].iter().all(|part| msg.contains(part)), "{error}");
}

#[test]
fn asked_addresses_that_the_ipam_plugin_passes_over_are_an_error() {
    let home = Home::new();
    let ipam = Ipam::that_serves();
    let mut conf = delegated(Version::LATEST);
    conf["runtimeConfig"] = json!({"ips": ["10.9.0.77/24"]});
    let error = document(&home.run(&Agent::absent(), &ipam, "ADD", &conf));
    assert_eq!(error["code"], 2);
    assert!(error["msg"].as_str().unwrap().contains("10.9.0.77"), "{error}");
    assert_eq!(ipam.verbs(), [Verb::Add, Verb::Del]);
    conf["runtimeConfig"] = json!({"ips": ["10.9.0.5/24"]});
    assert_eq!(home.run(&Agent::that_serves(), &Ipam::that_serves(), "ADD", &conf).code, 0);
}

#[test]
fn del_gives_the_addresses_back_when_the_agent_is_through_and_not_before() {
    let home = Home::new();
    let ipam = Ipam::that_serves();
    let outcome = home.run(&Agent::that_serves(), &ipam, "DEL", &delegated(Version::LATEST));
    assert_eq!((outcome.code, ipam.verbs()), (0, vec![Verb::Del]));
    let ipam = Ipam::that_serves();
    let agent = Agent::that_refuses(CniError::new(ErrorCode::IO_FAILURE, "busy"));
    let outcome = home.run(&agent, &ipam, "DEL", &delegated(Version::LATEST));
    assert_eq!((outcome.code, ipam.verbs()), (1, vec![]));
}

#[test]
fn check_tells_the_agent_which_addresses_the_ipam_plugin_gave() {
    let home = Home::new();
    let ipam = Ipam::that_serves();
    let agent = Agent::that_serves();
    let mut conf = delegated(Version::V1_0_0);
    conf["prevResult"] = golden("chained", Version::V1_0_0);
    assert_eq!(home.run(&agent, &ipam, "CHECK", &conf).code, 0);
    assert_eq!(ipam.verbs(), [Verb::Check]);
    let request = agent.calls.borrow()[0].1.clone();
    let given: Vec<String> = request.ipam.unwrap().ips.iter().map(|ip| ip.address.to_string()).collect();
    // Of all addresses in the result those of eth0 in this namespace, and those of no interface in particular.
    assert_eq!(given, ["192.0.2.9/24", "198.51.100.7/32", "10.0.1.7/32", "fd00:1::7/128"]);
}

#[test]
fn where_agent_and_ipam_plugin_fail_both_are_told() {
    for command in ["CHECK", "STATUS"] {
        let home = Home::new();
        let ipam = Ipam::that(|_| failure(r#"{"code":108,"msg":"lease lost"}"#));
        let agent = Agent::that_refuses(CniError::new(ErrorCode::CHECK_FAILED, "route gone").with_details("DEL, ADD"));
        let error = document(&home.run(&agent, &ipam, command, &complete()));
        assert_eq!((&error["code"], &error["msg"]), (&json!(105), &json!("route gone")), "{command}");
        assert!(error["details"].as_str().unwrap().contains("lease lost"), "{error}");
        assert_eq!(ipam.verbs().len(), 1);
    }
}

#[test]
fn an_ipam_plugin_from_before_gc_and_status_is_none_the_worse_for_it() {
    for (command, code) in [("GC", 0), ("STATUS", 0), ("CHECK", 1)] {
        let home = Home::new();
        let ipam = Ipam::that(|_| failure(r#"{"code":4,"msg":"unknown CNI_COMMAND: GC","details":""}"#));
        assert_eq!(home.run(&Agent::that_serves(), &ipam, command, &complete()).code, code, "{command}");
    }
    let home = Home::new();
    let ipam = Ipam::that(|_| failure(r#"{"code":4,"msg":"required env variables [CNI_IFNAME] missing"}"#));
    assert_eq!(home.run(&Agent::that_serves(), &ipam, "GC", &complete()).code, 1);
}

#[test]
fn an_ipam_plugin_that_cannot_be_found_is_named_before_anything_is_changed() {
    let home = Home::new();
    let conf = |name: &str| {
        let mut conf = delegated(Version::LATEST);
        conf["ipam"]["type"] = name.into();
        conf.to_string()
    };
    fs::write(home.directory().join("plain"), "not a program").unwrap();
    fs::create_dir(home.directory().join("directory")).unwrap();
    std::os::unix::fs::symlink("/proc/self/exe", home.directory().join("myself")).unwrap();
    let path = format!("/nonexistent:{}", home.directory().display());
    for (name, path, code, wanted) in [
        ("host-local", path.as_str(), 7, "/nonexistent"),
        ("host-local", "", 4, "CNI_PATH"),
        ("host-local", ":", 4, "CNI_PATH"),
        ("plain", &path, 7, "not executable"),
        ("directory", &path, 7, "no IPAM plugin directory"),
        ("myself", &path, 7, "weft-cni itself"),
        ("../bin/x", &path, 7, "plain name"),
        ("/bin/true", &path, 7, "plain name"),
        ("..", &path, 7, "plain name"),
    ] {
        let env = with(&[("CNI_PATH", path)]);
        let error = document(&Agent::absent().run_with(&NoPlugins, &env, &conf(name)));
        assert_eq!(error["code"], code, "{name}: {error}");
        assert!(error["msg"].as_str().unwrap().contains(wanted), "{name}: {error}");
        assert!(!error["details"].as_str().unwrap().is_empty(), "{name}: {error}");
    }
}

#[test]
fn the_first_directory_that_holds_the_plugin_wins() {
    let (first, second) = (Home::new(), Home::new());
    fs::set_permissions(first.plugin(), fs::Permissions::from_mode(0o644)).unwrap();
    let path = format!("{}:{}", first.directory().display(), second.directory().display());
    let ipam = Ipam::that_serves();
    let env = with(&[("CNI_PATH", &path)]);
    let conf = delegated(Version::LATEST).to_string();
    assert_eq!(Agent::that_serves().run_with(&ipam, &env, &conf).code, 0);
    assert_eq!(ipam.calls.borrow()[0].executable, second.plugin());
}

#[test]
fn an_agent_of_the_former_release_cannot_take_the_addresses_of_a_plugin() {
    let home = Home::new();
    let ipam = Ipam::that_serves();
    let agent = Agent::that_refuses(CniError::new(ErrorCode::VERSION_SKEW, "the plugin speaks protocol 2"));
    let error = document(&home.run(&agent, &ipam, "ADD", &delegated(Version::LATEST)));
    assert_eq!((&error["code"], agent.verbs().len()), (&json!(101), 1));
    assert_eq!(ipam.verbs(), [Verb::Add, Verb::Del]);
}

const GIVEN: &str = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.5/24","gateway":"10.9.0.1"}],
    "routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.9.0.2"]}}"#;

type Behaviour = dyn Fn(Verb) -> Result<Ended, CniError>;

/// A stand-in for the IPAM plugin that remembers what it was asked.
struct Ipam {
    behaviour: Box<Behaviour>,
    calls: RefCell<Vec<Execution>>,
}

/// What was executed, and how.
struct Execution {
    verb: Verb,
    executable: PathBuf,
    config: Vec<u8>,
}

impl Ipam {
    fn that(behaviour: impl Fn(Verb) -> Result<Ended, CniError> + 'static) -> Self {
        Self { behaviour: Box::new(behaviour), calls: RefCell::default() }
    }
    fn that_serves() -> Self {
        Self::that(|verb| success(if verb == Verb::Add { GIVEN } else { "" }))
    }
    fn verbs(&self) -> Vec<Verb> {
        self.calls.borrow().iter().map(|execution| execution.verb).collect()
    }
}

impl Plugins for Ipam {
    fn run(&self, executable: &Path, verb: Verb, config: &[u8]) -> Result<Ended, CniError> {
        self.calls.borrow_mut().push(Execution { verb, executable: executable.to_owned(), config: config.to_vec() });
        (self.behaviour)(verb)
    }
}

fn success(stdout: &str) -> Result<Ended, CniError> {
    Ok(Ended { success: true, how: "exit status: 0".into(), stdout: stdout.as_bytes().to_vec() })
}

fn failure(stdout: &str) -> Result<Ended, CniError> {
    Ok(Ended { success: false, how: "exit status: 1".into(), stdout: stdout.as_bytes().to_vec() })
}

/// A directory of plugins with one that can be found.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        fs::write(home.plugin(), "").unwrap();
        fs::set_permissions(home.plugin(), fs::Permissions::from_mode(0o755)).unwrap();
        home
    }
    fn directory(&self) -> &Path {
        self.0.path()
    }
    fn plugin(&self) -> PathBuf {
        self.directory().join("fake-ipam")
    }
    fn run(&self, agent: &Agent, ipam: &Ipam, command: &str, conf: &Value) -> Outcome {
        let path = self.directory().to_str().unwrap();
        agent.run_with(ipam, &with(&[("CNI_COMMAND", command), ("CNI_PATH", path)]), &conf.to_string())
    }
}

fn delegated(version: Version) -> Value {
    let mut conf = config(version);
    conf["ipam"] = json!({"type": "fake-ipam", "subnet": "10.9.0.0/24"});
    conf
}

/// A configuration that every verb accepts.
fn complete() -> Value {
    let mut conf = delegated(Version::LATEST);
    conf["cni.dev/valid-attachments"] = json!([]);
    let mut previous = golden("add", Version::LATEST);
    previous["interfaces"][1]["name"] = "net0".into();
    conf["prevResult"] = previous;
    conf
}
