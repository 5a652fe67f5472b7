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

/// What an activate comes to.
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
    /// What changes of the code.
    pub(crate) of_code: PendingChange<CodeRegistry>,
    /// The activation of the same machine that makes room.
    pub(crate) replaces: Option<Closing>,
    pub(crate) activate: Activate,
}

/// An activation that is being released: it gives its code back, or makes room for another one of
/// the same machine.
pub(crate) struct Closing {
    /// As released.
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

/// Takes an open activation up again. Sent by the code registry, which found the code consumed.
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
    /// What the edge found the install token to be: where it is wrong that is the answer, which is
    /// kept with the code.
    pub token: Result<(), Refusal>,
    /// The network it is asked from.
    pub from: IpAddr,
    /// When the request came.
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
    /// The same for the token that may come with it.
    pub token: Result<(), Refusal>,
    /// Whether one came, and is genuine.
    pub proven: bool,
    /// The network it is asked from.
    pub from: IpAddr,
    /// The lifetimes in force.
    pub life: Lifetimes,
    /// When the request came.
    pub now: Timestamp,
}

impl Command for Release {
    type Answer = ReleaseOutcome;

    fn is_proven(&self) -> bool {
        self.proven
    }
}

/// What a release comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseOutcome {
    /// The activation is over.
    Released {
        /// Whether the code is issued and unexpired now.
        code_restored: bool,
    },
    /// The installation was confirmed before; it stays so.
    Confirmed,
}
