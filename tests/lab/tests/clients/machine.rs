//! A machine of its own for each test: mounts, processes and network namespaces that the host does not see.
//!
//! Container runtimes and libcni have places of their own on a host (`/etc/cni`, `/opt/cni`, `/var/lib/cni`, `/run/netns` …)
//! and leave processes behind that nobody waits for. So a test runs once more, as the first process of a new process
//! namespace with mounts of its own: when it ends, or is killed, all that it has started ends with it, and all that it has mounted
//! is gone. Only cgroups are the host's; those of a test stand below [`CGROUP`] and are removed behind it.
use std::{
    any, env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use cni_agent::netlink::netns;
use lab::{HELD_BY_PARENT, Lab, Quiet, Snapshot};
use nix::mount::{MsFlags, mount};

/// Set in the process that is a test's own machine.
const INSIDE: &str = "WEFT_CLIENTS_MACHINE";
/// The directory of the CNI project's own programs.
const REFERENCE: &str = "WEFT_CNI_REFERENCE";
/// The script that makes the image of all containers.
const IMAGE_SCRIPT: &str = include_str!("../../../clients/image.sh");
/// The image, as the script calls it.
pub const IMAGE: &str = "weft.test/busybox:1";
/// Where the containers' cgroups are, in every hierarchy.
pub const CGROUP: &str = "/weft-clients";

/// Runs `test` on a machine of its own and compares the host before and after. `test` must be a closure that is written in the
/// test's function: its type says what the test is called.
pub fn on_its_own<F: FnOnce()>(test: F) {
    if env::var_os(INSIDE).is_some() {
        furnish();
        return test();
    }
    need(&["unshare", "setpriv"]);
    // `clients::podman::a_test::{{closure}}`.
    let full = any::type_name::<F>().trim_end_matches("::{{closure}}");
    let name = full.split_once("::").map_or(full, |(_, name)| name);
    // A lab in there is another one, but its agents would be taken for the host's.
    let quiet = Quiet::wait().unwrap();
    Lab::remove_leftovers().unwrap();
    remove_cgroups();
    let before = Snapshot::take().unwrap();
    let output = again(name);
    remove_cgroups();
    let after = Snapshot::take();
    drop(quiet);
    for line in [&output.stdout, &output.stderr].into_iter().flat_map(|text| text.split(|b| *b == b'\n')) {
        println!("  | {}", String::from_utf8_lossy(line));
    }
    // Also if it has failed: what is left then is worth knowing.
    let mut difference = before.difference(&after.unwrap());
    // Cgroups inside of others' come and go with those who own them. A runtime makes its own at the top of a hierarchy.
    let inner = |fact: &String| fact.strip_prefix("cgroup /sys/fs/cgroup/").is_some_and(|c| c.split('/').count() > 2);
    difference.appeared.retain(|fact| !inner(fact));
    difference.vanished.retain(|fact| !inner(fact));
    assert!(difference.is_empty(), "the host is not as it was:\n{difference}");
    assert!(output.status.success(), "{name} failed on its own machine: {}", output.status);
    let ran = String::from_utf8_lossy(&output.stdout).contains("test result: ok. 1 passed");
    assert!(ran, "no test is called {name}");
}

/// This program once more, with the one test, on a new machine that dies with the calling thread.
fn again(name: &str) -> Output {
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc"])
        .arg(env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env(HELD_BY_PARENT, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Gives this machine directories of its own where runtimes and plugins keep things.
fn furnish() {
    for place in ["/run", "/var/lib", "/var/tmp", "/dev/shm"] {
        mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
            .unwrap_or_else(|e| panic!("mount a tmpfs on {place}: {e}"));
    }
    fs::create_dir("/run/lock").unwrap();
    // As `ip netns` does. Podman would do it later, and bind every namespace of the lab a second time.
    let none: Option<&str> = None;
    fs::create_dir(netns::DIRECTORY).unwrap();
    mount(Some(netns::DIRECTORY), netns::DIRECTORY, none, MsFlags::MS_BIND, none).unwrap();
    mount(none, netns::DIRECTORY, none, MsFlags::MS_SHARED, none).unwrap();
    // Where something is to be there and something is to be added: what is written stays on the tmpfs.
    for (name, place) in [("etc", "/etc"), ("opt", "/opt")] {
        let [upper, work] = ["upper", "work"].map(|part| format!("/run/{name}-{part}"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let options = format!("lowerdir={place},upperdir={upper},workdir={work}");
        mount(Some("overlay"), place, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap_or_else(|e| {
            panic!("mount an overlay on {place}: {e}; these tests need a kernel with overlayfs (modprobe overlay)")
        });
    }
    // A distribution's package may have put a network there, which is none of the test's.
    remove_tree(Path::new("/etc/cni"));
    fs::create_dir_all(CONFIGURATIONS).unwrap();
    fs::create_dir_all(PLUGINS).unwrap();
}

/// Where runtimes look for networks' configurations.
pub const CONFIGURATIONS: &str = "/etc/cni/net.d";
/// Where runtimes look for plugins.
pub const PLUGINS: &str = "/opt/cni/bin";

/// Installs the plugin that an agent has installed for its node, and these of the CNI project's, where runtimes look for them.
pub fn install_plugins(lab: &Lab, reference: &[&str]) {
    let ours = lab.nodes()[0].paths().cni_bin().join("weft-cni");
    for program in reference.iter().map(|name| self::reference(name)).chain([ours]) {
        fs::copy(&program, Path::new(PLUGINS).join(program.file_name().unwrap())).unwrap();
    }
}

/// A program of the CNI project's own.
pub fn reference(name: &str) -> PathBuf {
    const CURE: &str = "run `cargo xtask test --suite clients`, or build them as xtask/src/reference.rs does";
    let directory = env::var_os(REFERENCE)
        .unwrap_or_else(|| panic!("{REFERENCE} names no directory of the CNI project's own programs: {CURE}"));
    let program = PathBuf::from(directory).join(name);
    assert!(program.is_file(), "{} is missing: {CURE}", program.display());
    program
}

/// Fails, and says what to do, unless these programs can be started.
pub fn need(programs: &[&str]) {
    let there = |program: &&str| {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).any(|directory| directory.join(program).is_file())
    };
    let missing: Vec<_> = programs.iter().filter(|p| !there(p)).collect();
    assert!(missing.is_empty(), "{missing:?} are missing on PATH: `cargo xtask setup` installs them");
}

/// Makes the image of all containers and gives its file.
pub fn image() -> &'static Path {
    const FILE: &str = "/run/image.tar";
    need(&["busybox", "tar", "sha256sum"]);
    succeeds(Command::new("sh").args(["-c", IMAGE_SCRIPT, "image.sh", FILE]));
    Path::new(FILE)
}

/// What a program prints; it must end with 0.
pub fn succeeds(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a program leaves behind.
pub fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("start {command:?}: {e}"))
}

fn remove_tree(place: &Path) {
    match fs::remove_dir_all(place) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => panic!("remove {}: {e}", place.display()),
        _ => {}
    }
}

/// Removes our cgroups from every hierarchy: the one of version 2, and each of version 1.
fn remove_cgroups() {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        let mut ours = OsString::from(&hierarchy);
        ours.push(CGROUP);
        remove_cgroup(Path::new(&ours));
    }
}

/// The innermost first: a cgroup's files can not be removed, and go with it.
fn remove_cgroup(place: &Path) {
    let inner = fs::read_dir(place).into_iter().flatten().filter_map(Result::ok);
    for directory in inner.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_cgroup(&directory.path());
    }
    match fs::remove_dir(place) {
        Err(e) if e.kind() != io::ErrorKind::NotFound && place.exists() => {
            panic!("remove the cgroup {}: {e}", place.display())
        }
        _ => {}
    }
}
