//! Why one flow may pass or not: what the look-up finds in the maps, what each rule says of the flow, and what would have to be allowed.
//!
//! | file | what changes it |
//! |---|---|
//! | `mod` | what is looked at, and what an answer holds |
//! | `missing` | what is said of a flow that is denied |
//! | `text` | the words |
//!
//! Nothing is judged here: the verdict is the look-up's, in the maps of a scenario ([`Image`](super::Image)) or of the kernel.
mod missing;
mod text;

use std::{
    fmt::{self, Display, Formatter},
    net::IpAddr,
};

use cni_common::{drop::DropReason, net::Be16, policy::IDENTITY_OTHER};
use cni_ebpf::{
    family::{V4, V6},
    policy::{Flow, Identities, Rules, Ruling, Why, egress, identify, ingress},
};
use serde::{Deserialize, Serialize};

pub use self::{missing::Missing, text::text};
use super::{
    Engine,
    classes::{Class, Owner},
    flatten::{Asked, View, ask},
    mentions::OTHER_VALUE,
    objects::{Action, Direction, Kind, Mode},
    sets::Set,
};
use crate::{compile::SET_ISOLATED, tables::PodKey};

/// The policy maps of a node, of both families.
pub trait Maps: Rules + Identities<V4> + Identities<V6> {}
impl<M: Rules + Identities<V4> + Identities<V6>> Maps for M {}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A pod's address.
    Pod {
        /// The pod.
        key: PodKey,
        /// The node that it runs on.
        node: String,
        /// The address.
        ip: IpAddr,
    },
    /// A node's address.
    Node {
        /// The node.
        name: String,
        /// The address.
        ip: IpAddr,
    },
    /// Any other address.
    Outside(IpAddr),
}
impl End {
    /// The address.
    pub fn ip(&self) -> IpAddr {
        match self {
            Self::Pod { ip, .. } | Self::Node { ip, .. } | Self::Outside(ip) => *ip,
        }
    }
    /// Pod and node, when it is a pod.
    pub fn pod(&self) -> Option<(&PodKey, &str)> {
        match self {
            Self::Pod { key, node, .. } => Some((key, node)),
            Self::Node { .. } | Self::Outside(_) => None,
        }
    }
    /// Whether what it sends comes out of the stack of this node.
    pub fn is_stack_of(&self, node: &str) -> bool {
        matches!(self, Self::Node { name, .. } if name == node)
    }
    /// What it is called where its address is written so.
    pub fn called(&self, ip: &impl Display) -> String {
        match self {
            Self::Pod { key, .. } => format!("pod:{key}@{ip}"),
            Self::Node { name, .. } => format!("node:{name}@{ip}"),
            Self::Outside(_) => format!("ext:{ip}"),
        }
    }
}
impl Display for End {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.called(&self.ip()))
    }
}

/// IP protocol and destination port; port 0 for protocols without ports.
pub type What = (u8, u16);

/// What the maps say of a flow at one of its ends, whose policy set this is; `from_stack` if this node's own stack sends it. `None` if the two
/// families differ: there is no such flow.
pub fn ruling(
    maps: &impl Maps,
    (direction, set): (Direction, u32),
    from_stack: bool,
    (src, dst): (IpAddr, IpAddr),
    (proto, port): What,
) -> Option<Ruling> {
    let (proto, port) = (u32::from(proto), Be16::from_host(port));
    Some(match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let flow = Flow::<V4> { src: src.into(), dst: dst.into(), proto, port };
            match direction {
                Direction::Egress => egress(maps, set, &flow),
                Direction::Ingress => ingress(maps, set, from_stack, &flow),
            }
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let flow = Flow::<V6> { src: src.into(), dst: dst.into(), proto, port };
            match direction {
                Direction::Egress => egress(maps, set, &flow),
                Direction::Ingress => ingress(maps, set, from_stack, &flow),
            }
        }
        _ => return None,
    })
}

/// What one end of a flow says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// `egress` or `ingress`.
    pub direction: String,
    /// The end: a pod by its name, others as `node:NAME@IP` or `ext:IP`.
    pub end: String,
    /// Whether it lets the flow pass; `None` if nobody is asked at this end, here or at all.
    pub allowed: Option<bool>,
    /// It only does because policies are in audit mode.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub audited: bool,
    /// Why.
    pub why: String,
    /// As what its packets are dropped, as `weft observe` and `weft drops` name it, or would be if no policy were in audit mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The node that judges this end, when it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<String>,
    /// The policies that were asked, when there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Policies>,
    /// What would have to be allowed, when it is denied, or would be if no policy were in audit mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<Missing>,
}

