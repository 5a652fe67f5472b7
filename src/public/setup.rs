//! What a machine loads to install itself: our installer, its own address, and the payload of its product.

use super::scripts::{KIND, Scripts};
use crate::config::{Config, Product};
use crate::http::caller::{address_of, token_of};
use crate::http::errors::ApiError;
use crate::http::page::tagged;
use crate::http::respond::{Success, failure, failure_for, success};
use crate::state::State;
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::web::{Data, block};
use actix_web::{HttpRequest, HttpResponse};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use iptunnel_domain::Refusal;
use iptunnel_domain::hex::hex;
use iptunnel_storage::Store;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use utoipa::ToSchema;

/// Our installer. Each of two lines near its top has a placeholder in single quotes.
const INSTALLER: &str = include_str!("../../clients/install.sh");

/// The installer of each product, with its entity tag.
pub struct Installers(HashMap<String, (Bytes, String)>);

impl Installers {
    /// Fills in the installer for each product of a configuration. Neither the address of a site nor the name
    /// of a product can contain a quote.
    pub fn of(config: &Config) -> Self {
        let fill = |product: &Product| {
            let text = filled(config.server.public_url.as_str(), &product.name);
            let tag = format!("\"{}\"", hex(&Sha256::digest(&text)));
            (product.name.clone(), (Bytes::from(text), tag))
        };
        Self(config.products.iter().map(fill).collect())
    }
}

fn filled(public_url: &str, product: &str) -> String {
    INSTALLER
        .replace("SERVER='@public_url@'", &format!("SERVER='{public_url}'"))
        .replace("PRODUCT='@product@'", &format!("PRODUCT='{product}'"))
}

/// `GET /{product}/install.sh`
#[utoipa::path(
    get,
    path = "/{product}/install.sh",
    operation_id = "install_script",
    tag = "Install",
    summary = "The installer of a product",
    description = "Sends the installer: one POSIX sh script that installs the product with a code and sets up \
        its check-ins.",
    responses((
        status = 200,
        description = "The script.",
        body = String,
        content_type = "text/x-shellscript",
        example = "#!/bin/sh\n",
    )),
)]
pub async fn install_script(
    installers: Data<Installers>,
    request: HttpRequest,
    product: Data<Product>,
) -> HttpResponse {
    match installers.0.get(&product.name) {
        Some((script, tag)) => tagged(&request, tag, KIND, script.clone()),
        None => failure_for(&request, ApiError::not_found()),
    }
}

#[derive(Serialize, ToSchema)]
pub(in crate::public) struct Address {
    #[schema(examples("1.2.3.4"))]
    ip: String,
}

/// `GET /api/v2/address`
#[utoipa::path(
    get,
    path = "/api/v2/address",
    operation_id = "address",
    tag = "Install",
    summary = "The caller's address",
    description = "Returns the address that the request came from, so that an installer need not ask anybody \
        else for its public address.",
    responses((status = 200, description = "The address.", body = Success<Address>)),
)]
pub async fn address(state: Data<State>, request: HttpRequest) -> HttpResponse {
    let ip = address_of(&request, &state.proxies).to_string();
    success(StatusCode::OK, Address { ip }, "Your address")
}

/// `GET /api/v2/{product}/install/payload`
#[utoipa::path(
    get,
    path = "/api/v2/{product}/install/payload",
    operation_id = "payload",
    tag = "Install",
    summary = "The payload of a product",
    description = "Sends the script that installs the product itself, if the operator has one. The install \
        token must be that of an open activation, or of one that was confirmed within the hour. The header \
        Repr-Digest has the SHA-256 of the script (RFC 9530).",
    responses((
        status = 200,
        description = "The script.",
        body = String,
        content_type = "text/x-shellscript",
        example = "#!/bin/sh\n",
    )),
)]
pub async fn payload(
    state: Data<State>,
    scripts: Data<Scripts>,
    request: HttpRequest,
    product: Data<Product>,
) -> HttpResponse {
    if let Err(error) = may_load(&state, token_of(&request), &product).await {
        return failure(error);
    }
    let found = match state.live.config.load().installer.payload(&product.name) {
        Some(path) => block(move || scripts.get(&path, "installer.payloads")).await.ok().flatten(),
        None => None,
    };
    let Some(script) = found else { return failure(ApiError::payload_not_found()) };
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, KIND))
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header(("repr-digest", format!("sha-256=:{}:", STANDARD.encode(script.digest))))
        .body(script.content.clone())
}

/// Refuses a token that may not load the payload of a product.
async fn may_load(state: &State, token: &str, product: &Product) -> Result<(), ApiError> {
    let pass = state.live.tokens.load().verify_install(token).ok_or(Refusal::TokenInvalid)?;
    let id = pass.activation;
    let read = move |store: &dyn Store| {
        let Some(activation) = store.activation(id)? else { return Ok(None) };
        Ok(store.code(activation.code)?.map(|code| (activation, code.product)))
    };
    let (activation, letters) = state.read_store(read).await?.ok_or(Refusal::ActivationNotFound)?;
    activation.installs(state.clock.now())?;
    if letters == product.letters { Ok(()) } else { Err(Refusal::ProductMismatch.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installer_has_each_placeholder_once_and_none_is_left() {
        let text = filled("https://[::1]:8443", "my-dns2");
        let lines: Vec<&str> = text.lines().take(30).collect();
        for line in ["SERVER='https://[::1]:8443'", "PRODUCT='my-dns2'"] {
            assert_eq!(lines.iter().filter(|one| **one == line).count(), 1, "{line}");
        }
        for placeholder in ["@public_url@", "@product@"] {
            assert_eq!(INSTALLER.matches(placeholder).count(), 1, "{placeholder}");
            assert!(!text.contains(placeholder), "{placeholder}");
        }
        assert!(text.starts_with("#!/bin/sh\n"));
    }
}
