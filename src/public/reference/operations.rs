//! The credentials and errors of every operation. Handlers document the rest.

/// The credentials of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// What the table of routes says: a token with one of its roles, or nothing.
    Role,
    /// The cookie that the product's page sets.
    BrowserSession,
    /// An optional token.
    PerhapsToken,
    /// The install token of an activation.
    InstallToken,
}

/// One operation.
pub struct Operation {
    /// Its `operationId`.
    pub id: &'static str,
    /// The name of its route in metrics and log.
    pub route: &'static str,
    /// The credentials that it needs.
    pub needs: Needs,
    /// The message of a success. Empty for legacy operations.
    pub says: &'static str,
    /// Whether its responses have rate limit headers.
    pub limited: bool,
    /// The codes of its errors. Legacy operations do not send codes, only status and message.
    pub refusals: &'static [&'static str],
}

impl Operation {
    /// Returns the operation with this `operationId`.
    pub fn of(id: Option<&str>) -> Option<&'static Self> {
        OPERATIONS.iter().find(|operation| Some(operation.id) == id)
    }
}

const fn operation(
    id: &'static str,
    route: &'static str,
    says: &'static str,
    needs: Needs,
    limited: bool,
    refusals: &'static [&'static str],
) -> Operation {
    Operation { id, route, needs, says, limited, refusals }
}