/// The policies that hold for an end, and what they say of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policies {
    /// The policy set.
    pub set: u32,
    /// Who the peer is to policies: a number of this node.
    pub identity: u32,
    /// Whom that stands for.
    pub peer: String,
    /// Their rules, in the order in which they are asked.
    pub rules: Vec<RuleSays>,
    /// The NetworkPolicies that isolate the pod in this direction.
    pub isolated_by: Vec<String>,
    /// Those in audit mode that would.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub would_isolate: Vec<String>,
}

/// What a rule says of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleSays {
    /// `Admin tier`, `NetworkPolicy` or `Baseline tier`.
    pub tier: String,
    /// Its policy, direction and number, from 0.
    pub rule: String,
    /// `Accept`, `Deny` or `Pass`.
    pub action: String,
    /// It is about the peer.
    pub peer: bool,
    /// It is about the protocol and port.
    pub port: bool,
    /// It is the one that the maps name.
    pub decides: bool,
    /// Its policy is in audit mode.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub audit: bool,
}

/// A pod's policies of one direction.
#[derive(Clone, Copy, Debug)]
pub struct Judge<'a> {
    /// What compiled them.
    pub engine: &'a Engine,
    /// The pod.
    pub pod: &'a PodKey,
    /// The direction.
    pub direction: Direction,
    /// The policy set that its endpoint has.
    pub set: u32,
}
impl Judge<'_> {
    /// What a ruling about this peer rests on.
    pub fn side(&self, maps: &impl Maps, peer: &End, what: What, ruling: Ruling) -> Side {
        let identity = match peer.ip() {
            IpAddr::V4(a) => identify::<V4, _>(maps, &a.into()),
            IpAddr::V6(a) => identify::<V6, _>(maps, &a.into()),
        };
        let identity = identity.unwrap_or(IDENTITY_OTHER);
        Side {
            direction: self.direction.name().to_owned(),
            end: self.pod.to_string(),
            allowed: Some(ruling.is_allowed()),
            audited: ruling.is_audited(),
            why: if ruling.is_audited() { self.would_be(ruling) } else { self.why(ruling) },
            reason: self.reason(ruling).map(|reason| reason.name().to_owned()),
            ask: None,
            asked: self.engine.set(self.set).map(|set| self.policies(set, identity, what, ruling)),
            missing: self.missing(peer, what, ruling),
        }
    }

    fn why(&self, ruling: Ruling) -> String {
        match ruling.why() {
            Why::NotIsolated => "no policy selects the pod".to_owned(),
            Why::Itself => "a pod always reaches itself".to_owned(),
            Why::OwnNode => "the pod's own node always gets in".to_owned(),
            Why::Service => {
                "the address is a Service's: asked again, of the address that the node's stack makes of it".to_owned()
            }
            Why::Whole if ruling.is_allowed() => "all that goes between these two is allowed".to_owned(),
            Why::Whole | Why::NoEntry => "policies isolate the pod, and none of their rules allows it".to_owned(),
            Why::Entry => self.rule(ruling.cookie()).map_or_else(
                // A deny without a name is what is left where nothing is allowed.
                || if ruling.is_allowed() { "no rule says otherwise" } else { "no rule allows it" }.to_owned(),
                |rule| format!("{rule} decides"),
            ),
            Why::UnknownPeer => "the peer must be a pod, and no pod is known to have its address".to_owned(),
            Why::NoSet if self.set == SET_ISOLATED => {
                "it is not known yet which policies hold for the pod, which is isolated until then".to_owned()
            }
            Why::NoSet => "the maps do not hold the pod's policies".to_owned(),
        }
    }
    /// What would be said if no policy were in audit mode.
    fn would_be(&self, ruling: Ruling) -> String {
        let words = match self.rule(ruling.cookie()) {
            Some(rule) => return format!("{rule} would deny it, and its policy is in audit mode"),
            None if ruling.why() == Why::Entry => "no rule allows it".to_owned(),
            None => self.why(ruling),
        };
        format!("{words}, and what would isolate the pod is in audit mode")
    }
    /// As what a packet is dropped, or would be.
    fn reason(&self, ruling: Ruling) -> Option<DropReason> {
        if ruling.is_allowed() && !ruling.is_audited() {
            return None;
        }
        Some(match self.direction {
            _ if ruling.is_unknown() => DropReason::PolicyUnknown,
            Direction::Egress => DropReason::PolicyEgress,
            Direction::Ingress => DropReason::PolicyIngress,
        })
    }
    fn rule(&self, cookie: u32) -> Option<String> {
        let (revision, direction, n) = self.engine.rule_of(cookie)?;
        Some(format!("{}, {} rule {n}", revision.policy.name, direction.name()))
    }

    /// Each tier's rules, in the order in which they are asked.
    fn policies(&self, set: &Set, identity: u32, (proto, port): What, ruling: Ruling) -> Policies {
        let (met, ports) = self.engine.view(set, identity);
        let ports = if set.key.direction == Direction::Ingress { &set.key.ports } else { &ports };
        let view = View { meets: &|c| met.get(c).copied().unwrap_or_default(), ports };
        let tiers = ["Admin tier", NETWORK, "Baseline tier"].into_iter().zip(ask(&set.program, &view, proto, port));
        let says = |tier: &str, Asked { clause, peer, port }: Asked<'_>| RuleSays {
            tier: tier.to_owned(),
            rule: self.rule(clause.cookie).unwrap_or_default(),
            action: match clause.action {
                Action::Accept => "Accept",
                Action::Deny => "Deny",
                Action::Pass => "Pass",
            }
            .to_owned(),
            peer,
            port,
            decides: ruling.why() == Why::Entry && ruling.cookie() == clause.cookie,
            audit: clause.audited,
        };
        let isolating = |mode: Mode| {
            let policies = set.policies.iter().map(|r| &r.policy).filter(|p| p.kind == Kind::Network && p.mode == mode);
            policies.map(|p| p.name.to_string()).collect()
        };
        Policies {
            set: self.set,
            identity,
            peer: self.engine.class(identity).map_or_else(|| "another address".to_owned(), |c| about(c)),
            rules: tiers.flat_map(|(tier, asked)| asked.into_iter().map(move |a| says(tier, a))).collect(),
            isolated_by: isolating(Mode::Enforce),
            would_isolate: isolating(Mode::Audit),
        }
    }
}

