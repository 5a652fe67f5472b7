//! Records as bytes: a format number, the record's version, and the fields in postcard's encoding.
//!
//! The structs here *are* the format: in a struct that has shipped, no field is ever added, removed
//! or moved. A new need gets a `V2` beside it and a new format number, and the old format stays
//! readable forever.

use crate::{Change, CheckIn, Counter, CounterRow, ReadError, Setting, Write};
use iptunnel_domain::activation::{
    Activation, ActivationId, ActivationNumber, ActivationRef, ActivationState, Binding, Holder,
    Request,
};
use iptunnel_domain::address::HostName;
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

/// The format that is written.
const FORMAT: u8 = 1;
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

fn encode(version: Version, record: &impl Serialize) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::with_capacity(192);
    bytes.push(FORMAT);
    bytes.extend_from_slice(&version.to_le_bytes());
    postcard::to_extend(record, bytes).map_err(|e| ReadError(format!("a record to write: {e}")))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<(Version, T), ReadError> {
    let (version, fields) = split(bytes)?;
    let record = postcard::from_bytes(fields).map_err(|e| ReadError(format!("a record: {e}")))?;
    Ok((version, record))
}

fn split(bytes: &[u8]) -> Result<(Version, &[u8]), ReadError> {
    match bytes.split_at_checked(PREFIX) {
        Some(([FORMAT, a, b, c, d], fields)) => Ok((u32::from_le_bytes([*a, *b, *c, *d]), fields)),
        Some(([format, ..], _)) => Err(ReadError(format!("a record has unknown format {format}"))),
        _ => Err(ReadError("a record is cut short".into())),
    }
}

/// Returns the version of an encoded record, without decoding the rest.
pub(crate) fn version(bytes: &[u8]) -> Result<Version, ReadError> {
    Ok(split(bytes)?.0)
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
    let record = ServerV1 {
        id: server.id.0,
        ip: server.ip,
        hostname: server.hostname.as_str(),
        registered_at: server.registered_at.0,
        last_checkin: server.last_checkin.0,
        token: server.token.map_or([0; 16], |token| token.0),
        revoked: server.revoked,
        note: server.note.as_str(),
    };
    encode(server.version, &record)
}

/// Decodes the row of a server.
///
/// # Errors
/// The bytes are not such a row.
pub fn decode_server(number: u32, bytes: &[u8]) -> Result<Server, ReadError> {
    let (version, record): (_, ServerV1<String>) = decode(bytes)?;
    Ok(Server {
        number: ServerNumber(number),
        id: ServerId(record.id),
        address_id: ServerId(record.id),
        ip: record.ip,
        hostname: record.hostname,
        registered_at: Timestamp(record.registered_at),
        last_checkin: Timestamp(record.last_checkin),
        token: Some(KeyedHash(record.token)),
        enrolled_by: EnrolledBy::Unknown,
        credential_ms: 0,
        revoked: record.revoked,
        deleted: false,
        changed_here: true,
        note: record.note,
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

fn encode_write(write: &Write) -> Result<WriteV1, ReadError> {
    Ok(match write {
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
    })
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
        encoded.push(writes.iter().map(encode_write).collect::<Result<_, _>>()?);
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
            let server = samples::server(seed as u32, version);
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
        }
    }

    #[test]
    fn a_record_of_a_later_format_is_named_as_such() {
        let mut bytes = encode_server(&samples::server(1, 1)).unwrap();
        bytes[0] = 2;
        assert!(decode_server(1, &bytes).unwrap_err().to_string().contains("unknown format 2"));
    }
}
