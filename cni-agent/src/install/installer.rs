//! The thread that installs, and sees to it that it stays so.
use std::{
    ffi::OsStr,
    fs, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    configs, conflist,
    files::{self, Placed},
    self_test::{Probe, SelfTestError},
    status::{Foreign, InstallStatus, Stage},
};
use crate::{
    compile::Facts,
    endpoint, error_chain,
    tables::{Contents, Row, Tables},
};

/// A look without an event: what no event tells of (a firewall, a file system that is writable again) is seen so much later.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);
/// The same while the kernel does not take a row of this node: no event tells that it does. And how long what changes in the
/// directories brings no new attempt after one that failed: it may be the attempt itself that changes them.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long the rows of this node take at most to be in the kernel.
const APPLIED_WITHIN: Duration = Duration::from_secs(10);
const EXECUTABLE: u32 = 0o755;
const READABLE: u32 = 0o644;

/// What is installed, and where.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether anything is.
    pub enabled: bool,
    /// The plugin that comes with this agent.
    pub source: PathBuf,
    /// Where the runtime looks for plugins.
    pub bin_dir: PathBuf,
    /// Where it looks for configurations.
    pub conf_dir: PathBuf,
    /// The configuration's name there.
    pub conf_name: String,
    /// The socket for the plugin.
    pub socket: PathBuf,
}

impl Config {
    fn plugin(&self) -> PathBuf {
        self.bin_dir.join(configs::PLUGIN)
    }
    fn conflist(&self) -> PathBuf {
        self.conf_dir.join(&self.conf_name)
    }
}

/// Why the runtime does not get what it needs.
#[derive(Debug, thiserror::Error)]
pub(super) enum InstallError {
    #[error("read the plugin {} that belongs beside weft-agent: install both programs into one directory, and restart the agent", path.display())]
    Source {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("write the plugin {} (--cni-bin-dir must name a directory that root can write and execute from)", path.display())]
    Plugin {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("write the configuration {} (--cni-conf-dir must name a directory that root can write)", path.display())]
    Conflist {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the configuration {} is not written, as packets do not go", path.display())]
    SelfTest {
        path: PathBuf,
        #[source]
        source: SelfTestError,
    },
}

/// The plugin of the agent's own release, or why there is none.
type Release = io::Result<Vec<u8>>;

/// Installs. Made before the CNI server listens, started after.
pub struct Installer<P> {
    config: Config,
    release: Arc<Release>,
    tables: Arc<Tables>,
    facts: Facts,
    probe: P,
    report: Arc<Mutex<InstallStatus>>,
    ready: Option<watch::Sender<bool>>,
}

/// The installer at work. It stops when this is dropped.
#[derive(Debug)]
pub struct Running {
    config: Config,
    release: Arc<Release>,
    report: Arc<Mutex<InstallStatus>>,
    tables: Arc<Tables>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl<P: Probe + 'static> Installer<P> {
    /// Reads the plugin, and prepares; `facts` names the node.
    pub fn new(config: Config, tables: Arc<Tables>, facts: Facts, probe: P) -> Self {
        let release = Arc::new(fs::read(&config.source));
        Self { config, release, tables, facts, probe, report: Arc::default(), ready: None }
    }

    /// Lets `ready` become true when the runtime can call the plugin: when both files are in place, or, where somebody else installs them, when the node can take
    /// pods. It stays true.
    pub fn telling(self, ready: watch::Sender<bool>) -> Self {
        Self { ready: Some(ready), ..self }
    }

