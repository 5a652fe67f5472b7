//! Makes void what could be spent twice after a store returned to an earlier state.

use crate::{Change, CommitError, ReadError, Store, Write, walk};
use iptunnel_domain::Timestamp;
use iptunnel_domain::activation::{Activation, ActivationState};
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::code::{Code, CodeState};
use std::sync::Arc;

/// Makes unspent codes and open activations void: their end is set to their beginning, so that no
/// precheck can have come in time. Returns how many of each there were.
pub(crate) fn void(
    store: &dyn Store,
    why: &str,
    now: Timestamp,
) -> Result<(usize, usize), CommitError> {
    let unreadable = |error: ReadError| CommitError::Refused(error.0);
    let (mut codes, mut activations) = (0, 0);
    for page in walk::codes(store) {
        let page = page.map_err(unreadable)?.into_iter();
        let unspent = page
            .filter(|code| code.state == CodeState::Issued && code.expires_at > code.issued_at)
            .map(|code| {
                let version = code.version.saturating_add(1);
                Write::Code(Code { expires_at: code.issued_at, version, ..code })
            });
        codes += commit_each(store, unspent)?;
    }
    for page in walk::activations(store) {
        let page = page.map_err(unreadable)?.into_iter();
        let open = page
            .filter(|one| one.state == ActivationState::Open && one.expires_at > one.opened_at)
            .map(|one| {
                let version = one.version.saturating_add(1);
                Write::Activation(Activation { expires_at: one.opened_at, version, ..one })
            });
        activations += commit_each(store, open)?;
    }
    let event = Event {
        subject: format!("{codes} codes, {activations} activations"),
        detail: why.to_owned(),
        ..Event::new(Action::StoreFenced, Actor::Administrator, now, None)
    };
    commit_each(store, [Write::Audit(Arc::new(event))])?;
    Ok((codes, activations))
}

/// Commits each write as a change of its own, all at once. Returns how many there are.
fn commit_each(
    store: &dyn Store,
    writes: impl IntoIterator<Item = Write>,
) -> Result<usize, CommitError> {
    let changes: Vec<Change> = writes.into_iter().map(|write| Change(vec![write])).collect();
    if !changes.is_empty() {
        store.commit(&changes)?;
    }
    Ok(changes.len())
}
