//! The installer's four steps: precheck, activate, confirm, release.

use super::body::{Body, Field, fields};
use super::caller::network_of;
use super::codes::network_hash;
use super::errors::ApiError;
use super::reference::requests::{
    ActivateRequest, ConfirmRequest, PrecheckRequest, ReleaseRequest,
};
use super::respond::{Success, failure, rfc3339, success, with_rates};
use super::state::State;
use crate::ambient::random_bytes;
use crate::config::Product;
use crate::tokens::{InstallPass, PrecheckPass};
use actix_web::http::StatusCode;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_actors::activation::{Activated, Confirm, Release, ReleaseOutcome};
use iptunnel_actors::code_registry::{Activate, PrecheckCode};
use iptunnel_actors::{Limited, LimitedCommand, RefusedEarly};
use iptunnel_domain::activation::{Activation, ActivationId, Binding, Holder, Request};
use iptunnel_domain::address::{HostName, parse_public_ip};
use iptunnel_domain::audit::Action;
use iptunnel_domain::code::{CodeHash, InstallCode};
use iptunnel_domain::limit::{Policy, Subject};
use iptunnel_domain::lookup::Purpose;
use iptunnel_domain::{Refusal, Timestamp};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;
use utoipa::ToSchema;

/// The longest machine id, in characters.
pub(super) const MACHINE_ID: usize = 128;
/// The longest SSH fingerprint.
pub(super) const FINGERPRINT: usize = 255;
/// The longest token that is looked at.
pub(super) const TOKEN: usize = 4096;
/// What is kept of an installer's version.
pub(super) const VERSION: usize = 64;
/// What is kept of the version that is asked for.
pub(super) const REF: usize = 255;
/// Longer than any code, so that a code of a wrong form is named as that.
const CODE: usize = 1024;
const HOSTNAME: usize = HostName::MAX_BYTES + 1;
const ADDRESS: usize = 64;
pub(super) const ACTIVATION_ID: usize = 255;

#[derive(Default, Deserialize)]
#[serde(default)]
struct InstallBody<'a> {
    #[serde(borrow)]
    install_code: Field<'a>,
    #[serde(borrow)]
    license_key: Field<'a>,
    #[serde(borrow)]
    machine_id: Field<'a>,
    #[serde(borrow)]
    ssh_fingerprint: Field<'a>,
    #[serde(borrow)]
    product: Field<'a>,
    #[serde(borrow)]
    installer_version: Field<'a>,
    #[serde(borrow)]
    precheck_token: Field<'a>,
    #[serde(borrow)]
    hostname: Field<'a>,
    #[serde(borrow)]
    public_ip: Field<'a>,
    #[serde(borrow)]
    requested_ref: Field<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FinishBody<'a> {
    #[serde(borrow)]
    activation_id: Field<'a>,
    #[serde(borrow)]
    install_token: Field<'a>,
}

/// The machine, as it named itself.
#[derive(Serialize, ToSchema)]
pub(super) struct MachineIdentity {
    #[schema(examples("3f2b8c9d0a1e4f56b7c8d9e0f1a2b3c4"))]
    machine_id: String,
    #[schema(examples("SHA256:Qm9ndXNGaW5nZXJwcmludE9mQUtleQ"))]
    ssh_fingerprint: String,
}

/// The machine, with the name and address it will have.
#[derive(Serialize, ToSchema)]
pub(super) struct MachineBinding {
    /// The host name in its canonical spelling.
    #[schema(examples("ns1.example.com"))]
    hostname: String,
    /// The address in its canonical spelling.
    #[schema(examples("1.2.3.4"))]
    public_ip: String,
    #[serde(flatten)]
    identity: MachineIdentity,
}

