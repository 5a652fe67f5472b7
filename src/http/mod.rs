//! The HTTP edge: text to domain value, message, domain value to text. It decides nothing.
//!
//! * [`caller`]: who calls, and [`cross_site`], from where; [`body`]: what was sent; [`respond`] and [`errors`]: what is said back;
//!   [`catalogue`]: what errors mean
//! * [`codes`], [`install`], [`servers`]: the handlers, by whom they serve; [`page`]: the HTML
//! * [`watch`]: what happens to a code, live
//! * [`reference`](mod@reference): the API reference, made from the handlers
//! * [`admin`]: the operators' listener
//! * [`state`]: what they share; [`observed`]: what is counted

pub mod admin;
pub mod body;
pub mod caller;
pub mod catalogue;
pub mod codes;
pub mod cross_site;
pub mod errors;
pub mod install;
pub mod observed;
pub mod page;
pub mod reference;
pub mod respond;
pub mod servers;
pub mod state;
pub mod watch;

use crate::config::Product;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::guard::GuardContext;
use actix_web::http::ConnectionType;
use actix_web::http::header::{HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::web::{Data, ServiceConfig, resource, route, scope};
use actix_web::{Error, Handler, HttpRequest, HttpResponse, Resource, Responder, guard};
use errors::ApiError;
use respond::{Success, failure_for, method_not_allowed, success};
use serde::Serialize;
use state::State;
use std::time::Instant;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
struct Health {
    #[schema(pattern = "^ok$", examples("ok"))]
    status: &'static str,
}

#[utoipa::path(
    get,
    path = "/api/v2/healthz",
    operation_id = "healthz",
    tag = "Health",
    summary = "Health check",
    description = "Says that the server answers.",
    responses((status = 200, description = "It does.", body = Success<Health>)),
)]
async fn healthz() -> HttpResponse {
    success(StatusCode::OK, Health { status: "ok" }, "OK")
}

#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "readyz",
    tag = "Health",
    summary = "Readiness",
    description = "Says whether requests should be sent here.",
    responses(
        (
            status = 200,
            description = "They should.",
            body = String,
            content_type = "text/plain",
            example = "ready\n",
        ),
        (
            status = 503,
            description = "They should not: the server is stopping, or cannot store anything.",
            body = String,
            content_type = "text/plain",
            example = "not ready\n",
        ),
    ),
)]
async fn public_readyz(state: Data<State>) -> HttpResponse {
    admin::readiness(&state.health)
}

async fn nothing_here(request: HttpRequest) -> HttpResponse {
    failure_for(&request, ApiError::not_found())
}

