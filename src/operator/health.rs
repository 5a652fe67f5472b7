//! Liveness, readiness and metrics, and what holds for every request: the check of the `Host` header and
//! the deadline of bodies.

use super::console::{Console, failed};
use crate::http::body::in_time;
use crate::http::errors::ApiError;
use crate::http::respond::{legacy_failure, readiness, text};
use crate::http::tls::Secure;
use actix_web::body::MessageBody;
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::{StatusCode, Uri};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpMessage, HttpResponse};
use iptunnel_actors::Health;
use iptunnel_domain::Refusal;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use std::cell::Cell;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

/// `GET /livez`: the process runs.
pub async fn livez() -> HttpResponse {
    text(StatusCode::OK, "ok\n")
}

/// `GET /readyz`
pub async fn readyz(console: Data<Console>) -> HttpResponse {
    readiness(&console.state.health)
}

/// The metric of readiness, as of the moment at which it is asked for.
#[derive(Debug)]
pub struct Readiness(pub Arc<Health>);

impl Collector for Readiness {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let ready = ConstGauge::new(i64::from(self.0.is_ready()));
        let (help, kind) = ("1 if the server is ready, as /readyz says it", ready.metric_type());
        ready.encode(encoder.encode_descriptor("ready", help, None, kind)?)
    }
}

/// `GET /metrics`, in the OpenMetrics text form that Prometheus reads.
pub async fn metrics(console: Data<Console>) -> HttpResponse {
    let mut body = String::new();
    match prometheus_client::encoding::text::encode(&mut body, &console.registry) {
        Ok(()) => HttpResponse::Ok()
            .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
            .body(body),
        Err(_) => legacy_failure(ApiError::internal()),
    }
}

/// Returns whether a `Host` is accepted without TLS: an IP address, `localhost`, or no header. This stops DNS
/// rebinding: a foreign page whose name resolves to this listener sends its own name. Over TLS its browser has
/// refused the certificate.
fn knows_host(host: Option<&str>) -> bool {
    let Some(host) = host else { return true };
    let name = host.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    name.is_some_and(|name| {
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
    })
}

/// Refuses requests whose `Host` is not accepted.
pub async fn refuse_unknown_hosts(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let host = request.headers().get("host").map(|host| host.to_str().unwrap_or("?"));
    if knows_host(host) || request.extensions().contains::<Secure>() {
        return Ok(next.call(request).await?.map_into_left_body());
    }
    let error = ApiError::unknown_host();
    Ok(request.into_response(legacy_failure(error)).map_into_right_body())
}

/// Gives every body the deadline of a request, and refuses requests whose body comes later. On the
/// public listener the handlers do it.
pub async fn bodies_arrive_in_time(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let deadline = request
        .app_data::<Data<Console>>()
        .map(|console| console.state.live.patience())
        .unwrap_or_default();
    let body = request.take_payload();
    let is_late = Rc::new(Cell::new(false));
    if !matches!(body, Payload::None) {
        request.set_payload(in_time(body, deadline, Rc::clone(&is_late)));
    }
    let response = next.call(request).await?;
    if is_late.get() {
        // Handlers are called with whole bodies alone: nothing has happened.
        let refused = failed(response.request(), &Refusal::BodyTooSlow.into());
        return Ok(response.into_response(refused).map_into_right_body());
    }
    Ok(response.map_into_left_body())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_accepted_as_host() {
        for known in ["127.0.0.1", "127.0.0.1:9090", "localhost:9090", "[::1]:9090", "10.0.0.7"] {
            assert!(knows_host(Some(known)), "{known}");
        }
        assert!(knows_host(None));
        for unknown in ["evil.example.com", "evil.example.com:9090", "127.0.0.1.evil.com", "", "?"]
        {
            assert!(!knows_host(Some(unknown)), "{unknown}");
        }
    }
}
