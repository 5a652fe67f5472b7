//! Where a code stands, and by which hint people know it.

use iptunnel_domain::Timestamp;
use iptunnel_domain::activation::{Activation, Stage};
use iptunnel_domain::audit::Action;
use iptunnel_domain::code::{Code, CodeState};
use iptunnel_storage::{ReadError, Store};

/// Where a code stands at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeStage {
    /// It is good, and was never used.
    Issued,
    /// It is good again: an activation gave it back.
    Restored,
    /// Its time ran out before it was used.
    Expired,
    /// An activation has it, which stands there; `None` where that is forgotten or was not looked at.
    Used(Option<Stage>),
}

impl CodeStage {
    /// Where `code` stands, which `by` has used, if anybody.
    pub fn of(code: &Code, by: Option<&Activation>, now: Timestamp) -> Self {
        match code.state {
            CodeState::Consumed(_) => Self::Used(by.map(|by| by.stage(now))),
            CodeState::Issued if code.is_expired(now) => Self::Expired,
            CodeState::Issued if code.activations > 0 => Self::Restored,
            CodeState::Issued => Self::Issued,
        }
    }

    /// As operators call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Issued | Self::Restored => "issued",
            Self::Expired => "expired",
            Self::Used(None) => "used",
            Self::Used(Some(stage)) => stage.name(),
        }
    }
}

/// Entries of the log that a hint is looked for among: some 100 ms.
const HINT_AMONG: usize = 100_000;

/// The hint of a code, as the log noted it when the code was issued; empty where so much happened at
/// that time that it is not found soon.
///
/// # Errors
/// Where the log cannot be read.
pub fn hint_of(store: &dyn Store, code: &Code) -> Result<String, ReadError> {
    let (mut hint, mut looked) = (String::new(), 0);
    let number = store.audit_number_at(code.issued_at)?;
    // A code is entered within seconds of its time.
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
