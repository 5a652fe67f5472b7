//! The stage of a code, and the hint that people know it by.

use iptunnel_domain::Timestamp;
use iptunnel_domain::activation::{Activation, Stage};
use iptunnel_domain::audit::Action;
use iptunnel_domain::code::{Code, CodeState};
use iptunnel_storage::{AuditLog, ReadError};

/// The stage of a code at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeStage {
    /// Valid and never used.
    Issued,
    /// Valid again: its activation was released.
    Restored,
    /// Expired before it was used.
    Expired,
    /// Used by an activation at this stage. `None`: the activation is deleted or was not read.
    Used(Option<Stage>),
}

impl CodeStage {
    /// Returns the stage of `code`. `by` is the activation that uses it, if any.
    pub fn of(code: &Code, by: Option<&Activation>, now: Timestamp) -> Self {
        match code.state {
            CodeState::Consumed(_) => Self::Used(by.map(|by| by.stage(now))),
            CodeState::Issued if code.is_expired(now) => Self::Expired,
            CodeState::Issued if code.activations > 0 => Self::Restored,
            CodeState::Issued => Self::Issued,
        }
    }

    /// Returns the name that operators see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Issued | Self::Restored => "issued",
            Self::Expired => "expired",
            Self::Used(None) => "used",
            Self::Used(Some(stage)) => stage.name(),
        }
    }
}

/// The most log entries that the search for a hint reads: about 100 ms.
const HINT_AMONG: usize = 100_000;

/// Returns the hint of a code from the audit entry of its issue. Empty where the search finds
/// nothing within a limited number of entries.
///
/// # Errors
/// If the log cannot be read.
pub fn hint_of(store: &dyn AuditLog, code: &Code) -> Result<String, ReadError> {
    let (mut hint, mut looked) = (String::new(), 0);
    let number = store.audit_number_at(code.issued_at)?;
    // The entry is written within seconds of the issue.
    let over = code.issued_at.plus(600);
    store.audit_from(number, &mut |entry| {
        let event = entry.event;
        let found = event.action == Action::CodeIssued && event.code == Some(code.hash);
        if found {
            hint = event.subject;
        }
        looked += 1;
        !found && event.at <= over && looked < HINT_AMONG
    })?;
    Ok(hint)
}
