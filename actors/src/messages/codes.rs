//! The messages of the code registry and their replies.

use crate::messages::Command;
use crate::messages::activations::{Activated, Closing, Release, ReleaseOutcome};
use actix::Message;
use iptunnel_domain::Timestamp;
use iptunnel_domain::activation::{ActivationRef, Holder, Request};
use iptunnel_domain::code::{Code, CodeHash, InstallCode, ProductLetters};
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::time::Lifetimes;
use std::net::IpAddr;
use std::sync::Arc;

/// Issues a code. Sent by the rate limiter; answered when the code is on disk.
pub struct Issue {
    /// The product it will install.
    pub product: ProductLetters,
    /// The browser session that asks for it.
    pub session: KeyedHash,
    /// The address the request came from.
    pub from: IpAddr,
    /// The lifetimes in force.
    pub life: Lifetimes,
    /// When the request arrived.
    pub now: Timestamp,
}

/// The reply to [`Issue`].
pub struct Issued {
    /// The code: a secret.
    pub code: InstallCode,
    /// When it expires.
    pub expires_at: Timestamp,
}

impl Command for Issue {
    type Answer = Issued;
}

/// Asks whether a machine may begin an installation. Sent by the rate limiter; changes nothing.
pub struct PrecheckCode {
    /// The code.
    pub code: CodeHash,
    /// The machine.
    pub holder: Holder,
    /// The address the request came from.
    pub from: IpAddr,
    /// The lifetimes in force.
    pub life: Lifetimes,
    /// When the request arrived.
    pub now: Timestamp,
}

impl Command for PrecheckCode {
    type Answer = ();
}

/// Consumes a code, or resumes an open activation. Sent by the rate limiter; answered when
/// the activation is on disk.
#[derive(Clone)]
pub struct Activate {
    /// The code.
    pub code: CodeHash,
    /// The time of the precheck that allowed this request.
    pub prechecked_at: Timestamp,
    /// Who asks, and for which binding.
    pub request: Arc<Request>,
    /// The address the request came from.
    pub from: IpAddr,
    /// The lifetimes in force.
    pub life: Lifetimes,
    /// When the request arrived.
    pub now: Timestamp,
}

impl Command for Activate {
    type Answer = Activated;
}

/// Consumes a code again for the machine that holds it, with another binding. Sent by the
/// activation actor, which has released the old activation.
pub(crate) struct Replace {
    pub(crate) code: Code,
    pub(crate) replaced: Closing,
    pub(crate) activate: Activate,
}

impl Command for Replace {
    type Answer = Activated;
}

/// Gives a code back. Sent by the activation actor, which has released its activation; answered
/// when both are on disk.
pub(crate) struct Restore {
    pub(crate) released: Closing,
    pub(crate) release: Release,
}

impl Command for Restore {
    type Answer = ReleaseOutcome;
}

/// Codes, each with the activation that consumed it: it is on disk, and no request needs it any more. Sent by
/// the activation actor.
pub(crate) struct Spent(pub(crate) Vec<(CodeHash, ActivationRef)>);

impl Message for Spent {
    type Result = ();
}