/// The tier of NetworkPolicies.
const NETWORK: &str = "NetworkPolicy";

/// An end at which no policy is asked.
pub fn no_pod(direction: Direction, end: String) -> Side {
    let why = "is no pod, nothing to say".to_owned();
    Side { direction: direction.name().to_owned(), end, why, ..Side::default() }
}

/// Whether it passes, as far as this node judges it, only because policies are in audit mode.
pub fn is_audited(sides: &[Side]) -> bool {
    sides.iter().all(|s| s.allowed != Some(false)) && sides.iter().any(|s| s.audited)
}

/// What all ends say together: `None` if those that are asked allow it, and others are asked elsewhere.
pub fn together(sides: &[Side]) -> Option<bool> {
    if sides.iter().any(|s| s.allowed == Some(false)) {
        return Some(false);
    }
    sides.iter().all(|s| s.ask.is_none()).then_some(true)
}

fn about(class: &Class) -> String {
    let mut words = match &class.owner {
        Owner::Nobody => String::new(),
        Owner::Node(_) => "a node".to_owned(),
        Owner::Pod { part, .. } => {
            let labels: Vec<String> = part
                .seen
                .labels
                .iter()
                .map(|(k, v)| if &**v == OTHER_VALUE { format!("{k}=(other)") } else { format!("{k}={v}") })
                .collect();
            let ports: Vec<String> = part.seen.ports.iter().map(|p| format!("{}={}", p.name, p.port)).collect();
            format!("a pod of {} [{}] [{}]", part.seen.namespace, labels.join(","), ports.join(","))
        }
    };
    if let Some(block) = class.block {
        words += &format!(" in {block}");
    }
    for domain in &class.domains {
        words += &format!(" named {domain}");
    }
    words.trim_start().to_owned()
}
