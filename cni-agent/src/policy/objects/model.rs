//! What a policy says, whichever kind of object said it.
use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::Serialize;

use super::Flaw;
use crate::{policy::labels::LabelSelector, tables::Protocol};

/// Which way a flow is opened, seen from the pod that a policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// By the pod.
    Egress,
}
impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// As the API writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// What names a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    /// A NetworkPolicy.
    Network {
        /// `metadata.namespace`.
        namespace: String,
        /// `metadata.name`.
        name: String,
    },
    /// A ClusterNetworkPolicy.
    Cluster {
        /// `metadata.name`.
        name: String,
    },
}
impl Display for PolicyName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network { namespace, name } => write!(f, "NetworkPolicy {namespace}/{name}"),
            Self::Cluster { name } => write!(f, "ClusterNetworkPolicy {name}"),
        }
    }
}

/// A tier that ClusterNetworkPolicies are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Before NetworkPolicies.
    Admin,
    /// After them, for what they do not isolate.
    Baseline,
}

/// The kind of a policy, and its place among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A NetworkPolicy: isolates what it selects, and allows.
    Network,
    /// A ClusterNetworkPolicy.
    Cluster {
        /// Its tier.
        tier: Tier,
        /// 0 to 1000, the smallest first.
        priority: u16,
    },
}

/// Whether a policy is obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// It is.
    Enforce,
    /// What it would deny passes, and is reported.
    Audit,
}
impl Mode {
    /// The annotation that says which.
    pub const ANNOTATION: &str = "weft.dev/mode";

    /// As the annotation writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
        }
    }
    /// From an object's annotations. A policy whose annotation is neither is obeyed.
    ///
    /// # Errors
    /// What is wrong with the annotation.
    pub fn read(annotations: Option<&BTreeMap<String, String>>) -> Result<Self, Flaw> {
        match annotations.and_then(|all| all.get(Self::ANNOTATION)).map(String::as_str) {
            None | Some("enforce") => Ok(Self::Enforce),
            Some("audit") => Ok(Self::Audit),
            Some(other) => {
                let cause = format!("it is `{other}`, neither audit nor enforce");
                let flaw = Flaw::new(format!("metadata.annotations[{}]", Self::ANNOTATION), cause);
                Err(Flaw { effect: "the policy is enforced", ..flaw })
            }
        }
    }
}

/// Namespaces, as a peer or a subject names them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// This one.
    Named(String),
    /// Those with such labels.
    Selected(LabelSelector),
}
impl Namespaces {
    /// Whether the namespace is one of them; `label` gives its labels but for the one that every namespace has.
    pub fn contain<'a>(&self, namespace: &'a str, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::Named(name) => name == namespace,
            Self::Selected(selector) => {
                selector.selects(|key| if key == NAME_LABEL { Some(namespace) } else { label(key) })
            }
        }
    }
}

/// The label that every namespace carries, whatever its object shows.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Pods by namespace and labels: what a policy holds for, or a peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// In these namespaces.
    pub namespaces: Namespaces,
    /// Those with such labels.
    pub pods: LabelSelector,
}

/// A DNS name, or all names below one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain {
    /// Lower case, without a dot at the end.
    name: String,
    /// Names with one label or more before `name`, and not `name` itself.
    below: bool,
}
impl Domain {
    /// Reads `example.com` or `*.example.com`; `None` when it is neither.
    pub fn read(text: &str) -> Option<Self> {
        let name = normal(text);
        let (name, below) = match name.strip_prefix("*.") {
            Some(rest) => (rest.to_owned(), true),
            None => (name, false),
        };
        let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        name.split('.').all(label).then_some(Self { name, below })
    }
    /// Whether a name that DNS has answered for is meant. `name` is [`normal`].
    pub fn covers(&self, name: &str) -> bool {
        if self.below {
            name.strip_suffix(self.name.as_str()).and_then(|n| n.strip_suffix('.')).is_some_and(|n| !n.is_empty())
        } else {
            name == self.name
        }
    }
}
impl Display for Domain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name)
    }
}

/// A DNS name in its one form: lower case, no dot at the end.
pub fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods, never the node's network.
    Pods(Subject),
    /// Whoever has an address in the block.
    Block {
        /// The block, host bits cleared.
        cidr: IpNet,
        /// What is not in it, host bits cleared.
        except: Vec<IpNet>,
    },
    /// The addresses of nodes with such labels.
    Nodes(LabelSelector),
    /// Addresses that DNS has answered with.
    Domain(Domain),
}
impl Peer {
    /// The prefixes that tell its addresses from others.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        let (cidr, except) = match self {
            Self::Block { cidr, except } => (Some(*cidr), except.as_slice()),
            _ => (None, &[][..]),
        };
        cidr.into_iter().chain(except.iter().copied())
    }
    /// Whether a block holds all of `inner`, which is one of the prefixes that policies name.
    pub fn block_holds(&self, inner: IpNet) -> bool {
        match self {
            Self::Block { cidr, except } => cidr.contains(&inner) && !except.iter().any(|e| e.contains(&inner)),
            _ => false,
        }
    }
}

/// The peers of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// Everyone, of both families.
    Any,
    /// Any of these; of none, nobody.
    Of(Vec<Peer>),
}

/// What a rule looks at in a flow besides its peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// A range of ports of a protocol, both ends included.
    Range {
        /// The protocol.
        protocol: Protocol,
        /// The first port.
        first: u16,
        /// The last port, not below the first.
        last: u16,
    },
    /// What the receiving pod has declared under this name.
    Named {
        /// The protocol that the pod must have declared; any when `None`.
        protocol: Option<Protocol>,
        /// The name.
        name: String,
    },
}

/// The ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// All ports of all protocols, and protocols without ports.
    All,
    /// Any of these; of none, nothing.
    Of(Vec<PortMatch>),
}
impl Ports {
    /// The names that it asks the receiving pod for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let list = match self {
            Self::All => &[][..],
            Self::Of(list) => list,
        };
        list.iter().filter_map(|p| match p {
            PortMatch::Named { name, .. } => Some(name.as_str()),
            PortMatch::Range { .. } => None,
        })
    }
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The flow may pass, as far as this direction goes.
    Accept,
    /// It may not.
    Deny,
    /// The rest of the tier is skipped.
    Pass,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// With whom.
    pub peers: Peers,
    /// On which ports.
    pub ports: Ports,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What names it.
    pub name: PolicyName,
    /// What it is.
    pub kind: Kind,
    /// Whether it is obeyed.
    pub mode: Mode,
    /// The pods that it holds for.
    pub subject: Subject,
    /// Its rules for flows to them, in the object's order; `None` when it does not hold for this direction.
    pub ingress: Option<Vec<Rule>>,
    /// Its rules for flows by them; `None` when it does not hold for this direction.
    pub egress: Option<Vec<Rule>>,
}
impl Policy {
    /// Its rules of a direction; `None` when it does not hold for it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// Reads a network in CIDR notation and clears its host bits. An IPv4 network in IPv6 form is none: no packet carries such an address.
pub fn cidr(text: &str) -> Result<IpNet, &'static str> {
    let net: IpNet = text.parse().map_err(|_| "not a network in CIDR notation such as 10.1.0.0/16 or fd00:1::/64")?;
    match net.network() {
        IpAddr::V6(a) if net.prefix_len() >= 96 && a.to_ipv4_mapped().is_some() => {
            Err("an IPv4 network in IPv6 form; write it as IPv4")
        }
        _ => Ok(net.trunc()),
    }
}
