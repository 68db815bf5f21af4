//! What the API shows of the running agent.
mod ends;
mod explain;
mod live;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use cni_common::{
    drop::{DropReason, Outcome},
    schema::{self, MapType},
};
use tokio::sync::broadcast;

use crate::{
    api::{
        ExplainError, Inspect, MapError,
        types::{
            Attachment, Audit, ConntrackStatus, DatapathStatus, DropCount, DropEvent, Drops, EndpointStatus,
            Explanation, FlowCounts, FlowList, IpamAddress, MapEntry, MapInfo, MasqueradeStatus, NodeStatus, PodStatus,
            PolicyList, PolicySummary, ReconcilerStatus, ServicesStatus, Status, TableFill, VerdictCount,
        },
    },
    audit::gather::Auditor,
    compile::Facts,
    conntrack::{self, FlowError},
    datapath::{Datapath, RawMap, attach::How, counters, features::Features, hits::Hits, object},
    drift,
    endpoint::{self, EndpointManager, record::RecordStore},
    install, ipam,
    netlink::{names, nftables::own::Rule},
    observe::{Observer, render},
    policy::{objects::PolicyName, verdicts::case::Probe},
    reconcile::{Report, policy::Policies},
    settings::Settings,
    sources,
    tables::{self, Row, RowStatus, Source, Tables},
};

/// Comparing a hundred pods takes some ten milliseconds; large maps, and cures that wait for RCU, take their time.
const VERIFIED_WITHIN: Duration = Duration::from_secs(60);

/// Everything that can be asked.
pub struct Inspector {
    pub(crate) settings: Settings,
    pub(crate) facts: Facts,
    pub(crate) tables: Arc<Tables>,
    pub(crate) datapath: Arc<Datapath>,
    pub(crate) manager: Arc<EndpointManager>,
    pub(crate) records: RecordStore,
    pub(crate) report: Arc<Mutex<Report>>,
    pub(crate) requests: Arc<drift::Requests>,
    pub(crate) source: Arc<sources::Report>,
    pub(crate) observer: Observer,
    pub(crate) install: Arc<install::Running>,
    pub(crate) began: Instant,
    pub(crate) features: Features,
    pub(crate) flows: conntrack::Viewer,
    pub(crate) policies: Arc<Mutex<Policies>>,
}

impl Inspector {
    fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn programs(&self) -> Vec<Attachment> {
        let at = |program: &str, device: &str, how: &str| Attachment {
            program: program.into(),
            device: device.into(),
            how: how.into(),
        };
        let text = |how| match how {
            How::Tcx => "tcx",
            How::Clsact => "clsact",
        };
        let report = self.report();
        let mut all = Vec::new();
        if let Some([host, overlay]) = report.own {
            all.extend([
                at(object::FROM_POD, names::BLOCK, "block"),
                at(object::FROM_HOST, names::NET, text(host)),
                at(object::FROM_OVERLAY, names::VXLAN, text(overlay)),
            ]);
        }
        all.extend(report.devices.iter().map(|(device, how)| at(object::FROM_NETDEV, device, text(*how))));
        all
    }
}

impl Inspector {
    fn conntrack(&self) -> ConntrackStatus {
        // What cannot be read is left out; `weft ct count` says why.
        let tables = self.flows.fill().unwrap_or_default().into_iter().map(fill);
        let outcomes = counters::outcomes(&self.datapath).unwrap_or_default();
        let times = |what| outcomes.iter().filter(|c| c.what == what).map(|c| c.count.packets).sum();
        ConntrackStatus { tables: tables.collect(), full: times(Outcome::CtFull), quota: times(Outcome::CtQuota) }
    }

