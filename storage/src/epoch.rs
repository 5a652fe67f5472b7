//! What could be spent twice in a store that has become an earlier one, and how it is made void.

use crate::{Change, CommitError, ReadError, Store, Write};
use iptunnel_domain::Timestamp;
use iptunnel_domain::activation::{Activation, ActivationState};
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::code::{Code, CodeState};
use std::sync::Arc;

/// Records looked at in the first step; four times as many in each further one.
const FIRST: usize = 1000;
/// Changes of one commit.
const BATCH: usize = 500;
/// Seconds after which nothing can come of a code or an activation any more: twice the longest
/// lifetime that may be configured, which is a year.
const LONGEST: u64 = 2 * 31_536_000;

/// Makes unspent codes and open activations void: they ended before they began, so that no precheck
/// can have come in time. How many of each there were.
pub(crate) fn void(
    store: &dyn Store,
    why: &str,
    now: Timestamp,
) -> Result<(usize, usize), CommitError> {
    let unreadable = |error: ReadError| CommitError::Refused(error.0);
    let codes = recent(|limit| store.newest_codes(limit), |code: &Code| code.issued_at);
    let codes: Vec<Write> = codes
        .map_err(unreadable)?
        .into_iter()
        .filter(|code| code.state == CodeState::Issued && code.expires_at > code.issued_at)
        .map(|code| {
            let version = code.version.saturating_add(1);
            Write::Code(Code { expires_at: code.issued_at, version, ..code })
        })
        .collect();
    let all = recent(|limit| store.newest_activations(limit), |one: &Activation| one.opened_at);
    let activations: Vec<Write> = all
        .map_err(unreadable)?
        .into_iter()
        .filter(|one| one.state == ActivationState::Open && one.expires_at > one.opened_at)
        .map(|one| {
            let version = one.version.saturating_add(1);
            Write::Activation(Activation { expires_at: one.opened_at, version, ..one })
        })
        .collect();
    let counts = (codes.len(), activations.len());
    let event = Event {
        subject: format!("{} codes, {} activations", counts.0, counts.1),
        detail: why.to_owned(),
        ..Event::new(Action::StoreFenced, Actor::Administrator, now, None)
    };
    let mut changes: Vec<Change> =
        codes.into_iter().chain(activations).map(|write| Change(vec![write])).collect();
    changes.push(Change(vec![Write::Audit(Arc::new(event))]));
    for batch in changes.chunks(BATCH) {
        store.commit(batch)?;
    }
    Ok(counts)
}

/// The newest records, as far back as anything can still come of them.
fn recent<R>(
    newest: impl Fn(usize) -> Result<Vec<R>, ReadError>,
    at: impl Fn(&R) -> Timestamp,
) -> Result<Vec<R>, ReadError> {
    let mut limit = FIRST;
    loop {
        let records = newest(limit)?;
        let reach = match (records.first(), records.last()) {
            (Some(first), Some(last)) => at(first).since(at(last)),
            _ => 0,
        };
        if records.len() < limit || reach > LONGEST {
            return Ok(records);
        }
        limit = limit.saturating_mul(4);
    }
}
