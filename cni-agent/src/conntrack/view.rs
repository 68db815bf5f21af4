//! What people are shown of the tables, and what they may take out.
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::{Arc, mpsc},
    time::Duration,
};

use cni_common::{
    maps::CtEntry,
    schema::MapSpec,
    wire::{ICMP, ICMP6, SCTP, TCP, UDP},
};

use cni_ebpf::family::{V4, V6};

use super::{
    filter::Filter,
    flow::{Flow, read},
    sweeper::{FAMILIES, Specs, Sweeper, lots},
    table::{Kernel, Table},
    translation::{Tables, Translated},
};
use crate::{
    api::types::{FlowCounts, FlowList, FlowStatus, FlowTable, NodeEnd},
    datapath::{Clock, Datapath, features::Features},
    ipam::Family,
    tables::{self, Contents, PodKey},
};

/// How long taking out may take: a second or so when all tables are full.
const FLUSHED_WITHIN: Duration = Duration::from_secs(30);

/// Why flows cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// Nobody knows a pod that is asked for.
    #[error("there is no pod `{0}`")]
    NoSuchPod(String),
    /// The kernel does not give them.
    #[error("the kernel does not let the tables of flows be read: {0}")]
    Read(#[from] io::Error),
}

/// How many flows a table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The family.
    pub family: Family,
    /// Flows that both ends have spoken in.
    pub flows: u64,
    /// How many it can hold.
    pub size: u32,
}

/// Shows flows.
pub struct Viewer {
    datapath: Arc<Datapath>,
    tables: Arc<tables::Tables>,
    sweeper: Sweeper,
    clock: Option<Clock>,
    by_lots: (bool, bool),
    hz: u32,
}

/// A table of flows and what it is called.
struct Named<'a> {
    family: Family,
    name: &'static str,
    table: Kernel<'a>,
}

impl Viewer {
    /// `hz`: jiffies in a second.
    pub fn new(
        datapath: Arc<Datapath>,
        tables: Arc<tables::Tables>,
        sweeper: Sweeper,
        features: &Features,
        hz: u32,
    ) -> Self {
        // The sweeper has said it if there is none.
        Self { datapath, tables, sweeper, clock: Clock::load().ok(), by_lots: lots(features), hz: hz.max(1) }
    }

    /// The flows that a filter takes, `limit` at most, and how many there are.
    ///
    /// # Errors
    /// [`FlowError`], here and below.
    pub fn list(&self, filter: &Filter, limit: usize) -> Result<FlowList, FlowError> {
        let addresses = self.addresses(filter)?;
        let clock = self.clock.as_ref().ok_or(io::ErrorKind::Unsupported).map_err(io::Error::from)?;
        let now = clock.now()?;
        let (mut found, mut matched) = (Vec::new(), 0_u64);
        for named in self.named() {
            each(&named.table, |key, entry| {
                let Some(flow) = Flow::of(key, entry, now).filter(|flow| filter.takes(flow, &addresses)) else {
                    return;
                };
                matched += 1;
                if found.len() < limit {
                    found.push((named.family, named.name, flow, key.to_vec()));
                }
            })?;
        }
        let names = pods(&self.tables.read());
        let status = |(family, table, flow, key): &(Family, &str, Flow, Vec<u8>)| {
            let status = self.status(*family, table, flow, &names);
            Ok(FlowStatus { masqueraded_as: self.node_end(*family, key, flow)?, ..status })
        };
        let mut flows = found.iter().map(status).collect::<io::Result<Vec<_>>>()?;
        flows.sort();
        Ok(FlowList { flows, matched })
    }

    fn status(&self, family: Family, table: &str, flow: &Flow, pods: &BTreeMap<IpAddr, String>) -> FlowStatus {
        let [(source, source_port), (destination, destination_port)] = flow.opener_first();
        let protocol = flow.ends.protocol;
        FlowStatus {
            family: family.to_string(),
            protocol,
            source,
            source_port: has_ports(protocol).then_some(source_port),
            destination,
            destination_port: has_ports(protocol).then_some(destination_port),
            echo_id: is_echo(protocol).then_some(source_port),
            state: flow.state.name().into(),
            seconds_left: flow.left.div_ceil(self.hz.into()),
            source_pod: pods.get(&source).cloned(),
            destination_pod: pods.get(&destination).cloned(),
            table: table.into(),
            epoch: flow.epoch,
            masqueraded_as: None,
        }
    }

    /// As what the end that has opened a flow appears outside.
    fn node_end(&self, family: Family, key: &[u8], flow: &Flow) -> io::Result<Option<NodeEnd>> {
        let [specs4, specs6] = &FAMILIES;
        let found = match family {
            Family::V4 => node_end::<V4, _>(&specs4.tables(&self.datapath, self.by_lots), key, flow.hi_opened)?,
            Family::V6 => node_end::<V6, _>(&specs6.tables(&self.datapath, self.by_lots), key, flow.hi_opened)?,
        };
        let protocol = flow.ends.protocol;
        Ok(found.map(|(address, port)| NodeEnd {
            address,
            port: has_ports(protocol).then_some(port),
            echo_id: is_echo(protocol).then_some(port),
        }))
    }

