//! Reads rows, and converts records to rows and back.

use super::unreadable;
use crate::ReadError;
use deadpool_postgres::GenericClient;
use iptunnel_domain::activation::{
    Activation, ActivationId, ActivationNumber, ActivationRef, ActivationState, Binding, Holder,
    Request,
};
use iptunnel_domain::address::HostName;
use iptunnel_domain::audit::{Action, ActivationName, Actor, Event};
use iptunnel_domain::code::{Code, CodeHash, CodeNumber, CodeState, ProductLetters};
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{EnrolledBy, Server, ServerId, ServerNumber};
use iptunnel_domain::{Timestamp, Version};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, ToSql};

/// Reads with a statement that is prepared once per connection.
pub(super) async fn rows(
    client: &impl GenericClient,
    sql: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>, ReadError> {
    let statement = client.prepare_cached(sql).await.map_err(unreadable)?;
    client.query(&statement, values).await.map_err(unreadable)
}

/// Converts an instant to the database's type.
pub(super) fn time(at: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(at.0)
}

/// Converts to a signed number, the only kind the database has, with the same bits.
pub(super) const fn signed(number: u64) -> i64 {
    number.cast_signed()
}

/// PostgreSQL's text cannot hold the character NUL.
pub(super) fn text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{FFFD}").into() } else { text.into() }
}

pub(super) fn state_name(state: ActivationState) -> &'static str {
    match state {
        ActivationState::Open => "open",
        ActivationState::Confirmed(_) => "confirmed",
        ActivationState::Released(_) => "released",
    }
}

pub(super) fn closed_at(state: ActivationState) -> Option<SystemTime> {
    match state {
        ActivationState::Open => None,
        ActivationState::Confirmed(at) | ActivationState::Released(at) => Some(time(at)),
    }
}

fn get<'row, T: FromSql<'row>>(row: &'row Row, column: &str) -> Result<T, ReadError> {
    row.try_get(column).map_err(|error| ReadError(format!("column {column}: {error}")))
}

fn wrong(column: &str) -> ReadError {
    ReadError(format!("column {column} holds a value that this program does not know"))
}

fn get_time(row: &Row, column: &str) -> Result<Timestamp, ReadError> {
    timestamp(get(row, column)?, column)
}

pub(super) fn timestamp(time: SystemTime, column: &str) -> Result<Timestamp, ReadError> {
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| wrong(column))?;
    Ok(Timestamp(since.as_secs()))
}

fn bytes<const N: usize>(slice: &[u8], column: &str) -> Result<[u8; N], ReadError> {
    slice.try_into().map_err(|_| wrong(column))
}

pub(super) fn get_hash(row: &Row, column: &str) -> Result<KeyedHash, ReadError> {
    Ok(KeyedHash(bytes(get(row, column)?, column)?))
}

fn get_id(row: &Row, column: &str) -> Result<u64, ReadError> {
    Ok(u64::from_be_bytes(bytes(get(row, column)?, column)?))
}

fn get_number(row: &Row, column: &str) -> Result<u64, ReadError> {
    Ok(get::<i64>(row, column)?.cast_unsigned())
}

fn get_version(row: &Row) -> Result<Version, ReadError> {
    Version::try_from(get::<i64>(row, "version")?).map_err(|_| wrong("version"))
}

pub(super) const CODE: &str = "number, hash, product, session, issued_at, expires_at, activations, \
     consumed_by, consumed_by_id, version";

pub(super) fn code(row: &Row) -> Result<Code, ReadError> {
    let consumed_by: Option<i64> = get(row, "consumed_by")?;
    let state = match consumed_by {
        None => CodeState::Issued,
        Some(number) => CodeState::Consumed(ActivationRef {
            number: ActivationNumber(number.cast_unsigned()),
            id: ActivationId(get_id(row, "consumed_by_id")?),
        }),
    };
    Ok(Code {
        number: CodeNumber(get_number(row, "number")?),
        hash: CodeHash(get_hash(row, "hash")?),
        product: ProductLetters::parse(get(row, "product")?).ok_or_else(|| wrong("product"))?,
        session: get_hash(row, "session")?,
        issued_at: get_time(row, "issued_at")?,
        expires_at: get_time(row, "expires_at")?,
        activations: get::<i32>(row, "activations")?.cast_unsigned(),
        state,
        version: get_version(row)?,
    })
}

pub(super) const ACTIVATION: &str = "number, id, code, machine, fingerprint, hostname, public_ip, \
     requested_ref, installer_version, signing_key, opened_at, expires_at, state, closed_at, version";

