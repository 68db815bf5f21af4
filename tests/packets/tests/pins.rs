//! Pinned maps: adopted with what is in them when the layout is ours, refused by name when it is not. On a BPF file system of its own.
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cni_agent::datapath::Datapath;
use cni_common::schema;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A mounted BPF file system that goes with the test.
struct Bpffs {
    path: PathBuf,
}
impl Bpffs {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weft-pins-{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("a directory");
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>).expect("a BPF file system (needs root)");
        Self { path }
    }
    fn load(&self) -> Result<Datapath, String> {
        Datapath::load(Some(&self.path)).map_err(|e| cni_agent::error_chain(&e))
    }
}
impl Drop for Bpffs {
    fn drop(&mut self) {
        // Lazily: a panicking test may still hold maps.
        umount2(&self.path, MntFlags::MNT_DETACH).expect("unmounts");
        fs::remove_dir(&self.path).expect("is empty");
    }
}

fn refused(bpffs: &Bpffs) -> String {
    match bpffs.load() {
        Ok(_) => panic!("a foreign layout was adopted"),
        Err(e) => e,
    }
}
fn recreate(pin: &Path, create: &[&str]) {
    fs::remove_file(pin).expect("was pinned");
    let made = Command::new("bpftool").args(["map", "create"]).arg(pin).args(create).output().expect("bpftool runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn a_second_load_finds_what_the_first_one_wrote() {
    let bpffs = Bpffs::new("adopt");
    let (key, value) = ([10, 0, 0, 1], [7; 4]);
    bpffs.load().expect("loads").map(&schema::NODES4).update(&key, &value).expect("writes");
    let again = bpffs.load().expect("loads again");
    assert_eq!(again.map(&schema::NODES4).lookup(&key).expect("reads"), Some(value.to_vec()));
    let fingerprint = again.map(&schema::SCHEMA).lookup(&schema::NODES4.id.to_ne_bytes()).expect("reads");
    assert_eq!(fingerprint, Some(schema::NODES4.fingerprint.to_ne_bytes().to_vec()));
}

#[test]
fn a_pin_of_another_size_is_refused_before_anything_is_loaded() {
    let bpffs = Bpffs::new("size");
    drop(bpffs.load().expect("loads"));
    let pin = bpffs.path.join(schema::ENDPOINTS.name);
    recreate(&pin, &["type", "hash", "key", "4", "value", "16", "entries", "4096", "name", "endpoints_v1"]);
    let e = refused(&bpffs);
    assert!(e.contains("endpoints_v1") && e.contains("value 16 B") && e.contains("value 48 B"), "{e}");
    assert!(e.contains("remove the pin"), "no cure in: {e}");
}

#[test]
fn a_pin_whose_fields_have_another_meaning_is_refused() {
    let bpffs = Bpffs::new("meaning");
    let first = bpffs.load().expect("loads");
    first.map(&schema::SCHEMA).update(&schema::LOCAL4.id.to_ne_bytes(), &[1; 8]).expect("writes");
    drop(first);
    let e = refused(&bpffs);
    assert!(e.contains("local4_v1") && e.contains("another layout"), "{e}");
}

#[test]
fn a_pin_that_is_no_map_is_an_error_and_not_taken_for_missing() {
    let bpffs = Bpffs::new("file");
    fs::create_dir(bpffs.path.join(schema::TUNNELS.name)).expect("a directory in the place of a pin");
    let e = refused(&bpffs);
    assert!(e.contains(schema::TUNNELS.name), "{e}");
}