/// What a route is called in metrics and log.
#[derive(Clone, Copy)]
struct RouteName(&'static str);

/// A path with one method; 405 for every other method.
pub(crate) fn at<F, Args>(path: &str, name: &'static str, method: Method, handler: F) -> Resource
where
    F: Handler<Args>,
    Args: actix_web::FromRequest + 'static,
    F::Output: Responder + 'static,
{
    let allowed: &'static [Method] =
        if method == Method::GET { &[Method::GET, Method::HEAD] } else { &[Method::POST] };
    let only = guard::fn_guard(move |context| allowed.contains(&context.head().method));
    at_all(path, name, allowed).route(route().guard(only).to(handler))
}

/// A path whose routes are still to be added; 405 for every method that is not `allowed`.
fn at_all(path: &str, name: &'static str, allowed: &'static [Method]) -> Resource {
    resource(path).app_data(RouteName(name)).default_service(
        route()
            .to(move |request: HttpRequest| async move { method_not_allowed(&request, allowed) }),
    )
}

/// A path to look at, and to send a form to.
pub(crate) fn both<F, A, G, B>(path: &str, name: &'static str, look: F, send: G) -> Resource
where
    F: Handler<A>,
    A: actix_web::FromRequest + 'static,
    F::Output: Responder + 'static,
    G: Handler<B>,
    B: actix_web::FromRequest + 'static,
    G::Output: Responder + 'static,
{
    let read = guard::Any(guard::Get()).or(guard::Head());
    at_all(path, name, &[Method::GET, Method::HEAD, Method::POST])
        .route(route().guard(read).to(look))
        .route(route().guard(guard::Post()).to(send))
}

/// The page of a product: to look at, and to ask for a code without a script.
fn page_at(path: &str) -> Resource {
    both(path, "page", codes::page, codes::issue_page)
}

async fn landing(state: Data<State>) -> HttpResponse {
    page::landing(&state.config.load().products)
}

/// The names of the public routes.
pub const ROUTES: [&str; 19] = [
    "activate",
    "asset",
    "check_in",
    "checkin",
    "confirm",
    "docs",
    "document",
    "events",
    "healthz",
    "issue",
    "landing",
    "page",
    "precheck",
    "readyz",
    "register",
    "release",
    "revoke",
    "server_action",
    "status",
];

/// The public routes. All paths are fixed: the router would look for others by regular expression.
pub fn public(config: &mut ServiceConfig, products: &[Product]) {
    use Method as M;
    for product in products {
        product_routes(config, product);
    }
    for path in page::asset_paths() {
        config.service(at(&path, "asset", M::GET, page::asset));
    }
    let is_check_in =
        |context: &GuardContext<'_>| context.head().uri.path().ends_with(servers::CHECK_IN);
    // Here another method is nothing at all: agents take 405 for a server of another kind.
    config
        .service(
            scope(servers::SERVERS)
                .guard(guard::Post())
                .guard(guard::fn_guard(is_check_in))
                .app_data(RouteName("check_in"))
                .default_service(route().to(servers::v2_check_in)),
        )
        .service(
            scope(servers::SERVERS)
                .guard(guard::Post())
                .app_data(RouteName("server_action"))
                .default_service(route().to(servers::v2_action)),
        )
        .service(at("/api/v2/healthz", "healthz", M::GET, healthz))
        .service(at("/readyz", "readyz", M::GET, public_readyz))
        .service(at("/docs", "docs", M::GET, reference::page))
        .service(at("/api/v2/openapi.json", "document", M::GET, reference::document))
        .service(at("/register", "register", M::POST, servers::register))
        .service(at("/checkin", "checkin", M::POST, servers::legacy_check_in))
        .service(at("/revoke", "revoke", M::POST, servers::legacy_revoke))
        .service(at("/status", "status", M::GET, servers::listing::status))
        .service(at("/", "landing", M::GET, landing))
        .default_service(route().to(nothing_here));
}

/// The page and the four steps of one product.
fn product_routes(config: &mut ServiceConfig, product: &Product) {
    use Method as M;
    let (name, product) = (&product.name, Data::new(product.clone()));
    let path = |rest: &str| format!("/api/v2/{name}/{rest}");
    let routes = [
        at(&path("code/issue"), "issue", M::POST, codes::issue),
        at(&path("install/precheck"), "precheck", M::POST, install::precheck),
        at(&path("install/activate"), "activate", M::POST, install::activate),
        at(&path("install/confirm"), "confirm", M::POST, install::confirm),
        at(&path("install/release"), "release", M::POST, install::release),
        page_at(&format!("/{name}")),
        at(&format!("/{name}/events"), "events", M::GET, watch::events),
    ];
    for route in routes {
        config.service(route.app_data(product.clone()));
    }
}

/// The operators' routes.
pub fn operators(config: &mut ServiceConfig) {
    for path in page::asset_paths() {
        config.service(at(&path, "asset", Method::GET, page::asset));
    }
    config
        .service(at("/livez", "livez", Method::GET, admin::livez))
        .service(at("/readyz", "readyz", Method::GET, admin::readyz))
        .service(at("/metrics", "metrics", Method::GET, admin::metrics))
        .configure(crate::console::routes)
        .default_service(route().to(nothing_here));
}

/// What goes around every public request: its id, its time, its place in the metrics and the log.
pub async fn around(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let started = Instant::now();
    let Some(state) = request.app_data::<Data<State>>().cloned() else {
        return next.call(request).await;
    };
    let peer = request.peer_addr().map(|peer| peer.ip());
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
    // The route's name, never the path: a path can hold whatever a caller writes.
    if status >= 500 {
        tracing::warn!(request_id, %method, route, status, took_us, "request failed");
    } else {
        tracing::debug!(request_id, %method, route, status, took_us, "request answered");
    }
}
