//! What a Prometheus server scrapes: the agent's state as numbers, in its text format.
//!
//! Everything is read when it is asked for, from what the API shows ([`Inspect`]); only CNI calls are counted as they happen ([`Calls`]). Names,
//! and what each is for, are in `docs/inspect.md`.
mod serve;
mod starts;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, prometheus_text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

pub use self::{serve::serve, starts::count as count_start};
use crate::{
    api::{
        Inspect,
        types::{Drops, MapInfo, Stage, Status},
    },
    cni::calls::Calls,
};

/// The format.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Counting the entries of a map takes a system call for each: who scrapes often gets numbers that are so old at most.
const MAPS_EVERY: Duration = Duration::from_secs(30);

/// What is scraped.
pub struct Metrics {
    inspect: Arc<dyn Inspect>,
    calls: Calls,
    /// When the agent began, in seconds since 1970, and how often one has on this node since it booted.
    began: u64,
    starts: u64,
    maps: Mutex<Option<(Instant, Vec<MapInfo>)>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Of this agent, which is the `starts`th on its node and began in second `began`.
    pub fn new(inspect: Arc<dyn Inspect>, calls: Calls, began: u64, starts: u64) -> Self {
        Self { inspect, calls, began, starts, maps: Mutex::default() }
    }

    /// All of it as text. It reads maps, and may take some ten milliseconds.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("weft");
        self.calls.register(&mut registry);
        registry.register_collector(Box::new(Scrape {
            status: self.inspect.status(),
            // Without them their lines are missing, which is what a scraper takes for unknown.
            drops: self.inspect.drops().unwrap_or_default(),
            maps: self.maps(),
            began: self.began,
            starts: self.starts,
            resident: resident().unwrap_or(0),
        }));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry)?;
        Ok(text)
    }

    /// Why the agent is not ready; `None` when it is.
    pub fn not_ready(&self) -> Option<String> {
        self.inspect.health().err()
    }

    fn maps(&self) -> Vec<MapInfo> {
        let mut kept = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((at, maps)) if at.elapsed() < MAPS_EVERY => maps.clone(),
            _ => {
                let maps = self.inspect.maps().unwrap_or_default();
                *kept = Some((Instant::now(), maps.clone()));
                maps
            }
        }
    }
}

/// One scrape's worth.
#[derive(Debug)]
struct Scrape {
    status: Status,
    drops: Drops,
    maps: Vec<MapInfo>,
    began: u64,
    starts: u64,
    resident: u64,
}

/// Names and values of a line's labels.
type Labels<'a> = Vec<(&'a str, String)>;

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(&mut encoder);
        self.agent(&mut out)?;
        self.sources(&mut out)?;
        self.policy(&mut out)?;
        self.kernel(&mut out)?;
        self.packets(&mut out)
    }
}