    fn policy(&self) -> PolicySummary {
        let epoch = self.datapath.map(&schema::CT_CONFIG).lookup(&0_u32.to_ne_bytes()).ok().flatten();
        let (policies, pods) = {
            let c = self.tables.read();
            let pods: Vec<_> = c.endpoints.values().filter(|e| e.is_kubernetes()).map(|e| e.pod()).collect();
            (c.policies.len(), pods)
        };
        let p = self.policies.lock().unwrap_or_else(PoisonError::into_inner);
        let s = p.summary();
        let known = |pod| p.engine.sets_of(pod);
        PolicySummary {
            in_force: s.in_force,
            problem: s.problem,
            policies,
            isolated: p.engine.endpoints().filter(|(_, sets)| sets.isolate()).count(),
            unknown: pods.iter().filter(|pod| known(pod).is_none()).count(),
            entries: s.sizes.entries,
            identities: s.sizes.identities,
            epoch: epoch.and_then(|v| v.first_chunk().copied().map(u32::from_ne_bytes)).unwrap_or_default(),
            writes: s.writes,
            waiting: s.waiting,
            withheld: s.withheld,
        }
    }

    fn masquerade(&self) -> MasqueradeStatus {
        let hooked = self.report().devices;
        let leaves = match &self.facts.masquerade {
            Some(_) => {
                let c = self.tables.read();
                let devices = c.devices.values().filter(|d| hooked.contains_key(&d.name));
                let addresses = |d: &tables::Device| {
                    let (v4, v6) = (d.leave4.map(IpAddr::V4), d.leave6.map(IpAddr::V6));
                    v4.into_iter().chain(v6).collect::<Vec<_>>()
                };
                devices.map(|d| (d.name.clone(), addresses(d))).filter(|(_, a)| !a.is_empty()).collect()
            }
            None => BTreeMap::new(),
        };
        let drops = counters::drops(&self.datapath).unwrap_or_default();
        let times = |what| drops.iter().filter(|c| c.what == what).map(|c| c.count.packets).sum();
        MasqueradeStatus {
            ports: self.facts.masquerade.as_ref().map(|m| m.ports.to_string()),
            leaves,
            tables: self.flows.translations().unwrap_or_default().into_iter().map(fill).collect(),
            exhausted: times(DropReason::NatExhausted),
            full: times(DropReason::NatFull),
            quota: times(DropReason::NatQuota),
        }
    }
}

impl Inspector {
    fn services(&self) -> ServicesStatus {
        let report = self.report();
        let cidrs = self.facts.services(&self.tables.read());
        let ports = report.stack_rules.iter().find_map(|r| match r {
            Rule::Masquerade { ports, .. } => *ports,
            Rule::Keep { .. } => None,
        });
        ServicesStatus {
            cidrs,
            masqueraded: !report.stack_rules.is_empty(),
            ports: ports.map(|p| p.to_string()),
            problem: report.stack_problem,
        }
    }
}

fn fill(f: conntrack::Fill) -> TableFill {
    TableFill { family: f.family.to_string(), flows: f.flows, size: f.size }
}

fn read_failed(map: &RawMap) -> impl Fn(std::io::Error) -> MapError {
    let name = map.spec().name.to_owned();
    move |e| MapError::Read { name: name.clone(), cause: e.to_string() }
}

impl Inspect for Inspector {
    fn health(&self) -> Result<(), String> {
        if let Some(why) = endpoint::not_ready(&self.tables, &self.facts) {
            return Err(why);
        }
        if self.datapath.waits() {
            return Err("another build's programs run until this one's maps are filled".into());
        }
        // Not the records: what they lack is pods that are served on (`EndpointManager::restore`).
        match [Source::Cluster, Source::Netlink].into_iter().find(|s| !self.tables.is_synced(*s)) {
            Some(source) => Err(format!("the source {source:?} has not delivered all that it knows yet")),
            None => Ok(()),
        }
    }

