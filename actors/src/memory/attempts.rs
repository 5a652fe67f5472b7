//! What is tried on codes and changes nothing, on its way to the store.
//!
//! Nobody waits for it: it is gathered here and written down a few times a second, many at a time.
//! What is gathered beyond [`ROOM`] is not kept; a flood costs no more than that.

use crate::code_registry::{Activate, PrecheckCode};
use iptunnel_domain::activation::{Activation, Request};
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::code::CodeHash;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::{Refusal, Timestamp};
use prometheus_client::metrics::counter::Counter;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// Attempts kept between two ticks: 2,500 a second, each some microseconds of the store's thread.
const ROOM: usize = 500;

/// Attempts that are not written down yet.
#[derive(Default)]
pub(crate) struct Gathered {
    attempts: Mutex<Vec<Event>>,
    not_kept: Counter,
}

impl Gathered {
    pub(crate) fn new(not_kept: Counter) -> Self {
        Self { attempts: Mutex::default(), not_kept }
    }

    pub(crate) fn add(&self, attempt: Event) {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        if attempts.len() < ROOM {
            attempts.push(attempt);
        } else {
            self.not_kept.inc();
        }
    }

    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.attempts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An installer's attempt on a code.
fn attempt(action: Action, code: CodeHash, at: Timestamp, from: IpAddr) -> Event {
    Event { code: Some(code), ..Event::new(action, Actor::Installer, at, Some(from)) }
}

/// Why an attempt was refused, in a word or two.
const fn reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::CodeUsed => "code used",
        Refusal::CodeExpired => "code expired",
        Refusal::CodeMaxActivations => "code activated too often",
        Refusal::TokenUsed => "confirmed before",
        Refusal::ActivationNotFound => "released before",
        Refusal::TokenInvalid => "token forged or run out",
        Refusal::TokenMismatch => "token of another activation",
        Refusal::PrecheckTokenInvalid => "precheck token wrong or run out",
        Refusal::ProductMismatch => "another product",
        Refusal::InvalidBinding(_) => "host name or address not valid",
        _ => "refused",
    }
}

/// What the HTTP edge itself has refused an installer that named a code.
#[derive(Clone, Copy, Debug)]
pub struct RefusedEarly {
    /// What was asked for: [`Action::PrecheckRefused`] or [`Action::ActivateRefused`].
    pub action: Action,
    /// The code, which need not exist.
    pub code: CodeHash,
    /// The machine that asked.
    pub machine: KeyedHash,
    /// The network it asked from.
    pub from: IpAddr,
    /// When the request came.
    pub now: Timestamp,
}

impl RefusedEarly {
    /// As it is kept with the code.
    pub(crate) fn because(self, refusal: &Refusal) -> Event {
        let Self { action, code, machine, from, now } = self;
        let detail = reason(refusal).into();
        Event { identity: Some(machine), detail, ..attempt(action, code, now, from) }
    }
}

/// What a precheck came to, as it is kept with its code.
pub(crate) fn prechecked(asked: &PrecheckCode, outcome: Result<(), &Refusal>) -> Event {
    let (action, detail) = match outcome {
        Ok(()) => (Action::PrecheckPassed, ""),
        Err(refusal) => (Action::PrecheckRefused, reason(refusal)),
    };
    Event {
        identity: Some(asked.holder.machine),
        detail: detail.into(),
        ..attempt(action, asked.code, asked.now, asked.from)
    }
}

/// An activate that was refused, ditto.
pub(crate) fn not_activated(asked: &Activate, refusal: &Refusal) -> Event {
    let Request { holder, binding, .. } = asked.request.as_ref();
    Event {
        identity: Some(holder.machine),
        address: Some(binding.public_ip),
        subject: binding.hostname.as_str().into(),
        detail: reason(refusal).into(),
        ..attempt(Action::ActivateRefused, asked.code, asked.now, asked.from)
    }
}

/// What could not be done to an activation, as it is kept with its code.
pub(crate) fn refused(
    action: Action,
    to: &Activation,
    refusal: &Refusal,
    at: Timestamp,
    from: IpAddr,
) -> Event {
    Event {
        activation: Some(to.at.into()),
        subject: to.request.binding.hostname.as_str().into(),
        detail: reason(refusal).into(),
        ..attempt(action, to.code, at, from)
    }
}
