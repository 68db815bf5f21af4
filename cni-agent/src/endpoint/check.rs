//! CNI CHECK: is everything that makes up a pod's connection as ADD made it? All differences are told at once.
use std::{
    fmt::Display,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
};

use cni_common::net::Mac;
use cni_plugin::{
    protocol::Request,
    spec::{AddResult, CniError, ErrorCode, NetConf},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{answer::answer, manager::EndpointManager};
use crate::{
    compile::{self, InForce, NodeNumbers},
    datapath::object,
    error_chain,
    netlink::{
        NetlinkError, Socket, addr, link, names, neigh, netns, route,
        rule::{self, Rule},
        tc,
    },
    tables::{Endpoint, Row},
};

/// Compares an attachment with what ADD made.
pub(super) fn run(manager: &EndpointManager, request: &Request) -> Result<(), CniError> {
    let Some(endpoint) = manager.find(&request.container_id, &request.ifname) else {
        return Err(differs(&["the agent has not connected this interface of the container".to_owned()]));
    };
    let previous = NetConf::from_json(&request.config)?.previous()?;
    let mut found = Differences::default();
    found.answers(&endpoint, &request.netns, previous.as_ref());
    let kernel = found.node(manager, &endpoint).and_then(|()| found.pod(manager, &endpoint, previous.as_ref()));
    kernel.map_err(|e| {
        CniError::new(ErrorCode::IO_FAILURE, format!("look at the container's connection: {}", error_chain(&e)))
            .with_details("the agent needs CAP_NET_ADMIN and CAP_SYS_ADMIN; the runtime may try again")
    })?;
    found.maps(manager, &endpoint);
    if found.0.is_empty() { Ok(()) } else { Err(differs(&found.0)) }
}

/// All addresses of the family.
fn any(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
    }
}

fn differs(differences: &[String]) -> CniError {
    CniError::new(ErrorCode::CHECK_FAILED, differences.join("; ")).with_details(
        "start the pod again: the runtime calls DEL and ADD; `weft status` and `weft doctor` look at the node",
    )
}

