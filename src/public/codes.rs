//! A product's page, and the issue of codes.

use super::pages::{PageMessage, code_page, title_of};
use super::session::{may_issue, session_cookie};
use super::shown_again::{Again, Kept, keep, kept};
use super::watch;
use crate::config::Product;
use crate::http::caller::network_of;
use crate::http::errors::ApiError;
use crate::http::respond::{Success, failure, failure_for, rfc3339, success, with_rates};
use crate::state::State;
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderValue, RETRY_AFTER};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_actors::code_registry::{Issue, Issued};
use iptunnel_actors::{Limited, Rates};
use iptunnel_domain::Timestamp;
use iptunnel_domain::limit::{Policy, Subject, tightest};
use iptunnel_domain::lookup::Purpose;
use iptunnel_domain::time::Lifetimes;
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(super) struct IssuedData {
    /// The code. It is valid for one machine.
    #[schema(examples("IPT-SD-XXXXXX-XXXXXX-XXXXXX"))]
    install_code: String,
    /// When the code expires.
    #[schema(format = DateTime, examples("2026-03-31T12:05:00+00:00"))]
    expires_at: String,
    /// Seconds from issue to expiry.
    #[schema(examples(300))]
    ttl_seconds: u64,
}

/// `GET /{product}`: the page. Sets the session cookie that is required to get codes.
pub async fn page(
    state: Data<State>,
    request: HttpRequest,
    product: Data<Product>,
) -> HttpResponse {
    let now = state.clock.now();
    let kept = kept(&state, &request, &product, now).await;
    let (message, over) = match kept {
        Kept::Nothing => (PageMessage::Nothing, None),
        Kept::Over(cookie) => (PageMessage::Nothing, Some(cookie)),
        Kept::Code(Again { code, standing }) => {
            let left = (!standing.is_in_use).then_some(standing.ttl_seconds);
            let until = time_of_day(&standing.expires_at);
            (PageMessage::Issued { code, until, left, is_new: false }, None)
        }
    };
    let mut response = product_page(&state, &request, &product, message, now);
    if let Some(cookie) = over {
        // It stays until then, and is not shown.
        let _ = response.add_cookie(&cookie);
    }
    response
}

/// Returns the time of day of a time by RFC 3339. It is enough, because a code lives for minutes.
fn time_of_day(rfc3339: &str) -> String {
    rfc3339.get(11..19).unwrap_or(rfc3339).to_owned()
}

/// Renders the product's page and sets a session cookie whose lifetime starts now.
fn product_page(
    state: &State,
    request: &HttpRequest,
    product: &Product,
    page_message: PageMessage,
    now: Timestamp,
) -> HttpResponse {
    let config = state.live.config.load();
    let public_url = config.server.public_url.origin();
    let mut response = code_page(product, &config.pages, public_url, page_message);
    let cookie = session_cookie(state, request, &product.name, now);
    match cookie.map(|cookie| response.add_cookie(&cookie)) {
        Some(Ok(())) => response,
        _ => failure_for(request, ApiError::internal()),
    }
}

/// The result of a request for a code.
struct IssueResult {
    outcome: Result<Issued, ApiError>,
    rates: Option<Rates>,
    life: Lifetimes,
    now: Timestamp,
}

impl IssueResult {
    /// Adds the rate limit headers and the cookie by which the page finds the event stream of its
    /// code.
    fn into_response(
        self,
        state: &State,
        request: &HttpRequest,
        product: &Product,
        mut response: HttpResponse,
    ) -> HttpResponse {
        if let Ok(issued) = &self.outcome {
            let hash = issued.code.hash(&state.live.lookup);
            let secure = state.live.config.load().server.public_url.is_https();
            // Without the cookie the page shows no progress; nothing else is lost.
            let _ = response.add_cookie(&watch::remember(request, product, hash, secure));
            if let Some(cookie) = keep(state, request, product, &issued.code) {
                let _ = response.add_cookie(&cookie);
            }
        }
        with_rates(response, self.rates.as_ref(), self.now)
    }
}

