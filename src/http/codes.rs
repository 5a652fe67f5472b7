//! A product's page, and the codes asked for on it.

use super::caller::network_of;
use super::cross_site::is_cross_site;
use super::errors::ApiError;
use super::page::{Said, code_page, title_of};
use super::respond::{Success, failure, failure_for, rfc3339, success, with_rates};
use super::state::State;
use super::watch;
use crate::config::Product;
use crate::os::random_bytes;
use crate::tokens::SessionPass;
use actix_web::cookie::{Cookie, SameSite};
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderValue, RETRY_AFTER};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_actors::code_registry::{Issue, Issued};
use iptunnel_actors::{Limited, Rates};
use iptunnel_domain::limit::{Policy, Subject};
use iptunnel_domain::lookup::{KeyedHash, Purpose};
use iptunnel_domain::time::{Lifespan, Lifetimes};
use iptunnel_domain::{Refusal, Timestamp};
use serde::Serialize;
use std::net::IpAddr;
use utoipa::ToSchema;

/// A genuine cookie that expired no longer ago than this keeps its session id when renewed.
pub(super) const RENEWABLE_SECONDS: u64 = 86_400;

#[derive(Serialize, ToSchema)]
pub(super) struct IssuedData {
    /// The code: good for one machine.
    #[schema(examples("IPT-SD-XXXXXX-XXXXXX-XXXXXX"))]
    install_code: String,
    /// When it is over.
    #[schema(format = DateTime, examples("2026-03-31T12:05:00+00:00"))]
    expires_at: String,
    /// How long it is good, counted from its issue.
    #[schema(examples(300))]
    ttl_seconds: u64,
}

fn user_agent_hash(state: &State, request: &HttpRequest) -> KeyedHash {
    let agent = request.headers().get("user-agent").map_or(&[][..], |agent| agent.as_bytes());
    state.lookup.hash(Purpose::Browser, agent)
}

fn cookie_name(product: &str) -> String {
    format!("{product}_browser")
}

/// The session that the browser's cookie carries, genuine and of this browser; it may be over.
pub(super) fn session(
    state: &State,
    request: &HttpRequest,
    product: &str,
) -> Result<SessionPass, Refusal> {
    let cookie = request.cookie(&cookie_name(product)).ok_or(Refusal::SessionRequired)?;
    let pass = state.tokens.load().verify_session(cookie.value()).ok_or(Refusal::SessionInvalid)?;
    let same_browser = pass.user_agent.ct_eq(&user_agent_hash(state, request));
    if same_browser { Ok(pass) } else { Err(Refusal::SessionInvalid) }
}

/// The session cookie of whoever opens the page: a genuine one is prolonged, else there is a new one.
fn session_cookie<'c>(
    state: &State,
    request: &HttpRequest,
    product: &str,
    now: Timestamp,
) -> Option<Cookie<'c>> {
    let kept = session(state, request, product)
        .ok()
        .filter(|pass| pass.is_renewable(now, RENEWABLE_SECONDS))
        .map(|pass| pass.id);
    let id = kept.or_else(new_session_id)?;
    let config = state.config.load();
    let life = Lifespan { from: now, until: now.plus(config.session_ttl_seconds) };
    let pass = SessionPass { id, user_agent: user_agent_hash(state, request), life };
    let value = state.tokens.load().sign_session(&pass)?;
    let cookie = Cookie::build(cookie_name(product), value)
        .path("/")
        .http_only(true)
        .same_site(SameSite::Strict)
        .secure(config.server.public_url.is_https())
        .finish();
    Some(cookie)
}

/// `GET /{product}`: the page, and the cookie that may ask for codes.
pub async fn page(
    state: Data<State>,
    request: HttpRequest,
    product: Data<Product>,
) -> HttpResponse {
    let now = state.clock.now();
    opened(&state, &request, &product, Said::Nothing, now)
}

/// The product's page with what there is to say, and a session that is good from now on.
fn opened(
    state: &State,
    request: &HttpRequest,
    product: &Product,
    said: Said,
    now: Timestamp,
) -> HttpResponse {
    let config = state.config.load();
    let public_url = config.server.public_url.origin();
    let mut response = code_page(product, &config.pages, public_url, said);
    let cookie = session_cookie(state, request, &product.name, now);
    match cookie.map(|cookie| response.add_cookie(&cookie)) {
        Some(Ok(())) => response,
        _ => failure_for(request, ApiError::internal()),
    }
}

