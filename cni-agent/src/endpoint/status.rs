//! CNI STATUS, and what the node lacks to take pods.
use std::time::Instant;

use cni_plugin::{
    protocol::Request,
    spec::{CniError, ErrorCode, NetConf},
};
use ipnet::IpNet;

use super::manager::EndpointManager;
use crate::{
    compile::Facts,
    datapath::object,
    error_chain,
    ipam::{Family, IpamError, Usage},
    netlink::{
        Socket, link, names,
        tc::{self, Place},
    },
    tables::{Contents, Row, RowStatus, Tables},
};

impl EndpointManager {
    /// CNI STATUS: whether ADD would be served now. Nothing is waited for.
    pub(super) fn can_serve(&self, request: &Request) -> Result<(), CniError> {
        let conf = NetConf::from_json(&request.config)?;
        let gone = self.lacks_programs()?;
        if !gone.is_empty() {
            let text = format!("what carries the pods' packets on this node is gone: {}", gone.join(", "));
            return Err(CniError::new(ErrorCode::LIMITED_CONNECTIVITY, text)
                .with_details("restart weft-agent, which makes it anew, and look who removed it (`weft doctor`)"));
        }
        let unavailable = |why: String| Err(CniError::new(ErrorCode::NOT_AVAILABLE, why));
        if let Some(why) = not_ready(&self.tables, &self.facts) {
            return unavailable(format!("node {} cannot take pods: {why}", self.facts.node))
                .map_err(|e| e.with_details("`weft status` shows what the agent waits for"));
        }
        // Another plugin's addresses are another plugin's STATUS.
        match used_up(&self.ipam_usage()).filter(|_| conf.ipam_type().is_none()) {
            Some(e) => unavailable(e.to_string())
                .map_err(|e| e.with_details("`weft status` shows the ranges and how far they are used")),
            None => Ok(()),
        }
    }

    /// Devices and programs of ours that are not there.
    fn lacks_programs(&self) -> Result<Vec<String>, CniError> {
        let look = || {
            let mut socket = Socket::open()?;
            Ok((link::list(&mut socket)?, tc::filters(&mut socket, Place::Block(names::BLOCK_INDEX))?))
        };
        let (links, filters) = look().map_err(|e: crate::netlink::NetlinkError| {
            CniError::new(ErrorCode::IO_FAILURE, error_chain(&e)).with_details("the agent cannot ask the kernel")
        })?;
        let ours = [names::HOST, names::NET, names::VXLAN, names::BLOCK];
        let absent = ours.into_iter().filter(|name| !links.iter().any(|l| l.name == *name));
        let mut gone: Vec<String> = absent.map(|name| format!("device {name}")).collect();
        let program = self.datapath.program_id(object::FROM_POD);
        if !filters.iter().any(|f| f.is_ours() && f.program_id == program) {
            gone.push(format!("program {} of the pods' tc block", object::FROM_POD));
        }
        Ok(gone)
    }
}

/// The first family of which every address is out; a family without ranges is not the node's.
fn used_up(usage: &[Usage]) -> Option<IpamError> {
    [Family::V4, Family::V6].into_iter().find_map(|family| {
        let all = || usage.iter().filter(|u| !u.draining && Family::of(u.cidr.addr()) == family);
        let sum = |count: fn(&Usage) -> u32| all().map(count).fold(0, u32::saturating_add);
        let (size, used, quarantined) = (sum(|u| u.size), sum(|u| u.used), sum(|u| u.quarantined));
        let cidrs: Vec<IpNet> = all().map(|u| u.cidr).collect();
        (!cidrs.is_empty() && used.saturating_add(quarantined) >= size).then_some(IpamError::Exhausted {
            family,
            cidrs,
            used,
            quarantined,
            size,
        })
    })
}

