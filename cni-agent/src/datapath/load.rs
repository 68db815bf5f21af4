//! Loads the object: maps from their pins where there are some, programs anew.
use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, TestRunOptions, VerifierLogLevel,
    maps::{Map, MapData},
    programs::{ProgramError, SchedClassifier, TestRun as _},
};
use cni_common::schema::{self, MapSpec};

use super::{RawMap, object, pins, pins::PinError};

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
    #[error("load program {name}")]
    Program {
        /// Which one.
        name: &'static str,
        /// The verifier's words are in it.
        #[source]
        source: Box<ProgramError>,
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
    ebpf: Ebpf,
    maps: BTreeMap<&'static str, RawMap>,
    encap_l2_eth: bool,
}

impl Datapath {
    /// Loads everything. With `pin_dir` (which must exist, on a bpffs) maps are adopted from there or pinned there; without
    /// it they go with the value: for tests.
    pub fn load(pin_dir: Option<&Path>) -> Result<Self, LoadError> {
        if object::OBJECT.is_empty() {
            return Err(LoadError::NoObject);
        }
        raise_memlock_limit();
        let mut loader = EbpfLoader::new();
        // The kernel's own types are for CO-RE, which we do not use, and would cost 15 MiB; those of our maps are in the object.
        loader.btf(None).verifier_log_level(VerifierLogLevel::STATS);
        if let Some(dir) = pin_dir {
            pins::check(dir)?;
            for spec in schema::ALL {
                loader.map_pin_path(spec.name, pins::path(dir, spec));
            }
        }
        let mut ebpf = loader.load(object::OBJECT).map_err(LoadError::Maps)?;
        for name in object::HOOKS.into_iter().chain([object::PROBE_ENCAP]) {
            let failed = |source| LoadError::Program { name, source: Box::new(source) };
            classifier(&mut ebpf, name)?.load().map_err(failed)?;
        }
        let mut maps = BTreeMap::new();
        for spec in schema::ALL {
            maps.insert(spec.name, open(&ebpf, spec)?);
        }
        let mut datapath = Self { ebpf, maps, encap_l2_eth: false };
        datapath.encap_l2_eth = datapath.probe_encap_l2_eth()?;
        datapath.write_fingerprints()?;
        Ok(datapath)
    }

    fn write_fingerprints(&self) -> Result<(), LoadError> {
        let schema = self.map(&schema::SCHEMA);
        for spec in schema::ALL {
            schema
                .update(&spec.id.to_ne_bytes(), &spec.fingerprint.to_ne_bytes())
                .map_err(|source| LoadError::Map { name: spec.name, source })?;
        }
        Ok(())
    }

    /// Whether `bpf_skb_adjust_room` takes `ENCAP_L2_ETH`: found by trying. 5.10 loads a program that gives the flag, and then drops
    /// every packet.
    fn probe_encap_l2_eth(&mut self) -> Result<bool, LoadError> {
        let mut frame = [0_u8; 64];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[14] = 0x45;
        let name = object::PROBE_ENCAP;
        let run = classifier(&mut self.ebpf, name)?.test_run(TestRunOptions {
            data_in: Some(&frame),
            repeat: 1,
            ..TestRunOptions::default()
        });
        // A kernel without TEST_RUN for this program type is older than any that loads the object.
        let run = run.map_err(|source| LoadError::Program { name, source: Box::new(source) })?;
        Ok(run.return_value == 0)
    }

    /// Whether NICs may be told of the inner Ethernet header.
    pub fn encap_l2_eth(&self) -> bool {
        self.encap_l2_eth
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

    /// The descriptor of a loaded program, one of [`object::HOOKS`].
    pub fn program(&self, name: &'static str) -> Result<BorrowedFd<'_>, LoadError> {
        let program: &SchedClassifier =
            self.ebpf.program(name).and_then(|p| p.try_into().ok()).ok_or(LoadError::Missing(name))?;
        let fd = program.fd().map_err(|source| LoadError::Program { name, source: Box::new(source) })?;
        Ok(fd.as_fd())
    }

    /// The aya program, for BPF_PROG_TEST_RUN and its facts.
    pub fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier, LoadError> {
        classifier(&mut self.ebpf, name)
    }

    /// Hands what the programs log to `tracing`, on a thread that ends with the process. Only in debugging builds.
    #[cfg(feature = "bpf-log")]
    pub fn follow_log(&mut self) -> anyhow::Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut log = aya_log::EbpfLogger::init(&mut self.ebpf)?;
        std::thread::Builder::new().name("bpf-log".into()).spawn(move || {
            while poll(&mut [PollFd::new(log.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).is_ok() {
                log.flush();
            }
        })?;
        Ok(())
    }

    /// Takes the event ring out, to be read; once.
    pub fn take_events(&mut self) -> Result<Map, LoadError> {
        self.ebpf.take_map(schema::EVENTS.name).ok_or(LoadError::Missing(schema::EVENTS.name))
    }
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
        Map::Array(m) | Map::HashMap(m) | Map::LpmTrie(m) | Map::PerCpuArray(m) | Map::RingBuf(m) => Some(m),
        _ => None,
    }
}

/// Before 5.11 maps count against the limit of locked memory.
fn raise_memlock_limit() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    if let Err(e) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!(error = %e, "cannot raise the limit of locked memory; only kernels before 5.11 need it");
    }
}
