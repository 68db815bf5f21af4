//! Removes the cluster, whoever built it and whatever state it is in.
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use cni_agent::netlink::netns;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    cgroups,
    layout::{ROOT, is_ours},
    wait::until,
};

/// Names of the cluster's network namespaces.
pub(crate) fn namespaces() -> Result<Vec<String>> {
    let mut names = netns::names().with_context(|| format!("list {}", netns::DIRECTORY))?;
    names.retain(|name| is_ours(name));
    Ok(names)
}

/// There when the directory of named network namespaces was made for the cluster.
fn made_directory() -> PathBuf {
    Path::new(ROOT).join("made-netns-directory")
}

/// Notes that the directory of named network namespaces is not the machine's, if there is none yet.
pub(crate) fn note_directory() -> Result<()> {
    if !Path::new(netns::DIRECTORY).exists() {
        fs::write(made_directory(), "").context("note who has made the directory of network namespaces")?;
    }
    Ok(())
}

/// Ends the cluster's processes and removes cgroups, namespaces and files. Goes on behind an error, and gives the first.
pub(crate) fn everything() -> Result<()> {
    let mut first = end_processes();
    let mut also = |result: Result<()>| {
        if first.is_ok() {
            first = result;
        }
    };
    also(cgroups::remove_all());
    match namespaces() {
        Err(e) => also(Err(e)),
        Ok(names) => {
            for name in names {
                also(netns::delete(&name).with_context(|| format!("delete the network namespace {name}")));
            }
        }
    }
    if made_directory().exists() {
        // Others may have put something there meanwhile; then it stays.
        drop(fs::remove_dir(netns::DIRECTORY));
    }
    match fs::remove_dir_all(ROOT) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => also(Err(e).with_context(|| format!("remove {ROOT}"))),
        _ => {}
    }
    first
}

/// The first process of a unit takes all others with it, those in pods too.
fn end_processes() -> Result<()> {
    until("end of the cluster's processes", Duration::from_secs(20), || {
        let left = processes(&namespaces()?)?;
        for pid in &left {
            // One that has ended by itself meanwhile is no error.
            let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        Ok(left.is_empty().then_some(()))
    })
}

/// Processes inside these network namespaces, but for this one.
pub(crate) fn processes(names: &[String]) -> Result<Vec<i32>> {
    let inside: BTreeSet<(u64, u64)> = names
        .iter()
        .filter_map(|name| fs::metadata(netns::path_of(name)).ok())
        .map(|file| (file.dev(), file.ino()))
        .collect();
    let own = i32::try_from(std::process::id()).context("a process number that is too large")?;
    let all = fs::read_dir("/proc").context("list the processes in /proc")?;
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let is_inside = |pid: &i32| {
        // Fails for one that has just ended, and for a zombie.
        fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|file| inside.contains(&(file.dev(), file.ino())))
    };
    Ok(pids.filter(|pid| *pid != own).filter(is_inside).collect())
}
