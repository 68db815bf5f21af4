//! Two builds whose maps have other layouts take over from each other under traffic. Needs root, and a second build that
//! `cargo xtask test --suite lab` makes: its directory is in `WEFT_TEST_LAYOUT_DIR`.
mod live;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use cni_agent::datapath::{RawMap, syscall};
use cni_common::{
    drop::{Point, slot},
    schema::{self, MapSpec},
};
use lab::{
    Ending, Hostile, Lab, LabConfig, PodSpec,
    probe::{self, Family, Place, while_sending},
};
use serde_json::Value;

const NODE: &str = "node-1";
/// A heading that no packet is counted under.
const SLOT: u64 = 47;
/// Maps that the other build has in another layout.
const LAID_OUT_OTHERWISE: [&str; 10] =
    ["endpoints", "counters", "ct4", "ct6", "ct_new4", "ct_new6", "nat_back4", "nat_back6", "nat_forth4", "nat_forth6"];
/// The other build's counters.
const OTHER_COUNTS: MapSpec = MapSpec { name: "counters_v90", value_size: 24, ..schema::COUNTS };

struct Cluster {
    lab: Lab,
    own: PathBuf,
    other: PathBuf,
    web: Place,
    near: Place,
    far: Place,
}

impl Cluster {
    fn up() -> Self {
        Self::up_with(LabConfig::default())
    }

    /// Of two ordinary nodes.
    fn up_with(config: LabConfig) -> Self {
        let config = LabConfig { hostile: Hostile::Nobody, ..config };
        let other =
            std::env::var_os("WEFT_TEST_LAYOUT_DIR").expect("WEFT_TEST_LAYOUT_DIR: `cargo xtask test --suite lab`");
        let mut lab = Lab::up(config).expect("a lab of two nodes");
        let mut pod = |node, name| lab.pod_add(node, &PodSpec::named(name)).expect("a pod").pod.place().unwrap();
        let (web, near, far) = (pod(NODE, "web"), pod(NODE, "near"), pod("node-2", "far"));
        let own = lab.bin_dir().to_owned();
        Self { lab, own, other: other.into(), web, near, far }
    }

    fn bpf(&self) -> PathBuf {
        self.lab.node(NODE).unwrap().paths().bpf().join("weft")
    }

