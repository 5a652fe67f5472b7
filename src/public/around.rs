//! Middleware for every public request.

use crate::http::routing::RouteName;
use crate::state::State;
use actix_web::Error;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::ConnectionType;
use actix_web::http::header::{HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::web::Data;
use std::time::Instant;

/// Adds the request id and common headers, measures the time, and updates metrics and log.
pub async fn around(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let started = Instant::now();
    let Some(state) = request.app_data::<Data<State>>().cloned() else {
        return next.call(request).await;
    };
    let peer = request.peer_addr().map(|peer| peer.ip());
    if let Some(peer) = peer {
        state.untrusted_proxies.notice(peer, request.headers(), &state.proxies);
    }
    let id = state.request_ids.of(peer, request.headers(), &state.proxies);
    let mut response = next.call(request).await?;

    let (took, status) = (started.elapsed(), response.status());
    let name = response.request().app_data::<RouteName>().map(|name| name.0);
    let route = state.metrics.count(name, status, took);
    log(&id, route, response.request().method(), status, took.as_micros());
    if state.health.is_draining() {
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    Ok(response)
}

fn log(request_id: &str, route: &str, method: &Method, status: StatusCode, took_us: u128) {
    let status = status.as_u16();
    // Logs the route's name, never the path, because callers control the path.
    if status >= 500 {
        tracing::warn!(request_id, %method, route, status, took_us, "request failed");
    } else {
        tracing::debug!(request_id, %method, route, status, took_us, "request answered");
    }
}
