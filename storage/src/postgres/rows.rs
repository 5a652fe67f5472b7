//! Reads rows, and converts records to rows and back.

use super::unreadable;
use crate::ReadError;
use deadpool_postgres::GenericClient;
use iptunnel_domain::access::{AccessToken, Role, TokenNumber};
use iptunnel_domain::activation::{
    Activation, ActivationId, ActivationName, ActivationNumber, ActivationRef, ActivationState,
    Binding, Holder, Request,
};
use iptunnel_domain::address::{HostName, Network};
use iptunnel_domain::audit::{Action, Actor, Event};
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

/// The last second of the year 9999. No real date is later, and the database's dates end some time after.
const LATEST: u64 = 253_402_300_799;

/// Converts an instant to the database's type.
pub(super) fn time(at: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(at.0.min(LATEST))
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
pub(super) const SERVER: &str = "number, id, address_id, ip, hostname, registered_at, last_seen, token, \
     enrolled_by, access_token, activation, digits, credential_ms, revoked, deleted, changed_here, \
     note, version";

pub(super) fn server(row: &Row) -> Result<Server, ReadError> {
    let id = ServerId(get_id(row, "id")?);
    let address_id: Option<&[u8]> = get(row, "address_id")?;
    let address_id = address_id.map(|slice| bytes(slice, "address_id")).transpose()?;
    let token: Option<&[u8]> = get(row, "token")?;
    let access_token: Option<i32> = get(row, "access_token")?;
    let enrolled_by = match (get(row, "enrolled_by")?, access_token, activation_name(row)?) {
        ("master", None, None) => EnrolledBy::Master,
        ("token", Some(number), None) => EnrolledBy::Token(TokenNumber(number.cast_unsigned())),
        ("activation", None, Some(name)) => EnrolledBy::Activation(name),
        ("import", None, None) => EnrolledBy::Import,
        ("unknown", None, None) => EnrolledBy::Unknown,
        _ => return Err(wrong("enrolled_by")),
    };
    Ok(Server {
        number: server_number(row, "number")?,
        id,
        address_id: address_id.map_or(id, |bytes| ServerId(u64::from_be_bytes(bytes))),
        ip: get(row, "ip")?,
        hostname: get(row, "hostname")?,
        registered_at: get_time(row, "registered_at")?,
        last_checkin: get_time(row, "last_seen")?,
        token: token.map(|slice| bytes(slice, "token").map(KeyedHash)).transpose()?,
        enrolled_by,
        credential_ms: get_number(row, "credential_ms")?,
        revoked: get(row, "revoked")?,
        deleted: get(row, "deleted")?,
        changed_here: get(row, "changed_here")?,
        note: get(row, "note")?,
        version: get_version(row)?,
    })
}

fn activation_name(row: &Row) -> Result<Option<ActivationName>, ReadError> {
    let (number, digits): (Option<i64>, Option<i32>) =
        (get(row, "activation")?, get(row, "digits")?);
    Ok(number.zip(digits).map(|(number, digits)| ActivationName {
        number: ActivationNumber(number.cast_unsigned()),
        digits: digits as u16,
    }))
}

pub(super) const ACCESS_TOKEN: &str = "number, name, role, secret, previous, previous_until, \
     created_at, expires_at, networks, addresses, max_servers, last_used, revoked_at, version";

pub(super) fn access_token(row: &Row) -> Result<AccessToken, ReadError> {
    let time_of = |column: &str| -> Result<Option<Timestamp>, ReadError> {
        let at: Option<SystemTime> = get(row, column)?;
        at.map(|at| timestamp(at, column)).transpose()
    };
    let previous: Option<&[u8]> = get(row, "previous")?;
    let previous = previous.map(|slice| bytes(slice, "previous").map(KeyedHash)).transpose()?;
    let (networks, addresses): (&str, &str) = (get(row, "networks")?, get(row, "addresses")?);
    let networks = networks.split_whitespace().map(Network::parse).collect::<Option<_>>();
    let addresses = addresses.split_whitespace().map(|one| one.parse().ok()).collect::<Option<_>>();
    Ok(AccessToken {
        number: TokenNumber(get::<i32>(row, "number")?.cast_unsigned()),
        name: get(row, "name")?,
        role: Role::from_name(get(row, "role")?).ok_or_else(|| wrong("role"))?,
        secret: get_hash(row, "secret")?,
        previous: previous.zip(time_of("previous_until")?),
        created_at: get_time(row, "created_at")?,
        expires_at: time_of("expires_at")?,
        networks: networks.ok_or_else(|| wrong("networks"))?,
        addresses: addresses.ok_or_else(|| wrong("addresses"))?,
        max_servers: u32::try_from(get::<i64>(row, "max_servers")?)
            .map_err(|_| wrong("max_servers"))?,
        last_used: get_time(row, "last_used")?,
        revoked_at: time_of("revoked_at")?,
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
    let (actor, _) = actor_of(row)?;
    Ok(Action::from_name(get(row, "action")?).is_some() && actor.is_some())
}

/// The actor of an event as it is written: after a colon the name of the access token, if there is one.
pub(super) fn actor_name(event: &Event) -> Cow<'static, str> {
    let actor = event.actor.name();
    match Event::kept(&event.by) {
        "" => actor.into(),
        by => format!("{actor}:{}", text(by)).into(),
    }
}

/// Returns the actor of an event, if this program knows it, and the name of the access token.
fn actor_of(row: &Row) -> Result<(Option<Actor>, &str), ReadError> {
    let actor: &str = get(row, "actor")?;
    let (actor, by) = actor.split_once(':').unwrap_or((actor, ""));
    Ok((Actor::from_name(actor), by))
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
    let (actor, by) = actor_of(row)?;
    let server: Option<&[u8]> = get(row, "server")?;
    let server = server.map(|slice| bytes(slice, "server")).transpose()?;
    Ok(Event {
        at: get_time(row, "at")?,
        action: Action::from_name(get(row, "action")?).unwrap_or(Action::Unknown),
        // The actor does not matter to the feed.
        actor: actor.unwrap_or(Actor::Administrator),
        by: by.to_owned(),
        from: get(row, "source")?,
        identity: hash("identity")?,
        code: hash("code")?.map(CodeHash),
        activation: activation_name(row)?,
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
