//! What the log tells of a code.

use iptunnel_domain::audit::Action;
use iptunnel_domain::code::Code;
use iptunnel_storage::{ReadError, Store};

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
