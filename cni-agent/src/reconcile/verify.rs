//! Everything that is desired against everything that the kernel holds: [`drift`](crate::drift) has the rules.
use std::{
    collections::BTreeMap,
    sync::PoisonError,
    time::{Duration, Instant},
};

use tracing::{debug, warn};

use super::{Reconciler, delta::Drifted, stack};
use crate::{
    compile::{self, Facts},
    datapath::{attach::How, object},
    drift::{
        Item, Kind, Verified,
        compare::{Cure, Device, Difference, Hook, Wanted, compare},
        kernel::{self, Hands},
    },
    endpoint, memory,
    netlink::{NetlinkError, Socket, link, names, nftables::own::Table, rule::Rule},
    node::devices,
    observe::render,
    tables::{Contents, Row, RowStatus},
};

/// How long events may take that explain a difference: only one that outlives it is drift.
const SETTLED_WITHIN: Duration = Duration::from_millis(200);

/// What of the node's own things does not change while the agent runs.
#[derive(Clone, Debug, Default)]
pub struct Fixed {
    /// Indexes of our devices.
    indexes: BTreeMap<&'static str, u32>,
}

impl Fixed {
    /// Reads the devices' indexes.
    pub(super) fn read(socket: &mut Socket) -> Result<Self, NetlinkError> {
        let links = link::list(socket)?;
        let index = |name| Some((name, links.iter().find(|l| l.name == name)?.index));
        let all = [names::HOST, names::NET, names::VXLAN, names::BLOCK, names::BLOCK_PEER];
        Ok(Self { indexes: all.into_iter().filter_map(index).collect() })
    }

    fn devices(&self, facts: &Facts) -> Vec<Device> {
        let device = |(name, index): (&&'static str, &u32)| {
            let (vxlan, block) = (*name == names::VXLAN, *name == names::BLOCK);
            Device {
                name: (*name).to_owned(),
                index: *index,
                is_pods: false,
                up: !block && *name != names::BLOCK_PEER,
                mtu: Some(if vxlan { devices::VXLAN_MTU } else { devices::PAIR_MTU }),
                joins: block,
                port: vxlan.then_some(facts.tunnel_port),
                no_link_local: true,
            }
        };
        self.indexes.iter().map(device).collect()
    }
}

impl Reconciler {
    /// Compares, makes right what differs, counts and tells it. Rows that are dirty must have been written before.
    pub(super) fn verify(&mut self) -> Verified {
        self.verified = Instant::now();
        let mut verified = Verified::default();
        match self.desired.delta.verify(&mut self.datapath.clone()) {
            Ok(drifted) => {
                let failures = self.desired.delta.flush(&mut self.datapath.clone());
                let failed = failures.into_values().next().unwrap_or_default();
                verified.items.extend(drifted.iter().map(|d| Item { failed: failed.clone(), ..entry(d) }));
            }
            Err(e) => verified.unread.push(format!("the maps: {e}")),
        }
        let policies = self.lock_policies().verify(&mut self.datapath.clone());
        match policies {
            Ok((drifted, failed)) => {
                verified.items.extend(drifted.iter().map(|d| Item { failed: failed.clone(), ..entry(d) }));
            }
            Err(e) => verified.unread.push(format!("the maps of policy: {e}")),
        }
        match self.lasting() {
            Ok((found, wanted)) => {
                let mended = !found.is_empty();
                verified.items.extend(self.mend(found, &wanted));
                if mended {
                    self.mend_what_cures_took();
                }
            }
            Err(e) => verified.unread.push(e),
        }
        self.note(&verified);
        // All that the maps hold was read.
        memory::give_back();
        verified
    }

    /// Differences that outlive what may be going on.
    fn lasting(&mut self) -> Result<(Vec<Difference>, Wanted), String> {
        let (first, wanted) = self.differences()?;
        if first.is_empty() {
            return Ok((first, wanted));
        }
        let network = |c: &Contents| (c.node_addresses.clone(), c.devices.clone(), c.nodes.clone());
        let before = network(&self.tables.read());
        let moved = self.tables.wait_for(SETTLED_WITHIN, |c| (network(c) != before).then_some(())).is_some();
        let pending = self.tables.unsettled().into_iter().any(|(row, how)| {
            how == RowStatus::Pending && matches!(row, Row::Node(_) | Row::NodeAddresses | Row::Devices)
        });
        let (mut second, wanted) = self.differences()?;
        second.retain(|d| {
            // What the next pass brings about by itself.
            let explained = (moved || pending) && matches!(d.item.kind, Kind::Route | Kind::Hook);
            !explained && first.iter().any(|f| f.item == d.item)
        });
        Ok((second, wanted))
    }

    fn differences(&mut self) -> Result<(Vec<Difference>, Wanted), String> {
        let wanted = self.wanted();
        let pin_dir = self.hooks.pins().0.to_owned();
        let seen = kernel::look(&wanted, self.hooks.socket(), &pin_dir, self.desired.facts.weft_host)?;
        let found = compare(&wanted, &seen);
        Ok((found, wanted))
    }

