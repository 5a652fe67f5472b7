//! The installer's four steps: precheck, activate, confirm, release.

mod answers;
mod read;

use crate::config::Product;
use crate::http::body::fields;
use crate::http::caller::network_of;
use crate::http::errors::ApiError;
use crate::http::respond::{Success, failure, success, with_rates};
use crate::public::requests::{ActivateRequest, ConfirmRequest, PrecheckRequest, ReleaseRequest};
use crate::state::State;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use answers::{ActivateData, ConfirmData, PrecheckData, ReleaseData, activated, prechecked};
use iptunnel_actors::activation::{Activated, Confirm, Release, ReleaseOutcome};
use iptunnel_actors::code_registry::PrecheckCode;
use iptunnel_actors::{Limited, LimitedCommand};
use iptunnel_domain::audit::Action;
use iptunnel_domain::limit::Policy;
use iptunnel_domain::{Refusal, Timestamp};
use read::{
    Identity, InstallBody, Rejected, check_product, read_activate, read_confirm, read_release,
    subjects,
};

/// Handles one of the two rate-limited steps. Reads the body, converts it to a command with `read`,
/// and sends the command through the limits. A refusal goes through the limits too, so that a bad
/// request is charged like a good one. `grant` makes the response to a success. Records early
/// refusals with the code.
async fn limited_step<C: LimitedCommand>(
    state: &State,
    request: &HttpRequest,
    payload: Payload,
    policies: [Policy; 2],
    read: impl FnOnce(InstallBody<'_>, Timestamp) -> Result<(C, Identity), Rejected>,
    grant: impl FnOnce(C::Answer, Identity, Timestamp) -> HttpResponse,
) -> HttpResponse {
    let now = state.clock.now();
    let bytes = state.read(payload).await;
    let body: Result<InstallBody<'_>, Refusal> = fields(&bytes);
    let network = network_of(request, &state.proxies);
    let subjects = subjects(state, network, &body, policies);
    let (command, identity, tried) = match body.map_err(Rejected::from).and_then(|b| read(b, now)) {
        Ok((command, identity)) => (Ok(command), Some(identity), None),
        Err(Rejected { refusal, tried }) => (Err(refusal), None, tried),
    };
    let answer = state
        .ask(|handles| handles.limited(|reply| Limited { subjects, command, now, reply }))
        .await;
    let response = match (answer.outcome, identity) {
        (Ok(Ok(granted)), Some(identity)) => grant(granted, identity, now),
        // Cannot happen: a refusal has no success.
        (Ok(Ok(_)), None) => failure(ApiError::internal()),
        (Ok(Err(refusal)), _) => {
            if let Some(tried) = tried {
                state.handles.note_refused(tried, &refusal);
            }
            failure(refusal)
        }
        (Err(error), _) => failure(error),
    };
    with_rates(response, answer.rates.as_ref(), now)
}

/// `POST /api/v2/{product}/install/precheck`
#[utoipa::path(
    post,
    path = "/api/v2/{product}/install/precheck",
    operation_id = "precheck",
    tag = "Install",
    summary = "Precheck an install code",
    description = "Checks that the code is valid for this machine. Changes nothing. With the token from \
        the response the machine can activate even after the code has expired, until the token \
        itself expires. Rate limits apply to each address and machine.",
    request_body = PrecheckRequest,
    responses((
        status = 200,
        description = "The code is valid for this machine.",
        body = Success<PrecheckData>,
    )),
)]
pub async fn precheck(
    state: Data<State>,
    request: HttpRequest,
    product: Data<Product>,
    payload: Payload,
) -> HttpResponse {
    let policies = [Policy::PrecheckPerIpDay, Policy::PrecheckPerMachineDay];
    let life = state.live.tuning.load().lifetimes;
    let from = network_of(&request, &state.proxies);
    let read = |mut body: InstallBody<'_>, now| {
        let identity = Identity::read(&state, &mut body)?;
        check_product(&product, &identity.code, &body.product)
            .map_err(|refusal| identity.rejected(refusal, Action::PrecheckRefused, from, now))?;
        let (code, holder) = (identity.hash, identity.holder);
        Ok((PrecheckCode { code, holder, from, life, now }, identity))
    };
    let grant = |(), identity: Identity, now: Timestamp| {
        prechecked(&state, &product, identity, now, now.plus(life.precheck_token))
    };
    limited_step(&state, &request, payload, policies, read, grant).await
}