/// All operations, in the order of the reference.
pub const OPERATIONS: [Operation; 28] = [
    operation(
        "issue",
        "issue",
        "SlowDNS install code issued",
        Needs::BrowserSession,
        true,
        &[
            "browser_session_required",
            "browser_session_invalid",
            "not_found",
            "rate_limit_exceeded",
            "internal_error",
            "overloaded",
            "storage_unavailable",
            "outcome_unknown",
        ],
    ),
    operation(
        "precheck",
        "precheck",
        "Install code validated",
        Needs::Role,
        true,
        &[
            "invalid_body",
            "invalid_json",
            "product_mismatch",
            "install_code_used",
            "install_code_expired",
            "install_code_max_activations",
            "install_code_not_found",
            "not_found",
            "request_timeout",
            "request_too_large",
            "validation_error",
            "rate_limit_exceeded",
            "internal_error",
            "overloaded",
            "storage_unavailable",
            "outcome_unknown",
        ],
    ),
    operation(
        "activate",
        "activate",
        "Install token issued",
        Needs::Role,
        true,
        &[
            "invalid_body",
            "invalid_json",
            "precheck_token_invalid",
            "product_mismatch",
            "install_code_used",
            "install_code_expired",
            "install_code_max_activations",
            "install_code_not_found",
            "not_found",
            "request_timeout",
            "request_too_large",
            "validation_error",
            "invalid_binding",
            "rate_limit_exceeded",
            "internal_error",
            "overloaded",
            "storage_unavailable",
            "outcome_unknown",
        ],
    ),
    operation(
        "confirm",
        "confirm",
        "Install confirmed",
        Needs::Role,
        false,
        &[
            "invalid_body",
            "invalid_json",
            "token_invalid",
            "token_mismatch",
            "activation_not_found",
            "not_found",
            "token_used",
            "request_timeout",
            "request_too_large",
            "validation_error",
            "internal_error",
            "overloaded",
            "storage_unavailable",
            "outcome_unknown",
        ],
    ),
    operation(
        "release",
        "release",
        "Activation released",
        Needs::Role,
        false,
        &[
            "invalid_body",
            "invalid_json",
            "token_invalid",
            "token_mismatch",
            "activation_not_found",
            "not_found",
            "request_timeout",
            "request_too_large",
            "validation_error",
            "internal_error",
            "overloaded",
            "storage_unavailable",
            "outcome_unknown",
        ],
    ),
    operation("install_script", "install_script", "", Needs::Role, false, &["not_found"]),
    operation("address", "address", "Your address", Needs::Role, false, &[]),
    operation(
        "payload",
        "payload",
        "",
        Needs::InstallToken,
        false,
        &[
            "product_mismatch",
            "token_invalid",
            "activation_not_found",
            "payload_not_found",
            "not_found",
            "internal_error",
            "storage_unavailable",
        ],
    ),
    operation(
        "server_check_in",
        "check_in",
        "Check-in accepted",
        Needs::PerhapsToken,
        false,
        &[
            "invalid_json",
            "unauthorized",
            "revoked",
            "server_not_found",
            "not_found",
            "request_timeout",
            "request_too_large",
            "internal_error",
            "overloaded",
            "storage_unavailable",
            "outcome_unknown",
        ],
    ),
    operation(
        "servers",
        "servers",
        "Servers",
        Needs::Role,
        false,
        &[
            "unauthorized",
            "forbidden",
            "method_not_allowed",
            "validation_error",
            "rate_limit_exceeded",
            "internal_error",
            "storage_unavailable",
        ],
    ),
    operation(
        "server",
        "server",
        "Server",
        Needs::Role,
        false,
        &[
            "unauthorized",
            "forbidden",
            "server_not_found",
            "not_found",
            "rate_limit_exceeded",
            "internal_error",
            "storage_unavailable",
        ],
    ),
    operation(
        "server_register",
        "server_register",
        "Server registered",
        Needs::Role,
        false,
        &[
            "invalid_body",
            "invalid_json",
            "unauthorized",
            "forbidden",
            "revoked",
            "credential_used",
            "token_invalid",
            "too_many_servers",
            "activation_not_found",
            "request_timeout",
            "request_too_large",
            "validation_error",
            "rate_limit_exceeded",
            "internal_error",
            "overloaded",
            "storage_unavailable",
            "outcome_unknown",
        ],
    ),
    operation(
        "server_delete",
        "server_delete",
        "Server deleted",
        Needs::Role,
        false,
        SERVER_ACTION,
    ),
    operation(
        "server_revoke",
        "server_action",
        "Server revoked",
        Needs::Role,
        false,
        SERVER_ACTION,
    ),
    operation(
        "server_restore",
        "server_action",
        "Server restored",
        Needs::Role,
        false,
        SERVER_ACTION,
    ),
    operation(
        "ticket_issue",
        "ticket_issue",
        "Install ticket issued",
        Needs::PerhapsToken,
        true,
        &[
            "invalid_json",
            "unauthorized",
            "forbidden",
            "request_timeout",
            "request_too_large",
            "validation_error",
            "rate_limit_exceeded",
            "internal_error",
            "overloaded",
            "storage_unavailable",
            "outcome_unknown",
        ],
    ),
    operation(
        "authorize",
        "authorize",
        "",
        Needs::Role,
        true,
        &[
            "rate_limit_exceeded",
            "internal_error",
            "overloaded",
            "storage_unavailable",
            "outcome_unknown",
        ],
    ),
    operation("register", "register", "", Needs::Role, false, LEGACY_TOKEN),
    operation("checkin", "checkin", "", Needs::PerhapsToken, false, LEGACY),
    operation("revoke", "revoke", "", Needs::Role, false, LEGACY_TOKEN),
    operation(
        "status",
        "status",
        "",
        Needs::Role,
        false,
        &["rate_limit_exceeded", "internal_error", "storage_unavailable"],
    ),
    operation("installer", "installer", "", Needs::Role, false, &["not_found"]),
    operation("installer_version", "installer_version", "", Needs::Role, false, &["not_found"]),
    operation(
        "v2_installer_version",
        "v2_installer_version",
        "",
        Needs::Role,
        false,
        &["not_found"],
    ),
    operation("main_stack_healthz", "main_stack_healthz", "", Needs::Role, false, &[]),
    operation("healthz", "healthz", "OK", Needs::Role, false, &[]),
    operation("readyz", "readyz", "", Needs::Role, false, &[]),
    operation("document", "document", "", Needs::Role, false, &[]),
];

const SERVER_ACTION: &[&str] = &[
    "unauthorized",
    "forbidden",
    "server_not_found",
    "not_found",
    "rate_limit_exceeded",
    "internal_error",
    "overloaded",
    "storage_unavailable",
    "outcome_unknown",
];

/// As [`LEGACY`], for those that need a token.
const LEGACY_TOKEN: &[&str] = &[
    "request_timeout",
    "request_too_large",
    "rate_limit_exceeded",
    "internal_error",
    "overloaded",
    "storage_unavailable",
    "outcome_unknown",
];

/// The errors of all legacy operations with a body. Their handlers document the others.
const LEGACY: &[&str] = &[
    "request_timeout",
    "request_too_large",
    "internal_error",
    "overloaded",
    "storage_unavailable",
    "outcome_unknown",
];
