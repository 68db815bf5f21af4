//! The manifest directory as a source: Node and Pod objects in files, followed with inotify.
//!
//! An event only says that it is time to look: each look lists the directory and reads what changed, so events that are
//! lost, merged or late do no harm. A file that does not parse keeps its last good objects. When the directory itself goes
//! away, everything stays as it was until there is one again.
mod files;
pub mod parse;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};

use self::files::Files;
use super::{Report, Running, Source, SourceStatus};
use crate::tables::{self, Tables};

/// A look without an event: what inotify lost is found so much later at most.
const LOOK_ANYWAY: Duration = Duration::from_secs(60);
/// How often a directory that is gone is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Bytes of a file at most: a manifest far beyond what an API server would take is a mistake, and memory is bounded.
const MAX_FILE: u64 = 4 << 20;

/// Follows a directory of manifests.
#[derive(Debug)]
pub struct ManifestDir {
    directory: PathBuf,
}
impl ManifestDir {
    /// Of this directory; it is made when it does not exist.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }
}

impl Source for ManifestDir {
    fn start(self: Box<Self>, tables: Arc<Tables>) -> anyhow::Result<Running> {
        let directory = self.directory;
        fs::create_dir_all(&directory).with_context(|| {
            format!("make the manifest directory {}; --manifests names another", directory.display())
        })?;
        let report = Arc::new(Report::new(SourceStatus {
            name: "manifests".into(),
            origin: directory.display().to_string(),
            ..SourceStatus::default()
        }));
        let (wake, woken) = mpsc::channel();
        let stop = wake.clone();
        let mut follower = Follower {
            directory,
            wake,
            watch: None,
            tables,
            report: Arc::clone(&report),
            files: Files::default(),
            seen: BTreeMap::new(),
            trouble: None,
        };
        follower.watch()?;
        let thread = thread::Builder::new()
            .name("manifests".into())
            .spawn(move || follower.run(&woken))
            .context("start the thread that follows the manifest directory")?;
        Ok(Running::new(report, move || {
            // Either fails only when the thread has ended before, and then there is nothing to stop.
            drop(stop.send(Wake::Stop));
            drop(thread.join());
        }))
    }
}

enum Wake {
    /// Something happened; of these files a look must read the content again, whatever their metadata says.
    Look(Vec<PathBuf>),
    /// inotify lost events: read everything again.
    LookAtAll,
    Stop,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    modified: (i64, i64),
    changed: (i64, i64),
    size: u64,
}
impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            inode: (meta.dev(), meta.ino()),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            size: meta.size(),
        }
    }
}

struct Follower {
    directory: PathBuf,
    wake: mpsc::Sender<Wake>,
    /// The watch, and device and inode of the directory that it is on.
    watch: Option<(RecommendedWatcher, (u64, u64))>,
    tables: Arc<Tables>,
    report: Arc<Report>,
    files: Files,
    seen: BTreeMap<String, Stamp>,
    /// What is wrong with the directory itself.
    trouble: Option<String>,
}

impl Follower {
    fn run(mut self, woken: &mpsc::Receiver<Wake>) {
        let mut again = BTreeSet::new();
        loop {
            self.look(&again);
            again.clear();
            let patience = if self.trouble.is_some() { LOOK_AGAIN } else { LOOK_ANYWAY };
            // All that has come in meanwhile is answered by one look.
            let first = woken.recv_timeout(patience).into_iter();
            for wake in first.chain(woken.try_iter()) {
                match wake {
                    Wake::Look(paths) => again.extend(paths.iter().filter_map(|p| manifest_name(p))),
                    Wake::LookAtAll => self.seen.clear(),
                    Wake::Stop => return,
                }
            }
        }
    }