/// Issues a code: checks the session and the limits, then asks the code registry.
async fn issue_code(state: &State, request: &HttpRequest, product: &Product) -> IssueResult {
    let now = state.clock.now();
    let life = state.live.tuning.load().lifetimes;
    let pass = match may_issue(state, request, &product.name, now) {
        Ok(pass) => pass,
        Err(refusal) => {
            return IssueResult { outcome: Err(refusal.into()), rates: None, life, now };
        }
    };
    let from = network_of(request, &state.proxies);
    let network = state.live.network_hash(from);
    let session = state.live.lookup.hash(Purpose::Session, pass.id.as_bytes());
    let browser =
        state.live.lookup.hash(Purpose::Browser, &[network.0, pass.user_agent.0].concat());
    let subjects = vec![
        Subject { policy: Policy::IssuePerIpHour, who: network },
        Subject { policy: Policy::IssuePerIpDay, who: network },
        Subject { policy: Policy::IssuePerSessionHour, who: session },
        Subject { policy: Policy::IssuePerFingerprintDay, who: browser },
    ];
    let command = Ok(Issue { product: product.letters, session, from, life, now });
    let answer = state
        .ask(|handles| handles.limited(|reply| Limited { subjects, command, now, reply }))
        .await;
    let outcome = match answer.outcome {
        Ok(Ok(issued)) => Ok(issued),
        Ok(Err(refusal)) => Err(refusal.into()),
        Err(failed) => Err(failed.into()),
    };
    IssueResult { outcome, rates: answer.rates, life, now }
}

/// `POST /api/v2/{product}/code/issue`. Ignores the body.
#[utoipa::path(
    post,
    path = "/api/v2/{product}/code/issue",
    operation_id = "issue",
    tag = "Install",
    summary = "Issue an install code",
    description = "Issues a code to a browser that has opened the product's page. The request must \
        carry the cookie from that page and the same User-Agent. The body is optional and ignored. \
        Rate limits apply to each address, browser session and browser.",
    responses((status = 201, description = "A new code.", body = Success<IssuedData>)),
)]
pub async fn issue(
    state: Data<State>,
    request: HttpRequest,
    product: Data<Product>,
) -> HttpResponse {
    let result = issue_code(&state, &request, &product).await;
    let response = match &result.outcome {
        Ok(issued) => {
            let data = IssuedData {
                install_code: issued.code.reveal(),
                expires_at: rfc3339(issued.expires_at),
                ttl_seconds: result.life.code,
            };
            let message = format!("{} install code issued", title_of(&product.name));
            success(StatusCode::CREATED, data, &message)
        }
        Err(error) => failure(error.clone()),
    };
    result.into_response(&state, &request, &product, response)
}

/// `POST /{product}`: issues a code to a page without scripts. Answers with a page.
pub async fn issue_page(
    state: Data<State>,
    request: HttpRequest,
    product: Data<Product>,
) -> HttpResponse {
    let result = issue_code(&state, &request, &product).await;
    let page_message = match &result.outcome {
        Ok(issued) => {
            let until = time_of_day(&rfc3339(issued.expires_at));
            let left = Some(result.life.code);
            PageMessage::Issued { code: issued.code.reveal(), until, left, is_new: true }
        }
        Err(error) => {
            let tight = result.rates.as_ref().and_then(|rates| tightest(rates));
            let limit = tight.filter(|_| error.code == "rate_limit_exceeded");
            PageMessage::Refused(error.clone(), limit.map(|limit| limit.policy))
        }
    };
    let retry_after = result.outcome.as_ref().err().and_then(|error| error.retry_after);
    let mut response = product_page(&state, &request, &product, page_message, result.now);
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    result.into_response(&state, &request, &product, response)
}