/// `POST /api/v2/{product}/install/activate`
#[utoipa::path(
    post,
    path = "/api/v2/{product}/install/activate",
    operation_id = "activate",
    tag = "Install",
    summary = "Activate an install code",
    description = "Uses the code for this machine. Only one machine can use a code, even if several try \
        at the same time. While the activation is open, the same machine with the same host name and \
        address gets the same response again, so a lost response costs no code. Rate limits apply to \
        each address and machine.",
    request_body = ActivateRequest,
    responses((
        status = 200,
        description = "This machine now holds the code.",
        body = Success<ActivateData>,
    )),
)]
pub async fn activate(
    state: Data<State>,
    request: HttpRequest,
    product: Data<Product>,
    payload: Payload,
) -> HttpResponse {
    let policies = [Policy::ActivatePerIpDay, Policy::ActivatePerMachineDay];
    let from = network_of(&request, &state.proxies);
    let read = |body: InstallBody<'_>, now| read_activate(&state, &product, body, from, now);
    let grant = |granted: Activated, identity, _| activated(&state, &granted.activation, identity);
    limited_step(&state, &request, payload, policies, read, grant).await
}

/// `POST /api/v2/{product}/install/confirm`
#[utoipa::path(
    post,
    path = "/api/v2/{product}/install/confirm",
    operation_id = "confirm",
    tag = "Install",
    summary = "Confirm an install",
    description = "Marks the install as complete. The code and the install token cannot be used again.",
    request_body = ConfirmRequest,
    responses((status = 200, description = "The install is complete.", body = Success<ConfirmData>)),
)]
pub async fn confirm(state: Data<State>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let now = state.clock.now();
    let bytes = state.read(payload).await;
    let (id, token) = match read_confirm(&state, &bytes, now) {
        Ok(named) => named,
        Err(refusal) => return failure(refusal),
    };
    let from = network_of(&request, &state.proxies);
    let answer = state.ask(|handles| handles.confirm(Confirm { id, token, from, now })).await;
    match answer.outcome {
        Ok(Ok(())) => {
            let data = ConfirmData { activation_id: id.reveal(), status: "confirmed" };
            success(StatusCode::OK, data, "Install confirmed")
        }
        Ok(Err(refusal)) => failure(refusal),
        Err(error) => failure(error),
    }
}

/// `POST /api/v2/{product}/install/release`
#[utoipa::path(
    post,
    path = "/api/v2/{product}/install/release",
    operation_id = "release",
    tag = "Install",
    summary = "Release an activation",
    description = "Makes the code valid again after an install that did not finish. After a confirm it has \
        no effect: the install stays confirmed.",
    request_body = ReleaseRequest,
    responses((
        status = 200,
        description = "The activation is closed.",
        body = Success<ReleaseData>,
    )),
)]
pub async fn release(state: Data<State>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let now = state.clock.now();
    let bytes = state.read(payload).await;
    let ((id, token), proven) = match read_release(&state, &bytes) {
        Ok(named) => named,
        Err(refusal) => return failure(refusal),
    };
    let life = state.live.tuning.load().lifetimes;
    let from = network_of(&request, &state.proxies);
    let release = Release { id, token, proven, from, life, now };
    let answer = state.ask(|handles| handles.release(release)).await;
    let outcome = match answer.outcome {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(refusal)) => return failure(refusal),
        Err(error) => return failure(error),
    };
    let (status, install_code_restored, message) = match outcome {
        ReleaseOutcome::Released { code_restored } => {
            ("released", code_restored, "Activation released")
        }
        ReleaseOutcome::Confirmed => ("confirmed", false, "Activation already confirmed"),
    };
    let data = ReleaseData { activation_id: id.reveal(), status, install_code_restored };
    success(StatusCode::OK, data, message)
}