pub(super) fn activation(row: &Row) -> Result<Activation, ReadError> {
    let closed_at: Option<SystemTime> = get(row, "closed_at")?;
    let closed_at = closed_at.map(|at| timestamp(at, "closed_at")).transpose()?;
    let state = match (get(row, "state")?, closed_at) {
        ("open", None) => ActivationState::Open,
        ("confirmed", Some(at)) => ActivationState::Confirmed(at),
        ("released", Some(at)) => ActivationState::Released(at),
        _ => return Err(wrong("state")),
    };
    let hostname = HostName::parse(get(row, "hostname")?).ok_or_else(|| wrong("hostname"))?;
    Ok(Activation {
        at: ActivationRef {
            number: ActivationNumber(get_number(row, "number")?),
            id: ActivationId(get_id(row, "id")?),
        },
        code: CodeHash(get_hash(row, "code")?),
        request: Arc::new(Request {
            holder: Holder {
                machine: get_hash(row, "machine")?,
                fingerprint: get_hash(row, "fingerprint")?,
            },
            binding: Binding { hostname, public_ip: get(row, "public_ip")? },
            requested_ref: get(row, "requested_ref")?,
            installer_version: get(row, "installer_version")?,
            signing_key: get(row, "signing_key")?,
        }),
        opened_at: get_time(row, "opened_at")?,
        expires_at: get_time(row, "expires_at")?,
        state,
        version: get_version(row)?,
    })
}

/// The columns of `server` joined with `presence`.
pub(super) const SERVER: &str =
    "number, id, ip, hostname, registered_at, last_seen, token, revoked, note, version";

pub(super) fn server(row: &Row) -> Result<Server, ReadError> {
    Ok(Server {
        number: server_number(row, "number")?,
        id: ServerId(get_id(row, "id")?),
        address_id: ServerId(get_id(row, "id")?),
        ip: get(row, "ip")?,
        hostname: get(row, "hostname")?,
        registered_at: get_time(row, "registered_at")?,
        last_checkin: get_time(row, "last_seen")?,
        token: Some(get_hash(row, "token")?),
        enrolled_by: EnrolledBy::Unknown,
        credential_ms: 0,
        revoked: get(row, "revoked")?,
        deleted: false,
        changed_here: true,
        note: get(row, "note")?,
        version: get_version(row)?,
    })
}

fn server_number(row: &Row, column: &str) -> Result<ServerNumber, ReadError> {
    Ok(ServerNumber(get::<i32>(row, column)?.cast_unsigned()))
}

pub(super) const EVENT: &str = "process, seq, at, action, actor, source, identity, code, activation, \
     digits, server, address, subject, detail";

/// Returns whether this program understands an event: a newer program may write other names.
pub(super) fn is_understood(row: &Row) -> Result<bool, ReadError> {
    let (action, actor) = (get(row, "action")?, get(row, "actor")?);
    Ok(Action::from_name(action).is_some() && Actor::from_name(actor).is_some())
}

/// Reads an event as it was written.
pub(super) fn event(row: &Row) -> Result<Event, ReadError> {
    if is_understood(row)? { event_heard_of(row) } else { Err(wrong("action")) }
}

/// Reads an event for the feed. While servers are updated one after the other, events of a newer
/// one are delivered even if they are not understood.
pub(super) fn event_heard_of(row: &Row) -> Result<Event, ReadError> {
    let hash = |column: &str| -> Result<Option<KeyedHash>, ReadError> {
        let slice: Option<&[u8]> = get(row, column)?;
        slice.map(|slice| bytes(slice, column).map(KeyedHash)).transpose()
    };
    let (number, digits): (Option<i64>, Option<i32>) =
        (get(row, "activation")?, get(row, "digits")?);
    let activation = number.zip(digits).map(|(number, digits)| ActivationName {
        number: ActivationNumber(number.cast_unsigned()),
        digits: digits as u16,
    });
    let server: Option<&[u8]> = get(row, "server")?;
    let server = server.map(|slice| bytes(slice, "server")).transpose()?;
    Ok(Event {
        at: get_time(row, "at")?,
        action: Action::from_name(get(row, "action")?).unwrap_or(Action::Unknown),
        // The actor does not matter to the feed.
        actor: Actor::from_name(get(row, "actor")?).unwrap_or(Actor::Administrator),
        by: String::new(),
        from: get(row, "source")?,
        identity: hash("identity")?,
        code: hash("code")?.map(CodeHash),
        activation,
        server: server.map(|id| ServerId(u64::from_be_bytes(id))),
        address: get(row, "address")?,
        subject: get(row, "subject")?,
        detail: get(row, "detail")?,
    })
}

/// Reads the process of an event and its sequence number.
pub(super) fn place(row: &Row) -> Result<(i32, i64), ReadError> {
    Ok((get(row, "process")?, get(row, "seq")?))
}
