//! State and helpers that the console's handlers share.

use super::history::History;
use super::sessions::{Session, Sessions};
use crate::http::errors::ApiError;
use crate::http::page::error_page;
use crate::http::respond::failure;
use crate::state::State;
use crate::state::access::caller::Identity;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_domain::audit::{Action, Actor, Event, Head};
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::{ReadError, Store};
use prometheus_client::registry::Registry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// The pages: path and name, in the order of the menu.
pub static PAGES: [(&str, &str); 8] = [
    ("now", "Now"),
    ("codes", "Codes"),
    ("servers", "Servers"),
    ("settings", "Settings"),
    ("audit", "Audit"),
    ("access", "Access"),
    ("sessions", "Sessions"),
    ("load", "Load"),
];

/// The state that the console's handlers share.
pub struct Console {
    /// The state of the public handlers.
    pub state: Data<State>,
    /// All metrics.
    pub registry: Arc<Registry>,
    /// The login sessions.
    pub sessions: Sessions,
    /// Recent values of the metrics.
    pub history: Arc<History>,
    /// When the server started.
    pub started: Instant,
    /// The last signed head of the audit log.
    pub signed: Mutex<Head>,
}

impl Console {
    /// Returns a function that tells whether the token with a keyed hash is good. It does not look at
    /// networks: a session that is used from elsewhere is refused, and goes on.
    fn is_good(&self, now: Timestamp) -> impl Fn(&KeyedHash) -> bool + '_ {
        move |secret| matches!(self.state.access.holder(secret, None, now), Identity::Known(_))
    }

    /// Opens a session.
    pub fn open_session(&self, cookie: KeyedHash, session: Session) {
        let is_good = self.is_good(session.opened);
        self.sessions.open(cookie, session, is_good);
    }

    /// Returns the open session with this cookie and this key. `by_person` says that a person, not a
    /// timer, made the request.
    pub fn session_of(
        &self,
        cookie: KeyedHash,
        key: KeyedHash,
        by_person: bool,
    ) -> Option<Session> {
        let now = self.state.clock.now();
        self.sessions.find(cookie, key, self.is_good(now), now, by_person)
    }

    /// Returns the open sessions, newest first.
    pub fn open_sessions(&self) -> Vec<Session> {
        let now = self.state.clock.now();
        self.sessions.list(self.is_good(now), now)
    }

    /// Ends a session and enters that into the audit log. `by` is the caller's name.
    ///
    /// # Errors
    /// No session has this id.
    pub async fn end_session(&self, id: &str, by: &str, from: IpAddr) -> Result<(), ApiError> {
        if !self.sessions.end(id) {
            return Err(ApiError::not_found());
        }
        let now = self.state.clock.now();
        let event = Event {
            subject: id.to_owned(),
            by: by.to_owned(),
            ..Event::new(Action::SessionEnded, Actor::Operator, now, Some(from))
        };
        self.state.enter(vec![event]).await;
        Ok(())
    }
}

/// Reads from the store on a thread that may block.
///
/// # Errors
/// If the store cannot be read.
pub async fn read<T: Send + 'static>(
    console: &Console,
    read: impl FnOnce(&dyn Store) -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ApiError> {
    console.state.read_store(read).await
}

/// Makes an error response: a page for the console, JSON for `/admin`.
pub fn failed(request: &HttpRequest, error: &ApiError) -> HttpResponse {
    let is_page = request.match_pattern().is_some_and(|route| route.starts_with("/console"));
    if is_page { error_page(error) } else { failure(error.clone()) }
}

/// Converts an RFC 3339 time to the form used in tables. Times stay in UTC.
pub fn time(rfc3339: &str) -> String {
    rfc3339.trim_end_matches("+00:00").replace('T', " ")
}

/// Encodes pairs as a query string (WHATWG URL, `application/x-www-form-urlencoded`).
pub fn query_string(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// Parses a cursor. `None`: the first page.
///
/// # Errors
/// If the text is not a cursor.
pub fn parse_cursor(cursor: &str) -> Result<Option<u64>, ApiError> {
    if cursor.is_empty() {
        return Ok(None);
    }
    let words = "cursor must be a next_cursor of an earlier page.";
    cursor.parse().map(Some).map_err(|_| Refusal::InvalidField(words.into()).into())
}

/// Redirects to another page with status 303.
pub fn see(path: &str) -> HttpResponse {
    HttpResponse::SeeOther().insert_header(("location", path)).finish()
}