    /// How many flows there are, by table and state.
    pub fn counts(&self) -> Result<FlowCounts, FlowError> {
        let count = |named: Named<'_>| -> Result<FlowTable, FlowError> {
            let mut states: BTreeMap<String, u64> = BTreeMap::new();
            let mut flows = 0;
            each(&named.table, |key, entry| {
                if let Some(flow) = Flow::of(key, entry, 0) {
                    flows += 1;
                    *states.entry(flow.state.name().into()).or_default() += 1;
                }
            })?;
            let size = named.table.map.spec().max_entries;
            Ok(FlowTable { family: named.family.to_string(), table: named.name.into(), flows, size, states })
        };
        Ok(FlowCounts { tables: self.named().into_iter().map(count).collect::<Result<_, _>>()? })
    }

    /// How full the large tables are.
    pub fn fill(&self) -> Result<Vec<Fill>, FlowError> {
        let large = self.named().into_iter().filter(|named| named.name == SETTLED);
        let fill = |named: Named<'_>| {
            let mut flows = 0;
            each(&named.table, |_, _| flows += 1)?;
            Ok(Fill { family: named.family, flows, size: named.table.map.spec().max_entries })
        };
        large.map(fill).collect()
    }

    /// How full the tables of masqueraded flows are.
    pub fn translations(&self) -> Result<Vec<Fill>, FlowError> {
        let fill = |(family, specs): (Family, &Specs)| {
            let table = specs.tables(&self.datapath, self.by_lots).back;
            let (mut walk, mut flows) = (table.walk(), 0);
            while table.lot(&mut walk, &mut |_, _| flows += 1)? {}
            Ok(Fill { family, flows, size: table.map.spec().max_entries })
        };
        [Family::V4, Family::V6].into_iter().zip(&FAMILIES).map(fill).collect()
    }

    /// Takes out what a filter takes; how many flows it was.
    pub fn flush(&self, filter: &Filter) -> Result<u64, FlowError> {
        let addresses = self.addresses(filter)?;
        let (filter, (tell, done)) = (filter.clone(), mpsc::channel());
        let takes = move |key: &[u8], entry: &CtEntry| {
            Flow::of(key, entry, 0).is_some_and(|flow| filter.takes(&flow, &addresses))
        };
        self.sweeper.remove(takes, move |removed| {
            // Nobody waits any more when it took too long.
            let _told = tell.send(removed);
        });
        Ok(done.recv_timeout(FLUSHED_WITHIN).map_err(io::Error::other)??)
    }

    fn named(&self) -> Vec<Named<'_>> {
        let of = |spec: &MapSpec, by_lots| Kernel { map: self.datapath.map(spec), by_lots };
        let families = [Family::V4, Family::V6].into_iter().zip(FAMILIES);
        let both = |(family, specs): (Family, Specs)| {
            [
                Named { family, name: SETTLED, table: of(&specs.flows, self.by_lots.0) },
                Named { family, name: NEW, table: of(&specs.new, self.by_lots.1) },
            ]
        };
        families.flat_map(both).collect()
    }

    /// Those of the pods that a filter names.
    fn addresses(&self, filter: &Filter) -> Result<BTreeSet<IpAddr>, FlowError> {
        let c = self.tables.read();
        let mut all = BTreeSet::new();
        for name in &filter.pods {
            let (namespace, pod) = name.split_once('/').unwrap_or(("default", name));
            let of = addresses(&c, &PodKey::new(namespace, pod));
            all.extend(of.ok_or_else(|| FlowError::NoSuchPod(name.clone()))?);
        }
        Ok(all)
    }
}

/// Whether a protocol has ports.
fn has_ports(protocol: u8) -> bool {
    [TCP, UDP, SCTP].contains(&protocol)
}

/// Whether flows of a protocol are known by an identifier.
fn is_echo(protocol: u8) -> bool {
    [ICMP, ICMP6].contains(&protocol)
}

/// The node's end of the flow under a key in conntrack, address and port, if its opener is masqueraded.
pub(super) fn node_end<F: Translated, T: Table>(
    tables: &Tables<T>,
    key: &[u8],
    hi_opened: bool,
) -> io::Result<Option<(IpAddr, u16)>> {
    let Some(key) = read::<F::CtKey>(key) else { return Ok(None) };
    let [lo_opened, by_hi] = F::pairs(&key);
    let opener = if hi_opened { by_hi } else { lo_opened };
    Ok(tables.node_end::<F>(&opener)?.map(|node| (F::ip(&node.addr), node.port.to_host())))
}

/// The large table: flows that both ends have spoken in.
const SETTLED: &str = "settled";
/// The small one, which forgets.
const NEW: &str = "new";

fn each(table: &Kernel<'_>, mut take: impl FnMut(&[u8], &CtEntry)) -> io::Result<()> {
    let mut walk = table.walk();
    while table.lot(&mut walk, &mut |key, value| {
        if let Some(entry) = read::<CtEntry>(value) {
            take(key, &entry);
        }
    })? {}
    Ok(())
}

/// A pod's addresses, those of its interfaces here and those that its object has; none if nobody knows it.
fn addresses(c: &Contents, key: &PodKey) -> Option<BTreeSet<IpAddr>> {
    let here: Vec<_> = c.endpoints.values().filter(|e| e.pod() == *key).collect();
    let object = c.pods.get(key);
    if here.is_empty() && object.is_none() {
        return None;
    }
    let of_object = object.into_iter().filter(|pod| !pod.host_network).flat_map(|pod| pod.ips);
    Some(here.into_iter().flat_map(|e| e.ips()).chain(of_object).collect())
}

/// Whose pod's an address is. What is here is known better here.
fn pods(c: &Contents) -> BTreeMap<IpAddr, String> {
    let objects = c.pods.values().filter(|pod| !pod.host_network);
    let mut all: BTreeMap<IpAddr, String> =
        objects.flat_map(|pod| pod.ips.clone().into_iter().map(move |ip| (ip, pod.key().to_string()))).collect();
    for e in c.endpoints.values().filter(|e| !e.pod_name.is_empty()) {
        all.extend(e.ips().map(|ip| (ip, e.pod().to_string())));
    }
    all
}
