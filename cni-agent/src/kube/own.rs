//! This node's own Node object: what it says to the cluster once pods can be run here. The only thing that the agent ever writes.
//!
//! Two things keep pods off a node whose network is not there: the condition `NetworkUnavailable`, which a cloud's controller may have set, and the taint
//! [`TAINT`], which whoever makes nodes may give them (`kubelet --register-with-taints`). Both go when the configuration for the runtime is in place, never before, and again
//! whenever they come back, as with an object that is made anew.
use std::time::Duration;

use hyper::Request;
use kube::client::Body;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};

use super::{
    Shared,
    backoff::Backoff,
    wire::{self, Refusal},
};
use crate::error_chain;

/// The key of the taint of a node without an agent that is ready, whatever its effect.
pub const TAINT: &str = "weft.dev/agent-not-ready";
/// The word for programs in the condition.
const REASON: &str = "WeftIsUp";
const ANSWER: Duration = Duration::from_secs(30);

/// Which object is this node's, and whether pods can be run here.
#[derive(Clone, Debug)]
pub struct Own {
    /// Its name.
    pub node: String,
    /// Becomes true when the runtime can call the plugin.
    pub ready: watch::Receiver<bool>,
}

/// What of the object is to be changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `spec.taints` as they are.
    taints: Vec<Value>,
    /// The condition does not say that the network is there.
    unavailable: bool,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}
#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    taints: Option<Vec<Value>>,
}
#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Option<Vec<Condition>>,
}
#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl Seen {
    /// From the object's text.
    pub fn of(object: &str) -> Result<Self, String> {
        let Object { spec, status } = wire::object(object)?;
        let conditions = status.conditions.unwrap_or_default();
        let unavailable = !conditions.iter().any(|c| c.kind == "NetworkUnavailable" && c.status == "False");
        Ok(Self { taints: spec.taints.unwrap_or_default(), unavailable })
    }

    /// The taints without ours; `None` when it is not among them.
    fn untainted(&self) -> Option<Vec<Value>> {
        let ours = |taint: &&Value| taint["key"] == TAINT;
        let rest: Vec<Value> = self.taints.iter().filter(|t| !ours(t)).cloned().collect();
        (rest.len() < self.taints.len()).then_some(rest)
    }

    /// What to ask for, the condition first: path behind the node's, kind of patch, patch.
    fn patches(&self, now: &str) -> Vec<(&'static str, &'static str, Value)> {
        let condition = self.unavailable.then(|| {
            let condition = json!({
                "type": "NetworkUnavailable", "status": "False", "reason": REASON, "message": "Weft is running on this node",
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            });
            ("/status", "application/strategic-merge-patch+json", json!({"status": {"conditions": [condition]}}))
        });
        let taints = self.untainted().map(|rest| {
            // Somebody else may change the taints at the same time: then the test fails, and what they are by then comes in.
            let patch = json!([
                {"op": "test", "path": "/spec/taints", "value": self.taints},
                {"op": "replace", "path": "/spec/taints", "value": rest},
            ]);
            ("", "application/json-patch+json", patch)
        });
        condition.into_iter().chain(taints).collect()
    }
}

/// Keeps this node's object as it should be, as long as it is polled.
pub(super) async fn keep(own: &Own, shared: &Shared, mut seen: watch::Receiver<Seen>) {
    let mut ready = own.ready.clone();
    // The sender's end is the agent's.
    if ready.wait_for(|ready| *ready).await.is_err() {
        return std::future::pending().await;
    }
    let mut backoff = Backoff::default();
    loop {
        let wanted = seen.borrow_and_update().clone();
        let mut failed = None;
        for (path, kind, patch) in wanted.patches(&wire::timestamp()) {
            if let Err(why) = send(own, shared, path, kind, &patch).await {
                failed = Some(why);
                break;
            }
            tracing::info!(node = own.node, patch = %patch, "this node's object says that pods can be run here");
        }
        let again = failed.is_some();
        shared.own_trouble(failed);
        let wait = backoff.next();
        if !again {
            backoff.reset();
            if seen.changed().await.is_err() {
                return std::future::pending().await;
            }
            continue;
        }
        // Whatever comes first: the time, or another state of the object.
        drop(timeout(wait, seen.changed()).await);
    }
}

async fn send(own: &Own, shared: &Shared, path: &str, kind: &str, patch: &Value) -> Result<(), String> {
    let connection = shared.link.connection().await.map_err(|e| error_chain(&e))?;
    let what = format!("say in the Node object {} that its network is there", own.node);
    let request = Request::patch(format!("/api/v1/nodes/{}{path}?fieldManager=weft", own.node))
        .header("content-type", kind)
        .header("accept", "application/json")
        .body(Body::from(patch.to_string().into_bytes()))
        .map_err(|e| format!("{what}: {e}"))?;
    let server = &connection.server;
    let answer = timeout(ANSWER, connection.client.send(request)).await;
    let answer = answer
        .map_err(|_| format!("{what}: {server} does not answer"))?
        .map_err(|e| format!("{what}: {}", error_chain(&e)))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let body = timeout(ANSWER, answer.into_body().collect_bytes()).await;
    let body = body.ok().and_then(Result::ok).unwrap_or_default();
    let refusal = Refusal::read(status.as_u16(), &body);
    match refusal.code {
        403 => Err(format!(
            "{what}: {server}: {refusal}: let the agent's service account patch nodes and nodes/status (deploy/weft.yaml does)"
        )),
        _ => Err(format!("{what}: {server}: {refusal}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(object: Value) -> Seen {
        Seen::of(&object.to_string()).unwrap()
    }

    #[test]
    fn a_node_that_says_so_already_is_not_written_to() {
        let object = json!({
            "spec": {"taints": [{"key": "other", "effect": "NoSchedule"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "NetworkUnavailable", "status": "False"}]},
        });
        assert_eq!(seen(object).patches("now"), []);
    }

    #[test]
    fn the_taint_goes_whatever_its_effect_and_others_stay() {
        let taint = |key: &str, effect: &str| json!({"key": key, "effect": effect});
        let all =
            [taint("a", "NoSchedule"), taint(TAINT, "NoSchedule"), taint("b", "NoExecute"), taint(TAINT, "NoExecute")];
        let object = json!({
            "spec": {"taints": all}, "status": {"conditions": [{"type": "NetworkUnavailable", "status": "False"}]}});
        let patches = seen(object).patches("now");
        assert_eq!(patches.len(), 1);
        let (path, kind, patch) = &patches[0];
        assert_eq!((*path, *kind), ("", "application/json-patch+json"));
        assert_eq!(patch[0]["value"].as_array().unwrap().len(), 4);
        assert_eq!(patch[1]["value"], json!([taint("a", "NoSchedule"), taint("b", "NoExecute")]));
    }

    #[test]
    fn a_network_that_was_unavailable_or_never_spoken_of_is_said_to_be_there() {
        for conditions in [json!([{"type": "NetworkUnavailable", "status": "True"}]), json!([]), Value::Null] {
            let patches = seen(json!({"status": {"conditions": conditions}})).patches("2026-01-01T00:00:00Z");
            assert_eq!(patches.len(), 1);
            let condition = &patches[0].2["status"]["conditions"][0];
            assert_eq!((condition["status"].as_str(), patches[0].0), (Some("False"), "/status"));
            assert_eq!(condition["lastTransitionTime"], "2026-01-01T00:00:00Z");
        }
    }
}
