//! Commands on servers that both listeners offer.

use super::State;
use crate::http::errors::ApiError;
use crate::state::access::caller::Caller;
use iptunnel_actors::server_registry::SetRevoked;
use iptunnel_domain::Refusal;
use iptunnel_domain::server::ServerId;
use std::net::IpAddr;

/// Revokes the server with this id, or restores it, for a caller at the address `from`.
///
/// # Errors
/// No server has this id, or the store refuses the change.
pub async fn set_revoked(
    state: &State,
    id: &str,
    revoked: bool,
    (caller, from): (&Caller, IpAddr),
) -> Result<ServerId, ApiError> {
    let id = ServerId::parse(id).ok_or(Refusal::ServerNotFound)?;
    let (by, now) = (caller.token_name().to_owned(), state.clock.now());
    let command = SetRevoked { id, revoked, by, from, now };
    state.wait(state.handles.set_revoked(command)).await.outcome??;
    Ok(id)
}
