//! Who may look into the console.
//!
//! A person logs in with the master token and gets a session; a program sends the token with every
//! request. Ten wrong tokens a minute from one address are enough. Forms count only from pages of
//! this listener: cookies do not tell ports apart, so that `SameSite` alone would let a page on
//! another port of the same host send them.

use super::{Console, see};
use crate::hex::hex;
use crate::http::cross_site::is_cross_site;
use crate::http::errors::ApiError;
use crate::http::page::{error_page, html};
use crate::http::respond::failure;
use crate::os::random_bytes;
use actix_web::cookie::{Cookie, SameSite};
use actix_web::dev::Payload;
use actix_web::error::InternalError;
use actix_web::http::header::{HeaderValue, RETRY_AFTER};
use actix_web::http::{Method, StatusCode};
use actix_web::web::{Data, Form};
use actix_web::{Error, FromRequest, HttpRequest, HttpResponse};
use askama::Template;
use iptunnel_domain::Refusal;
use iptunnel_domain::address::caller_network;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::lookup::{KeyedHash, Purpose};
use iptunnel_domain::server::Bearer;
use serde::Deserialize;
use std::collections::HashMap;
use std::future::{Ready, ready};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const COOKIE: &str = "console";
/// A session that nobody uses ends after this long: a working day.
const SESSION: Duration = Duration::from_secs(12 * 3600);
/// Wrong tokens from one address in a window.
const FAILURES: u32 = 10;
/// The window in which they are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses and sessions that are remembered: beyond that the oldest go.
const REMEMBERED: usize = 10_000;
/// What a page fetches by itself: that a tab is open is no sign that somebody is there.
const BY_ITSELF: &str = "/console/now/live";

struct Session {
    csrf: String,
    /// The master token it was opened with: another one ends it.
    master: KeyedHash,
    used: Instant,
}

/// Who is logged in, and who failed to.
#[derive(Default)]
pub struct Sessions(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// By the keyed hash of the cookie.
    open: HashMap<KeyedHash, Session>,
    failures: HashMap<IpAddr, (Instant, u32)>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds to wait where an address has failed too often.
    fn must_wait(&self, address: IpAddr) -> Option<u64> {
        let address = caller_network(address);
        let inner = self.lock();
        let (since, count) = inner.failures.get(&address)?;
        let left = WINDOW.checked_sub(since.elapsed())?;
        (*count >= FAILURES).then_some(left.as_secs() + 1)
    }

    fn failed(&self, address: IpAddr) {
        let address = caller_network(address);
        let mut inner = self.lock();
        if !inner.failures.contains_key(&address) {
            make_room(&mut inner.failures, |(since, _)| *since);
        }
        let now = Instant::now();
        let (since, count) = inner.failures.entry(address).or_insert((now, 0));
        if since.elapsed() >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
    }

    /// The CSRF token of the session with this cookie, where it is good. `by_person`: the session
    /// is in use, and lasts from now on.
    fn csrf(&self, cookie: KeyedHash, master: &KeyedHash, by_person: bool) -> Option<String> {
        let mut inner = self.lock();
        let session = inner.open.get_mut(&cookie)?;
        if session.used.elapsed() >= SESSION || !session.master.ct_eq(master) {
            inner.open.remove(&cookie);
            return None;
        }
        if by_person {
            session.used = Instant::now();
        }
        Some(session.csrf.clone())
    }

    fn open(&self, cookie: KeyedHash, csrf: String, master: KeyedHash) {
        let mut inner = self.lock();
        make_room(&mut inner.open, |session| session.used);
        inner.open.insert(cookie, Session { csrf, master, used: Instant::now() });
    }

    fn close(&self, cookie: KeyedHash) {
        self.lock().open.remove(&cookie);
    }
}

/// Lets the oldest go where no more is remembered.
fn make_room<K: Copy + Eq + Hash, V>(map: &mut HashMap<K, V>, since: impl Fn(&V) -> Instant) {
    if map.len() < REMEMBERED {
        return;
    }
    let oldest = map.iter().min_by_key(|(_, value)| since(value)).map(|(key, _)| *key);
    if let Some(oldest) = oldest {
        map.remove(&oldest);
    }
}

fn elsewhere() -> ApiError {
    let words = "This form was sent from another site. Please open the console itself.";
    ApiError::new(StatusCode::FORBIDDEN, "browser_session_invalid", words)
}

/// Whoever holds the master token: handlers that take one are closed to everybody else.
pub struct Operator {
    /// What a form of theirs has to bring along; empty for a program.
    pub csrf: String,
    /// Where they are.
    pub from: IpAddr,
}

/// The address of the operator: the listener is not for proxies.
fn peer(request: &HttpRequest) -> IpAddr {
    request.peer_addr().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip().to_canonical())
}

fn hash_of(console: &Console, secret: &str) -> KeyedHash {
    console.state.lookup.hash(Purpose::Session, secret.as_bytes())
}

fn too_many(seconds: u64) -> ApiError {
    let words = "Too many wrong tokens. Please wait a minute.";
    let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", words);
    ApiError { retry_after: Some(seconds), ..error }
}

