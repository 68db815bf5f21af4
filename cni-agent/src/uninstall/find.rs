//! What of ours is on the node. Changes nothing.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use cni_common::net::Mac;
use cni_plugin::tombstone;

use super::{Found, Item, Kind, Places, Way};
use crate::{
    datapath::attach,
    endpoint::record::{self, EndpointRecord, RecordError, RecordStore},
    error_chain,
    install::{configs, temporary},
    kube,
    netlink::{
        NetlinkError, Socket,
        link::{self, Link},
        names, neigh,
        nftables::own,
        pod, route, rule,
        tc::{self, Place},
    },
    node::reserved::{self, ReservedPorts},
};

/// What is on the node cannot be found out.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The kernel said no.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The records cannot be read.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// A directory cannot be read.
    #[error("read the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Looks for what is ours, in the order in which it goes.
///
/// # Errors
/// When a part cannot be looked at: half a list would be taken for the whole.
pub fn find(places: &Places, socket: &mut Socket) -> Result<Found, FindError> {
    let mut found = Found::default();
    installed(places, &mut found);
    let records = records(&places.state_dir)?;
    rules(&records, &mut found);
    let links = link::list(socket)?;
    let (ours, others): (Vec<_>, Vec<_>) =
        links.into_iter().partition(|l| is_named_like_ours(&l.name) && is_made_like_ours(l));
    // Beside the pins stands which qdiscs are ours; with the pins go the links: before the devices that the programs redirect to.
    let pins = places.bpffs.join("weft");
    on_devices_of_others(socket, &pins, &others, &mut found)?;
    tree(&pins, &mut found)?;
    network(socket, &records, &ours, &mut found)?;
    table(&mut found);
    ports(places, &mut found);
    files(places, &mut found)?;
    Ok(found)
}

impl Found {
    fn add(&mut self, kind: Kind, name: impl Into<String>, way: Way) -> &mut Item {
        self.items.push(Item { kind, name: name.into(), note: String::new(), way });
        let last = self.items.len() - 1;
        &mut self.items[last]
    }

    fn file(&mut self, kind: Kind, path: PathBuf) {
        self.add(kind, path.display().to_string(), Way::File(path));
    }

    fn directory(&mut self, path: &Path) {
        if path.is_dir() {
            self.add(Kind::Directory, path.display().to_string(), Way::Directory(path.to_owned()));
        }
    }
}

/// What the container runtime sees.
fn installed(places: &Places, found: &mut Found) {
    let (own, plugin) = (places.cni_conf_dir.join(&places.cni_conf_name), places.cni_bin_dir.join(configs::PLUGIN));
    for config in configs::list(&places.cni_conf_dir) {
        match (config.path == own, config.is_ours()) {
            (true, true) => found.file(Kind::Configuration, config.path),
            (true, false) => found.kept.push(format!("{} does not call {}", own.display(), configs::PLUGIN)),
            (false, true) => found.kept.push(format!(
                "{} is not of Weft's own name and calls {}: remove it, or the runtime makes no pods any more",
                config.path.display(),
                configs::PLUGIN
            )),
            (false, false) => {}
        }
    }
    let same = |a: &Path, b: &Path| fs::canonicalize(a).is_ok_and(|a| fs::canonicalize(b).is_ok_and(|b| a == b));
    if places.own_plugin.as_ref().is_some_and(|program| same(program, &plugin)) {
        found.kept.push(format!("{} belongs to the programs, not to the node", plugin.display()));
    } else if plugin.is_file() {
        found.file(Kind::Plugin, plugin.clone());
    }
    for left in [temporary(&own), temporary(&plugin)].into_iter().flatten().filter(|path| path.exists()) {
        found.file(Kind::File, left);
    }
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// By which the node's stack masquerades.
fn table(found: &mut Found) {
    let name = own::FULL_NAME;
    match own::read() {
        Ok(None) => {}
        Ok(Some(table)) => match table.foreign() {
            None => drop(found.add(Kind::Table, name, Way::Table)),
            Some(chain) => {
                found.kept.push(format!("the nftables table {name} was not made by Weft: it has a chain {chain}"))
            }
        },
        Err(e) => found.kept.push(format!("the nftables table {name}, if there is one: {}", error_chain(&e))),
    }
}

/// The ports that masquerade has kept from the node's own programs.
fn ports(places: &Places, found: &mut Found) {
    let ports = ReservedPorts::new(Path::new(reserved::RESERVED), &places.state_dir, &boot_id());
    match ports.ours() {
        Ok(ours) if ours.is_empty() => {}
        Ok(ours) => {
            let item = found.add(Kind::Setting, format!("net.ipv4.ip_local_reserved_ports {ours}"), Way::Ports(ports));
            "what others have reserved stays".clone_into(&mut item.note);
        }
        Err(e) => found.kept.push(format!("net.ipv4.ip_local_reserved_ports, if it is ours: {}", error_chain(&e))),
    }
}

fn records(dir: &Path) -> Result<Vec<EndpointRecord>, FindError> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    Ok(RecordStore::open(dir, boot_id().trim())?.read_all()?)
}

/// They stay in a pod when its device goes.
fn rules(records: &[EndpointRecord], found: &mut Found) {
    for record in records {
        let netns = record.netns.to_string_lossy();
        let list = || match pod::socket_at(&netns)? {
            Some(mut socket) => rule::list(&mut socket),
            None => Ok(Vec::new()),
        };
        match list() {
            Ok(ours) => {
                let of_it: Vec<_> = ours.into_iter().filter(|r| r.table == record.host_ifindex).collect();
                if !of_it.is_empty() {
                    let name = format!("{} of {} in {netns}", of_it.len(), record.ifname);
                    found.add(Kind::Rules, name, Way::Rules(netns.into_owned(), of_it));
                }
            }
            Err(e) => found.kept.push(format!("rules in {netns}, if any: {}", error_chain(&e))),
        }
    }
}