/// What is not as it should be, a sentence each.
#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn say(&mut self, sentence: String) {
        self.0.push(sentence);
    }

    /// Adds a sentence when two values differ.
    fn equal<T: PartialEq + Display>(&mut self, what: &str, is: T, should: T) {
        if is != should {
            self.say(format!("{what} is {is}, not {should}"));
        }
    }

    /// What the runtime believes against what the agent knows.
    fn answers(&mut self, e: &Endpoint, netns: &str, previous: Option<&AddResult>) {
        self.equal("the network namespace", netns, &e.netns);
        let Some(previous) = previous else { return };
        let ours = answer(e);
        // Other plugins of the list may have added theirs.
        for ip in &ours.ips {
            if !previous.ips.iter().any(|p| p.address == ip.address) {
                self.say(format!("prevResult lacks the address {}", ip.address));
            }
        }
        for interface in &ours.interfaces {
            let same =
                previous.interfaces.iter().find(|i| (&i.name, &i.sandbox) == (&interface.name, &interface.sandbox));
            match same {
                None => self.say(format!("prevResult lacks the interface {}", interface.name)),
                Some(same) if !same.mac.is_empty() && !same.mac.eq_ignore_ascii_case(&interface.mac) => {
                    self.say(format!(
                        "prevResult names {} with the MAC address {}, not {}",
                        same.name, same.mac, interface.mac
                    ));
                }
                Some(_) => {}
            }
        }
    }

    /// The node's end of the pair, and the program behind it.
    fn node(&mut self, manager: &EndpointManager, e: &Endpoint) -> Result<(), NetlinkError> {
        let mut socket = Socket::open()?;
        match link::by_index(&mut socket, e.ifindex)? {
            None => self.say(format!("the node's device {} (index {}) is gone", e.device, e.ifindex)),
            Some(link) => {
                self.equal("the name of the node's device", &link.name, &e.device);
                self.device(&link, &e.device, Mac::WEFT, e.mtu);
                let joined = |q: &tc::Qdisc| q.index == e.ifindex && q.ingress_block == Some(names::BLOCK_INDEX);
                if !tc::qdiscs(&mut socket)?.iter().any(joined) {
                    self.say(format!(
                        "{} has not joined tc block {}: no program sees its packets",
                        e.device,
                        names::BLOCK_INDEX
                    ));
                }
            }
        }
        let filters = tc::filters(&mut socket, tc::Place::Block(names::BLOCK_INDEX))?;
        let runs = filters.iter().find(|f| f.is_ours()).and_then(|f| f.program_id);
        match (runs, manager.datapath.program_id(object::FROM_POD)) {
            (None, _) => self.say(format!("no program of Weft is on tc block {}", names::BLOCK_INDEX)),
            (Some(runs), Some(ours)) => self.equal("the id of the program on the pods' tc block", runs, ours),
            (Some(_), None) => {}
        }
        Ok(())
    }

    /// The pod's end: device, addresses, neighbours, routes.
    fn pod(
        &mut self,
        manager: &EndpointManager,
        e: &Endpoint,
        previous: Option<&AddResult>,
    ) -> Result<(), NetlinkError> {
        let Some(mut socket) = self.enter(e)? else { return Ok(()) };
        let Some(link) = link::by_index(&mut socket, e.ifindex)? else {
            self.say(format!("the pod's device {} (index {}) is gone", e.ifname, e.ifindex));
            return Ok(());
        };
        self.equal("the name of the pod's device", &link.name, &e.ifname);
        self.device(&link, &e.ifname, e.mac, e.mtu);
        let addresses = addr::list(&mut socket)?;
        for address in e.ips() {
            if !addresses.iter().any(|a| a.index == e.ifindex && a.net == address.into()) {
                self.say(format!("{} has lost its address {address}", e.ifname));
            }
            self.gateway(&mut socket, e, names::gateway_for(address))?;
        }
        // While the devices' MTU changes, the pod's routes may have the new one before the row tells it.
        let coming = manager.facts.route_mtu(&manager.tables.read());
        let mtu = |found: Option<u32>| found.filter(|mtu| Some(*mtu) != coming).unwrap_or(e.mtu);
        for (table, dst) in self.routes(&mut socket, e)? {
            // A plugin behind us may have taken a route away or replaced it (SPEC.md, section 2, CHECK); then the result lacks it.
            if previous.is_some_and(|p| !p.routes.iter().any(|r| r.dst.to_string() == dst.to_string())) {
                continue;
            }
            let gateway = Some(names::gateway_for(dst.addr()));
            let there = route::list_table(&mut socket, table)?;
            match there.iter().find(|r| r.index == e.ifindex && r.dst == dst && r.gateway == gateway) {
                None => self.say(format!("the route to {dst} through {} is gone", e.ifname)),
                Some(found) => {
                    self.equal(&format!("the MTU of the route to {dst}"), mtu(found.mtu.or(Some(link.mtu))), e.mtu)
                }
            }
        }
        Ok(())
    }

    /// The routes that ADD made, each with its table. Says which rules are gone.
    fn routes(&mut self, socket: &mut Socket, e: &Endpoint) -> Result<Vec<(u32, IpNet)>, NetlinkError> {
        let asked: Vec<IpNet> = if e.terms.routes.is_empty() {
            e.ips().map(any).collect()
        } else {
            e.terms.routes.iter().map(|r| r.dst).collect()
        };
        let mut wanted = Vec::new();
        if e.terms.own_table {
            // A default route of the main table is another interface's in at least one family.
            wanted.extend(asked.into_iter().filter(|dst| dst.prefix_len() > 0).map(|dst| (route::MAIN, dst)));
            wanted.extend(e.ips().map(|a| (e.ifindex, any(a))));
            let rules = rule::list(socket)?;
            for from in e.ips() {
                if !rules.contains(&Rule { from, table: e.ifindex }) {
                    self.say(format!("the rule from {from} to table {} is gone", e.ifindex));
                }
            }
        } else {
            wanted.extend(asked.into_iter().map(|dst| (route::MAIN, dst)));
        }
        Ok(wanted)
    }

    fn enter(&mut self, e: &Endpoint) -> Result<Option<Socket>, NetlinkError> {
        match netns::open(&e.netns) {
            Err(cause) => {
                self.say(format!("the network namespace {} cannot be opened: {cause}", e.netns));
                Ok(None)
            }
            Ok(target) => self.open_in(e, &target),
        }
    }

    fn open_in(&mut self, e: &Endpoint, target: &OwnedFd) -> Result<Option<Socket>, NetlinkError> {
        match Socket::open_in(target.as_fd()) {
            // A file is there, and what was mounted on it is not.
            Err(error) if error.errno() == Some(nix::errno::Errno::EINVAL) => {
                self.say(format!("{} is no network namespace any more", e.netns));
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    fn device(&mut self, link: &link::Link, name: &str, mac: Mac, route_mtu: u32) {
        if !link.up {
            self.say(format!("{name} is down"));
        }
        if link.mac != Some(mac) {
            let is = link.mac.map_or_else(|| "none".to_owned(), |m| m.to_string());
            self.equal(&format!("the MAC address of {name}"), is, mac.to_string());
        }
        if link.mtu < route_mtu {
            self.say(format!("the MTU of {name} is {}, less than the {route_mtu} of the pod's routes", link.mtu));
        }
    }

    fn gateway(&mut self, socket: &mut Socket, e: &Endpoint, gateway: IpAddr) -> Result<(), NetlinkError> {
        let what = format!("the neighbour entry of the gateway {gateway} on {}", e.ifname);
        match neigh::lookup(socket, e.ifindex, gateway)? {
            None => self.say(format!("{what} is gone")),
            Some(n) if n.state != neigh::State::Permanent => self.say(format!("{what} is not permanent")),
            Some(n) if n.mac != Some(Mac::WEFT) => {
                self.say(format!("{what} has another MAC address than {}", Mac::WEFT))
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// What the programs go by.
    fn maps(&mut self, manager: &EndpointManager, e: &Endpoint) {
        let wanted = {
            let contents = manager.tables.read();
            compile::row(
                &Row::Endpoint(e.id),
                &contents,
                &manager.facts,
                &InForce::default(),
                &mut NodeNumbers::default(),
            )
        };
        for (key, value) in wanted.unwrap_or_default() {
            let map = key.map();
            // Which policies hold for the pod is compared by `weft status --verify`, which knows it.
            let value = compile::without_policy(map, value);
            match manager.datapath.map(map).lookup(&key.key) {
                Ok(Some(there)) if compile::without_policy(map, there.clone()) == value => {}
                Ok(Some(_)) => self.say(format!("the entry of {} in map {} has been changed", e.device, map.name)),
                Ok(None) => self.say(format!("the entry of {} in map {} is gone", e.device, map.name)),
                Err(cause) => self.say(format!("map {} cannot be read: {cause}", map.name)),
            }
        }
    }
}
