//! What every error code means, and what whoever meets it should do: for the API reference.
//!
//! Status and words are not repeated here: [`samples`] asks [`ApiError`] for them.

use crate::http::errors::ApiError;
use iptunnel_actors::Failure;
use iptunnel_domain::Refusal;
use iptunnel_domain::server::ServerId;

/// One code, explained.
pub struct ErrorDoc {
    /// The machine-readable code.
    pub code: &'static str,
    /// What has happened.
    pub meaning: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

const fn doc(code: &'static str, meaning: &'static str, remedy: &'static str) -> ErrorDoc {
    ErrorDoc { code, meaning, remedy }
}

/// Every code there is, by status.
pub const ERRORS: [ErrorDoc; 27] = [
    doc(
        "invalid_body",
        "The request has no body.",
        "Send the fields of the operation as a JSON object.",
    ),
    doc(
        "invalid_json",
        "The body is not JSON, or it is JSON but not an object.",
        "Send one JSON object in UTF-8. The Content-Type does not matter.",
    ),
    doc(
        "unauthorized",
        "The operation wants a token, and none was sent, or one that is not good for it.",
        "Send Authorization: Bearer with the master token; for a check-in, the token with which \
         the server was registered, or no Authorization at all.",
    ),
    doc(
        "browser_session_required",
        "There is no session cookie, or its time has run out.",
        "Load the product's page and send the cookie it sets, with the same User-Agent.",
    ),
    doc(
        "browser_session_invalid",
        "The session cookie is forged or of another browser, or a page of another site asked.",
        "Load the product's page again and ask from there.",
    ),
    doc(
        "product_mismatch",
        "The code, or the field product, names another product than the path.",
        "Use the path of the product that the code is for.",
    ),
    doc(
        "install_code_used",
        "Another machine holds the code, or an install with it has been confirmed or has lapsed.",
        "Get a new code. The machine that holds an open activation is not refused this way.",
    ),
    doc(
        "install_code_expired",
        "The code's time has run out before a precheck carried it on.",
        "Get a new code and enter it while it is good.",
    ),
    doc(
        "install_code_max_activations",
        "The code has been activated as often as a code may be; releases are not counted back.",
        "Get a new code, and find out why the install keeps failing.",
    ),
    doc(
        "precheck_token_invalid",
        "The precheck token is missing, malformed, forged or expired, or it was made for another \
         code, machine, fingerprint or product.",
        "Precheck again and activate with the token of that answer.",
    ),
    doc(
        "token_invalid",
        "The install token is malformed, forged, expired or of another kind.",
        "Send the install token of the activate unchanged. If it has expired, begin again with a \
         new code.",
    ),
    doc(
        "token_mismatch",
        "The install token is genuine, but of another activation.",
        "Send activation_id and install_token of the same activate.",
    ),
    doc(
        "revoked",
        "The operator has revoked the server.",
        "Stop the service. Only the operator can restore the server.",
    ),
    doc(
        "install_code_not_found",
        "There is no such code, or it was closed so long ago that it has been forgotten.",
        "Look for a typing error, or get a new code.",
    ),
    doc(
        "activation_not_found",
        "There is no such activation: it was released, or forgotten, or the id is wrong.",
        "After a release nothing is left to do. Otherwise begin again with a precheck.",
    ),
    doc(
        "server_not_found",
        "No server is registered under this id.",
        "Register the server; its answer holds the id.",
    ),
    doc("not_found", "There is nothing at this path.", "Compare the path with this reference."),
    doc(
        "method_not_allowed",
        "The path exists, but not with this method.",
        "Use a method that the header Allow names.",
    ),
    doc(
        "token_used",
        "The activation has been confirmed already.",
        "Nothing: the install is complete. Whoever repeats a confirm whose answer was lost may take \
         this for a success.",
    ),
    doc(
        "request_too_large",
        "The body is larger than 64 KiB.",
        "Send the fields of the operation only.",
    ),
    doc(
        "validation_error",
        "A required field is missing, too long or of a wrong type, or the code is not written as \
         codes are. The message names the field.",
        "Correct the field that the message names.",
    ),
    doc(
        "invalid_binding",
        "The field hostname or public_ip is missing, too long, of a wrong type or not valid. The \
         message names it. The code is not used up.",
        "Ask for host name and address again, and activate with the same code and precheck token.",
    ),
    doc(
        "rate_limit_exceeded",
        "A limit on this operation is used up for the caller's address, machine or browser.",
        "Wait for the seconds in Retry-After. RateLimit-Policy names the limits.",
    ),
    doc(
        "internal_error",
        "Something went wrong on the server that should not.",
        "Try again later. Tell the operator the X-Request-Id if it stays.",
    ),
    doc(
        "overloaded",
        "The server has its hands full. Nothing has happened.",
        "Repeat the request after the seconds in Retry-After.",
    ),
    doc(
        "storage_unavailable",
        "The server cannot store anything right now. Nothing has changed.",
        "Repeat the request after the seconds in Retry-After.",
    ),
    doc(
        "outcome_unknown",
        "The server cannot tell whether the request took effect.",
        "Repeat the same request after the seconds in Retry-After: that is safe.",
    ),
];

/// An error of each kind, with the words it would have.
pub fn samples() -> Vec<ApiError> {
    let field = "machine_id is required.".to_owned();
    let binding = "hostname must be a full host name such as ns1.example.com.".to_owned();
    let mut refusals = vec![
        Refusal::BodyEmpty,
        Refusal::BodyNotJson,
        Refusal::BodyTooLarge,
        Refusal::InvalidField(field),
        Refusal::InvalidBinding(binding),
        Refusal::SessionRequired,
        Refusal::SessionInvalid,
        Refusal::Unauthorized,
        Refusal::RateLimited { retry_after: 1800 },
        Refusal::ProductMismatch,
        Refusal::CodeNotFound,
        Refusal::CodeUsed,
        Refusal::CodeExpired,
        Refusal::CodeMaxActivations,
        Refusal::PrecheckTokenInvalid,
        Refusal::TokenInvalid,
        Refusal::TokenMismatch,
        Refusal::TokenUsed,
        Refusal::ActivationNotFound,
        Refusal::ServerNotFound,
    ];
    refusals.extend(ServerId::parse("0123456789abcdef").map(Refusal::ServerRevoked));
    let failures = [Failure::Overloaded, Failure::StorageUnavailable, Failure::OutcomeUnknown];
    let others = [ApiError::not_found(), ApiError::method_not_allowed(), ApiError::internal()];
    let refused = refusals.into_iter().map(ApiError::from);
    refused.chain(failures.map(ApiError::from)).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Fails to compile when a refusal is added: then it belongs into [`samples`], and one more in
    /// the number below.
    fn is_counted(refusal: &Refusal) -> bool {
        match refusal {
            Refusal::BodyEmpty
            | Refusal::BodyNotJson
            | Refusal::BodyTooLarge
            | Refusal::InvalidField(_)
            | Refusal::InvalidBinding(_)
            | Refusal::SessionRequired
            | Refusal::SessionInvalid
            | Refusal::Unauthorized
            | Refusal::RateLimited { .. }
            | Refusal::ProductMismatch
            | Refusal::CodeNotFound
            | Refusal::CodeUsed
            | Refusal::CodeExpired
            | Refusal::CodeMaxActivations
            | Refusal::PrecheckTokenInvalid
            | Refusal::TokenInvalid
            | Refusal::TokenMismatch
            | Refusal::TokenUsed
            | Refusal::ActivationNotFound
            | Refusal::ServerNotFound
            | Refusal::ServerRevoked(_) => true,
        }
    }
    const REFUSALS: usize = 21;

    #[test]
    fn every_code_that_can_be_told_is_explained_and_no_other() {
        assert!(is_counted(&Refusal::BodyEmpty));
        let told: BTreeSet<&str> = samples().iter().map(|sample| sample.code).collect();
        let explained: BTreeSet<&str> = ERRORS.iter().map(|error| error.code).collect();
        assert_eq!(told, explained);
        assert_eq!((samples().len(), ERRORS.len()), (REFUSALS + 6, told.len()));
    }

    #[test]
    fn codes_are_listed_by_status() {
        let statuses: Vec<u16> = ERRORS
            .iter()
            .flat_map(|error| samples().into_iter().find(|sample| sample.code == error.code))
            .map(|sample| sample.status.as_u16())
            .collect();
        assert!(statuses.is_sorted(), "{statuses:?}");
    }
}