    fn status(&self) -> Status {
        let (tunnel, device_mtu, pod_mtu, nodes, pods, endpoints) = {
            let c = self.tables.read();
            (
                self.facts.tunnel_address(&c),
                self.facts.device_mtu(&c),
                self.facts.route_mtu(&c),
                c.nodes.len(),
                c.pods.len(),
                c.endpoints.len(),
            )
        };
        let report = self.report();
        Status {
            node: self.facts.node.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: nix::sys::utsname::uname()
                .map_or_else(|_| String::new(), |u| u.release().to_string_lossy().into_owned()),
            pid: std::process::id(),
            uptime_seconds: self.began.elapsed().as_secs(),
            not_ready: self.health().err(),
            datapath: DatapathStatus {
                tunnel_address: tunnel,
                tunnel_port: self.settings.tunnel_port,
                underlay_mtu: device_mtu.unwrap_or(0),
                pod_mtu: pod_mtu.unwrap_or(0),
                programs: self.programs(),
                refused: self.datapath.refused().cloned(),
                layout: format!("{:016x}", schema::build()),
                waits: self.datapath.waits(),
                other_maps: self.datapath.others(),
                features: self.features.by_name(),
                missing_features: self.features.missing(),
            },
            sources: vec![self.source.get()],
            install: self.install.status(),
            reconciler: ReconcilerStatus {
                pruning: report.pruned,
                drift: report.drift,
                ..ReconcilerStatus::of(&self.tables)
            },
            nodes,
            pods,
            endpoints,
            addresses: self.manager.ipam_usage(),
            policy: self.policy(),
            conntrack: self.conntrack(),
            masquerade: self.masquerade(),
            services: self.services(),
            dropped_packets: counters::drops(&self.datapath).map_or(0, |d| d.iter().map(|c| c.count.packets).sum()),
        }
    }

    fn endpoints(&self) -> Vec<EndpointStatus> {
        let all: Vec<_> = {
            let c = self.tables.read();
            c.endpoints.values().map(|e| (e.clone(), c.pods.get(&e.pod()))).collect()
        };
        let status = |id| self.tables.status(&Row::Endpoint(id));
        all.iter().map(|(e, pod)| EndpointStatus::new(e, pod.as_ref(), status(e.id))).collect()
    }

    fn nodes(&self) -> Vec<NodeStatus> {
        let all: Vec<_> = {
            let c = self.tables.read();
            let own = |name: &str| name == self.facts.node;
            let tunnel = |n: &crate::tables::Node| self.facts.tunnel_to(&c, &n.internal_ips);
            c.nodes
                .values()
                .map(|n| {
                    let to = tunnel(n);
                    let hop = to.and_then(|a| c.next_hops.get(&a)).cloned();
                    (n.clone(), own(&n.name), to, hop)
                })
                .collect()
        };
        let status = |name: &str| self.tables.status(&Row::Node(name.to_owned()));
        all.iter().map(|(n, own, to, hop)| NodeStatus::new(n, *own, *to, hop.as_ref(), status(&n.name))).collect()
    }

    fn policies(&self) -> PolicyList {
        let known: Vec<_> = self.tables.read().policies.iter().map(|(n, r)| (n.clone(), Arc::clone(r))).collect();
        let summary = self.policy();
        let kernel = |name: &PolicyName| match self.tables.status(&Row::Policy(name.clone().into())) {
            Some(RowStatus::Failed { error, .. }) => format!("not in force: {error}"),
            Some(RowStatus::Pending) => "waits".to_owned(),
            _ => match &summary.problem {
                Some(problem) => format!("as before: {problem}"),
                None if !summary.in_force => "waits".to_owned(),
                None => "in force".to_owned(),
            },
        };
        // What cannot be read counts nothing; `weft map dump hits` says why.
        let hits = Hits::read(&self.datapath).unwrap_or_default();
        let policies = self.policies.lock().unwrap_or_else(PoisonError::into_inner);
        let list = known.iter().map(|(name, read)| policies.describe(read, kernel(name), &hits)).collect();
        PolicyList { policies: list, problems: self.source.get().problems, summary }
    }

    fn explain(&self, from: &str, to: &str, probe: Probe) -> Result<Explanation, ExplainError> {
        self.explained(from, to, probe)
    }

    fn pods(&self) -> Vec<PodStatus> {
        self.tables.read().pods.values().map(|pod| PodStatus::new(&pod)).collect()
    }

    fn ipam(&self) -> Vec<IpamAddress> {
        ipam_list(&self.manager.addresses_out(), &self.tables, &self.records)
    }

    fn audit(&self) -> Audit {
        let (manager, tables, records, datapath) = (&self.manager, &self.tables, &self.records, &self.datapath);
        Auditor { manager, tables, records, datapath }.audit()
    }

    fn verify(&self) -> Option<drift::Verified> {
        self.requests.ask(VERIFIED_WITHIN)
    }

