//! State and helpers that the console's handlers share.

use super::history::History;
use super::kept_file::KeptFile;
use super::now::{Looks, charted};
use super::sessions::{Session, Sessions};
use crate::http::errors::ApiError;
use crate::http::page::error_page;
use crate::http::respond::failure;
use crate::state::State;
use crate::state::access::caller::Identity;
use actix_web::web::{Data, block};
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_actors::Failure;
use iptunnel_domain::audit::{Action, Actor, Event, Head};
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::{ReadError, Store};
use prometheus_client::registry::Registry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The pages: path and name, in the order of the menu.
pub static PAGES: [(&str, &str); 9] = [
    ("now", "Now"),
    ("codes", "Codes"),
    ("servers", "Servers"),
    ("settings", "Settings"),
    ("audit", "Audit"),
    ("access", "Access"),
    ("sessions", "Sessions"),
    ("webhooks", "Webhooks"),
    ("load", "Load"),
];

/// The state that the console's handlers share.
pub struct Console {
    /// The state of the public handlers.
    pub state: Data<State>,
    /// All metrics.
    pub registry: Arc<Registry>,
    /// The login sessions.
    pub sessions: Arc<Sessions>,
    /// Recent values of the metrics.
    pub history: Arc<History>,
    /// Where those of the charts survive a restart. Locked while it is written.
    pub charts: Mutex<KeptFile>,
    /// What the page *Now* found last.
    pub looks: Looks,
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

    /// Opens a session. It survives a restart from when this returns, if the disk takes it.
    pub async fn open_session(console: &Data<Self>, cookie: KeyedHash, session: Session) {
        let is_good = console.is_good(session.opened);
        console.sessions.open(cookie, session, is_good);
        Self::keep_sessions(console).await;
    }

    /// Writes the sessions to their file. Returns whether none that has ended can be in it.
    async fn keep_sessions(console: &Data<Self>) -> bool {
        let of_thread = console.clone();
        let kept = block(move || {
            let now = of_thread.state.clock.now();
            of_thread.sessions.keep(of_thread.is_good(now), now)
        });
        match kept.await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::error!(%error, "the file of the console's sessions can be neither written nor \
                    removed; after a restart, sessions that have ended may be open");
                false
            }
            Err(_) => false,
        }
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

    /// Ends a session, also for the time after a restart, and enters that into the audit log. `by` is the
    /// caller's name.
    ///
    /// # Errors
    /// No session has this id, or the file of the sessions cannot be changed: then it has ended only until a
    /// restart.
    pub async fn end_session(
        console: &Data<Self>,
        id: &str,
        by: &str,
        from: IpAddr,
    ) -> Result<(), ApiError> {
        if !console.sessions.end(id) {
            return Err(ApiError::not_found());
        }
        let is_kept = Self::keep_sessions(console).await;
        let now = console.state.clock.now();
        let event = Event {
            subject: id.to_owned(),
            by: by.to_owned(),
            ..Event::new(Action::SessionEnded, Actor::Operator, now, Some(from))
        };
        console.state.enter(vec![event]).await;
        if is_kept { Ok(()) } else { Err(Failure::StorageUnavailable.into()) }
    }

    /// Writes what survives a restart every minute while the server runs.
    pub async fn keep_files(console: Data<Self>) {
        loop {
            tokio::time::sleep(KEEP_FILES).await;
            Self::keep_files_now(&console).await;
        }
    }

    /// Writes what survives a restart.
    pub async fn keep_files_now(console: &Data<Self>) {
        Self::keep_sessions(console).await;
        let of_thread = console.clone();
        let kept = block(move || {
            let charts = of_thread.charts.lock().unwrap_or_else(PoisonError::into_inner);
            let now = of_thread.state.clock.now();
            charts.write(&of_thread.history.kept(charted(), (now, Instant::now())))
        });
        if let Ok(Err(error)) = kept.await {
            tracing::warn!(%error, "the figures of the console's charts cannot be written");
        }
    }
}

/// How often what survives a restart is written.
const KEEP_FILES: Duration = Duration::from_secs(60);

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
