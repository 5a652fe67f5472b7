//! Records as bytes: a format number, the record's version, and the fields in postcard's encoding.
//!
//! The structs here *are* the format: in a struct that has shipped, no field is ever added, removed
//! or moved. A new need gets a `V2` beside it and a new format number, and the old format stays
//! readable forever.

use crate::{Change, CheckIn, Counter, CounterRow, ReadError, Setting, Write};
use iptunnel_domain::access::{AccessToken, Role, TokenNumber};
use iptunnel_domain::activation::{
    Activation, ActivationId, ActivationName, ActivationNumber, ActivationRef, ActivationState,
    Binding, Holder, Request,
};
use iptunnel_domain::address::{HostName, Network};
use iptunnel_domain::audit::Event;
use iptunnel_domain::code::{Code, CodeHash, CodeNumber, CodeState, ProductLetters};
use iptunnel_domain::limit::Policy;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{EnrolledBy, Server, ServerId, ServerNumber};
use iptunnel_domain::{Timestamp, Version};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;

/// The format of what has only one, and the first of what has several.
const FORMAT: u8 = 1;
/// The second format of servers, since data format 5.
const SERVER_FORMAT: u8 = 2;
/// One byte of format, four of the record's version.
const PREFIX: usize = 5;

#[derive(Serialize, Deserialize)]
struct CodeV1 {
    hash: [u8; 16],
    product: [u8; 2],
    session: [u8; 16],
    issued_at: u64,
    expires_at: u64,
    activations: u32,
    consumed_by: Option<RefV1>,
}

#[derive(Serialize, Deserialize)]
struct RefV1 {
    number: u64,
    id: u64,
}

#[derive(Serialize, Deserialize)]
struct ActivationV1<Text> {
    id: u64,
    code: [u8; 16],
    machine: [u8; 16],
    fingerprint: [u8; 16],
    hostname: Text,
    public_ip: IpAddr,
    requested_ref: Text,
    installer_version: Text,
    signing_key: Text,
    opened_at: u64,
    expires_at: u64,
    state: StateV1,
}

#[derive(Serialize, Deserialize)]
enum StateV1 {
    Open,
    Confirmed(u64),
    Released(u64),
}

#[derive(Serialize, Deserialize)]
struct ServerV1<Text> {
    id: u64,
    ip: IpAddr,
    hostname: Text,
    registered_at: u64,
    last_checkin: u64,
    token: [u8; 16],
    revoked: bool,
    note: Text,
}

#[derive(Serialize, Deserialize)]
struct ServerV2<Text> {
    id: u64,
    address_id: u64,
    ip: IpAddr,
    hostname: Text,
    registered_at: u64,
    last_checkin: u64,
    token: Option<[u8; 16]>,
    enrolled_by: EnrolledByV1,
    credential_ms: u64,
    revoked: bool,
    deleted: bool,
    changed_here: bool,
    note: Text,
}

#[derive(Serialize, Deserialize)]
enum EnrolledByV1 {
    Unknown,
    Master,
    Token(u32),
    /// An activation's number, and the first digits of its id.
    Activation(u64, u16),
    Import,
}

#[derive(Serialize, Deserialize)]
struct AccessTokenV1<Text> {
    name: Text,
    role: u8,
    secret: [u8; 16],
    previous: Option<([u8; 16], u64)>,
    created_at: u64,
    expires_at: Option<u64>,
    networks: Vec<(IpAddr, u8)>,
    addresses: Vec<IpAddr>,
    max_servers: u32,
    revoked_at: Option<u64>,
}

fn encode(version: Version, record: &impl Serialize) -> Result<Vec<u8>, ReadError> {
    encode_as(FORMAT, version, record)
}

fn encode_as(format: u8, version: Version, record: &impl Serialize) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::with_capacity(192);
    bytes.push(format);
    bytes.extend_from_slice(&version.to_le_bytes());
    postcard::to_extend(record, bytes).map_err(|e| ReadError(format!("a record to write: {e}")))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<(Version, T), ReadError> {
    match split(bytes)? {
        (FORMAT, version, fields) => Ok((version, decode_fields(fields)?)),
        (format, ..) => Err(unknown(format)),
    }
}

