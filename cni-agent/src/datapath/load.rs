//! Loads the object: maps from their pins where there are some, programs anew. Nothing is pinned before all of it is loaded, so that a load
//! that the kernel refuses leaves everything as it was; the agent then goes on with the programs that a former one pinned.
use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    panic::resume_unwind,
    path::Path,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::{Map, MapData},
    programs::{ProgramError, SchedClassifier},
};
use cni_common::schema::{self, MapSpec};
use tracing::{error, warn};

use super::{
    RawMap,
    generation::{self, Beside},
    layout, object, pins,
    pins::PinError,
    programs::{self, Program, Unfit},
    refusal::{self, Refusal, RefusedLoad},
    sizes::Sizes,
};
use crate::fault::{self, Point};

/// The object could not be loaded. Whatever ran before runs on.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Built by plain cargo.
    #[error("this binary holds no BPF object: it was built without one. Build it by `cargo xtask build`")]
    NoObject,
    /// A pinned map cannot be used.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Maps could not be made.
    #[error("create the BPF maps (needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; see `bpftool feature`)")]
    Maps(#[source] EbpfError),
    /// The kernel refused a program.
    #[error("the kernel refuses the program {} ({})", refusal.what, refusal.error)]
    Refused {
        /// Which one, and what the verifier says.
        refusal: Refusal,
        /// The same could be loaded a moment later.
        may_pass: bool,
    },
    /// A program failed otherwise.
    #[error("use program {name}")]
    Program {
        /// Which one.
        name: &'static str,
        /// Why.
        #[source]
        source: Box<ProgramError>,
    },
    /// Refused, and a former agent left nothing that would do instead.
    #[error(
        "{cause}, and {unfit}: start a release of Weft that this kernel takes, or another kernel, and report this with the \
         lines of the log above"
    )]
    NothingLeft {
        /// What was refused.
        cause: Box<Self>,
        /// Why not.
        unfit: Box<Unfit>,
    },
    /// The object lacks something that this build needs.
    #[error("the BPF object has no {0}; agent and object are not of one build")]
    Missing(&'static str),
    /// A map could not be read or written.
    #[error("use map {name}")]
    Map {
        /// Which one.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Loaded programs and open maps.
#[derive(Debug)]
pub struct Datapath {
    /// What was loaded; none when a former agent's programs run, or when nobody asks for it any more.
    ebpf: Option<Ebpf>,
    programs: BTreeMap<&'static str, Program>,
    maps: BTreeMap<&'static str, RawMap>,
    events: Option<Map>,
    refused: Option<RefusedLoad>,
    /// Where it is pinned, and what else is there.
    pub(super) beside: Option<Beside>,
}

impl Datapath {
    /// Loads everything. With `pin_dir` (which must exist, on a bpffs) maps are adopted from there or pinned there, and programs
    /// pinned, unless another build's programs run on until the maps are filled ([`waits`](Self::waits)); without it they go with the
    /// value: for tests.
    pub fn load(pin_dir: Option<&Path>) -> Result<Self, LoadError> {
        Self::load_object(object::OBJECT, pin_dir)
    }

    /// Loads an object and pins it in `pin_dir`; if the kernel refuses it, takes what a former agent left there.
    ///
    /// What failed for want of memory is tried again for three seconds before; what the verifier refused is not, as it would be again. An agent
    /// that serves with what was left does not try once more: it could only exchange the programs under its own feet, and the next start
    /// does that anyway.
    pub fn start(object: &[u8], pin_dir: &Path) -> Result<Self, LoadError> {
        let loaded = refusal::patiently(
            || Self::load_object(object, Some(pin_dir)),
            |e| e.may_pass(),
            |e, wait| {
                warn!(error = crate::error_chain(e), again_in = ?wait, "cannot load the datapath");
                // Nobody tells when there is memory again.
                thread::park_timeout(wait);
            },
        );
        let cause = match loaded {
            Err(e) if e.is_refusal() => e,
            other => return other,
        };
        let refusal = cause.refusal();
        let (what, error) = (refusal.what.as_str(), refusal.error.as_str());
        // Last, and each on a line of its own: they are what is read, and reported.
        let verifier = refusal.log.iter().fold(String::new(), |all, line| all + "\n    " + line);
        error!(what, error, %verifier, "the kernel refuses the datapath");
        match Self::adopt(pin_dir, refusal) {
            Ok(datapath) => {
                warn!("the programs of an earlier agent run on, and this one serves with them");
                Ok(datapath)
            }
            // It says itself what it needs.
            Err(Unfit::Nothing(_)) if matches!(cause, LoadError::Maps(_)) => Err(cause),
            Err(unfit) => Err(LoadError::NothingLeft { cause: Box::new(cause), unfit: Box::new(unfit) }),
        }
    }

    /// What a former agent left, as it was.
    fn adopt(pin_dir: &Path, refusal: Refusal) -> Result<Self, Unfit> {
        let left = programs::left(pin_dir)?;
        let path = pins::path(pin_dir, &schema::EVENTS);
        let events = MapData::from_pin(&path).map(Map::RingBuf);
        let events = events.map_err(|e| Unfit::Ask { path, cause: crate::error_chain(&e) })?;
        let seconds = |t: SystemTime| t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Ok(Self {
            ebpf: None,
            programs: left.programs,
            maps: left.maps,
            events: Some(events),
            beside: None,
            refused: Some(RefusedLoad {
                refusal,
                at: seconds(SystemTime::now()),
                running_since: left.since.map(seconds),
            }),
        })
    }

    /// As [`load`](Self::load), of an object that is not this binary's.
    pub fn load_object(object: &[u8], pin_dir: Option<&Path>) -> Result<Self, LoadError> {
        if object.is_empty() {
            return Err(LoadError::NoObject);
        }
        raise_memlock_limit();
        let (mut pinned, mut beside) = (Vec::new(), None);
        if let Some(dir) = pin_dir {
            pins::check(dir)?;
            let survey = generation::survey(&generation::names(dir)?);
            pinned.extend(survey.adopted.iter().map(|name| (*name, dir.join(name))));
            beside = Some(Beside::new(dir, survey));
        }
        let sizes = Sizes::of_node(pin_dir.unwrap_or(Path::new("")), &pinned)?;
        let create = |level| {
            let mut loader = EbpfLoader::new();
            sizes.apply(&mut loader);
            // The kernel's own types are for CO-RE, which we do not use; those of our maps are in the object. (aya 0.14 has read them by now:
            // 20 ms, and 13 MiB for that time.)
            loader.btf(None).verifier_log_level(level);
            for (name, path) in &pinned {
                loader.map_pin_path(name, path);
            }
            loader.load(object).map_err(LoadError::Maps)
        };
        let mut ebpf = create(VerifierLogLevel::STATS)?;
        for (name, loaded) in load_all(&mut ebpf)? {
            loaded.map_err(|e| {
                // Its reason is in the short log for certain; the way to it only in the long one, for which a buffer may be too small.
                let long = || match classifier(&mut create(VerifierLogLevel::DEBUG).ok()?, name).ok()?.load() {
                    Err(ProgramError::LoadError { verifier_log, .. }) => Some(verifier_log.to_string()),
                    _ => None,
                };
                refused(name, e, long)
            })?;
        }
        let mut maps = BTreeMap::new();
        for spec in schema::ALL {
            maps.insert(spec.name, open(&ebpf, spec)?);
        }
        let mut programs = BTreeMap::new();
        for name in object::HOOKS {
            programs.insert(name, program(classifier(&mut ebpf, name)?).map_err(failed(name))?);
        }
        let events = ebpf.take_map(schema::EVENTS.name);
        let datapath = Self { ebpf: Some(ebpf), programs, maps, events, refused: None, beside };
        datapath.write_fingerprints()?;
        fault::pass(Point::StartFingerprints);
        datapath.check_state()?;
        if let Some(dir) = pin_dir.filter(|_| !datapath.waits()) {
            datapath.pin(dir)?;
        }
        Ok(datapath)
    }

    pub(super) fn keep_programs(&self, dir: &Path) -> Result<(), PinError> {
        programs::keep(dir, &self.programs)
    }

    fn write_fingerprints(&self) -> Result<(), LoadError> {
        let (schema, layouts) = (self.map(&schema::SCHEMA), self.map(&schema::LAYOUTS));
        for spec in schema::ALL {
            schema
                .update(&spec.id.to_ne_bytes(), &spec.fingerprint.to_ne_bytes())
                .and_then(|()| layouts.update(&layout::key(spec.name), &layout::record(self.map(spec).spec())))
                .map_err(|source| LoadError::Map { name: spec.name, source })?;
        }
        Ok(())
    }

    /// The load that the kernel refused, when a former agent's programs are what runs.
    pub fn refused(&self) -> Option<&RefusedLoad> {
        self.refused.as_ref()
    }

    /// An open map.
    pub fn map(&self, spec: &MapSpec) -> &RawMap {
        // `load` has opened all of `schema::ALL`, and there are no others.
        &self.maps[spec.name]
    }

    /// An open map, by its name with or without the version.
    pub fn map_by_name(&self, name: &str) -> Option<&RawMap> {
        let plain = |full: &str| full.rsplit_once("_v").map_or(full, |(plain, _)| plain) == name;
        self.maps.get(name).or_else(|| self.maps.iter().find(|(full, _)| plain(full)).map(|(_, map)| map))
    }

    /// All maps, in the order of their names.
    pub fn maps(&self) -> impl Iterator<Item = &RawMap> {
        self.maps.values()
    }

    /// The descriptors of the object's maps by their names in it, also of those that hold its constants.
    pub fn map_fds(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        let constants =
            self.ebpf.iter().flat_map(Ebpf::maps).filter_map(|(name, map)| Some((name, data(map)?.fd().as_fd())));
        self.maps.iter().map(|(name, map)| (*name, map.fd())).chain(constants)
    }

    /// The descriptor of a program that runs, one of [`object::HOOKS`].
    pub fn program(&self, name: &'static str) -> Result<BorrowedFd<'_>, LoadError> {
        self.programs.get(name).map(|p| p.fd.as_fd()).ok_or(LoadError::Missing(name))
    }

    /// The kernel's number of a program that runs.
    pub fn program_id(&self, name: &'static str) -> Option<u32> {
        self.programs.get(name).map(|p| p.id)
    }

    /// The aya program, for BPF_PROG_TEST_RUN and its facts: only of what was loaded.
    pub fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier, LoadError> {
        classifier(self.ebpf.as_mut().ok_or(LoadError::Missing(name))?, name)
    }

    /// Lets go of the code that was loaded, a megabyte and more that only tests look at: programs and maps stay open.
    pub fn forget_code(&mut self) {
        self.ebpf = None;
    }

    /// Hands what the programs log to `tracing`, on a thread that ends with the process. Only in debugging builds.
    #[cfg(feature = "bpf-log")]
    pub fn follow_log(&mut self) -> anyhow::Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        // A former agent's programs log to a map of their own, if to any.
        let Some(ebpf) = &mut self.ebpf else { return Ok(()) };
        let mut log = aya_log::EbpfLogger::init(ebpf)?;
        std::thread::Builder::new().name("bpf-log".into()).spawn(move || {
            while poll(&mut [PollFd::new(log.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).is_ok() {
                log.flush();
            }
        })?;
        Ok(())
    }

    /// Takes the event ring out, to be read; once.
    pub fn take_events(&mut self) -> Result<Map, LoadError> {
        self.events.take().ok_or(LoadError::Missing(schema::EVENTS.name))
    }
}

impl LoadError {
    /// The kernel did not take what this agent brings; what ran before may do.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Maps(_) | Self::Program { .. })
    }

    fn may_pass(&self) -> bool {
        match self {
            Self::Refused { may_pass, .. } => *may_pass,
            other => refusal::may_pass(other),
        }
    }

    fn refusal(&self) -> Refusal {
        match self {
            Self::Refused { refusal, .. } => refusal.clone(),
            Self::Program { name, source } => Refusal::plain(name, source),
            other => Refusal::plain("maps", other),
        }
    }
}

/// What a load that failed says, and at length if the kernel did not like the program.
/// A program, and what became of its load.
type Attempt = (&'static str, Result<(), ProgramError>);

/// Loads the programs, each on a thread of its own: a start waits for little else, and the verifier has no lock for who may load programs.
/// In the order of [`object::HOOKS`].
fn load_all(ebpf: &mut Ebpf) -> Result<Vec<Attempt>, LoadError> {
    let mut programs: BTreeMap<&str, &mut SchedClassifier> =
        ebpf.programs_mut().filter_map(|(name, program)| Some((name, program.try_into().ok()?))).collect();
    let ours = object::HOOKS.map(|name| programs.remove(name).map(|p| (name, p)).ok_or(LoadError::Missing(name)));
    let ours = ours.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(thread::scope(|scope| {
        let loads = ours.into_iter().map(|(name, program)| (name, scope.spawn(|| program.load())));
        // All are under way before the first is waited for.
        let loads: Vec<_> = loads.collect();
        loads.into_iter().map(|(name, load)| (name, load.join().unwrap_or_else(|panic| resume_unwind(panic)))).collect()
    }))
}

fn refused(name: &'static str, e: ProgramError, long: impl FnOnce() -> Option<String>) -> LoadError {
    let ProgramError::LoadError { io_error, verifier_log } = &e else { return failed(name)(e) };
    let may_pass = refusal::may_pass(io_error);
    let long = if may_pass { None } else { long() };
    let refusal = Refusal::of_program(name, io_error, &verifier_log.to_string(), long.as_deref());
    LoadError::Refused { refusal, may_pass }
}

fn failed(name: &'static str) -> impl Fn(ProgramError) -> LoadError {
    move |source| LoadError::Program { name, source: Box::new(source) }
}

fn program(loaded: &SchedClassifier) -> Result<Program, ProgramError> {
    Ok(Program { fd: loaded.fd()?.as_fd().try_clone_to_owned()?, id: loaded.info()?.id() })
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, LoadError> {
    ebpf.program_mut(name).and_then(|p| p.try_into().ok()).ok_or(LoadError::Missing(name))
}

fn open(ebpf: &Ebpf, spec: &MapSpec) -> Result<RawMap, LoadError> {
    let map = ebpf.map(spec.name).and_then(data).ok_or(LoadError::Missing(spec.name))?;
    map.fd()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|fd| RawMap::new(fd, *spec))
        .map_err(|source| LoadError::Map { name: spec.name, source })
}

fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(m)
        | Map::HashMap(m)
        | Map::LruHashMap(m)
        | Map::LpmTrie(m)
        | Map::PerCpuArray(m)
        | Map::RingBuf(m) => Some(m),
        _ => None,
    }
}

/// Before 5.11 maps count against the limit of locked memory.
pub fn raise_memlock_limit() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    if let Err(e) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!(error = %e, "cannot raise the limit of locked memory; only kernels before 5.11 need it");
    }
}
