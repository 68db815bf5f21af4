//! What the plugin reads: its input, its environment, and the answers of agent and IPAM plugin.
use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
};

use cni_plugin::{
    client::{CallError, Unanswered},
    protocol::{MAX_REQUEST, Response, Verb},
    spec::{AddResult, Version},
};
use serde_json::json;

use crate::world::{World, document};

const VERBS: [&str; 6] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];

/// What a runtime sets. In /usr/bin there is a program for `ipam.type`; it is not executed.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/blue"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web"),
    ("CNI_PATH", "/usr/bin"),
];

/// The whole input is the configuration; every verb gets it.
pub fn config(input: &[u8]) {
    // Larger ones are refused for their size alone, and requests about them do not fit.
    if input.len() > MAX_REQUEST / 2 {
        return;
    }
    for verb in VERBS {
        let world = World::that_serves();
        let outcome = world.run(&environment_of(verb), input);
        world.check_refusal(&outcome);
        if outcome.code == 0 && verb == "ADD" {
            let printed = document(&outcome);
            let version = printed["cniVersion"].as_str().and_then(|version| version.parse().ok());
            AddResult::from_plugin(&printed, version.unwrap_or_default()).expect("a result that plugins can read");
        }
    }
}

/// `NAME=VALUE` with zero bytes between, as the kernel keeps an environment.
pub fn environment(input: &[u8]) {
    let given = |name: &str| {
        input.split(|b| *b == 0).find_map(|pair| {
            let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(OsStr::from_bytes(value).to_owned())
        })
    };
    let stdin = json!({"cniVersion": "1.1.0", "name": "weft", "cni.dev/valid-attachments": [],
        "prevResult": {"interfaces": [{"name": "net0"}]}});
    let world = World::that_serves();
    let outcome = world.run(&given, stdin.to_string().as_bytes());
    world.check_refusal(&outcome);
}

/// The first byte says whether the IPAM plugin succeeds; the rest is what it prints.
pub fn ipam(input: &[u8]) {
    let Some((first, stdout)) = input.split_first() else { return };
    let mut world = World::that_serves();
    world.ipam.success = first & 1 == 0;
    world.ipam.stdout = stdout.to_vec();
    // The name of any program.
    let stdin = json!({"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", "ipam": {"type": "env"}});
    let outcome = world.run(&environment_of("ADD"), stdin.to_string().as_bytes());
    assert!(world.executed.borrow().starts_with(&[Verb::Add]), "{outcome:?}");
    if outcome.code == 0 {
        assert_eq!(*world.asked.borrow(), [Verb::Add]);
    } else {
        // A plugin may fail with few words, but they are passed on; and what it took is given back.
        assert_eq!(*world.asked.borrow(), []);
        assert_eq!(*world.executed.borrow(), [Verb::Add, Verb::Del]);
        assert!(document(&outcome)["msg"].as_str().is_some_and(|msg| msg.contains("env")), "{outcome:?}");
    }
}

/// The whole input is the answer.
pub fn answer(input: &[u8]) {
    let decoded = Response::decode(input);
    if let Ok(response) = &decoded {
        assert_eq!(Response::decode(&response.encode()).as_ref(), Ok(response));
    }
    for version in Version::ALL {
        let decoded = decoded.clone().map_err(|error| CallError { unanswered: Unanswered::Unreadable, error });
        let mut world = World::that_serves();
        world.answer = Box::new(move |_| decoded.clone());
        let stdin = json!({"cniVersion": version, "name": "weft"}).to_string();
        let outcome = world.run(&environment_of("ADD"), stdin.as_bytes());
        assert_eq!(document(&outcome)["cniVersion"], version.as_str());
    }
}

fn environment_of(verb: &'static str) -> impl Fn(&str) -> Option<OsString> {
    move |name| {
        let value = if name == "CNI_COMMAND" {
            Some(verb)
        } else {
            ENVIRONMENT.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
        };
        value.map(OsString::from)
    }
}