    /// Removes what a killed agent left of its self-test, and begins to install in the background.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(self) -> io::Result<Running> {
        self.probe.clear();
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = Running {
            config: self.config.clone(),
            release: Arc::clone(&self.release),
            report: Arc::clone(&self.report),
            tables: Arc::clone(&self.tables),
            stop: Arc::clone(&stop),
            thread: Mutex::default(),
        };
        if self.config.enabled {
            self.tell(Stage::Waiting, "it begins", None);
            running.thread =
                Mutex::new(Some(thread::Builder::new().name("installer".into()).spawn(move || self.run(&stop))?));
        } else if self.ready.is_some() {
            running.thread = Mutex::new(Some(
                thread::Builder::new().name("installer".into()).spawn(move || self.watch_node(&stop))?,
            ));
        }
        Ok(running)
    }

    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let touched = Arc::new(AtomicBool::new(false));
            // Before the look: what changes behind it is not missed.
            let _watch = self.watch(&touched);
            let seen = of_interest(&self.tables.read(), &self.facts);
            let mut patience = LOOK_ANYWAY;
            let mut deaf = Duration::ZERO;
            match self.attempt() {
                Ok(()) => {}
                Err(Unready(why)) => {
                    self.tell(Stage::Waiting, &why, None);
                    patience = LOOK_AGAIN;
                }
                Err(Failed(error)) => {
                    let why = error_chain(&error);
                    if self.status().why != why {
                        warn!(
                            error = why,
                            "Weft is not installed for the container runtime; trying again when something changes"
                        );
                    }
                    self.tell(Stage::Failed, &why, None);
                    deaf = LOOK_AGAIN;
                }
            }
            let changed = |c: &Contents| stop.load(Ordering::Relaxed) || of_interest(c, &self.facts) != seen;
            if self.tables.wait_for(deaf, |c| changed(c).then_some(())).is_none() {
                self.tables.wait_for(patience, |c| (touched.load(Ordering::Relaxed) || changed(c)).then_some(()));
            }
        }
    }

    /// Where somebody else installs.
    fn watch_node(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            if endpoint::not_ready(&self.tables, &self.facts).is_none() {
                return self.be_ready();
            }
            self.tables.wait_for(LOOK_AGAIN, |_| stop.load(Ordering::Relaxed).then_some(()));
        }
    }

    fn be_ready(&self) {
        if let Some(ready) = &self.ready {
            ready.send_replace(true);
        }
    }

    fn attempt(&mut self) -> Result<(), Outcome> {
        let plugin = self.config.plugin();
        let content = self.release.as_ref().as_ref().map_err(|e| InstallError::Source {
            path: self.config.source.clone(),
            source: io::Error::new(e.kind(), e.to_string()),
        })?;
        let placed = files::place(&plugin, content, EXECUTABLE)
            .map_err(|source| InstallError::Plugin { path: plugin.clone(), source })?;
        if placed != Placed::Same {
            info!(path = %plugin.display(), ?placed, "CNI plugin installed");
        }

        let path = self.config.conflist();
        let text = conflist::render(&self.config.socket);
        let there = files::compare(&path, text.as_bytes(), READABLE);
        let there = there.map_err(|source| InstallError::Conflist { path: path.clone(), source })?;
        // Once after each start, and whenever the configuration is to be written.
        if there != Placed::Same || self.status().self_test.is_empty() {
            self.wait_ready()?;
            let tested = self.probe.run().map_err(|source| InstallError::SelfTest { path: path.clone(), source })?;
            info!(result = %tested, "self-test passed");
            self.tell(Stage::Waiting, "the configuration is being written", Some(tested.to_string()));
        }
        if there == Placed::Changed {
            warn!(
                path = %path.display(),
                "the CNI configuration of Weft's own name had other content and is replaced; \
                 keep your own under another name, and set --cni-install no if it shall count alone"
            );
        }
        let placed = files::place(&path, text.as_bytes(), READABLE)
            .map_err(|source| InstallError::Conflist { path: path.clone(), source })?;
        if placed != Placed::Same {
            info!(path = %path.display(), ?placed, "CNI configuration installed");
        }
        self.look_at_others();
        self.tell(Stage::Installed, "", None);
        self.be_ready();
        Ok(())
    }

    /// Says once of each set of others' configurations that it is there.
    fn look_at_others(&self) {
        let others = foreign(&self.config);
        if !others.is_empty() && self.status().foreign != others {
            let list: Vec<String> = others.iter().map(|f| f.path.display().to_string()).collect();
            match others.iter().find(|f| f.first) {
                Some(first) => warn!(
                    path = %first.path.display(),
                    "the container runtime takes another CNI configuration before Weft's; it is left alone: rename it, or give \
                     Weft's a name that comes before (--cni-conf-name)"
                ),
                None => info!(others = list.join(", "), "other CNI configurations are there; the runtime takes Weft's"),
            }
        }
        self.report.lock().unwrap_or_else(PoisonError::into_inner).foreign = others;
    }

    /// Waits until this node's rows are in the kernel; the test needs the route to its pods.
    fn wait_ready(&self) -> Result<(), Outcome> {
        for row in [Row::Devices, Row::Node(self.facts.node.clone())] {
            // What is not in the kernel by then is told of below.
            drop(self.tables.wait_settled(&row, APPLIED_WITHIN));
        }
        endpoint::not_ready(&self.tables, &self.facts).map_or(Ok(()), |why| Err(Unready(why)))
    }

    /// Lets `touched` be set, and the tables' waiters wake, when a file of the two directories changes.
    fn watch(&self, touched: &Arc<AtomicBool>) -> Option<RecommendedWatcher> {
        let (touched, tables) = (Arc::clone(touched), Arc::clone(&self.tables));
        let files = [self.config.plugin(), self.config.conflist()];
        let temporaries = files.map(|file| files::temporary(&file).and_then(|t| t.file_name().map(OsStr::to_owned)));
        let is_temporary =
            move |path: &PathBuf| path.file_name().is_some_and(|n| temporaries.contains(&Some(n.to_owned())));
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // Reading is what we do ourselves at each look, and what becomes of a temporary tells nobody anything: one that
            // could not be placed would wake us at once to make it again.
            let of_our_own = |e: Event| {
                matches!(e.kind, EventKind::Access(_)) || (!e.paths.is_empty() && e.paths.iter().all(&is_temporary))
            };
            if !event.is_ok_and(of_our_own) {
                touched.store(true, Ordering::Relaxed);
                tables.kick();
            }
        })
        .ok()?;
        for directory in [&self.config.bin_dir, &self.config.conf_dir] {
            // What hinders here hinders the attempt too, which says so.
            drop(fs::create_dir_all(directory));
            drop(watcher.watch(directory, RecursiveMode::NonRecursive));
        }
        Some(watcher)
    }

    fn status(&self) -> InstallStatus {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, stage: Stage, why: &str, self_test: Option<String>) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.stage = stage;
        why.clone_into(&mut report.why);
        if let Some(result) = self_test {
            report.self_test = result;
        }
    }
}

