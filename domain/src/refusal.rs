//! Every reason for which a request is refused. A refusal is a normal result, not a fault of the
//! server.

use crate::server::ServerId;

/// The reason why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The request has no body.
    BodyEmpty,
    /// The body is not a JSON object.
    BodyNotJson,
    /// The body is a JSON object with this key more than once.
    BodyRepeatsKey(String),
    /// The body is larger than the server accepts.
    BodyTooLarge,
    /// The body has not arrived in time.
    BodyTooSlow,
    /// A field is missing, too long, malformed or of a wrong type; the text names it.
    InvalidField(String),
    /// The host name or the address to bind is not acceptable; the text names it.
    InvalidBinding(String),
    /// The request has no browser session, or an expired one.
    SessionRequired,
    /// The browser session is forged or of another browser, or the request is cross-site.
    SessionInvalid,
    /// The route requires the master token, and the request does not have it.
    Unauthorized,
    /// A rate limit is reached.
    RateLimited {
        /// Seconds until every refusing limit has begun a new window.
        retry_after: u64,
    },
    /// The code or the request belongs to another product than the route.
    ProductMismatch,
    /// The code does not exist, or was deleted after its retention.
    CodeNotFound,
    /// Another machine holds or held the code.
    CodeUsed,
    /// The code has expired.
    CodeExpired,
    /// The code allows no more activations.
    CodeMaxActivations,
    /// The precheck token is missing, forged, expired or of another machine or code.
    PrecheckTokenInvalid,
    /// The install token is malformed, forged, expired or of another kind.
    TokenInvalid,
    /// The install token is genuine but of another activation.
    TokenMismatch,
    /// The activation is already confirmed.
    TokenUsed,
    /// The activation does not exist, or was released.
    ActivationNotFound,
    /// The server does not exist.
    ServerNotFound,
    /// The server's registration was revoked.
    ServerRevoked(ServerId),
    /// The ticket or install token has registered a server before, or a later one has.
    CredentialUsed,
    /// Another access token, which is still good, has enrolled the server.
    ServerOfAnotherToken,
    /// The access token may not enrol more servers.
    TooManyServers,
}
