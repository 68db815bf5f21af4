use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const BOOT: &str = "6f3c1d2e-0000-4000-8000-000000000001\n";
const OTHER_BOOT: &str = "6f3c1d2e-0000-4000-8000-000000000002";

#[test]
fn a_record_comes_back_as_it_was_saved() {
    let (dir, store) = store();
    let all = [record("c1", "eth0"), record("c1", "net1"), record("c2", "eth0")];
    for record in &all {
        store.save(record).unwrap();
    }
    // A restarted agent opens the same directory anew.
    let loaded = RecordStore::open(dir.path(), BOOT).unwrap().load_all().unwrap();
    assert_eq!(loaded.records, all);
    assert!(loaded.stale.is_empty() && loaded.corrupt.is_empty());
}

#[test]
fn a_record_gets_another_mtu_and_a_removed_one_does_not_come_back() {
    let (dir, store) = store();
    store.save(&record("c1", "eth0")).unwrap();
    store.set_mtu("c1", "eth0", 7, 1350).unwrap();
    store.set_mtu("c1", "eth0", 8, 1200).unwrap();
    let expected = EndpointRecord { mtu: 1350, ..record("c1", "eth0") };
    assert_eq!(store.load_all().unwrap().records, [expected], "endpoint 8 is another one");
    store.remove("c1", "eth0").unwrap();
    store.clone().set_mtu("c1", "eth0", 7, 1450).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_mtu_that_changed_while_a_pod_was_wired_is_kept_when_it_is_ready() {
    let (_dir, store) = store();
    let mut adding = EndpointRecord { state: State::Adding, ..record("c1", "eth0") };
    store.save(&adding).unwrap();
    store.set_mtu("c1", "eth0", 7, 1350).unwrap();
    adding.terms.own_table = true;
    store.finish(&adding).unwrap();
    let ready = EndpointRecord { state: State::Ready, mtu: 1350, ..adding };
    assert_eq!(store.load_all().unwrap().records, [ready]);
}

#[test]
fn the_last_state_saved_counts() {
    let (_dir, store) = store();
    let adding = EndpointRecord { state: State::Adding, ..record("c1", "eth0") };
    store.save(&adding).unwrap();
    assert_eq!(store.load_all().unwrap().records, [adding]);
    store.save(&record("c1", "eth0")).unwrap();
    assert_eq!(store.load_all().unwrap().records, [record("c1", "eth0")]);
}

#[test]
fn an_add_is_finished_by_a_few_bytes_unless_more_than_the_state_has_changed() {
    assert_eq!(ADDING.len(), READY.len());
    let (dir, store) = store();
    let path = dir.path().join("c1:eth0.json");
    let adding = EndpointRecord { state: State::Adding, ..record("c1", "eth0") };
    store.save(&adding).unwrap();
    let before = fs::metadata(&path).unwrap();
    store.finish(&adding).unwrap();
    assert_eq!(store.load_all().unwrap().records, [record("c1", "eth0")]);
    let inode = |m: &fs::Metadata| std::os::unix::fs::MetadataExt::ino(m);
    assert_eq!(inode(&before), inode(&fs::metadata(&path).unwrap()), "it is the same file");

    store.save(&adding).unwrap();
    let mut with_table = adding;
    with_table.terms.own_table = true;
    store.finish(&with_table).unwrap();
    assert_eq!(store.load_all().unwrap().records, [EndpointRecord { state: State::Ready, ..with_table }]);
}

#[test]
fn a_removed_record_is_gone_and_removing_it_again_succeeds() {
    let (_dir, store) = store();
    store.save(&record("c1", "eth0")).unwrap();
    store.save(&record("c1", "net1")).unwrap();
    store.remove("c1", "eth0").unwrap();
    store.remove("c1", "eth0").unwrap();
    assert_eq!(store.load_all().unwrap().records, [record("c1", "net1")]);
}

#[test]
fn the_file_is_what_the_documentation_says_and_readable_by_its_owner_only() {
    let (dir, store) = store();
    store.save(&record("c1", "eth0")).unwrap();
    let path = dir.path().join("c1:eth0.json");
    let file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(
        file,
        json!({"schema": 1, "bootId": BOOT.trim(), "endpoint": {
            "state": "ready", "endpointId": 7, "containerId": "c1", "ifname": "eth0", "netns": "/run/netns/c1",
            "hostIfindex": 65543, "hostDevice": "weft7", "mac": "02:00:00:00:00:07", "ipv4": "10.0.1.7",
            "ipv6": "fd00:1::7", "mtu": 1500, "pod": {"namespace": "default", "name": "web", "uid": "u-1"},
            "created": 1_700_000_000
        }})
    );
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_corrupt_record_is_set_aside_and_the_others_are_read() {
    let (dir, store) = store();
    let good = record("good", "eth0");
    store.save(&good).unwrap();
    let name_of_another = fs::read(dir.path().join("good:eth0.json")).unwrap();
    for (name, text) in [
        ("cut:eth0.json", &name_of_another[..name_of_another.len() / 2]),
        ("empty:eth0.json", b""),
        ("future:eth0.json", br#"{"schema": 2, "what": "ever"}"#),
        ("mac:eth0.json", br#"{"schema": 1, "bootId": "x", "endpoint": {"mac": "no"}}"#),
        ("moved:eth0.json", &name_of_another),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let loaded = store.load_all().unwrap();
    assert_eq!(loaded.records, [good]);
    let found: Vec<_> = loaded.corrupt.iter().map(|c| c.path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(found, ["cut", "empty", "future", "mac", "moved"].map(|name| format!("{name}:eth0.json.corrupt")));
    assert!(loaded.corrupt.iter().all(|c| c.path.exists() && !c.reason.is_empty()));
    assert!(loaded.corrupt[2].reason.contains("schema 2"), "{}", loaded.corrupt[2].reason);
    assert!(store.load_all().unwrap().corrupt.is_empty(), "reported at every start");
}

#[test]
fn records_of_another_boot_are_stale_and_stay_until_they_are_removed() {
    let (dir, before) = store();
    before.save(&record("c1", "eth0")).unwrap();
    let after = RecordStore::open(dir.path(), OTHER_BOOT).unwrap();
    let loaded = after.load_all().unwrap();
    assert_eq!((loaded.records.len(), loaded.stale.len()), (0, 1));
    for stale in after.load_all().unwrap().stale {
        after.remove(&stale.container_id, &stale.ifname).unwrap();
    }
    assert!(after.load_all().unwrap().stale.is_empty());
}

#[test]
fn what_a_killed_agent_left_half_written_is_removed_and_foreign_files_are_left_alone() {
    let (dir, store) = store();
    store.save(&record("c1", "eth0")).unwrap();
    fs::write(dir.path().join(".c1:eth0.json.tmp"), b"{\"sch").unwrap();
    fs::write(dir.path().join("README"), b"x").unwrap();
    assert_eq!(store.load_all().unwrap().records, [record("c1", "eth0")]);
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["README", "c1:eth0.json"]);
}

#[test]
fn a_record_that_cannot_be_written_leaves_the_older_one() {
    let (dir, store) = store();
    store.save(&record("c1", "eth0")).unwrap();
    // A directory in the way of the temporary file: fails for root too.
    fs::create_dir(dir.path().join(".c1:eth0.json.tmp")).unwrap();
    let e = store.save(&EndpointRecord { mtu: 9000, ..record("c1", "eth0") }).unwrap_err();
    assert!(e.to_string().contains("c1:eth0.json"), "{e}");
    assert_eq!(store.load_all().unwrap().records, [record("c1", "eth0")]);
}

#[test]
fn ids_of_any_length_and_kind_have_names_of_their_own() {
    let (dir, store) = store();
    let long = "a".repeat(1000);
    let ids = [long.as_str(), &long[1..], "../../etc/passwd", "a/b", ".hidden", "ä", "a:b"];
    for id in ids {
        store.save(&record(id, "eth0")).unwrap();
    }
    assert_eq!(store.load_all().unwrap().records.len(), ids.len());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), ids.len());
    for id in ids {
        store.remove(id, "eth0").unwrap();
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

proptest! {
    #[test]
    fn any_file_is_loaded_or_set_aside(text in prop::collection::vec(any::<u8>(), 0..100), edit in any::<prop::sample::Index>()) {
        let (dir, store) = store();
        store.save(&record("c1", "eth0")).unwrap();
        let path = dir.path().join("c1:eth0.json");
        let mut bytes = fs::read(&path).unwrap();
        let at = edit.index(bytes.len());
        bytes.splice(at..at, text);
        fs::write(&path, bytes).unwrap();
        let loaded = store.load_all().unwrap();
        prop_assert_eq!(loaded.records.len() + loaded.stale.len() + loaded.corrupt.len(), 1);
    }
}

fn store() -> (tempfile::TempDir, RecordStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = RecordStore::open(dir.path(), BOOT).unwrap();
    (dir, store)
}

fn record(container: &str, ifname: &str) -> EndpointRecord {
    EndpointRecord {
        state: State::Ready,
        endpoint_id: 7,
        container_id: container.to_owned(),
        ifname: ifname.to_owned(),
        netns: format!("/run/netns/{container}").into(),
        host_ifindex: 65_543,
        host_device: "weft7".to_owned(),
        mac: Mac::new([2, 0, 0, 0, 0, 7]),
        ipv4: Some([10, 0, 1, 7].into()),
        ipv6: "fd00:1::7".parse().ok(),
        mtu: 1500,
        pod: Some(PodName { namespace: "default".to_owned(), name: "web".to_owned(), uid: Some("u-1".to_owned()) }),
        terms: Terms::default(),
        created: 1_700_000_000,
    }
}
