//! The endpoint that is scraped, on an address that a setting names.
use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use super::{CONTENT_TYPE, Metrics};

/// How long to wait for an address that another process has, or that the node does not have yet.
const AGAIN: Duration = Duration::from_secs(5);

/// Serves `/metrics`, and `/healthz` for probes, as long as it is polled. An address that cannot be had keeps no pod from its network: it is tried again.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>) {
    let router = router(metrics);
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!(%address, "metrics are served");
                told = false;
                if let Err(error) = axum::serve(listener, router.clone()).await {
                    tracing::warn!(%address, %error, "metrics are not served any more; trying again");
                }
            }
            Err(error) if !told => {
                told = true;
                tracing::warn!(%address, %error, "metrics cannot be served; trying again. --metrics-address names another address");
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn router(metrics: Arc<Metrics>) -> Router {
    Router::new().route("/metrics", get(text)).route("/healthz", get(healthz)).with_state(metrics)
}

async fn text(State(metrics): State<Arc<Metrics>>) -> Response {
    match tokio::task::spawn_blocking(move || metrics.text()).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "the agent's log says what is wrong\n").into_response(),
    }
}

async fn healthz(State(metrics): State<Arc<Metrics>>) -> Response {
    match tokio::task::spawn_blocking(move || metrics.not_ready()).await {
        Ok(None) => "ok\n".into_response(),
        Ok(Some(why)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the agent's log says what is wrong\n").into_response(),
    }
}
