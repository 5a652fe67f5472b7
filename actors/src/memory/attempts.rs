//! Attempts on codes that change nothing, before they are written to the store.
//!
//! No request waits for them. They are gathered here and written a few times a second, many at a time.
//! Attempts beyond [`CAPACITY`] are dropped and counted, which bounds the cost of a flood.

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
const CAPACITY: usize = 500;

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
        if attempts.len() < CAPACITY {
            attempts.push(attempt);
        } else {
            self.not_kept.inc();
        }
    }

    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.attempts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Returns the event of an installer's attempt on a code.
fn attempt(action: Action, code: CodeHash, at: Timestamp, from: IpAddr) -> Event {
    Event { code: Some(code), ..Event::new(action, Actor::Installer, at, Some(from)) }
}

/// Returns the reason of a refusal in a few words.
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

/// An attempt on a code that the HTTP edge refused.
#[derive(Clone, Copy, Debug)]
pub struct RefusedEarly {
    /// What was asked for: [`Action::PrecheckRefused`] or [`Action::ActivateRefused`].
    pub action: Action,
    /// The code, which need not exist.
    pub code: CodeHash,
    /// The machine that asked.
    pub machine: KeyedHash,
    /// The address the request came from.
    pub from: IpAddr,
    /// When the request arrived.
    pub now: Timestamp,
}

impl RefusedEarly {
    /// Returns the event that is stored with the code.
    pub(crate) fn because(self, refusal: &Refusal) -> Event {
        let Self { action, code, machine, from, now } = self;
        let detail = reason(refusal).into();
        Event { identity: Some(machine), detail, ..attempt(action, code, now, from) }
    }
}

/// Returns the event of a precheck.
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

/// Returns the event of a refused activate.
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

/// Returns the event that a machine tried a code that another machine has used, for the audit log. `attempt`
/// is the event of its refused attempt.
pub(crate) fn spent(attempt: &Event, used_by: &Activation) -> Event {
    let Event { at, from, code, identity, .. } = *attempt;
    let host = used_by.request.binding.hostname.as_str();
    Event {
        code,
        identity,
        activation: Some(used_by.at.into()),
        address: attempt.address,
        subject: host.to_owned(),
        detail: format!("used by {host}"),
        ..Event::new(Action::SpentCodeTried, Actor::Installer, at, from)
    }
}

/// Returns the event of a refused command on an activation.
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
