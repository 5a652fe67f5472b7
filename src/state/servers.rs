//! Commands on servers that both listeners offer.

use super::State;
use crate::http::errors::ApiError;
use iptunnel_actors::server_registry::SetRevoked;
use iptunnel_domain::Refusal;
use iptunnel_domain::server::ServerId;
use std::net::IpAddr;

/// Revokes the server with this id, or restores it. `from` is the address of the caller.
///
/// # Errors
/// No server has this id, or the store refuses the change.
pub async fn set_revoked(
    state: &State,
    id: &str,
    revoked: bool,
    from: IpAddr,
) -> Result<ServerId, ApiError> {
    let id = ServerId::parse(id).ok_or(Refusal::ServerNotFound)?;
    let command = SetRevoked { id, revoked, by: String::new(), from, now: state.clock.now() };
    state.wait(state.handles.set_revoked(command)).await.outcome??;
    Ok(id)
}