fn decode_fields<T: DeserializeOwned>(fields: &[u8]) -> Result<T, ReadError> {
    postcard::from_bytes(fields).map_err(|e| ReadError(format!("a record: {e}")))
}

fn unknown(format: u8) -> ReadError {
    ReadError(format!("a record has unknown format {format}"))
}

/// Returns the format of a record, its version and its fields.
fn split(bytes: &[u8]) -> Result<(u8, Version, &[u8]), ReadError> {
    match bytes.split_at_checked(PREFIX) {
        Some(([format, a, b, c, d], fields)) => {
            Ok((*format, u32::from_le_bytes([*a, *b, *c, *d]), fields))
        }
        _ => Err(ReadError("a record is cut short".into())),
    }
}

/// Returns the version of an encoded record, without decoding the rest.
pub(crate) fn version(bytes: &[u8]) -> Result<Version, ReadError> {
    Ok(split(bytes)?.1)
}

pub(crate) fn encode_code(code: &Code) -> Result<Vec<u8>, ReadError> {
    let consumed_by = match code.state {
        CodeState::Issued => None,
        CodeState::Consumed(by) => Some(RefV1 { number: by.number.0, id: by.id.0 }),
    };
    let record = CodeV1 {
        hash: code.hash.0.0,
        product: code.product.bytes(),
        session: code.session.0,
        issued_at: code.issued_at.0,
        expires_at: code.expires_at.0,
        activations: code.activations,
        consumed_by,
    };
    encode(code.version, &record)
}

/// Decodes the row of a code.
///
/// # Errors
/// The bytes are not such a row.
pub fn decode_code(number: u64, bytes: &[u8]) -> Result<Code, ReadError> {
    let (version, record): (_, CodeV1) = decode(bytes)?;
    let product = std::str::from_utf8(&record.product).ok().and_then(ProductLetters::parse);
    let state = match record.consumed_by {
        None => CodeState::Issued,
        Some(by) => CodeState::Consumed(ActivationRef {
            number: ActivationNumber(by.number),
            id: ActivationId(by.id),
        }),
    };
    Ok(Code {
        number: CodeNumber(number),
        hash: CodeHash(KeyedHash(record.hash)),
        product: product.ok_or_else(|| ReadError("a code has no product".into()))?,
        session: KeyedHash(record.session),
        issued_at: Timestamp(record.issued_at),
        expires_at: Timestamp(record.expires_at),
        activations: record.activations,
        state,
        version,
    })
}

pub(crate) fn encode_activation(activation: &Activation) -> Result<Vec<u8>, ReadError> {
    let Request { holder, binding, requested_ref, installer_version, signing_key } =
        activation.request.as_ref();
    let record = ActivationV1 {
        id: activation.at.id.0,
        code: activation.code.0.0,
        machine: holder.machine.0,
        fingerprint: holder.fingerprint.0,
        hostname: binding.hostname.as_str(),
        public_ip: binding.public_ip,
        requested_ref: requested_ref.as_str(),
        installer_version: installer_version.as_str(),
        signing_key: signing_key.as_str(),
        opened_at: activation.opened_at.0,
        expires_at: activation.expires_at.0,
        state: match activation.state {
            ActivationState::Open => StateV1::Open,
            ActivationState::Confirmed(at) => StateV1::Confirmed(at.0),
            ActivationState::Released(at) => StateV1::Released(at.0),
        },
    };
    encode(activation.version, &record)
}

