//! Files only: what is in the kernel is `tests/lab/tests/uninstall.rs`'s.
use std::fs;

use super::*;
use crate::netlink::Socket;

fn places(root: &std::path::Path) -> Places {
    let places = Places {
        state_dir: root.join("state"),
        run_dir: root.join("run"),
        cache_dir: root.join("cache"),
        bpffs: root.join("bpf"),
        cni_bin_dir: root.join("bin"),
        cni_conf_dir: root.join("net.d"),
        cni_conf_name: "05-weft.conflist".into(),
        own_plugin: None,
    };
    let dirs = [
        &places.state_dir,
        &places.run_dir,
        &places.cache_dir,
        &places.bpffs,
        &places.cni_bin_dir,
        &places.cni_conf_dir,
    ];
    for dir in dirs {
        fs::create_dir(dir).unwrap();
    }
    places
}
fn names(places: &Places) -> (Vec<String>, Vec<String>) {
    let mut found = find(places, &mut Socket::open().unwrap()).unwrap();
    found.items.retain(|i| matches!(i.way, Way::File(_)));
    // Who is not root does not see whether there is a table.
    found.kept.retain(|why| !why.contains("nftables"));
    (found.items.into_iter().map(|i| i.name).collect(), found.kept)
}
const OURS: &str = r#"{"plugins":[{"type":"weft-cni"}]}"#;

#[test]
fn files_are_ours_by_name_and_content_and_others_stay() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let write = |path: &str, text: &str| fs::write(root.path().join(path), text).unwrap();
    for ours in [
        "net.d/05-weft.conflist",
        "bin/weft-cni",
        "bin/.weft-cni.new",
        "state/c1:eth0.json",
        "state/c2:eth0.json.corrupt",
        "state/.c3:eth0.json.tmp",
        "run/cni.sock",
        "run/lock",
        "cache/kube-api.json",
        "cache/.kube-api.json.new",
    ] {
        write(ours, OURS);
    }
    for others in
        ["net.d/10-x.conflist", "bin/bridge", "state/notes.txt", "state/config.json", "run/other.sock", "cache/x.json"]
    {
        write(others, "{}");
    }
    let (found, kept) = names(&places);
    assert_eq!(found.len(), 10, "{found:#?}");
    assert!(kept.is_empty(), "{kept:?}");
    let all = find(&places, &mut Socket::open().unwrap()).unwrap();
    let files = Found {
        items: all.items.into_iter().filter(|i| matches!(i.way, Way::File(_) | Way::Directory(_))).collect(),
        ..all
    };
    assert_eq!(remove(&files, &mut Socket::open().unwrap()), [""; 0]);
    for there in
        ["net.d/10-x.conflist", "bin/bridge", "state/notes.txt", "state/config.json", "run/other.sock", "cache/x.json"]
    {
        assert!(root.path().join(there).exists(), "{there}");
    }
    assert_eq!(names(&places).0, [""; 0], "a second time");
    assert_eq!(remove(&files, &mut Socket::open().unwrap()), [""; 0], "what is gone is removed");
}

#[test]
fn ports_that_were_reserved_go_with_the_note_of_them_and_a_note_of_another_boot_is_a_file() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let note = |boot: &str| {
        let text = format!(r#"{{"bootId":"{}","added":"61000-65535"}}"#, boot.trim());
        fs::write(places.state_dir.join("reserved-ports"), text).unwrap();
    };
    let ways = || {
        let found = find(&places, &mut Socket::open().unwrap()).unwrap();
        let of = |i: &Item| i.kind == Kind::Setting || i.name.ends_with("reserved-ports");
        let items: Vec<_> = found.items.into_iter().filter(of).map(|i| (i.kind, i.name)).collect();
        (items, found.kept.iter().filter(|why| !why.contains("nftables")).count())
    };
    note(&boot);
    fs::write(places.state_dir.join(".reserved-ports.new"), "").unwrap();
    let text = "net.ipv4.ip_local_reserved_ports 61000-65535".to_owned();
    assert_eq!(ways(), (vec![(Kind::Setting, text)], 0));
    assert!(names(&places).0.iter().any(|name| name.ends_with(".reserved-ports.new")));
    note("another");
    assert_eq!(ways(), (vec![(Kind::File, places.state_dir.join("reserved-ports").display().to_string())], 0));
    fs::write(places.state_dir.join("reserved-ports"), "no note").unwrap();
    assert_eq!(ways().1, 1, "told of");
}

#[test]
fn a_configuration_of_our_name_that_is_somebody_elses_stays_and_others_that_call_us_are_told_of() {
    let root = tempfile::tempdir().unwrap();
    let places = places(root.path());
    fs::write(places.cni_conf_dir.join("05-weft.conflist"), r#"{"plugins":[{"type":"bridge"}]}"#).unwrap();
    fs::write(places.cni_conf_dir.join("10-mine.conflist"), OURS).unwrap();
    let (found, kept) = names(&places);
    assert_eq!(found, [""; 0]);
    assert!(kept[0].contains("05-weft.conflist does not call weft-cni"), "{kept:?}");
    assert!(kept[1].contains("10-mine.conflist") && kept[1].contains("remove it"), "{kept:?}");
}

#[test]
fn the_plugin_beside_the_programs_is_not_the_nodes() {
    let root = tempfile::tempdir().unwrap();
    let places = Places { own_plugin: Some(root.path().join("bin/weft-cni")), ..places(root.path()) };
    fs::write(places.cni_bin_dir.join("weft-cni"), "").unwrap();
    assert_eq!(names(&places).0, [""; 0]);
}

#[test]
fn a_lock_that_is_held_is_an_agent_that_runs() {
    let root = tempfile::tempdir().unwrap();
    let lock = fs::File::create(root.path().join("lock")).unwrap();
    let held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    let refused = Alone::on(root.path()).unwrap_err().to_string();
    assert!(refused.contains("stop it first") && refused.contains("--force"), "{refused}");
    drop(held);
    Alone::on(root.path()).unwrap();
}
