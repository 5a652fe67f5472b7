//! Records for tests: any seed gives one, the same seed the same.

use iptunnel_domain::Timestamp;
use iptunnel_domain::activation::{
    Activation, ActivationId, ActivationNumber, ActivationRef, ActivationState, Binding, Holder,
    Request,
};
use iptunnel_domain::address::HostName;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::code::{Code, CodeHash, CodeNumber, CodeState, ProductLetters};
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{Server, ServerId, ServerNumber};
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
        ip: IpAddr::from(number.to_be_bytes()),
        hostname: format!("s{number}.example.com"),
        registered_at: Timestamp(u64::from(number)),
        last_checkin: Timestamp(u64::from(number)),
        token: hash(7),
        revoked: number % 2 == 1,
        note: "a note".into(),
        version,
    }
}