/// Decodes the row of an activation.
///
/// # Errors
/// The bytes are not such a row.
pub fn decode_activation(number: u64, bytes: &[u8]) -> Result<Activation, ReadError> {
    let (version, record): (_, ActivationV1<String>) = decode(bytes)?;
    let hostname = HostName::parse(&record.hostname)
        .ok_or_else(|| ReadError("an activation has no host name".into()))?;
    Ok(Activation {
        at: ActivationRef { number: ActivationNumber(number), id: ActivationId(record.id) },
        code: CodeHash(KeyedHash(record.code)),
        request: Arc::new(Request {
            holder: Holder {
                machine: KeyedHash(record.machine),
                fingerprint: KeyedHash(record.fingerprint),
            },
            binding: Binding { hostname, public_ip: record.public_ip },
            requested_ref: record.requested_ref,
            installer_version: record.installer_version,
            signing_key: record.signing_key,
        }),
        opened_at: Timestamp(record.opened_at),
        expires_at: Timestamp(record.expires_at),
        state: match record.state {
            StateV1::Open => ActivationState::Open,
            StateV1::Confirmed(at) => ActivationState::Confirmed(Timestamp(at)),
            StateV1::Released(at) => ActivationState::Released(Timestamp(at)),
        },
        version,
    })
}

pub(crate) fn encode_server(server: &Server) -> Result<Vec<u8>, ReadError> {
    let record = ServerV2 {
        id: server.id.0,
        address_id: server.address_id.0,
        ip: server.ip,
        hostname: server.hostname.as_str(),
        registered_at: server.registered_at.0,
        last_checkin: server.last_checkin.0,
        token: server.token.map(|token| token.0),
        enrolled_by: match server.enrolled_by {
            EnrolledBy::Unknown => EnrolledByV1::Unknown,
            EnrolledBy::Master => EnrolledByV1::Master,
            EnrolledBy::Token(number) => EnrolledByV1::Token(number.0),
            EnrolledBy::Activation(at) => EnrolledByV1::Activation(at.number.0, at.digits),
            EnrolledBy::Import => EnrolledByV1::Import,
        },
        credential_ms: server.credential_ms,
        revoked: server.revoked,
        deleted: server.deleted,
        changed_here: server.changed_here,
        note: server.note.as_str(),
    };
    encode_as(SERVER_FORMAT, server.version, &record)
}

/// Decodes the row of a server.
///
/// # Errors
/// The bytes are not such a row.
pub fn decode_server(number: u32, bytes: &[u8]) -> Result<Server, ReadError> {
    let (format, version, fields) = split(bytes)?;
    let record: ServerV2<String> = match format {
        FORMAT => decode_fields::<ServerV1<String>>(fields)?.into(),
        SERVER_FORMAT => decode_fields(fields)?,
        format => return Err(unknown(format)),
    };
    Ok(Server {
        number: ServerNumber(number),
        id: ServerId(record.id),
        address_id: ServerId(record.address_id),
        ip: record.ip,
        hostname: record.hostname,
        registered_at: Timestamp(record.registered_at),
        last_checkin: Timestamp(record.last_checkin),
        token: record.token.map(KeyedHash),
        enrolled_by: match record.enrolled_by {
            EnrolledByV1::Unknown => EnrolledBy::Unknown,
            EnrolledByV1::Master => EnrolledBy::Master,
            EnrolledByV1::Token(number) => EnrolledBy::Token(TokenNumber(number)),
            EnrolledByV1::Activation(number, digits) => {
                EnrolledBy::Activation(ActivationName { number: ActivationNumber(number), digits })
            }
            EnrolledByV1::Import => EnrolledBy::Import,
        },
        credential_ms: record.credential_ms,
        revoked: record.revoked,
        deleted: record.deleted,
        changed_here: record.changed_here,
        note: record.note,
        version,
    })
}

/// Before data format 5 each server had the id of its address.
impl From<ServerV1<String>> for ServerV2<String> {
    fn from(old: ServerV1<String>) -> Self {
        let ServerV1 { id, ip, hostname, registered_at, last_checkin, token, revoked, note } = old;
        Self {
            id,
            address_id: id,
            ip,
            hostname,
            registered_at,
            last_checkin,
            token: Some(token),
            enrolled_by: EnrolledByV1::Unknown,
            credential_ms: 0,
            revoked,
            deleted: false,
            changed_here: true,
            note,
        }
    }
}

