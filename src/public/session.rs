//! Browser sessions. A product's page sets a signed cookie.

use crate::http::cookies::cookies;
use crate::http::cross_site::is_cross_site;
use crate::os::random_bytes;
use crate::state::State;
use crate::tokens::SessionPass;
use actix_web::HttpRequest;
use actix_web::cookie::{Cookie, SameSite};
use iptunnel_domain::lookup::{KeyedHash, Purpose};
use iptunnel_domain::time::Lifespan;
use iptunnel_domain::{Refusal, Timestamp};

/// A valid cookie that expired at most this many seconds ago keeps its session id when renewed.
pub const RENEWABLE_SECONDS: u64 = 86_400;

fn user_agent_hash(state: &State, request: &HttpRequest) -> KeyedHash {
    let agent = request.headers().get("user-agent").map_or(&[][..], |agent| agent.as_bytes());
    state.live.lookup.hash(Purpose::Browser, agent)
}

fn cookie_name(product: &str) -> String {
    format!("{product}_browser")
}

/// Returns the session of the browser's cookie. Checks signature and browser, but not the expiry. Of
/// several valid cookies the one that lives longest counts.
///
/// # Errors
/// If there is no cookie, or none is valid for this browser.
pub fn session(
    state: &State,
    request: &HttpRequest,
    product: &str,
) -> Result<SessionPass, Refusal> {
    let name = cookie_name(product);
    let (tokens, browser) = (state.live.tokens.load(), user_agent_hash(state, request));
    let genuine = cookies(request, &name)
        .filter_map(|cookie| tokens.verify_session(cookie))
        .filter(|pass| pass.user_agent.ct_eq(&browser));
    genuine.max_by_key(|pass| pass.life.until).ok_or_else(|| {
        let has_any = cookies(request, &name).next().is_some();
        if has_any { Refusal::SessionInvalid } else { Refusal::SessionRequired }
    })
}

/// Returns the session cookie for a page. Renews a valid session, else makes a new one.
pub fn session_cookie<'c>(
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
    let config = state.live.config.load();
    let life = Lifespan { from: now, until: now.plus(config.session_ttl_seconds) };
    let pass = SessionPass { id, user_agent: user_agent_hash(state, request), life };
    let value = state.live.tokens.load().sign_session(&pass)?;
    let cookie = Cookie::build(cookie_name(product), value)
        .path("/")
        .http_only(true)
        .same_site(SameSite::Strict)
        .secure(config.server.public_url.is_https())
        .finish();
    Some(cookie)
}

fn new_session_id() -> Option<String> {
    random_bytes::<16>().ok().map(|bytes| format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// Returns the session of a request if it may get codes.
///
/// # Errors
/// If the request is cross-site, or has no valid session.
pub fn may_issue(
    state: &State,
    request: &HttpRequest,
    product: &str,
    now: Timestamp,
) -> Result<SessionPass, Refusal> {
    let public_origin = state.live.config.load().server.public_url.origin().to_owned();
    if is_cross_site(request.headers(), Some(&public_origin)) {
        return Err(Refusal::SessionInvalid);
    }
    let pass = session(state, request, product)?;
    if pass.life.is_over(now) { Err(Refusal::SessionRequired) } else { Ok(pass) }
}
