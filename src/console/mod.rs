//! The operator's console and its JSON twins, on the operators' listener.
//!
//! * [`auth`]: who may look: a session opened with the master token, or the token itself
//! * [`now`], with [`history`] and [`chart`]: how the server lives
//! * [`servers`], [`codes`], [`audit`]: what each page shows, as a page and as JSON
//! * [`tuning`]: the settings, to see and to change
//! * [`heads`]: the log's head, signed every minute
//!
//! Deliberately absent: decisions. Changes go to the actors like everybody's.

pub mod audit;
pub mod auth;
pub mod chart;
pub mod codes;
pub mod heads;
pub mod history;
pub mod now;
pub mod servers;
pub mod tuning;

use crate::http::errors::ApiError;
use crate::http::page::error_page;
use crate::http::respond::failure;
use crate::http::state::State;
use actix_web::error::InternalError;
use actix_web::http::Method;
use actix_web::web::{Data, FormConfig, QueryConfig, ServiceConfig, resource, route};
use actix_web::{HttpRequest, HttpResponse, guard};
use auth::Sessions;
use iptunnel_actors::Failure;
use iptunnel_domain::Refusal;
use iptunnel_domain::audit::Head;
use iptunnel_storage::{ReadError, Store};

/// The pages, by their path and their name, in the order of the menu.
pub static PAGES: [(&str, &str); 5] = [
    ("now", "Now"),
    ("codes", "Codes"),
    ("servers", "Servers"),
    ("tuning", "Tuning"),
    ("audit", "Audit"),
];

/// What the console's handlers share.
pub struct Console {
    /// What the public handlers share.
    pub state: Data<State>,
    /// Who is logged in.
    pub sessions: Sessions,
    /// What the metrics said lately.
    pub history: std::sync::Arc<history::History>,
    /// The head of the audit log that was signed last.
    pub signed: std::sync::Mutex<Head>,
}

/// Reads from the store on a thread where that may take its time.
async fn read<T: Send + 'static>(
    console: &Console,
    read: impl FnOnce(&dyn Store) -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ApiError> {
    let store = std::sync::Arc::clone(console.state.handles.store());
    match actix_web::web::block(move || read(store.as_ref())).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => {
            tracing::error!(%error, "the console could not read");
            Err(Failure::StorageUnavailable.into())
        }
        Err(_) => Err(ApiError::internal()),
    }
}

/// An error as whoever asked wants it: a page or JSON.
fn failed(request: &HttpRequest, error: &ApiError) -> HttpResponse {
    if request.path().starts_with("/console") { error_page(error) } else { failure(error.clone()) }
}

/// A time as the API writes it, as people read it in a table: in UTC, like everything here.
fn time(rfc3339: &str) -> String {
    rfc3339.trim_end_matches("+00:00").replace('T', " ")
}

/// Pairs as the query of an address (WHATWG URL, `application/x-www-form-urlencoded`).
fn query_string(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// Where the page before ended; `None` on the first one.
fn parse_cursor(cursor: &str) -> Result<Option<u64>, ApiError> {
    if cursor.is_empty() {
        return Ok(None);
    }
    let words = "cursor must be a next_cursor of an earlier page.";
    cursor.parse().map(Some).map_err(|_| Refusal::InvalidField(words.into()).into())
}

/// Off to another page, after a form was sent.
fn see(path: &str) -> HttpResponse {
    HttpResponse::SeeOther().insert_header(("location", path)).finish()
}

async fn first_page() -> HttpResponse {
    see("/console/now")
}

/// The console's routes.
pub fn routes(config: &mut ServiceConfig) {
    use crate::http::{at, both};
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
        .service(at("/console/logout", "console", post.clone(), auth::logout))
        .service(at("/console/now", "console", get.clone(), now::page))
        .service(at("/console/now/live", "console", get.clone(), now::live))
        .service(at("/admin/now", "admin", get.clone(), now::json))
        .service(at("/console/servers", "console", get.clone(), servers::page))
        .service(at("/console/servers/revoke", "console", post.clone(), servers::revoke))
        .service(at("/console/servers/restore", "console", post.clone(), servers::restore))
        .service(at("/console/servers/note", "console", post.clone(), servers::note))
        .service(both("/console/codes", "console", codes::page, codes::find))
        .service(at("/console/codes/{code}", "console", get.clone(), codes::code_page))
        .service(at("/console/audit", "console", get.clone(), audit::page))
        .service(at("/console/audit/export", "console", get.clone(), audit::export))
        .service(both("/console/tuning", "console", tuning::page, tuning::change))
        .service(
            resource("/admin/config")
                .route(route().guard(guard::Get()).to(tuning::json_list))
                .route(route().guard(guard::Patch()).to(tuning::json_change)),
        )
        .service(at("/admin/servers", "admin", get.clone(), servers::json_list))
        .service(at(
            "/admin/servers/{server_id}/{verb}",
            "admin",
            post.clone(),
            servers::json_action,
        ))
        .service(at("/admin/codes", "admin", post, codes::json_find))
        .service(at("/admin/activations", "admin", get.clone(), codes::json_activations))
        .service(at("/admin/codes/{code}", "admin", get.clone(), codes::json_code))
        .service(at("/admin/audit", "admin", get.clone(), audit::json_list))
        .service(at("/admin/audit/export", "admin", get.clone(), audit::export))
        .service(at("/admin/audit/heads", "admin", get, heads::list));
}
