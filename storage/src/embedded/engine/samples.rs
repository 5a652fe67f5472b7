//! Records for tests: the same seed gives the same record. Also the writes and checks that the
//! tests of both stores share.

use crate::{Change, CheckIn, Counter, CounterRow, Setting, Store, Write};
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::{AccessToken, Role, TokenNumber};
use iptunnel_domain::activation::{
    Activation, ActivationId, ActivationNumber, ActivationRef, ActivationState, Binding, Holder,
    Request,
};
use iptunnel_domain::address::{HostName, Network};
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::code::{Code, CodeHash, CodeNumber, CodeState, ProductLetters};
use iptunnel_domain::limit::Policy;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{EnrolledBy, Server, ServerId, ServerNumber};
use std::net::IpAddr;
use std::sync::Arc;

fn spread(seed: u64) -> u64 {
    seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn hash(seed: u64) -> KeyedHash {
    KeyedHash((u128::from(spread(seed)) << 64 | u128::from(seed)).to_be_bytes())
}

pub(crate) fn code(number: u64, version: u32, state: u8) -> Code {
    Code {
        number: CodeNumber(number),
        hash: CodeHash(hash(number)),
        product: ProductLetters::parse("SD").unwrap(),
        session: hash(!number),
        issued_at: Timestamp(number),
        expires_at: Timestamp(number.wrapping_add(300)),
        activations: u32::from(state),
        state: if state == 0 { CodeState::Issued } else { CodeState::Consumed(at(number)) },
        version,
    }
}

pub(crate) fn at(number: u64) -> ActivationRef {
    ActivationRef { number: ActivationNumber(number), id: ActivationId(spread(number)) }
}

pub(crate) fn activation(number: u64, version: u32, state: u8) -> Activation {
    Activation {
        at: at(number),
        code: CodeHash(hash(number)),
        request: Arc::new(Request {
            holder: Holder { machine: hash(number), fingerprint: hash(!number) },
            binding: Binding {
                hostname: HostName::parse(&format!("h{number}.example.com")).unwrap(),
                public_ip: IpAddr::from(u128::from(number).to_be_bytes()),
            },
            requested_ref: "main".into(),
            installer_version: "2026.03.30".into(),
            signing_key: "k1".into(),
        }),
        opened_at: Timestamp(number),
        expires_at: Timestamp(number.wrapping_add(600)),
        state: match state {
            0 => ActivationState::Open,
            1 => ActivationState::Confirmed(Timestamp(number)),
            _ => ActivationState::Released(Timestamp(number)),
        },
        version,
    }
}

/// An event about the code of this number.
pub(crate) fn event(number: u64) -> Event {
    Event {
        identity: Some(hash(number)),
        code: Some(CodeHash(hash(number))),
        activation: Some(at(number).into()),
        address: Some(IpAddr::from(u128::from(number).to_be_bytes())),
        subject: format!("h{number}.example.com"),
        ..Event::new(Action::Activated, Actor::Installer, Timestamp(number), None)
    }
}

pub(crate) fn server(number: u32, version: u32) -> Server {
    Server {
        number: ServerNumber(number),
        id: ServerId(spread(u64::from(number))),
        address_id: ServerId(spread(u64::from(number))),
        ip: IpAddr::from(number.to_be_bytes()),
        hostname: format!("s{number}.example.com"),
        registered_at: Timestamp(u64::from(number)),
        last_checkin: Timestamp(u64::from(number)),
        token: Some(hash(7)),
        enrolled_by: EnrolledBy::Unknown,
        credential_ms: 0,
        revoked: number % 2 == 1,
        deleted: false,
        changed_here: true,
        note: "a note".into(),
        version,
    }
}

/// A server of any kind that there is since data format 5. The seed's lower half is its number.
pub(crate) fn server_of(seed: u64, version: u32) -> Server {
    let number = seed as u32;
    let enrolled_by = match seed % 4 {
        0 => EnrolledBy::Master,
        1 => EnrolledBy::Token(TokenNumber(7)),
        2 => EnrolledBy::Activation(at(seed).into()),
        _ => EnrolledBy::Import,
    };
    let is_import = enrolled_by == EnrolledBy::Import;
    let server = server(number, version);
    Server {
        id: if is_import { ServerId(spread(seed ^ 1 << 40)) } else { server.id },
        token: (!is_import).then(|| hash(7)),
        enrolled_by,
        credential_ms: u64::from(number) * 1000,
        revoked: number.is_multiple_of(3),
        deleted: seed % 8 == 1,
        changed_here: !is_import,
        ..server
    }
}

pub(crate) fn access_token(number: u32, version: u32) -> AccessToken {
    let time = Timestamp(u64::from(number));
    let some = number.is_multiple_of(2);
    AccessToken {
        number: TokenNumber(number),
        name: format!("token {number}"),
        role: Role::ALL[number as usize % Role::ALL.len()],
        secret: hash(u64::from(number)),
        previous: some.then(|| (hash(8), time.plus(60))),
        created_at: time,
        expires_at: some.then(|| time.plus(3600)),
        networks: ["10.0.0.0/8", "2600::/32"]
            .iter()
            .filter_map(|text| Network::parse(text))
            .collect(),
        addresses: vec![IpAddr::from(number.to_be_bytes())],
        max_servers: number,
        last_used: Timestamp(0),
        revoked_at: (number % 3 == 2).then_some(time),
        version,
    }
}

pub(crate) fn one(write: Write) -> Change {
    Change(vec![write])
}

/// A second version of every second code and an activation for it, as one commit.
pub(crate) fn consumption(codes: u64) -> Vec<Change> {
    let consume =
        |n| Change(vec![Write::Activation(activation(n, 1, 0)), Write::Code(code(n, 2, 1))]);
    (1..=codes).step_by(2).map(consume).collect()
}

/// Returns how many of the `codes` are consumed. Each must exist, and each must have its activation
/// exactly if it is consumed.
pub(crate) fn consumed(store: &dyn Store, codes: u64, when: &str) -> usize {
    let is_consumed = |n: &u64| {
        let code = store.code(code(*n, 1, 0).hash).unwrap();
        let code = code.unwrap_or_else(|| panic!("code {n} is lost, {when}"));
        let activation = store.activation(at(*n).id).unwrap();
        assert_eq!(code.version == 2, activation.is_some(), "code {n} is half consumed, {when}");
        activation.is_some()
    };
    (1..=codes).filter(is_consumed).count()
}

/// One record of each kind.
pub(crate) fn everything() -> Vec<Change> {
    let mut changes = everything_before_format_5();
    let named = Event { by: "office".into(), ..event(3) };
    changes.push(one(Write::Audit(Arc::new(named))));
    changes.extend((2..10).map(|seed| one(Write::Server(server_of(seed, 1)))));
    changes.push(one(Write::ForgetServer(ServerNumber(9), 1)));
    changes.extend((1..4).map(|number| one(Write::AccessToken(access_token(number, 1)))));
    changes.push(one(Write::TokenUses(vec![(TokenNumber(2), Timestamp(6000))])));
    changes
}

/// One record of each kind from before access tokens.
pub(crate) fn everything_before_format_5() -> Vec<Change> {
    let mut changes = everything_before_format_3();
    let setting = Setting { key: "limits.issue_per_ip_hour".into(), value: Some("7".into()) };
    changes.push(one(Write::Audit(Arc::new(event(1)))));
    changes.push(Change(vec![Write::Audit(Arc::new(event(2))), Write::Setting(setting)]));
    changes.push(one(Write::Attempt(event(1))));
    changes
}

/// One record of each kind from before the audit log, attempts and settings.
pub(crate) fn everything_before_format_3() -> Vec<Change> {
    let counter = Counter {
        key: 7,
        policy: Policy::ActivatePerMachineDay,
        used: 3,
        window_end: Timestamp(86_400),
    };
    let seen = CheckIn { server: ServerNumber(1), at: Timestamp(5000) };
    let mut changes: Vec<Change> = Vec::new();
    for (number, state) in [(1, 0), (2, 1), (3, 2)] {
        changes.push(one(Write::Code(code(number, 1, state))));
        changes.push(one(Write::Activation(activation(number, 1, state))));
    }
    changes.extend([0, 1].map(|number| one(Write::Server(server(number, 1)))));
    changes.push(one(Write::CheckIns(vec![seen])));
    changes.push(one(Write::Counters(vec![CounterRow { slot: 9, counter: Some(counter) }])));
    changes
}

/// Reads all records of [`everything`] from a store.
pub(crate) fn contents(store: &dyn Store) -> String {
    let mut counters = Vec::new();
    store.each_counter(&mut |slot, counter| counters.push((slot, counter))).unwrap();
    let codes: Vec<_> = (1..=3).map(|n| store.code(code(n, 1, 0).hash).unwrap().unwrap()).collect();
    let activations: Vec<_> =
        (1..=3).map(|n| store.activation(at(n).id).unwrap().unwrap()).collect();
    let servers = store.servers_before(None, 10).unwrap();
    let mut log = Vec::new();
    let each = &mut |entry| {
        log.push(entry);
        true
    };
    store.audit_from(1, each).unwrap();
    let attempts = store.attempts(code(1, 1, 0).hash).unwrap();
    let settings = store.settings().unwrap();
    let tokens = store.access_tokens().unwrap();
    format!(
        "{tokens:#?}{codes:#?}{activations:#?}{servers:#?}{counters:#?}{:#?}{log:#?}{attempts:#?}{settings:#?}",
        store.frontier().unwrap()
    )
}
