//! The path that explains a flow.
use axum::{
    Json,
    extract::{Query as UrlQuery, rejection::QueryRejection},
    http::StatusCode,
};
use serde::Deserialize;

use super::{Failure, Shared, on_thread, types::Explanation};
use crate::policy::verdicts::case::Probe;

/// Which flow.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    from: String,
    to: String,
    probe: Probe,
}

/// Why a flow cannot be explained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// Nobody knows a pod of that name.
    #[error("there is no pod `{0}`")]
    NoSuchPod(String),
    /// Nobody knows a node of that name.
    #[error("there is no node `{0}`, and an address or a pod's NAMESPACE/NAME it is not")]
    NoSuchNode(String),
    /// It has no address, or has given it back.
    #[error("`{0}` has no address")]
    NoAddress(String),
    /// One end has only IPv4, the other only IPv6.
    #[error("the two ends have no address of one family")]
    NoFamily,
    /// The kernel does not give what the maps hold.
    #[error("the kernel does not let the maps be read: {0}")]
    Read(String),
}

/// `GET /v1/explain`.
pub(super) async fn explain(
    inspect: Shared,
    query: Result<UrlQuery<Query>, QueryRejection>,
) -> Result<Json<Explanation>, Failure> {
    let UrlQuery(Query { from, to, probe }) = query.map_err(|e| {
        let cure = "the query takes from, to and probe, as in from=shop/web&to=10.1.0.6&probe=TCP/80";
        Failure(StatusCode::BAD_REQUEST, e.body_text(), cure.into())
    })?;
    Ok(Json(on_thread(inspect, move |i| i.explain(&from, &to, probe)).await??))
}

impl From<ExplainError> for Failure {
    fn from(error: ExplainError) -> Self {
        let (status, cure) = match &error {
            ExplainError::NoSuchPod(_) => (
                StatusCode::NOT_FOUND,
                "`weft pod list` shows the pods; one that has no object is asked for by its address",
            ),
            ExplainError::NoSuchNode(_) => (StatusCode::NOT_FOUND, "`weft node list` shows the nodes"),
            ExplainError::NoAddress(_) => (StatusCode::CONFLICT, "`weft pod list` shows addresses and phases"),
            ExplainError::NoFamily => (StatusCode::BAD_REQUEST, "name ends that share IPv4 or IPv6"),
            ExplainError::Read(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the agent's log may say more; try again"),
        };
        Self(status, error.to_string(), cure.into())
    }
}
