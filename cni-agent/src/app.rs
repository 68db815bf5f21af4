//! Wires the parts: the one file that knows all of them.
use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use cni_common::{maps::Endpoint, schema};
use cni_plugin::tombstone;
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
    time::{ClockId, clock_getres},
};
use tracing::{error, info, warn};

use crate::{
    api::{self, Inspect},
    cni::{
        CniHandler,
        calls::Calls,
        server::{Server, ServerConfig},
    },
    compile::{Facts, Masquerade},
    conntrack::{Sweeper, Viewer},
    datapath::{Datapath, attach, features, features::Features, hits, load::LoadError, object},
    endpoint::{EndpointManager, Parts, Restored, mtu, record::RecordStore},
    error_chain,
    fault::{self, Point},
    inspect::Inspector,
    install::{self, Installer, SelfTest},
    kube::{self, Access, KubeApi, Own},
    metrics::{self, Metrics},
    netlink::Socket,
    node::{
        devices,
        reserved::{ReserveError, ReservedPorts},
        watch,
    },
    observe::Observer,
    reconcile::{Hooks, Reconciler},
    settings::{Settings, SourceKind, YesNo},
    sources::{Source, manifests::ManifestDir},
    tables::Tables,
};

/// Runs the agent until it is told to stop. Programs, maps and devices stay behind: pods' packets flow on.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    let began = Instant::now();
    if let Some(at) = settings.die_at {
        fault::arm(at);
    }
    let _lock = lock(&settings.run_dir)?;
    fault::pass(Point::StartLocked);
    let features = Features::try_all(&settings.without);
    features.check()?;
    features.log();
    let tcx = features.has(features::TCX);
    let pin_dir = bpffs(&settings.bpffs)?;

    let mut datapath = start_datapath(settings, &pin_dir).context("load the datapath; what ran before runs on")?;
    #[cfg(feature = "bpf-log")]
    datapath.follow_log().context("read the programs' log")?;
    datapath.forget_code();
    let ring = datapath.take_events()?;
    hits::forget_sets(&datapath).context("forget what was counted by numbers of policy sets")?;
    let datapath = Arc::new(datapath);
    let mut socket = Socket::open()?;
    let ours = devices::ensure(&mut socket, settings.tunnel_port).context("make the node's devices")?;
    fault::pass(Point::StartDevices);
    let own = attach::Own { weft_net: ours.weft_net, weft_vxlan: ours.weft_vxlan };
    let own_hooks = match datapath.waits() {
        false => Some(attach::own(&mut socket, &pin_dir, &datapath, own, tcx)?),
        true => None,
    };
    if own_hooks.is_none() {
        info!(maps = ?datapath.others(), "another build's programs run on until this one's maps are filled");
    }

    let facts = Facts {
        node: settings.node_name.clone(),
        underlay: settings.underlay,
        tunnel_port: settings.tunnel_port,
        cluster_cidrs: settings.cluster_cidr.clone(),
        service_cidrs: settings.service_cidr.clone(),
        mtu: settings.mtu,
        event_rate: settings.event_rate,
        weft_host: ours.weft_host,
        weft_vxlan: ours.weft_vxlan,
        encap_l2_eth: features.has(features::ENCAP_L2_ETH),
        hz: ticks_per_second()?,
        // The manifest directory's objects need not be complete.
        objects_are_all: settings.source == SourceKind::Kube,
        masquerade: (settings.masquerade == YesNo::Yes)
            .then(|| Masquerade { ports: settings.masquerade_ports, spared: settings.no_masquerade_cidr.clone() }),
    };
    let tables = Arc::new(Tables::of_node(&settings.node_name));
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    let records = RecordStore::open(&settings.state_dir, boot_id.trim())?;
    reserve_ports(settings, &boot_id)?;
    let served = served(&datapath).context("read the endpoints that a former agent left")?;
    let sweeper = Sweeper::start(Arc::clone(&datapath), &features, facts.hz).context("start the sweep of conntrack")?;
    let flows = Viewer::new(Arc::clone(&datapath), Arc::clone(&tables), sweeper.clone(), &features, facts.hz);
    let parts = Parts {
        tables: Arc::clone(&tables),
        facts: facts.clone(),
        records: records.clone(),
        datapath: Arc::clone(&datapath),
        sweeper,
        tombstones: settings.run_dir.join(tombstone::DIRECTORY),
    };
    let Restored { manager, dead } = EndpointManager::restore(parts, &served)?;
    let endpoints = Arc::new(manager);
    fault::pass(Point::StartRestored);
    mtu::start(Arc::clone(&tables), facts.clone(), records.clone())?;

    let verify_every = Duration::from_secs(settings.verify_every.into());
    let hooks = Hooks::new(Socket::open()?, pin_dir, tcx, (own, own_hooks));
    let mut reconciler =
        Reconciler::new(Arc::clone(&tables), Arc::clone(&datapath), facts.clone(), hooks, verify_every)?;
    reconciler.forget_devices(&dead);
    let (report, requests, policies) = (reconciler.report(), reconciler.requests(), reconciler.policies());
    let (stop_reconciler, stopped) = mpsc::channel();
    let reconciling = spawn("reconciler", move || reconciler.run(&stopped))?;
    let (tell_gone, pods_gone) = mpsc::channel();
    let _watch = watch::start(Arc::clone(&tables), facts.clone(), settings.device.clone(), tell_gone)?;
    let (tell_ready, ready) = tokio::sync::watch::channel(false);
    let cluster = cluster_source(settings, ready).start(Arc::clone(&tables))?;

    let denials = Arc::clone(&policies);
    let observer = Observer::start(ring, Arc::clone(&tables), move |event, cookie, class| {
        denials.lock().unwrap_or_else(PoisonError::into_inner).explain(event, cookie, class);
    })?;
    let cni_socket = settings.run_dir.join("cni.sock");
    let probe = SelfTest { endpoints: Arc::clone(&endpoints), tables: Arc::clone(&tables), facts: facts.clone() };
    let installer = Installer::new(install_config(settings, &cni_socket)?, Arc::clone(&tables), facts.clone(), probe)
        .telling(tell_ready);
    endpoints.replay_tombstones();
    fault::pass(Point::StartReplayed);
    let calls = Calls::default();
    let config = ServerConfig { calls: calls.clone(), ..ServerConfig::new(&cni_socket) };
    let cni = Server::start(config, Arc::clone(&endpoints) as Arc<dyn CniHandler>)?;
    fault::pass(Point::StartServing);
    let (stop_replay, replay_stopped) = mpsc::channel();
    let (manager, lines) = (Arc::clone(&endpoints), cni.lines());
    let replaying = spawn("tombstones", move || manager.replay_in_line(&lines, &replay_stopped))?;
    let (manager, lines) = (Arc::clone(&endpoints), cni.lines());
    // It ends with the process, as the watch does.
    spawn("dead-pods", move || manager.bury_dead_pods(&lines, &pods_gone))?;
    let installing = Arc::new(installer.start()?);
    let inspector = Inspector {
        settings: settings.clone(),
        facts,
        tables: Arc::clone(&tables),
        datapath,
        manager: endpoints,
        records,
        report,
        requests,
        source: cluster.report(),
        observer,
        install: Arc::clone(&installing),
        began,
        features,
        flows,
        policies,
    };
    info!(node = settings.node_name, took = ?began.elapsed(), "weft-agent is up");

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let inspector: Arc<dyn Inspect> = Arc::new(inspector);
    let starts = metrics::count_start(&settings.run_dir);
    let metrics = Metrics::new(Arc::clone(&inspector), calls, kube::now(), starts);
    let ended =
        runtime.block_on(serve(settings.run_dir.join("api.sock"), inspector, (settings.metrics_address, metrics)));
    installing.stop();
    drop(stop_replay);
    if replaying.join().is_err() {
        error!("the thread that replays tombstones had panicked");
    }
    cni.shutdown();
    drop(cluster);
    drop(stop_reconciler);
    tables.kick();
    if reconciling.join().is_err() {
        error!("the reconciler had panicked");
    }
    info!("weft-agent stops; programs and maps stay");
    ended
}

