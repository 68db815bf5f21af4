use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use notify::{Event, EventKind, RecursiveMode, Watcher as _, event::ModifyKind};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    configs::{self, ConfigFile},
    status::{Foreign, Stage},
    *,
};
use crate::{
    compile::fixtures,
    ipam::Family,
    tables::{Device, Tables},
};

/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the installer leaves a failure alone at least.
const PAUSE: Duration = Duration::from_secs(1);
const PLUGIN: &[u8] = b"\x7fELF the plugin";
const NAME: &str = "05-weft.conflist";

#[test]
fn the_plugin_comes_first_then_the_test_then_the_configuration_and_each_of_them_whole() {
    let host = Host::new();
    let (seen, events) = mpsc::channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| drop(seen.send(event))).unwrap();
    for directory in ["bin", "conf"] {
        fs::create_dir(host.path(directory)).unwrap();
        watcher.watch(&host.path(directory), RecursiveMode::NonRecursive).unwrap();
    }
    let marker = host.path("conf/probed");
    let probe = FakeProbe { run: Some(Arc::new(move || fs::write(&marker, "").unwrap())), ..host.probe.clone() };
    let running = host.start_with(probe);
    await_stage(&running, Stage::Installed);
    running.stop();
    drop(watcher);

    let mut order = Vec::new();
    for event in events.iter().map(Result::unwrap) {
        for path in &event.paths {
            let name = path.file_name().unwrap().to_str().unwrap();
            if ["weft-cni", NAME].contains(&name) {
                // A name appears by being given to a file that is whole; nothing else ever happens to it.
                let whole = matches!(event.kind, EventKind::Modify(ModifyKind::Name(_)) | EventKind::Access(_));
                assert!(whole, "{event:?}");
            }
            if ["weft-cni", "probed", NAME].contains(&name) && !order.contains(&name.to_owned()) {
                order.push(name.to_owned());
            }
        }
    }
    assert_eq!(order, ["weft-cni", "probed", NAME]);
    assert_eq!(fs::read(host.path("bin/weft-cni")).unwrap(), PLUGIN);
    assert_eq!(host.mode("bin/weft-cni"), 0o755);
    assert_eq!(host.mode(&format!("conf/{NAME}")), 0o644);
    let left: Vec<_> = fs::read_dir(host.path("conf")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn the_configuration_names_the_socket_and_every_version() {
    let host = Host::new();
    let _running = host.installed();
    let list: Value = serde_json::from_slice(&fs::read(host.path(&format!("conf/{NAME}"))).unwrap()).unwrap();
    assert_eq!(list["name"], "weft");
    assert_eq!(list["cniVersions"].as_array().unwrap().len(), 4);
    assert_eq!(list["plugins"][0]["type"], "weft-cni");
    assert_eq!(list["plugins"][0]["agentSocket"], "/run/weft/cni.sock");
    // What libcni hands to the plugin is a configuration that the plugin takes.
    let mut plugin = list["plugins"][0].clone();
    plugin["name"] = list["name"].clone();
    plugin["cniVersion"] = list["cniVersion"].clone();
    cni_plugin::spec::NetConf::from_json(&plugin).unwrap();
}

#[test]
fn a_failing_self_test_leaves_no_configuration_and_is_made_again_when_the_node_changes() {
    let host = Host::new();
    host.probe.fails.store(true, Ordering::SeqCst);
    let running = host.start();
    await_stage(&running, Stage::Failed);
    let why = running.status().why;
    assert!(why.contains("did not arrive in IPv4") && why.contains("`weft drops`"), "{why}");
    assert!(host.path("bin/weft-cni").exists());
    assert!(!host.path(&format!("conf/{NAME}")).exists());

    host.probe.fails.store(false, Ordering::SeqCst);
    let mut node = host.tables.read().nodes["here"].clone();
    node.pod_cidrs.push("10.77.0.0/24".parse().unwrap());
    let revision = host.tables.set_node(node);
    host.tables.applied(revision);
    await_stage(&running, Stage::Installed);
    assert_eq!(running.status().why, "");
}

#[test]
fn a_second_start_tests_again_and_writes_nothing() {
    let host = Host::new();
    drop(host.installed());
    let stamp = |name: &str| {
        let meta = fs::metadata(host.path(name)).unwrap();
        (meta.ino(), meta.ctime(), meta.ctime_nsec())
    };
    let files = ["bin/weft-cni".to_owned(), format!("conf/{NAME}")];
    let before: Vec<_> = files.iter().map(|f| stamp(f)).collect();
    drop(host.installed());
    assert_eq!(files.iter().map(|f| stamp(f)).collect::<Vec<_>>(), before);
    assert_eq!(host.probe.runs.load(Ordering::SeqCst), 2);
    assert_eq!(host.probe.cleared.load(Ordering::SeqCst), 2, "what a killed agent left goes at each start");
}

#[test]
fn a_configuration_that_is_there_stays_when_the_test_fails() {
    let host = Host::new();
    drop(host.installed());
    host.probe.fails.store(true, Ordering::SeqCst);
    let running = host.start();
    await_stage(&running, Stage::Failed);
    assert!(host.path(&format!("conf/{NAME}")).exists(), "the runtime would take the next one");
}

#[test]
fn an_older_plugin_is_replaced_and_another_agents_plugin_is_told() {
    let host = Host::new();
    fs::create_dir(host.path("bin")).unwrap();
    fs::write(host.path("bin/weft-cni"), "an older one").unwrap();
    let off = host.start_as(false, host.probe.clone());
    assert_eq!(off.status().stage, Stage::Off);
    assert!(off.status().plugin_differs.contains("is not the agent's own"), "{}", off.status().plugin_differs);
    drop(off);
    let running = host.installed();
    assert_eq!(fs::read(host.path("bin/weft-cni")).unwrap(), PLUGIN);
    assert_eq!(running.status().plugin_differs, "");
}

#[test]
fn what_is_written_over_ours_or_removed_comes_back_and_other_files_are_only_reported() {
    let host = Host::new();
    fs::create_dir(host.path("conf")).unwrap();
    for (name, plugin) in [("00-other.conf", "bridge"), ("10-late.conflist", "ptp")] {
        fs::write(host.path(&format!("conf/{name}")), format!(r#"{{"name":"x","type":"{plugin}"}}"#)).unwrap();
    }
    let running = host.installed();
    let foreign = [("00-other.conf", true), ("10-late.conflist", false)]
        .map(|(name, first)| Foreign { path: host.path(&format!("conf/{name}")), first });
    assert_eq!(running.status().foreign, foreign);
    let ours = host.path(&format!("conf/{NAME}"));
    let text = fs::read(&ours).unwrap();
    fs::write(&ours, "{}").unwrap();
    until(|| fs::read(&ours).is_ok_and(|there| there == text));
    fs::remove_file(&ours).unwrap();
    until(|| fs::read(&ours).is_ok_and(|there| there == text));
    fs::remove_file(host.path("bin/weft-cni")).unwrap();
    until(|| fs::read(host.path("bin/weft-cni")).is_ok_and(|there| there == PLUGIN));
    assert_eq!(fs::read_to_string(host.path("conf/00-other.conf")).unwrap(), r#"{"name":"x","type":"bridge"}"#);
    assert_eq!(running.status().foreign, foreign);
}

#[test]
fn an_attempt_that_fails_does_not_wake_itself_by_its_own_temporary() {
    let host = Host::new();
    // The plugin is in its place already: that it comes there is something new.
    drop(host.installed());
    let ours = host.path(&format!("conf/{NAME}"));
    fs::remove_file(&ours).unwrap();
    fs::create_dir(&ours).unwrap();
    let (ran, runs) = mpsc::channel();
    let run = move || ran.send(()).unwrap_or_default();
    let running = host.start_with(FakeProbe { run: Some(Arc::new(run)), ..host.probe.clone() });
    await_stage(&running, Stage::Failed);
    assert!(running.status().why.contains("--cni-conf-dir"), "{}", running.status().why);
    runs.recv_timeout(PATIENCE).unwrap();
    assert!(runs.recv_timeout(PAUSE * 2).is_err(), "tested again though nobody has changed anything");
    fs::remove_dir(&ours).unwrap();
    await_stage(&running, Stage::Installed);
}

#[test]
fn an_attempt_that_fails_is_made_again_only_after_a_pause_when_files_change() {
    let host = Host::new();
    host.probe.fails.store(true, Ordering::SeqCst);
    let (ran, runs) = mpsc::channel();
    let other = host.path("conf/other");
    let run = move || {
        fs::write(&other, "somebody answers each attempt").unwrap();
        let _told = ran.send(Instant::now());
    };
    let _running = host.start_with(FakeProbe { run: Some(Arc::new(run)), ..host.probe.clone() });
    let [first, second] = [(); 2].map(|()| runs.recv_timeout(PATIENCE).unwrap());
    assert!(second - first >= PAUSE, "{:?}", second - first);
}

#[test]
fn what_is_put_beside_an_agent_that_runs_waits_for_the_next_one() {
    let host = Host::new();
    let running = host.installed();
    let (source, installed) = (host.path("weft-cni"), host.path("bin/weft-cni"));
    fs::write(&source, "the first half of the next release").unwrap();
    fs::remove_file(&installed).unwrap();
    until(|| installed.exists());
    assert_eq!(fs::read(&installed).unwrap(), PLUGIN);
    assert_eq!(running.status().plugin_differs, "");
    drop(running);
    fs::write(&source, "the next release").unwrap();
    let running = host.installed();
    assert_eq!(fs::read_to_string(&installed).unwrap(), "the next release");
    assert_eq!(running.status().plugin_differs, "");
}

#[test]
fn nothing_is_tested_before_the_node_is_ready() {
    let host = Host::unready();
    let running = host.start();
    until(|| running.status().why.contains("no Node object"));
    assert_eq!(host.probe.runs.load(Ordering::SeqCst), 0);
    host.make_ready();
    await_stage(&running, Stage::Installed);
}

#[test]
fn a_directory_that_cannot_be_written_is_named_with_the_setting() {
    for (name, setting) in [("bin", "--cni-bin-dir"), ("conf", "--cni-conf-dir")] {
        let host = Host::new();
        fs::write(host.path(name), "a file").unwrap();
        let running = host.start();
        await_stage(&running, Stage::Failed);
        assert!(running.status().why.contains(setting), "{}", running.status().why);
    }
    let host = Host::new();
    fs::remove_file(host.path("weft-cni")).unwrap();
    let running = host.start();
    await_stage(&running, Stage::Failed);
    assert!(running.status().why.contains("beside weft-agent"), "{}", running.status().why);
}

#[test]
fn configurations_are_read_as_libcni_orders_them() {
    let directory = TempDir::new().unwrap();
    for (name, text) in [
        ("10-b.conf", r#"{"type":"ptp"}"#),
        ("05-a.conflist", r#"{"plugins":[{"type":"bridge"},{"type":"weft-cni"},{"type":"bandwidth"}]}"#),
        ("20-c.json", "no JSON"),
        ("00-d.bak", r#"{"type":"weft-cni"}"#),
    ] {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let list = configs::list(directory.path());
    let expected =
        [("05-a.conflist", vec!["bridge", "weft-cni", "bandwidth"]), ("10-b.conf", vec!["ptp"]), ("20-c.json", vec![])];
    let expected = expected.map(|(name, plugins)| ConfigFile {
        path: directory.path().join(name),
        plugins: plugins.into_iter().map(str::to_owned).collect(),
    });
    assert_eq!(list, expected);
    assert!(list[0].is_ours() && list[0].has_behind_ours("bandwidth") && !list[0].has_behind_ours("bridge"));
    assert_eq!(configs::list(Path::new("/nonexistent")), []);
}

/// A machine to install on.
struct Host {
    directory: TempDir,
    tables: Arc<Tables>,
    probe: FakeProbe,
}

#[derive(Clone, Default)]
struct FakeProbe {
    fails: Arc<AtomicBool>,
    runs: Arc<AtomicUsize>,
    cleared: Arc<AtomicUsize>,
    run: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Probe for FakeProbe {
    fn clear(&self) {
        self.cleared.fetch_add(1, Ordering::SeqCst);
    }
    fn run(&self) -> Result<Tested, SelfTestError> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        if let Some(run) = &self.run {
            run();
        }
        if self.fails.load(Ordering::SeqCst) {
            let (what, source) = ("a datagram from the node to the probe", io::ErrorKind::TimedOut.into());
            return Err(SelfTestError::Lost { what, family: Family::V4, source });
        }
        Ok(Tested { families: vec![Family::V4, Family::V6], took: Duration::from_millis(3) })
    }
}

impl Host {
    fn unready() -> Self {
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("weft-cni"), PLUGIN).unwrap();
        Self { directory, tables: Arc::new(Tables::of_node("here")), probe: FakeProbe::default() }
    }

    fn new() -> Self {
        let host = Self::unready();
        host.make_ready();
        host
    }

    fn make_ready(&self) {
        let device = Device { name: "eth0".into(), mtu: 1500, leads: true, ..Default::default() };
        self.tables.set_devices([(2, device)].into());
        let revision = self.tables.set_node(fixtures::node("here", 1));
        self.tables.applied(revision);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o7777
    }

    fn start(&self) -> Running {
        self.start_with(self.probe.clone())
    }

    fn start_with(&self, probe: FakeProbe) -> Running {
        self.start_as(true, probe)
    }

    fn start_as(&self, enabled: bool, probe: FakeProbe) -> Running {
        let config = Config {
            enabled,
            source: self.path("weft-cni"),
            bin_dir: self.path("bin"),
            conf_dir: self.path("conf"),
            conf_name: NAME.into(),
            socket: "/run/weft/cni.sock".into(),
        };
        Installer::new(config, Arc::clone(&self.tables), fixtures::facts(), probe).start().unwrap()
    }

    fn installed(&self) -> Running {
        let running = self.start();
        await_stage(&running, Stage::Installed);
        running
    }
}

fn await_stage(running: &Running, stage: Stage) {
    let deadline = Instant::now() + PATIENCE;
    while running.status().stage != stage {
        assert!(Instant::now() < deadline, "{:?}", running.status());
        thread::yield_now();
    }
}

fn until(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came");
        thread::yield_now();
    }
}