impl Operator {
    fn of(request: &HttpRequest, console: &Console) -> Result<Self, HttpResponse> {
        let from = peer(request);
        if request.path().starts_with("/console") {
            let cookie = request.cookie(COOKIE).map(|cookie| hash_of(console, cookie.value()));
            let master = console.state.master.load();
            let by_person = request.path() != BY_ITSELF;
            let csrf = cookie.and_then(|cookie| console.sessions.csrf(cookie, &master, by_person));
            let csrf = csrf.ok_or_else(|| see("/console/login"))?;
            if request.method() == Method::POST && is_cross_site(request.headers(), None) {
                return Err(error_page(&elsewhere()));
            }
            return Ok(Self { csrf, from });
        }
        if let Some(seconds) = console.sessions.must_wait(from) {
            return Err(failure(too_many(seconds)));
        }
        let header = request.headers().get("authorization").map(|h| h.to_str().unwrap_or("?"));
        match console.state.bearer(header) {
            Bearer::Master => Ok(Self { csrf: String::new(), from }),
            Bearer::Nobody => Err(failure(Refusal::Unauthorized)),
            Bearer::Token(_) => {
                console.sessions.failed(from);
                Err(failure(Refusal::Unauthorized))
            }
        }
    }

    /// Checks that a form comes from a page of this session.
    ///
    /// # Errors
    /// Where it does not.
    pub fn check(&self, csrf: &str) -> Result<(), ApiError> {
        let same = subtle::ConstantTimeEq::ct_eq(csrf.as_bytes(), self.csrf.as_bytes());
        if bool::from(same) && !self.csrf.is_empty() {
            return Ok(());
        }
        let words = "This form is not from a page of your session. Please open the page again.";
        Err(ApiError::new(StatusCode::FORBIDDEN, "browser_session_invalid", words))
    }
}

impl FromRequest for Operator {
    type Error = Error;
    type Future = Ready<Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let Some(console) = request.app_data::<Data<Console>>() else {
            return ready(Err(actix_web::error::ErrorInternalServerError("no console")));
        };
        let denied = |response| InternalError::from_response("not an operator", response).into();
        ready(Self::of(request, console).map_err(denied))
    }
}

#[derive(Template)]
#[template(path = "console/login.html")]
struct Login {
    refused: Option<String>,
}

fn login_with(status: StatusCode, refused: Option<String>) -> HttpResponse {
    html(status, &Login { refused })
}

/// `GET /console/login`
pub async fn login_page() -> HttpResponse {
    login_with(StatusCode::OK, None)
}

/// What the login form sends.
#[derive(Deserialize)]
pub struct Credentials {
    token: String,
}

/// `POST /console/login`
pub async fn login(
    console: Data<Console>,
    request: HttpRequest,
    form: Form<Credentials>,
) -> HttpResponse {
    let from = peer(&request);
    // Before anything is counted: a page elsewhere could use up the tries of whoever looks at it.
    if is_cross_site(request.headers(), None) {
        return login_with(StatusCode::FORBIDDEN, Some(elsewhere().message));
    }
    if let Some(seconds) = console.sessions.must_wait(from) {
        let mut response =
            login_with(StatusCode::TOO_MANY_REQUESTS, Some(too_many(seconds).message));
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        return response;
    }
    if console.state.bearer(Some(form.token.trim())) != Bearer::Master {
        console.sessions.failed(from);
        let words = "This is not the master token.".to_owned();
        return login_with(StatusCode::FORBIDDEN, Some(words));
    }
    let (Ok(secret), Ok(csrf)) = (random_bytes::<32>(), random_bytes::<16>()) else {
        return error_page(&ApiError::internal());
    };
    let secret = hex(&secret);
    let master = **console.state.master.load();
    console.sessions.open(hash_of(&console, &secret), hex(&csrf), master);
    let event =
        Event::new(Action::LoggedIn, Actor::Operator, console.state.clock.now(), Some(from));
    let entered = console.state.handles.keep_settings(Vec::new(), vec![event]);
    if !matches!(console.state.wait(entered).await.outcome, Ok(Ok(()))) {
        // Whoever wants to see why the store takes nothing has to get in.
        tracing::warn!("a login could not be entered into the audit log");
    }
    let cookie = Cookie::build(COOKIE, secret)
        .path("/")
        .http_only(true)
        .same_site(SameSite::Strict)
        .finish();
    let mut response = see("/console");
    match response.add_cookie(&cookie) {
        Ok(()) => response,
        Err(_) => error_page(&ApiError::internal()),
    }
}

/// What a form sends along that changes nothing but the session.
#[derive(Deserialize)]
pub struct Confirmed {
    csrf: String,
}

/// `POST /console/logout`
pub async fn logout(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<Confirmed>,
) -> HttpResponse {
    if let Err(error) = operator.check(&form.csrf) {
        return error_page(&error);
    }
    if let Some(cookie) = request.cookie(COOKIE) {
        console.sessions.close(hash_of(&console, cookie.value()));
    }
    see("/console/login")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u8) -> KeyedHash {
        KeyedHash([number; 16])
    }

    #[test]
    fn what_a_page_fetches_by_itself_does_not_keep_a_session_open() {
        let sessions = Sessions::default();
        sessions.open(hash(1), "token".into(), hash(0));
        let long_ago = Instant::now().checked_sub(SESSION / 2).unwrap();
        let used = || sessions.lock().open[&hash(1)].used;
        sessions.lock().open.get_mut(&hash(1)).unwrap().used = long_ago;
        assert!(sessions.csrf(hash(1), &hash(0), false).is_some());
        assert_eq!(used(), long_ago);
        assert!(sessions.csrf(hash(1), &hash(0), true).is_some());
        assert!(used() > long_ago);
    }

    #[test]
    fn as_many_addresses_are_remembered_as_there_is_room_for_and_the_oldest_go() {
        let sessions = Sessions::default();
        let address = |number: usize| IpAddr::from(((number as u128) << 64).to_be_bytes());
        for number in 0..REMEMBERED + 5 {
            sessions.failed(address(number));
        }
        let inner = sessions.lock();
        assert_eq!(inner.failures.len(), REMEMBERED);
        assert!(inner.failures.contains_key(&address(REMEMBERED + 4)));
        assert!(!inner.failures.contains_key(&address(0)));
    }
}
