//! Pins: maps are adopted with what is in them when the layout is ours, refused by name when it is not; programs are what an agent goes on
//! with whose own the kernel refuses. On a BPF file system of its own.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cni_agent::datapath::{Datapath, RawMap, attach, object, programs, syscall};
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
    /// As an agent whose object's `program` is refused.
    fn start_refused(&self, program: &str) -> Result<Datapath, String> {
        Datapath::start(&packets::refused::object(program), &self.path).map_err(|e| cni_agent::error_chain(&e))
    }
    /// Every pin: its name and the object's number.
    fn pins(&self) -> BTreeMap<String, u64> {
        use std::os::unix::fs::MetadataExt as _;
        // Not what the kernel puts there itself.
        let own = fs::read_dir(&self.path).expect("lists").map(|e| e.expect("an entry"));
        let own = own.filter(|e| !e.file_name().to_string_lossy().ends_with(".debug"));
        own.map(|e| (e.file_name().to_string_lossy().into_owned(), e.metadata().expect("is there").ino())).collect()
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
    bpffs.load().map(drop).expect_err("a foreign layout was adopted")
}
/// The programs' numbers.
fn ids(datapath: &Datapath) -> Vec<Option<u32>> {
    object::HOOKS.into_iter().map(|name| datapath.program_id(name)).collect()
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
fn the_slots_of_an_array_that_are_in_use_are_read_at_once() {
    let bpffs = Bpffs::new("slots");
    let datapath = bpffs.load().expect("a first load");
    let map = datapath.map(&schema::TUNNELS);
    assert_eq!(map.dump().expect("an array"), BTreeMap::new());
    let last = schema::TUNNELS.max_entries - 1;
    let slots = [0, 1, last].map(|slot: u32| {
        let value = vec![slot as u8 | 0x80; schema::TUNNELS.value_size as usize];
        map.update(&slot.to_ne_bytes(), &value).expect("a slot");
        (slot.to_ne_bytes().to_vec(), value)
    });
    assert_eq!(map.dump().expect("an array"), slots.into_iter().collect());
    let begin = std::time::Instant::now();
    map.dump().expect("an array");
    let at_once = begin.elapsed();
    let begin = std::time::Instant::now();
    (0..=last).for_each(|slot| drop(map.lookup(&slot.to_ne_bytes()).expect("a slot")));
    let one_by_one = begin.elapsed();
    println!("{last} slots: at once {at_once:?}, one by one {one_by_one:?}");
    assert!(at_once < one_by_one);
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
fn a_table_of_flows_that_was_made_for_another_memory_is_taken_over_as_large_as_it_is() {
    let bpffs = Bpffs::new("memory");
    let new = bpffs.load().expect("loads").map(&schema::CT6).spec().max_entries;
    let pin = bpffs.path.join(schema::CT4.name);
    let [key, value] = [schema::CT4.key_size, schema::CT4.value_size].map(|n| n.to_string());
    let sizes = ["key", &key, "value", &value, "entries", "8192", "flags", "1", "name", schema::CT4.name];
    recreate(&pin, &[&["type", "hash"][..], &sizes].concat());
    let there = RawMap::new(syscall::open_pin(&pin).expect("opens").expect("is there"), schema::CT4).expect("a map");
    let again = bpffs.load().expect("loads again");
    let (small, large) = (again.map(&schema::CT4), again.map(&schema::CT6));
    assert_eq!((small.id(), small.spec().max_entries, large.spec().max_entries), (there.id(), 8192, new));
    // What is said of it to the build that comes next is what it is.
    let name: Vec<u8> = schema::CT4.name.bytes().chain([0; 16]).take(16).collect();
    let record = again.map(&schema::LAYOUTS).lookup(&name).expect("reads").expect("a record");
    assert!(String::from_utf8_lossy(&record).contains(" 8192 "), "{}", String::from_utf8_lossy(&record));
}

#[test]
fn a_pin_whose_fields_have_another_meaning_is_refused() {
    let bpffs = Bpffs::new("meaning");
    let first = bpffs.load().expect("loads");
    first.map(&schema::SCHEMA).update(&schema::LOCAL4.id.to_ne_bytes(), &[1; 8]).expect("writes");
    drop(first);
    let e = refused(&bpffs);
    assert!(e.contains("local4_v2") && e.contains("another layout"), "{e}");
}

#[test]
fn a_pin_that_is_no_map_is_an_error_and_not_taken_for_missing() {
    let bpffs = Bpffs::new("file");
    fs::create_dir(bpffs.path.join(schema::TUNNELS.name)).expect("a directory in the place of a pin");
    let e = refused(&bpffs);
    assert!(e.contains(schema::TUNNELS.name), "{e}");
}

#[test]
fn an_agent_whose_programs_are_refused_goes_on_with_the_pinned_ones() {
    let bpffs = Bpffs::new("refused");
    let first = bpffs.load().expect("loads");
    let (running, pins) = (ids(&first), bpffs.pins());
    drop(first);
    for name in object::HOOKS {
        let mut second = bpffs.start_refused(name).expect("goes on");
        let load = second.refused().expect("tells of it").clone();
        println!("{name}: {load:#?}");
        assert_eq!((load.refusal.what.as_str(), ids(&second), bpffs.pins()), (name, running.clone(), pins.clone()));
        // The sentence has changed from kernel to kernel; the instruction has not.
        let log = &load.refusal.log;
        assert!(log.last().is_some_and(|l| l.contains("invalid") && l.contains("stack")), "{log:?}");
        assert!(log.iter().any(|l| l.contains("r0 = *(u64 *)(r10 +8)")), "{log:?}");
        assert!(!log.iter().any(|l| l.starts_with("processed ")) && log.len() <= 20, "{log:?}");
        assert!(load.refusal.error.contains(log.last().expect("is there")), "{}", load.refusal.error);
        assert!(load.running_since.is_some_and(|t| t <= load.at) && load.at > 1_700_000_000, "{load:?}");
        second.take_events().expect("the ring is there");
        assert_eq!(attach::linked(&bpffs.path, name).expect("lists").len(), 0, "a program's pin is no link's");
    }
    let third = bpffs.load().expect("loads");
    assert!(third.refused().is_none() && ids(&third).iter().zip(&running).all(|(new, old)| new != old));
    assert_eq!(bpffs.pins().keys().collect::<Vec<_>>(), pins.keys().collect::<Vec<_>>());
}

#[test]
fn a_first_agent_whose_programs_are_refused_leaves_nothing() {
    let bpffs = Bpffs::new("first");
    let said = bpffs.start_refused(object::FROM_POD).map(drop).expect_err("there is nothing to go on with");
    println!("{said}");
    for part in ["refuses the program from_pod", "stack", "no earlier agent has left programs", "another kernel"] {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
    assert_eq!(bpffs.pins(), BTreeMap::new());
}

#[test]
fn what_a_former_agent_left_in_part_or_on_other_maps_is_not_gone_on_with() {
    let bpffs = Bpffs::new("part");
    drop(bpffs.load().expect("loads"));
    fs::remove_file(programs::path(&bpffs.path, object::FROM_HOST)).expect("was pinned");
    let said = bpffs.start_refused(object::FROM_POD).map(drop).expect_err("one is missing");
    assert!(said.contains("prog_from_host is missing"), "{said}");
    // A map of the same layout that is not the programs' own.
    drop(bpffs.load().expect("loads"));
    let create = ["type", "hash", "key", "4", "value", "4", "entries", "8192", "name", "nodes4_v1"];
    recreate(&bpffs.path.join(schema::NODES4.name), &create);
    let said = bpffs.start_refused(object::FROM_POD).map(drop).expect_err("a map is another one");
    assert!(said.contains("another map nodes4_v1"), "{said}");
}

#[test]
fn pins_that_a_killed_agent_or_another_release_left_are_cleared_by_the_next_load() {
    let bpffs = Bpffs::new("swept");
    drop(bpffs.load().expect("loads"));
    let pins = bpffs.pins();
    let from = |name: &str| fs::rename(programs::path(&bpffs.path, object::FROM_POD), bpffs.path.join(name));
    from("new_prog_from_pod").expect("renames");
    drop(bpffs.load().expect("loads"));
    from("prog_from_elsewhere").expect("renames");
    drop(bpffs.load().expect("loads"));
    assert_eq!(bpffs.pins().keys().collect::<Vec<_>>(), pins.keys().collect::<Vec<_>>());
}
