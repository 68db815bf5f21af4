//! Answers of the API as text for people. Pure.
mod flows;

use std::fmt::Display;

use jiff::Timestamp;
use serde_json::Value;

pub(super) use self::flows::{flow_counts, flows, flushed};
use super::table::Table;
use crate::api::types::{
    Audit, DropEvent, Drops, EndpointStatus, InstallStatus, IpamAddress, MapEntry, MapInfo, NodeStatus, Observed,
    PodStatus, PolicySummary, RefusedLoad, Stage, Status,
};
use crate::drift::{Item, Verified};

pub(super) fn status(s: &Status) -> String {
    let d = &s.datapath;
    let mut lines = vec![
        ("Node", format!("{}, kernel {}", s.node, s.kernel)),
        ("Agent", format!("weft-agent {}, pid {}, up {}", s.version, s.pid, span(s.uptime_seconds))),
        ("Ready", ready(s)),
    ];
    let tunnel = match d.tunnel_address {
        Some(ip) => format!("VXLAN over {}, from {ip}, UDP port {}", family(ip.is_ipv4()), d.tunnel_port),
        None => format!("VXLAN, UDP port {}; the tunnel address is not known yet", d.tunnel_port),
    };
    lines.push(("Tunnel", tunnel));
    if d.underlay_mtu != 0 {
        lines.push(("MTU", format!("{} between nodes, {} for pods' routes", d.underlay_mtu, d.pod_mtu)));
    }
    for program in &d.programs {
        lines.push(("Program", format!("{} on {} ({})", program.program, program.device, program.how)));
    }
    if !d.layout.is_empty() {
        lines.push(("Layout", d.layout.clone()));
    }
    if d.waits {
        lines.push(("", "! another build's programs run on until this one's maps are filled".into()));
    }
    if !d.other_maps.is_empty() {
        lines.push(("", format!("! maps of another build: {}", d.other_maps.join(", "))));
    }
    if let Some(load) = &d.refused {
        lines.extend(refused(load));
    }
    let used = d.features.values().filter(|there| **there).count();
    lines.push(("Features", format!("{used} of {} that the kernel was tried for", d.features.len())));
    for f in &d.missing_features {
        lines.push(("", format!("- {}, {} ({}): {}", f.name, f.why, f.origin, f.without)));
    }
    for source in &s.sources {
        let synced = if source.synced { "in sync" } else { "not in sync yet" };
        lines.push((
            "Source",
            format!("{} {}: {synced}, {}", source.name, source.origin, count(source.objects, "object")),
        ));
        lines.extend(source.problems.iter().map(|problem| ("", format!("! {problem}"))));
    }
    lines.extend(policy(&s.policy));
    lines.extend(install(&s.install));
    let known = [count(s.nodes, "node"), count(s.pods, "pod"), count(s.endpoints, "endpoint") + " here"].join(", ");
    lines.push(("Known", known));
    for (i, range) in s.addresses.iter().enumerate() {
        let waiting =
            if range.quarantined == 0 { String::new() } else { format!(", {} not free yet", range.quarantined) };
        let label = if i == 0 { "Addresses" } else { "" };
        lines.push((label, format!("{}: {} of {} in use{waiting}", range.cidr, range.used, range.size)));
    }
    let r = &s.reconciler;
    let mut state = format!("revision {} of {}", r.applied, r.revision);
    if r.pending + r.failed.len() == 0 {
        state.push_str(", all is in the kernel");
    } else {
        state.push_str(&format!(", {} waiting, {} failing", count(r.pending, "row"), r.failed.len()));
    }
    if !r.pruning {
        state.push_str("; leftovers stay until all sources are in sync");
    }
    lines.push(("Kernel", state));
    for row in &r.failed {
        lines.push(("", format!("! {}: {} ({} attempts; tried again)", row.row, row.error, row.retries)));
    }
    if !r.drift.is_empty() {
        let kinds: Vec<String> = r.drift.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
        lines.push(("Drift", format!("found and repaired since the start: {}; the log has each", kinds.join(", "))));
    }
    lines.extend(flows::status(&s.conntrack));
    lines.extend(flows::masquerade(&s.masquerade));
    lines.extend(flows::services(s));
    let drops = match s.dropped_packets {
        0 => "none".to_owned(),
        n => format!("{n} packets; `weft drops` says why"),
    };
    lines.push(("Drops", drops));

    let mut text = String::new();
    let mut last = "";
    for (head, line) in lines {
        // A head that repeats stands once.
        let shown = if head == last { "" } else { head };
        text.push_str(&format!("{shown:<11}{line}\n"));
        last = if head.is_empty() { last } else { head };
    }
    text
}

