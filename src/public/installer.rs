//! The main stack's installer and its version, for the updater on servers that it has set up. The file is
//! the operator's.

use super::scripts::{KIND, Script, Scripts};
use crate::http::errors::ApiError;
use crate::http::page::tagged;
use crate::http::respond::{failure_for, json};
use crate::state::State;
use actix_web::http::StatusCode;
use actix_web::web::{Data, block};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// The path of the script, which its updater knows.
pub const SCRIPT: &str = "/iptunnel-install.sh";
/// Returns the configured script, read on a thread that may block.
async fn script(state: &State, scripts: &Data<Scripts>) -> Option<Arc<Script>> {
    let path = state.live.config.load().installer.script.clone();
    if path.as_os_str().is_empty() {
        return None;
    }
    let scripts = scripts.clone();
    block(move || scripts.get(&path, "installer.script")).await.ok().flatten()
}

/// `GET /iptunnel-install.sh`
#[utoipa::path(
    get,
    path = "/iptunnel-install.sh",
    operation_id = "installer",
    tag = "Main stack",
    summary = "The installer",
    description = "Sends the main stack's installer, if the operator has configured one. The ETag changes \
        with the script.",
    responses((
        status = 200,
        description = "The script.",
        body = String,
        content_type = "text/x-shellscript",
        example = "#!/usr/bin/env bash\n",
    )),
)]
pub async fn installer(
    state: Data<State>,
    scripts: Data<Scripts>,
    request: HttpRequest,
) -> HttpResponse {
    match script(&state, &scripts).await {
        Some(script) => {
            let tag = format!("\"{}\"", script.hex_digest());
            tagged(&request, &tag, KIND, script.content.clone())
        }
        None => failure_for(&request, ApiError::not_found()),
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct Version<'a> {
    #[schema(examples("2026.03.31"))]
    version: &'a str,
    /// What is new.
    #[schema(examples("Faster check-ins."))]
    notes: &'a str,
    /// Where the installer is loaded from.
    #[schema(examples("http://127.0.0.1:8080/iptunnel-install.sh"))]
    url: String,
    /// The SHA-256 of the installer.
    #[schema(
        pattern = "^[0-9a-f]{64}$",
        examples("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    )]
    sha256: &'a str,
}

async fn announce(state: &State, scripts: &Data<Scripts>, request: &HttpRequest) -> HttpResponse {
    let config = state.live.config.load_full();
    let version = &config.installer.version;
    let script = match version.is_empty() {
        true => None,
        false => script(state, scripts).await,
    };
    let Some(script) = script else { return failure_for(request, ApiError::not_found()) };
    let url = format!("{}{SCRIPT}", config.server.public_url.origin());
    let notes = &config.installer.notes;
    let sha256 = &script.hex_digest();
    json(StatusCode::OK, &Version { version, notes, url, sha256 })
}

/// `GET /version.json`
#[utoipa::path(
    get,
    path = "/version.json",
    operation_id = "installer_version",
    tag = "Main stack",
    summary = "The installer's version",
    description = "Announces the main stack's installer, if the operator has configured one.",
    responses((status = 200, description = "The version.", body = Version<'static>)),
)]
pub async fn version(
    state: Data<State>,
    scripts: Data<Scripts>,
    request: HttpRequest,
) -> HttpResponse {
    announce(&state, &scripts, &request).await
}

/// `GET /api/v2/version`
#[utoipa::path(
    get,
    path = "/api/v2/version",
    operation_id = "v2_installer_version",
    tag = "Main stack",
    summary = "The installer's version",
    description = "The same as /version.json: a bare object, as the main stack's updater reads it.",
    responses((status = 200, description = "The version.", body = Version<'static>)),
)]
pub async fn v2_version(
    state: Data<State>,
    scripts: Data<Scripts>,
    request: HttpRequest,
) -> HttpResponse {
    announce(&state, &scripts, &request).await
}