#[derive(Serialize, ToSchema)]
pub(super) struct PrecheckData {
    #[schema(examples("IPT-SD-XXXXXX-XXXXXX-XXXXXX"))]
    install_code: String,
    /// The code with its middle left out: what may be shown and written down.
    #[schema(examples("IPT-SD-XXXX...XXXXXX"))]
    install_code_hint: String,
    /// What the activate has to bring.
    #[schema(examples("eyJhbGciOiJIUzI1NiJ9..."))]
    precheck_token: String,
    /// Until when it may.
    #[schema(format = DateTime, examples("2026-03-31T12:15:00+00:00"))]
    precheck_expires_at: String,
    machine_binding: MachineIdentity,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ActivateData {
    /// The activation's id. While the activation is open, whoever knows it may release it.
    #[schema(pattern = "^act_[0-9a-f]{16}$", examples("act_a1b2c3d4e5f6a7b8"))]
    activation_id: String,
    /// What the confirm has to bring.
    #[schema(examples("eyJhbGciOiJIUzI1NiJ9..."))]
    install_token: String,
    /// Until when it may.
    #[schema(format = DateTime, examples("2026-03-31T12:15:00+00:00"))]
    install_token_expires_at: String,
    #[schema(examples("IPT-SD-XXXXXX-XXXXXX-XXXXXX"))]
    install_code: String,
    machine_binding: MachineBinding,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ConfirmData {
    #[schema(pattern = "^act_[0-9a-f]{16}$", examples("act_a1b2c3d4e5f6a7b8"))]
    activation_id: String,
    #[schema(pattern = "^confirmed$", examples("confirmed"))]
    status: &'static str,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ReleaseData {
    #[schema(pattern = "^act_[0-9a-f]{16}$", examples("act_a1b2c3d4e5f6a7b8"))]
    activation_id: String,
    /// `released`; or `confirmed`, where the install was confirmed before and stays so.
    #[schema(pattern = "^(released|confirmed)$", examples("released"))]
    status: &'static str,
    /// Whether the code can be used again now.
    #[schema(examples(true))]
    install_code_restored: bool,
}

/// The fields that precheck and activate share, read.
struct Identity {
    code: InstallCode,
    hash: CodeHash,
    holder: Holder,
    machine_id: String,
    ssh_fingerprint: String,
    installer_version: String,
}

impl Identity {
    fn read(state: &State, body: &mut InstallBody<'_>) -> Result<Self, Refusal> {
        let code = std::mem::take(&mut body.install_code)
            .or(std::mem::take(&mut body.license_key))
            .required("install_code", CODE)?;
        let machine_id = body.machine_id.clone().required("machine_id", MACHINE_ID)?;
        let fingerprint = std::mem::take(&mut body.ssh_fingerprint);
        let ssh_fingerprint = fingerprint.required("ssh_fingerprint", FINGERPRINT)?;
        let version = std::mem::take(&mut body.installer_version);
        let installer_version = version.optional("installer_version", VERSION)?;
        if body.product == Field::WrongType {
            return Err(Refusal::InvalidField("product must be a string.".into()));
        }
        let code = InstallCode::parse(&code)?;
        Ok(Self {
            hash: code.hash(&state.lookup),
            code,
            holder: Holder {
                machine: state.lookup.hash(Purpose::Machine, machine_id.as_bytes()),
                fingerprint: state.lookup.hash(Purpose::Fingerprint, ssh_fingerprint.as_bytes()),
            },
            machine_id: machine_id.into_owned(),
            ssh_fingerprint: ssh_fingerprint.into_owned(),
            installer_version: installer_version.into_owned(),
        })
    }

    /// A refusal of what this identity asked for.
    const fn rejected(
        &self,
        refusal: Refusal,
        action: Action,
        from: IpAddr,
        now: Timestamp,
    ) -> Rejected {
        let machine = self.holder.machine;
        let tried = RefusedEarly { action, code: self.hash, machine, from, now };
        Rejected { refusal, tried: Some(tried) }
    }

    fn told(self) -> MachineIdentity {
        MachineIdentity { machine_id: self.machine_id, ssh_fingerprint: self.ssh_fingerprint }
    }
}

/// Whether code, `product` field and route agree on the product.
fn check_product(product: &Product, code: &InstallCode, field: &Field<'_>) -> Result<(), Refusal> {
    let named_otherwise = match field {
        Field::Text(name) => !name.is_empty() && !name.eq_ignore_ascii_case(&product.name),
        Field::Absent | Field::WrongType => false,
    };
    if named_otherwise || code.product() != product.letters {
        return Err(Refusal::ProductMismatch);
    }
    Ok(())
}

fn read_binding(body: &InstallBody<'_>, allow_private: bool) -> Result<Binding, Refusal> {
    let invalid = Refusal::InvalidBinding;
    let hostname = body.hostname.clone().check("hostname", HOSTNAME).map_err(invalid)?;
    let hostname = HostName::parse(&hostname).ok_or_else(|| {
        invalid("hostname must be a full host name such as ns1.example.com.".into())
    })?;
    let address = body.public_ip.clone().check("public_ip", ADDRESS).map_err(invalid)?;
    let public_ip = parse_public_ip(&address, allow_private).ok_or_else(|| {
        invalid("public_ip must be an IPv4 or IPv6 address that the Internet can reach.".into())
    })?;
    Ok(Binding { hostname, public_ip })
}

/// Who is charged for a request: the caller, and the machine where the body names one.
fn subjects(
    state: &State,
    network: IpAddr,
    body: &Result<InstallBody<'_>, Refusal>,
    [per_ip, per_machine]: [Policy; 2],
) -> Vec<Subject> {
    let mut subjects = vec![Subject { policy: per_ip, who: network_hash(state, network) }];
    if let Ok(body) = body
        && let Ok(id) = body.machine_id.clone().required("machine_id", MACHINE_ID)
    {
        let who = state.lookup.hash(Purpose::Machine, id.as_bytes());
        subjects.push(Subject { policy: per_machine, who });
    }
    subjects
}

/// Why a request is refused before any actor has seen it.
struct Rejected {
    refusal: Refusal,
    /// What it was tried on, as far as the request names a code.
    tried: Option<RefusedEarly>,
}

impl From<Refusal> for Rejected {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, tried: None }
    }
}

