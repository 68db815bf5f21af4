//! Network namespaces: open, enter for the length of a function, make, delete.
//!
//! A network namespace is a property of a *thread*. Whoever enters one here is a thread made for that, which ends with the
//! work: no thread that anybody else uses ever stands in a foreign namespace, whatever fails.
use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    panic,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::stat::fstat,
};

/// Where named network namespaces stand, as `ip netns` has it.
pub const DIRECTORY: &str = "/run/netns";

/// Opens the network namespace at `path`: `/run/netns/NAME`, `/proc/PID/ns/net`, or what a CNI runtime passes.
///
/// # Errors
/// When there is no such file, or it may not be read.
pub fn open(path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    // A named pipe at that place must not hold the caller up until somebody writes to it.
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path.as_ref()).map(OwnedFd::from)
}

/// The calling thread's network namespace.
///
/// # Errors
/// When /proc is not mounted.
pub fn current() -> io::Result<OwnedFd> {
    open("/proc/thread-self/ns/net")
}

/// Whether this is the calling thread's network namespace.
///
/// # Errors
/// When /proc is not mounted.
pub fn is_current(netns: BorrowedFd<'_>) -> io::Result<bool> {
    let (one, own) = (fstat(netns)?, fstat(current()?)?);
    Ok((one.st_dev, one.st_ino) == (own.st_dev, own.st_ino))
}

/// Runs `work` on a new thread inside `netns` and returns its result. What it opens (sockets, files under /proc/sys/net) keeps
/// to that namespace. A panic of `work` goes on in the caller.
///
/// # Errors
/// When the thread can not be made, or not enter (`EPERM` without `CAP_SYS_ADMIN`, `EINVAL` if it is no network namespace).
pub fn in_netns<R: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> R + Send) -> io::Result<R> {
    on_own_thread(move || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
}

/// Starts `command` inside `netns`. Only the network differs: mounts, processes and users are the caller's.
///
/// # Errors
/// As [`in_netns`], and when the program can not be started.
pub fn spawn_in(netns: BorrowedFd<'_>, command: &mut Command) -> io::Result<Child> {
    in_netns(netns, || command.spawn())?
}

/// Makes a network namespace without a name. It goes with the last file, socket or process that holds it. Its loopback device
/// is down.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, `ENOSPC` when there are as many as there may be.
pub fn anonymous() -> io::Result<OwnedFd> {
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        current()
    })
}

/// Where the network namespace called `name` stands.
#[must_use]
pub fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Makes a network namespace and gives it a name, as `ip netns add` does. Its loopback device is down.
///
/// # Errors
/// `EEXIST` if the name is taken; whatever `unshare` or `mount` say.
pub fn create(name: &str) -> io::Result<OwnedFd> {
    fs::create_dir_all(DIRECTORY)?;
    let path = path_of(name);
    File::create_new(&path)?;
    let made = on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let none: Option<&str> = None;
        mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none)?;
        open(&path)
    });
    if made.is_err() {
        // The error that counts is the one above.
        drop(fs::remove_file(&path));
    }
    made
}

/// Takes the name of a network namespace away. The namespace goes with its last process, socket or open file. One that is not
/// there is deleted already.
///
/// # Errors
/// When it can not be unmounted or removed.
pub fn delete(name: &str) -> io::Result<()> {
    let path = path_of(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: a leftover file that nothing is mounted on.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(e) => return Err(e.into()),
    }
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Names of the network namespaces under [`DIRECTORY`], sorted.
///
/// # Errors
/// When the directory can not be read. One that is not there holds none.
pub fn names() -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names =
        entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Sets a key below /proc/sys/net, with slashes (`ipv4/ip_forward`), inside `netns`.
///
/// # Errors
/// When the key is not there or does not take the value.
pub fn set_sysctl(netns: impl AsFd, key: &str, value: &str) -> io::Result<()> {
    in_netns(netns.as_fd(), || fs::write(Path::new("/proc/sys/net").join(key), value))?
}

fn on_own_thread<R: Send>(work: impl FnOnce() -> io::Result<R> + Send) -> io::Result<R> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}
