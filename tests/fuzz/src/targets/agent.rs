//! What the agent reads: its socket and the files that it finds.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use cni_agent::{
    endpoint::record::RecordStore,
    policy::{Engine, Image, objects, store::Event},
    sources::manifests::parse,
    tables::{Phase, Pod},
};
use cni_plugin::{
    protocol::{MAX_REQUEST, Request, Response},
    spec::{NetConf, Version, validate_container_id, validate_ifname, validate_netns},
    tombstone,
};

use serde_json::Value;

use crate::world::check_wire;

/// The whole input is the request.
pub fn request(input: &[u8]) {
    if input.len() > MAX_REQUEST {
        return;
    }
    let request = match Request::decode(input) {
        Ok(request) => request,
        Err(error) => {
            assert!(!error.msg.is_empty() && !error.details.is_empty(), "no cause or cure: {error:?}");
            assert!(error.to_string().len() < 2000, "an error of {} bytes", error.to_string().len());
            assert_eq!(Response::decode(&Response::Failed(error.clone()).encode()), Ok(Response::Failed(error)));
            return;
        }
    };
    if request.command.is_about_an_attachment() {
        validate_container_id(&request.container_id).expect("a checked container");
        validate_ifname(&request.ifname).expect("a checked interface");
        assert!(request.netns.is_empty() || validate_netns(&request.netns).is_ok());
    }
    if request.encode().is_ok() {
        check_wire(&request);
    }
    // The agent's own reading of the configuration: whatever stands there, an answer.
    let Ok(conf) = NetConf::from_json(&request.config) else { return };
    let refused = conf.refuse_unserved();
    let (mac, ips) = (conf.requested_mac(), conf.requested_ips());
    assert!(refused.is_err() || (mac.is_ok() && ips.is_ok()), "{mac:?} {ips:?}");
    if let Ok(ips) = ips {
        assert!(ips.len() <= 2);
    }
    let _attachments = conf.valid_attachments();
    if let Ok(Some(previous)) = conf.previous() {
        for version in Version::ALL {
            assert_eq!(previous.in_version(version).in_version(Version::LATEST).ips, previous.ips);
        }
    }
}

/// A file with this text, under a name that a tombstone has.
pub fn tombstone(input: &[u8]) {
    let directory = directory();
    fs::write(directory.path().join("c1:eth0.json"), input).expect("room for a file");
    let (found, bad) = tombstone::list(directory.path()).expect("a directory");
    assert_eq!(found.len() + bad.len(), 1);
    for tombstone in found {
        assert_eq!((tombstone.container_id.as_str(), tombstone.ifname.as_str()), ("c1", "eth0"));
        assert!(tombstone.take(directory.path()).expect("a file"));
    }
}

/// A file with this text, under a name that a record has.
pub fn record(input: &[u8]) {
    let directory = directory();
    fs::write(directory.path().join("c1:eth0.json"), input).expect("room for a file");
    let store = RecordStore::open(directory.path(), "this boot").expect("a directory");
    let loaded = store.load_all().expect("a directory");
    assert_eq!(loaded.records.len() + loaded.stale.len() + loaded.corrupt.len(), 1);
    for corrupt in &loaded.corrupt {
        assert!((1..2000).contains(&corrupt.reason.len()) && corrupt.path.is_file(), "{corrupt:?}");
    }
    for record in loaded.records.iter().chain(&loaded.stale) {
        assert_eq!((record.container_id.as_str(), record.ifname.as_str()), ("c1", "eth0"));
        store.save(record).expect("room for a file");
        assert_eq!(store.load_all().expect("a directory").records, std::slice::from_ref(record));
    }
}

/// The text of a manifest, of YAML or of JSON.
pub fn manifest(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match parse::objects(text) {
        Ok(parsed) => {
            for object in parsed.objects {
                assert!(!object.row().to_string().is_empty());
            }
            for (_, _, broken) in parsed.broken {
                assert!(!broken.to_string().is_empty());
            }
        }
        Err(error) => {
            let text = error.to_string();
            assert!((1..2000).contains(&text.len()), "an error of {} bytes", text.len());
        }
    }
}

/// Policies as JSON, each taken for one of both kinds: what is one is compiled, and goes again without leaving anything.
pub fn policy(input: &[u8]) {
    let mut engine = Engine::new("node");
    let mut image = Image::default();
    for address in ["10.0.0.1", "fd00::1"] {
        let pod = Pod {
            namespace: "default".into(),
            name: address.replace([':', '.'], "-"),
            node: Some("node".into()),
            labels: BTreeMap::from([("app".into(), "web".into())]),
            ips: vec![address.parse().expect("an address")],
            phase: Phase::Running,
            host_network: false,
            ports: BTreeSet::new(),
        };
        engine.store.handle(&Event::Pod(pod.key(), Some(pod)));
    }
    let mut follow = |engine: &mut Engine| {
        engine.compile().into_iter().for_each(|c| image.apply(c));
        assert_eq!(image.len(), engine.sizes().entries);
        image.len()
    };
    let empty = follow(&mut engine);
    let mut names = Vec::new();
    for object in serde_json::Deserializer::from_slice(input).into_iter::<Value>().map_while(Result::ok) {
        for read in [objects::network_policy(object.clone()), objects::cluster_policy(object)] {
            match read {
                Ok(read) => {
                    names.push(read.policy.name.clone());
                    engine.store.handle(&Event::Policy(read.policy.name.clone(), Some(read.policy)));
                    follow(&mut engine);
                }
                Err(broken) => assert!((1..2000).contains(&broken.to_string().len()), "{broken}"),
            }
        }
    }
    names.into_iter().for_each(|name| engine.store.handle(&Event::Policy(name, None)));
    assert_eq!(follow(&mut engine), empty, "something is left");
}

fn directory() -> tempfile::TempDir {
    // In memory where the machine has such a place: a fuzzer writes many files.
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}