pub(crate) fn encode_access_token(token: &AccessToken) -> Result<Vec<u8>, ReadError> {
    let record = AccessTokenV1 {
        name: token.name.as_str(),
        role: token.role as u8,
        secret: token.secret.0,
        previous: token.previous.map(|(hash, until)| (hash.0, until.0)),
        created_at: token.created_at.0,
        expires_at: token.expires_at.map(|at| at.0),
        networks: token.networks.iter().map(|one| (one.address(), one.length())).collect(),
        addresses: token.addresses.clone(),
        max_servers: token.max_servers,
        revoked_at: token.revoked_at.map(|at| at.0),
    };
    encode(token.version, &record)
}

/// Decodes the row of an access token, which was last used at `last_used`.
///
/// # Errors
/// The bytes are not such a row.
pub fn decode_access_token(
    number: u32,
    bytes: &[u8],
    last_used: Timestamp,
) -> Result<AccessToken, ReadError> {
    let (version, record): (_, AccessTokenV1<String>) = decode(bytes)?;
    let role = Role::ALL.into_iter().find(|role| *role as u8 == record.role);
    let networks =
        record.networks.into_iter().map(|(address, length)| Network::new(address, length));
    let wrong = |what: &str| ReadError(format!("an access token has an unknown {what}"));
    Ok(AccessToken {
        number: TokenNumber(number),
        name: record.name,
        role: role.ok_or_else(|| wrong("role"))?,
        secret: KeyedHash(record.secret),
        previous: record.previous.map(|(hash, until)| (KeyedHash(hash), Timestamp(until))),
        created_at: Timestamp(record.created_at),
        expires_at: record.expires_at.map(Timestamp),
        networks: networks.collect::<Option<_>>().ok_or_else(|| wrong("network"))?,
        addresses: record.addresses,
        max_servers: record.max_servers,
        last_used,
        revoked_at: record.revoked_at.map(Timestamp),
        version,
    })
}

