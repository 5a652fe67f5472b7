//! Errors as HTTP: the only place that gives refusals and failures their status, code and message.
//!
//! A **refusal** means that the rules forbid the request. A **failure** means that the server could
//! not do it; the message reveals no internals. All messages are safe to show to operators.

use super::access::Denied;
use actix_web::http::StatusCode;
use iptunnel_actors::Failure;
use iptunnel_domain::Refusal;
use iptunnel_domain::access::{Role, WhyNot};

/// An error as the API returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// The machine-readable code.
    pub code: &'static str,
    /// The message for people.
    pub message: String,
    /// Seconds to wait before a retry.
    pub retry_after: Option<u64>,
}

/// Seconds to wait before a retry when the server is busy or its store is unavailable: long enough
/// not to add load, short enough not to be noticed.
const SOON: u64 = 2;
/// Seconds to wait before a retry when too many pages watch codes.
const LATER: u64 = 60;

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after: None }
    }

    /// The path does not exist.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "There is nothing at this address.")
    }

    /// The product has no payload, or it cannot be sent. Its installer goes on without one.
    pub fn payload_not_found() -> Self {
        let message = "There is no payload for this product.";
        Self::new(StatusCode::NOT_FOUND, "payload_not_found", message)
    }

    /// The path exists, but not with this method.
    pub fn method_not_allowed() -> Self {
        let message = "This address does not take this method.";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    /// An invalid request to one of the main stack's routes, with this message.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "validation_error", message)
    }

    /// The token is not good for the request. The main stack's routes answer 403 whatever the reason is.
    pub fn denied(denied: Denied, is_legacy: bool) -> Self {
        let unauthorized = |message: &str| {
            let error = Self::from(Refusal::Unauthorized);
            let status = if is_legacy { StatusCode::FORBIDDEN } else { error.status };
            Self { status, message: message.to_owned(), ..error }
        };
        match denied {
            Denied::Missing => unauthorized("A valid token is required."),
            Denied::Wrong => unauthorized("The token is not valid."),
            Denied::Mistyped => unauthorized(
                "The token is mistyped: a character is wrong or missing. Please copy it again.",
            ),
            Denied::TicketOver => unauthorized("This ticket has expired. Please get a new one."),
            Denied::TicketWrong => unauthorized(
                "The ticket is not valid for this address. Please get a new one for it.",
            ),
            Denied::NotGood(WhyNot::Revoked) => unauthorized("This token was revoked."),
            Denied::NotGood(WhyNot::Expired) => unauthorized("This token has expired."),
            Denied::NotGood(WhyNot::WrongNetwork) => {
                unauthorized("This token may not be used from this address.")
            }
            Denied::Role { has, least } => {
                let has = has.name();
                let message =
                    format!("This token has the role {has}. This request needs the role {least}.");
                Self::new(StatusCode::FORBIDDEN, "forbidden", message)
            }
            Denied::Slowed(retry_after) => Refusal::RateLimited { retry_after }.into(),
        }
    }

    /// A check-in with a good access token of this role that has not enrolled the server.
    pub fn token_of_others(role: Role) -> Self {
        let message = match role {
            Role::Enrol => "This token belongs to other servers.".to_owned(),
            _ => format!(
                "This token has the role {}. A check-in needs the token of the server itself, or none.",
                role.name()
            ),
        };
        Self { message, ..Refusal::Unauthorized.into() }
    }

    /// A check-in of a revoked server, with the status that the operator has configured.
    pub fn revoked(status: StatusCode) -> Self {
        Self::new(status, "revoked", "Server is revoked.")
    }

    /// Too many pages watch codes.
    pub fn too_many_watch() -> Self {
        let message = "Too many pages are watching. The installation goes on all the same.";
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
        Self { retry_after: Some(LATER), ..error }
    }

    /// No access token has this number.
    pub fn token_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "token_not_found", "There is no such access token.")
    }

    /// No webhook has this name.
    pub fn webhook_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "webhook_not_found", "There is no such webhook.")
    }

    /// A test message could not be delivered. Only operators hear the reason.
    pub fn webhook_failed(reason: String) -> Self {
        let message = format!("The test message was not delivered: {reason}.");
        Self::new(StatusCode::BAD_GATEWAY, "webhook_failed", message)
    }

    /// A form from a page of another site.
    pub fn form_from_elsewhere() -> Self {
        let message = "This form was sent from another site. Please send it from the console.";
        Self::new(StatusCode::FORBIDDEN, "browser_session_invalid", message)
    }

    /// The settings have changed since the client read them.
    pub fn settings_have_changed() -> Self {
        let message = "The settings have changed since they were read. Please read them again.";
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", message)
    }

    /// An access token has changed since the client read it.
    pub fn token_has_changed() -> Self {
        let message = "The access token has changed since it was read. Please read it again.";
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", message)
    }

    /// A backup is asked for while another one is made.
    pub fn backup_running() -> Self {
        let message = "Another backup is being made. Please wait for its end.";
        Self::new(StatusCode::CONFLICT, "backup_running", message)
    }

    /// A backup of a store that is a database.
    pub fn backup_of_database() -> Self {
        let message = "The store is a database, which has backups of its own. The command \
                       iptunnel-server backup says how.";
        Self::new(StatusCode::CONFLICT, "backup_of_database", message)
    }

    /// A backup could not be made. Only operators hear the reason.
    pub fn backup_failed(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "backup_failed", reason)
    }

    /// A change of settings without the version that it is based on.
    pub fn condition_required() -> Self {
        let message = "If-Match with the ETag of GET /admin/config is required.";
        Self::new(StatusCode::PRECONDITION_REQUIRED, "precondition_required", message)
    }

    /// A `Host` that the operators' listener does not accept.
    pub fn unknown_host() -> Self {
        let message = "This listener answers to its IP address or to localhost.";
        Self::new(StatusCode::MISDIRECTED_REQUEST, "unknown_host", message)
    }

    /// A request whose head cannot be read. The status is that of the HTTP parser.
    pub fn unreadable(status: StatusCode) -> Self {
        let (code, message) = match status {
            StatusCode::REQUEST_TIMEOUT => {
                ("request_timeout", "The head of the request did not arrive in time.")
            }
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                ("request_head_too_large", "The head of the request is too large.")
            }
            _ => ("invalid_request", "The request is not valid HTTP."),
        };
        Self::new(status, code, message)
    }

    /// A request without TLS to a listener that speaks nothing else.
    pub fn not_tls() -> Self {
        let message = "This port speaks HTTPS: use an address that begins with https.";
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    /// An error that should not happen.
    pub fn internal() -> Self {
        let message = "Something went wrong on the server.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let (code, message) = match failure {
            Failure::Overloaded => ("overloaded", "The server is busy. Please try again shortly."),
            Failure::StorageUnavailable => (
                "storage_unavailable",
                "The server cannot store anything right now. Nothing has changed; please try again shortly.",
            ),
            Failure::OutcomeUnknown => (
                "outcome_unknown",
                "The server cannot tell whether the request took effect. Please repeat it: that is safe.",
            ),
        };
        let unavailable = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message);
        Self { retry_after: Some(SOON), ..unavailable }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        const FORBIDDEN: StatusCode = StatusCode::FORBIDDEN;
        const NOT_FOUND: StatusCode = StatusCode::NOT_FOUND;
        const UNPROCESSABLE: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;
        let (status, code, message) = match refusal {
            Refusal::InvalidField(message) => {
                return Self::new(UNPROCESSABLE, "validation_error", message);
            }
            Refusal::InvalidBinding(message) => {
                return Self::new(UNPROCESSABLE, "invalid_binding", message);
            }
            Refusal::RateLimited { retry_after } => {
                let message = "Too many requests. Please wait before trying again.";
                let error =
                    Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
                return Self { retry_after: Some(retry_after), ..error };
            }
            Refusal::BodyEmpty => {
                (StatusCode::BAD_REQUEST, "invalid_body", "The request body is empty.")
            }
            Refusal::BodyNotJson => {
                (StatusCode::BAD_REQUEST, "invalid_json", "The request body is not a JSON object.")
            }
            Refusal::BodyRepeatsKey(key) => {
                let message = format!("The request body has the key {key} more than once.");
                return Self::new(StatusCode::BAD_REQUEST, "invalid_json", message);
            }
            Refusal::BodyTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "request_too_large",
                "The request body is larger than 64 KiB.",
            ),
            Refusal::BodyTooSlow => (
                StatusCode::REQUEST_TIMEOUT,
                "request_timeout",
                "The body of the request did not arrive in time.",
            ),
            Refusal::SessionRequired => (
                FORBIDDEN,
                "browser_session_required",
                "Open the SlowDNS page first before requesting an install code.",
            ),
            Refusal::SessionInvalid => (
                FORBIDDEN,
                "browser_session_invalid",
                "This request does not come from the page that was opened. Please reload the page.",
            ),
            Refusal::Unauthorized => {
                (StatusCode::UNAUTHORIZED, "unauthorized", "A valid token is required.")
            }
            Refusal::ProductMismatch => {
                (FORBIDDEN, "product_mismatch", "This install code belongs to another product.")
            }
            Refusal::CodeNotFound => {
                (NOT_FOUND, "install_code_not_found", "Install code was not found.")
            }
            Refusal::CodeUsed => {
                (FORBIDDEN, "install_code_used", "Install code has already been used.")
            }
            Refusal::CodeExpired => {
                (FORBIDDEN, "install_code_expired", "Install code has expired.")
            }
            Refusal::CodeMaxActivations => (
                FORBIDDEN,
                "install_code_max_activations",
                "Install code has been activated too many times.",
            ),
            Refusal::PrecheckTokenInvalid => (
                FORBIDDEN,
                "precheck_token_invalid",
                "Precheck token is missing, invalid or expired.",
            ),
            Refusal::TokenInvalid => {
                (FORBIDDEN, "token_invalid", "Install token is invalid or expired.")
            }
            Refusal::TokenMismatch => {
                (FORBIDDEN, "token_mismatch", "Install token belongs to another activation.")
            }
            Refusal::TokenUsed => {
                (StatusCode::CONFLICT, "token_used", "Install token has already been used.")
            }
            Refusal::ActivationNotFound => {
                (NOT_FOUND, "activation_not_found", "Activation was not found.")
            }
            Refusal::ServerNotFound => (NOT_FOUND, "server_not_found", "Server was not found."),
            Refusal::ServerRevoked(_) => (FORBIDDEN, "revoked", "Server is revoked."),
            Refusal::CredentialUsed => (
                FORBIDDEN,
                "credential_used",
                "This ticket or install token has been used, or is older than the last registration of this \
                 server. Please get a new one.",
            ),
            Refusal::ServerOfAnotherToken => (
                FORBIDDEN,
                "server_of_another_token",
                "This server belongs to another access token or installation. Ask the operator to delete \
                 the server, or register it from its own address.",
            ),
            Refusal::TooManyServers => (
                FORBIDDEN,
                "too_many_servers",
                "This access token has enrolled as many servers as it may.",
            ),
        };
        Self::new(status, code, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_references_examples_have_its_messages() {
        let sent = |refusal| {
            let error = ApiError::from(refusal);
            (error.status.as_u16(), error.code, error.message)
        };
        let limited = Refusal::RateLimited { retry_after: 7 };
        let words = "Too many requests. Please wait before trying again.".to_owned();
        assert_eq!(sent(limited), (429, "rate_limit_exceeded", words));
        let words = "Open the SlowDNS page first before requesting an install code.".to_owned();
        assert_eq!(sent(Refusal::SessionRequired), (403, "browser_session_required", words));
        let words = "Install code has expired.".to_owned();
        assert_eq!(sent(Refusal::CodeExpired), (403, "install_code_expired", words));
    }

    #[test]
    fn every_failure_says_when_to_retry() {
        for failure in [Failure::Overloaded, Failure::StorageUnavailable, Failure::OutcomeUnknown] {
            let error = ApiError::from(failure);
            assert_eq!((error.status.as_u16(), error.retry_after), (503, Some(SOON)));
        }
    }
}
