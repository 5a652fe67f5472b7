//! The meaning and the remedy of every error code, for the API reference.
//!
//! [`samples`] takes status and message from [`ApiError`], so they are not repeated here.

use crate::http::access::Denied;
use crate::http::errors::ApiError;
use actix_web::http::StatusCode;
use iptunnel_actors::Failure;
use iptunnel_domain::Refusal;
use iptunnel_domain::access::Role;
use iptunnel_domain::server::ServerId;

/// The explanation of one code.
pub struct ErrorDoc {
    /// The machine-readable code.
    pub code: &'static str,
    /// What happened.
    pub meaning: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

const fn doc(code: &'static str, meaning: &'static str, remedy: &'static str) -> ErrorDoc {
    ErrorDoc { code, meaning, remedy }
}

/// All codes, by status.
pub const ERRORS: [ErrorDoc; 35] = [
    doc(
        "invalid_body",
        "The request has no body.",
        "Send the fields of the operation as a JSON object.",
    ),
    doc(
        "invalid_json",
        "The body is not JSON, or it is JSON but not an object, or it has a key more than once.",
        "Send one JSON object in UTF-8. The Content-Type does not matter.",
    ),
    doc(
        "invalid_request",
        "The request is not valid HTTP.",
        "Use an HTTP client, and send no control characters in the path and the headers.",
    ),
    doc(
        "unauthorized",
        "The operation needs a token. None was sent, or the token is not valid for it.",
        "Send Authorization: Bearer with an access token. The message says what is wrong with the token \
         that was sent. For a check-in, send the server's agent token or the token that registered it, or no Authorization.",
    ),
    doc(
        "forbidden",
        "The token is valid, but its role does not include the operation.",
        "Use a token with a role that the message names.",
    ),
    doc(
        "browser_session_required",
        "The session cookie is missing or has expired.",
        "Load the product's page and send the cookie it sets, with the same User-Agent.",
    ),
    doc(
        "browser_session_invalid",
        "The session cookie is forged or belongs to another browser, or a page of another site sent the request.",
        "Load the product's page again and send the request from there.",
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
        "The code expired before a precheck.",
        "Get a new code and use it before it expires.",
    ),
    doc(
        "install_code_max_activations",
        "The code has reached its maximum number of activations. A release does not reduce the number.",
        "Get a new code, and find out why the install keeps failing.",
    ),
    doc(
        "precheck_token_invalid",
        "The precheck token is missing, malformed, forged or expired, or it was made for another \
         code, machine, fingerprint or product.",
        "Precheck again and activate with the token from that response.",
    ),
    doc(
        "token_invalid",
        "The install token is malformed, forged, expired or of another kind.",
        "Send the install token from the activate response unchanged. If it has expired, start again \
         with a new code.",
    ),
    doc(
        "token_mismatch",
        "The install token is valid, but belongs to another activation.",
        "Send activation_id and install_token from the same activate response.",
    ),
    doc(
        "revoked",
        "The operator has revoked the server.",
        "Stop the service. Only the operator can restore the server.",
    ),
    doc(
        "credential_used",
        "The ticket or install token has registered a server before, or the server has registered \
         with a later one since. Each is good once.",
        "Get a new ticket. If the response to the registration was lost, repeat it with the same ticket and \
         the same agent_token.",
    ),
    doc(
        "server_of_another_token",
        "Another access token, which is still good, has enrolled the server at this address.",
        "Use that token or a ticket of it. Or ask the operator to delete the server or to revoke that token.",
    ),
    doc(
        "too_many_servers",
        "The access token has enrolled as many servers as it may. Revoked servers do not count.",
        "Ask the operator to revoke or delete servers that are gone, or to raise max_servers.",
    ),
    doc(
        "install_code_not_found",
        "The code does not exist, or it was closed so long ago that it has been deleted.",
        "Check the code for typing errors, or get a new one.",
    ),
    doc(
        "activation_not_found",
        "The activation does not exist: it was released or deleted, or the id is wrong.",
        "After a release, do nothing. Otherwise start again with a precheck.",
    ),
    doc(
        "server_not_found",
        "No server is registered under this id.",
        "Register the server. The response has the id.",
    ),
    doc(
        "payload_not_found",
        "The operator has no payload for the product, or the server cannot read it.",
        "Set up the check-ins without a payload.",
    ),
    doc("not_found", "The path does not exist.", "Compare the path with this reference."),
    doc(
        "method_not_allowed",
        "The path exists, but not with this method.",
        "Use a method that the header Allow names.",
    ),
    doc(
        "request_timeout",
        "The head or the body of the request did not arrive in time. Nothing has changed.",
        "Repeat the request on a new connection.",
    ),
    doc(
        "token_used",
        "The activation has been confirmed already.",
        "Nothing: the install is complete. If you repeated a confirm because its response was lost, \
         treat this error as a success.",
    ),
    doc(
        "request_too_large",
        "The body is larger than 64 KiB.",
        "Send the fields of the operation only.",
    ),
    doc(
        "validation_error",
        "A required field is missing, too long or of a wrong type, or the code is malformed. The \
         message names the field.",
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
        "A limit on this operation is used up for the caller's address, machine or browser, or the caller's \
         network has sent too many wrong tokens.",
        "Wait for the seconds in Retry-After. RateLimit-Policy names the limits.",
    ),
    doc(
        "request_head_too_large",
        "The path and the headers of the request are larger than the server accepts.",
        "Send fewer or shorter headers and cookies.",
    ),
    doc(
        "internal_error",
        "An unexpected error happened on the server.",
        "Try again later. If the error persists, send the X-Request-Id to the operator.",
    ),
    doc(
        "overloaded",
        "The server is busy. Nothing has changed.",
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

/// Returns one error of each kind, with its message.
pub fn samples() -> Vec<ApiError> {
    let field = "machine_id is required.".to_owned();
    let binding = "hostname must be a full host name such as ns1.example.com.".to_owned();
    let mut refusals = vec![
        Refusal::BodyEmpty,
        Refusal::BodyNotJson,
        Refusal::BodyRepeatsKey("machine_id".into()),
        Refusal::BodyTooLarge,
        Refusal::BodyTooSlow,
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
        Refusal::CredentialUsed,
        Refusal::ServerOfAnotherToken,
        Refusal::TooManyServers,
    ];
    refusals.extend(ServerId::parse("0123456789abcdef").map(Refusal::ServerRevoked));
    let failures = [Failure::Overloaded, Failure::StorageUnavailable, Failure::OutcomeUnknown];
    let role = Denied::Role { has: Role::View, least: Role::Operate.name().to_owned() };
    let others = [
        ApiError::not_found(),
        ApiError::payload_not_found(),
        ApiError::method_not_allowed(),
        ApiError::internal(),
        ApiError::denied(role, false),
    ];
    let refused = refusals.into_iter().map(ApiError::from);
    let unreadable = [
        StatusCode::BAD_REQUEST,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    ];
    let unreadable = unreadable.map(ApiError::unreadable);
    refused.chain(failures.map(ApiError::from)).chain(others).chain(unreadable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Fails to compile when a refusal is added. Then add it to [`samples`] and increase the number
    /// below.
    fn is_counted(refusal: &Refusal) -> bool {
        match refusal {
            Refusal::BodyEmpty
            | Refusal::BodyNotJson
            | Refusal::BodyRepeatsKey(_)
            | Refusal::BodyTooLarge
            | Refusal::BodyTooSlow
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
            | Refusal::ServerRevoked(_)
            | Refusal::CredentialUsed
            | Refusal::ServerOfAnotherToken
            | Refusal::TooManyServers => true,
        }
    }
    const REFUSALS: usize = 26;

    #[test]
    fn exactly_the_codes_that_occur_are_explained() {
        assert!(is_counted(&Refusal::BodyEmpty));
        let occurring: BTreeSet<&str> = samples().iter().map(|sample| sample.code).collect();
        let explained: BTreeSet<&str> = ERRORS.iter().map(|error| error.code).collect();
        assert_eq!(occurring, explained);
        assert_eq!((samples().len(), ERRORS.len()), (REFUSALS + 11, occurring.len()));
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
