//! The state directory's disk.
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::*;

/// Room of the small disk, bytes.
const ROOM: &str = "size=65536";

/// A small disk in the place of the state directory, while no agent runs. It goes with the lab.
fn small_disk(lab: &mut Lab) -> PathBuf {
    lab.stop_agent("node-1", Ending::Asked).unwrap();
    let state = node(lab).paths().state();
    mount(Some("weft-lab"), &state, Some("tmpfs"), MsFlags::empty(), Some(ROOM)).unwrap();
    lab.start_agent("node-1").unwrap();
    state
}

fn make_writable(state: &Path, writable: bool) {
    let flags = if writable { MsFlags::empty() } else { MsFlags::MS_RDONLY };
    mount(None::<&str>, state, None::<&str>, MsFlags::MS_REMOUNT | flags, Some(ROOM)).unwrap();
}

#[test]
fn a_full_disk_refuses_new_pods_and_harms_none_that_is_there() {
    let mut lab = lab();
    let state = small_disk(&mut lab);
    let (one, two) = (pod(&mut lab, "one"), pod(&mut lab, "two"));
    let filler = state.join("filler");
    fs::write(&filler, vec![0; 1 << 20]).expect_err("the disk has room for all of it");
    let why = refused(&mut lab, "three");
    assert!(why.contains("No space left on device") && why.contains("--state-dir"), "{why}");
    assert_eq!(counts(node(&lab)), [2, 4, 2]);
    assert_reaches(&one, &two);
    // A restart finds what it needs, and a DEL needs no room.
    lab.restart_agent("node-1", Ending::Killed).unwrap();
    assert_reaches(&one, &two);
    lab.pod_del("two").unwrap();
    until("the pod is gone", || counts(node(&lab)) == [1, 2, 1]).unwrap();
    fs::remove_file(&filler).unwrap();
    assert_reaches(&one, &pod(&mut lab, "three"));
    lab.down().unwrap();
}

#[test]
fn a_state_directory_that_became_read_only_loses_no_pod_and_no_address() {
    let mut lab = lab();
    let state = small_disk(&mut lab);
    let (one, two) = (pod(&mut lab, "one"), pod(&mut lab, "two"));
    make_writable(&state, false);
    let why = refused(&mut lab, "three");
    assert!(why.contains("Read-only file system") && why.contains("--state-dir"), "{why}");
    lab.restart_agent("node-1", Ending::Killed).unwrap();
    assert_reaches(&one, &two);
    assert_eq!(counts(node(&lab)), [2, 4, 2]);
    let why = format!("{:#}", lab.pod_del("two").expect_err("a record that cannot be removed is an error"));
    assert!(why.contains("Read-only file system") && why.contains("--state-dir"), "{why}");
    make_writable(&state, true);
    lab.pod_del("two").unwrap();
    until("the pod is gone", || counts(node(&lab)) == [1, 2, 1]).unwrap();
    assert_reaches(&one, &pod(&mut lab, "three"));
    lab.down().unwrap();
}

#[test]
fn a_record_that_is_corrupt_is_named_and_set_aside_and_the_rest_is_served() {
    let mut lab = lab();
    let (one, two) = (pod(&mut lab, "one"), pod(&mut lab, "two"));
    lab.stop_agent("node-1", Ending::Killed).unwrap();
    let records = node(&lab).paths().records().unwrap();
    let [kept, spoilt] = &records[..] else { panic!("{records:?}") };
    let text = fs::read(spoilt).unwrap();
    fs::write(spoilt, &text[..text.len() / 2]).unwrap();
    lab.start_agent("node-1").unwrap();
    // Its pod is served on from the maps, and its address is not given again.
    assert_reaches(&one, &two);
    let three = pod(&mut lab, "three");
    assert_reaches(&three, &two);
    assert!(three.addresses.iter().all(|a| !two.addresses.contains(a)), "{:?}", three.addresses);
    let aside = spoilt.with_extension("json.corrupt");
    assert!(aside.exists() && kept.exists() && !spoilt.exists());
    let log = node(&lab).log_tail();
    assert!(log.contains(&aside.display().to_string()), "{log}");
    lab.down().unwrap();
}
