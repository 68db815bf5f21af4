//! ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2).
//!
//! A rule with a peer or protocol that has no field known here fails closed, as the API demands: Accept matches nothing, Deny and Pass deny
//! all. So does one with a peer or protocol that the custom resource's definition refuses. Everything else that it refuses makes the object a broken one.
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Action, Broken, Direction, Domain, Flaw, Kind, Mode, Namespaces, Peer, Peers, Policy, PolicyName, PortMatch, Ports,
    Read, Rule, Subject, Tier, model,
};
use crate::{policy::labels::LabelSelector, tables::Protocol};

/// The object.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNetworkPolicy {
    /// Its name.
    pub metadata: meta::ObjectMeta,
    /// What it says.
    pub spec: Spec,
}

/// What a policy says.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    tier: TierName,
    priority: u16,
    subject: SubjectFields,
    #[serde(default)]
    ingress: Option<Vec<IngressRule>>,
    #[serde(default)]
    egress: Option<Vec<EgressRule>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum TierName {
    Admin,
    Baseline,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SubjectFields {
    #[serde(default)]
    namespaces: Option<meta::LabelSelector>,
    #[serde(default)]
    pods: Option<NamespacedPods>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NamespacedPods {
    #[serde(default)]
    namespace_selector: Option<meta::LabelSelector>,
    #[serde(default)]
    pod_selector: Option<meta::LabelSelector>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct IngressRule {
    #[serde(default, rename = "name")]
    _name: Option<String>,
    action: ActionName,
    from: Vec<Map<String, Value>>,
    #[serde(default)]
    protocols: Option<Vec<Map<String, Value>>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EgressRule {
    #[serde(default, rename = "name")]
    _name: Option<String>,
    action: ActionName,
    to: Vec<Map<String, Value>>,
    #[serde(default)]
    protocols: Option<Vec<Map<String, Value>>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum ActionName {
    Accept,
    Deny,
    Pass,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProtocolFields {
    #[serde(default)]
    destination_port: Option<PortFields>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortFields {
    #[serde(default)]
    number: Option<u16>,
    #[serde(default)]
    range: Option<RangeFields>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeFields {
    start: u16,
    end: u16,
}

const PRIORITY_MAX: u16 = 1000;

/// Takes a ClusterNetworkPolicy over.
///
/// # Errors
/// When it says what its definition refuses elsewhere than in peers and protocols.
pub fn read(object: ClusterNetworkPolicy) -> Result<Read, Broken> {
    let name = object.metadata.name.filter(|n| !n.is_empty());
    let shown = name.as_deref().unwrap_or("without a name").to_owned();
    let broken = |flaw| Broken { object: format!("ClusterNetworkPolicy {shown}"), flaw };
    let name = name.ok_or_else(|| broken(Flaw::new("metadata.name", "it is missing")))?;
    let spec = object.spec;
    if spec.priority > PRIORITY_MAX {
        return Err(broken(Flaw::new("spec.priority", format!("{} is above {PRIORITY_MAX}", spec.priority))));
    }
    let subject = subject(&spec.subject).map_err(broken)?;
    let mut reader = Reader { flaws: Vec::new() };
    let mode = Mode::read(object.metadata.annotations.as_ref()).unwrap_or_else(|flaw| {
        reader.flaws.push(flaw);
        Mode::Enforce
    });
    let (mut ingress, mut egress) = (Vec::new(), Vec::new());
    for (n, r) in spec.ingress.iter().flatten().enumerate() {
        let at = format!("spec.ingress[{n}]");
        ingress.push(reader.rule(&at, Direction::Ingress, r.action, &r.from, r.protocols.as_deref()));
    }
    for (n, r) in spec.egress.iter().flatten().enumerate() {
        let at = format!("spec.egress[{n}]");
        egress.push(reader.rule(&at, Direction::Egress, r.action, &r.to, r.protocols.as_deref()));
    }
    let tier = match spec.tier {
        TierName::Admin => Tier::Admin,
        TierName::Baseline => Tier::Baseline,
    };
    let policy = Policy {
        name: PolicyName::Cluster { name },
        kind: Kind::Cluster { tier, priority: spec.priority },
        mode,
        subject,
        ingress: (!ingress.is_empty()).then_some(ingress),
        egress: (!egress.is_empty()).then_some(egress),
    };
    Ok(Read { policy, flaws: reader.flaws })
}

fn subject(fields: &SubjectFields) -> Result<Subject, Flaw> {
    match (&fields.namespaces, &fields.pods) {
        (Some(namespaces), None) => all_pods(namespaces, "spec.subject.namespaces"),
        (None, Some(pods)) => some_pods(pods, "spec.subject.pods"),
        (None, None) => Err(Flaw::new("spec.subject", "it selects nobody: give it namespaces or pods")),
        (Some(_), Some(_)) => Err(Flaw::new("spec.subject", "it has both namespaces and pods; give it one of them")),
    }
}
fn all_pods(namespaces: &meta::LabelSelector, at: &str) -> Result<Subject, Flaw> {
    let namespaces = Namespaces::Selected(LabelSelector::read(namespaces, at)?);
    Ok(Subject { namespaces, pods: LabelSelector::default() })
}
fn some_pods(fields: &NamespacedPods, at: &str) -> Result<Subject, Flaw> {
    let selector = |s: &Option<meta::LabelSelector>, field: &str| {
        s.as_ref().map_or_else(|| Ok(LabelSelector::default()), |s| LabelSelector::read(s, &format!("{at}.{field}")))
    };
    let namespaces = Namespaces::Selected(selector(&fields.namespace_selector, "namespaceSelector")?);
    Ok(Subject { namespaces, pods: selector(&fields.pod_selector, "podSelector")? })
}

struct Reader {
    flaws: Vec<Flaw>,
}
impl Reader {
    fn rule(
        &mut self,
        at: &str,
        direction: Direction,
        action: ActionName,
        peers: &[Map<String, Value>],
        protocols: Option<&[Map<String, Value>]>,
    ) -> Rule {
        let action = match action {
            ActionName::Accept => Action::Accept,
            ActionName::Deny => Action::Deny,
            ActionName::Pass => Action::Pass,
        };
        let side = match direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        let mut flaws = Vec::new();
        let mut known = Vec::new();
        if peers.is_empty() {
            flaws.push(Flaw::new(format!("{at}.{side}"), "it is empty"));
        }
        for (n, fields) in peers.iter().enumerate() {
            match peer(&format!("{at}.{side}[{n}]"), direction, action, fields) {
                Ok(list) => known.extend(list),
                Err(flaw) => flaws.push(flaw),
            }
        }
        let protocols = protocols.unwrap_or_default();
        let mut ports = Vec::new();
        for (n, fields) in protocols.iter().enumerate() {
            match protocol(&format!("{at}.protocols[{n}]"), fields) {
                Ok(port) => ports.push(port),
                Err(flaw) => flaws.push(flaw),
            }
        }
        if flaws.is_empty() {
            let ports = if protocols.is_empty() { Ports::All } else { Ports::Of(ports) };
            return Rule { action, peers: Peers::Of(known), ports };
        }
        let (closed, effect) = match action {
            Action::Accept => {
                (Rule { action, peers: Peers::Of(Vec::new()), ports: Ports::All }, "the rule matches nothing")
            }
            Action::Deny | Action::Pass => {
                (Rule { action: Action::Deny, peers: Peers::Any, ports: Ports::All }, "the rule denies all")
            }
        };
        self.flaws.extend(flaws.into_iter().map(|flaw| Flaw { effect, ..flaw }));
        closed
    }
}

/// The one field of an object that must have exactly one; fields that are null are absent.
fn only<'a>(at: &str, fields: &'a Map<String, Value>) -> Result<(&'a str, &'a Value), Flaw> {
    let mut set = fields.iter().filter(|(_, v)| !v.is_null());
    match (set.next(), set.next()) {
        (Some((name, value)), None) => Ok((name, value)),
        (None, _) => Err(Flaw::new(at, "it has no field that is known here")),
        (Some((one, _)), Some((two, _))) => {
            Err(Flaw::new(at, format!("it has both {one} and {two}; give it one of them")))
        }
    }
}

fn field<T: for<'de> Deserialize<'de>>(at: &str, value: &Value) -> Result<T, Flaw> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let at = if path == "." { at.to_owned() } else { format!("{at}.{path}") };
        Flaw::new(at, error.inner().to_string())
    })
}

fn peer(at: &str, direction: Direction, action: Action, fields: &Map<String, Value>) -> Result<Vec<Peer>, Flaw> {
    let (name, value) = only(at, fields)?;
    let at = format!("{at}.{name}");
    match (name, direction) {
        ("namespaces", _) => Ok(vec![Peer::Pods(all_pods(&field(&at, value)?, &at)?)]),
        ("pods", _) => Ok(vec![Peer::Pods(some_pods(&field(&at, value)?, &at)?)]),
        ("nodes", Direction::Egress) => Ok(vec![Peer::Nodes(LabelSelector::read(&field(&at, value)?, &at)?)]),
        ("networks", Direction::Egress) => {
            let texts: Vec<String> = field(&at, value)?;
            let net = |(n, text): (usize, &String)| {
                let cidr = model::cidr(text)
                    .map_err(|cause| Flaw::new(format!("{at}[{n}]"), format!("`{text}` is {cause}")))?;
                Ok(Peer::Block { cidr, except: Vec::new() })
            };
            texts.iter().enumerate().map(net).collect()
        }
        ("domainNames", Direction::Egress) if action != Action::Accept => {
            Err(Flaw::new(at, "names are for Accept rules only"))
        }
        ("domainNames", Direction::Egress) => {
            let texts: Vec<String> = field(&at, value)?;
            let name = |(n, text): (usize, &String)| {
                let flaw =
                    || Flaw::new(format!("{at}[{n}]"), format!("`{text}` is neither a name nor `*.` before one"));
                Domain::read(text).map(Peer::Domain).ok_or_else(flaw)
            };
            texts.iter().enumerate().map(name).collect()
        }
        _ => Err(Flaw::new(at, "it is not known here")),
    }
}

fn protocol(at: &str, fields: &Map<String, Value>) -> Result<PortMatch, Flaw> {
    let (name, value) = only(at, fields)?;
    let at = format!("{at}.{name}");
    let protocol = match name {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        "destinationNamedPort" => return Ok(PortMatch::Named { protocol: None, name: field(&at, value)? }),
        _ => return Err(Flaw::new(at, "it is not known here")),
    };
    let fields: ProtocolFields = field(&at, value)?;
    let at = format!("{at}.destinationPort");
    let refused = |cause: String| Flaw::new(at.as_str(), cause);
    let (first, last) = match fields.destination_port {
        None => return Ok(PortMatch::Range { protocol, first: 0, last: u16::MAX }),
        Some(PortFields { number: Some(0), .. }) => return Err(refused("0 is not a port".into())),
        Some(PortFields { number: Some(n), range: None }) => (n, n),
        Some(PortFields { number: None, range: Some(r) }) if r.start < r.end && r.start != 0 => (r.start, r.end),
        Some(PortFields { number: None, range: Some(r) }) => {
            return Err(refused(format!("{} to {} is not a range of ports", r.start, r.end)));
        }
        Some(_) => return Err(refused("it has one of number and range".into())),
    };
    Ok(PortMatch::Range { protocol, first, last })
}
