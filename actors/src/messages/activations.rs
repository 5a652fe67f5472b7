//! The messages of the activation actor and their replies.

use crate::activation::Activation;
use crate::code_registry::CodeRegistry;
use crate::memory::pending_change::PendingChange;
use crate::messages::Command;
use crate::messages::codes::{Activate, PrecheckCode};
use iptunnel_domain::activation::{Activation as Record, ActivationId, ActivationRef};
use iptunnel_domain::code::Code;
use iptunnel_domain::time::Lifetimes;
use iptunnel_domain::{Refusal, Timestamp};
use std::net::IpAddr;

/// The reply to an activate.
#[derive(Clone, Debug)]
pub struct Activated {
    /// The activation, from which the install token is signed.
    pub activation: Record,
}

/// Opens an activation. Sent by the code registry, which has consumed the code for it.
pub(crate) struct Open {
    pub(crate) at: ActivationRef,
    /// The code as consumed.
    pub(crate) code: Code,
    /// The pending change of the code.
    pub(crate) of_code: PendingChange<CodeRegistry>,
    /// The activation of the same machine that this one replaces.
    pub(crate) replaces: Option<Closing>,
    pub(crate) activate: Activate,
}

/// An activation that is being released. It gives its code back, or another activation of the same
/// machine replaces it.
pub(crate) struct Closing {
    /// The record as released.
    pub(crate) released: Record,
    pub(crate) change: PendingChange<Activation>,
}

impl Command for Open {
    type Answer = Activated;
}

/// Asks whether the machine may go on with a consumed code. Sent by the code registry.
pub(crate) struct PrecheckHeld {
    pub(crate) by: ActivationRef,
    pub(crate) precheck: PrecheckCode,
}

impl Command for PrecheckHeld {
    type Answer = ();
}

/// Resumes an open activation. Sent by the code registry, which found the code consumed.
pub(crate) struct Resume {
    pub(crate) by: ActivationRef,
    pub(crate) code: Code,
    pub(crate) activate: Activate,
}

impl Command for Resume {
    type Answer = Activated;
}

/// Confirms an installation. Sent by the HTTP edge.
pub struct Confirm {
    /// The activation.
    pub id: ActivationId,
    /// The HTTP edge's check of the install token. A wrong token is refused, and the attempt is
    /// recorded with the code.
    pub token: Result<(), Refusal>,
    /// The address the request came from.
    pub from: IpAddr,
    /// When the request arrived.
    pub now: Timestamp,
}

impl Command for Confirm {
    type Answer = ();

    fn is_proven(&self) -> bool {
        self.token.is_ok()
    }
}

/// Gives a code back after a failed installation. Sent by the HTTP edge.
#[derive(Clone)]
pub struct Release {
    /// The activation.
    pub id: ActivationId,
    /// The HTTP edge's check of the install token, which is optional here.
    pub token: Result<(), Refusal>,
    /// Whether a token was sent and is genuine.
    pub proven: bool,
    /// The address the request came from.
    pub from: IpAddr,
    /// The lifetimes in force.
    pub life: Lifetimes,
    /// When the request arrived.
    pub now: Timestamp,
}

impl Command for Release {
    type Answer = ReleaseOutcome;

    fn is_proven(&self) -> bool {
        self.proven
    }
}

/// The reply to a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseOutcome {
    /// The activation is over.
    Released {
        /// Whether the code is issued and unexpired now.
        code_restored: bool,
    },
    /// The installation was already confirmed, and stays confirmed.
    Confirmed,
}
