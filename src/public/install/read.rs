//! Converts installers' requests to domain values.

use crate::config::Product;
use crate::http::body::{Body, Field, MAX_BODY, fields};
use crate::public::field_limits::{
    ADDRESS, CODE, FINGERPRINT, HOSTNAME, MACHINE_ID, REF, TOKEN, VERSION,
};
use crate::state::State;
use crate::tokens::{InstallPass, PrecheckPass};
use iptunnel_actors::RefusedEarly;
use iptunnel_actors::code_registry::Activate;
use iptunnel_domain::activation::{ActivationId, Binding, Holder, Request};
use iptunnel_domain::address::{HostName, parse_public_ip};
use iptunnel_domain::audit::Action;
use iptunnel_domain::code::{CodeHash, InstallCode};
use iptunnel_domain::limit::{Policy, Subject};
use iptunnel_domain::lookup::Purpose;
use iptunnel_domain::{Refusal, Timestamp};
use serde::Deserialize;
use std::net::IpAddr;
use std::sync::Arc;

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct InstallBody<'a> {
    #[serde(borrow)]
    install_code: Field<'a>,
    #[serde(borrow)]
    license_key: Field<'a>,
    #[serde(borrow)]
    machine_id: Field<'a>,
    #[serde(borrow)]
    ssh_fingerprint: Field<'a>,
    #[serde(borrow)]
    pub(super) product: Field<'a>,
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

/// The parsed fields that precheck and activate share.
pub(super) struct Identity {
    pub(super) code: InstallCode,
    pub(super) hash: CodeHash,
    pub(super) holder: Holder,
    pub(super) machine_id: String,
    pub(super) ssh_fingerprint: String,
    pub(super) installer_version: String,
}

impl Identity {
    pub(super) fn read(state: &State, body: &mut InstallBody<'_>) -> Result<Self, Refusal> {
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
            hash: code.hash(&state.live.lookup),
            code,
            holder: Holder {
                machine: state.live.lookup.hash(Purpose::Machine, machine_id.as_bytes()),
                fingerprint: state
                    .live
                    .lookup
                    .hash(Purpose::Fingerprint, ssh_fingerprint.as_bytes()),
            },
            machine_id: machine_id.into_owned(),
            ssh_fingerprint: ssh_fingerprint.into_owned(),
            installer_version: installer_version.into_owned(),
        })
    }

    /// Makes a refusal that is recorded for this identity's code.
    pub(super) const fn rejected(
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
}

/// Checks that code, `product` field and route name the same product.
pub(super) fn check_product(
    product: &Product,
    code: &InstallCode,
    field: &Field<'_>,
) -> Result<(), Refusal> {
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

/// Returns the subjects that rate limits charge: the caller's network, and the machine if the body
/// names one.
pub(super) fn subjects(
    state: &State,
    network: IpAddr,
    body: &Result<InstallBody<'_>, Refusal>,
    [per_ip, per_machine]: [Policy; 2],
) -> Vec<Subject> {
    let mut subjects = vec![Subject { policy: per_ip, who: state.live.network_hash(network) }];
    if let Ok(body) = body
        && let Ok(id) = body.machine_id.clone().required("machine_id", MACHINE_ID)
    {
        let who = state.live.lookup.hash(Purpose::Machine, id.as_bytes());
        subjects.push(Subject { policy: per_machine, who });
    }
    subjects
}

/// A refusal before any actor has seen the request.
pub(super) struct Rejected {
    pub(super) refusal: Refusal,
    /// The attempt to record, if the request names a code.
    pub(super) tried: Option<RefusedEarly>,
}

impl From<Refusal> for Rejected {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, tried: None }
    }
}

/// Verifies the precheck token of an activate.
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
    let pass =
        state.live.tokens.load().verify_precheck(token).ok_or(Refusal::PrecheckTokenInvalid)?;
    let genuine_for_this = !pass.life.is_over(now)
        && pass.code == identity.hash
        && pass.holder == identity.holder
        && pass.product == product.name;
    if genuine_for_this { Ok(pass) } else { Err(Refusal::PrecheckTokenInvalid) }
}

/// Refuses a precheck token of a wrong type or length as an invalid field. A missing one is refused
/// later, as a wrong token.
fn check_token_field(token: &Field<'_>) -> Result<(), Refusal> {
    match token {
        Field::Absent => Ok(()),
        Field::Text(text) if text.is_empty() => Ok(()),
        other => other.clone().required("precheck_token", TOKEN).map(|_| ()),
    }
}

pub(super) fn read_activate(
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
        let binding = read_binding(&body, state.live.config.load().server.allow_private_ips)?;
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
        signing_key: state.live.tokens.load().signing_key().to_string(),
    });
    let life = state.live.tuning.load().lifetimes;
    let (code, prechecked_at) = (identity.hash, pass.life.from);
    Ok((Activate { code, prechecked_at, request, from, life, now }, identity))
}

/// Checks that the token of a confirm or a release is valid and belongs to the given id.
fn check_install_token(
    state: &State,
    token: &str,
    id: Option<ActivationId>,
    runs_out_at: impl Fn(&InstallPass) -> bool,
) -> Result<(), Refusal> {
    let pass = state.live.tokens.load().verify_install(token).filter(|pass| !runs_out_at(pass));
    let pass = pass.ok_or(Refusal::TokenInvalid)?;
    if Some(pass.activation) == id { Ok(()) } else { Err(Refusal::TokenMismatch) }
}

/// The activation that a request names, and the result of the token check.
pub(super) type Named = (ActivationId, Result<(), Refusal>);

/// Pairs an id with its token check. A token that nobody could have sent in good faith is refused
/// here: otherwise anybody could make the server look up ids of their own invention. A genuine token of
/// another activation is refused later, and the attempt is recorded.
fn named(id: Option<ActivationId>, token: Result<(), Refusal>) -> Result<Named, Refusal> {
    match (id, token) {
        (_, Err(Refusal::TokenInvalid)) => Err(Refusal::TokenInvalid),
        (Some(id), token) => Ok((id, token)),
        (None, token) => token.and(Err(Refusal::ActivationNotFound)),
    }
}

/// Reads the field that names an activation. An id of a wrong form, however long, is `None`.
fn activation_id(field: Field<'_>) -> Result<Option<ActivationId>, Refusal> {
    field.required("activation_id", MAX_BODY).map(|id| ActivationId::parse(&id))
}

pub(super) fn read_confirm(state: &State, bytes: &Body, now: Timestamp) -> Result<Named, Refusal> {
    let body: FinishBody<'_> = fields(bytes)?;
    let id = activation_id(body.activation_id)?;
    let token = body.install_token.required("install_token", TOKEN)?;
    named(id, check_install_token(state, &token, id, |pass| pass.life.is_over(now)))
}

/// Returns the activation that a release names, and whether a valid token was sent.
pub(super) fn read_release(state: &State, bytes: &Body) -> Result<(Named, bool), Refusal> {
    let body: FinishBody<'_> = fields(bytes)?;
    let id = activation_id(body.activation_id)?;
    let token = match body.install_token {
        Field::Absent => None,
        Field::Text(token) if token.is_empty() => None,
        token => {
            let token = token.required("install_token", TOKEN)?;
            // An expired token still proves its activation.
            Some(check_install_token(state, &token, id, |_| false))
        }
    };
    let proven = matches!(token, Some(Ok(())));
    Ok((named(id, token.unwrap_or(Ok(())))?, proven))
}
