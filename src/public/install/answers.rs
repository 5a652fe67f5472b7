//! Responses to installers.

use super::read::Identity;
use crate::config::Product;
use crate::http::errors::ApiError;
use crate::http::respond::failure;
use crate::http::respond::{rfc3339, success};
use crate::os::random_bytes;
use crate::state::State;
use crate::tokens::PrecheckPass;
use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use iptunnel_domain::activation::Activation;
use iptunnel_domain::time::{Lifespan, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

/// The machine as it identified itself.
#[derive(Serialize, ToSchema)]
pub(in crate::public) struct MachineIdentity {
    #[schema(examples("3f2b8c9d0a1e4f56b7c8d9e0f1a2b3c4"))]
    pub(super) machine_id: String,
    #[schema(examples("SHA256:Qm9ndXNGaW5nZXJwcmludE9mQUtleQ"))]
    pub(super) ssh_fingerprint: String,
}

impl From<Identity> for MachineIdentity {
    fn from(identity: Identity) -> Self {
        Self { machine_id: identity.machine_id, ssh_fingerprint: identity.ssh_fingerprint }
    }
}

/// The machine with its host name and address.
#[derive(Serialize, ToSchema)]
pub(in crate::public) struct MachineBinding {
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
pub(in crate::public) struct PrecheckData {
    #[schema(examples("IPT-SD-XXXXXX-XXXXXX-XXXXXX"))]
    install_code: String,
    /// The code without its middle part. It is safe to show and to log.
    #[schema(examples("IPT-SD-XXXX...XXXXXX"))]
    install_code_hint: String,
    /// The token that the activate request must contain.
    #[schema(examples("eyJhbGciOiJIUzI1NiJ9..."))]
    precheck_token: String,
    /// When the precheck token expires.
    #[schema(format = DateTime, examples("2026-03-31T12:15:00+00:00"))]
    precheck_expires_at: String,
    machine_binding: MachineIdentity,
}

#[derive(Serialize, ToSchema)]
pub(in crate::public) struct ActivateData {
    /// The activation's id. While the activation is open, this id alone is enough to release it:
    /// keep it secret.
    #[schema(pattern = "^act_[0-9a-f]{16}$", examples("act_a1b2c3d4e5f6a7b8"))]
    activation_id: String,
    /// The token that the confirm request must contain.
    #[schema(examples("eyJhbGciOiJIUzI1NiJ9..."))]
    install_token: String,
    /// When the install token expires.
    #[schema(format = DateTime, examples("2026-03-31T12:15:00+00:00"))]
    install_token_expires_at: String,
    #[schema(examples("IPT-SD-XXXXXX-XXXXXX-XXXXXX"))]
    install_code: String,
    machine_binding: MachineBinding,
}

#[derive(Serialize, ToSchema)]
pub(in crate::public) struct ConfirmData {
    #[schema(pattern = "^act_[0-9a-f]{16}$", examples("act_a1b2c3d4e5f6a7b8"))]
    pub(super) activation_id: String,
    #[schema(pattern = "^confirmed$", examples("confirmed"))]
    pub(super) status: &'static str,
}

#[derive(Serialize, ToSchema)]
pub(in crate::public) struct ReleaseData {
    #[schema(pattern = "^act_[0-9a-f]{16}$", examples("act_a1b2c3d4e5f6a7b8"))]
    pub(super) activation_id: String,
    /// `released`, or `confirmed` if the install was already confirmed. A confirmed install stays
    /// confirmed.
    #[schema(pattern = "^(released|confirmed)$", examples("released"))]
    pub(super) status: &'static str,
    /// Whether the code can be used again.
    #[schema(examples(true))]
    pub(super) install_code_restored: bool,
}

pub(super) fn prechecked(
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
        life: Lifespan { from: now, until: expires_at },
    };
    let jti = random_bytes::<8>().ok().map(|bytes| format!("{:016x}", u64::from_be_bytes(bytes)));
    let tokens = state.live.tokens.load();
    let token = jti.and_then(|jti| tokens.sign_precheck(&pass, &identity.installer_version, &jti));
    let Some(precheck_token) = token else { return failure(ApiError::internal()) };
    let data = PrecheckData {
        install_code: identity.code.reveal(),
        install_code_hint: identity.code.hint(),
        precheck_token,
        precheck_expires_at: rfc3339(expires_at),
        machine_binding: identity.into(),
    };
    success(StatusCode::OK, data, "Install code validated")
}

pub(super) fn activated(
    state: &State,
    activation: &Activation,
    identity: Identity,
) -> HttpResponse {
    let Some(install_token) = state.live.tokens.load().sign_install(activation) else {
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
            identity: identity.into(),
        },
    };
    success(StatusCode::OK, data, "Install token issued")
}
