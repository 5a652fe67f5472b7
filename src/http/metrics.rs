//! HTTP metrics: requests by route and status, and their duration.

use actix_web::http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::OnceLock;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteStatus {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: &'static str,
}

/// The label for requests without a route.
const NO_ROUTE: &str = "none";

/// The HTTP metrics.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    requests: Family<RouteStatus, Counter>,
    routes: Vec<OfRoute>,
    elsewhere: OfRoute,
}

/// The metrics of one route. They are looked up once, so that counting an answer does not lock the family.
#[derive(Clone, Debug)]
struct OfRoute {
    name: &'static str,
    seconds: Histogram,
    /// The first status of a success, and its counter: a route has seldom two.
    success: OnceLock<(StatusCode, Counter)>,
}

/// Makes a histogram with buckets from 50 µs to 3.3 s, each twice the one before.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 17))
}

impl HttpMetrics {
    /// Makes the metrics of one listener for these routes, and registers them.
    pub fn new(registry: &mut Registry, routes: &[&'static str]) -> Self {
        let requests = Family::default();
        registry.register("http_requests", "Requests answered", requests.clone());
        let family = Family::<Route, Histogram>::new_with_constructor(seconds);
        registry.register_with_unit(
            "http_request",
            "Time from the head of a request to the head of its answer",
            Unit::Seconds,
            family.clone(),
        );
        let of = |route| OfRoute {
            name: route,
            seconds: family.get_or_create_owned(&Route { route }),
            success: OnceLock::new(),
        };
        let routes = routes.iter().map(|route| of(route)).collect();
        Self { requests, routes, elsewhere: of(NO_ROUTE) }
    }

    /// Counts an answered request. Returns the route's name as it appears in the metrics.
    pub fn count(&self, route: Option<&str>, status: StatusCode, took: Duration) -> &'static str {
        let known = self.routes.iter().find(|of| Some(of.name) == route);
        let of = known.unwrap_or(&self.elsewhere);
        of.seconds.observe(took.as_secs_f64());
        let counter = || {
            let labels = RouteStatus { route: of.name, status: status.as_u16() };
            self.requests.get_or_create_owned(&labels)
        };
        if status.is_success() {
            let (first, success) = of.success.get_or_init(|| (status, counter()));
            if *first == status {
                success.inc();
                return of.name;
            }
        }
        counter().inc();
        of.name
    }
}
