//! What both listeners offer about servers: commands, and searching.

use super::State;
use crate::http::errors::ApiError;
use crate::state::access::caller::Caller;
use iptunnel_actors::server_registry::{Delete, Servers, SetNote, SetRevoked};
use iptunnel_domain::server::{Server, ServerId, ServerNumber};
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::{ReadError, Records, Store};
use std::net::IpAddr;
use std::sync::Arc;

/// The most rows that one search for a text reads: about 50 ms.
pub const SEARCHED: usize = 50_000;
/// Rows read at a time.
const STEP: usize = 1000;

/// Hands the servers that were registered before `before` to `look`, the newest first, until it returns
/// `false`, at most [`SEARCHED`]. Returns the last one that was looked at, or `None` if there are no more.
///
/// # Errors
/// The store cannot be read.
pub fn look_through(
    store: &dyn Records,
    before: Option<ServerNumber>,
    mut look: impl FnMut(Server) -> bool,
) -> Result<Option<ServerNumber>, ReadError> {
    let (mut before, mut looked) = (before, 0);
    while looked < SEARCHED {
        let page = store.servers_before(before, STEP)?;
        let is_last = page.len() < STEP;
        looked += page.len();
        for server in page {
            before = Some(server.number);
            if !look(server) {
                return Ok(before);
            }
        }
        if is_last {
            return Ok(None);
        }
    }
    Ok(before)
}

/// Returns whether host name, note, address or id of a server contain `text`, which is in lower case.
pub fn contains(server: &Server, text: &str) -> bool {
    server.hostname.to_lowercase().contains(text)
        || server.note.to_lowercase().contains(text)
        || server.ip.to_string().contains(text)
        || server.id.to_string().contains(text)
}

/// Returns the record of a server, with the time of its last check-in.
///
/// # Errors
/// No server has this id, or the store cannot be read.
pub async fn find(state: &State, id: &str) -> Result<Server, ApiError> {
    let id = ServerId::parse(id).ok_or(Refusal::ServerNotFound)?;
    let (servers, now) = (Arc::clone(state.handles.servers()), state.clock.now());
    let found = state.read_store(move |store| read(store, &servers, &[id], now));
    Ok(found.await?.pop().ok_or(Refusal::ServerNotFound)?)
}

/// Returns those of the servers with these ids that exist and are not deleted, with the times of their last check-ins.
///
/// # Errors
/// The store cannot be read.
pub fn read(
    store: &dyn Store,
    servers: &Servers,
    ids: &[ServerId],
    now: Timestamp,
) -> Result<Vec<Server>, ReadError> {
    let found = match store.shared() {
        // Another server may have registered them just now.
        Some(shared) => shared.servers_of(ids)?,
        None => {
            let numbers = ids.iter().filter_map(|id| servers.number_of(*id));
            store.servers_numbered(&numbers.collect::<Vec<_>>())?
        }
    };
    let shown = found.into_iter().flatten().filter(|server| !server.deleted);
    Ok(shown.map(|server| servers.as_last_seen(server, now)).collect())
}

/// Returns those of the servers with these numbers that exist, in this order, with the times of their last
/// check-ins. It reads them at once: over a shared store with one query.
///
/// # Errors
/// The store cannot be read.
pub fn numbered(
    store: &dyn Records,
    servers: &Servers,
    numbers: &[ServerNumber],
    now: Timestamp,
) -> Result<Vec<Server>, ReadError> {
    let found = store.servers_numbered(numbers)?.into_iter().flatten();
    Ok(found.map(|server| servers.as_last_seen(server, now)).collect())
}

/// Writes a note on the server with this id, for a caller at the address `from`.
///
/// # Errors
/// The note is too long, no server has this id, or the store refuses the change.
pub async fn set_note(
    state: &State,
    id: &str,
    note: String,
    (caller, from): (&Caller, IpAddr),
) -> Result<ServerId, ApiError> {
    let id = ServerId::parse(id).ok_or(Refusal::ServerNotFound)?;
    if note.chars().count() > Server::NOTE {
        let message = format!("note must be at most {} characters.", Server::NOTE);
        return Err(Refusal::InvalidField(message).into());
    }
    let (by, now) = (caller.shown().to_owned(), state.clock.now());
    let command = SetNote { id, note, by, from, now };
    state.ask(|handles| handles.set_note(command)).await.outcome??;
    Ok(id)
}

/// Deletes the server with this id, for a caller at the address `from`. A revoked one stays revoked, and can
/// be restored by its id.
///
/// # Errors
/// No server has this id, or the store refuses the change.
pub async fn delete(
    state: &State,
    id: &str,
    (caller, from): (&Caller, IpAddr),
) -> Result<ServerId, ApiError> {
    let id = ServerId::parse(id).ok_or(Refusal::ServerNotFound)?;
    let (by, now) = (caller.shown().to_owned(), state.clock.now());
    let command = Delete { id, by, from, now };
    state.ask(|handles| handles.delete_server(command)).await.outcome??;
    Ok(id)
}

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
    let (by, now) = (caller.shown().to_owned(), state.clock.now());
    let command = SetRevoked { id, revoked, by, from, now };
    state.ask(|handles| handles.set_revoked(command)).await.outcome??;
    Ok(id)
}
