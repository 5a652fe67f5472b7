//! The gate of the operators' listener.
//!
//! A person logs in to the console with a token and gets a session (see [`sessions`]): a cookie, and a key
//! in the addresses of the pages. The session ends with the token. A program sends the token with every
//! request. The command line comes through the Unix socket (see [`socket`]) and needs no token. What each
//! may do is in [`access`]; wrong tokens are slowed as on the public listener.
//!
//! [`access`]: crate::http::access
//! [`sessions`]: super::sessions
//! [`socket`]: super::socket

use super::console::{Console, see};
use super::sessions::Session;
use super::words;
use crate::http::access::{Denied, OPERATORS, Rule};
use crate::http::caller::token_of;
use crate::http::connection::Administrator;
use crate::http::cookies::cookies;
use crate::http::cross_site::is_cross_site;
use crate::http::errors::ApiError;
use crate::http::page::{error_page, html};
use crate::http::respond::failure;
use crate::http::routing::Gate;
use crate::http::tls::Secure;
use crate::os::random_bytes;
use crate::state::access::caller::{Caller, Identity};
use crate::state::wrong_tokens::Listener;
use actix_web::cookie::{Cookie, SameSite};
use actix_web::dev::Payload;
use actix_web::error::ErrorInternalServerError;
use actix_web::http::header::{HeaderValue, RETRY_AFTER, USER_AGENT};
use actix_web::http::{Method, StatusCode};
use actix_web::web::{Data, Form};
use actix_web::{Error, FromRequest, HttpMessage, HttpRequest, HttpResponse};
use askama::Template;
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::Role;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::hex::hex;
use iptunnel_domain::lookup::{KeyedHash, Purpose};
use serde::Deserialize;
use std::future::{Ready, ready};
use std::net::{IpAddr, Ipv4Addr};

const COOKIE: &str = "console";
/// The end of the route that a page fetches on a timer. Such a request is not a use of the session.
const BY_ITSELF: &str = "/live";

/// An operator that has passed the gate. A handler behind no gate has none.
#[derive(Clone, Debug)]
pub struct Operator {
    /// The beginning of the addresses of the session's pages: `/console/{key}`. Empty for a program.
    pub base: String,
    /// The id of the session. Empty for a program.
    pub session: String,
    /// The operator's address.
    pub from: IpAddr,
    /// The token that it has shown.
    pub caller: Caller,
    /// When it asked.
    pub now: Timestamp,
}

/// Returns the operator's address: the TCP peer, as this listener supports no proxies. A caller on the
/// Unix socket is on this machine.
fn peer(request: &HttpRequest) -> IpAddr {
    match request.peer_addr() {
        Some(peer) => peer.ip().to_canonical(),
        None if request.conn_data::<Administrator>().is_some() => Ipv4Addr::LOCALHOST.into(),
        None => Ipv4Addr::UNSPECIFIED.into(),
    }
}

fn hash_of(console: &Console, secret: &str) -> KeyedHash {
    console.state.live.lookup.hash(Purpose::Session, secret.as_bytes())
}

impl Operator {
    /// Whether it may change servers and codes.
    pub fn operates(&self) -> bool {
        self.caller.has(Role::Operate)
    }

    /// Whether it may change settings, tokens and sessions.
    pub fn administers(&self) -> bool {
        self.caller.has(Role::Admin)
    }

    /// Returns the HTML of a time by RFC 3339: how long ago it is, and the exact time on hover.
    pub fn ago(&self, at: &str) -> String {
        words::ago(at, self.now)
    }

    /// Returns who it is, and its address.
    pub const fn who(&self) -> (&Caller, IpAddr) {
        (&self.caller, self.from)
    }

    async fn of_program(
        request: &HttpRequest,
        console: &Console,
        rule: &Rule,
    ) -> Result<Self, HttpResponse> {
        let (state, from) = (&console.state, peer(request));
        let identity = match request.conn_data::<Administrator>() {
            Some(_) => Identity::Known(Caller::command_line()),
            None => state.access.identify(token_of(request), from, state.clock.now()),
        };
        let admitted = state.admit(identity, rule, (from, Listener::Operators)).await;
        let caller = admitted.map_err(|denied| failure(ApiError::denied(denied, false)))?;
        let now = state.clock.now();
        Ok(Self { base: String::new(), session: String::new(), from, caller, now })
    }

