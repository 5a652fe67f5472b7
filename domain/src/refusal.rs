//! Every way in which the rules say no. A refusal is a value, not an error: nothing went wrong.

use crate::server::ServerId;

/// Why a well-delivered request is turned down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The request has no body.
    BodyEmpty,
    /// The body is not a JSON object.
    BodyNotJson,
    /// The body is larger than the server reads.
    BodyTooLarge,
    /// A field is missing, too long, of a wrong type or of a wrong form; the text names it.
    InvalidField(String),
    /// The host name or the address to bind to is unusable; the text names it.
    InvalidBinding(String),
    /// No browser session, or one that has expired.
    SessionRequired,
    /// A browser session that is forged or another browser's, or a cross-site request.
    SessionInvalid,
    /// A route that wants the master token, without it.
    Unauthorized,
    /// Some limit is used up.
    RateLimited {
        /// Seconds until every limit that refuses has begun a new window.
        retry_after: u64,
    },
    /// The code or the request belongs to another product than the route.
    ProductMismatch,
    /// No such code, or one forgotten after its retention.
    CodeNotFound,
    /// Another machine holds or held the code.
    CodeUsed,
    /// The code's time has run out.
    CodeExpired,
    /// The code has been activated as often as a code may be.
    CodeMaxActivations,
    /// The precheck token is missing, forged, expired or another's.
    PrecheckTokenInvalid,
    /// The install token is malformed, forged, expired or of another kind.
    TokenInvalid,
    /// The install token is genuine, but of another activation.
    TokenMismatch,
    /// The activation is confirmed already.
    TokenUsed,
    /// No such activation, or one that was released.
    ActivationNotFound,
    /// No such server.
    ServerNotFound,
    /// The server's registration was revoked.
    ServerRevoked(ServerId),
}
