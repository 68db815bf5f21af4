//! DEL while no agent runs: what is done in its place, in which order, and what becomes of each failure.
mod stand_ins;

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
};

use cni_plugin::{
    client::{CallError, Transport, Unanswered},
    delegate::{Ended, Plugins},
    device::Devices,
    protocol::{Request, Response, Verb},
    run::{Edges, Outcome, run},
    spec::{CniError, ErrorCode, Version},
    tombstone::{Tombstone, Tombstones},
};
use serde_json::{Value, json};
use stand_ins::{config, document, golden, lookup, newest, with};

#[test]
fn the_device_goes_a_tombstone_stays_and_the_socket_is_tried_once_more() {
    for unanswered in [Unanswered::Absent, Unanswered::HungUp] {
        let world = World::answering([down(unanswered), down(Unanswered::Absent)]);
        assert_eq!(world.del(&config(Version::LATEST)).code, 0);
        assert_eq!(
            world.story(),
            ["ask in 2", "leave c1 eth0 in /run/weft/tombstones", "remove eth0 in /run/netns/blue", "ask in 2"]
        );
    }
}

#[test]
fn the_tombstone_lies_beside_the_socket_of_the_configuration() {
    let world = World::answering([down(Unanswered::Absent), down(Unanswered::Absent)]);
    let mut conf = config(Version::LATEST);
    conf["agentSocket"] = "/srv/other/x.sock".into();
    assert_eq!(world.del(&conf).code, 0);
    assert!(world.story().contains(&"leave c1 eth0 in /srv/other/tombstones".to_owned()));
}

#[test]
fn an_agent_that_hangs_is_not_waited_for_twice() {
    let world = World::answering([down(Unanswered::Silent)]);
    assert_eq!(world.del(&config(Version::LATEST)).code, 0);
    assert_eq!(world.story().len(), 3);
}

#[test]
fn an_agent_that_has_started_meanwhile_does_it_itself() {
    let world = World::answering([down(Unanswered::Absent), Ok(Response::Done(None))]);
    assert_eq!(world.del(&config(Version::LATEST)).code, 0);
    assert_eq!(world.story().last().unwrap(), "take c1 eth0 in /run/weft/tombstones");
    let refusal = CniError::new(ErrorCode::IO_FAILURE, "disk full");
    let world = World::answering([down(Unanswered::Absent), Ok(Response::Failed(refusal))]);
    assert_eq!(document(&world.del(&config(Version::LATEST)))["msg"], "disk full");
}

#[test]
fn an_agent_of_the_former_release_that_has_started_meanwhile_is_asked_in_its_protocol() {
    let skew = || Ok(Response::Failed(CniError::new(ErrorCode::VERSION_SKEW, "protocol 2")));
    let world = World::answering([down(Unanswered::Absent), skew(), Ok(Response::Done(None))]);
    assert_eq!(world.del(&config(Version::LATEST)).code, 0);
    assert_eq!(world.story()[3..], ["ask in 2", "ask in 1", "take c1 eth0 in /run/weft/tombstones"]);
}

#[test]
fn what_is_no_sign_of_an_absent_agent_is_an_error_and_changes_nothing() {
    for unanswered in [Unanswered::NotSent, Unanswered::Unreadable] {
        let world = World::answering([down(unanswered)]);
        assert_eq!(document(&world.del(&config(Version::LATEST)))["msg"], "weft-agent is away");
        assert_eq!(world.story(), ["ask in 2"]);
    }
}

#[test]
fn only_del_is_done_without_the_agent() {
    for (command, code) in [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)] {
        let world = World::answering([down(Unanswered::Absent)]);
        let mut conf = config(Version::LATEST);
        conf["prevResult"] = json!({"ips": [{"address": "10.0.0.5/32"}]});
        conf["cni.dev/valid-attachments"] = json!([]);
        let error = document(&world.run(command, &conf));
        assert_eq!((&error["code"], &error["msg"]), (&json!(code), &json!("weft-agent is away")), "{command}");
        assert_eq!(world.story(), ["ask in 2"], "{command}");
    }
}

