//! Live progress of a code for its page: server-sent events (WHATWG HTML, section 9.2).
//!
//! A stream belongs to the browser session that got the code. It needs the session's cookie and
//! covers only codes whose record names that session. It sends the state of a code at once, and
//! again when the store's change feed reports a change. After the confirm it goes on to the server that the
//! installation registers, and to its first check-in.
//!
//! The little that a stream sends fits into the buffers of the operating system for a long time, so
//! the deadline of unread answers never comes. So a stream lasts no longer than an idle connection,
//! and a page that is still there opens the next one by itself.

use super::session::{RENEWABLE_SECONDS, session};
use crate::config::Product;
use crate::http::caller::network_of;
use crate::http::cookies::cookies;
use crate::http::errors::ApiError;
use crate::http::respond::{failure, rfc3339};
use crate::http::story::{CodeStage, hint_of};
use crate::state::State;
use crate::state::watchers::Place;
use actix_web::cookie::{Cookie, SameSite};
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_domain::Timestamp;
use iptunnel_domain::activation::{Activation, Stage};
use iptunnel_domain::audit::Action;
use iptunnel_domain::code::{Code, CodeHash, CodeState};
use iptunnel_domain::lookup::{KeyedHash, Purpose};
use iptunnel_domain::server::{EnrolledBy, ServerId};
use iptunnel_storage::{AuditLog, ReadError};
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Streams may use one in this many connections.
const SHARE_OF_CONNECTIONS: usize = 4;
/// Seconds after which a page is told to stop watching, over all its streams. Nobody is expected to
/// watch for longer.
const LONGEST: u64 = 30 * 60;
/// How often a stream reads the state without a change, to see expiries and to keep the connection
/// open.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often it does while the installed server is expected to register and to check in, which are no
/// changes of the code.
const LOOK_SOON: Duration = Duration::from_secs(1);
/// Milliseconds until a page reconnects after its stream broke.
const RETRY_MS: u32 = 3000;
/// Milliseconds until a page opens its next stream where nothing is wrong.
const NEXT_MS: u32 = 100;
/// The most codes that one session watches at once.
const CODES: usize = 4;

/// Returns the name of the cookie with the codes that a browser watches.
fn cookie_name(product: &str) -> String {
    format!("{product}_codes")
}

/// Returns the codes in the browser's cookie, newest first. Does not check whose codes they are.
fn watched(request: &HttpRequest, product: &str) -> Vec<CodeHash> {
    let name = cookie_name(product);
    let hashes = cookies(request, &name).flat_map(|cookie| cookie.split('.'));
    hashes.filter_map(KeyedHash::from_hex).map(CodeHash).take(CODES).collect()
}

/// Returns the cookie by which a page finds the stream of its new code. It contains keyed hashes,
/// which cannot be used as codes and do not open another session's stream.
pub(super) fn remember<'c>(
    request: &HttpRequest,
    product: &Product,
    code: CodeHash,
    secure: bool,
) -> Cookie<'c> {
    let codes = std::iter::once(code).chain(watched(request, &product.name)).take(CODES);
    let value: Vec<String> = codes.map(|code| code.0.to_hex()).collect();
    Cookie::build(cookie_name(&product.name), value.join("."))
        // The API path that issues codes differs from the page's path, and both need the cookie.
        .path("/")
        .http_only(true)
        .same_site(SameSite::Strict)
        .secure(secure)
        .finish()
}

/// The state of a code as sent to its page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct CodeStatus {
    hint: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    expires_at: String,
    ttl_seconds: u64,
}

/// Returns the state's name for the page.
const fn state_name(stage: CodeStage, prechecked: bool) -> &'static str {
    match stage {
        CodeStage::Issued | CodeStage::Restored if prechecked => "prechecked",
        CodeStage::Issued => "issued",
        CodeStage::Restored => "released",
        CodeStage::Expired | CodeStage::Used(None | Some(Stage::Lapsed)) => "expired",
        CodeStage::Used(Some(Stage::Open)) => "activated",
        CodeStage::Used(Some(stage)) => stage.name(),
    }
}

/// The states after which the installed server is expected.
const EXPECTED: [&str; 2] = ["confirmed", "registered"];

/// Returns how far the server of a confirmed activation is. `None` if it has not registered.
///
/// With an embedded store, a server that was imported under another id than that of its address is not
/// found.
fn server_state(state: &State, by: &Activation) -> Result<Option<&'static str>, ReadError> {
    let (store, servers) = (state.handles.store(), state.handles.servers());
    let address = ServerId::of(by.request.binding.public_ip, &state.live.lookup);
    let server = match store.shared() {
        Some(shared) => shared.servers_at(&[address])?.pop().flatten(),
        None => servers.number_of(address).map_or(Ok(None), |number| store.server(number))?,
    };
    let own = EnrolledBy::Activation(by.at.into());
    let server = server.filter(|server| server.enrolled_by == own && !server.deleted);
    Ok(server.map(|server| match servers.has_checked_in(server.id) {
        true => "checked_in",
        false => "registered",
    }))
}

