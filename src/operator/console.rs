//! What the console's handlers share.

use super::history::History;
use super::sessions::Sessions;
use crate::http::errors::ApiError;
use crate::http::page::error_page;
use crate::http::respond::failure;
use crate::state::State;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_actors::Failure;
use iptunnel_domain::Refusal;
use iptunnel_domain::audit::Head;
use iptunnel_storage::{ReadError, Store};
use prometheus_client::registry::Registry;
use std::sync::{Arc, Mutex};

/// The pages, by their path and their name, in the order of the menu.
pub static PAGES: [(&str, &str); 5] = [
    ("now", "Now"),
    ("codes", "Codes"),
    ("servers", "Servers"),
    ("settings", "Settings"),
    ("audit", "Audit"),
];

/// What the console's handlers share.
pub struct Console {
    /// What the public handlers share.
    pub state: Data<State>,
    /// Everything that is counted.
    pub registry: Arc<Registry>,
    /// Who is logged in.
    pub sessions: Sessions,
    /// What the metrics said lately.
    pub history: Arc<History>,
    /// The head of the audit log that was signed last.
    pub signed: Mutex<Head>,
}

/// Reads from the store on a thread where that may take its time.
///
/// # Errors
/// Where the store cannot be read.
pub async fn read<T: Send + 'static>(
    console: &Console,
    read: impl FnOnce(&dyn Store) -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ApiError> {
    let store = Arc::clone(console.state.handles.store());
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
pub fn failed(request: &HttpRequest, error: &ApiError) -> HttpResponse {
    if request.path().starts_with("/console") { error_page(error) } else { failure(error.clone()) }
}

/// A time as the API writes it, as people read it in a table: in UTC, like everything here.
pub fn time(rfc3339: &str) -> String {
    rfc3339.trim_end_matches("+00:00").replace('T', " ")
}

/// Pairs as the query of an address (WHATWG URL, `application/x-www-form-urlencoded`).
pub fn query_string(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// Where the page before ended; `None` on the first one.
///
/// # Errors
/// Where that is no cursor.
pub fn parse_cursor(cursor: &str) -> Result<Option<u64>, ApiError> {
    if cursor.is_empty() {
        return Ok(None);
    }
    let words = "cursor must be a next_cursor of an earlier page.";
    cursor.parse().map(Some).map_err(|_| Refusal::InvalidField(words.into()).into())
}

/// Off to another page, after a form was sent.
pub fn see(path: &str) -> HttpResponse {
    HttpResponse::SeeOther().insert_header(("location", path)).finish()
}