    /// Lists the directory, reads what is new, and brings the tables up to date.
    fn look(&mut self, again: &BTreeSet<String>) {
        let listed = match self.watch().and_then(|()| self.list()) {
            Ok(listed) => listed,
            Err(error) => {
                let trouble = format!("{error:#}; the objects read before stay in use");
                if self.trouble.as_ref() != Some(&trouble) {
                    tracing::warn!(directory = %self.directory.display(), trouble, "manifest directory cannot be followed");
                }
                self.trouble = Some(trouble);
                self.watch = None;
                self.tell();
                return;
            }
        };
        if self.trouble.take().is_some() {
            tracing::info!(directory = %self.directory.display(), "manifest directory is followed again");
        }
        let gone: Vec<String> = self.seen.keys().filter(|name| !listed.contains_key(*name)).cloned().collect();
        for name in gone {
            self.seen.remove(&name);
            self.files.removed(&name);
        }
        for (name, meta) in listed {
            let stamp = Stamp::of(&meta);
            if self.seen.get(&name) == Some(&stamp) && !again.contains(&name) {
                continue;
            }
            self.read(&name, &meta);
            self.seen.insert(name, stamp);
        }
        self.files.publish(&self.tables);
        if self.files.complete() {
            self.tables.mark_synced(tables::Source::Cluster);
        }
        self.tell();
    }

    fn read(&mut self, name: &str, meta: &Metadata) {
        match read_text(&self.directory.join(name)) {
            Ok(text) => match parse::objects(&text) {
                Ok(objects) => {
                    tracing::debug!(file = name, objects = objects.objects.len(), "manifest file read");
                    self.files.good(name, meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), objects);
                }
                Err(error) => self.files.bad(name, &error.to_string()),
            },
            // Removed since it was listed: the next look, for which there is an event, will not list it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.files.bad(name, &error.to_string()),
        }
    }

    /// The manifests in the directory. A name whose link leads nowhere is not listed.
    fn list(&self) -> anyhow::Result<BTreeMap<String, Metadata>> {
        let what = || format!("list the manifest directory {}", self.directory.display());
        let mut listed = BTreeMap::new();
        for entry in fs::read_dir(&self.directory).with_context(what)? {
            let path = entry.with_context(what)?.path();
            if let (Some(name), Ok(meta)) = (manifest_name(&path), fs::metadata(&path))
                && meta.is_file()
            {
                listed.insert(name, meta);
            }
        }
        // A directory that was moved away meanwhile looks as if its files had been removed.
        let meta = fs::metadata(&self.directory).with_context(what)?;
        let still_there = self.watch.as_ref().is_some_and(|(_, watched)| *watched == (meta.dev(), meta.ino()));
        anyhow::ensure!(still_there, "the manifest directory {} was replaced", self.directory.display());
        Ok(listed)
    }

    /// Sees to it that the watch is on the directory that has the name now.
    fn watch(&mut self) -> anyhow::Result<()> {
        let directory = self.directory.display();
        let meta =
            fs::metadata(&self.directory).with_context(|| format!("look at the manifest directory {directory}"))?;
        let inode = (meta.dev(), meta.ino());
        if self.watch.as_ref().is_some_and(|(_, watched)| *watched == inode) {
            return Ok(());
        }
        let wake = self.wake.clone();
        let what = || {
            format!(
                "watch the manifest directory {directory} (when a limit is reached, raise fs.inotify.max_user_instances or \
                 fs.inotify.max_user_watches)"
            )
        };
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if let Some(message) = meaning(event) {
                // It fails only when the follower has ended.
                drop(wake.send(message));
            }
        })
        .with_context(what)?;
        watcher.watch(&self.directory, RecursiveMode::NonRecursive).with_context(what)?;
        self.watch = Some((watcher, inode));
        Ok(())
    }

    fn tell(&self) {
        let mut problems = self.files.problems();
        problems.extend(self.trouble.clone());
        let (objects, synced) = (self.files.count(), self.tables.is_synced(tables::Source::Cluster));
        self.report.update(|status| *status = SourceStatus { synced, objects, problems, ..status.clone() });
    }
}

/// What an event of the watch asks for. Reading a file or listing the directory makes events too: they ask for nothing, or
/// each look would cause the next.
fn meaning(event: notify::Result<Event>) -> Option<Wake> {
    match event {
        Ok(event) if event.need_rescan() => Some(Wake::LookAtAll),
        Ok(event) => match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Wake::Look(event.paths)),
            EventKind::Access(_) => None,
            EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => {
                Some(Wake::Look(event.paths))
            }
        },
        Err(error) => {
            tracing::warn!(%error, "watch of the manifest directory reports an error, everything is read again");
            Some(Wake::LookAtAll)
        }
    }
}

/// The file's name when it is one of a manifest: names that begin with a dot are files being written.
fn manifest_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let manifest = !name.starts_with('.') && matches!(path.extension()?.to_str()?, "yaml" | "yml" | "json");
    manifest.then(|| name.to_owned())
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE} bytes; split it")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
