//! What hinders Weft on a node, from the facts. Pure.
mod cni;

use std::{borrow::Cow, collections::BTreeMap};

use serde::Serialize;

use super::facts::{Facts, Legacy};
use crate::netlink::{names, nftables};

/// Something to know about the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// A word for programs; it stays the same from version to version.
    pub(super) id: &'static str,
    /// Weft does not do all that it should while this is so; else it is a hint.
    pub(super) hinders: bool,
    /// What is so.
    pub(super) what: String,
    /// Why it matters.
    pub(super) why: Cow<'static, str>,
    /// A command that changes it, or what to do.
    pub(super) cure: String,
}

/// Options without which nothing works, on every kernel that we run on.
const OPTIONS: [&str; 9] =
    ["BPF", "BPF_SYSCALL", "BPF_JIT", "NET_CLS_BPF", "NET_CLS_ACT", "NET_SCH_INGRESS", "VETH", "VXLAN", "IPV6"];

/// All of them, in the order in which one would look.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    agent(facts, &mut found);
    services(facts, &mut found);
    kernel(facts, &mut found);
    features(facts, &mut found);
    sysctls(facts, &mut found);
    firewalls(facts, &mut found);
    legacy(facts, &mut found);
    cni::findings(facts, &mut found);
    devices(facts, &mut found);
    found
}

type Why = Cow<'static, str>;

fn hinders(id: &'static str, what: String, why: impl Into<Why>, cure: impl Into<String>) -> Finding {
    Finding { id, hinders: true, what, why: why.into(), cure: cure.into() }
}
fn hint(id: &'static str, what: String, why: impl Into<Why>, cure: impl Into<String>) -> Finding {
    Finding { hinders: false, ..hinders(id, what, why, cure) }
}

fn agent(facts: &Facts, found: &mut Vec<Finding>) {
    let status = match &facts.agent {
        Ok(status) => status,
        Err(why) => {
            found.push(hinders(
                "agent",
                format!("The agent does not answer: {why}"),
                "Without it pods are neither added nor removed, and nothing follows changes; what runs already runs on.",
                "systemctl restart weft-agent; journalctl -u weft-agent -n 50",
            ));
            return;
        }
    };
    if let Some(why) = &status.not_ready {
        found.push(hinders(
            "not-ready",
            format!("The agent is not ready: {why}"),
            "New pods wait until it is.",
            "weft status",
        ));
    }
    if let Some(load) = &status.datapath.refused {
        found.push(hinders(
            "load-refused",
            format!("The kernel refuses the agent's BPF programs: {}: {}", load.refusal.what, load.refusal.error),
            "Packets and new pods go by the programs of an earlier agent, which lack what this release brings.",
            "weft status  # shows the verifier's last lines: report them; then systemctl restart weft-agent (which tries again), or another release or kernel",
        ));
    }
    if let Some(why) = &status.services.problem {
        found.push(hinders(
            "services-masquerade",
            format!("What the node's stack has translated for pods is not masqueraded: {why}"),
            "Pods do not reach a Service that other hosts than pods are behind, such as the API server's on another node.",
            "modprobe -a nf_tables nft_chain_nat nft_ct nft_masq  # or boot a kernel that has them; or free the name: nft list table inet weft",
        ));
    }
    for row in &status.reconciler.failed {
        found.push(hinders(
            "failed-row",
            format!("The kernel does not take {}: {}", row.row, row.error),
            "Packets go as if it were not there.",
            "weft status",
        ));
    }
    let Some(node) = &facts.own_node else { return };
    for v4 in [true, false] {
        let family = if v4 { "IPv4" } else { "IPv6" };
        if node.pod_cidrs.iter().any(|c| c.addr().is_ipv4() == v4)
            && !node.internal_ips.iter().any(|a| a.is_ipv4() == v4)
        {
            found.push(hinders(
                "internal-ip",
                format!("The Node object {} has an {family} pod network, but no {family} InternalIP", node.name),
                "Other nodes know this one's packets by it: what the node itself sends to pods elsewhere is refused.",
                format!(
                    "kubectl get node {} -o jsonpath='{{.status.addresses}}'  # then set the kubelet's --node-ip",
                    node.name
                ),
            ));
        }
    }
}

/// kube-proxy's chains, by which it is known: of its iptables and IPVS modes. In its nftables mode it has a table of its own.
const PROXY_CHAINS: [&str; 2] = ["KUBE-FORWARD", "KUBE-SERVICES"];
const PROXY_TABLE: &str = "kube-proxy";

