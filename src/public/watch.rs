//! A code's life as its page watches it: server-sent events (WHATWG HTML, section 9.2).
//!
//! A stream belongs to the browser session that asked for the code: the session's cookie opens it,
//! and only for codes whose record names that session. It tells where the code stands, at once and
//! whenever the store's change feed says that something happened to it.

use super::session::{RENEWABLE_SECONDS, session};
use crate::config::Product;
use crate::http::caller::network_of;
use crate::http::errors::ApiError;
use crate::http::respond::{failure, rfc3339};
use crate::http::story::{CodeStage, hint_of};
use crate::state::State;
use crate::state::watchers::Place;
use actix_web::cookie::{Cookie, SameSite};
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_domain::Timestamp;
use iptunnel_domain::activation::Stage;
use iptunnel_domain::audit::Action;
use iptunnel_domain::code::{Code, CodeHash, CodeState};
use iptunnel_domain::lookup::{KeyedHash, Purpose};
use iptunnel_storage::{ReadError, Store};
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// The part of all connections that streams may take.
const SHARE_OF_CONNECTIONS: usize = 4;
/// Seconds after which a stream ends: nobody looks at a page for longer than that.
const LONGEST: u64 = 30 * 60;
/// How often a stream looks by itself, for what time alone changes, and shows that it is alive.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// When a page whose stream was cut comes back, in milliseconds.
const RETRY_MS: u32 = 3000;
/// Codes of one session that are watched at once.
const CODES: usize = 4;

/// The name of the cookie that says which codes a browser watches.
fn cookie_name(product: &str) -> String {
    format!("{product}_codes")
}

/// The codes that the browser's cookie names, the newest first. Whose they are is another question.
fn watched(request: &HttpRequest, product: &str) -> Vec<CodeHash> {
    let Some(cookie) = request.cookie(&cookie_name(product)) else { return Vec::new() };
    let hashes = cookie.value().split('.').filter_map(KeyedHash::from_hex);
    hashes.map(CodeHash).take(CODES).collect()
}

/// The cookie by which the page of a code just issued finds its stream. It holds keyed hashes:
/// nothing that could be used as a code, and nothing that opens another session's stream.
pub(super) fn remember<'c>(
    request: &HttpRequest,
    product: &Product,
    code: CodeHash,
    secure: bool,
) -> Cookie<'c> {
    let codes = std::iter::once(code).chain(watched(request, &product.name)).take(CODES);
    let value: Vec<String> = codes.map(|code| code.0.to_hex()).collect();
    Cookie::build(cookie_name(&product.name), value.join("."))
        // Codes are issued under another path than the page's, and the cookie has to come along.
        .path("/")
        .http_only(true)
        .same_site(SameSite::Strict)
        .secure(secure)
        .finish()
}

/// Where a code stands, as its page is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Standing {
    hint: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    expires_at: String,
    ttl_seconds: u64,
}

/// What its page calls it.
const fn told(stage: CodeStage, prechecked: bool) -> &'static str {
    match stage {
        CodeStage::Issued | CodeStage::Restored if prechecked => "prechecked",
        CodeStage::Issued => "issued",
        CodeStage::Restored => "released",
        CodeStage::Expired | CodeStage::Used(None | Some(Stage::Lapsed)) => "expired",
        CodeStage::Used(Some(Stage::Open)) => "activated",
        CodeStage::Used(Some(stage)) => stage.name(),
    }
}

/// Where a code stands now. `None` where it is not this session's, or is no more.
fn standing(
    store: &dyn Store,
    hash: CodeHash,
    session: KeyedHash,
    prechecked: bool,
    now: Timestamp,
) -> Result<Option<(Code, Standing)>, ReadError> {
    let code = store.code(hash)?.filter(|code| code.session.ct_eq(&session));
    let Some(code) = code else { return Ok(None) };
    let by = match code.state {
        CodeState::Consumed(by) => store.activation(by.id)?,
        CodeState::Issued => None,
    };
    let state = told(CodeStage::of(&code, by.as_ref(), now), prechecked);
    let hostname = by.map(|by| by.request.binding.hostname.as_str().to_owned());
    let standing = Standing {
        hint: String::new(),
        state,
        hostname,
        expires_at: rfc3339(code.expires_at),
        ttl_seconds: code.left(now),
    };
    Ok(Some((code, standing)))
}

