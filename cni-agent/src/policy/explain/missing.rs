//! What would have to be allowed for a flow that is denied.
use cni_common::wire::{SCTP, TCP, UDP};
use cni_ebpf::policy::{Ruling, Why};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{End, Judge, What};
use crate::{
    compile::SET_ISOLATED,
    policy::objects::{Direction, Kind, Tier},
};

/// What a denied flow lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// In words.
    pub words: String,
    /// A rule of a NetworkPolicy that would allow this flow and, of this protocol, no other port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Value>,
}

/// Labels that controllers give: a rule that names them allows one generation of pods, or a single one.
const OF_CONTROLLERS: [&str; 5] = [
    "apps.kubernetes.io/pod-index",
    "controller-revision-hash",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
];

impl Judge<'_> {
    /// `None` when it is allowed, and would be if no policy were in audit mode.
    pub(super) fn missing(&self, peer: &End, what: What, ruling: Ruling) -> Option<Missing> {
        if ruling.is_allowed() && !ruling.is_audited() {
            return None;
        }
        let only = |words: &str| Missing { words: words.to_owned(), rule: None };
        Some(match ruling.why() {
            Why::UnknownPeer => only(
                "the agent must hear of the pod with that address, by its Pod object's status; what is no pod of Kubernetes no rule can name",
            ),
            Why::NoSet if self.set == SET_ISOLATED => {
                only("the agent must hear of the pod and all policies: `weft status` says what it waits for")
            }
            Why::NoSet => only("the maps must hold the set: `weft status --verify` compares and repairs them"),
            _ => self.denied_by(ruling.cookie()).unwrap_or_else(|| self.allowance(peer, what)),
        })
    }

    /// A rule denies it.
    fn denied_by(&self, cookie: u32) -> Option<Missing> {
        let (revision, direction, n) = self.engine.rule_of(cookie)?;
        let policy = &revision.policy;
        let Kind::Cluster { tier, priority } = policy.kind else { return None };
        let direction = direction.name();
        let words = match tier {
            Tier::Admin => format!(
                "no NetworkPolicy can: the Admin tier comes first. {direction} rule {n} of {} must let it out, or a rule with Accept be asked \
                 before it, higher up in that policy or in one of the Admin tier with a priority below {priority}",
                policy.name
            ),
            Tier::Baseline => format!(
                "a NetworkPolicy that selects the pod and allows it, which isolates the pod in that direction, is asked before {}; or {direction} \
                 rule {n} there must let it out, or a rule with Accept come before it",
                policy.name
            ),
        };
        Some(Missing { words, rule: None })
    }

    /// NetworkPolicies isolate the pod, and no rule allows it.
    fn allowance(&self, peer: &End, what: What) -> Missing {
        let direction = self.direction.name();
        let set = self.engine.set(self.set);
        let policies: Vec<String> = set
            .into_iter()
            .flat_map(|s| &s.policies)
            .filter(|r| r.policy.kind == Kind::Network)
            .map(|r| r.policy.name.to_string())
            .collect();
        let words = match policies.as_slice() {
            [] => format!("a NetworkPolicy that selects the pod needs this rule in spec.{direction}"),
            [one] => {
                format!("{one}, or another NetworkPolicy that selects the pod, needs this rule in spec.{direction}")
            }
            all => format!(
                "one of {}, or another NetworkPolicy that selects the pod, needs this rule in spec.{direction}",
                all.join(", ")
            ),
        };
        Missing { words, rule: Some(self.shape(peer, what)) }
    }

    /// A rule that allows the flow.
    fn shape(&self, peer: &End, (proto, port): What) -> Value {
        let peers = match self.direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        let mut rule = Map::new();
        rule.insert(peers.to_owned(), json!([self.peer(peer)]));
        let protocol = match proto {
            TCP => Some("TCP"),
            UDP => Some("UDP"),
            SCTP => Some("SCTP"),
            // No rule with ports is about any other: without them it is about all.
            _ => None,
        };
        if let Some(protocol) = protocol {
            rule.insert("ports".to_owned(), json!([{"protocol": protocol, "port": port}]));
        }
        Value::Object(rule)
    }
    fn peer(&self, peer: &End) -> Value {
        let End::Pod { key, .. } = peer else {
            let ip = peer.ip();
            return json!({"ipBlock": {"cidr": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })}});
        };
        let store = &self.engine.store;
        let alike = store.pod(key).map(|row| store.alike(row));
        let labels = alike.iter().flat_map(|alike| alike.labels.iter());
        let labels: Map<String, Value> = labels
            .filter(|(k, _)| !OF_CONTROLLERS.contains(&&**k))
            .map(|(k, v)| (k.to_string(), Value::from(&**v)))
            .collect();
        let pods = if labels.is_empty() { json!({}) } else { json!({"matchLabels": labels}) };
        if key.namespace() == self.pod.namespace() {
            return json!({"podSelector": pods});
        }
        let namespace = json!({"matchLabels": {"kubernetes.io/metadata.name": key.namespace()}});
        json!({"namespaceSelector": namespace, "podSelector": pods})
    }
}
