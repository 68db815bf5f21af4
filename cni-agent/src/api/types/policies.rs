//! What the API says of policies.
use serde::{Deserialize, Serialize};

use crate::datapath::hits::Judged;

/// Policy at a glance, in `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySummary {
    /// The maps hold what the objects say.
    pub in_force: bool,
    /// Why they do not: then what was in force before stays so, and new pods are isolated.
    pub problem: Option<String>,
    /// Policies that are known.
    pub policies: usize,
    /// Pods of this node that policies isolate in one direction or both.
    pub isolated: usize,
    /// Endpoints that are isolated because it is not known yet which policies hold for them.
    pub unknown: usize,
    /// Pods of this node for whose policies the maps have no room: older ones are in force for them, or they are isolated.
    #[serde(default)]
    pub waiting: usize,
    /// Classes of peers for which they have none: isolated pods drop what they send as `PolicyUnknown`.
    #[serde(default)]
    pub withheld: usize,
    /// Entries of all policy maps.
    pub entries: usize,
    /// Identities.
    pub identities: usize,
    /// The policy epoch: it rises when flows are to be judged again.
    pub epoch: u32,
    /// Writes to the policy maps since the agent started.
    pub writes: u64,
}

/// `GET /v1/policies`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyList {
    /// How policy is on this node.
    pub summary: PolicySummary,
    /// Policies by kind and name.
    pub policies: Vec<PolicyStatus>,
    /// What the sources say of objects that are not as they should be.
    pub problems: Vec<String>,
}

/// A policy, as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// `NetworkPolicy namespace/name` or `ClusterNetworkPolicy name`.
    pub name: String,
    /// Directions in which it holds for somebody.
    pub directions: Vec<String>,
    /// The tier and the priority of a ClusterNetworkPolicy.
    pub tier: Option<String>,
    /// `enforce`, or `audit`: what it would deny passes, and is reported.
    #[serde(default)]
    pub mode: String,
    /// What is wrong with it, and what follows from that: parts that the API server would have refused match nothing.
    pub flaws: Vec<String>,
    /// Pods of this node for which a version of it is in force.
    pub pods: Vec<String>,
    /// Pods of this node that it selects and for whose policies the maps have no room: older ones are in force, or the pod is isolated.
    #[serde(default)]
    pub waiting: Vec<String>,
    /// The policy sets that it is part of.
    pub sets: Vec<PolicySet>,
    /// How far the kernel is with it.
    pub kernel: String,
    /// Flows that were judged by it: by its rules, and by its isolating pods where no rule decides.
    #[serde(default)]
    pub hits: PolicyHits,
    /// Its rules, in the object's order, as far as they are in force here.
    #[serde(default)]
    pub rules: Vec<PolicyRule>,
}

/// How often flows were judged so: each at its first packet, and once more after each change of policies; what is denied, packet by packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyHits {
    /// They may pass.
    pub allowed: u64,
    /// They may not.
    pub denied: u64,
    /// They may only pass because policies are in audit mode.
    pub audited: u64,
}
impl From<Judged> for PolicyHits {
    fn from(of: Judged) -> Self {
        Self { allowed: of.allowed, denied: of.denied, audited: of.audited }
    }
}
impl std::ops::AddAssign for PolicyHits {
    fn add_assign(&mut self, more: Self) {
        self.allowed += more.allowed;
        self.denied += more.denied;
        self.audited += more.audited;
    }
}

/// A rule of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Where it stands in the object.
    pub rule: String,
    /// Flows about which it decided.
    pub hits: PolicyHits,
}

/// A policy set: what all policies together say that hold for a pod in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySet {
    /// Its number.
    pub id: u32,
    /// Which direction.
    pub direction: String,
    /// The policies of it, in the order in which they are asked.
    pub policies: Vec<String>,
    /// Those of them that are in audit mode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audited: Vec<String>,
    /// What it says of a peer, first of all others.
    pub peers: Vec<PolicyPeer>,
    /// Flows about which none of its rules decided, since the agent began.
    #[serde(default)]
    pub hits: PolicyHits,
}

/// What a policy set says of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPeer {
    /// The peer's identity; 0: whoever has no other entry.
    pub identity: u32,
    /// Who that is.
    pub who: String,
    /// The rule set.
    pub rules: u32,
    /// What it allows and denies.
    pub says: Vec<String>,
}