#[test]
fn without_a_tombstone_it_has_failed_though_the_device_is_gone() {
    let mut world = World::answering([down(Unanswered::Absent), down(Unanswered::Absent)]);
    world.leave = Some(io::ErrorKind::StorageFull);
    let error = document(&world.del(&delegated()));
    assert_eq!(error["code"], 5);
    assert!(error["msg"].as_str().unwrap().contains("tombstone in /run/weft/tombstones"), "{error}");
    assert!(error["details"].as_str().unwrap().contains("because weft-agent is away"), "{error}");
    assert!(world.story().contains(&"remove eth0 in /run/netns/blue".to_owned()));
    assert!(!world.story().contains(&"run DEL".to_owned()));
}

#[test]
fn addresses_are_given_back_only_when_the_device_is_gone() {
    let world = World::answering([down(Unanswered::Absent), down(Unanswered::Absent)]);
    assert_eq!(world.del(&delegated()).code, 0);
    assert_eq!(world.story().last().unwrap(), "run DEL");

    let mut world = World::answering([down(Unanswered::Absent), down(Unanswered::Absent)]);
    world.remove = Some(CniError::new(ErrorCode::NOT_PERMITTED, "cannot delete the device"));
    let error = document(&world.del(&delegated()));
    assert_eq!((&error["code"], &error["msg"]), (&json!(102), &json!("cannot delete the device")));
    assert!(!world.story().contains(&"run DEL".to_owned()));
    assert!(world.story()[1].starts_with("leave "), "the tombstone must come first");
}

#[test]
fn both_failures_are_told() {
    let mut world = World::answering([down(Unanswered::Silent)]);
    world.leave = Some(io::ErrorKind::StorageFull);
    world.remove = Some(CniError::new(ErrorCode::NOT_PERMITTED, "cannot delete the device"));
    let error = document(&world.del(&config(Version::LATEST)));
    assert!(error["msg"].as_str().unwrap().contains("tombstone"), "{error}");
    assert!(error["details"].as_str().unwrap().contains("cannot delete the device"), "{error}");
}

#[test]
fn an_agent_of_the_former_release_answers_before_the_device_is_gone_so_the_plugin_sees_to_it() {
    let skew = || Ok(Response::Failed(CniError::new(ErrorCode::VERSION_SKEW, "protocol 2")));
    let world = World::answering([skew(), Ok(Response::Done(None))]);
    assert_eq!(world.del(&delegated()).code, 0);
    assert_eq!(world.story(), ["ask in 2", "remove eth0 in /run/netns/blue", "ask in 1", "run DEL"]);
    // Weft's own addresses are the agent's, who knows when they are free.
    let world = World::answering([skew(), Ok(Response::Done(None))]);
    assert_eq!(world.del(&config(Version::LATEST)).code, 0);
    assert_eq!(world.story(), ["ask in 2", "ask in 1"]);
}