fn services(facts: &Facts, found: &mut Vec<Finding>) {
    let unknown = facts.agent.as_ref().is_ok_and(|status| status.services.cidrs.is_empty());
    let of_proxy = |text: &String| PROXY_CHAINS.iter().any(|chain| text.contains(&format!("-j {chain}")));
    let served = facts.chains.iter().flatten().any(|c| c.table == PROXY_TABLE)
        || facts.rules.iter().any(|r| PROXY_CHAINS.contains(&&*r.chain))
        || facts.legacy.iter().any(|(_, chain)| matches!(chain, Legacy::Rules(text) if of_proxy(text)));
    if unknown && served {
        found.push(hinders(
            "services-unknown",
            "kube-proxy serves Services on this node, and the agent does not know which addresses are theirs".into(),
            "What pods send to a Service leaves the node untranslated. Kubernetes 1.33 and newer tell the addresses by ServiceCIDR objects; older ones do not.",
            "weft-agent --service-cidr …  # the API server's --service-cluster-ip-range, of kubeadm 10.96.0.0/12; or kubectl get servicecidrs",
        ));
    }
}

fn kernel(facts: &Facts, found: &mut Vec<Finding>) {
    let missing: Vec<&str> = match &facts.config {
        Some(config) => OPTIONS.into_iter().filter(|o| !config.contains(*o)).collect(),
        // By what is there without them: the file system comes with the system call.
        None if !facts.filesystems.is_empty() && !facts.filesystems.contains("bpf") => vec!["BPF_SYSCALL"],
        None => Vec::new(),
    };
    if !missing.is_empty() {
        let list = missing.iter().map(|o| format!("CONFIG_{o}")).collect::<Vec<_>>().join(", ");
        found.push(hinders(
            "kernel-options",
            format!("The kernel {} was built without {list}", facts.release),
            "Weft's programs or devices need them.",
            format!("boot a kernel that was built with {list}"),
        ));
    }
    if facts.config.is_none() {
        found.push(hint(
            "kernel-options-unread",
            format!("Neither /proc/config.gz nor /boot/config-{} can be read", facts.release),
            "An option that Weft needs and this kernel lacks would not be named here; the agent's start would fail by it.",
            "weft status  # when the agent is ready, nothing is missing",
        ));
    }
}

/// What was found by trying.
fn features(facts: &Facts, found: &mut Vec<Finding>) {
    const NOT_ALLOWED: &str = "not allowed";
    let release = &facts.release;
    for f in facts.missing_features.iter().filter(|f| f.why != NOT_ALLOWED) {
        let what = format!("Linux {release} is used without {} ({}): {}", f.what, f.name, f.why);
        let boot = format!("boot a kernel that has it: {}", f.origin);
        found.push(match (f.required, f.why.as_str()) {
            (true, _) => hinders("kernel", what, format!("Weft does not run without it. {}", f.without), boot),
            (false, "switched off") => {
                hint("kernel-feature", what, f.without.clone(), "start the agent without this --without")
            }
            (false, _) => hint("kernel-feature", what, f.without.clone(), boot),
        });
    }
    if facts.missing_features.iter().any(|f| f.why == NOT_ALLOWED) {
        found.push(hint(
            "kernel-untried",
            format!("What Linux {release} can was not tried: it does not let this process use BPF"),
            "What Weft needs and this kernel lacks would not be named here.",
            "sudo weft doctor",
        ));
    }
}

fn sysctls(facts: &Facts, found: &mut Vec<Finding>) {
    const PASSES_ON: &str =
        "What pods exchange with the world beyond the cluster goes through the node's stack, which drops it.";
    let off = |name: &str| facts.sysctls.get(name).is_some_and(|v| v == "0");
    // A host that forwards drops the routes that it has by router advertisement, unless accept_ra is 2.
    const KEEP_ROUTES: &str = "for f in /proc/sys/net/ipv6/conf/*/accept_ra; do grep -q 1 $f && echo 2 > $f; done; ";
    for (path, id, key, first) in [
        ("net/ipv4/ip_forward", "ip-forward4", "net.ipv4.ip_forward", ""),
        ("net/ipv6/conf/all/forwarding", "ip-forward6", "net.ipv6.conf.all.forwarding", KEEP_ROUTES),
    ] {
        if off(path) {
            let cure = format!("{first}sysctl -w {key}=1 && echo {key}=1 >> /etc/sysctl.d/99-weft.conf");
            found.push(hinders(id, format!("{key} is 0"), PASSES_ON, cure));
        }
    }
    if off("net/core/bpf_jit_enable") {
        found.push(hinders(
            "bpf-jit",
            "net.core.bpf_jit_enable is 0".into(),
            "The programs are interpreted: each packet costs several times as much.",
            "sysctl -w net.core.bpf_jit_enable=1",
        ));
    }
}

const FORWARDED: &str = "What pods exchange with the world beyond the cluster, and what this node passes on to pods for others \
     (containers of Docker, a VPN), goes through this chain.";