/// A write as the journal stores it. Rows are encoded as in their tables and written as byte
/// strings: serializing byte by byte gives the same result and takes several times as long.
#[derive(Serialize, Deserialize)]
enum WriteV1 {
    Code(u64, #[serde(with = "serde_bytes")] Vec<u8>),
    Activation(u64, #[serde(with = "serde_bytes")] Vec<u8>),
    Server(u32, #[serde(with = "serde_bytes")] Vec<u8>),
    ForgetCode(u64, u32),
    ForgetActivation(u64, u32),
    CheckIns(Vec<(u32, u64)>),
    /// Slots.
    Counters(Vec<(u32, Option<CounterV1>)>),
    // Since data format 3:
    /// An event's canonical bytes.
    Audit(#[serde(with = "serde_bytes")] Vec<u8>),
    Attempt(#[serde(with = "serde_bytes")] Vec<u8>),
    Setting(String, Option<String>),
    // Since data format 5:
    ForgetServer(u32, u32),
    AccessToken(u32, #[serde(with = "serde_bytes")] Vec<u8>),
    TokenUses(Vec<(u32, u64)>),
}

fn encode_event(event: &Event) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(160);
    event.encode(&mut bytes);
    bytes
}

/// Returns the one event in `bytes`.
pub(crate) fn decode_event(bytes: &[u8]) -> Result<Event, ReadError> {
    match Event::decode(bytes) {
        Some((event, [])) => Ok(event),
        _ => Err(ReadError("an event cannot be read".into())),
    }
}

/// Key, policy, used, end of the window.
type CounterV1 = (u64, u8, u32, u64);

/// `None` for what only a shared store writes.
fn encode_write(write: &Write) -> Result<Option<WriteV1>, ReadError> {
    Ok(Some(match write {
        Write::Charge(_) => return Ok(None),
        Write::Code(code) => WriteV1::Code(code.number.0, encode_code(code)?),
        Write::Activation(activation) => {
            WriteV1::Activation(activation.at.number.0, encode_activation(activation)?)
        }
        Write::Server(server) => WriteV1::Server(server.number.0, encode_server(server)?),
        Write::ForgetCode(number, version) => WriteV1::ForgetCode(number.0, *version),
        Write::ForgetActivation(number, version) => WriteV1::ForgetActivation(number.0, *version),
        Write::CheckIns(check_ins) => {
            WriteV1::CheckIns(check_ins.iter().map(|c| (c.server.0, c.at.0)).collect())
        }
        Write::Counters(rows) => {
            let counter = |c: &Counter| (c.key, c.policy as u8, c.used, c.window_end.0);
            WriteV1::Counters(
                rows.iter().map(|row| (row.slot, row.counter.as_ref().map(counter))).collect(),
            )
        }
        Write::Audit(event) => WriteV1::Audit(encode_event(event)),
        Write::Attempt(event) => WriteV1::Attempt(encode_event(event)),
        Write::Setting(Setting { key, value }) => WriteV1::Setting(key.clone(), value.clone()),
        Write::ForgetServer(number, version) => WriteV1::ForgetServer(number.0, *version),
        Write::AccessToken(token) => {
            WriteV1::AccessToken(token.number.0, encode_access_token(token)?)
        }
        Write::TokenUses(uses) => {
            WriteV1::TokenUses(uses.iter().map(|(token, at)| (token.0, at.0)).collect())
        }
    }))
}

fn decode_write(write: WriteV1) -> Result<Write, ReadError> {
    Ok(match write {
        WriteV1::Code(number, bytes) => Write::Code(decode_code(number, &bytes)?),
        WriteV1::Activation(number, bytes) => Write::Activation(decode_activation(number, &bytes)?),
        WriteV1::Server(number, bytes) => Write::Server(decode_server(number, &bytes)?),
        WriteV1::ForgetCode(number, version) => Write::ForgetCode(CodeNumber(number), version),
        WriteV1::ForgetActivation(number, version) => {
            Write::ForgetActivation(ActivationNumber(number), version)
        }
        WriteV1::CheckIns(check_ins) => Write::CheckIns(
            check_ins
                .into_iter()
                .map(|(server, at)| CheckIn { server: ServerNumber(server), at: Timestamp(at) })
                .collect(),
        ),
        WriteV1::Counters(rows) => Write::Counters(
            rows.into_iter()
                .map(|(slot, counter)| {
                    let counter = counter.map(decode_counter).transpose()?;
                    Ok(CounterRow { slot, counter })
                })
                .collect::<Result<_, ReadError>>()?,
        ),
        WriteV1::Audit(bytes) => Write::Audit(Arc::new(decode_event(&bytes)?)),
        WriteV1::Attempt(bytes) => Write::Attempt(decode_event(&bytes)?),
        WriteV1::Setting(key, value) => Write::Setting(Setting { key, value }),
        WriteV1::ForgetServer(number, version) => {
            Write::ForgetServer(ServerNumber(number), version)
        }
        // Uses are written by themselves.
        WriteV1::AccessToken(number, bytes) => {
            Write::AccessToken(decode_access_token(number, &bytes, Timestamp(0))?)
        }
        WriteV1::TokenUses(uses) => Write::TokenUses(
            uses.into_iter().map(|(token, at)| (TokenNumber(token), Timestamp(at))).collect(),
        ),
    })
}

fn decode_counter((key, policy, used, window_end): CounterV1) -> Result<Counter, ReadError> {
    let policy = Policy::from_number(policy)
        .ok_or_else(|| ReadError(format!("a counter has unknown policy {policy}")))?;
    Ok(Counter { key, policy, used, window_end: Timestamp(window_end) })
}

/// Encodes changes as one record of the journal.
///
/// # Errors
/// A change is too large for the encoding.
pub fn encode_changes(changes: &[Change]) -> Result<Vec<u8>, ReadError> {
    let mut encoded: Vec<Vec<WriteV1>> = Vec::with_capacity(changes.len());
    for Change(writes) in changes {
        encoded.push(
            writes
                .iter()
                .filter_map(|write| encode_write(write).transpose())
                .collect::<Result<_, _>>()?,
        );
    }
    let bytes = vec![FORMAT];
    postcard::to_extend(&encoded, bytes).map_err(|e| ReadError(format!("changes to write: {e}")))
}

/// Decodes a record of the journal.
///
/// # Errors
/// The bytes are not such a record.
pub fn decode_changes(bytes: &[u8]) -> Result<Vec<Change>, ReadError> {
    let Some((&FORMAT, fields)) = bytes.split_first() else {
        return Err(ReadError("a record of the journal has an unknown format".into()));
    };
    let changes: Vec<Vec<WriteV1>> = postcard::from_bytes(fields)
        .map_err(|e| ReadError(format!("a record of the journal: {e}")))?;
    let decode = |writes: Vec<WriteV1>| {
        Ok(Change(writes.into_iter().map(decode_write).collect::<Result<_, ReadError>>()?))
    };
    changes.into_iter().map(decode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::engine::samples;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_record_reads_back_as_it_was_written(seed: u64, version in 1u32.., state in 0u8..3) {
            let code = samples::code(seed, version, state);
            prop_assert_eq!(&decode_code(seed, &encode_code(&code).unwrap()).unwrap(), &code);
            let activation = samples::activation(seed, version, state);
            let bytes = encode_activation(&activation).unwrap();
            prop_assert_eq!(&decode_activation(seed, &bytes).unwrap(), &activation);
            let token = samples::access_token(seed as u32, version);
            let bytes = encode_access_token(&token).unwrap();
            let read = decode_access_token(seed as u32, &bytes, token.last_used);
            prop_assert_eq!(&read.unwrap(), &token);
            let server = samples::server_of(seed, version);
            let bytes = encode_server(&server).unwrap();
            prop_assert_eq!(super::version(&bytes).unwrap(), version);
            prop_assert_eq!(&decode_server(seed as u32, &bytes).unwrap(), &server);
        }

        #[test]
        fn every_change_reads_back_from_the_journal(seed: u64, n in 1u32..9, state in 0u8..3) {
            let server = ServerNumber(n);
            let counter = Counter {
                key: seed,
                policy: Policy::IssuePerIpDay,
                used: n,
                window_end: Timestamp(seed),
            };
            let changes = vec![
                Change(vec![
                    Write::Code(samples::code(seed, n, state)),
                    Write::Activation(samples::activation(seed, n, state)),
                ]),
                Change(vec![Write::Server(samples::server(n, n))]),
                Change(vec![
                    Write::Audit(Arc::new(samples::event(seed))),
                    Write::Attempt(samples::event(!seed)),
                    Write::Setting(Setting { key: "a.b".into(), value: Some("1".into()) }),
                    Write::Setting(Setting { key: "a.b".into(), value: None }),
                ]),
                Change(vec![
                    Write::ForgetCode(CodeNumber(seed), n),
                    Write::ForgetActivation(ActivationNumber(seed), n),
                    Write::ForgetServer(server, n),
                    Write::AccessToken(samples::access_token(n, n)),
                    Write::TokenUses(vec![(TokenNumber(n), Timestamp(seed))]),
                    Write::Server(samples::server_of(seed, n)),
                    Write::CheckIns(vec![CheckIn { server, at: Timestamp(seed) }]),
                    Write::Counters(vec![
                        CounterRow { slot: n, counter: Some(counter) },
                        CounterRow { slot: 0, counter: None },
                    ]),
                ]),
            ];
            let bytes = encode_changes(&changes).unwrap();
            prop_assert_eq!(decode_changes(&bytes).unwrap(), changes);
        }

        #[test]
        fn reading_any_bytes_never_panics(bytes: Vec<u8>) {
            let _ = decode_changes(&bytes);
            let _ = decode_code(1, &bytes);
            let _ = decode_activation(1, &bytes);
            let _ = decode_server(1, &bytes);
            let _ = decode_access_token(1, &bytes, Timestamp(0));
        }
    }

    #[test]
    fn a_record_of_a_later_format_is_named_as_such() {
        let mut bytes = encode_server(&samples::server(1, 1)).unwrap();
        bytes[0] = 3;
        assert!(decode_server(1, &bytes).unwrap_err().to_string().contains("unknown format 3"));
        let mut bytes = encode_code(&samples::code(1, 1, 0)).unwrap();
        bytes[0] = 2;
        assert!(decode_code(1, &bytes).unwrap_err().to_string().contains("unknown format 2"));
    }
}