/// Returns the current state of a code. `None` if the code is deleted or belongs to another
/// session.
fn read_status(
    state: &State,
    hash: CodeHash,
    session: KeyedHash,
    prechecked: bool,
    now: Timestamp,
) -> Result<Option<(Code, CodeStatus)>, ReadError> {
    let store = state.handles.store();
    let code = store.code(hash)?.filter(|code| code.session.ct_eq(&session));
    let Some(code) = code else { return Ok(None) };
    let by = match code.state {
        CodeState::Consumed(by) => store.activation(by.id)?,
        CodeState::Issued => None,
    };
    let stage = CodeStage::of(&code, by.as_ref(), now);
    let server = match (&by, stage) {
        (Some(by), CodeStage::Used(Some(Stage::Confirmed))) => server_state(state, by)?,
        _ => None,
    };
    let state = server.unwrap_or(state_name(stage, prechecked));
    let hostname = by.map(|by| by.request.binding.hostname.as_str().to_owned());
    let status = CodeStatus {
        hint: String::new(),
        state,
        hostname,
        expires_at: rfc3339(code.expires_at),
        ttl_seconds: code.left(now),
    };
    Ok(Some((code, status)))
}

/// Where a code stands that is neither used up nor over.
pub(super) struct Standing {
    /// When it expires, by RFC 3339.
    pub expires_at: String,
    /// Seconds until it expires.
    pub ttl_seconds: u64,
    /// Whether an installation is using it.
    pub is_in_use: bool,
}

/// Returns where a code of a browser session stands. `None` if it is used or over, or of another session.
///
/// # Errors
/// The store cannot be read.
pub(super) async fn standing(
    state: &Data<State>,
    hash: CodeHash,
    session: KeyedHash,
    now: Timestamp,
) -> Result<Option<Standing>, ReadError> {
    let state = state.clone();
    let read = move || read_status(&state, hash, session, false, now);
    let found = actix_web::web::block(read).await.unwrap_or_else(|e| Err(ReadError(e.to_string())));
    Ok(found?.and_then(|(_, status)| {
        let CodeStatus { state, expires_at, ttl_seconds, .. } = status;
        let is_in_use = state == "activated";
        let is_alive = is_in_use || matches!(state, "issued" | "released");
        is_alive.then_some(Standing { expires_at, ttl_seconds, is_in_use })
    }))
}

/// Returns whether the code was prechecked and nothing happened to it since, according to its
/// record and its attempts. An open stream also sees the precheck itself.
fn was_prechecked(store: &dyn AuditLog, code: &Code) -> Result<bool, ReadError> {
    let attempts = store.attempts(code.hash)?.kept;
    let passed = attempts.iter().filter(|event| event.action == Action::PrecheckPassed).count();
    Ok(passed > code.activations as usize)
}

/// One code of a stream, and the state that was sent last.
struct Watched {
    code: CodeHash,
    hint: String,
    sent: Option<(&'static str, String)>,
}

struct Stream {
    state: Data<State>,
    place: Place,
    codes: VecDeque<Watched>,
    /// When the page is to stop watching.
    until: Timestamp,
    /// When this stream ends, and the page opens the next one.
    lasts: Instant,
    is_first: bool,
    has_ended: bool,
}

/// The states that one read of the store returns.
type Statuses = Result<Vec<(CodeHash, CodeStatus)>, ReadError>;

impl Stream {
    /// Reads the current states of the codes.
    async fn read_statuses(&self) -> Statuses {
        let state = self.state.clone();
        let (session, now) = (self.place.session, self.state.clock.now());
        let prechecked = &self.place.watcher.prechecked;
        let codes: Vec<(CodeHash, String, bool)> = self
            .codes
            .iter()
            .map(|watched| (watched.code, watched.hint.clone(), prechecked.contains(&watched.code)))
            .collect();
        let read = move || {
            let mut all = Vec::new();
            for (hash, hint, prechecked) in codes {
                let found = read_status(&state, hash, session, prechecked, now)?;
                all.extend(found.map(|(_, status)| (hash, CodeStatus { hint, ..status })));
            }
            Ok(all)
        };
        actix_web::web::block(read).await.unwrap_or_else(|e| Err(ReadError(e.to_string())))
    }

    /// Returns how long the stream waits for a change before it reads the states again.
    fn pause(&self) -> Duration {
        let is_expected = |watched: &Watched| {
            watched.sent.as_ref().is_some_and(|(state, _)| EXPECTED.contains(state))
        };
        if self.codes.iter().any(is_expected) { LOOK_SOON } else { LOOK_EVERY }
    }