/// One of the two limited steps: reads the body, makes of it a command with `read`, sends that
/// through the limits (a refusal as well: a bad request is charged like a good one), and answers
/// with what `grant` makes of the outcome. What is refused here is kept with its code, unless a limit
/// was faster: a flood must leave no more behind than limits allow.
async fn limited_step<C: LimitedCommand>(
    state: &State,
    request: &HttpRequest,
    payload: Payload,
    policies: [Policy; 2],
    read: impl FnOnce(InstallBody<'_>, Timestamp) -> Result<(C, Identity), Rejected>,
    grant: impl FnOnce(C::Answer, Identity, Timestamp) -> HttpResponse,
) -> HttpResponse {
    let now = state.clock.now();
    let bytes = match state.read(payload).await {
        Ok(bytes) => bytes,
        Err(error) => return failure(error),
    };
    let body: Result<InstallBody<'_>, Refusal> = fields(&bytes);
    let network = network_of(request, &state.proxies);
    let subjects = subjects(state, network, &body, policies);
    let (command, identity, tried) = match body.map_err(Rejected::from).and_then(|b| read(b, now)) {
        Ok((command, identity)) => (Ok(command), Some(identity), None),
        Err(Rejected { refusal, tried }) => (Err(refusal), None, tried),
    };
    let pending = state.handles.limited(|reply| Limited { subjects, command, now, reply });
    let answer = state.wait(pending).await;
    let response = match (answer.outcome, identity) {
        (Ok(Ok(granted)), Some(identity)) => grant(granted, identity, now),
        // Nothing is granted that was not asked for.
        (Ok(Ok(_)), None) => failure(ApiError::internal()),
        (Ok(Err(refusal)), _) => {
            if let Some(tried) = tried
                && !matches!(refusal, Refusal::RateLimited { .. })
            {
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
    description = "Validates the code for this machine before anything else is asked. Changes nothing, but \
        carries the install further: the token of its answer lets an activate through after the \
        code's own time is over. Limited for each address and machine.",
    request_body = PrecheckRequest,
    responses((
        status = 200,
        description = "The code is good for this machine.",
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
    let life = state.tuning.load().lifetimes;
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

fn prechecked(
    state: &State,
    product: &Product,
    identity: Identity,
    now: Timestamp,
    expires_at: Timestamp,
) -> HttpResponse {
    let pass = PrecheckPass {
        code: identity.hash,
        holder: identity.holder,
        product: product.name.clone(),
        at: now,
        expires_at,
    };
    let jti = random_bytes::<8>().ok().map(|bytes| format!("{:016x}", u64::from_be_bytes(bytes)));
    let tokens = state.tokens.load();
    let token = jti.and_then(|jti| tokens.sign_precheck(&pass, &identity.installer_version, &jti));
    let Some(precheck_token) = token else { return failure(ApiError::internal()) };
    let data = PrecheckData {
        install_code: identity.code.reveal(),
        install_code_hint: identity.code.hint(),
        precheck_token,
        precheck_expires_at: rfc3339(expires_at),
        machine_binding: identity.told(),
    };
    success(StatusCode::OK, data, "Install code validated")
}

/// The precheck that an activate rests on.
fn read_pass(
    state: &State,
    body: &InstallBody<'_>,
    identity: &Identity,
    product: &Product,
    now: Timestamp,
) -> Result<PrecheckPass, Refusal> {
    let Field::Text(token) = &body.precheck_token else {
        return Err(Refusal::PrecheckTokenInvalid);
    };
    let pass = state.tokens.load().verify_precheck(token).ok_or(Refusal::PrecheckTokenInvalid)?;
    let genuine_for_this = now < pass.expires_at
        && pass.code == identity.hash
        && pass.holder == identity.holder
        && pass.product == product.name;
    if genuine_for_this { Ok(pass) } else { Err(Refusal::PrecheckTokenInvalid) }
}

/// A precheck token that is no token at all is a wrong field; a missing one is a wrong token.
fn check_token_field(token: &Field<'_>) -> Result<(), Refusal> {
    match token {
        Field::Absent => Ok(()),
        Field::Text(text) if text.is_empty() => Ok(()),
        other => other.clone().required("precheck_token", TOKEN).map(|_| ()),
    }
}

fn read_activate(
    state: &State,
    product: &Product,
    mut body: InstallBody<'_>,
    from: IpAddr,
    now: Timestamp,
) -> Result<(Activate, Identity), Rejected> {
    check_token_field(&body.precheck_token)?;
    let requested_ref = std::mem::take(&mut body.requested_ref).optional("requested_ref", REF)?;
    let identity = Identity::read(state, &mut body)?;
    let read = || {
        let pass = read_pass(state, &body, &identity, product, now)?;
        let binding = read_binding(&body, state.config.load().server.allow_private_ips)?;
        check_product(product, &identity.code, &body.product)?;
        Ok((pass, binding))
    };
    let (pass, binding) =
        read().map_err(|refusal| identity.rejected(refusal, Action::ActivateRefused, from, now))?;
    let requested_ref = if requested_ref.is_empty() { "main".into() } else { requested_ref };
    let request = Arc::new(Request {
        holder: identity.holder,
        binding,
        requested_ref: requested_ref.into_owned(),
        installer_version: identity.installer_version.clone(),
        signing_key: state.tokens.load().signing_key().to_string(),
    });
    let life = state.tuning.load().lifetimes;
    let (code, prechecked_at) = (identity.hash, pass.at);
    Ok((Activate { code, prechecked_at, request, from, life, now }, identity))
}

/// `POST /api/v2/{product}/install/activate`
#[utoipa::path(
    post,
    path = "/api/v2/{product}/install/activate",
    operation_id = "activate",
    tag = "Install",
    summary = "Activate an install code",
    description = "Uses the code for this machine, exactly once, whoever races. The same machine with the \
        same host name and address gets the same answer again as long as the activation is open, \
        so a lost answer costs no code. Limited for each address and machine.",
    request_body = ActivateRequest,
    responses((
        status = 200,
        description = "The code is this machine's.",
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

fn activated(state: &State, activation: &Activation, identity: Identity) -> HttpResponse {
    let Some(install_token) = state.tokens.load().sign_install(activation) else {
        return failure(ApiError::internal());
    };
    let binding = &activation.request.binding;
    let data = ActivateData {
        activation_id: activation.at.id.reveal(),
        install_token,
        install_token_expires_at: rfc3339(activation.expires_at),
        install_code: identity.code.reveal(),
        machine_binding: MachineBinding {
            hostname: binding.hostname.as_str().to_owned(),
            public_ip: binding.public_ip.to_string(),
            identity: identity.told(),
        },
    };
    success(StatusCode::OK, data, "Install token issued")
}

/// Checks the token of a confirm or a release against the id it comes with.
fn check_install_token(
    state: &State,
    token: &str,
    id: Option<ActivationId>,
    runs_out_at: impl Fn(&InstallPass) -> bool,
) -> Result<(), Refusal> {
    let pass = state.tokens.load().verify_install(token).filter(|pass| !runs_out_at(pass));
    let pass = pass.ok_or(Refusal::TokenInvalid)?;
    if Some(pass.activation) == id { Ok(()) } else { Err(Refusal::TokenMismatch) }
}

/// An activation that a request names, and what its token is found to be.
type Named = (ActivationId, Result<(), Refusal>);

/// Where the id is none there is nothing that a wrong token could be kept with.
fn named(id: Option<ActivationId>, token: Result<(), Refusal>) -> Result<Named, Refusal> {
    match id {
        Some(id) => Ok((id, token)),
        None => token.and(Err(Refusal::ActivationNotFound)),
    }
}

fn read_confirm(state: &State, bytes: &Body, now: Timestamp) -> Result<Named, Refusal> {
    let body: FinishBody<'_> = fields(bytes)?;
    let id = body.activation_id.required("activation_id", ACTIVATION_ID)?;
    let token = body.install_token.required("install_token", TOKEN)?;
    let id = ActivationId::parse(&id);
    named(id, check_install_token(state, &token, id, |pass| now >= pass.expires_at))
}

/// `POST /api/v2/{product}/install/confirm`
#[utoipa::path(
    post,
    path = "/api/v2/{product}/install/confirm",
    operation_id = "confirm",
    tag = "Install",
    summary = "Confirm an install",
    description = "Says that the install is complete. The code and the install token are used up for good.",
    request_body = ConfirmRequest,
    responses((status = 200, description = "The install is complete.", body = Success<ConfirmData>)),
)]
pub async fn confirm(state: Data<State>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let now = state.clock.now();
    let bytes = match state.read(payload).await {
        Ok(bytes) => bytes,
        Err(error) => return failure(error),
    };
    let (id, token) = match read_confirm(&state, &bytes, now) {
        Ok(named) => named,
        Err(refusal) => return failure(refusal),
    };
    let from = network_of(&request, &state.proxies);
    let answer = state.wait(state.handles.confirm(Confirm { id, token, from, now })).await;
    match answer.outcome {
        Ok(Ok(())) => {
            let data = ConfirmData { activation_id: id.reveal(), status: "confirmed" };
            success(StatusCode::OK, data, "Install confirmed")
        }
        Ok(Err(refusal)) => failure(refusal),
        Err(error) => failure(error),
    }
}

fn read_release(state: &State, bytes: &Body) -> Result<Named, Refusal> {
    let body: FinishBody<'_> = fields(bytes)?;
    let id = body.activation_id.required("activation_id", ACTIVATION_ID)?;
    let id = ActivationId::parse(&id);
    let token = match body.install_token {
        Field::Absent => Ok(()),
        Field::Text(token) if token.is_empty() => Ok(()),
        token => {
            let token = token.required("install_token", TOKEN)?;
            // A token that has run out still names its activation.
            check_install_token(state, &token, id, |_| false)
        }
    };
    named(id, token)
}

/// `POST /api/v2/{product}/install/release`
#[utoipa::path(
    post,
    path = "/api/v2/{product}/install/release",
    operation_id = "release",
    tag = "Install",
    summary = "Release an activation",
    description = "Gives the code back after an install that did not come to its end. Harmless after a \
        confirm, which stays.",
    request_body = ReleaseRequest,
    responses((
        status = 200,
        description = "The activation is closed.",
        body = Success<ReleaseData>,
    )),
)]
pub async fn release(state: Data<State>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let now = state.clock.now();
    let bytes = match state.read(payload).await {
        Ok(bytes) => bytes,
        Err(error) => return failure(error),
    };
    let (id, token) = match read_release(&state, &bytes) {
        Ok(named) => named,
        Err(refusal) => return failure(refusal),
    };
    let life = state.tuning.load().lifetimes;
    let from = network_of(&request, &state.proxies);
    let release = Release { id, token, from, life, now };
    let answer = state.wait(state.handles.release(release)).await;
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