    async fn of_session(
        request: &HttpRequest,
        console: &Console,
        rule: &Rule,
    ) -> Result<Self, HttpResponse> {
        let key = request.match_info().get("key").unwrap_or_default();
        let by_person = !rule.path.ends_with(BY_ITSELF);
        let (key_hash, from) = (hash_of(console, key), peer(request));
        // The browser sends a cookie of this name that another port of the host has set, too.
        let found = cookies(request, COOKIE)
            .find_map(|cookie| console.session_of(hash_of(console, cookie), key_hash, by_person));
        let session = found.ok_or_else(|| see("/console/login"))?;
        if request.method() == Method::POST && is_cross_site(request.headers(), None) {
            return Err(error_page(&ApiError::form_from_elsewhere()));
        }
        let state = &console.state;
        let identity = state.access.holder(&session.secret, Some(from), state.clock.now());
        let admitted = state.admit(identity, rule, (from, Listener::Operators)).await;
        let caller = admitted.map_err(|denied| error_page(&ApiError::denied(denied, false)))?;
        let (base, now) = (format!("/console/{key}"), state.clock.now());
        Ok(Self { base, session: session.id, from, caller, now })
    }
}

impl Gate for Operator {
    async fn admit(request: &HttpRequest, rule: &'static Rule) -> Result<(), HttpResponse> {
        let Some(console) = request.app_data::<Data<Console>>() else {
            return Err(failure(ApiError::internal()));
        };
        // By the rule: the router has decoded the path, which can be written in several ways.
        let operator = if rule.path.starts_with("/console") {
            Self::of_session(request, console, rule).await?
        } else {
            Self::of_program(request, console, rule).await?
        };
        request.extensions_mut().insert(operator);
        Ok(())
    }
}

impl FromRequest for Operator {
    type Error = Error;
    type Future = Ready<Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let operator = request.extensions().get::<Self>().cloned();
        ready(operator.ok_or_else(|| ErrorInternalServerError("a route without a gate")))
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

/// The fields of the login form.
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
    // Checked before anything is counted. Otherwise a page of another site could use up the
    // visitor's tries.
    if is_cross_site(request.headers(), None) {
        return login_with(StatusCode::FORBIDDEN, Some(ApiError::form_from_elsewhere().message));
    }
    let (state, from) = (&console.state, peer(&request));
    let identity = match state.access.identify(form.token.trim(), from, state.clock.now()) {
        // An empty field is a wrong token too.
        Identity::Nobody => Identity::Wrong(KeyedHash([0; 16])),
        identity => identity,
    };
    let admitted = match Rule::of(OPERATORS, "GET", "/console/{key}/now") {
        Some(first_page) => state.admit(identity, first_page, (from, Listener::Operators)).await,
        None => Err(Denied::Wrong),
    };
    let caller = match admitted.map_err(|denied| ApiError::denied(denied, true)) {
        Ok(caller) => caller,
        Err(error) => {
            let mut response = login_with(error.status, Some(error.message));
            if let Some(seconds) = error.retry_after {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            return response;
        }
    };
    open_session(&console, &request, &caller).await.unwrap_or_else(|error| error_page(&error))
}

async fn open_session(
    console: &Data<Console>,
    request: &HttpRequest,
    caller: &Caller,
) -> Result<HttpResponse, ApiError> {
    let from = peer(request);
    let random = || random_bytes::<16>().map(|bytes| hex(&bytes)).map_err(|_| ApiError::internal());
    let (secret, key, mut id) = (random()?, random()?, random()?);
    id.truncate(8);
    let now = console.state.clock.now();
    let browser = request.headers().get(USER_AGENT).and_then(|name| name.to_str().ok());
    let session = Session {
        id: id.clone(),
        key: hash_of(console, &key),
        secret: caller.secret,
        token: caller.shown().to_owned(),
        from,
        browser: browser.unwrap_or_default().to_owned(),
        opened: now,
        used: now,
    };
    Console::open_session(console, hash_of(console, &secret), session).await;
    let event = Event::new(Action::LoggedIn, Actor::Operator, now, Some(from));
    // The operator is let in even if the store refuses the entry: the console shows why it does.
    console.state.enter(vec![Event { subject: id, by: caller.shown().to_owned(), ..event }]).await;
    let cookie = Cookie::build(COOKIE, secret)
        // A browser does not even send it to another port, unless it is asked for this very path there.
        .path(format!("/console/{key}"))
        .http_only(true)
        .same_site(SameSite::Strict)
        .secure(request.extensions().contains::<Secure>())
        .finish();
    let mut response = see(&format!("/console/{key}/now"));
    response.add_cookie(&cookie).map_err(|_| ApiError::internal())?;
    Ok(response)
}

/// `POST /console/{key}/logout`
pub async fn logout(console: Data<Console>, operator: Operator) -> HttpResponse {
    let (id, by) = (&operator.session, operator.caller.shown());
    match Console::end_session(&console, id, by, operator.from).await {
        // It may have ended meanwhile.
        Err(error) if error.status != StatusCode::NOT_FOUND => error_page(&error),
        _ => see("/console/login"),
    }
}
