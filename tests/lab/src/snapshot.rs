//! What of the host could be changed by a lab, so that a test can compare before and after.
use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use cni_agent::netlink::{Socket, addr, link, netns, route, tc};

use crate::{layout, process};

/// Programs of ours that a lab starts.
const PROGRAMS: [&str; 2] = ["weft-agent", "weft-cni"];
/// Below this many directories a cgroup is somebody's own business.
const CGROUP_DEPTH: usize = 3;
/// Where CNI plugins and container runtimes keep things; what is deeper than the second directory is the runtimes' own.
const RUNTIMES: [&str; 9] = [
    "/etc/cni",
    "/opt/cni",
    "/var/lib/cni",
    "/var/lib/containers",
    "/var/lib/containerd",
    "/run/cni",
    "/run/containers",
    "/run/containerd",
    "/run/libpod",
];

/// The host at one moment: one line a fact. Of what belongs to other people's work on the machine (their namespaces, their
/// processes) it holds nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    facts: BTreeSet<String>,
}

/// What has appeared and vanished between two snapshots.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Facts of the later one only.
    pub appeared: Vec<String>,
    /// Facts of the earlier one only.
    pub vanished: Vec<String>,
}

impl Snapshot {
    /// Of the calling thread's network namespace and of the whole machine's mounts, files, cgroups and processes.
    ///
    /// # Errors
    /// When something can not be listed.
    pub fn take() -> Result<Self> {
        let mut facts = BTreeSet::new();
        network(&mut facts).context("list the host's network configuration")?;
        let namespaces = netns::names().context("list the named network namespaces")?;
        facts.extend(namespaces.iter().filter(|n| layout::is_ours(n)).map(|n| format!("network namespace {n}")));
        if Path::new(netns::DIRECTORY).exists() {
            facts.insert(format!("directory {}", netns::DIRECTORY));
        }
        mounts(&mut facts).context("list the mounts")?;
        for place in [layout::ROOT, "/run/weft"] {
            tree(Path::new(place), usize::MAX, "file", &mut facts)?;
        }
        for place in RUNTIMES {
            tree(Path::new(place), 2, "file", &mut facts)?;
        }
        tree(Path::new("/sys/fs/bpf"), usize::MAX, "BPF pin", &mut facts)?;
        tree(Path::new("/sys/fs/cgroup"), CGROUP_DEPTH, "cgroup", &mut facts)?;
        sysctls(&mut facts);
        for pid in process::all()? {
            facts.extend(
                process::program(pid)
                    .filter(|p| PROGRAMS.contains(&p.as_str()))
                    .map(|p| format!("process {p} ({pid})")),
            );
        }
        Ok(Self { facts })
    }

    /// What has changed from this one to `later`.
    #[must_use]
    pub fn difference(&self, later: &Self) -> Difference {
        let only = |a: &Self, b: &Self| a.facts.difference(&b.facts).cloned().collect();
        Difference { appeared: only(later, self), vanished: only(self, later) }
    }
}

impl Difference {
    /// Nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.appeared.is_empty() && self.vanished.is_empty()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fact in &self.appeared {
            writeln!(f, "+ {fact}")?;
        }
        for fact in &self.vanished {
            writeln!(f, "- {fact}")?;
        }
        Ok(())
    }
}

fn network(facts: &mut BTreeSet<String>) -> Result<()> {
    let mut socket = Socket::open()?;
    for l in link::list(&mut socket)? {
        facts.insert(format!(
            "device {} {} mtu {} up {} kind {:?} mac {:?} alias {:?}",
            l.index, l.name, l.mtu, l.up, l.kind, l.mac, l.alias
        ));
    }
    facts.extend(addr::list(&mut socket)?.iter().map(|a| format!("address {} on device {}", a.net, a.index)));
    for r in route::list(&mut socket)? {
        facts.insert(format!("route to {} via {:?} on device {} protocol {}", r.dst, r.gateway, r.index, r.protocol));
    }
    for q in tc::qdiscs(&mut socket)? {
        facts.insert(format!("qdisc {} on device {} block {:?}", q.kind, q.index, q.ingress_block));
    }
    Ok(())
}

/// Mounts, except those of network namespaces that are not ours.
fn mounts(facts: &mut BTreeSet<String>) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    for line in table.lines() {
        // ID PARENT DEVICE ROOT PLACE OPTIONS … - KIND SOURCE …
        let place = line.split(' ').nth(4).unwrap_or_default();
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or_default();
        let name = place.strip_prefix(netns::DIRECTORY).map(|rest| rest.trim_start_matches('/'));
        if name.is_none_or(layout::is_ours) {
            facts.insert(format!("mount of {kind} on {place}"));
        }
    }
    Ok(())
}

/// Host-wide switches that a careless sysctl of the agent would turn.
fn sysctls(facts: &mut BTreeSet<String>) {
    for key in
        ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/core/bpf_jit_enable", "kernel/bpf_stats_enabled"]
    {
        let value = fs::read_to_string(PathBuf::from("/proc/sys").join(key)).unwrap_or_default();
        facts.insert(format!("sysctl {key} = {}", value.trim()));
    }
}

/// Everything below `place`, at most so deep. What vanishes while we look was not there.
fn tree(place: &Path, depth: usize, what: &str, facts: &mut BTreeSet<String>) -> Result<()> {
    let entries = match fs::read_dir(place) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        other => other.with_context(|| format!("list {}", place.display()))?,
    };
    for entry in entries.filter_map(Result::ok) {
        let is_directory = entry.file_type().is_ok_and(|t| t.is_dir());
        // A cgroup's files come and go with its controllers; its directories are the cgroups.
        if is_directory || what != "cgroup" {
            facts.insert(format!("{what} {}", entry.path().display()));
        }
        if is_directory && depth > 1 {
            tree(&entry.path(), depth - 1, what, facts)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_what_came_and_what_went() {
        let of = |facts: &[&str]| Snapshot { facts: facts.iter().map(|f| (*f).to_owned()).collect() };
        let difference = of(&["a", "b"]).difference(&of(&["b", "c"]));
        assert_eq!(difference.to_string(), "+ c\n- a\n");
        assert!(of(&["a"]).difference(&of(&["a"])).is_empty());
    }
}
