//! Why a flow may pass or not.
use serde::{Deserialize, Serialize};

use super::FlowStatus;
pub use crate::policy::explain::{Missing, Policies, RuleSays, Side};

/// `GET /v1/explain`: what the policies in this node's maps say of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The node that was asked.
    pub node: String,
    /// Protocol and port.
    pub probe: String,
    /// The policy epoch.
    pub epoch: u32,
    /// Why the maps hold something else than the objects say; `None` when they agree.
    pub problem: Option<String>,
    /// One for each family that both ends have.
    pub flows: Vec<ExplainedFlow>,
}

/// A flow between two addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedFlow {
    /// Who opens it: `pod:NAMESPACE/NAME@IP`, `node:NAME@IP` or `ext:IP`.
    pub from: String,
    /// To whom.
    pub to: String,
    /// Whether it may pass; `None` when the ends that this node judges allow it, and another node judges the rest.
    pub allowed: Option<bool>,
    /// It only may, as far as this node judges it, because policies are in audit mode.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub audited: bool,
    /// What the ends say: egress, then ingress.
    pub sides: Vec<Side>,
    /// Such flows that conntrack knows and that were judged in an earlier epoch: their next packet is judged again.
    pub older: Vec<FlowStatus>,
}
