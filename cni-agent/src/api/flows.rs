//! The paths about flows: lists, counts, and the one thing that the API takes away.
use axum::{
    Json,
    extract::{Query as UrlQuery, rejection::QueryRejection},
    http::StatusCode,
};

use super::{
    Failure, Shared, on_thread,
    types::{FlowCounts, FlowList, Flushed},
};
use crate::conntrack::{Filter, FlowError, Query};

/// Flows that a list shows where nothing else is asked for.
pub const LIMIT: usize = 1000;

/// A query that may be none.
type Asked = Result<UrlQuery<Query>, QueryRejection>;

/// `GET /v1/flows`.
pub(super) async fn list(inspect: Shared, query: Asked) -> Result<Json<FlowList>, Failure> {
    let (query, filter) = read(query)?;
    let limit = query.limit.unwrap_or(LIMIT);
    Ok(Json(on_thread(inspect, move |i| i.flows(&filter, limit)).await??))
}

/// `GET /v1/flows/count`.
pub(super) async fn count(inspect: Shared) -> Result<Json<FlowCounts>, Failure> {
    Ok(Json(on_thread(inspect, |i| i.flow_counts()).await??))
}

/// `DELETE /v1/flows`.
pub(super) async fn flush(inspect: Shared, query: Asked) -> Result<Json<Flushed>, Failure> {
    let (query, filter) = read(query)?;
    if filter.takes_all() && !query.all {
        return Err(wrong("nothing says which flows to remove".into()));
    }
    let flushed = on_thread(inspect, move |i| i.flush_flows(&filter)).await??;
    Ok(Json(Flushed { flushed }))
}

fn read(query: Asked) -> Result<(Query, Filter), Failure> {
    let UrlQuery(query) = query.map_err(|e| wrong(e.body_text()))?;
    let filter = Filter::try_from(&query).map_err(wrong)?;
    Ok((query, filter))
}

fn wrong(error: String) -> Failure {
    let cure = "the query takes pod, address, port, protocol, state and family, each a list with commas, limit=N for a \
                list and all=true for a removal";
    Failure(StatusCode::BAD_REQUEST, error, cure.into())
}

impl From<FlowError> for Failure {
    fn from(error: FlowError) -> Self {
        let (status, cure) = match &error {
            FlowError::NoSuchPod(_) => (
                StatusCode::NOT_FOUND,
                "`weft pod list` shows the pods; one that is gone can be asked for by its address",
            ),
            FlowError::Read(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the agent's log may say more; try again"),
        };
        Self(status, error.to_string(), cure.into())
    }
}