/// Whether the code was prechecked and nothing has happened to it since, as far as its record and
/// what was tried on it tell; a stream that sees it happen knows better.
fn was_prechecked(store: &dyn Store, code: &Code) -> Result<bool, ReadError> {
    let attempts = store.attempts(code.hash)?.kept;
    let passed = attempts.iter().filter(|event| event.action == Action::PrecheckPassed).count();
    Ok(passed > code.activations as usize)
}

/// One code of a stream, and what was last said of it.
struct Watched {
    code: CodeHash,
    hint: String,
    said: Option<(&'static str, String)>,
}

struct Stream {
    state: Data<State>,
    place: Place,
    codes: VecDeque<Watched>,
    until: Timestamp,
    is_first: bool,
    has_ended: bool,
}

/// What a look at the store brings.
type Look = Result<Vec<(CodeHash, Standing)>, ReadError>;

impl Stream {
    /// Where the codes stand now.
    async fn look(&self) -> Look {
        let store = Arc::clone(self.state.handles.store());
        let (session, now) = (self.place.session, self.state.clock.now());
        let prechecked = &self.place.watcher.prechecked;
        let codes: Vec<(CodeHash, String, bool)> = self
            .codes
            .iter()
            .map(|watched| (watched.code, watched.hint.clone(), prechecked.contains(&watched.code)))
            .collect();
        let look = move || {
            let mut all = Vec::new();
            for (hash, hint, prechecked) in codes {
                let found = standing(store.as_ref(), hash, session, prechecked, now)?;
                all.extend(found.map(|(_, standing)| (hash, Standing { hint, ..standing })));
            }
            Ok(all)
        };
        actix_web::web::block(look).await.unwrap_or_else(|e| Err(ReadError(e.to_string())))
    }

    /// What there is to say; `None` once there is nothing more.
    async fn next(&mut self) -> Option<String> {
        if self.has_ended {
            return None;
        }
        if !std::mem::take(&mut self.is_first) {
            // Whatever comes first: news or the next look.
            let _ = tokio::time::timeout(LOOK_EVERY, self.place.watcher.nudge.notified()).await;
        }
        if self.place.is_closed() {
            // Without a word: the page comes back by itself, to whichever server is there then.
            return None;
        }
        if !self.state.clock.now().is_before(self.until, LONGEST) {
            self.has_ended = true;
            return Some("event: end\ndata: {}\n\n".into());
        }
        let Ok(standings) = self.look().await else {
            return Some(": the store cannot be read right now\n\n".into());
        };
        let mut text = String::new();
        for (code, standing) in standings {
            let Some(watched) = self.codes.iter_mut().find(|watched| watched.code == code) else {
                continue;
            };
            let said = Some((standing.state, standing.expires_at.clone()));
            if watched.said != said {
                watched.said = said;
                let data = serde_json::to_string(&standing).unwrap_or_default();
                text += &format!("event: state\ndata: {data}\n\n");
            }
        }
        // A comment keeps proxies from taking the line for dead.
        Some(if text.is_empty() { ": still here\n\n".into() } else { text })
    }
}

/// `GET /{product}/events`: where the codes of this browser's session stand, live.
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
        let (store, codes) = (Arc::clone(state.handles.store()), place.codes.clone());
        let find = move || {
            let mut found = VecDeque::new();
            let mut prechecked = Vec::new();
            for hash in codes {
                let Some((code, _)) = standing(store.as_ref(), hash, session, false, now)? else {
                    continue;
                };
                if was_prechecked(store.as_ref(), &code)? {
                    prechecked.push(hash);
                }
                let hint = hint_of(store.as_ref(), &code)?;
                found.push_back(Watched { code: hash, hint, said: None });
            }
            Ok::<_, ReadError>((found, prechecked))
        };
        actix_web::web::block(find).await
    };
    let (codes, prechecked) = match found {
        Ok(Ok((codes, _))) if codes.is_empty() => return failure(ApiError::not_found()),
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::error!(%error, "a code to watch could not be read");
            return failure(iptunnel_actors::Failure::StorageUnavailable);
        }
        Err(_) => return failure(ApiError::internal()),
    };
    for code in prechecked {
        place.watcher.prechecked.insert(code);
    }
    let until = now.plus(LONGEST);
    let stream = Stream { state, place, codes, until, is_first: true, has_ended: false };
    let head = format!("retry: {RETRY_MS}\n\n");
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
        // nginx holds answers back until they are long enough, unless it is told not to.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(chunks)
}
