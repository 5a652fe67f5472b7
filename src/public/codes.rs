//! A product's page, and the codes asked for on it.

use super::pages::{Said, code_page, title_of};
use super::session::{may_issue, session_cookie};
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
use iptunnel_domain::limit::{Policy, Subject};
use iptunnel_domain::lookup::Purpose;
use iptunnel_domain::time::Lifetimes;
use serde::Serialize;
use utoipa::ToSchema;

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
    let config = state.live.config.load();
    let public_url = config.server.public_url.origin();
    let mut response = code_page(product, &config.pages, public_url, said);
    let cookie = session_cookie(state, request, &product.name, now);
    match cookie.map(|cookie| response.add_cookie(&cookie)) {
        Some(Ok(())) => response,
        _ => failure_for(request, ApiError::internal()),
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
            let hash = issued.code.hash(&state.live.lookup);
            let secure = state.live.config.load().server.public_url.is_https();
            // Without it the page would only not watch.
            let _ = response.add_cookie(&watch::remember(request, product, hash, secure));
        }
        with_rates(response, self.rates.as_ref(), self.now)
    }
}

/// Asks for a code: session, limits, decision.
async fn ask(state: &State, request: &HttpRequest, product: &Product) -> Asked {
    let now = state.clock.now();
    let life = state.live.tuning.load().lifetimes;
    let pass = match may_issue(state, request, &product.name, now) {
        Ok(pass) => pass,
        Err(refusal) => return Asked { outcome: Err(refusal.into()), rates: None, life, now },
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