/// Why the node cannot take pods now: what it lacks, or what the kernel does not hold yet.
pub fn not_ready(tables: &Tables, facts: &Facts) -> Option<String> {
    if let Some(why) = missing(&tables.read(), facts) {
        return Some(why);
    }
    [Row::Devices, Row::Node(facts.node.clone())].into_iter().find_map(|row| match tables.status(&row) {
        Some(RowStatus::Applied) => None,
        Some(RowStatus::Failed { error, .. }) => Some(format!("{row}: {error}")),
        Some(RowStatus::Pending) | None => Some(format!("{row} is being applied")),
    })
}

/// Waits until the node can take pods, and says what it lacks if it cannot. What is not there by `deadline` is not on its way: who
/// asks later is told at once.
pub(super) fn await_ready(tables: &Tables, facts: &Facts, deadline: Instant) -> Result<(), CniError> {
    let ready = |c: &Contents| missing(c, facts).is_none().then_some(());
    if tables.wait_for(deadline.saturating_duration_since(Instant::now()), ready).is_some() {
        return Ok(());
    }
    let why = missing(&tables.read(), facts).unwrap_or_default();
    Err(CniError::new(ErrorCode::TRY_AGAIN_LATER, format!("node {} cannot take pods yet: {why}", facts.node))
        .with_details("`weft status` shows what the agent waits for"))
}

/// What the node lacks to take pods.
pub fn missing(c: &Contents, facts: &Facts) -> Option<String> {
    let Some(node) = c.nodes.get(&facts.node) else {
        return Some(format!("no Node object of the name {} (--node-name) has been seen", facts.node));
    };
    if node.pod_cidrs.is_empty() {
        return Some(format!("the Node object {} has no spec.podCIDRs", facts.node));
    }
    if facts.tunnel_address(c).is_none() {
        return Some(format!("the Node object {} has no InternalIP of the family of --underlay", facts.node));
    }
    if c.devices.is_empty() {
        return Some(format!(
            "no device has an InternalIP of the Node object {} ({:?}); name the device by --device",
            facts.node, node.internal_ips
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::compile::fixtures::facts;

    #[test]
    fn a_node_that_is_not_ready_is_waited_for_until_one_deadline_only() {
        let (facts, tables, deadline) = (facts(), Tables::default(), Instant::now() + Duration::from_millis(200));
        for _ in 0..50 {
            let e = await_ready(&tables, &facts, deadline).expect_err("there is no node");
            assert_eq!(e.code, ErrorCode::TRY_AGAIN_LATER);
            assert!(e.msg.contains("no Node object"), "{e}");
            assert!(Instant::now() >= deadline, "it was not waited for");
        }
        // Each for itself would wait ten seconds in all.
        assert!(deadline.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_family_is_used_up_when_all_its_ranges_are_and_the_numbers_are_told() {
        let range = |cidr: &str, used, quarantined, draining| Usage {
            cidr: cidr.parse().expect("a CIDR"),
            size: 6,
            used,
            quarantined,
            draining,
        };
        let free =
            [range("10.0.1.0/29", 6, 0, false), range("10.0.2.0/29", 5, 0, false), range("fd00::/125", 0, 0, false)];
        assert_eq!(used_up(&free), None);
        assert_eq!(used_up(&[]), None, "a node without ranges lacks something else");
        let full =
            [range("10.0.1.0/29", 6, 0, false), range("10.0.2.0/29", 4, 2, false), range("10.0.3.0/29", 0, 0, true)];
        let text = used_up(&full).expect("nothing is free").to_string();
        for part in ["12 IPv4 addresses", "10.0.1.0/29, 10.0.2.0/29", "10 in use, 2 waiting"] {
            assert!(text.contains(part), "{text}");
        }
        let six = used_up(&[range("10.0.1.0/29", 0, 0, false), range("fd00::/125", 6, 0, false)]);
        assert!(matches!(six, Some(IpamError::Exhausted { family: Family::V6, .. })), "{six:?}");
    }
}
