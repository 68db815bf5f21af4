//! The wires: a bridge in the control plane's network namespace, and each node on it.
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use cni_agent::netlink::netns;

use crate::layout::{
    CONTROL_PLANE, Families, NODE_DEVICE, control_plane_addresses, moved_addresses, node_addresses, node_name,
    node_netns,
};

/// Makes the namespaces, and wires those of `nodes`.
pub(crate) fn up(nodes: u8) -> Result<()> {
    make(CONTROL_PLANE)?;
    let (v4, v6) = control_plane_addresses();
    let addresses = Families::of_cluster().of([format!("{v4}/24"), format!("{v6}/64 nodad")]);
    let addresses: String = addresses.iter().map(|a| format!("address add dev bridge {a}\n")).collect();
    ip(CONTROL_PLANE, &format!("link set lo up\nlink add bridge type bridge\n{addresses}link set bridge up\n"))?;
    (1..=nodes).try_for_each(node)
}

/// Takes a node's namespace away, with all that is in it.
pub(crate) fn remove(number: u8) -> Result<()> {
    let name = node_netns(number);
    netns::delete(&name).with_context(|| format!("delete the network namespace {name}"))
}

/// Makes the namespace of a node and wires it.
pub(crate) fn node(number: u8) -> Result<()> {
    let (netns, name) = (node_netns(number), node_name(number));
    make(&netns)?;
    // Made in the control plane's namespace: its name is free there.
    ip(
        CONTROL_PLANE,
        &format!("link add {name} type veth peer name {NODE_DEVICE} netns {netns}\nlink set {name} master bridge up\n"),
    )?;
    ip(&netns, &format!("link set lo up\nlink set {NODE_DEVICE} up\n{}", addressed(node_addresses(number))))?;
    let fd = open(&netns)?;
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        netns::set_sysctl(fd.as_fd(), key, "1").with_context(|| format!("set net/{key} in {netns}"))?;
    }
    Ok(())
}

/// Takes a node's addresses away and gives it others.
pub(crate) fn readdress(number: u8) -> Result<()> {
    // Routes go with the last address of their family.
    let lines = format!("address flush dev {NODE_DEVICE} scope global\n{}", addressed(moved_addresses(number)));
    ip(&node_netns(number), &lines)
}

/// Lines of `ip -batch` that give a node these addresses, and its routes.
fn addressed((v4, v6): (Ipv4Addr, Ipv6Addr)) -> String {
    let families = Families::of_cluster();
    let addresses = families.of([format!("{v4}/24"), format!("{v6}/64 nodad")]);
    let addresses = addresses.iter().map(|a| format!("address add dev {NODE_DEVICE} {a}\n"));
    let gateways = families.texts(control_plane_addresses());
    addresses.chain(gateways.iter().map(|gateway| format!("route replace default via {gateway}\n"))).collect()
}

fn make(name: &str) -> Result<()> {
    netns::create(name).map(drop).with_context(|| format!("make the network namespace {name}"))
}

/// The cluster's network namespace of this name.
pub(crate) fn open(name: &str) -> Result<OwnedFd> {
    let cure = || format!("there is no network namespace {name}: is the cluster up?");
    if !Path::new(netns::DIRECTORY).join(name).exists() {
        bail!(cure());
    }
    netns::open(netns::path_of(name)).with_context(cure)
}

/// Runs lines of `ip -batch` in a namespace.
pub(crate) fn ip(netns: &str, lines: &str) -> Result<()> {
    let what = || format!("wire {netns} by ip (cargo xtask setup installs it)");
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = netns::spawn_in(open(netns)?.as_fd(), &mut command).with_context(what)?;
    child.stdin.take().context("ip's input")?.write_all(lines.as_bytes()).with_context(what)?;
    let mut said = String::new();
    child.stderr.take().context("ip's errors")?.read_to_string(&mut said).with_context(what)?;
    if !child.wait().with_context(what)?.success() {
        bail!("{}: {}", what(), said.trim());
    }
    Ok(())
}