pub(super) fn verified(v: &Verified) -> String {
    if *v == Verified::default() {
        return "The kernel holds what it should.\n".into();
    }
    let mut text = String::new();
    for Item { kind, name, was, should, failed } in &v.items {
        let end = if failed.is_empty() { "repaired".to_owned() } else { format!("NOT repaired: {failed}") };
        text.push_str(&format!("{kind:<11}{name}\n  was     {was}\n  should  {should}\n  {end}\n"));
    }
    v.unread.iter().for_each(|what| text.push_str(&format!("not compared: {what}\n")));
    text
}

fn ready(s: &Status) -> String {
    match (&s.not_ready, &s.datapath.refused) {
        (Some(why), _) => format!("no: {why}"),
        (None, Some(_)) => "yes, with an earlier agent's programs: its own were refused".into(),
        (None, None) => "yes".into(),
    }
}

/// An agent that serves with another one's programs.
fn refused(load: &RefusedLoad) -> Vec<(&'static str, String)> {
    let RefusedLoad { refusal, at, running_since } = load;
    let since = running_since.map_or_else(|| "of an earlier agent".into(), |then| format!("of {}", moment(then)));
    let told = refusal.log.iter().map(|line| ("", format!("| {line}")));
    let first = format!("! {} at {}: {}", refusal.what, moment(*at), refusal.error);
    [("Refused", first), ("", format!("! the programs {since} run on"))].into_iter().chain(told).collect()
}

