//! Access control of the operators' listener.
//!
//! A person logs in to the console with the master token and gets a session (see [`sessions`]): a
//! cookie, and a key in the addresses of the pages. A program sends the token with every request. The
//! command line comes through the Unix socket (see [`socket`]) and needs no token. Wrong tokens are
//! slowed as on the public listener.
//!
//! [`sessions`]: super::sessions
//! [`socket`]: super::socket

use super::console::{Console, see};
use super::sessions::Session;
use crate::hex::hex;
use crate::http::caller::authorization;
use crate::http::connection::Administrator;
use crate::http::cookies::cookies;
use crate::http::cross_site::is_cross_site;
use crate::http::errors::ApiError;
use crate::http::page::{error_page, html};
use crate::http::respond::failure;
use crate::os::random_bytes;
use crate::state::wrong_tokens::Listener;
use actix_web::cookie::{Cookie, SameSite};
use actix_web::dev::Payload;
use actix_web::error::InternalError;
use actix_web::http::header::{HeaderValue, RETRY_AFTER, USER_AGENT};
use actix_web::http::{Method, StatusCode};
use actix_web::web::{Data, Form};
use actix_web::{Error, FromRequest, HttpRequest, HttpResponse};
use askama::Template;
use iptunnel_domain::Refusal;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::lookup::{KeyedHash, Purpose};
use iptunnel_domain::server::Bearer;
use serde::Deserialize;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;

const COOKIE: &str = "console";
/// The end of the path that a page fetches on a timer. Such a request is not a use of the session.
const BY_ITSELF: &str = "/now/live";

/// An authenticated operator. Handlers with this argument refuse all other callers.
pub struct Operator {
    /// The beginning of the addresses of the session's pages: `/console/{key}`. Empty for a program.
    pub base: String,
    /// The id of the session. Empty for a program.
    pub session: String,
    /// The operator's address.
    pub from: IpAddr,
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
    async fn of(request: &HttpRequest, console: &Console) -> Result<Self, HttpResponse> {
        if request.path().starts_with("/console") {
            return Self::of_session(request, console);
        }
        let (state, from) = (&console.state, peer(request));
        let program = Self { base: String::new(), session: String::new(), from };
        if request.conn_data::<Administrator>().is_some() {
            return Ok(program);
        }
        let bearer = state.live.bearer(authorization(request));
        let admitted =
            state.only_master(bearer, from, Listener::Operators, Refusal::Unauthorized).await;
        admitted.map(|()| program).map_err(failure)
    }

    fn of_session(request: &HttpRequest, console: &Console) -> Result<Self, HttpResponse> {
        let key = request.match_info().get("key").unwrap_or_default();
        let by_person = !request.path().ends_with(BY_ITSELF);
        let key_hash = hash_of(console, key);
        let (master, now) = (console.state.live.master.load(), console.state.clock.now());
        // The browser sends a cookie of this name that another port of the host has set, too.
        let found = cookies(request, COOKIE).find_map(|cookie| {
            console.sessions.find(hash_of(console, cookie), key_hash, &master, now, by_person)
        });
        let session = found.ok_or_else(|| see("/console/login"))?;
        if request.method() == Method::POST && is_cross_site(request.headers(), None) {
            return Err(error_page(&ApiError::form_from_elsewhere()));
        }
        Ok(Self { base: format!("/console/{key}"), session, from: peer(request) })
    }
}

impl FromRequest for Operator {
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Error>>>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            let Some(console) = request.app_data::<Data<Console>>() else {
                return Err(actix_web::error::ErrorInternalServerError("no console"));
            };
            let denied =
                |response| InternalError::from_response("not an operator", response).into();
            Self::of(&request, console).await.map_err(denied)
        })
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
    let bearer = match state.live.bearer(Some(&form.token)) {
        // An empty field is a wrong token too.
        Bearer::Nobody => Bearer::Token(KeyedHash([0; 16])),
        bearer => bearer,
    };
    let wrong = ApiError::wrong_master_token();
    if let Err(error) = state.only_master(bearer, from, Listener::Operators, wrong).await {
        let mut response = login_with(error.status, Some(error.message));
        if let Some(seconds) = error.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        return response;
    }
    open_session(&console, &request, from).await.unwrap_or_else(|error| error_page(&error))
}

async fn open_session(
    console: &Console,
    request: &HttpRequest,
    from: IpAddr,
) -> Result<HttpResponse, ApiError> {
    let random = || random_bytes::<16>().map(|bytes| hex(&bytes)).map_err(|_| ApiError::internal());
    let (secret, key, mut id) = (random()?, random()?, random()?);
    id.truncate(8);
    let now = console.state.clock.now();
    let browser = request.headers().get(USER_AGENT).and_then(|name| name.to_str().ok());
    let session = Session {
        id: id.clone(),
        key: hash_of(console, &key),
        master: **console.state.live.master.load(),
        from,
        browser: browser.unwrap_or_default().to_owned(),
        opened: now,
        used: now,
    };
    console.sessions.open(hash_of(console, &secret), session);
    let event = Event::new(Action::LoggedIn, Actor::Operator, now, Some(from));
    // The operator is let in even if the store refuses the entry: the console shows why it does.
    console.state.enter(vec![Event { subject: id, ..event }]).await;
    let cookie = Cookie::build(COOKIE, secret)
        // A browser does not even send it to another port, unless it is asked for this very path there.
        .path(format!("/console/{key}"))
        .http_only(true)
        .same_site(SameSite::Strict)
        .finish();
    let mut response = see(&format!("/console/{key}/now"));
    response.add_cookie(&cookie).map_err(|_| ApiError::internal())?;
    Ok(response)
}

/// `POST /console/{key}/logout`
pub async fn logout(console: Data<Console>, operator: Operator) -> HttpResponse {
    // It may have ended meanwhile.
    let _ = console.end_session(&operator.session, operator.from).await;
    see("/console/login")
}