/// Where the cluster's objects come from.
fn cluster_source(settings: &Settings, ready: tokio::sync::watch::Receiver<bool>) -> Box<dyn Source> {
    match settings.source {
        SourceKind::Manifests => Box::new(ManifestDir::new(&settings.manifests)),
        SourceKind::Kube => {
            let access = Access {
                api: settings.kube_api.clone(),
                kubeconfig: settings.kubeconfig.clone(),
                kubelet: settings.kubelet_kubeconfig.clone(),
                known: settings.cache_dir.join(kube::KNOWN),
            };
            Box::new(KubeApi::new(access, Own { node: settings.node_name.clone(), ready }))
        }
    }
}

fn start_datapath(settings: &Settings, pin_dir: &Path) -> anyhow::Result<Datapath> {
    let other =
        settings.bpf_object.as_ref().map(|file| fs::read(file).with_context(|| format!("read {}", file.display())));
    let other = other.transpose()?;
    let started = Datapath::start(other.as_deref().unwrap_or(object::OBJECT), pin_dir);
    if started.is_err() {
        // It goes if this start has made it, and nobody else has anything in it.
        drop(fs::remove_dir(pin_dir));
    }
    Ok(started?)
}

/// Makes the node's own programs leave the ports of masquerade alone. Without that they only may get one that a flow would like to have: a
/// node on which it cannot be done, as in a container that may not write to `/proc/sys`, is no reason to serve no pod.
fn reserve_ports(settings: &Settings, boot_id: &str) -> anyhow::Result<()> {
    let ports = ReservedPorts::new(&settings.reserved_ports_file, &settings.state_dir, boot_id);
    let done = match settings.masquerade {
        YesNo::Yes => ports.reserve(settings.masquerade_ports),
        YesNo::No => ports.give_back(),
    };
    match done {
        Err(e @ ReserveError::NoneLeft { .. }) => Err(e.into()),
        Err(e) => {
            let (error, range) = (error_chain(&e), settings.masquerade_ports);
            warn!(
                error,
                "cannot make net.ipv4.ip_local_reserved_ports what it should be; let the agent write to --reserved-ports-file, or see to it yourself \
                 that it has {range} while pods are masqueraded"
            );
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn install_config(settings: &Settings, socket: &Path) -> anyhow::Result<install::Config> {
    let own = std::env::current_exe().context("find the directory of this program")?;
    Ok(install::Config {
        enabled: settings.cni_install == YesNo::Yes,
        source: own.with_file_name(install::configs::PLUGIN),
        bin_dir: settings.cni_bin_dir.clone(),
        conf_dir: settings.cni_conf_dir.clone(),
        conf_name: settings.cni_conf_name.clone(),
        // The plugin is called with whatever working directory the runtime has.
        socket: std::path::absolute(socket).context("make the path of the CNI socket absolute")?,
    })
}

/// Interface index and addresses of each endpoint in the maps.
fn served(datapath: &Datapath) -> Result<BTreeMap<u32, Vec<IpAddr>>, LoadError> {
    let endpoints = datapath.in_use(&schema::ENDPOINTS)?;
    let read = |(key, value): (Vec<u8>, Vec<u8>)| {
        let index = u32::from_ne_bytes(key.try_into().ok()?);
        let e: Endpoint = bytemuck::try_pod_read_unaligned(&value).ok()?;
        let all = [IpAddr::V4(e.addr4.into()), IpAddr::V6(e.addr6.into())];
        Some((index, all.into_iter().filter(|a| !a.is_unspecified()).collect()))
    };
    Ok(endpoints.into_iter().filter_map(read).collect())
}

async fn serve(
    socket: PathBuf,
    inspector: Arc<dyn Inspect>,
    (address, metrics): (Option<SocketAddr>, Metrics),
) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let metrics = async {
        match address {
            Some(address) => metrics::serve(address, Arc::new(metrics)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = metrics => Ok(()),
        r = api::serve(&socket, inspector) => r.context("serve the API"),
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(work)
}

/// One agent a node: two would undo each other's work.
fn lock(run_dir: &Path) -> anyhow::Result<Flock<fs::File>> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(run_dir);
    made.with_context(|| format!("make the directory {}", run_dir.display()))?;
    let path = run_dir.join("lock");
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            bail!("another weft-agent runs on {}; stop it first, or give this one another --run-dir", run_dir.display())
        }
        Err((_, e)) => Err(io::Error::from(e)).with_context(|| format!("lock {}", path.display())),
    }
}

/// Whether this process' mounts go with a container of a pod: Kubernetes tells those inside.
fn in_pod() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

/// The directory of our pins, on a BPF file system that is mounted if it is not there.
fn bpffs(dir: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("make the directory {}", dir.display()))?;
    let kind = statfs(dir).with_context(|| format!("look at {}", dir.display()))?.filesystem_type();
    if kind != BPF_FS_MAGIC {
        if in_pod() {
            bail!(
                "there is no BPF file system on {}: one that is mounted here would go with this container, and every pod's network with it. Mount it on the \
                 node (`mount -t bpf bpf /sys/fs/bpf`; systemd does it by itself) and give it to the container as a volume (hostPath)",
                dir.display()
            );
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bpf"), dir, Some("bpf"), flags, Some("mode=0700")).with_context(|| {
            format!(
                "mount a BPF file system on {} (needs CAP_SYS_ADMIN; or mount it yourself: `mount -t bpf bpf {}`)",
                dir.display(),
                dir.display()
            )
        })?;
        info!(path = %dir.display(), "mounted a BPF file system");
    }
    let pins = dir.join("weft");
    fs::create_dir_all(&pins).with_context(|| format!("make the directory {}", pins.display()))?;
    Ok(pins)
}

/// The coarse clock moves once a tick, and `bpf_jiffies64` counts ticks.
fn ticks_per_second() -> anyhow::Result<u32> {
    let tick: Duration = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).context("ask for the length of a tick")?.into();
    let nanos = u32::try_from(tick.as_nanos()).unwrap_or(1_000_000_000).max(1);
    Ok(1_000_000_000 / nanos)
}