    /// Returns the next text to send. `None`: the stream has ended.
    async fn next(&mut self) -> Option<String> {
        if self.has_ended {
            return None;
        }
        if !std::mem::take(&mut self.is_first) {
            // Waits for a change or the next regular read.
            let look = self.lasts.min(Instant::now() + self.pause());
            let _ = timeout_at(look, self.place.watcher.nudge.notified()).await;
        }
        if self.place.is_closed() {
            // Sends no end event: the page reconnects by itself, perhaps to another server.
            return None;
        }
        if !self.state.clock.now().is_before(self.until, LONGEST) {
            self.has_ended = true;
            return Some("event: end\ndata: {}\n\n".into());
        }
        if Instant::now() >= self.lasts {
            self.has_ended = true;
            return Some(format!("retry: {NEXT_MS}\n\n"));
        }
        let Ok(statuses) = self.read_statuses().await else {
            return Some(": the store cannot be read right now\n\n".into());
        };
        let mut text = String::new();
        for (code, status) in statuses {
            let Some(watched) = self.codes.iter_mut().find(|watched| watched.code == code) else {
                continue;
            };
            let sent = Some((status.state, status.expires_at.clone()));
            if watched.sent != sent {
                watched.sent = sent;
                let data = serde_json::to_string(&status).unwrap_or_default();
                text += &format!("event: state\ndata: {data}\n\n");
            }
        }
        // A comment keeps proxies from closing an idle connection.
        Some(if text.is_empty() { ": still here\n\n".into() } else { text })
    }
}

/// Returns when the page began to watch, as the stream before has told it; `now` where there was none.
fn begun(request: &HttpRequest, now: Timestamp) -> Timestamp {
    let sent = request.headers().get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    // A page that lies may as well watch anew.
    sent.map(Timestamp).filter(|begun| *begun <= now).unwrap_or(now)
}

/// `GET /{product}/events`: streams the states of this session's codes.
pub async fn events(
    state: Data<State>,
    request: HttpRequest,
    product: Data<Product>,
) -> HttpResponse {
    let now = state.clock.now();
    let pass = match session(&state, &request, &product.name) {
        Ok(pass) if pass.is_renewable(now, RENEWABLE_SECONDS) => pass,
        Ok(_) => return failure(iptunnel_domain::Refusal::SessionRequired),
        Err(refusal) => return failure(refusal),
    };
    let session = state.live.lookup.hash(Purpose::Session, pass.id.as_bytes());
    let address = network_of(&request, &state.proxies);
    let in_all =
        (state.live.config.load().server.max_connections.get() / SHARE_OF_CONNECTIONS).max(1);
    let codes = watched(&request, &product.name);
    let Some(place) = state.watchers.place(session, address, in_all, codes) else {
        return failure(ApiError::too_many_watch());
    };
    let found = {
        let (state, codes) = (state.clone(), place.codes.clone());
        let find = move || {
            let store = state.handles.store();
            let mut found = VecDeque::new();
            let mut prechecked = Vec::new();
            for hash in codes {
                let Some((code, _)) = read_status(&state, hash, session, false, now)? else {
                    continue;
                };
                if was_prechecked(store.as_ref(), &code)? {
                    prechecked.push(hash);
                }
                let hint = hint_of(store.as_ref(), &code)?;
                found.push_back(Watched { code: hash, hint, sent: None });
            }
            Ok::<_, ReadError>((found, prechecked))
        };
        actix_web::web::block(find).await
    };
    let (codes, prechecked) = match found {
        Ok(Ok((codes, _))) if codes.is_empty() => return failure(ApiError::not_found()),
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::error!(%error, "could not read the code that a page watches");
            return failure(iptunnel_actors::Failure::StorageUnavailable);
        }
        Err(_) => return failure(ApiError::internal()),
    };
    for code in prechecked {
        place.watcher.prechecked.insert(code);
    }
    let begun = begun(&request, now);
    let until = begun.plus(LONGEST);
    let lasts = Instant::now() + state.live.config.load().server.idle_timeout;
    let stream = Stream { state, place, codes, until, lasts, is_first: true, has_ended: false };
    // The page sends the id with its next request.
    let head = format!("retry: {RETRY_MS}\nid: {}\n\n", begun.0);
    let chunks = futures_util::stream::unfold((Some(head), stream), |(head, mut stream)| async {
        let text = match head {
            Some(head) => Some(head),
            None => stream.next().await,
        };
        text.map(|text| (Ok::<Bytes, Infallible>(text.into()), (None, stream)))
    });
    HttpResponse::Ok()
        .insert_header(("content-type", "text/event-stream"))
        .insert_header(("cache-control", "no-store"))
        // Tells nginx not to buffer the response.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(chunks)
}