impl Running {
    /// How it is; what the directories hold is read anew.
    pub fn status(&self) -> InstallStatus {
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        InstallStatus {
            plugin: self.config.plugin(),
            plugin_differs: differs(&self.config, &self.release),
            conflist: self.config.conflist(),
            foreign: foreign(&self.config),
            ..report
        }
    }

    /// Ends the thread, once the test that may be going on is through. What is installed stays.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tables.kick();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(thread.join());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Why an attempt did not come to its end.
enum Outcome {
    Unready(String),
    Failed(InstallError),
}
use Outcome::{Failed, Unready};
impl From<InstallError> for Outcome {
    fn from(error: InstallError) -> Self {
        Failed(error)
    }
}

/// What of the rows decides whether another attempt may come to something else.
fn of_interest(c: &Contents, facts: &Facts) -> impl PartialEq + use<> {
    (c.nodes.get(&facts.node).cloned(), c.devices.clone())
}

fn differs(config: &Config, release: &Release) -> String {
    let installed = config.plugin();
    match (fs::read(&installed), release) {
        (Err(e), _) => format!("{} cannot be read: {e}", installed.display()),
        (Ok(there), Ok(own)) if there != *own => {
            format!("{} is not the agent's own {}", installed.display(), config.source.display())
        }
        _ => String::new(),
    }
}

fn foreign(config: &Config) -> Vec<Foreign> {
    let mut ours_is_ahead = false;
    let mut found = Vec::new();
    let own = config.enabled.then(|| config.conflist());
    for file in configs::list(&config.conf_dir) {
        // Ours counts where it will be, too.
        ours_is_ahead |= file.is_ours() || own.as_ref().is_some_and(|own| *own < file.path);
        if !file.is_ours() && Some(&file.path) != own.as_ref() {
            found.push(Foreign { path: file.path, first: !ours_is_ahead });
        }
    }
    found
}
