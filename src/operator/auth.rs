//! Access control of the console.
//!
//! A person logs in with the master token and gets a session. A program sends the token with every
//! request. Wrong tokens are slowed as on the public listener. Forms are accepted from pages of
//! this listener only. `SameSite` alone is not enough: cookies ignore the port, so a page on another
//! port of the same host could send a form.

use super::console::{Console, see};
use crate::hex::hex;
use crate::http::caller::authorization;
use crate::http::cross_site::is_cross_site;
use crate::http::errors::ApiError;
use crate::http::page::{error_page, html};
use crate::http::respond::failure;
use crate::os::random_bytes;
use crate::state::wrong_tokens::Listener;
use actix_web::cookie::{Cookie, SameSite};
use actix_web::dev::Payload;
use actix_web::error::InternalError;
use actix_web::http::header::{HeaderValue, RETRY_AFTER};
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
use std::net::IpAddr;
use std::pin::Pin;

const COOKIE: &str = "console";
/// The path that a page fetches on a timer. Such a request does not extend the session.
const BY_ITSELF: &str = "/console/now/live";

/// An authenticated operator. Handlers with this argument refuse all other callers.
pub struct Operator {
    /// The CSRF token that a form must contain. Empty for a program.
    pub csrf: String,
    /// The operator's address.
    pub from: IpAddr,
}

/// Returns the operator's address: always the TCP peer, as this listener supports no proxies.
fn peer(request: &HttpRequest) -> IpAddr {
    request.peer_addr().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip().to_canonical())
}

fn hash_of(console: &Console, secret: &str) -> KeyedHash {
    console.state.live.lookup.hash(Purpose::Session, secret.as_bytes())
}

impl Operator {
    async fn of(request: &HttpRequest, console: &Console) -> Result<Self, HttpResponse> {
        let from = peer(request);
        if request.path().starts_with("/console") {
            let cookie = request.cookie(COOKIE).map(|cookie| hash_of(console, cookie.value()));
            let master = console.state.live.master.load();
            let by_person = request.path() != BY_ITSELF;
            let csrf = cookie.and_then(|cookie| console.sessions.csrf(cookie, &master, by_person));
            let csrf = csrf.ok_or_else(|| see("/console/login"))?;
            if request.method() == Method::POST && is_cross_site(request.headers(), None) {
                return Err(error_page(&ApiError::form_from_elsewhere()));
            }
            return Ok(Self { csrf, from });
        }
        let state = &console.state;
        let bearer = state.live.bearer(authorization(request));
        let admitted =
            state.only_master(bearer, from, Listener::Operators, Refusal::Unauthorized).await;
        admitted.map(|()| Self { csrf: String::new(), from }).map_err(failure)
    }

    /// Checks that a form comes from a page of this session.
    ///
    /// # Errors
    /// If it does not.
    pub fn check(&self, csrf: &str) -> Result<(), ApiError> {
        let same = subtle::ConstantTimeEq::ct_eq(csrf.as_bytes(), self.csrf.as_bytes());
        if bool::from(same) && !self.csrf.is_empty() {
            return Ok(());
        }
        Err(ApiError::form_of_another_session())
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
    let from = peer(&request);
    // Checked before anything is counted. Otherwise a page of another site could use up the
    // visitor's tries.
    if is_cross_site(request.headers(), None) {
        return login_with(StatusCode::FORBIDDEN, Some(ApiError::form_from_elsewhere().message));
    }
    let state = &console.state;
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
    let (Ok(secret), Ok(csrf)) = (random_bytes::<32>(), random_bytes::<16>()) else {
        return error_page(&ApiError::internal());
    };
    let secret = hex(&secret);
    let master = **console.state.live.master.load();
    console.sessions.open(hash_of(&console, &secret), hex(&csrf), master);
    let event =
        Event::new(Action::LoggedIn, Actor::Operator, console.state.clock.now(), Some(from));
    let entered = console.state.handles.keep_settings(Vec::new(), vec![event]);
    if !matches!(console.state.wait(entered).await.outcome, Ok(Ok(()))) {
        // Let the operator in anyway: the console shows why the store refuses writes.
        tracing::warn!(
            "could not write a login to the audit log; the operator is logged in anyway"
        );
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

/// The fields of the logout form.
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
