//! A node: a root of its own, the container runtime, the kubelet.
use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{pivot_root, sethostname},
};

use crate::{
    cgroups,
    files::{succeeds, write_file},
    init::Programs,
    layout::{DNS, Families, PAUSE_IMAGE, ROOT, directory, kubeconfig, logs, node_addresses, node_name},
    wait::until,
};

/// Names the directory with Kubernetes' programs in one file, and the images.
const PROGRAMS: &str = "WEFT_CLUSTER_PROGRAMS";
/// Names further images, separated by colons: Weft's.
const IMAGES: &str = "WEFT_CLUSTER_IMAGES";

/// Kubernetes' programs in one file.
pub(crate) fn hyperkube() -> Result<PathBuf> {
    let directory = env::var_os(PROGRAMS)
        .with_context(|| format!("{PROGRAMS} names no directory of Kubernetes' programs: run `cargo xtask cluster`"))?;
    Ok(PathBuf::from(directory).join("hyperkube"))
}

/// Helm, beside it.
pub(crate) fn helm() -> Result<PathBuf> {
    Ok(hyperkube()?.with_file_name("helm"))
}

/// Puts further images where every node sees them.
pub(crate) fn provide_images() -> Result<()> {
    let place = provided();
    fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    let further = env::var_os(IMAGES).unwrap_or_default();
    for archive in env::split_paths(&further).filter(|p| !p.as_os_str().is_empty()) {
        let copy = place.join(archive.file_name().unwrap_or_default());
        fs::copy(&archive, copy).with_context(|| format!("copy the image {}", archive.display()))?;
    }
    Ok(())
}

fn provided() -> PathBuf {
    Path::new(ROOT).join("images")
}

/// The image archives that each node has from the start, the small ones first.
pub(crate) fn images() -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for dir in [hyperkube()?.with_file_name("images"), provided()] {
        let what = || format!("list the images in {}", dir.display());
        for entry in fs::read_dir(&dir).with_context(what)? {
            all.push(entry.with_context(what)?.path());
        }
    }
    all.sort_by_key(|file| fs::metadata(file).map(|m| m.len()).unwrap_or_default());
    Ok(all)
}

/// The file that says that node `number` has the image of this archive.
pub(crate) fn imported(number: u8, archive: &Path) -> PathBuf {
    directory(&node_name(number)).join("imported").join(archive.file_name().unwrap_or_default())
}

/// Furnishes node `number` and starts its programs.
pub(crate) fn start(number: u8) -> Result<Programs> {
    let name = node_name(number);
    sethostname(&name).context("set the node's host name")?;
    enter_root(&directory(&name))?;
    write_file(Path::new("/etc/containerd/config.toml"), &containerd_config())?;
    write_file(Path::new(KUBELET_CONFIG), &kubelet_config())?;
    let mut programs = Programs::new(logs(&name));
    programs.start("containerd", &["containerd"])?;
    let socket = Path::new(CONTAINERD);
    until("socket of containerd", Duration::from_secs(30), || Ok(socket.exists().then_some(())))?;
    let node_ip = Path::new("/").join(NODE_IP);
    write_file(&node_ip, &Families::of_cluster().texts(node_addresses(number)).join(","))?;
    fs::create_dir_all(Path::new("/").join(STATIC_PODS)).context("make the directory of static pods")?;
    let hyperkube = hyperkube()?;
    let hyperkube = hyperkube.to_str().context("the path of hyperkube")?;
    programs.start(
        "kubelet",
        &[
            // It takes its addresses as a flag only, and they may be others when it is started anew.
            "sh",
            "-c",
            &format!("exec \"$0\" \"$@\" --node-ip=\"$(cat {})\"", node_ip.display()),
            hyperkube,
            "kubelet",
            &format!("--config={KUBELET_CONFIG}"),
            &format!("--kubeconfig={}", kubeconfig(&name).display()),
            &format!("--hostname-override={name}"),
            "--v=2",
        ],
    )?;
    for archive in images()? {
        succeeds(Command::new("ctr").args(["-n", "k8s.io", "images", "import"]).arg(&archive))?;
        write_file(&imported(number, &archive), "")?;
    }
    Ok(programs)
}

const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// Where a node's kubelet finds its addresses, below the node's root.
pub(crate) const NODE_IP: &str = "var/lib/kubelet/node-ip";
/// Where a node's kubelet finds its static pods, below the node's root.
pub(crate) const STATIC_PODS: &str = "etc/kubernetes/manifests";
const KUBELET_CONFIG: &str = "/var/lib/kubelet/config.json";

