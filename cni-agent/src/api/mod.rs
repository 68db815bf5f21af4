//! The local HTTP API: JSON over a unix socket that only its owner may open.
//!
//! | path | answer |
//! |---|---|
//! | `/v1/healthz` | 200 when the agent is ready, else 503 with the reason as text |
//! | `/v1/status` | [`types::Status`] |
//! | `/v1/endpoints`, `/v1/nodes`, `/v1/pods` | lists of [`types::EndpointStatus`], [`types::NodeStatus`], [`types::PodStatus`] |
//! | `/v1/maps`, `/v1/maps/{name}` | lists of [`types::MapInfo`], [`types::MapEntry`] |
//! | `/v1/ipam` | list of [`types::IpamAddress`] |
//! | `/v1/ipam/audit` | [`types::Audit`] |
//! | `/v1/verify` | [`Verified`]: compares everything with the kernel now, and repairs |
//! | `/v1/policies` | [`types::PolicyList`] |
//! | `/v1/explain?from=…&to=…&probe=TCP/80` | [`types::Explanation`] |
//! | `/v1/drops` | [`types::Drops`] |
//! | `/v1/flows`, `/v1/flows/count` | [`types::FlowList`], [`types::FlowCounts`] |
//! | `DELETE /v1/flows` | [`types::Flushed`]: removes them |
//! | `/v1/observe` | an endless stream of lines, each a [`types::Observed`] |
//!
//! Everything else, and everything that fails, is answered by [`types::ErrorBody`]. The API only reads, through [`Inspect`];
//! what `verify` repairs, the agent would have repaired some minutes later, and a flow that is removed is judged anew.
mod explain;
mod flows;
mod socket;
pub mod types;

use std::{path::Path, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path as UrlPath, State},
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use self::types::{
    Audit, DropEvent, Drops, EndpointStatus, ErrorBody, Explanation, FlowCounts, FlowList, IpamAddress, MapEntry,
    MapInfo, NodeStatus, Observed, PodStatus, PolicyList, Status,
};
pub use self::{
    explain::ExplainError,
    flows::LIMIT as FLOWS_LIMIT,
    socket::{BindError, Listener, bind},
};
use crate::{
    conntrack::{Filter, FlowError},
    drift::Verified,
    policy::verdicts::case::Probe,
};

/// What the API shows. Methods may take a few milliseconds: they run on threads made for that.
pub trait Inspect: Send + Sync + 'static {
    /// Whether the agent is ready; the error is the reason why not, a sentence.
    fn health(&self) -> Result<(), String>;
    /// The agent at a glance.
    fn status(&self) -> Status;
    /// This node's endpoints, by id.
    fn endpoints(&self) -> Vec<EndpointStatus>;
    /// All nodes, by name.
    fn nodes(&self) -> Vec<NodeStatus>;
    /// All pods, by namespace and name.
    fn pods(&self) -> Vec<PodStatus>;
    /// All policies, by kind and name.
    fn policies(&self) -> PolicyList;
    /// What this node's maps say of a flow between two ends, each a pod's NAMESPACE/NAME, a node's name or an address.
    fn explain(&self, from: &str, to: &str, probe: Probe) -> Result<Explanation, ExplainError>;
    /// Every address that is out, in order.
    fn ipam(&self) -> Vec<IpamAddress>;
    /// What is out, compared with everything else that knows of it. It may take half a second.
    fn audit(&self) -> Audit;
    /// What differs between desired state and the kernel; it is repaired. `None`: that took too long.
    fn verify(&self) -> Option<Verified>;
    /// All BPF maps.
    fn maps(&self) -> Result<Vec<MapInfo>, MapError>;
    /// The entries of one map.
    fn map_dump(&self, name: &str) -> Result<Vec<MapEntry>, MapError>;
    /// The counters that are not zero.
    fn drops(&self) -> Result<Drops, MapError>;
    /// The flows that a filter takes, so many at most.
    fn flows(&self, filter: &Filter, limit: usize) -> Result<FlowList, FlowError>;
    /// How many flows there are.
    fn flow_counts(&self) -> Result<FlowCounts, FlowError>;
    /// Removes the flows that a filter takes; how many they were.
    fn flush_flows(&self, filter: &Filter) -> Result<u64, FlowError>;
    /// Drop events from now on.
    fn observe(&self) -> Receiver<Arc<DropEvent>>;
}

/// Why a map cannot be shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// There is none of that name.
    #[error("there is no map `{name}`")]
    NoSuchMap {
        /// The name.
        name: String,
    },
    /// There is, but its entries cannot be listed.
    #[error("map `{name}` is a {kind}, which has no entries to list")]
    NotListable {
        /// The name.
        name: String,
        /// Its kernel type.
        kind: String,
    },
    /// The kernel does not give its content.
    #[error("the kernel does not let map `{name}` be read: {cause}")]
    Read {
        /// The name.
        name: String,
        /// What the kernel says.
        cause: String,
    },
}

/// Serves the API on a socket at `path` until it fails or the future is dropped; the socket goes with it.
pub async fn serve(path: &Path, inspect: Arc<dyn Inspect>) -> anyhow::Result<()> {
    serve_on(bind(path)?, inspect).await
}

