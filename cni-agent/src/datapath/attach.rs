//! Puts the programs on their hooks, or new programs in the place of old ones, without a moment between.
//!
//! Pods: one filter on the shared block, replaced in place. The node's devices: TCX where [`features`](super::features) has found it, with a
//! pinned link whose program is swapped; else, or where others' filters come first, a filter of ours on clsact, which others may share.
use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::symlink,
    },
    path::{Path, PathBuf},
};

use crate::{
    fault::{self, Point},
    netlink::{
        MissingIsDone as _, NetlinkError, Socket, names,
        tc::{self, Place},
    },
};

use super::{Datapath, load::LoadError, object, syscall};

/// A program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// By TCX.
    #[error("attach {program} to {device} by TCX")]
    Tcx {
        /// The program.
        program: &'static str,
        /// The device.
        device: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The link's pin.
    #[error("keep the link of {program} at {path}")]
    Pin {
        /// The program.
        program: &'static str,
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// By netlink.
    #[error("attach {program}")]
    Filter {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// There is no such program.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// How a program came to its hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// A TCX link.
    Tcx,
    /// A filter on clsact.
    Clsact,
}

/// The node's own devices that have programs.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    /// Interface index of `weft_net`.
    pub weft_net: u32,
    /// Interface index of `weft_vxlan`.
    pub weft_vxlan: u32,
}

/// Puts the programs on our own devices, and on the block that all pods join; how `from_host` and `from_overlay` came there.
pub fn own(
    socket: &mut Socket,
    pin_dir: &Path,
    datapath: &Datapath,
    own: Own,
    tcx: bool,
) -> Result<[How; 2], AttachError> {
    let mut hook = |program, at| device(socket, pin_dir, (program, datapath.program(program)?), at, tcx);
    let hooks = [
        hook(object::FROM_HOST, (names::NET, own.weft_net))?,
        hook(object::FROM_OVERLAY, (names::VXLAN, own.weft_vxlan))?,
    ];
    block(socket, object::FROM_POD, datapath.program(object::FROM_POD)?)?;
    Ok(hooks)
}

/// Puts `from_pod` on the block that all pods join. The anchor must have joined it.
pub fn block(socket: &mut Socket, program: &'static str, fd: BorrowedFd<'_>) -> Result<(), AttachError> {
    socket
        .run(tc::set_filter(Place::Block(names::BLOCK_INDEX), fd, program))
        .inspect(|()| fault::pass(Point::BlockPlaced))
        .map_err(|source| AttachError::Filter { program, source })
}

/// Takes a program from a device's ingress, however it came there. What others have there stays.
///
/// # Errors
/// When the pin of the link cannot be removed, or the kernel keeps the filter. A device that has gone is no error.
pub fn detach(
    socket: &mut Socket,
    pin_dir: &Path,
    program: &'static str,
    (name, ifindex): (&str, u32),
    how: How,
) -> Result<(), AttachError> {
    match how {
        // Nobody else holds the link.
        How::Tcx => {
            let path = link_pin(pin_dir, program, name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    Err(AttachError::Pin { program, path, source })
                }
                _ => Ok(()),
            }
        }
        How::Clsact => {
            let failed = |source| AttachError::Filter { program, source };
            take_filter(socket, ifindex).map_err(failed)
        }
    }
}

/// Takes our filter from a device's ingress. The qdisc stays, also one of our making: to take one away, the kernel stops the device's
/// sending for a moment, and what is sent in it is lost (`qdisc_graft` calls `dev_deactivate`).
///
/// # Errors
/// The kernel's. That there is no filter of ours is none.
pub fn take_filter(socket: &mut Socket, ifindex: u32) -> Result<(), NetlinkError> {
    if tc::filters(socket, Place::Ingress(ifindex))?.iter().any(tc::Filter::is_ours) {
        socket.run(tc::delete_filter(Place::Ingress(ifindex))).missing_is_done()?;
    }
    Ok(())
}

/// Takes a device's clsact qdisc away if nobody has a filter in it. Only for a device that Weft leaves for good, see [`take_filter`].
///
/// # Errors
/// The kernel's.
pub fn take_empty_clsact(socket: &mut Socket, ifindex: u32) -> Result<(), NetlinkError> {
    for place in [Place::Ingress(ifindex), Place::Egress(ifindex)] {
        if !tc::filters(socket, place)?.is_empty() {
            return Ok(());
        }
    }
    socket.run(tc::delete_clsact(ifindex)).missing_is_done()
}

/// Whether the clsact qdisc of a device is of Weft's making.
pub fn made_clsact(pin_dir: &Path, (name, ifindex): (&str, u32)) -> bool {
    fs::read_link(clsact_note(pin_dir, name)).is_ok_and(|noted| noted == Path::new(&ifindex.to_string()))
}

/// A link to nowhere beside the pins, with the device's index for its target: the bpffs lives exactly as long as qdiscs do, until the
/// node starts anew.
fn clsact_note(pin_dir: &Path, device: &str) -> PathBuf {
    pin_dir.join(format!("clsact_{}", in_bpffs(device)))
}

/// A device's name as part of a file's in a bpffs, which refuses dots (`bpf_lookup`); no device has a colon in its name
/// (`dev_valid_name`).
fn in_bpffs(device: &str) -> String {
    device.replace('.', ":")
}