#[test]
fn a_failed_ipam_plugin_gives_back_unless_the_interface_is_another_adds() {
    let unknown = || Ok(Response::Failed(CniError::new(ErrorCode::VERSION_SKEW, "weft-cni did not ask the plugin")));
    for (there, story) in [(false, &["run ADD", "run DEL"][..]), (true, &["run ADD", "ask in 2"])] {
        let mut world = World::answering([unknown()]);
        world.there = there;
        world.ipam = Err(r#"{"code":12,"msg":"no range"}"#);
        let error = document(&world.run("ADD", &delegated()));
        assert!(error["msg"].as_str().unwrap().contains("no range"), "{error}");
        assert_eq!(world.story(), story);
    }
}

#[test]
fn an_add_that_comes_twice_is_answered_though_the_ipam_plugin_refuses_it() {
    let mut world = World::answering([Ok(Response::Done(Some(newest())))]);
    world.there = true;
    world.ipam = Err(r#"{"code":999,"msg":"duplicate allocation is not allowed"}"#);
    let outcome = world.run("ADD", &delegated());
    assert_eq!(document(&outcome), golden("add", Version::LATEST));
    assert_eq!(world.story(), ["run ADD", "ask in 2"]);
}

#[test]
fn an_add_that_comes_twice_and_fails_leaves_the_addresses_of_the_first() {
    let refusal = || Ok(Response::Failed(CniError::new(ErrorCode::TRY_AGAIN_LATER, "not ready").with_details("wait")));
    for (answer, there, story) in [
        (refusal(), true, &["run ADD", "ask in 2"][..]),
        (down(Unanswered::Absent), true, &["run ADD", "ask in 2"]),
        (refusal(), false, &["run ADD", "ask in 2", "run DEL"]),
        (down(Unanswered::Absent), false, &["run ADD", "ask in 2", "run DEL"]),
    ] {
        let mut world = World::answering([answer]);
        world.there = there;
        world.ipam = Ok(r#"{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.5/24"}]}"#);
        let error = document(&world.run("ADD", &delegated()));
        assert_eq!(error["code"], 11);
        assert_eq!(error["details"].as_str().unwrap().contains("until DEL"), there, "{error}");
        assert_eq!(world.story(), story);
    }
}

/// What the plugin does, in order.
struct World {
    story: RefCell<Vec<String>>,
    answers: RefCell<VecDeque<Result<Response, CallError>>>,
    leave: Option<io::ErrorKind>,
    remove: Option<CniError>,
    there: bool,
    /// What the IPAM plugin says to ADD.
    ipam: Result<&'static str, &'static str>,
}

impl World {
    fn answering<const N: usize>(answers: [Result<Response, CallError>; N]) -> Self {
        let (story, answers) = (RefCell::default(), RefCell::new(answers.into()));
        Self { story, answers, leave: None, remove: None, there: false, ipam: Ok("") }
    }
    fn del(&self, conf: &Value) -> Outcome {
        self.run("DEL", conf)
    }
    fn run(&self, command: &str, conf: &Value) -> Outcome {
        let directory = tempfile::tempdir().unwrap();
        // Any file that can be executed; it is not.
        std::os::unix::fs::symlink("/bin/sh", directory.path().join("fake-ipam")).unwrap();
        let env = with(&[("CNI_COMMAND", command), ("CNI_PATH", directory.path().to_str().unwrap())]);
        let edges = Edges { agent: self, plugins: self, devices: self, tombstones: self };
        run(&|name| lookup(&env, name), &mut conf.to_string().as_bytes(), &edges)
    }
    fn tell(&self, what: String) {
        self.story.borrow_mut().push(what);
    }
    fn story(&self) -> Vec<String> {
        self.story.borrow().clone()
    }
}

impl Transport for World {
    fn call(&self, _: &Path, request: &Request) -> Result<Response, CallError> {
        self.tell(format!("ask in {}", request.protocol));
        self.answers.borrow_mut().pop_front().expect("a call too many")
    }
}

impl Plugins for World {
    fn run(&self, _: &Path, verb: Verb, _: &[u8]) -> Result<Ended, CniError> {
        self.tell(format!("run {}", verb.as_str()));
        let said = if verb == Verb::Add { self.ipam } else { Ok("") };
        let stdout = said.unwrap_or_else(|error| error).into();
        Ok(Ended { success: said.is_ok(), how: "exit status: 1".into(), stdout })
    }
}

impl Devices for World {
    fn remove(&self, netns: &str, ifname: &str) -> Result<(), CniError> {
        self.tell(format!("remove {ifname} in {netns}"));
        self.remove.clone().map_or(Ok(()), Err)
    }
    fn has_ours(&self, _: &str, _: &str) -> Result<bool, CniError> {
        Ok(self.there)
    }
}

impl Tombstones for World {
    fn leave(&self, directory: &Path, tombstone: &Tombstone) -> io::Result<()> {
        self.tell(format!("leave {}", shown(directory, tombstone)));
        self.leave.map_or(Ok(()), |kind| Err(kind.into()))
    }
    fn take(&self, directory: &Path, tombstone: &Tombstone) -> io::Result<bool> {
        self.tell(format!("take {}", shown(directory, tombstone)));
        Ok(true)
    }
}

fn shown(directory: &Path, Tombstone { container_id, ifname }: &Tombstone) -> String {
    format!("{container_id} {ifname} in {}", PathBuf::from(directory).display())
}

fn down(unanswered: Unanswered) -> Result<Response, CallError> {
    let error = CniError::new(ErrorCode::TRY_AGAIN_LATER, "weft-agent is away").with_details("start it");
    Err(CallError { unanswered, error })
}

fn delegated() -> Value {
    let mut conf = config(Version::LATEST);
    conf["ipam"] = json!({"type": "fake-ipam"});
    conf
}