/// Serves the API on a socket that stands already, so that whoever asks early waits instead of failing.
pub async fn serve_on(listener: Listener, inspect: Arc<dyn Inspect>) -> anyhow::Result<()> {
    let (listener, _path) = listener.into_parts()?;
    Ok(axum::serve(listener, router(inspect)).await?)
}

type Shared = State<Arc<dyn Inspect>>;

fn router(inspect: Arc<dyn Inspect>) -> Router {
    Router::new()
        .route("/v1/healthz", get(healthz))
        .route("/v1/status", get(async |i: Shared| list(i, |i| i.status()).await))
        .route("/v1/endpoints", get(async |i: Shared| list(i, |i| i.endpoints()).await))
        .route("/v1/nodes", get(async |i: Shared| list(i, |i| i.nodes()).await))
        .route("/v1/pods", get(async |i: Shared| list(i, |i| i.pods()).await))
        .route("/v1/policies", get(async |i: Shared| list(i, |i| i.policies()).await))
        .route("/v1/explain", get(explain::explain))
        .route("/v1/ipam", get(async |i: Shared| list(i, |i| i.ipam()).await))
        .route("/v1/ipam/audit", get(async |i: Shared| list(i, |i| i.audit()).await))
        .route("/v1/verify", get(verify))
        .route("/v1/maps", get(async |i: Shared| read(i, |i| i.maps()).await))
        .route(
            "/v1/maps/{name}",
            get(async |i: Shared, name: UrlPath<String>| read(i, move |i| i.map_dump(&name)).await),
        )
        .route("/v1/drops", get(async |i: Shared| read(i, |i| i.drops()).await))
        .route("/v1/flows", get(flows::list).delete(flows::flush))
        .route("/v1/flows/count", get(flows::count))
        .route("/v1/observe", get(observe))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(inspect)
}

/// Maps and tables are read on a thread of their own: neither may keep a worker from its connections.
async fn on_thread<T: Send + 'static>(
    State(inspect): Shared,
    ask: impl FnOnce(&dyn Inspect) -> T + Send + 'static,
) -> Result<T, Failure> {
    let answer = tokio::task::spawn_blocking(move || ask(&*inspect)).await;
    answer.map_err(|error| {
        tracing::error!(%error, "an API request broke down");
        let cure = "this is a bug of the agent: its log says where it broke down";
        Failure(StatusCode::INTERNAL_SERVER_ERROR, "the agent could not answer".into(), cure.into())
    })
}

async fn healthz(inspect: Shared) -> Result<Response, Failure> {
    Ok(match on_thread(inspect, |i| i.health()).await? {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    })
}

async fn list<T: Serialize + Send + 'static>(
    inspect: Shared,
    ask: impl FnOnce(&dyn Inspect) -> T + Send + 'static,
) -> Result<Json<T>, Failure> {
    Ok(Json(on_thread(inspect, ask).await?))
}

async fn read<T: Serialize + Send + 'static>(
    inspect: Shared,
    ask: impl FnOnce(&dyn Inspect) -> Result<T, MapError> + Send + 'static,
) -> Result<Json<T>, Failure> {
    Ok(Json(on_thread(inspect, ask).await??))
}

async fn verify(inspect: Shared) -> Result<Json<Verified>, Failure> {
    on_thread(inspect, |i| i.verify()).await?.map(Json).ok_or_else(|| {
        let cure = "the agent's log says what holds it up; try again";
        Failure(StatusCode::SERVICE_UNAVAILABLE, "the comparison takes too long".into(), cure.into())
    })
}

async fn observe(State(inspect): Shared) -> Response {
    // Subscribed before the head of the answer goes out: who has the head misses nothing from then on.
    let events = inspect.observe();
    let lines = stream::unfold(events, async |mut events| {
        let line = match events.recv().await {
            Ok(event) => serde_json::to_vec(&*event),
            Err(RecvError::Lagged(lost)) => serde_json::to_vec(&Observed::Lost { lost }),
            Err(RecvError::Closed) => return None,
        };
        let line = line.map(|mut bytes| {
            bytes.push(b'\n');
            bytes
        });
        Some((line, events))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

async fn no_such_path(uri: Uri) -> Failure {
    let known = "known are healthz, status, endpoints, nodes, pods, policies, explain, ipam, ipam/audit, verify, maps, maps/{name}, drops, flows, flows/count and observe under /v1/";
    Failure(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path()), known.into())
}

async fn no_such_method(method: Method, uri: Uri) -> Failure {
    let error = format!("{} does not take {method}", uri.path());
    Failure(StatusCode::METHOD_NOT_ALLOWED, error, "the API only reads, but for DELETE of /v1/flows: use GET".into())
}

/// An answer that is none: status, what is wrong, what cures it.
struct Failure(StatusCode, String, String);
impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(ErrorBody { error: self.1, cure: self.2 })).into_response()
    }
}
impl From<MapError> for Failure {
    fn from(error: MapError) -> Self {
        let (status, cure) = match &error {
            MapError::NoSuchMap { .. } => (StatusCode::NOT_FOUND, "`weft map list` shows the maps"),
            MapError::NotListable { .. } => {
                (StatusCode::BAD_REQUEST, "`weft drops` and `weft observe` show counters and events")
            }
            MapError::Read { .. } => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "the pinned map may have been removed from under the agent: restart it, it makes it again",
            ),
        };
        Self(status, error.to_string(), cure.into())
    }
}

#[cfg(test)]
pub(crate) mod tests;