    fn wanted(&self) -> Wanted {
        let (contents, facts) = (self.tables.read(), &self.desired.facts);
        let mut devices = self.fixed.devices(facts);
        let (device_mtu, route_mtu) = (endpoint::mtu::device_mtu(&contents, facts), facts.route_mtu(&contents));
        devices.extend(contents.endpoints.values().map(|e| Device {
            name: e.device.clone(),
            index: e.ifindex,
            is_pods: true,
            up: true,
            // One whose row tells another MTU is about to be changed.
            mtu: device_mtu.filter(|_| route_mtu == Some(e.mtu)),
            joins: true,
            port: None,
            no_link_local: false,
        }));
        let mut hooks = self.hooks.places();
        hooks.retain(|h| h.program != object::FROM_NETDEV || contents.devices.contains_key(&h.index));
        hooks.iter_mut().for_each(|h| h.id = self.datapath.program_id(h.program));
        let cluster = compile::cluster_routes(&contents, facts);
        let own_tables = contents.endpoints.values().filter(|e| e.terms.own_table);
        Wanted {
            devices,
            neighbours: [names::GATEWAY4.into(), names::GATEWAY6.into()].map(|a| (facts.weft_host, a)).into(),
            hooks,
            // One that the kernel did not take is told of by its row.
            routes: cluster.intersection(self.routes.believed()).cloned().collect(),
            routes_are_all: self.pruned() && route_mtu.is_some(),
            rules: own_tables
                .flat_map(|e| e.ips().map(|from| (e.netns.clone(), Rule { from, table: e.ifindex })))
                .collect(),
            table: self.stack.believed().filter(|rules| !rules.is_empty()).map(Table::of),
        }
    }

    /// With a device's last IPv4 address, which had no business there, the kernel takes its routes and neighbours.
    fn mend_what_cures_took(&mut self) {
        match self.differences() {
            Ok((found, wanted)) => {
                let failed = self.mend(found, &wanted).into_iter().filter(|item| !item.failed.is_empty());
                failed
                    .for_each(|item| debug!(name = item.name, error = item.failed, "the next comparison tries again"));
            }
            Err(error) => debug!(error, "cannot look once more"),
        }
    }

    fn mend(&mut self, found: Vec<Difference>, wanted: &Wanted) -> Vec<Item> {
        let (pin_dir, tcx) = self.hooks.pins();
        let pin_dir = pin_dir.to_owned();
        let datapath = self.datapath.clone();
        let hands = Hands { datapath: &datapath, pin_dir: &pin_dir, tcx, devices: &wanted.devices };
        let mut items = Vec::new();
        let mut routes = None;
        for Difference { mut item, cure } in found {
            let cured = match cure {
                Cure::Routes => routes.get_or_insert_with(|| self.mend_routes()).clone(),
                Cure::Table => self.stack.mend(&mut stack::Kernel),
                Cure::Attach(hook) => {
                    kernel::put(&hook, self.hooks.socket(), &hands).map(|how| self.attached(&hook, how))
                }
                other => kernel::cure(&other, self.hooks.socket(), &hands),
            };
            item.failed = cured.err().unwrap_or_default();
            items.push(item);
        }
        items
    }

    /// Notes how a program came back: others' filters may have come since, behind which it has to stand.
    fn attached(&mut self, hook: &Hook, how: Option<How>) {
        if let Some(how) = how {
            self.hooks.note(hook.index, how);
        }
    }

    fn mend_routes(&mut self) -> Result<(), String> {
        let (contents, facts) = (self.tables.read(), &self.desired.facts);
        let routes = compile::cluster_routes(&contents, facts);
        let pruned = self.pruned() && facts.route_mtu(&contents).is_some();
        drop(contents);
        let looked = self.routes.look(self.hooks.socket());
        looked.and_then(|()| self.routes.apply(self.hooks.socket(), routes, pruned)).map_err(|e| e.to_string())
    }

    /// What nobody asks for has gone, and would go again.
    fn pruned(&self) -> bool {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).pruned
    }

    fn note(&self, verified: &Verified) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        for Item { kind, name, was, should, failed } in &verified.items {
            *report.drift.entry(*kind).or_default() += 1;
            if failed.is_empty() {
                warn!(%kind, name, was, should, "somebody has changed it; it is as it should be again");
            } else {
                warn!(%kind, name, was, should, error = failed, "somebody has changed it, and it cannot be made right");
            }
        }
        for what in &verified.unread {
            warn!(what, "cannot compare with the kernel");
        }
        if *verified == Verified::default() {
            debug!("the kernel holds what it should");
        }
    }
}

fn entry(d: &Drifted) -> Item {
    let spec = d.key.map();
    let text = |v: &Option<Vec<u8>>| match v {
        Some(bytes) => render::value(spec, bytes).to_string(),
        None => "nothing".to_owned(),
    };
    let key = match render::key(spec, &d.key.key) {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    Item::new(Kind::Map, format!("{} {key}", spec.name), text(&d.was), text(&d.should))
}
