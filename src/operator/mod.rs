//! The operators' listener: health, metrics, the console pages and the same data as JSON.
//!
//! * [`health`]: liveness, readiness, metrics
//! * [`auth`]: access control: a token, or a session of the console ([`sessions`], [`session_list`])
//! * [`now`], with [`history`] and [`chart`]: the current load and its history
//! * [`kept_file`]: what sessions and charts keep over a restart
//! * [`faults`]: what is wrong at present
//! * [`server_changes`]: what operators change about servers
//! * [`servers`], [`codes`], [`activations`], [`audit`]: the data of each page, as HTML and as JSON
//! * [`backup`]: makes backups
//! * [`import`]: takes over servers from another server
//! * [`settings`]: view and change of settings
//! * [`tokens`]: access tokens
//! * [`webhooks`]: how the receivers of webhooks are, and sending again
//! * [`words`]: times, actions and states in words
//! * [`signed_heads`]: the head of the audit log, signed every minute
//! * [`socket`]: the same routes for the command line, without a token; [`console`]: shared state and
//!   helpers
//!
//! This module makes no decisions. Changes go to the actors, like those of the public listener.

pub mod activations;
pub mod audit;
pub mod auth;
pub mod backup;
pub mod chart;
pub mod codes;
pub mod console;
pub mod faults;
pub mod health;
pub mod history;
pub mod import;
pub mod kept_file;
pub mod now;
pub mod server_changes;
pub mod servers;
pub mod session_list;
pub mod sessions;
pub mod settings;
pub mod signed_heads;
pub mod socket;
pub mod tokens;
pub mod webhooks;
pub mod words;

use crate::http::access::OPERATORS;
use crate::http::body::MAX_BODY;
use crate::http::page::{asset, asset_paths};
use crate::http::routing::{Routes, nothing_here};
use actix_web::error::{InternalError, UrlencodedError};
use actix_web::http::Method;
use actix_web::web::{FormConfig, QueryConfig, ServiceConfig, route, scope};
use actix_web::{HttpRequest, HttpResponse, Scope};
use auth::Operator;
use console::{failed, see};
use iptunnel_domain::Refusal;

/// The names of the operators' routes.
pub const ROUTES: [&str; 6] = ["admin", "asset", "console", "livez", "metrics", "readyz"];

type OperatorsRoutes = Routes<'static, Operator>;

/// Defines the operators' routes.
pub fn routes(config: &mut ServiceConfig) {
    let (routes, get) = (OperatorsRoutes::of(OPERATORS), Method::GET);
    for path in asset_paths() {
        config.service(routes.file(&path, "/assets/{name}", "asset", asset));
    }
    config
        .service(routes.at("/livez", "livez", (get.clone(), health::livez)))
        .service(routes.at("/readyz", "readyz", (get.clone(), health::readyz)))
        .service(routes.at("/metrics", "metrics", (get, health::metrics)))
        .configure(|config| console_routes(&routes, config))
        .default_service(route().to(nothing_here));
}

async fn first_page() -> HttpResponse {
    see("/console/login")
}

/// Defines the console's pages. The key of the session is a part of their addresses.
fn pages_of_session(routes: &OperatorsRoutes) -> Scope {
    let (get, post) = (|| Method::GET, || Method::POST);
    let scope_of_session = "/console/{key}";
    let routes = routes.in_scope(scope_of_session);
    scope(scope_of_session)
        .service(routes.at("/logout", "console", (post(), auth::logout)))
        .service(routes.at("/now", "console", (get(), now::page)))
        .service(routes.at("/now/live", "console", (get(), now::live)))
        .service(routes.at("/load", "console", (get(), now::load_page)))
        .service(routes.at("/load/live", "console", (get(), now::load_live)))
        .service(routes.at("/servers", "console", (get(), servers::page)))
        .service(routes.at("/servers/revoke", "console", (post(), server_changes::revoke)))
        .service(routes.at("/servers/restore", "console", (post(), server_changes::restore)))
        .service(routes.at("/servers/note", "console", (post(), server_changes::note)))
        .service(routes.at("/servers/delete", "console", (post(), server_changes::delete_one)))
        .service(routes.at("/servers/several", "console", (post(), server_changes::several)))
        .service(routes.both(
            "/servers/unseen",
            "console",
            (get(), server_changes::unseen),
            (post(), server_changes::delete_all_unseen),
        ))
        .service(routes.both("/codes", "console", (get(), codes::page), (post(), codes::find)))
        .service(routes.at("/codes/{code}", "console", (get(), codes::code_page)))
        .service(routes.at("/audit", "console", (get(), audit::page)))
        .service(routes.at("/audit/export", "console", (get(), audit::export)))
        .service(routes.both(
            "/settings",
            "console",
            (get(), settings::page),
            (post(), settings::change),
        ))
        .service(routes.at("/access", "console", (get(), tokens::page::page)))
        .service(routes.at("/access/create", "console", (post(), tokens::page::create)))
        .service(routes.at("/access/change", "console", (post(), tokens::page::change)))
        .service(routes.at("/access/rotate", "console", (post(), tokens::page::rotate)))
        .service(routes.at("/access/revoke", "console", (post(), tokens::page::revoke)))
        .service(routes.at(
            "/access/revoke-servers",
            "console",
            (post(), tokens::page::revoke_enrolled),
        ))
        .service(routes.at("/webhooks", "console", (get(), webhooks::page)))
        .service(routes.at("/webhooks/replay", "console", (post(), webhooks::page_replay)))
        .service(routes.at("/webhooks/enable", "console", (post(), webhooks::page_enable)))
        .service(routes.at("/webhooks/test", "console", (post(), webhooks::page_test)))
        .service(routes.at("/sessions", "console", (get(), session_list::page)))
        .service(routes.at("/sessions/end", "console", (post(), session_list::end_one)))
}

