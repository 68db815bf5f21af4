//! Stand-ins for what the plugin talks to, and what the tests of all verbs say alike.
#![allow(dead_code, reason = "each test program takes the part that it needs")]

use std::{
    cell::{Cell, RefCell},
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use cni_plugin::{
    client::{CallError, Transport},
    delegate::{Ended, Plugins},
    device::Devices,
    protocol::{Request, Response, Verb},
    run::{Edges, Outcome, run},
    spec::{AddResult, CniError, Version},
    tombstone::{Tombstone, Tombstones},
};
use serde_json::{Value, json};

pub const ADD: [(&str, &str); 5] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/blue"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"),
];

type Answer = dyn Fn(&Request) -> Result<Response, CallError>;

/// A stand-in for the agent that remembers what it was asked.
pub struct Agent {
    answer: Box<Answer>,
    pub calls: RefCell<Vec<(PathBuf, Request)>>,
    may_be_asked: Cell<bool>,
}

impl Agent {
    pub fn that(answer: impl Fn(&Request) -> Result<Response, CallError> + 'static) -> Self {
        Self { answer: Box::new(answer), calls: RefCell::default(), may_be_asked: Cell::new(true) }
    }
    /// Adds, and says to everything else that it is done.
    pub fn that_serves() -> Self {
        Self::that(|request| Ok(Response::Done((request.command == Verb::Add).then(newest))))
    }
    pub fn that_refuses(error: CniError) -> Self {
        Self::that(move |_| Ok(Response::Failed(error.clone())))
    }
    pub fn absent() -> Self {
        let agent = Self::that_serves();
        agent.may_be_asked.set(false);
        agent
    }
    pub fn run(&self, env: &[(&str, &str)], config: &Value) -> Outcome {
        self.run_text(env, &config.to_string())
    }
    pub fn run_text(&self, env: &[(&str, &str)], stdin: &str) -> Outcome {
        self.run_with(&NoPlugins, env, stdin)
    }
    pub fn run_with(&self, plugins: &dyn Plugins, env: &[(&str, &str)], stdin: &str) -> Outcome {
        run(&|name| lookup(env, name), &mut stdin.as_bytes(), &edges(self, plugins))
    }
    /// The verbs that it was asked for.
    pub fn verbs(&self) -> Vec<Verb> {
        self.calls.borrow().iter().map(|(_, request)| request.command).collect()
    }
}

impl Transport for Agent {
    fn call(&self, socket: &Path, request: &Request) -> Result<Response, CallError> {
        assert!(self.may_be_asked.get(), "asked the agent for {request:?}");
        self.calls.borrow_mut().push((socket.to_owned(), request.clone()));
        (self.answer)(request)
    }
}

/// Where no other plugin may be run.
pub struct NoPlugins;

impl Plugins for NoPlugins {
    fn run(&self, executable: &Path, verb: Verb, _: &[u8]) -> Result<Ended, CniError> {
        panic!("ran {} for {verb:?}", executable.display())
    }
}

/// Containers that have no device.
pub struct NoDevices;

impl Devices for NoDevices {
    fn remove(&self, _: &str, _: &str) -> Result<(), CniError> {
        Ok(())
    }
    fn has_ours(&self, _: &str, _: &str) -> Result<bool, CniError> {
        Ok(false)
    }
}

/// Tombstones that nobody sees.
pub struct NoTombstones;

impl Tombstones for NoTombstones {
    fn leave(&self, _: &Path, _: &Tombstone) -> io::Result<()> {
        Ok(())
    }
    fn take(&self, _: &Path, _: &Tombstone) -> io::Result<bool> {
        Ok(false)
    }
}

/// A world in which nothing but agent and plugins is of interest.
pub fn edges<'a>(agent: &'a dyn Transport, plugins: &'a dyn Plugins) -> Edges<'a> {
    Edges { agent, plugins, devices: &NoDevices, tombstones: &NoTombstones }
}

pub fn lookup(env: &[(&str, &str)], name: &str) -> Option<OsString> {
    env.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value))
}

/// The variables of [`ADD`], with others in front.
pub fn with<'a>(over: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [over, &ADD].concat()
}

pub fn config(version: Version) -> Value {
    json!({"cniVersion": version.as_str(), "name": "weft", "type": "weft-cni"})
}

/// A file of `tests/golden`.
pub fn golden(name: &str, version: Version) -> Value {
    let path = format!("{}/tests/golden/{name}-{version}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

pub fn newest() -> AddResult {
    serde_json::from_value(golden("add", Version::LATEST)).unwrap()
}

pub fn document(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("standard output is not JSON ({e}): {outcome:?}"))
}