fn new_session_id() -> Option<String> {
    random_bytes::<16>().ok().map(|bytes| format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// The session that asks, if it may.
fn may_issue(
    state: &State,
    request: &HttpRequest,
    product: &str,
    now: Timestamp,
) -> Result<SessionPass, Refusal> {
    let public_origin = state.config.load().server.public_url.origin().to_owned();
    if is_cross_site(request.headers(), Some(&public_origin)) {
        return Err(Refusal::SessionInvalid);
    }
    let pass = session(state, request, product)?;
    if pass.life.is_over(now) { Err(Refusal::SessionRequired) } else { Ok(pass) }
}

/// The bytes under which a network is hashed.
pub fn network_hash(state: &State, network: IpAddr) -> KeyedHash {
    match network {
        IpAddr::V4(v4) => state.lookup.hash(Purpose::Network, &v4.octets()),
        IpAddr::V6(v6) => state.lookup.hash(Purpose::Network, &v6.octets()),
    }
}

/// What a request for a code came to.
struct Asked {
    outcome: Result<Issued, ApiError>,
    rates: Option<Rates>,
    life: Lifetimes,
    now: Timestamp,
}

impl Asked {
    /// The answer with what goes along with every answer: how the limits stand, and by which cookie
    /// the page finds the stream of its code.
    fn dress(
        self,
        state: &State,
        request: &HttpRequest,
        product: &Product,
        mut response: HttpResponse,
    ) -> HttpResponse {
        if let Ok(issued) = &self.outcome {
            let hash = issued.code.hash(&state.lookup);
            let secure = state.config.load().server.public_url.is_https();
            // Without it the page would only not watch.
            let _ = response.add_cookie(&watch::remember(request, product, hash, secure));
        }
        with_rates(response, self.rates.as_ref(), self.now)
    }
}

/// Asks for a code: session, limits, decision.
async fn ask(state: &State, request: &HttpRequest, product: &Product) -> Asked {
    let now = state.clock.now();
    let life = state.tuning.load().lifetimes;
    let pass = match may_issue(state, request, &product.name, now) {
        Ok(pass) => pass,
        Err(refusal) => return Asked { outcome: Err(refusal.into()), rates: None, life, now },
    };
    let from = network_of(request, &state.proxies);
    let network = network_hash(state, from);
    let session = state.lookup.hash(Purpose::Session, pass.id.as_bytes());
    let browser = state.lookup.hash(Purpose::Browser, &[network.0, pass.user_agent.0].concat());
    let subjects = vec![
        Subject { policy: Policy::IssuePerIpHour, who: network },
        Subject { policy: Policy::IssuePerIpDay, who: network },
        Subject { policy: Policy::IssuePerSessionHour, who: session },
        Subject { policy: Policy::IssuePerFingerprintDay, who: browser },
    ];
    let command = Ok(Issue { product: product.letters, session, from, life, now });
    let pending = state.handles.limited(|reply| Limited { subjects, command, now, reply });
    let answer = state.wait(pending).await;
    let outcome = match answer.outcome {
        Ok(Ok(issued)) => Ok(issued),
        Ok(Err(refusal)) => Err(refusal.into()),
        Err(failed) => Err(failed.into()),
    };
    Asked { outcome, rates: answer.rates, life, now }
}

/// `POST /api/v2/{product}/code/issue`. The body does not matter.
#[utoipa::path(
    post,
    path = "/api/v2/{product}/code/issue",
    operation_id = "issue",
    tag = "Install",
    summary = "Issue an install code",
    description = "Makes a code for the browser that has opened the product's page: the cookie \
        set there has to come along, with the same User-Agent. A body is not needed and not \
        looked at. Limited for each address, browser session and browser.",
    responses((status = 201, description = "A new code.", body = Success<IssuedData>)),
)]
pub async fn issue(
    state: Data<State>,
    request: HttpRequest,
    product: Data<Product>,
) -> HttpResponse {
    let asked = ask(&state, &request, &product).await;
    let response = match &asked.outcome {
        Ok(issued) => {
            let data = IssuedData {
                install_code: issued.code.reveal(),
                expires_at: rfc3339(issued.expires_at),
                ttl_seconds: asked.life.code,
            };
            let message = format!("{} install code issued", title_of(&product.name));
            success(StatusCode::CREATED, data, &message)
        }
        Err(error) => failure(error.clone()),
    };
    asked.dress(&state, &request, &product, response)
}

/// `POST /{product}`: the same from a page without a script, answered as a page.
pub async fn issue_page(
    state: Data<State>,
    request: HttpRequest,
    product: Data<Product>,
) -> HttpResponse {
    let asked = ask(&state, &request, &product).await;
    let said = match &asked.outcome {
        Ok(issued) => {
            let until = rfc3339(issued.expires_at);
            // The time of day: the code does not live longer than that is clear.
            let until = until.get(11..19).unwrap_or(&until).to_owned();
            Said::Issued { code: issued.code.reveal(), until }
        }
        Err(error) => Said::Refused(error.clone()),
    };
    let retry_after = asked.outcome.as_ref().err().and_then(|error| error.retry_after);
    let mut response = opened(&state, &request, &product, said, asked.now);
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    asked.dress(&state, &request, &product, response)
}