fn firewalls(facts: &Facts, found: &mut Vec<Finding>) {
    let chains = match &facts.chains {
        Ok(chains) => chains,
        Err(why) => {
            found.push(hint(
                "nftables",
                format!("The firewall's rules cannot be read: {why}"),
                "A chain that drops what is forwarded would not be named here.",
                "sudo weft doctor",
            ));
            return;
        }
    };
    let ip = |family: &str| ["ip", "ip6", "inet"].contains(&family);
    for chain in chains.iter().filter(|c| c.hook == nftables::FORWARD && c.drops && ip(c.family)) {
        // All that comes from our device, and all that leaves by it: a rule about two devices is about less.
        let accepted = |from: Option<&str>, to: Option<&str>| {
            facts.rules.iter().any(|r| {
                (r.family, &r.table, &r.chain) == (chain.family, &chain.table, &chain.name)
                    && r.accepts
                    && !r.narrower
                    && (r.from.as_deref(), r.to.as_deref()) == (from, to)
            })
        };
        if accepted(Some(names::HOST), None) && accepted(None, Some(names::HOST)) {
            continue;
        }
        let at = format!("{} {} {}", chain.family, chain.table, chain.name);
        let rule = |way: &str| format!("nft insert rule {at} {way} {} accept", names::HOST);
        found.push(hinders(
            "forward-policy",
            format!("The nftables chain {at} (hook forward, priority {}) has policy drop", chain.priority),
            FORWARDED,
            format!("{} && {}", rule("iifname"), rule("oifname")),
        ));
    }
    let about_us = |r: &nftables::Rule| [&r.from, &r.to].into_iter().any(|d| d.as_deref() == Some(names::HOST));
    if chains.iter().any(|c| c.table == "firewalld")
        && !facts.rules.iter().any(|r| r.table == "firewalld" && about_us(r))
    {
        found.push(hinders(
            "firewalld",
            format!("firewalld runs, and {} is in none of its zones", names::HOST),
            "It rejects what it forwards for devices that it was not told to trust.",
            format!("firewall-cmd --permanent --zone=trusted --add-interface={} && firewall-cmd --reload", names::HOST),
        ));
    }
}

fn legacy(facts: &Facts, found: &mut Vec<Finding>) {
    for (program, chain) in &facts.legacy {
        let text = match chain {
            Legacy::Rules(text) => text,
            Legacy::Unreadable => {
                found.push(hint(
                    "forward-legacy-unread",
                    format!("The kernel has rules of an older iptables, and {program} is not there to read them"),
                    FORWARDED,
                    format!("{program} -S FORWARD  # from the package iptables"),
                ));
                continue;
            }
        };
        let rule = |way: &str| format!("-A FORWARD {way} {} -j ACCEPT", names::HOST);
        let accepts = |way: &str| text.lines().any(|l| l == rule(way));
        if text.lines().any(|l| l == "-P FORWARD DROP") && !(accepts("-i") && accepts("-o")) {
            let insert = |way: &str| format!("{program} -I FORWARD {way} {} -j ACCEPT", names::HOST);
            found.push(hinders(
                "forward-policy-legacy",
                format!("{program}'s chain FORWARD has policy DROP"),
                FORWARDED,
                format!("{} && {}", insert("-i"), insert("-o")),
            ));
        }
    }
}

fn devices(facts: &Facts, found: &mut Vec<Finding>) {
    let port = facts.agent.as_ref().map_or(names::VXLAN_PORT, |s| s.datapath.tunnel_port);
    const SHARED: &str = "One of the two gets the other's packets, or cannot start at all.";
    for other in facts.links.iter().filter(|l| l.name != names::VXLAN && l.vxlan_port == Some(port)) {
        found.push(hinders(
            "vxlan-device",
            format!("The VXLAN device {} has Weft's tunnel port {port}", other.name),
            SHARED,
            format!("ip link delete {}  # or give all nodes another port: weft-agent --tunnel-port", other.name),
        ));
    }
    // The kernel's socket of a VXLAN device is in the table too, and shares its port with nobody.
    if facts.udp_ports.contains(&port) && !facts.links.iter().any(|l| l.up && l.vxlan_port == Some(port)) {
        found.push(hinders(
            "tunnel-port",
            format!("A program listens on UDP port {port}, Weft's tunnel port"),
            SHARED,
            format!(
                "ss -lunp sport = :{port}  # and stop it, or give all nodes another port: weft-agent --tunnel-port"
            ),
        ));
    }
    let kinds: BTreeMap<&str, &str> = [
        (names::HOST, "veth"),
        (names::NET, "veth"),
        (names::BLOCK, "veth"),
        (names::BLOCK_PEER, "veth"),
        (names::VXLAN, "vxlan"),
    ]
    .into();
    for link in &facts.links {
        let Some(kind) = kinds.get(link.name.as_str()) else { continue };
        if link.kind.as_deref() != Some(kind)
            || link.mac != Some(cni_common::net::Mac::WEFT) && link.name != names::BLOCK_PEER
        {
            found.push(hinders(
                "foreign-device",
                format!("The device {} is not one that Weft made", link.name),
                "The agent does not start while another device has this name.",
                format!("ip link delete {}", link.name),
            ));
        }
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
