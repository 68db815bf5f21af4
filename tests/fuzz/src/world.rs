//! A world in which everything succeeds: whatever fails in it has failed because of the input.
use std::{cell::RefCell, ffi::OsString, io, path::Path};

use cni_plugin::{
    client::{CallError, Transport},
    delegate::{Ended, Plugins},
    device::Devices,
    protocol::{Request, Response, Verb},
    run::{Edges, Outcome, run},
    spec::{AddResult, CniError, Version},
    tombstone::{Tombstone, Tombstones},
};
use serde_json::Value;

/// An agent.
pub type Answer = dyn Fn(&Request) -> Result<Response, CallError>;

/// Stand-ins for agent, IPAM plugin and kernel that remember what they were asked for.
pub struct World {
    /// What the agent answers.
    pub answer: Box<Answer>,
    /// What the IPAM plugin does at ADD.
    pub ipam: Ended,
    /// What was asked of the agent.
    pub asked: RefCell<Vec<Verb>>,
    /// What the IPAM plugin was executed for.
    pub executed: RefCell<Vec<Verb>>,
}

impl World {
    /// Everybody serves.
    pub fn that_serves() -> Self {
        let given = br#"{"ips":[{"address":"10.9.0.5/24","gateway":"10.9.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]}"#;
        Self {
            answer: Box::new(|request| Ok(Response::Done((request.command == Verb::Add).then(made)))),
            ipam: Ended { success: true, how: "exit status: 0".to_owned(), stdout: given.to_vec() },
            asked: RefCell::default(),
            executed: RefCell::default(),
        }
    }

    /// The plugin in this world. Panics where its outcome is not one that a runtime can read.
    pub fn run(&self, env: &dyn Fn(&str) -> Option<OsString>, stdin: &[u8]) -> Outcome {
        let edges = Edges { agent: self, plugins: self, devices: self, tombstones: self };
        let outcome = run(env, &mut &*stdin, &edges);
        let command = env("CNI_COMMAND");
        match outcome.code {
            0 => {
                assert_eq!(outcome.stderr, "");
                let has_result = command.is_some_and(|command| command == "ADD" || command == "VERSION");
                assert_eq!(outcome.stdout.is_empty(), !has_result, "{outcome:?}");
                if has_result {
                    check_version(&document(&outcome));
                }
            }
            1 => {
                let error = document(&outcome);
                check_version(&error);
                assert!(error["code"].is_u64() && error["msg"].is_string(), "{error}");
                assert!(!outcome.stderr.is_empty());
                // Who runs it by hand gets more than a line.
                assert!(command.is_none() || !outcome.stderr.contains(char::is_control), "{outcome:?}");
            }
            code => panic!("exit code {code}"),
        }
        outcome
    }

    /// For a world in which everything succeeds: an error is the input's, says cause and cure, and left nothing behind.
    pub fn check_refusal(&self, outcome: &Outcome) {
        if outcome.code == 0 {
            return;
        }
        let error = document(outcome);
        for part in ["msg", "details"] {
            let length = error[part].as_str().unwrap_or_default().len();
            assert!((1..2000).contains(&length), "{part} of {length} bytes: {error}");
        }
        // All verbs but ADD do what can be done: that the IPAM plugin cannot be found comes last.
        let about_ipam =
            self.asked.borrow().as_slice() != [Verb::Add] && error.to_string().to_lowercase().contains("ipam");
        assert!(about_ipam || self.asked.borrow().is_empty(), "the agent was asked: {error}");
        // What the IPAM plugin gave is given back.
        assert!(matches!(self.executed.borrow().as_slice(), [] | [Verb::Add, Verb::Del]), "{error}");
    }
}

/// What an agent makes.
fn made() -> AddResult {
    let made = serde_json::json!({
        "interfaces": [{"name": "weft7", "mtu": 1500}, {"name": "eth0", "sandbox": "/run/netns/blue", "mtu": 1500}],
        "ips": [{"address": "10.0.1.7/32", "gateway": "169.254.1.1", "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1450}],
    });
    AddResult::from_plugin(&made, Version::LATEST).expect("a result")
}

/// What the plugin printed.
pub fn document(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("standard output is not JSON ({e}): {outcome:?}"))
}

fn check_version(document: &Value) {
    let version = document["cniVersion"].as_str().unwrap_or_default();
    assert!(version.parse::<Version>().is_ok(), "no version of ours: {document}");
}

/// What is sent is what the agent reads; but for fractions, whose last digit may change on the way, and which nobody reads.
pub fn check_wire(request: &Request) {
    let wire = request.encode().expect("a request within the limit");
    let mut read = Request::decode(&wire).expect("a request that the agent reads");
    let mut sent = request.clone();
    without_fractions(&mut read.config);
    without_fractions(&mut sent.config);
    assert_eq!(read, sent);
}

fn without_fractions(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => *value = Value::Null,
        Value::Array(items) => items.iter_mut().for_each(without_fractions),
        Value::Object(members) => members.values_mut().for_each(without_fractions),
        _ => {}
    }
}

impl Transport for World {
    fn call(&self, _: &Path, request: &Request) -> Result<Response, CallError> {
        self.asked.borrow_mut().push(request.command);
        check_wire(request);
        (self.answer)(request)
    }
}

impl Plugins for World {
    fn run(&self, executable: &Path, verb: Verb, _: &[u8]) -> Result<Ended, CniError> {
        assert!(executable.is_file(), "{}", executable.display());
        self.executed.borrow_mut().push(verb);
        Ok(if verb == Verb::Add { self.ipam.clone() } else { Ended { success: true, ..self.ipam.clone() } })
    }
}

impl Devices for World {
    fn remove(&self, _: &str, _: &str) -> Result<(), CniError> {
        Ok(())
    }
    fn has_ours(&self, _: &str, _: &str) -> Result<bool, CniError> {
        Ok(false)
    }
}

impl Tombstones for World {
    fn leave(&self, _: &Path, _: &Tombstone) -> io::Result<()> {
        Ok(())
    }
    fn take(&self, _: &Path, _: &Tombstone) -> io::Result<bool> {
        Ok(false)
    }
}
