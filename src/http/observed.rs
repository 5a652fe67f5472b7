//! What is counted at the edge: requests by route and status, and how long they took.

use actix_web::http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteStatus {
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

/// The counters.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    requests: Family<RouteStatus, Counter>,
    seconds: Family<Route, Histogram>,
}

/// 50 µs to 3.3 s, doubling.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 17))
}

impl HttpMetrics {
    /// Makes the metrics and enters them into `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let it =
            Self { requests: Family::default(), seconds: Family::new_with_constructor(seconds) };
        registry.register("http_requests", "Requests answered", it.requests.clone());
        registry.register_with_unit(
            "http_request",
            "Time from the head of a request to the head of its answer",
            Unit::Seconds,
            it.seconds.clone(),
        );
        it
    }

    /// One request to a route of this name was answered.
    pub fn count(&self, route: &str, status: StatusCode, took: Duration) {
        let label = RouteStatus { route: route.to_owned(), status: status.as_u16() };
        self.requests.get_or_create(&label).inc();
        let label = Route { route: label.route };
        self.seconds.get_or_create(&label).observe(took.as_secs_f64());
    }
}
