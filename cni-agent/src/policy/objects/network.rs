//! NetworkPolicy (networking.k8s.io/v1).
//!
//! What the API server would have refused matches nothing, entry by entry; the rest of the policy holds.
use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    Action, Broken, Direction, Flaw, Kind, Mode, Namespaces, Peer, Peers, Policy, PolicyName, PortMatch, Ports, Read,
    Rule, Subject, model,
};
use crate::{policy::labels::LabelSelector, tables::Protocol};

/// Takes a NetworkPolicy over.
///
/// # Errors
/// When it has no name, or a subject that the API server would have refused: for whom it holds is not known.
pub fn read(object: &NetworkPolicy) -> Result<Read, Broken> {
    let namespace = object.metadata.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
    let broken = |name: &str, flaw| Broken { object: format!("NetworkPolicy {namespace}/{name}"), flaw };
    let Some(name) = object.metadata.name.as_deref().filter(|n| !n.is_empty()) else {
        return Err(broken("without a name", Flaw::new("metadata.name", "it is missing")));
    };
    let spec = object.spec.clone().unwrap_or_default();
    let selector = spec.pod_selector.unwrap_or_default();
    let pods = LabelSelector::read(&selector, "spec.podSelector").map_err(|flaw| broken(name, flaw))?;
    let mut flaws = Vec::new();
    let mode = Mode::read(object.metadata.annotations.as_ref()).unwrap_or_else(|flaw| {
        flaws.push(flaw);
        Mode::Enforce
    });
    let (ingress, egress) = (spec.ingress.unwrap_or_default(), spec.egress.unwrap_or_default());
    let types = spec.policy_types.unwrap_or_default();
    for (n, other) in types.iter().enumerate().filter(|(_, t)| !matches!(t.as_str(), "Ingress" | "Egress")) {
        flaws.push(Flaw::new(format!("spec.policyTypes[{n}]"), format!("it is `{other}`, not Ingress or Egress")));
    }
    let holds = |direction: Direction| match direction {
        _ if !types.is_empty() => types.iter().any(|t| t.to_lowercase() == direction.name()),
        Direction::Ingress => true,
        Direction::Egress => !egress.is_empty(),
    };
    let mut reader = Reader { namespace, flaws };
    let ingress_rules = holds(Direction::Ingress).then(|| {
        let rules = ingress.iter().enumerate();
        rules
            .map(|(n, r)| reader.rule(&format!("spec.ingress[{n}]"), "from", r.from.as_deref(), r.ports.as_deref()))
            .collect()
    });
    let egress_rules = holds(Direction::Egress).then(|| {
        let rules = egress.iter().enumerate();
        rules
            .map(|(n, r)| reader.rule(&format!("spec.egress[{n}]"), "to", r.to.as_deref(), r.ports.as_deref()))
            .collect()
    });
    let policy = Policy {
        name: PolicyName::Network { namespace: namespace.to_owned(), name: name.to_owned() },
        kind: Kind::Network,
        mode,
        subject: Subject { namespaces: Namespaces::Named(namespace.to_owned()), pods },
        ingress: ingress_rules,
        egress: egress_rules,
    };
    Ok(Read { policy, flaws: reader.flaws })
}

struct Reader<'a> {
    namespace: &'a str,
    flaws: Vec<Flaw>,
}
impl Reader<'_> {
    fn rule(
        &mut self,
        at: &str,
        side: &str,
        peers: Option<&[NetworkPolicyPeer]>,
        ports: Option<&[NetworkPolicyPort]>,
    ) -> Rule {
        let peers = peers.unwrap_or_default();
        let ports = ports.unwrap_or_default();
        Rule {
            action: Action::Accept,
            peers: if peers.is_empty() {
                Peers::Any
            } else {
                let each = peers.iter().enumerate();
                Peers::Of(
                    each.filter_map(|(n, p)| self.note(peer(p, self.namespace, &format!("{at}.{side}[{n}]"))))
                        .collect(),
                )
            },
            ports: if ports.is_empty() {
                Ports::All
            } else {
                let each = ports.iter().enumerate();
                Ports::Of(each.filter_map(|(n, p)| self.note(port(p, &format!("{at}.ports[{n}]")))).collect())
            },
        }
    }
    fn note<T>(&mut self, read: Result<T, Flaw>) -> Option<T> {
        read.map_err(|flaw| self.flaws.push(flaw)).ok()
    }
}

fn peer(peer: &NetworkPolicyPeer, namespace: &str, at: &str) -> Result<Peer, Flaw> {
    let selector = |s, field: &str| LabelSelector::read(s, &format!("{at}.{field}"));
    match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
        (None, None, None) => {
            Err(Flaw::new(at, "it names nobody: give it a podSelector, a namespaceSelector or an ipBlock"))
        }
        (Some(block), None, None) => {
            let cidr = model::cidr(&block.cidr)
                .map_err(|cause| Flaw::new(format!("{at}.ipBlock.cidr"), format!("`{}` is {cause}", block.cidr)))?;
            let mut except = Vec::new();
            for (n, text) in block.except.iter().flatten().enumerate() {
                let flaw = |cause: &str| Flaw::new(format!("{at}.ipBlock.except[{n}]"), format!("`{text}` is {cause}"));
                let hole = model::cidr(text).map_err(flaw)?;
                if !cidr.contains(&hole) || cidr == hole {
                    return Err(flaw("not a part of the block"));
                }
                except.push(hole);
            }
            except.sort();
            except.dedup();
            Ok(Peer::Block { cidr, except })
        }
        (Some(_), ..) => Err(Flaw::new(at, "an ipBlock stands beside a selector; give each a peer of its own")),
        (None, namespaces, pods) => Ok(Peer::Pods(Subject {
            namespaces: match namespaces {
                Some(s) => Namespaces::Selected(selector(s, "namespaceSelector")?),
                None => Namespaces::Named(namespace.to_owned()),
            },
            pods: match pods {
                Some(s) => selector(s, "podSelector")?,
                None => LabelSelector::default(),
            },
        })),
    }
}

fn port(port: &NetworkPolicyPort, at: &str) -> Result<PortMatch, Flaw> {
    let flaw = |field: &str, cause: String| Flaw::new(format!("{at}.{field}"), cause);
    let protocol = match port.protocol.as_deref() {
        None | Some("" | "TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(other) => return Err(flaw("protocol", format!("it is `{other}`, not one of TCP, UDP, SCTP"))),
    };
    let number = |field: &str, n: i32| {
        u16::try_from(n)
            .ok()
            .filter(|n| *n != 0)
            .ok_or_else(|| flaw(field, format!("{n} is not a port from 1 to 65535")))
    };
    match (&port.port, port.end_port) {
        (None, None) => Ok(PortMatch::Range { protocol, first: 0, last: u16::MAX }),
        (Some(IntOrString::Int(first)), last) => {
            let first = number("port", *first)?;
            let last = last.map_or(Ok(first), |n| number("endPort", n))?;
            if last < first {
                return Err(flaw("endPort", format!("{last} is below the port, {first}")));
            }
            Ok(PortMatch::Range { protocol, first, last })
        }
        (Some(IntOrString::String(name)), None) if !name.is_empty() => {
            Ok(PortMatch::Named { protocol: Some(protocol), name: name.clone() })
        }
        (Some(IntOrString::String(_)), None) => Err(flaw("port", "it is empty".into())),
        (_, Some(_)) => Err(flaw("endPort", "it stands without a port that is a number".into())),
    }
}