/// Devices by name that a link of a program is pinned for: a former agent's as well.
///
/// # Errors
/// When the directory cannot be read.
pub fn linked(pin_dir: &Path, program: &str) -> io::Result<Vec<String>> {
    let prefix = format!("link_{program}_");
    let entries = fs::read_dir(pin_dir)?.collect::<io::Result<Vec<_>>>()?;
    Ok(entries.iter().filter_map(|e| Some(e.file_name().to_str()?.strip_prefix(&prefix)?.replace(':', "."))).collect())
}

/// The number of the program that a device's pinned link runs; none: no such link, or it holds on to no device or another one.
///
/// # Errors
/// When the pin cannot be opened.
pub fn linked_program(pin_dir: &Path, program: &str, (name, ifindex): (&str, u32)) -> io::Result<Option<u32>> {
    let Some(link) = syscall::open_pin(&link_pin(pin_dir, program, name))? else { return Ok(None) };
    let facts = syscall::link_facts(link.as_fd())?;
    Ok((facts.ifindex == ifindex).then_some(facts.program_id))
}

fn link_pin(pin_dir: &Path, program: &str, device: &str) -> PathBuf {
    pin_dir.join(format!("link_{program}_{}", in_bpffs(device)))
}

/// Puts a program on a device's ingress, by TCX if that is to be used. TCX comes before every filter of tc: where somebody has one that is to
/// come before ours, ours joins them, or they would no longer see what it decapsulates.
pub fn device(
    socket: &mut Socket,
    pin_dir: &Path,
    (program, fd): (&'static str, BorrowedFd<'_>),
    device: (&str, u32),
    tcx: bool,
) -> Result<How, AttachError> {
    let failed = |source| AttachError::Filter { program, source };
    let there = tc::filters(socket, Place::Ingress(device.1)).map_err(failed)?;
    if !tcx || there.iter().any(|f| !f.is_ours() && f.priority < names::FILTER_PRIORITY) {
        filter(socket, pin_dir, (program, fd), device)?;
        detach(socket, pin_dir, program, device, How::Tcx)?;
        fault::pass(Point::HookMoved);
        return Ok(How::Clsact);
    }
    link(pin_dir, program, fd, device)?;
    if there.iter().any(tc::Filter::is_ours) {
        detach(socket, pin_dir, program, device, How::Clsact)?;
    }
    Ok(How::Tcx)
}

/// By TCX.
fn link(
    pin_dir: &Path,
    program: &'static str,
    fd: BorrowedFd<'_>,
    (name, ifindex): (&str, u32),
) -> Result<(), AttachError> {
    let path = link_pin(pin_dir, program, name);
    let pin_failed = |source| AttachError::Pin { program, path: path.clone(), source };
    let tcx_failed = |source| AttachError::Tcx { program, device: name.to_owned(), source };
    if let Some(link) = syscall::open_pin(&path).map_err(pin_failed)? {
        match syscall::update_link(link.as_fd(), fd) {
            Ok(()) => {
                fault::pass(Point::LinkUpdated);
                return Ok(());
            }
            // The device has gone, and with it what the link held; its name may be another device's now.
            Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => fs::remove_file(&path).map_err(pin_failed)?,
            Err(e) => return Err(tcx_failed(e)),
        }
    }
    let link = syscall::attach_tcx_ingress(fd, ifindex).map_err(tcx_failed)?;
    fault::pass(Point::LinkMade);
    syscall::pin(link.as_fd(), &path).map_err(pin_failed)?;
    fault::pass(Point::LinkPinned);
    Ok(())
}

/// By a filter on clsact, which others may share.
fn filter(
    socket: &mut Socket,
    pin_dir: &Path,
    (program, fd): (&'static str, BorrowedFd<'_>),
    (name, ifindex): (&str, u32),
) -> Result<(), AttachError> {
    let failed = |source| AttachError::Filter { program, source };
    if tc::ensure_clsact(socket, ifindex).map_err(failed)? {
        let note = clsact_note(pin_dir, name);
        // Of a former device of this name.
        match fs::remove_file(&note) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => symlink(ifindex.to_string(), &note),
        }
        .map_err(|source| AttachError::Pin { program, path: note, source })?;
    }
    socket.run(tc::set_filter(Place::Ingress(ifindex), fd, program)).map_err(failed)?;
    fault::pass(Point::FilterPlaced);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_the_name_of_its_pin_also_with_dots() {
        let dir = tempfile::tempdir().unwrap();
        for device in ["eth0", "bond0.100", "a.b.c"] {
            let pin = link_pin(dir.path(), "from_netdev", device);
            assert!(!pin.file_name().unwrap().to_str().unwrap().contains('.'), "{}", pin.display());
            fs::write(pin, "").unwrap();
        }
        fs::write(dir.path().join("link_from_host_weft_net"), "").unwrap();
        let mut linked = linked(dir.path(), "from_netdev").unwrap();
        linked.sort();
        assert_eq!(linked, ["a.b.c", "bond0.100", "eth0"]);
    }

    #[test]
    fn a_qdisc_is_ours_as_long_as_the_device_is_the_one_it_was_made_on() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!made_clsact(dir.path(), ("eth0.7", 12)));
        symlink("12", clsact_note(dir.path(), "eth0.7")).unwrap();
        assert!(made_clsact(dir.path(), ("eth0.7", 12)) && !made_clsact(dir.path(), ("eth0.7", 13)));
    }
}