/// Seconds since 1970.
fn moment(seconds: u64) -> Timestamp {
    i64::try_from(seconds).ok().and_then(|s| Timestamp::from_second(s).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn install(i: &InstallStatus) -> Vec<(&'static str, String)> {
    let mut line = match i.stage {
        Stage::Off => "left to others (--cni-install no)".to_owned(),
        Stage::Waiting => format!("not yet: {}", i.why),
        Stage::Installed => format!("{}, {}", i.plugin.display(), i.conflist.display()),
        Stage::Failed => "failed; tried again when something changes".to_owned(),
    };
    if !i.self_test.is_empty() {
        line.push_str(&format!("; self-test: {}", i.self_test));
    }
    let mut lines = vec![("Installed", line)];
    if i.stage == Stage::Failed {
        lines.push(("", format!("! {}", i.why)));
    }
    if !i.plugin_differs.is_empty() {
        lines.push(("", format!("! {}", i.plugin_differs)));
    }
    for other in &i.foreign {
        let taken = if other.first { "! the runtime takes this one first" } else { "another configuration" };
        lines.push(("", format!("{taken}: {}", other.path.display())));
    }
    lines
}

pub(super) fn endpoints(list: &[EndpointStatus]) -> String {
    let mut table = Table::new([">ID", "POD", "IPV4", "IPV6", "MAC", "DEVICE", "INTERFACE", ">MTU", "CLASS", "KERNEL"]);
    for e in list {
        table.row([
            e.id.to_string(),
            pod_name(&e.namespace, &e.pod),
            text(e.ipv4),
            text(e.ipv6),
            e.mac.clone(),
            e.device.clone(),
            e.ifname.clone(),
            e.mtu.to_string(),
            class(e.label_class),
            e.kernel.clone(),
        ]);
    }
    or(table, "There are no endpoints on this node: no pod has been added by weft-cni.\n")
}

pub(super) fn addresses(list: &[IpamAddress]) -> String {
    let mut table = Table::new(["ADDRESS", "STATE", "POD", "CONTAINER", "INTERFACE", "DEVICE", ">AGE"]);
    for a in list {
        table.row([
            a.address.clone(),
            if a.delegated { format!("{}, by another IPAM plugin", a.state) } else { a.state.clone() },
            pod_name(&a.namespace, &a.pod),
            a.container_id.clone(),
            a.ifname.clone(),
            a.device.clone(),
            a.age_seconds.map(span).unwrap_or_default(),
        ]);
    }
    or(table, "No address is out.\n")
}

pub(super) fn audit(a: &Audit) -> String {
    let mut text = String::new();
    for d in &a.differences {
        text.push_str(&format!("DIFFERS  {}\n  cure   {}\n\n", d.what, d.cure));
    }
    let compared = format!(
        "{}, {}",
        if a.addresses == 1 { "1 address".to_owned() } else { format!("{} addresses", a.addresses) },
        count(a.endpoints, "endpoint")
    );
    text.push_str(&match a.differences.len() {
        0 => format!("{compared}: allocator, endpoints, records, devices, maps and pods agree.\n"),
        n => format!("{compared}: {} found.\n", count(n, "difference")),
    });
    text
}

pub(super) fn nodes(list: &[NodeStatus]) -> String {
    let mut table = Table::new(["NAME", "POD CIDRS", "ADDRESSES", "TUNNEL TO", "NEXT HOP", ">MTU", "KERNEL"]);
    for n in list {
        let hop = n.next_hop.as_ref();
        let next = match hop {
            Some(hop) => {
                format!("{} on device {}", hop.mac.as_deref().unwrap_or("resolved by the kernel"), hop.ifindex)
            }
            None if n.own => "this node".into(),
            None => String::new(),
        };
        table.row([
            n.name.clone(),
            joined(&n.pod_cidrs),
            joined(&n.internal_ips),
            text(n.tunnel_address),
            next,
            text(hop.map(|hop| hop.mtu)),
            n.kernel.clone(),
        ]);
    }
    or(table, "No Node objects are known: `weft status` shows the sources.\n")
}

pub(super) fn pods(list: &[PodStatus]) -> String {
    let mut table = Table::new(["POD", "NODE", "PHASE", "ADDRESSES", "CLASS", "LABELS", "PORTS"]);
    for p in list {
        let addresses = joined(&p.ips);
        let labels: Vec<String> = p.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        table.row([
            pod_name(&p.namespace, &p.name),
            p.node.clone().unwrap_or_default(),
            p.phase.clone(),
            if p.host_network { format!("{addresses} (its node's)") } else { addresses },
            class(p.label_class),
            joined(&labels),
            joined(&p.ports),
        ]);
    }
    or(table, "No Pod objects are known: `weft status` shows the sources.\n")
}

fn policy(p: &PolicySummary) -> Vec<(&'static str, String)> {
    let PolicySummary { policies, isolated, entries, identities, epoch, .. } = p;
    let known = format!(
        "{policies} known, {} here isolated, map entries {entries}, identities {identities}, epoch {epoch}",
        count(*isolated, "pod")
    );
    let mut lines = vec![("Policy", known)];
    if p.unknown > 0 {
        lines.push(("", format!("! isolated until it is known which policies hold: {}", count(p.unknown, "pod"))));
    }
    match &p.problem {
        Some(problem) => lines.push(("", format!("! {problem}"))),
        None if !p.in_force => lines.push(("", "! not in force yet: the sources are not in sync".into())),
        None => {}
    }
    lines
}

pub(super) fn maps(list: &[MapInfo]) -> String {
    let mut table = Table::new(["NAME", "TYPE", ">KEY", ">VALUE", ">ENTRIES", ">MAX", "ABOUT"]);
    for m in list {
        table.row([
            m.name.clone(),
            m.kind.clone(),
            m.key_size.to_string(),
            m.value_size.to_string(),
            text(m.entries),
            m.max_entries.to_string(),
            m.about.clone(),
        ]);
    }
    or(table, "The agent has no maps.\n")
}

pub(super) fn entries(list: &[MapEntry]) -> String {
    let mut table = Table::new(["KEY", "VALUE"]);
    for e in list {
        table.row([fields(&e.key), fields(&e.value)]);
    }
    or(table, "The map has no entries.\n")
}

pub(super) fn drops(d: &Drops) -> String {
    let mut table = Table::new(["REASON", "WHERE", ">PACKETS", ">BYTES", "MEANING"]);
    for drop in d.drops.iter().filter(|drop| drop.packets != 0) {
        table.row([
            drop.reason.clone(),
            drop.point.clone(),
            drop.packets.to_string(),
            drop.bytes.to_string(),
            drop.description.clone(),
        ]);
    }
    let mut text = or(table, "No packet was dropped.\n");
    let mut table = Table::new(["NOT DROPPED", "WHERE", ">PACKETS", ">BYTES"]);
    for verdict in d.verdicts.iter().filter(|verdict| verdict.packets != 0) {
        table.row([
            verdict.verdict.clone(),
            verdict.point.clone(),
            verdict.packets.to_string(),
            verdict.bytes.to_string(),
        ]);
    }
    if !table.is_empty() {
        text.push_str(&format!("\n{table}"));
    }
    text
}

pub(super) fn observed(line: &Observed) -> String {
    match line {
        Observed::Lost { lost } => format!("{lost} events came too fast and are not shown here"),
        Observed::Drop(e) => event(e),
    }
}

fn event(e: &DropEvent) -> String {
    // Years that the type cannot hold do not come from a clock.
    let time = Timestamp::from_nanosecond(i128::from(e.time)).unwrap_or(Timestamp::UNIX_EPOCH);
    let pod = e.pod.clone().unwrap_or_else(|| format!("device {}", e.ifindex));
    let tuple = match (e.src, e.dst) {
        (Some(src), Some(dst)) => {
            let protocol = e.protocol.map(protocol).unwrap_or_default();
            format!("{protocol} {} > {}", end(src, e.src_port), end(dst, e.dst_port))
        }
        _ => "no IP header".to_owned(),
    };
    let reason = if e.audit { format!("passed, and would be {}", e.reason) } else { e.reason.clone() };
    let mut line = format!("{time:.3} {pod} {tuple} {} bytes: {reason} at {}: {}", e.length, e.point, e.description);
    if let Some([source, destination]) = &e.ends {
        let name = |end: &Option<String>| end.clone().unwrap_or_else(|| "no pod".to_owned());
        line.push_str(&format!(" ({} > {}", name(source), name(destination)));
        if !e.policies.is_empty() {
            let by = if e.audit { "in audit mode" } else { "isolated by" };
            line.push_str(&format!("; {by} {}", e.policies.join(", ")));
        }
        e.rule.iter().for_each(|rule| line.push_str(&format!("; denied by {rule}")));
        line.push(')');
    }
    line
}

pub(super) fn end(ip: std::net::IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => std::net::SocketAddr::new(ip, port).to_string(),
        None => ip.to_string(),
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        58 => "ICMPv6".into(),
        132 => "SCTP".into(),
        other => format!("protocol {other}"),
    }
}

/// A key or value: `name=value …` for a struct, the plain value otherwise.
fn fields(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(name, _)| *name != "pad");
            fields.map(|(name, value)| format!("{name}={}", fields_within(value))).collect::<Vec<_>>().join(" ")
        }
        other => fields_within(other),
    }
}
fn fields_within(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) fn or(table: Table, nothing: &str) -> String {
    if table.is_empty() { nothing.to_owned() } else { table.to_string() }
}

fn pod_name(namespace: &str, name: &str) -> String {
    if name.is_empty() { String::new() } else { format!("{namespace}/{name}") }
}

/// A label class as tcpdump prints the VNI that carries it: a decimal number.
fn class(hash: u32) -> String {
    if hash == crate::identity::UNKNOWN { String::new() } else { hash.to_string() }
}

fn text(value: Option<impl Display>) -> String {
    value.map(|v| v.to_string()).unwrap_or_default()
}

fn joined(list: &[impl Display]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn family(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

pub(super) fn span(seconds: u64) -> String {
    let (d, h, m, s) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m {s}s"),
        (0, _, _) => format!("{h}h {m}m"),
        _ => format!("{d}d {h}h"),
    }
}

#[cfg(test)]
mod tests;
