//! Middleware for every request of both listeners: request id, common
//! headers, metrics and log.

use super::caller::{Proxies, RequestIds, UntrustedProxies};
use super::metrics::HttpMetrics;
use super::routing::RouteName;
use super::tls::Secure;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::ConnectionType;
use actix_web::http::header::{
    HeaderName, HeaderValue, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpMessage};
use iptunnel_actors::Health;
use std::sync::Arc;
use std::time::Instant;

/// What the middleware of one listener works with.
#[derive(Debug)]
pub struct Observer {
    /// The name of the listener in the log.
    pub listener: &'static str,
    /// The proxies whose request ids are kept.
    pub proxies: Proxies,
    /// Notices proxies that are not trusted, where a proxy may be in front of the listener.
    pub untrusted_proxies: Option<UntrustedProxies>,
    /// The generator of request ids.
    pub request_ids: RequestIds,
    /// The metrics of the listener's requests.
    pub metrics: HttpMetrics,
    /// The health of the server.
    pub health: Arc<Health>,
    /// The value of `Strict-Transport-Security` in answers over TLS (RFC 6797).
    pub hsts: Option<HeaderValue>,
}

/// Adds the request id and common headers, measures the time, and updates metrics and log.
pub async fn around(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let started = Instant::now();
    let Some(observer) = request.app_data::<Data<Observer>>().cloned() else {
        return next.call(request).await;
    };
    let peer = request.peer_addr().map(|peer| peer.ip());
    if let (Some(peer), Some(untrusted)) = (peer, &observer.untrusted_proxies) {
        untrusted.notice(peer, request.headers(), &observer.proxies);
    }
    let id = observer.request_ids.of(peer, request.headers(), &observer.proxies);
    let is_secure = request.extensions().contains::<Secure>();
    let mut response = next.call(request).await?;

    let (took, status) = (started.elapsed(), response.status());
    let name = response.request().app_data::<RouteName>().map(|name| name.0);
    let route = observer.metrics.count(name, status, took);
    log(&id, observer.listener, route, response.request().method(), status, took.as_micros());
    if observer.health.is_draining() {
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(hsts) = observer.hsts.as_ref().filter(|_| is_secure) {
        headers.insert(STRICT_TRANSPORT_SECURITY, hsts.clone());
    }
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    Ok(response)
}

fn log(
    request_id: &str,
    listener: &str,
    route: &str,
    method: &Method,
    status: StatusCode,
    took_us: u128,
) {
    let status = status.as_u16();
    // Logs the route's name, never the path, because callers control the path.
    if status >= 500 {
        tracing::warn!(request_id, listener, %method, route, status, took_us, "request failed");
    } else {
        tracing::debug!(request_id, listener, %method, route, status, took_us, "request answered");
    }
}
