//! Removes the lab, whoever built it and whatever state it is in.
use std::{collections::BTreeSet, fs, io, os::unix::fs::MetadataExt as _, path::PathBuf};

use anyhow::{Context as _, Result};
use cni_agent::netlink::netns;
use nix::mount::{MntFlags, umount2};

use crate::{
    layout::{ROOT, is_ours},
    process::{self, Held, Identity},
};

/// Something of a lab is there: a namespace, a mount or the directory.
pub(crate) fn anything_left() -> Result<bool> {
    Ok(PathBuf::from(ROOT).exists() || !namespaces()?.is_empty())
}

/// Ends the lab's processes and removes mounts, namespaces and files. Goes on behind an error, and gives the first.
pub(crate) fn everything(made_netns_dir: bool) -> Result<()> {
    let mut first = end_processes();
    let mut also = |result: Result<()>| {
        if first.is_ok() {
            first = result;
        }
    };
    also(unmount());
    match namespaces() {
        Err(e) => also(Err(e)),
        Ok(names) => {
            for name in names {
                also(netns::delete(&name).with_context(|| format!("delete the network namespace {name}")));
            }
        }
    }
    if made_netns_dir {
        // Others may have put something there meanwhile; then it stays.
        drop(fs::remove_dir(netns::DIRECTORY));
    }
    match fs::remove_dir_all(ROOT) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => also(Err(e).with_context(|| format!("remove {ROOT}"))),
        _ => {}
    }
    first
}

/// Ends what runs in the lab's namespaces: agents, plugins, and what `exec` has started and left behind.
fn end_processes() -> Result<()> {
    let inside: BTreeSet<(u64, u64)> = namespaces()?
        .iter()
        .filter_map(|name| fs::metadata(netns::path_of(name)).ok())
        .map(|file| (file.dev(), file.ino()))
        .collect();
    let own = Identity::own()?;
    let processes: Vec<Held> = process::all()?
        .into_iter()
        .filter(|pid| *pid != own.pid)
        .filter_map(Identity::of)
        .filter(|process| is_in(*process, &inside))
        .filter_map(Identity::hold)
        .collect();
    process::end(&processes)
}

fn is_in(process: Identity, namespaces: &BTreeSet<(u64, u64)>) -> bool {
    // Fails for one that has just ended.
    fs::metadata(format!("/proc/{}/ns/net", process.pid))
        .is_ok_and(|file| namespaces.contains(&(file.dev(), file.ino())))
}

/// Unmounts what is mounted below the lab's directory, the innermost first.
fn unmount() -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read the mounts in /proc/self/mountinfo")?;
    let below = format!("{ROOT}/");
    for place in table.lines().rev().filter_map(|line| line.split(' ').nth(4)).filter(|place| place.starts_with(&below))
    {
        umount2(place, MntFlags::MNT_DETACH).with_context(|| format!("unmount {place}"))?;
    }
    Ok(())
}

fn namespaces() -> Result<Vec<String>> {
    let mut names = netns::names().with_context(|| format!("list {}", netns::DIRECTORY))?;
    names.retain(|name| is_ours(name));
    Ok(names)
}
