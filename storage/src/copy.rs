//! Copies one store into another, and compares the two.

use crate::walk::{self, PAGE};
use crate::{
    Attempts, Change, CommitError, Counter, CounterRow, LOOKUP_KEY, ReadError, Setting, Store,
    Verdict, Write, record,
};
use iptunnel_domain::access::AccessToken;
use iptunnel_domain::activation::Activation;
use iptunnel_domain::code::{Code, CodeHash};
use iptunnel_domain::server::{Server, ServerNumber};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::sync::Arc;

/// The number of records of one kind, and a checksum of all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// The kind.
    pub what: &'static str,
    /// The number of records.
    pub count: u64,
    /// Their SHA-256, in hexadecimal digits.
    pub checksum: String,
}

/// Why stores could not be copied or compared.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The target store is not empty.
    #[error("the target store is not empty: copy into an empty one")]
    NotEmpty,
    /// The records of one store cannot be found with the key of the other.
    #[error(
        "the target store was made with another lookup key: copy into a store that was never used"
    )]
    OtherKey,
    /// A store could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A store could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The target store refused a record, although nobody else may use it.
    #[error(
        "the target store was changed during the copy: stop all servers that use it, empty it, and copy again"
    )]
    Conflict,
}

/// Copies all records of `from` into `to`, which must be empty. Nobody else may use either store.
///
/// The target then demands the same lookup key. Versions start again, and a shared store numbers servers itself, in the same order. Neither
/// means anything outside of its store.
///
/// # Errors
/// If one of them cannot be read or written, or if `to` is not empty.
pub fn copy(from: &dyn Store, to: &dyn Store) -> Result<(), CopyError> {
    if sums(to)?.iter().any(|sum| sum.count > 0) {
        return Err(CopyError::NotEmpty);
    }
    if let Some(hash) = from.agreed(LOOKUP_KEY)?
        && !to.agree(LOOKUP_KEY, hash)?
    {
        return Err(CopyError::OtherKey);
    }
    let mut target = Target { store: to, gathered: Vec::with_capacity(PAGE) };
    for (key, value) in from.settings()? {
        target.add(Write::Setting(Setting { key, value: Some(value) }))?;
    }
    for token in from.access_tokens()? {
        let used = vec![(token.number, token.last_used)];
        target.add(Write::AccessToken(AccessToken { version: 1, ..token }))?;
        target.add(Write::TokenUses(used))?;
    }
    for page in walk::codes(from) {
        let page = page?;
        for code in &page {
            target.add(Write::Code(Code { version: 1, ..code.clone() }))?;
        }
        // An attempt is kept only if its code exists.
        target.write()?;
        for attempts in from.attempts_on(&hashes_of(&page))? {
            let Attempts { kept, more } = attempts;
            // The further ones are only counted, so their content does not matter.
            let last = kept.last().cloned();
            let more = last.into_iter().flat_map(|last| (0..more).map(move |_| last.clone()));
            for attempt in kept.into_iter().chain(more) {
                target.add(Write::Attempt(attempt))?;
            }
        }
    }
    for page in walk::activations(from) {
        for activation in page? {
            target.add(Write::Activation(Activation { version: 1, ..activation }))?;
        }
    }
    let mut outcome = Ok(());
    from.each_server(&mut |server| {
        if outcome.is_ok() {
            outcome = target.add(Write::Server(Server { version: 1, ..server }));
        }
    })?;
    outcome?;
    let (mut slot, mut outcome) = (0, Ok(()));
    from.each_counter(&mut |_, counter| {
        if outcome.is_ok() {
            let row = CounterRow { slot, counter: Some(counter) };
            outcome = target.add(Write::Counters(vec![row]));
            slot += 1;
        }
    })?;
    outcome?;
    let mut outcome = Ok(());
    from.audit_from(1, &mut |entry| {
        outcome = target.add(Write::Audit(Arc::new(entry.event)));
        outcome.is_ok()
    })?;
    outcome?;
    target.write()?;
    copy_webhooks(from, to)
}

/// Copies how far each webhook has heard of the audit log, whose numbers are the same in the copy.
fn copy_webhooks(from: &dyn Store, to: &dyn Store) -> Result<(), CopyError> {
    let (Some(from), Some(to)) = (from.webhooks(), to.webhooks()) else { return Ok(()) };
    let states = from.states()?;
    if states.is_empty() {
        return Ok(());
    }
    if !to.hold(LEASE)? || !to.keep(&states)? {
        return Err(CopyError::Conflict);
    }
    Ok(to.release()?)
}

