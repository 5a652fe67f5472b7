//! The operators' listener: health, metrics, the console pages and the same data as JSON.
//!
//! * [`health`]: liveness, readiness, metrics
//! * [`auth`]: access control: the master token, or a session of the console ([`sessions`], [`session_list`])
//! * [`now`], with [`history`] and [`chart`]: the current load and its history
//! * [`servers`], [`codes`], [`activations`], [`audit`]: the data of each page, as HTML and as JSON
//! * [`settings`]: view and change of settings
//! * [`signed_heads`]: the head of the audit log, signed every minute
//! * [`socket`]: the same routes for the command line, without a token; [`console`]: shared state and
//!   helpers
//!
//! This module makes no decisions. Changes go to the actors, like those of the public listener.

pub mod activations;
pub mod audit;
pub mod auth;
pub mod chart;
pub mod codes;
pub mod console;
pub mod health;
pub mod history;
pub mod now;
pub mod servers;
pub mod session_list;
pub mod sessions;
pub mod settings;
pub mod signed_heads;
pub mod socket;

use crate::http::page::{asset, asset_paths};
use crate::http::routing::{RouteName, at, both, nothing_here};
use actix_web::error::InternalError;
use actix_web::http::Method;
use actix_web::web::{FormConfig, QueryConfig, ServiceConfig, resource, route, scope};
use actix_web::{HttpRequest, HttpResponse, Scope, guard};
use console::{failed, see};
use iptunnel_domain::Refusal;

/// The names of the operators' routes.
pub const ROUTES: [&str; 6] = ["admin", "asset", "console", "livez", "metrics", "readyz"];

/// Defines the operators' routes.
pub fn routes(config: &mut ServiceConfig) {
    for path in asset_paths() {
        config.service(at(&path, "asset", Method::GET, asset));
    }
    config
        .service(at("/livez", "livez", Method::GET, health::livez))
        .service(at("/readyz", "readyz", Method::GET, health::readyz))
        .service(at("/metrics", "metrics", Method::GET, health::metrics))
        .configure(console_routes)
        .default_service(route().to(nothing_here));
}

async fn first_page() -> HttpResponse {
    see("/console/login")
}

/// Defines the console's pages. The key of the session is a part of their addresses.
fn pages_of_session() -> Scope {
    let (get, post) = (Method::GET, Method::POST);
    scope("/console/{key}")
        .service(at("/logout", "console", post.clone(), auth::logout))
        .service(at("/now", "console", get.clone(), now::page))
        .service(at("/now/live", "console", get.clone(), now::live))
        .service(at("/servers", "console", get.clone(), servers::page))
        .service(at("/servers/revoke", "console", post.clone(), servers::revoke))
        .service(at("/servers/restore", "console", post.clone(), servers::restore))
        .service(at("/servers/note", "console", post.clone(), servers::note))
        .service(both("/codes", "console", codes::page, codes::find))
        .service(at("/codes/{code}", "console", get.clone(), codes::code_page))
        .service(at("/audit", "console", get.clone(), audit::page))
        .service(at("/audit/export", "console", get.clone(), audit::export))
        .service(both("/settings", "console", settings::page, settings::change))
        .service(at("/sessions", "console", get, session_list::page))
        .service(at("/sessions/end", "console", post, session_list::end_one))
}

/// Defines the console and the JSON routes.
fn console_routes(config: &mut ServiceConfig) {
    let (get, post) = (Method::GET, Method::POST);
    let unusable = |request: &HttpRequest, words: String| {
        let answer = failed(request, &Refusal::InvalidField(words).into());
        InternalError::from_response("an unusable request", answer).into()
    };
    config
        .app_data(FormConfig::default().error_handler(move |error, request| {
            unusable(request, format!("The form cannot be read: {error}."))
        }))
        .app_data(QueryConfig::default().error_handler(move |error, request| {
            unusable(request, format!("The query cannot be read: {error}."))
        }))
        .service(at("/", "console", get.clone(), first_page))
        .service(at("/console", "console", get.clone(), first_page))
        .service(both("/console/login", "console", auth::login_page, auth::login))
        // A page's address without the key of a session, such as an old bookmark.
        .service(at("/console/{page}", "console", get.clone(), first_page))
        .service(pages_of_session())
        .service(at("/admin/now", "admin", get.clone(), now::json))
        .service(at("/admin/sessions", "admin", get.clone(), session_list::json_list))
        .service(at("/admin/sessions/{id}/end", "admin", post.clone(), session_list::json_end))
        .service(
            resource("/admin/config")
                .app_data(RouteName("admin"))
                .route(route().guard(guard::Get()).to(settings::json_list))
                .route(route().guard(guard::Patch()).to(settings::json_change)),
        )
        .service(at("/admin/servers", "admin", get.clone(), servers::json_list))
        .service(at(
            "/admin/servers/{server_id}/{verb}",
            "admin",
            post.clone(),
            servers::json_action,
        ))
        .service(at("/admin/codes", "admin", post, codes::json_find))
        .service(at("/admin/activations", "admin", get.clone(), activations::json_list))
        .service(at("/admin/codes/{code}", "admin", get.clone(), codes::json_code))
        .service(at("/admin/audit", "admin", get.clone(), audit::json_list))
        .service(at("/admin/audit/export", "admin", get.clone(), audit::export))
        .service(at("/admin/audit/public-key", "admin", get.clone(), signed_heads::public_key))
        .service(at("/admin/audit/heads", "admin", get, signed_heads::list));
}