impl Scrape {
    fn agent(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let s = &self.status;
        let about = vec![("version", s.version.clone()), ("layout", s.datapath.layout.clone())];
        out.gauge("build_info", "Always 1; the labels say which build the agent is", [(about, 1)])?;
        out.gauge("agent_start_time_seconds", "When the agent began, in seconds since 1970", one(self.began))?;
        out.counter("agent_starts", "Starts of an agent on this node since the node booted", one(self.starts))?;
        out.gauge(
            "agent_ready",
            "1 when the agent is ready, 0 when it waits for something",
            one(s.not_ready.is_none().into()),
        )?;
        out.gauge("agent_resident_memory_bytes", "Memory of the agent that is in RAM", one(self.resident))?;
        let installed = s.install.stage == Stage::Installed;
        out.gauge(
            "cni_installed",
            "1 when plugin and configuration are in place for the runtime",
            one(installed.into()),
        )?;
        out.gauge("endpoints", "Endpoints of this node", one(s.endpoints as u64))?;
        out.gauge("nodes", "Nodes that this node knows, itself among them", one(s.nodes as u64))?;
        out.gauge("pods", "Pods of all nodes that this node knows", one(s.pods as u64))?;
        let range = |state: &'static str, n: fn(&crate::ipam::Usage) -> u32| {
            s.addresses.iter().map(move |a| (vec![("cidr", a.cidr.to_string()), ("state", state.into())], n(a).into()))
        };
        let addresses = range("used", |a| a.used).chain(range("quarantined", |a| a.quarantined)).collect::<Vec<_>>();
        out.gauge("ipam_addresses", "Pod addresses of this node's ranges that are not free", addresses)?;
        let sizes = s.addresses.iter().map(|a| (vec![("cidr", a.cidr.to_string())], a.size.into()));
        out.gauge("ipam_capacity", "Addresses that a range of this node has for pods", sizes.collect::<Vec<_>>())
    }

    fn sources(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let sources = &self.status.sources;
        let each = |value: fn(&crate::sources::SourceStatus) -> u64| {
            sources.iter().map(|s| (vec![("source", s.name.clone())], value(s))).collect::<Vec<_>>()
        };
        out.gauge("source_synced", "1 when all that the source knew at the start is known", each(|s| s.synced.into()))?;
        out.gauge(
            "source_problems",
            "Things that are wrong with a source now; weft status names them",
            each(|s| s.problems.len() as u64),
        )?;
        out.gauge("source_objects", "Objects of a source", each(|s| s.objects as u64))?;
        let kinds = |value: fn(&crate::sources::KindStatus) -> Option<u64>| {
            let of = |s: &crate::sources::SourceStatus| {
                let name = s.name.clone();
                let labels =
                    move |k: &crate::sources::KindStatus| vec![("source", name.clone()), ("kind", k.kind.clone())];
                s.kinds.iter().filter_map(|k| Some((labels(k), value(k)?))).collect::<Vec<_>>()
            };
            sources.iter().flat_map(of).collect::<Vec<_>>()
        };
        out.gauge(
            "source_heard_timestamp_seconds",
            "When the API server last said anything about a kind, in seconds since 1970",
            kinds(|k| k.heard),
        )?;
        let now = crate::kube::now();
        let silent = sources.iter().flat_map(|s| {
            s.kinds.iter().filter_map(|k| {
                Some((vec![("source", s.name.clone()), ("kind", k.kind.clone())], now.saturating_sub(k.heard?)))
            })
        });
        out.gauge(
            "source_lag_seconds",
            "How long the API server has said nothing about a kind; about a minute is usual",
            silent.collect::<Vec<_>>(),
        )?;
        out.counter(
            "source_lists",
            "Times that all objects of a kind were listed; 1 while the server forgets nothing",
            kinds(|k| Some(k.lists)),
        )
    }

    fn policy(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let p = &self.status.policy;
        out.gauge(
            "policy_in_force",
            "1 when the maps hold what policies say, 0 when that waits for something or does not fit; weft status says why",
            one(p.in_force.into()),
        )?;
        out.gauge(
            "policies",
            "NetworkPolicies and ClusterNetworkPolicies that this node knows",
            one(p.policies as u64),
        )?;
        out.gauge(
            "policy_isolated_pods",
            "Pods of this node that policies isolate in one direction or both",
            one(p.isolated as u64),
        )?;
        out.gauge(
            "policy_unknown_pods",
            "Pods of this node that are isolated as it is not known yet which policies hold for them",
            one(p.unknown as u64),
        )?;
        out.gauge(
            "policy_waiting_pods",
            "Pods for whose policies the maps have no room; older ones are in force for them, or they are isolated",
            one(p.waiting as u64),
        )?;
        out.gauge(
            "policy_withheld_peers",
            "Classes of peers for which the maps have no room; isolated pods drop what they send",
            one(p.withheld as u64),
        )?;
        out.gauge("policy_epoch", "Rises when all flows are judged again", one(p.epoch.into()))
    }

    fn kernel(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let r = &self.status.reconciler;
        out.gauge("reconciler_pending_rows", "Rows that the kernel does not hold yet", one(r.pending as u64))?;
        out.gauge(
            "reconciler_failed_rows",
            "Rows that the kernel refuses; weft status names them",
            one(r.failed.len() as u64),
        )?;
        out.gauge(
            "reconciler_lag_revisions",
            "Changes that the kernel is behind",
            one(r.revision.saturating_sub(r.applied)),
        )?;
        let drift = r.drift.iter().map(|(kind, n)| (vec![("kind", kind.to_string())], *n)).collect::<Vec<_>>();
        out.counter("drift_repairs", "What somebody else had changed in the kernel and the agent repaired", drift)?;
        let entries = self.maps.iter().filter_map(|m| Some((vec![("map", m.name.clone())], m.entries?)));
        out.gauge("map_entries", "Entries of a BPF map", entries.collect::<Vec<_>>())?;
        let sizes = self.maps.iter().filter(|m| m.entries.is_some());
        let sizes = sizes.map(|m| (vec![("map", m.name.clone())], m.max_entries.into()));
        out.gauge("map_capacity", "Entries that a BPF map can hold", sizes.collect::<Vec<_>>())
    }

    fn packets(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let (ct, nat) = (&self.status.conntrack, &self.status.masquerade);
        let drop = |n: fn(&crate::api::types::DropCount) -> u64| {
            let labels =
                |d: &crate::api::types::DropCount| vec![("reason", d.reason.clone()), ("program", d.point.clone())];
            self.drops.drops.iter().map(|d| (labels(d), n(d))).collect::<Vec<_>>()
        };
        out.counter("drop_packets", "Packets that a program dropped, by reason", drop(|d| d.packets))?;
        out.counter("drop_bytes", "Bytes that a program dropped, by reason", drop(|d| d.bytes))?;
        let verdict = |n: fn(&crate::api::types::VerdictCount) -> u64| {
            let labels = |v: &crate::api::types::VerdictCount| {
                vec![("outcome", v.verdict.clone()), ("program", v.point.clone())]
            };
            self.drops.verdicts.iter().map(|v| (labels(v), n(v))).collect::<Vec<_>>()
        };
        out.counter(
            "outcome_packets",
            "Packets that a program let go on, or events of it, by outcome",
            verdict(|v| v.packets),
        )?;
        out.counter("outcome_bytes", "Bytes that a program let go on, by outcome", verdict(|v| v.bytes))?;
        out.counter("conntrack_full", "Flows that stayed in the small table as the large one was full", one(ct.full))?;
        out.counter(
            "conntrack_quota",
            "Flows that stayed in the small table as their endpoint had its share",
            one(ct.quota),
        )?;
        out.counter("masquerade_exhausted_packets", "Packets dropped for want of a free port", one(nat.exhausted))?;
        out.counter("masquerade_full_packets", "Packets dropped as the table of translations was full", one(nat.full))?;
        out.counter(
            "masquerade_quota_packets",
            "Packets dropped as their endpoint had its share of translations",
            one(nat.quota),
        )
    }
}

/// Where lines go.
struct Out<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Out<'_, '_> {
    fn gauge<'l>(&mut self, name: &str, help: &str, lines: impl IntoIterator<Item = (Labels<'l>, u64)>) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in lines {
            // Above 2^63 there is nothing that we count.
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
    /// The name's ending `_total` is put there by the format.
    fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        lines: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in lines {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn one<'l>(value: u64) -> [(Labels<'l>, u64); 1] {
    [(Vec::new(), value)]
}

/// Bytes of this process in RAM. proc(5), `/proc/pid/statm`: the second field, in pages.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}