    fn maps(&self) -> Result<Vec<MapInfo>, MapError> {
        self.datapath
            .maps()
            .map(|map| {
                let spec = map.spec();
                let entries = match spec.kind {
                    MapType::RingBuf => None,
                    MapType::PerCpuArray => Some(spec.max_entries.into()),
                    MapType::Array => Some(map.dump().map_err(read_failed(map))?.len() as u64),
                    MapType::Hash | MapType::LruHash | MapType::LpmTrie => {
                        Some(map.keys().map_err(read_failed(map))?.len() as u64)
                    }
                };
                Ok(MapInfo {
                    name: spec.name.into(),
                    kind: format!("{:?}", spec.kind),
                    about: spec.about.into(),
                    key_size: spec.key_size,
                    value_size: spec.value_size,
                    entries,
                    max_entries: spec.max_entries,
                })
            })
            .collect()
    }

    fn map_dump(&self, name: &str) -> Result<Vec<MapEntry>, MapError> {
        let map = self.datapath.map_by_name(name).ok_or_else(|| MapError::NoSuchMap { name: name.to_owned() })?;
        let spec = *map.spec();
        if spec.kind == MapType::RingBuf {
            return Err(MapError::NotListable { name: name.to_owned(), kind: "ring buffer".into() });
        }
        let contents = map.dump().map_err(read_failed(map))?;
        let shown = |v: &[u8]| spec.kind != MapType::PerCpuArray || v.iter().any(|b| *b != 0);
        Ok(contents
            .iter()
            .filter(|(_, v)| shown(v))
            .map(|(k, v)| MapEntry { key: render::key(&spec, k), value: render::value(&spec, v) })
            .collect())
    }

    fn drops(&self) -> Result<Drops, MapError> {
        let failed = read_failed(self.datapath.map(&schema::COUNTS));
        Ok(Drops {
            drops: counters::drops(&self.datapath)
                .map_err(&failed)?
                .into_iter()
                .map(|c| DropCount::new(c.what, c.point, c.count))
                .collect(),
            verdicts: counters::outcomes(&self.datapath)
                .map_err(&failed)?
                .into_iter()
                .map(|c| VerdictCount::new(c.what, c.point, c.count))
                .collect(),
        })
    }

    fn flows(&self, filter: &conntrack::Filter, limit: usize) -> Result<FlowList, FlowError> {
        self.flows.list(filter, limit)
    }

    fn flow_counts(&self) -> Result<FlowCounts, FlowError> {
        self.flows.counts()
    }

    fn flush_flows(&self, filter: &conntrack::Filter) -> Result<u64, FlowError> {
        self.flows.flush(filter)
    }

    fn observe(&self) -> broadcast::Receiver<Arc<DropEvent>> {
        self.observer.subscribe()
    }
}

fn ipam_list(out: &BTreeMap<IpAddr, ipam::State>, tables: &Tables, records: &RecordStore) -> Vec<IpamAddress> {
    // Ages only: what cannot be read is left out, and the audit tells of it.
    let records = records.read_all().unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let created: BTreeMap<(&str, &str), u64> =
        records.iter().map(|r| ((r.container_id.as_str(), r.ifname.as_str()), r.created)).collect();
    let c = tables.read();
    let owners: BTreeMap<IpAddr, &tables::Endpoint> =
        c.endpoints.values().flat_map(|e| e.ips().map(move |a| (a, e))).collect();
    let shown = |(address, state): (&IpAddr, &ipam::State)| {
        let plain = IpamAddress { address: address.to_string(), state: state.to_string(), ..IpamAddress::default() };
        let Some(e) = owners.get(address) else { return plain };
        IpamAddress {
            namespace: e.namespace.clone(),
            pod: e.pod_name.clone(),
            container_id: e.container_id.clone(),
            ifname: e.ifname.clone(),
            device: e.device.clone(),
            delegated: e.terms.delegated,
            age_seconds: created
                .get(&(e.container_id.as_str(), e.ifname.as_str()))
                .map(|then| now.saturating_sub(*then)),
            ..plain
        }
    };
    out.iter().map(shown).collect()
}
