//! The public listener, for browsers, installers and registered servers. It makes no decisions.
//!
//! * [`pages`], [`session`], [`codes`]: a product's page, and the issue of codes;
//!   [`watch`]: live progress of a code; `shown_again`: what a reload of the page shows
//! * [`install`], [`servers`]: the API for installers and servers; [`field_limits`]: the maximum length
//!   of their fields
//! * [`setup`]: what a machine loads to install itself; [`scripts`]: the operator's files
//! * [`tickets`]: install tickets
//! * [`reference`](mod@reference): the API reference, made from the handlers; [`requests`]: request
//!   schemas for it
//! * [`installer`]: the main stack's installer and its version
//! * [`health`]: liveness and readiness

pub mod codes;
pub mod field_limits;
pub mod health;
pub mod install;
pub mod installer;
pub mod pages;
pub mod reference;
pub mod requests;
pub mod scripts;
pub mod servers;
pub mod session;
pub mod setup;
mod shown_again;
pub mod tickets;
pub mod watch;

use crate::config::Product;
use crate::http::access::{PUBLIC, REGISTER_V2, TICKETS};
use crate::http::page::{asset, asset_paths};
use crate::http::routing::{RouteName, Routes, nothing_here};
use crate::state::access::caller::PublicGate;
use actix_web::Route;
use actix_web::guard;
use actix_web::guard::GuardContext;
use actix_web::http::Method;
use actix_web::web::{Data, ServiceConfig, resource, route, scope};

/// The names of the public routes.
pub const ROUTES: [&str; 32] = [
    "activate",
    "address",
    "asset",
    "authorize",
    "check_in",
    "checkin",
    "confirm",
    "docs",
    "document",
    "events",
    "healthz",
    "install_script",
    "installer",
    "installer_version",
    "issue",
    "landing",
    "main_stack_healthz",
    "page",
    "payload",
    "precheck",
    "readyz",
    "register",
    "release",
    "revoke",
    "server",
    "server_action",
    "server_delete",
    "server_register",
    "servers",
    "status",
    "ticket_issue",
    "v2_installer_version",
];

/// The path of one server in the table of rules.
const SERVER: &str = "/api/v2/servers/{server_id}";

fn is_server(context: &GuardContext<'_>) -> bool {
    servers::v2::id_in(context.head().uri.path()).is_some()
}

/// Defines the public routes. All paths are fixed, because the router matches others by regular
/// expression.
pub fn routes(config: &mut ServiceConfig, products: &[Product]) {
    use Method as M;
    let routes = Routes::<PublicGate>::of(PUBLIC);
    for product in products {
        product_routes(config, product);
    }
    for path in asset_paths() {
        config.service(routes.file(&path, "/assets/{name}", "asset", asset));
    }
    // Other methods get 404 here: agents take a 405 for a server without this API.
    let of_server = |verb: &'static str, name: &'static str, route: Route| {
        let has_verb = move |context: &GuardContext<'_>| {
            servers::id_and_verb(context.head().uri.path()).is_some_and(|(_, last)| last == verb)
        };
        scope(servers::SERVERS)
            .guard(guard::Post())
            .guard(guard::fn_guard(has_verb))
            .app_data(RouteName(name))
            .default_service(route)
    };
    let check_in = "/api/v2/servers/{server_id}/check-in";
    let revoke = "/api/v2/servers/{server_id}/revoke";
    let restore = "/api/v2/servers/{server_id}/restore";
    config
        .service(of_server(
            "check-in",
            "check_in",
            routes.guarded(&M::POST, check_in, servers::v2_check_in),
        ))
        .service(of_server(
            "revoke",
            "server_action",
            routes.guarded(&M::POST, revoke, servers::server_revoke),
        ))
        .service(of_server(
            "restore",
            "server_action",
            routes.guarded(&M::POST, restore, servers::server_restore),
        ))
        .service(routes.at(servers::SERVERS, "servers", (M::GET, servers::v2::list)))
        .service(
            resource(REGISTER_V2.path)
                .app_data(RouteName("server_register"))
                .route(
                    routes
                        .guarded(&M::POST, REGISTER_V2.path, servers::v2::register)
                        .guard(guard::Post()),
                )
                .default_service(route().to(nothing_here)),
        )
        .service(
            scope(servers::SERVERS)
                .guard(guard::Any(guard::Get()).or(guard::Head()))
                .guard(guard::fn_guard(is_server))
                .app_data(RouteName("server"))
                .default_service(routes.guarded(&M::GET, SERVER, servers::v2::one)),
        )
        .service(
            scope(servers::SERVERS)
                .guard(guard::Delete())
                .guard(guard::fn_guard(is_server))
                .app_data(RouteName("server_delete"))
                .default_service(routes.guarded(&M::DELETE, SERVER, servers::v2::delete)),
        )
        .service(routes.at(TICKETS.path, "ticket_issue", (M::POST, tickets::issue)))
        .service(routes.at("/authorize", "authorize", (M::GET, tickets::authorize)))
        .service(routes.at("/api/v2/address", "address", (M::GET, setup::address)))
        .service(routes.at("/api/v2/healthz", "healthz", (M::GET, health::healthz)))
        .service(routes.at("/readyz", "readyz", (M::GET, health::readyz)))
        .service(routes.at("/docs", "docs", (M::GET, reference::handlers::page)))
        .service(routes.at(
            "/api/v2/openapi.json",
            "document",
            (M::GET, reference::handlers::document),
        ))
        .service(routes.at("/healthz", "main_stack_healthz", (M::GET, health::main_stack_healthz)))
        .service(routes.at(installer::SCRIPT, "installer", (M::GET, installer::installer)))
        .service(routes.at("/version.json", "installer_version", (M::GET, installer::version)))
        .service(routes.at(
            "/api/v2/version",
            "v2_installer_version",
            (M::GET, installer::v2_version),
        ))
        .service(routes.at("/register", "register", (M::POST, servers::register)))
        .service(routes.at("/checkin", "checkin", (M::POST, servers::legacy_check_in)))
        .service(routes.at("/revoke", "revoke", (M::POST, servers::legacy_revoke)))
        .service(routes.at("/status", "status", (M::GET, servers::listing::status)))
        .service(routes.at("/", "landing", (M::GET, pages::landing)))
        .default_service(route().to(nothing_here));
}

/// Defines the page and the install routes of one product.
fn product_routes(config: &mut ServiceConfig, product: &Product) {
    use Method as M;
    let routes = Routes::<PublicGate>::of(PUBLIC);
    let (routes, product) = (routes.of_product(&product.name), Data::new(product.clone()));
    let of_product = [
        routes.at("/api/v2/{product}/code/issue", "issue", (M::POST, codes::issue)),
        routes.at("/api/v2/{product}/install/precheck", "precheck", (M::POST, install::precheck)),
        routes.at("/api/v2/{product}/install/activate", "activate", (M::POST, install::activate)),
        routes.at("/api/v2/{product}/install/confirm", "confirm", (M::POST, install::confirm)),
        routes.at("/api/v2/{product}/install/release", "release", (M::POST, install::release)),
        routes.at("/api/v2/{product}/install/payload", "payload", (M::GET, setup::payload)),
        routes.at("/{product}/install.sh", "install_script", (M::GET, setup::install_script)),
        // GET shows the page; POST issues a code without a script.
        routes.both("/{product}", "page", (M::GET, codes::page), (M::POST, codes::issue_page)),
        routes.at("/{product}/events", "events", (M::GET, watch::events)),
    ];
    for route in of_product {
        config.service(route.app_data(product.clone()));
    }
}
