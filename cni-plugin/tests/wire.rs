//! What goes over the agent's socket and what a runtime gets to read, verb by verb and version by version, against the files
//! of `tests/golden`. A change of one of them is a change of what plugin and agent of two releases say to each other, or of
//! what runtimes read.
mod stand_ins;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use cni_plugin::{
    client::CallError,
    delegate::{Ended, Plugins},
    protocol::{Request, Response, Verb},
    spec::{CniError, ErrorCode, Version},
};
use serde_json::{Value, json};
use stand_ins::{Agent, config, document, golden, with};

#[test]
fn what_each_verb_says_to_the_agent() {
    let version = Version::LATEST;
    let mut listed = config(version);
    listed["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    let mut checked = config(version);
    checked["prevResult"] = json!({"interfaces": [{"name": "eth0", "sandbox": "/run/netns/blue"}],
        "ips": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1", "interface": 0}], "routes": [{"dst": "0.0.0.0/0"}]});
    let mut check_delegated = checked.clone();
    check_delegated["ipam"] = json!({"type": "fake-ipam"});
    let mut delegated = config(version);
    delegated["ipam"] = json!({"type": "fake-ipam"});
    for (name, command, conf) in [
        ("add", "ADD", config(version)),
        ("add-delegated", "ADD", delegated),
        ("del", "DEL", config(version)),
        ("check", "CHECK", checked),
        ("check-delegated", "CHECK", check_delegated),
        ("gc", "GC", listed),
        ("status", "STATUS", config(version)),
    ] {
        let (said, _) = call(Agent::that_serves(), command, &conf);
        assert_eq!(said, [wire(name)], "{name}");
        assert!(Request::decode(wire(name).to_string().as_bytes()).is_ok(), "{name}");
    }
}

#[test]
fn what_is_said_to_an_agent_of_the_former_release() {
    for (name, command) in [("add", "ADD"), ("del", "DEL")] {
        let (said, printed) = call(Agent::that(former_release), command, &config(Version::LATEST));
        assert_eq!(said, [wire(name), wire(&format!("{name}-protocol-1"))], "{name}");
        assert_eq!(printed.0, 0);
    }
}

#[test]
fn what_a_runtime_reads_of_each_verb_in_each_version() {
    for version in Version::ALL {
        let mut conf = config(version);
        conf["prevResult"] = golden("previous", version);
        conf["cni.dev/valid-attachments"] = json!([]);
        for (command, since) in
            [("DEL", Version::V0_3_0), ("CHECK", Version::V0_4_0), ("GC", Version::V1_1_0), ("STATUS", Version::V1_1_0)]
        {
            let (_, (code, printed)) = call(Agent::that_serves(), command, &conf);
            if version >= since {
                assert_eq!((code, printed.as_str()), (0, ""), "{command} {version}");
            } else {
                assert_eq!(
                    (code, parsed(&printed)),
                    (1, golden(&format!("too-old-{}", command.to_lowercase()), version))
                );
            }
        }
        let (_, (code, printed)) = call(Agent::absent(), "VERSION", &conf);
        assert_eq!((code, parsed(&printed)), (0, golden("version", version)));
        let error = CniError::new(ErrorCode::ADDRESSES_EXHAUSTED, "254 of 254 addresses are in use");
        let refusing = Agent::that_refuses(error.with_details("give the node a further pod CIDR"));
        let (_, (code, printed)) = call(refusing, "ADD", &config(version));
        assert_eq!((code, parsed(&printed)), (1, golden("refused", version)));
    }
}

/// Everything that went over the socket, the exit code and what was printed.
fn call(agent: Agent, command: &str, conf: &Value) -> (Vec<Value>, (u8, String)) {
    let directory = tempfile::tempdir().unwrap();
    let plugin = directory.path().join("fake-ipam");
    fs::write(&plugin, "").unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    let container = with(&[("CNI_COMMAND", command), ("CNI_PATH", directory.path().to_str().unwrap())]);
    // What is about a whole network comes without a container.
    let whole = [("CNI_COMMAND", command), ("CNI_PATH", directory.path().to_str().unwrap())];
    let env = if matches!(command, "GC" | "STATUS" | "VERSION") { whole.to_vec() } else { container };
    let outcome = agent.run_with(&Ipam, &env, &conf.to_string());
    let said = agent.calls.into_inner().into_iter().map(|(_, request)| parsed_bytes(&request.encode().unwrap()));
    if outcome.code == 1 {
        document(&outcome);
    }
    (said.collect(), (outcome.code, outcome.stdout))
}

fn former_release(request: &Request) -> Result<Response, CallError> {
    let error = CniError::new(ErrorCode::VERSION_SKEW, "the plugin speaks protocol 2, the agent 1");
    let result = (request.command == Verb::Add).then(stand_ins::newest);
    Ok(if request.protocol == 1 { Response::Done(result) } else { Response::Failed(error) })
}

/// Gives one address.
struct Ipam;

impl Plugins for Ipam {
    fn run(&self, _: &Path, _: Verb, _: &[u8]) -> Result<Ended, CniError> {
        let stdout = br#"{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.5/24","gateway":"10.9.0.1"}],
            "routes":[{"dst":"0.0.0.0/0"}]}"#;
        Ok(Ended { success: true, how: "exit status: 0".into(), stdout: stdout.to_vec() })
    }
}

fn wire(name: &str) -> Value {
    let path = format!("{}/tests/golden/wire/{name}.json", env!("CARGO_MANIFEST_DIR"));
    parsed_bytes(&fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}")))
}

fn parsed(text: &str) -> Value {
    parsed_bytes(text.as_bytes())
}

fn parsed_bytes(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}