fn on_devices_of_others(socket: &mut Socket, pins: &Path, others: &[Link], found: &mut Found) -> Result<(), FindError> {
    for l in others.iter().filter(|l| is_named_like_ours(&l.name)) {
        found.kept.push(format!("the device {} was not made by Weft", l.name));
    }
    let with_filters: BTreeSet<u32> = tc::qdiscs(socket)?
        .into_iter()
        .filter(|q| q.kind == "clsact" || q.kind == "ingress")
        .map(|q| q.index)
        .collect();
    for l in others.iter().filter(|l| with_filters.contains(&l.index)) {
        for filter in tc::filters(socket, Place::Ingress(l.index))?.iter().filter(|f| f.is_ours()) {
            let program = filter.name.as_deref().unwrap_or("of ours");
            found.add(Kind::Filter, format!("{program} on {}", l.name), Way::Filter(l.index));
        }
        if attach::made_clsact(pins, (&l.name, l.index)) {
            let item = found.add(Kind::Qdisc, format!("clsact on {}", l.name), Way::EmptyClsact(l.index));
            "stays if others have filters in it".clone_into(&mut item.note);
        }
    }
    Ok(())
}

fn network(socket: &mut Socket, records: &[EndpointRecord], ours: &[Link], found: &mut Found) -> Result<(), FindError> {
    let pods: BTreeMap<&str, &EndpointRecord> = records.iter().map(|r| (r.host_device.as_str(), r)).collect();
    let (pod_devices, node_devices): (Vec<_>, Vec<_>) =
        ours.iter().partition(|l| names::endpoint_of(&l.name).is_some());
    for l in pod_devices {
        let whose = match pods.get(l.name.as_str()) {
            Some(EndpointRecord { pod: Some(pod), .. }) => format!("the pod {}/{}", pod.namespace, pod.name),
            Some(record) => format!("the container {}", record.container_id),
            None => "a pod that no record tells of".to_owned(),
        };
        let item = found.add(Kind::PodDevice, &l.name, Way::Device(l.index));
        item.note = format!("{whose} loses its network");
    }
    let name_of: BTreeMap<u32, &str> = ours.iter().map(|l| (l.index, l.name.as_str())).collect();
    for r in route::list(socket)?.iter().filter(|r| r.protocol == names::ROUTE_PROTOCOL) {
        if let Some(device) = name_of.get(&r.index) {
            found.add(Kind::Route, format!("{} on {device}", r.dst), Way::WithDevice);
        }
    }
    for n in neigh::list(socket)?.iter().filter(|n| n.state == neigh::State::Permanent) {
        if let Some(device) = name_of.get(&n.index) {
            found.add(Kind::Neighbour, format!("{} on {device}", n.addr), Way::WithDevice);
        }
    }
    for l in node_devices {
        found.add(Kind::Device, &l.name, Way::Device(l.index));
    }
    Ok(())
}

fn is_named_like_ours(name: &str) -> bool {
    names::is_node_device(name) || names::endpoint_of(name).is_some()
}

fn is_made_like_ours(l: &Link) -> bool {
    let kind = if l.name == names::VXLAN { "vxlan" } else { "veth" };
    l.mac == Some(Mac::WEFT) && l.kind.as_deref() == Some(kind)
}

/// Everything in the directory, which is ours alone, and the directory.
fn tree(dir: &Path, found: &mut Found) -> Result<(), FindError> {
    for path in entries(dir)? {
        if path.is_dir() {
            tree(&path, found)?;
        } else {
            found.file(Kind::Pin, path);
        }
    }
    found.directory(dir);
    Ok(())
}

/// The agent's own files. They are told by their names, as somebody may have given the agent a directory that has other things in it.
fn files(places: &Places, found: &mut Found) -> Result<(), FindError> {
    // With the ports goes the note of them.
    let noted = found.items.iter().any(|i| matches!(i.way, Way::Ports(_)));
    let is_ours =
        |name: &str| record::is_record_file(name) || name == reserved::NOTE_STAGED || name == reserved::NOTE && !noted;
    for path in entries(&places.state_dir)? {
        if path.file_name().and_then(|n| n.to_str()).is_some_and(is_ours) {
            found.file(Kind::File, path);
        }
    }
    found.directory(&places.state_dir);
    let tombstones = places.run_dir.join(tombstone::DIRECTORY);
    for path in entries(&tombstones)? {
        found.file(Kind::File, path);
    }
    found.directory(&tombstones);
    for name in ["cni.sock", "api.sock", "lock", "starts"] {
        let path = places.run_dir.join(name);
        if path.symlink_metadata().is_ok() {
            found.file(Kind::File, path);
        }
    }
    found.directory(&places.run_dir);
    let known = places.cache_dir.join(kube::KNOWN);
    for path in [Some(known.clone()), temporary(&known)].into_iter().flatten().filter(|path| path.is_file()) {
        found.file(Kind::File, path);
    }
    found.directory(&places.cache_dir);
    Ok(())
}

/// What is in a directory, by name; nothing if there is none.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, FindError> {
    let list = || -> io::Result<Vec<PathBuf>> { fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect() };
    match list() {
        Ok(mut paths) => {
            paths.sort();
            Ok(paths)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(FindError::Directory { path: dir.to_owned(), source }),
    }
}