/// Defines the console and the JSON routes.
fn console_routes(routes: &OperatorsRoutes, config: &mut ServiceConfig) {
    let (get, post) = (|| Method::GET, || Method::POST);
    let unusable = |request: &HttpRequest, refusal: Refusal| {
        let answer = failed(request, &refusal.into());
        InternalError::from_response("an unusable request", answer).into()
    };
    // Some errors of the parsers end with a full stop.
    let why = |what: &str, error: String| {
        let error = error.trim_end_matches('.');
        Refusal::InvalidField(format!("The {what} cannot be read: {error}."))
    };
    config
        .app_data(FormConfig::default().limit(MAX_BODY).error_handler(move |error, request| {
            let refusal = match error {
                UrlencodedError::Overflow { .. } => Refusal::BodyTooLarge,
                error => why("form", error.to_string()),
            };
            unusable(request, refusal)
        }))
        .app_data(QueryConfig::default().error_handler(move |error, request| {
            unusable(request, why("query", error.to_string()))
        }))
        .service(routes.at("/", "console", (get(), first_page)))
        .service(routes.at("/console", "console", (get(), first_page)))
        .service(routes.both(
            "/console/login",
            "console",
            (get(), auth::login_page),
            (post(), auth::login),
        ))
        // A page's address without the key of a session, such as an old bookmark.
        .service(routes.at("/console/{page}", "console", (get(), first_page)))
        .service(pages_of_session(routes))
        .service(routes.at("/admin/now", "admin", (get(), now::json)))
        .service(routes.at("/admin/sessions", "admin", (get(), session_list::json_list)))
        .service(routes.at("/admin/sessions/{id}/end", "admin", (post(), session_list::json_end)))
        .service(routes.both(
            "/admin/config",
            "admin",
            (get(), settings::json_list),
            (Method::PATCH, settings::json_change),
        ))
        .service(routes.both(
            "/admin/tokens",
            "admin",
            (get(), tokens::json::list),
            (post(), tokens::json::create),
        ))
        .service(routes.at("/admin/tokens/{id}", "admin", (Method::PATCH, tokens::json::change)))
        .service(routes.at("/admin/tokens/{id}/rotate", "admin", (post(), tokens::json::rotate)))
        .service(routes.at("/admin/tokens/{id}/revoke", "admin", (post(), tokens::json::revoke)))
        .service(routes.at("/admin/servers", "admin", (get(), servers::json_list)))
        .service(routes.at(
            "/admin/servers/{server_id}/{verb}",
            "admin",
            (post(), server_changes::json_action),
        ))
        .service(routes.at(
            "/admin/servers/several",
            "admin",
            (post(), server_changes::json_several),
        ))
        .service(routes.both(
            "/admin/servers/unseen",
            "admin",
            (get(), server_changes::json_unseen),
            (post(), server_changes::json_delete_unseen),
        ))
        .service(routes.both(
            "/admin/backup",
            "admin",
            (get(), backup::json_show),
            (post(), backup::json_make),
        ))
        .service(routes.at("/admin/webhooks", "admin", (get(), webhooks::json_list)))
        .service(routes.at("/admin/webhooks/dead", "admin", (get(), webhooks::json_dead)))
        .service(routes.at("/admin/webhooks/{name}/test", "admin", (post(), webhooks::json_test)))
        .service(routes.at(
            "/admin/webhooks/{name}/replay",
            "admin",
            (post(), webhooks::json_replay),
        ))
        .service(routes.at(
            "/admin/webhooks/{name}/enable",
            "admin",
            (post(), webhooks::json_enable),
        ))
        .service(routes.at("/admin/import", "admin", (post(), import::json_import)))
        .service(routes.at("/admin/codes", "admin", (post(), codes::json_find)))
        .service(routes.at("/admin/activations", "admin", (get(), activations::json_list)))
        .service(routes.at("/admin/codes/{code}", "admin", (get(), codes::json_code)))
        .service(routes.at("/admin/audit", "admin", (get(), audit::json_list)))
        .service(routes.at("/admin/audit/export", "admin", (get(), audit::export)))
        .service(routes.at("/admin/audit/public-key", "admin", (get(), signed_heads::public_key)))
        .service(routes.at("/admin/audit/heads", "admin", (get(), signed_heads::list)));
}