    /// Names of the pins.
    fn pins(&self) -> BTreeSet<String> {
        fs::read_dir(self.bpf()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn datapath(&self, node: &str) -> Value {
        self.lab.node(node).unwrap().ask("/v1/status").unwrap()["datapath"].clone()
    }

    /// Does something with the node while packets go from, to and across it; nothing may be lost.
    fn under_traffic<T>(&mut self, what: &str, event: impl FnOnce(&mut Lab) -> T) -> T {
        let Self { lab, web, near, far, .. } = self;
        let (web, near, far) = (&*web, &*near, &*far);
        let sent = while_sending(&[(near, web), (far, web), (web, far)], || event(lab));
        let (done, sent) = sent.unwrap_or_else(|e| panic!("{what}: {e:#}"));
        println!("{what}: {sent} datagrams on 6 ways, lost 0");
        done
    }

    /// The agent of the other build, or of our own, in the place of the one that runs.
    fn change(&mut self, other: bool, ending: Ending) {
        self.change_amid(other, ending, |event| event());
    }

    /// The same while something else goes on: `amid` must call what it is given.
    fn change_amid(&mut self, other: bool, ending: Ending, amid: impl FnOnce(&mut dyn FnMut())) {
        let dir = if other { self.other.clone() } else { self.own.clone() };
        let what = format!("{} build after the other, {ending:?}", if other { "second" } else { "first" });
        let took = self.under_traffic(&what, |lab| {
            lab.set_bin_dir(&dir);
            let mut took = None;
            amid(&mut || took = Some(lab.restart_agent(NODE, ending).unwrap()));
            took.expect("it was restarted")
        });
        println!("{what}: ready after {took:?}");
        self.assert_whole(other);
    }

    /// One build's maps are there and nothing of the other's, and everybody reaches everybody.
    fn assert_whole(&self, other: bool) {
        let datapath = self.datapath(NODE);
        assert_eq!((&datapath["waits"], datapath["other_maps"].as_array().unwrap().len()), (&Value::Bool(false), 0));
        assert_eq!(datapath["programs"].as_array().unwrap().len(), 4, "{datapath:#}");
        assert_eq!(datapath["layout"] == self.datapath("node-2")["layout"], !other, "{datapath:#}");
        let pins = self.pins();
        for name in LAID_OUT_OTHERWISE {
            assert_eq!(pins.contains(&format!("{name}_v90")), other, "{pins:?}");
            assert_eq!(pins.contains(&format!("{name}_v1")), !other, "{pins:?}");
        }
        assert!(!pins.iter().any(|p| p.starts_with("new_")), "{pins:?}");
        for (from, to) in [(&self.web, &self.far), (&self.far, &self.near), (&self.near, &self.web)] {
            for family in Family::BOTH {
                probe::tcp(from, to, family).unwrap();
                probe::udp(from, to, family).unwrap();
            }
        }
    }

    fn counts(&self, spec: MapSpec) -> RawMap {
        let fd = syscall::open_pin(&self.bpf().join(spec.name)).unwrap().expect("is pinned");
        RawMap::new(fd, spec).unwrap()
    }
}

fn key() -> [u8; 4] {
    slot(Point::FromPod, SLOT).to_ne_bytes()
}

/// Counts of one layout without the fields that only the other has.
fn known(value: &[u8], size: usize) -> Vec<u8> {
    value.chunks_exact(size).flat_map(|one| one[size - 16..].to_vec()).collect()
}

#[test]
fn an_upgrade_and_a_downgrade_lose_no_packet_and_keep_what_only_the_programs_know() {
    let mut c = Cluster::up();
    let pins = c.pins();
    let cpus = c.counts(schema::COUNTS).lookup(&key()).unwrap().unwrap().len() / 16;
    let marked: Vec<u8> = (1..=2 * cpus as u64).flat_map(|n| (n << 32 | 7).to_ne_bytes()).collect();
    c.counts(schema::COUNTS).update(&key(), &marked).unwrap();
    let all = c.counts(schema::COUNTS).dump().unwrap();
    for ending in [Ending::Asked, Ending::Killed] {
        c.change(true, ending);
        let up = c.counts(OTHER_COUNTS).dump().unwrap();
        assert_eq!(known(&up[&key().to_vec()], 24), marked, "counts of one are not those of the other");
        let less =
            |(k, v): (&Vec<u8>, &Vec<u8>)| known(&up[k], 24).iter().all(|b| *b == 0) && v.iter().any(|b| *b != 0);
        assert!(!all.iter().any(less), "a count begins anew");
        let late = c.lab.pod_add(NODE, &PodSpec::named("late")).expect("ADD").pod.place().unwrap();
        probe::tcp(&late, &c.far, Family::V4).unwrap();
        c.lab.pod_del("late").unwrap();
        c.change(false, ending);
        assert_eq!(c.counts(schema::COUNTS).lookup(&key()).unwrap().unwrap(), marked);
        assert_eq!(c.pins(), pins);
    }
    c.lab.down().unwrap();
}

#[test]
fn an_agent_that_is_killed_while_it_swaps_leaves_what_either_build_goes_on_from() {
    let mut c = Cluster::up();
    let deaths = ["block-placed:1", "map-pinned:1", "map-pinned:3", "map-pinned:8", "program-placed:1"];
    for (n, die_at) in deaths.into_iter().enumerate() {
        let other = c.other.clone();
        c.under_traffic(&format!("killed at {die_at}"), |lab| {
            lab.set_bin_dir(&other);
            lab.set_agent_args(&["--die-at", die_at]);
            let said = lab.restart_agent(NODE, Ending::Asked).expect_err("it has died");
            lab.set_agent_args(&[]);
            let said = format!("{said:#}");
            assert!(said.contains("dies at ") && said.contains("ended before it was ready"), "{die_at}: {said}");
        });
        let further = n % 2 == 0;
        c.change(further, Ending::Killed);
        c.change(!further, Ending::Killed);
        if !further {
            c.change(false, Ending::Asked);
        }
    }
    c.lab.down().unwrap();
}

/// The number of a pinned object.
fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[test]
fn a_map_of_state_of_a_layout_that_nothing_tells_of_is_not_read_and_what_runs_runs_on() {
    let mut c = Cluster::up();
    c.lab.stop_agent(NODE, Ending::Asked).unwrap();
    // As of a newer build whose record is lost.
    let (ours, newer) = (c.bpf().join("counters_v1"), c.bpf().join("counters_v91"));
    fs::rename(&ours, &newer).unwrap();
    let before = (inode(&newer), c.pins());
    let said = c.under_traffic("a newer layout", |lab| lab.start_agent(NODE)).expect_err("it refuses");
    let said = format!("{said:#}");
    for part in ["counters_v91 is another build's", "nothing says what its fields are", "Start the build that made it"]
    {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
    assert_eq!((inode(&newer), c.pins()), before);
    fs::rename(&newer, &ours).unwrap();
    c.under_traffic("its own build again", |lab| lab.start_agent(NODE)).unwrap();
    c.assert_whole(false);
    c.lab.down().unwrap();
}
