//! From one store into another: everything, in order, and then whether it is the same.

use crate::{
    Attempts, Change, CommitError, Counter, CounterRow, ReadError, Setting, Store, Verdict, Write,
    record,
};
use iptunnel_domain::activation::Activation;
use iptunnel_domain::audit::Event;
use iptunnel_domain::code::Code;
use iptunnel_domain::server::{Server, ServerNumber};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::sync::Arc;

/// Records read and written at once.
const STEP: usize = 500;

/// How many of something there are, and a checksum of all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// What.
    pub what: &'static str,
    /// How many.
    pub count: u64,
    /// SHA-256, in hexadecimal digits.
    pub checksum: String,
}

/// Why stores could not be copied or compared.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The other store holds something already.
    #[error("the store to copy into is not empty")]
    NotEmpty,
    /// A store could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A store could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A record was refused by a store that nobody else may use.
    #[error("the store to copy into has changed meanwhile")]
    Conflict,
}

/// Copies all that `from` holds into `to`, which must be empty. Nobody else may use either.
///
/// Versions begin anew, and a shared store numbers servers itself, in the same order: neither means
/// anything outside of its store.
///
/// # Errors
/// Where one of them cannot be read or written, or `to` is not empty.
pub fn copy(from: &dyn Store, to: &dyn Store) -> Result<(), CopyError> {
    if sums(to)?.iter().any(|sum| sum.count > 0) {
        return Err(CopyError::NotEmpty);
    }
    let settings = from.settings()?.into_iter();
    let settings =
        settings.map(|(key, value)| Write::Setting(Setting { key, value: Some(value) })).collect();
    write(to, settings)?;
    each_code(from, &mut |code| {
        let hash = code.hash;
        write(to, vec![Write::Code(Code { version: 1, ..code })])?;
        let Attempts { kept, more } = from.attempts(hash)?;
        // Beyond those that are kept whole they are only counted, whatever they are.
        let last = kept.last().cloned();
        let more = last.into_iter().flat_map(|last| (0..more).map(move |_| last.clone()));
        for some in kept.iter().cloned().chain(more).collect::<Vec<Event>>().chunks(STEP) {
            write(to, some.iter().cloned().map(Write::Attempt).collect())?;
        }
        Ok(())
    })?;
    each_activation(from, &mut |activation| {
        write(to, vec![Write::Activation(Activation { version: 1, ..activation })])
    })?;
    let mut servers = Vec::new();
    from.each_server(&mut |server| servers.push(server))?;
    for some in servers.chunks(STEP) {
        let new =
            |server: &Server| Change(vec![Write::Server(Server { version: 1, ..server.clone() })]);
        commit(to, &some.iter().map(new).collect::<Vec<_>>())?;
    }
    let mut counters = Vec::new();
    from.each_counter(&mut |_, counter| counters.push(counter))?;
    for (place, some) in counters.chunks(STEP).enumerate() {
        let slot = |number: usize| u32::try_from(place * STEP + number).unwrap_or(u32::MAX);
        let row = |(number, counter): (usize, &Counter)| CounterRow {
            slot: slot(number),
            counter: Some(*counter),
        };
        write(to, vec![Write::Counters(some.iter().enumerate().map(row).collect())])?;
    }
    let mut next = 1;
    loop {
        let mut events = Vec::with_capacity(STEP);
        from.audit_from(next, &mut |entry| {
            next = entry.head.entries.saturating_add(1);
            events.push(Write::Audit(Arc::new(entry.event)));
            events.len() < STEP
        })?;
        if events.is_empty() {
            return Ok(());
        }
        write(to, events)?;
    }
}

fn write(to: &dyn Store, writes: Vec<Write>) -> Result<(), CopyError> {
    if writes.is_empty() { Ok(()) } else { commit(to, &[Change(writes)]) }
}

fn commit(to: &dyn Store, changes: &[Change]) -> Result<(), CopyError> {
    let all = to.commit(changes)?.into_iter().all(|verdict| verdict == Verdict::Written);
    if all { Ok(()) } else { Err(CopyError::Conflict) }
}

fn each_code(
    store: &dyn Store,
    each: &mut dyn FnMut(Code) -> Result<(), CopyError>,
) -> Result<(), CopyError> {
    let mut last = None;
    loop {
        let codes = store.oldest_codes(last, STEP)?;
        let Some(end) = codes.last() else { return Ok(()) };
        last = Some(end.number);
        codes.into_iter().try_for_each(&mut *each)?;
    }
}

fn each_activation(
    store: &dyn Store,
    each: &mut dyn FnMut(Activation) -> Result<(), CopyError>,
) -> Result<(), CopyError> {
    let mut last = None;
    loop {
        let activations = store.oldest_activations(last, STEP)?;
        let Some(end) = activations.last() else { return Ok(()) };
        last = Some(end.at.number);
        activations.into_iter().try_for_each(&mut *each)?;
    }
}

/// Counts and sums up what is put into it.
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

/// What a store holds, to be compared with what another one holds.
///
/// # Errors
/// Where it cannot be read.
pub fn sums(store: &dyn Store) -> Result<Vec<Sum>, CopyError> {
    let (mut codes, mut attempts) = (Summing::new("codes"), Summing::new("attempts"));
    each_code(store, &mut |code| {
        let (number, Attempts { kept, more }) = (code.number.0, store.attempts(code.hash)?);
        codes.add(number, &record::encode_code(&Code { version: 1, ..code })?);
        for event in &kept {
            let mut bytes = Vec::new();
            event.encode(&mut bytes);
            attempts.add(number, &bytes);
        }
        attempts.count += more;
        Ok(())
    })?;
    let mut activations = Summing::new("activations");
    each_activation(store, &mut |activation| {
        let number = activation.at.number.0;
        let bytes = record::encode_activation(&Activation { version: 1, ..activation })?;
        activations.add(number, &bytes);
        Ok(())
    })?;
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
    let head = store.audit_head()?;
    let log = Sum {
        what: "audit entries",
        count: head.entries,
        checksum: if head.entries == 0 { String::new() } else { head.hash.to_hex() },
    };
    let all = [codes, attempts, activations, servers, counters, settings];
    Ok(all.into_iter().map(Summing::end).chain([log]).collect())
}