/// Makes an overlay over the machine's root this process' root, with what is a node's own in it.
fn enter_root(dir: &Path) -> Result<()> {
    let none = None::<&str>;
    let at = |place: &Path| {
        let place = place.to_owned();
        move || format!("mount {}", place.display())
    };
    let make = |place: &Path| fs::create_dir_all(place).with_context(|| format!("make {}", place.display()));
    let fresh = |kind: &str, place: &Path, options: Option<&str>| {
        make(place)?;
        mount(Some(kind), place, Some(kind), MsFlags::empty(), options).with_context(at(place))
    };
    let bind = |from: &Path, place: &Path, more: MsFlags| {
        make(place)?;
        mount(Some(from), place, none, MsFlags::MS_BIND | more, none).with_context(at(place))
    };
    let (layers, root, log) = (dir.join("layers"), dir.join("root"), dir.join("log"));
    fresh("tmpfs", &layers, Some("mode=0755"))?;
    let (upper, work, data) = (layers.join("upper"), layers.join("work"), layers.join("data"));
    for place in [&upper, &work, &root, &log] {
        make(place)?;
    }
    let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str())).with_context(at(&root))?;
    let inside = |place: &str| root.join(place);
    // An overlay can not be the upper layer of another: what makes overlays of its own needs plain places.
    for name in ["containerd", "kubelet", "cni"] {
        let from = data.join(name);
        make(&from)?;
        bind(&from, &inside("var/lib").join(name), MsFlags::empty())?;
    }
    fresh("proc", &inside("proc"), None)?;
    bind(Path::new("/dev"), &inside("dev"), MsFlags::MS_REC)?;
    // Devices of this network namespace.
    fresh("sysfs", &inside("sys"), None)?;
    fresh("bpf", &inside("sys/fs/bpf"), None)?;
    fresh("tmpfs", &inside("run"), Some("mode=0755"))?;
    fresh("tmpfs", &inside("tmp"), None)?;
    make(&inside("run/lock"))?;
    // Wherever they are: the overlay has none of the machine's other file systems, and the node's /tmp is empty.
    let programs = hyperkube()?;
    let programs = programs.parent().context("the directory of Kubernetes' programs")?;
    bind(programs, &root.join(programs.strip_prefix("/").unwrap_or(programs)), MsFlags::empty())?;
    mount_cgroups(&inside("sys/fs/cgroup"))?;
    let own = Path::new(ROOT);
    bind(own, &root.join(own.strip_prefix("/").unwrap_or(own)), MsFlags::empty())?;
    bind(&log, &inside("var/log"), MsFlags::empty())?;
    // A runtime of the machine's may have networks and plugins; they are none of the node's.
    for place in ["etc/cni", "opt/cni"].map(inside).iter().filter(|p| p.exists()) {
        fs::remove_dir_all(place).with_context(|| format!("empty {}", place.display()))?;
    }
    for place in ["etc/cni/net.d", "opt/cni/bin"].map(inside) {
        make(&place)?;
    }
    let old = inside(".old");
    make(&old)?;
    pivot_root(&root, &old).context("change the root")?;
    env::set_current_dir("/").context("enter the new root")?;
    umount2("/.old", MntFlags::MNT_DETACH).context("let go of the machine's root")?;
    fs::remove_dir("/.old").context("remove the place of the machine's root")?;
    // Kubelet and runtime mount for pods, and pods for the node.
    mount(none, "/", none, MsFlags::MS_SHARED | MsFlags::MS_REC, none).context("share the node's mounts")
}

/// This cgroup namespace's view of every hierarchy.
fn mount_cgroups(place: &Path) -> Result<()> {
    let mount = |kind: &str, place: &Path, options: Option<&str>| {
        fs::create_dir_all(place)
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(mount(Some(kind), place, Some(kind), MsFlags::empty(), options)?))
            .with_context(|| format!("mount {}", place.display()))
    };
    let hierarchies = cgroups::hierarchies()?;
    if hierarchies.is_empty() {
        return mount("cgroup2", place, None);
    }
    mount("tmpfs", place, Some("mode=0755"))?;
    for controllers in hierarchies {
        let name = controllers.strip_prefix("name=").unwrap_or(&controllers);
        mount("cgroup", &place.join(name), Some(&controllers))?;
        // `cpu,cpuacct` is looked for by either name.
        for link in name.split(',').filter(|part| *part != name) {
            symlink(name, place.join(link)).with_context(|| format!("name {link}"))?;
        }
    }
    mount("cgroup2", &place.join("unified"), None)
}

fn containerd_config() -> String {
    // Lowering a process' OOM score takes CAP_SYS_RESOURCE, which not every machine gives.
    format!(
        r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
"#
    )
}

fn kubelet_config() -> String {
    serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "failSwapOn": false,
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        // The machine's disk may be as full as it is.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "100Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%",
        },
        "nodeStatusUpdateFrequency": "2s",
        "syncFrequency": "10s",
        "serializeImagePulls": false,
        "maxPods": 250,
        "staticPodPath": format!("/{STATIC_PODS}"),
        "makeIPTablesUtilChains": false,
    })
    .to_string()
}