/// Seconds for which the rows of webhooks are held while they are copied.
const LEASE: u32 = 60;

fn hashes_of(codes: &[Code]) -> Vec<CodeHash> {
    codes.iter().map(|code| code.hash).collect()
}

/// The target: writes many changes per commit, one write each.
struct Target<'a> {
    store: &'a dyn Store,
    gathered: Vec<Change>,
}

impl Target<'_> {
    fn add(&mut self, write: Write) -> Result<(), CopyError> {
        self.gathered.push(Change(vec![write]));
        if self.gathered.len() < PAGE { Ok(()) } else { self.write() }
    }

    fn write(&mut self) -> Result<(), CopyError> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let verdicts = self.store.commit(&self.gathered)?;
        self.gathered.clear();
        let all = verdicts.into_iter().all(|verdict| verdict == Verdict::Written);
        if all { Ok(()) } else { Err(CopyError::Conflict) }
    }
}

/// Counts records and computes their checksum.
struct Summing {
    what: &'static str,
    count: u64,
    hash: Sha256,
}

impl Summing {
    fn new(what: &'static str) -> Self {
        Self { what, count: 0, hash: Sha256::new() }
    }

    fn add(&mut self, number: u64, bytes: &[u8]) {
        self.count += 1;
        self.hash.update(number.to_le_bytes());
        self.hash.update((bytes.len() as u64).to_le_bytes());
        self.hash.update(bytes);
    }

    fn end(self) -> Sum {
        let checksum = self.hash.finalize().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        Sum { what: self.what, count: self.count, checksum }
    }
}

/// Returns counts and checksums of all records of a store, for a comparison with another store.
///
/// # Errors
/// If it cannot be read.
pub fn sums(store: &dyn Store) -> Result<Vec<Sum>, CopyError> {
    let (mut codes, mut attempts) = (Summing::new("codes"), Summing::new("attempts"));
    for page in walk::codes(store) {
        let page = page?;
        for (code, Attempts { kept, more }) in
            page.iter().zip(store.attempts_on(&hashes_of(&page))?)
        {
            let number = code.number.0;
            codes.add(number, &record::encode_code(&Code { version: 1, ..code.clone() })?);
            for event in &kept {
                let mut bytes = Vec::new();
                event.encode(&mut bytes);
                attempts.add(number, &bytes);
            }
            attempts.count += more;
        }
    }
    let mut activations = Summing::new("activations");
    for page in walk::activations(store) {
        for activation in page? {
            let number = activation.at.number.0;
            let bytes = record::encode_activation(&Activation { version: 1, ..activation })?;
            activations.add(number, &bytes);
        }
    }
    let (mut servers, mut failed) = (Summing::new("servers"), Ok(()));
    store.each_server(&mut |server| match record::encode_server(&Server {
        version: 1,
        number: ServerNumber(0),
        ..server
    }) {
        Ok(bytes) => servers.add(0, &bytes),
        Err(error) => failed = Err(error),
    })?;
    failed?;
    let mut rows: Vec<Counter> = Vec::new();
    store.each_counter(&mut |_, counter| rows.push(counter))?;
    rows.sort_unstable_by_key(|counter| (counter.key, counter.window_end));
    let mut counters = Summing::new("counters");
    for Counter { key, policy, used, window_end } in rows {
        counters.add(key, format!("{} {used} {}", policy.name(), window_end.0).as_bytes());
    }
    let mut settings = Summing::new("settings");
    for (key, value) in store.settings()? {
        settings.add(0, format!("{key}={value}").as_bytes());
    }
    let mut tokens = Summing::new("access tokens");
    for token in store.access_tokens()? {
        let (number, used) = (u64::from(token.number.0), token.last_used.0.to_le_bytes());
        let row = record::encode_access_token(&AccessToken { version: 1, ..token })?;
        tokens.add(number, &[&row[..], &used].concat());
    }
    let head = store.audit_head()?;
    let log = Sum {
        what: "audit entries",
        count: head.entries,
        checksum: if head.entries == 0 { String::new() } else { head.hash.to_hex() },
    };
    let all = [codes, attempts, activations, servers, counters, settings, tokens];
    Ok(all.into_iter().map(Summing::end).chain([log]).collect())
}
