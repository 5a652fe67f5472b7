//! The one table of who may do what: every route of both listeners with the least role that it takes.
//!
//! A route that is not in the table is not served. The checks of both listeners follow from it, and the
//! `security` of each operation in the OpenAPI document. The table in `docs/access.md` is compared with it.

use iptunnel_domain::access::{Role, WhyNot};
use std::fmt;

/// One route.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// The method. `GET` includes `HEAD`.
    pub method: &'static str,
    /// The path. Names in braces stand for one segment each.
    pub path: &'static str,
    /// The least roles. A caller needs one of them, or a role that includes one. Empty: everybody.
    pub least: &'static [Role],
    /// Whether the handler looks at the token: because it is in the body, or because it may be missing. Else
    /// the gate does, and it is in the `Authorization` header, or a session of the console stands for it.
    pub in_body: bool,
}

impl Rule {
    /// Whether everybody may use the route. A credential may still change what it answers.
    pub const fn is_public(&self) -> bool {
        self.least.is_empty()
    }

    /// Whether a token with this role may use the route.
    pub fn admits(&self, role: Role) -> bool {
        self.is_public() || self.least.iter().any(|least| role.permits(*least))
    }

    /// Returns the rule of a route.
    pub fn of(rules: &'static [Self], method: &str, path: &str) -> Option<&'static Self> {
        rules.iter().find(|rule| rule.path == path && rule.method == method)
    }

    /// Returns the least roles as text: `enrol or view`, or `everybody`.
    pub fn words(&self) -> String {
        match self.least {
            [] => "everybody".to_owned(),
            roles => roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(" or "),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// Why a caller may not use a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No token was sent.
    Missing,
    /// The token is none of this server's.
    Wrong,
    /// The token has the form of an access token, and something in it is wrong.
    Mistyped,
    /// The token is genuine, but not good. Only its holder is told so.
    NotGood(WhyNot),
    /// The ticket is genuine, and its time is over.
    TicketOver,
    /// The text has the form of a ticket, and it is none of this server's for this address.
    TicketWrong,
    /// The role of the token is not among those that may use the route.
    Role {
        /// The role of the token.
        has: Role,
        /// The least roles, as [`Rule::words`] names them.
        least: String,
    },
    /// The caller's network has sent too many wrong tokens. A retry is useful after so many seconds.
    Slowed(u64),
}

const fn get(path: &'static str, least: &'static [Role]) -> Rule {
    Rule { method: "GET", path, least, in_body: false }
}

const fn post(path: &'static str, least: &'static [Role]) -> Rule {
    Rule { method: "POST", path, least, in_body: false }
}

const fn patch(path: &'static str, least: &'static [Role]) -> Rule {
    Rule { method: "PATCH", path, least, in_body: false }
}

const fn delete(path: &'static str, least: &'static [Role]) -> Rule {
    Rule { method: "DELETE", path, least, in_body: false }
}

const EVERYBODY: &[Role] = &[];
/// An enrolling token sees its own servers only.
const ENROL_OR_VIEW: &[Role] = &[Role::Enrol, Role::View];
const VIEW: &[Role] = &[Role::View];
const OPERATE: &[Role] = &[Role::Operate];
const ADMIN: &[Role] = &[Role::Admin];

/// The rule of the registration of a server.
pub const REGISTER: Rule =
    Rule { method: "POST", path: "/register", least: &[Role::Enrol], in_body: true };

/// The rule of the registration of a server in version 2.
pub const REGISTER_V2: Rule = Rule { path: "/api/v2/servers/register", ..REGISTER };

/// The rule of a request for an install ticket with a token. Without one, the handler looks at the address.
pub const TICKETS: Rule = Rule {
    method: "POST",
    path: "/api/v2/install-tickets/issue",
    least: &[Role::Enrol, Role::Operate],
    in_body: true,
};

/// The routes of the public listener.
pub const PUBLIC: &[Rule] = &[
    get("/", EVERYBODY),
    get("/assets/{name}", EVERYBODY),
    get("/docs", EVERYBODY),
    get("/readyz", EVERYBODY),
    get("/healthz", EVERYBODY),
    get("/version.json", EVERYBODY),
    get("/api/v2/version", EVERYBODY),
    get("/iptunnel-install.sh", EVERYBODY),
    get("/api/v2/address", EVERYBODY),
    get("/api/v2/healthz", EVERYBODY),
    get("/api/v2/openapi.json", EVERYBODY),
    get("/{product}", EVERYBODY),
    post("/{product}", EVERYBODY),
    get("/{product}/events", EVERYBODY),
    get("/{product}/install.sh", EVERYBODY),
    post("/api/v2/{product}/code/issue", EVERYBODY),
    post("/api/v2/{product}/install/precheck", EVERYBODY),
    post("/api/v2/{product}/install/activate", EVERYBODY),
    post("/api/v2/{product}/install/confirm", EVERYBODY),
    post("/api/v2/{product}/install/release", EVERYBODY),
    // The handler looks at the install token.
    get("/api/v2/{product}/install/payload", EVERYBODY),
    post("/api/v2/servers/{server_id}/check-in", EVERYBODY),
    post("/api/v2/servers/{server_id}/revoke", OPERATE),
    post("/api/v2/servers/{server_id}/restore", OPERATE),
    get("/api/v2/servers", VIEW),
    get("/api/v2/servers/{server_id}", VIEW),
    delete("/api/v2/servers/{server_id}", OPERATE),
    REGISTER_V2,
    TICKETS,
    get("/authorize", EVERYBODY),
    REGISTER,
    post("/checkin", EVERYBODY),
    post("/revoke", OPERATE),
    get("/status", ENROL_OR_VIEW),
];

/// The routes of the operators' listener.
pub const OPERATORS: &[Rule] = &[
    get("/assets/{name}", EVERYBODY),
    get("/livez", EVERYBODY),
    get("/readyz", EVERYBODY),
    get("/metrics", EVERYBODY),
    get("/", EVERYBODY),
    get("/console", EVERYBODY),
    get("/console/login", EVERYBODY),
    post("/console/login", EVERYBODY),
    get("/console/{page}", EVERYBODY),
    post("/console/{key}/logout", VIEW),
    get("/console/{key}/now", VIEW),
    get("/console/{key}/now/live", VIEW),
    get("/console/{key}/load", VIEW),
    get("/console/{key}/load/live", VIEW),
    get("/console/{key}/servers", VIEW),
    post("/console/{key}/servers/revoke", OPERATE),
    post("/console/{key}/servers/restore", OPERATE),
    post("/console/{key}/servers/note", OPERATE),
    post("/console/{key}/servers/delete", OPERATE),
    post("/console/{key}/servers/several", OPERATE),
    get("/console/{key}/servers/unseen", VIEW),
    post("/console/{key}/servers/unseen", OPERATE),
    get("/console/{key}/codes", VIEW),
    post("/console/{key}/codes", VIEW),
    get("/console/{key}/codes/{code}", VIEW),
    get("/console/{key}/audit", VIEW),
    get("/console/{key}/audit/export", VIEW),
    get("/console/{key}/settings", VIEW),
    post("/console/{key}/settings", ADMIN),
    get("/console/{key}/access", VIEW),
    post("/console/{key}/access/create", ADMIN),
    post("/console/{key}/access/change", ADMIN),
    post("/console/{key}/access/rotate", ADMIN),
    post("/console/{key}/access/revoke", ADMIN),
    post("/console/{key}/access/revoke-servers", ADMIN),
    get("/console/{key}/sessions", VIEW),
    post("/console/{key}/sessions/end", ADMIN),
    get("/console/{key}/webhooks", VIEW),
    post("/console/{key}/webhooks/replay", OPERATE),
    post("/console/{key}/webhooks/enable", OPERATE),
    post("/console/{key}/webhooks/test", OPERATE),
    get("/admin/now", VIEW),
    get("/admin/servers", VIEW),
    post("/admin/servers/{server_id}/{verb}", OPERATE),
    post("/admin/servers/several", OPERATE),
    post("/admin/import", ADMIN),
    get("/admin/backup", VIEW),
    post("/admin/backup", ADMIN),
    get("/admin/servers/unseen", VIEW),
    post("/admin/servers/unseen", OPERATE),
    post("/admin/codes", VIEW),
    get("/admin/codes/{code}", VIEW),
    get("/admin/activations", VIEW),
    get("/admin/audit", VIEW),
    get("/admin/audit/export", VIEW),
    get("/admin/audit/public-key", VIEW),
    get("/admin/audit/heads", VIEW),
    get("/admin/webhooks", VIEW),
    get("/admin/webhooks/dead", VIEW),
    post("/admin/webhooks/{name}/test", OPERATE),
    post("/admin/webhooks/{name}/replay", OPERATE),
    post("/admin/webhooks/{name}/enable", OPERATE),
    get("/admin/config", VIEW),
    patch("/admin/config", ADMIN),
    get("/admin/tokens", VIEW),
    post("/admin/tokens", ADMIN),
    patch("/admin/tokens/{id}", ADMIN),
    post("/admin/tokens/{id}/rotate", ADMIN),
    post("/admin/tokens/{id}/revoke", ADMIN),
    get("/admin/sessions", VIEW),
    post("/admin/sessions/{id}/end", ADMIN),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_route_has_two_rules() {
        for rules in [PUBLIC, OPERATORS] {
            let routes: BTreeSet<String> = rules.iter().map(Rule::to_string).collect();
            assert_eq!(routes.len(), rules.len());
        }
    }

    #[test]
    fn whoever_may_change_may_look_and_an_enrolling_token_may_only_enrol() {
        for rule in PUBLIC.iter().chain(OPERATORS).filter(|rule| !rule.is_public()) {
            let enrols = rule.least.contains(&Role::Enrol);
            assert_eq!(rule.admits(Role::Enrol), enrols, "{rule}");
            if rule.admits(Role::View) {
                assert!(rule.admits(Role::Operate) && rule.admits(Role::Admin), "{rule}");
            }
        }
        let reads = Rule::of(PUBLIC, "GET", "/status").unwrap();
        assert_eq!(reads.words(), "enrol or view");
        assert!(Rule::of(PUBLIC, "POST", "/status").is_none());
    }
}
