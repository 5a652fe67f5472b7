//! The public listener, for browsers, installers and registered servers. It makes no decisions.
//!
//! * [`pages`], [`session`], [`codes`]: a product's page, and the issue of codes;
//!   [`watch`]: live progress of a code
//! * [`install`], [`servers`]: the API for installers and servers; [`field_limits`]: the maximum length
//!   of their fields
//! * [`reference`](mod@reference): the API reference, made from the handlers; [`requests`]: request
//!   schemas for it
//! * [`health`]: liveness and readiness

pub mod codes;
pub mod field_limits;
pub mod health;
pub mod install;
pub mod pages;
pub mod reference;
pub mod requests;
pub mod servers;
pub mod session;
pub mod watch;

use crate::config::Product;
use crate::http::page::{asset, asset_paths};
use crate::http::routing::{RouteName, at, both, nothing_here};
use actix_web::guard;
use actix_web::guard::GuardContext;
use actix_web::http::Method;
use actix_web::web::{Data, ServiceConfig, route, scope};

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

/// Defines the public routes. All paths are fixed, because the router matches others by regular
/// expression.
pub fn routes(config: &mut ServiceConfig, products: &[Product]) {
    use Method as M;
    for product in products {
        product_routes(config, product);
    }
    for path in asset_paths() {
        config.service(at(&path, "asset", M::GET, asset));
    }
    let is_check_in =
        |context: &GuardContext<'_>| context.head().uri.path().ends_with(servers::CHECK_IN);
    // Other methods get 404 here: agents take a 405 for a server without this API.
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
        .service(at("/api/v2/healthz", "healthz", M::GET, health::healthz))
        .service(at("/readyz", "readyz", M::GET, health::readyz))
        .service(at("/docs", "docs", M::GET, reference::handlers::page))
        .service(at("/api/v2/openapi.json", "document", M::GET, reference::handlers::document))
        .service(at("/register", "register", M::POST, servers::register))
        .service(at("/checkin", "checkin", M::POST, servers::legacy_check_in))
        .service(at("/revoke", "revoke", M::POST, servers::legacy_revoke))
        .service(at("/status", "status", M::GET, servers::listing::status))
        .service(at("/", "landing", M::GET, pages::landing))
        .default_service(route().to(nothing_here));
}

/// Defines the page and the install routes of one product.
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
        // GET shows the page; POST issues a code without a script.
        both(&format!("/{name}"), "page", codes::page, codes::issue_page),
        at(&format!("/{name}/events"), "events", M::GET, watch::events),
    ];
    for route in routes {
        config.service(route.app_data(product.clone()));
    }
}
