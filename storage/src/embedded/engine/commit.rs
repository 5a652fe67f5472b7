//! One commit: checks guards and writes rows in one redb transaction.

use super::audit::Log;
use super::{
    ACCESS_TOKENS, ACTIVATIONS, CHECK_INS, CODES, COMMITS_KEY, COUNTERS, META, OLD_ATTEMPTS_KEY,
    SERVERS, SETTINGS, TAKEN_OVER_KEY, TOKEN_USES, begin_write, index, pages, unreadable,
};
use crate::{Change, ReadError, Setting, Verdict, Write, record};
use iptunnel_domain::audit::Action;
use iptunnel_domain::code::CodeHash;
use iptunnel_domain::lookup::KeyedHash;
use redb::{Database, Key, ReadableTable, Table, TableHandle, WriteTransaction};

/// How many codes a commit checks for attempts that an earlier program kept on codes that do not
/// exist. A million codes are checked within a day, and such a commit takes half a millisecond
/// longer.
const OLD_ATTEMPTS: usize = 16;

/// The verdicts, or an error; also the verdicts if the error came from the final commit itself.
type Outcome = Result<Vec<Verdict>, (String, Option<Vec<Verdict>>)>;

/// Commits `changes`, and with them the last checkpointed record of the journal. Returns the number
/// of this commit and its outcome.
pub(super) fn commit(
    database: &Database,
    changes: &[Change],
    checkpointed: Option<u64>,
) -> (u64, Outcome) {
    let write = match begin_write(database) {
        Ok(write) => write,
        Err(error) => return (u64::MAX, Err((error.to_string(), None))),
    };
    match apply(&write, changes, checkpointed) {
        Err(error) => (u64::MAX, Err((error.to_string(), None))),
        // The journal's changes were checked before: either all of them apply, or none may be
        // written. In the second case the transaction is dropped.
        Ok((attempted, verdicts))
            if checkpointed.is_some() && verdicts.contains(&Verdict::Conflict) =>
        {
            (attempted, Ok(verdicts))
        }
        Ok((attempted, verdicts)) => match write.commit() {
            Ok(()) => (attempted, Ok(verdicts)),
            Err(error) => (attempted, Err((error.to_string(), Some(verdicts)))),
        },
    }
}

fn apply(
    write: &WriteTransaction,
    changes: &[Change],
    checkpointed: Option<u64>,
) -> Result<(u64, Vec<Verdict>), ReadError> {
    let attempted = count_commit(write, checkpointed)?;
    keep_last_numbers(write, changes)?;
    let mut tables = Tables::open(write)?;
    let mut verdicts = Vec::with_capacity(changes.len());
    for change in changes {
        verdicts.push(tables.apply(change)?);
    }
    drop_old_attempts(write, &mut tables)?;
    tables.close()?;
    Ok((attempted, verdicts))
}

fn count_commit(write: &WriteTransaction, checkpointed: Option<u64>) -> Result<u64, ReadError> {
    let mut meta = write.open_table(META).map_err(unreadable)?;
    let before = meta.get(COMMITS_KEY).map_err(unreadable)?.map_or(0, |commits| commits.value());
    let attempted = before.saturating_add(1);
    meta.insert(COMMITS_KEY, attempted).map_err(unreadable)?;
    if let Some(record) = checkpointed {
        meta.insert(TAKEN_OVER_KEY, record).map_err(unreadable)?;
    }
    Ok(attempted)
}

fn drop_old_attempts(write: &WriteTransaction, tables: &mut Tables<'_>) -> Result<(), ReadError> {
    let mut meta = write.open_table(META).map_err(unreadable)?;
    let from = meta.get(OLD_ATTEMPTS_KEY).map_err(unreadable)?.map(|from| from.value());
    match from.map(|from| tables.drop_old_attempts(from)).transpose()? {
        Some(Some(next)) => meta.insert(OLD_ATTEMPTS_KEY, next).map_err(unreadable)?,
        Some(None) => meta.remove(OLD_ATTEMPTS_KEY).map_err(unreadable)?,
        None => None,
    };
    Ok(())
}

/// Records the last assigned numbers before rows are deleted, because these rows may have them.
fn keep_last_numbers(write: &WriteTransaction, changes: &[Change]) -> Result<(), ReadError> {
    let forgets = |write: &Write| {
        matches!(
            write,
            Write::ForgetCode(..) | Write::ForgetActivation(..) | Write::ForgetServer(..)
        )
    };
    if !changes.iter().any(|Change(writes)| writes.iter().any(forgets)) {
        return Ok(());
    }
    let mut meta = write.open_table(META).map_err(unreadable)?;
    let [code, activation, server] = last_numbers(changes);
    for (rows, given_out) in [(CODES, code), (ACTIVATIONS, activation)] {
        let name = rows.name();
        let rows = write.open_table(rows).map_err(unreadable)?;
        let last = rows.last().map_err(unreadable)?.map(|(number, _)| number.value());
        keep_last_number(&mut meta, name, last.max(given_out))?;
    }
    let rows = write.open_table(SERVERS).map_err(unreadable)?;
    let last = rows.last().map_err(unreadable)?.map(|(number, _)| u64::from(number.value()));
    keep_last_number(&mut meta, SERVERS.name(), last.max(server))
}

fn keep_last_number(
    meta: &mut Table<'_, &'static str, u64>,
    name: &str,
    last: Option<u64>,
) -> Result<(), ReadError> {
    let noted = meta.get(name).map_err(unreadable)?.map(|number| number.value());
    if let Some(last) = last.max(noted) {
        meta.insert(name, last).map_err(unreadable)?;
    }
    Ok(())
}

/// Returns the last numbers that `changes` assign to a code, to an activation and to a server.
fn last_numbers(changes: &[Change]) -> [Option<u64>; 3] {
    let mut last = [None; 3];
    let [code, activation, server] = &mut last;
    for write in changes.iter().flat_map(|Change(writes)| writes) {
        match write {
            Write::Code(written) => *code = Some(written.number.0).max(*code),
            Write::Activation(written) => *activation = Some(written.at.number.0).max(*activation),
            Write::Server(written) => *server = Some(written.number.0.into()).max(*server),
            _ => {}
        }
    }
    last
}

/// The tables of one write transaction.
struct Tables<'txn> {
    codes: Table<'txn, u64, &'static [u8]>,
    activations: Table<'txn, u64, &'static [u8]>,
    servers: Table<'txn, u32, &'static [u8]>,
    check_ins: Table<'txn, u32, &'static [u8]>,
    counters: Table<'txn, u32, &'static [u8]>,
    settings: Table<'txn, &'static str, &'static str>,
    access_tokens: Table<'txn, u32, &'static [u8]>,
    token_uses: Table<'txn, u32, u64>,
    log: Log<'txn>,
    code_index: index::Writer<'txn>,
    activation_index: index::Writer<'txn>,
}

impl<'txn> Tables<'txn> {
    fn open(write: &'txn WriteTransaction) -> Result<Self, ReadError> {
        Ok(Self {
            codes: write.open_table(CODES).map_err(unreadable)?,
            activations: write.open_table(ACTIVATIONS).map_err(unreadable)?,
            servers: write.open_table(SERVERS).map_err(unreadable)?,
            check_ins: write.open_table(CHECK_INS).map_err(unreadable)?,
            counters: write.open_table(COUNTERS).map_err(unreadable)?,
            settings: write.open_table(SETTINGS).map_err(unreadable)?,
            access_tokens: write.open_table(ACCESS_TOKENS).map_err(unreadable)?,
            token_uses: write.open_table(TOKEN_USES).map_err(unreadable)?,
            log: Log::open(write)?,
            code_index: index::CODES.open(write)?,
            activation_index: index::ACTIVATIONS.open(write)?,
        })
    }

    /// Writes the gathered changes.
    fn close(self) -> Result<(), ReadError> {
        self.log.close()?;
        self.code_index.close(&self.codes)?;
        self.activation_index.close(&self.activations)
    }

    fn hash_of(&self, code: u64) -> Result<Option<CodeHash>, ReadError> {
        let row = self.codes.get(code).map_err(unreadable)?;
        row.map(|row| Ok(record::decode_code(code, row.value())?.hash)).transpose()
    }

    fn has_code(&self, hash: CodeHash) -> Result<bool, ReadError> {
        let number = self.code_index.find(hash.0.as_u128())?;
        Ok(number.map(|number| self.hash_of(number)).transpose()?.flatten() == Some(hash))
    }

    /// Deletes some of the attempts that an earlier program kept on codes that do not exist. `from`
    /// is where the commit before stopped, in the order of the hashes: their first eight bytes.
    /// Returns where this one stops; `None` at the end.
    fn drop_old_attempts(&mut self, from: u64) -> Result<Option<u64>, ReadError> {
        let first = CodeHash(KeyedHash((u128::from(from) << 64).to_be_bytes()));
        let codes = self.log.codes_with_attempts(first, OLD_ATTEMPTS)?;
        for code in &codes {
            if !self.has_code(*code)? {
                self.log.forget_attempts_on(*code)?;
            }
        }
        let last = codes.last().filter(|_| codes.len() == OLD_ATTEMPTS);
        let first_half =
            |code: &CodeHash| code.0.0.first_chunk().map(|half| u64::from_be_bytes(*half));
        Ok(last.and_then(first_half).and_then(|half| half.checked_add(1)))
    }

    fn apply(&mut self, Change(writes): &Change) -> Result<Verdict, ReadError> {
        for write in writes {
            if !self.guard_holds(write)? {
                return Ok(Verdict::Conflict);
            }
        }
        for write in writes {
            self.write(write)?;
        }
        Ok(Verdict::Written)
    }

    fn guard_holds(&self, write: &Write) -> Result<bool, ReadError> {
        match write {
            Write::Code(code) => follows(&self.codes, code.number.0, code.version),
            Write::Activation(activation) => {
                follows(&self.activations, activation.at.number.0, activation.version)
            }
            Write::Server(server) => follows(&self.servers, server.number.0, server.version),
            Write::ForgetCode(number, version) => is_at(&self.codes, number.0, *version),
            Write::ForgetActivation(number, version) => {
                is_at(&self.activations, number.0, *version)
            }
            Write::ForgetServer(number, version) => is_at(&self.servers, number.0, *version),
            Write::AccessToken(token) => {
                follows(&self.access_tokens, token.number.0, token.version)
            }
            Write::CheckIns(_)
            | Write::TokenUses(_)
            | Write::Counters(_)
            | Write::Audit(_)
            | Write::Attempt(_)
            | Write::Setting(_)
            | Write::Charge(_) => Ok(true),
        }
    }

    fn write(&mut self, write: &Write) -> Result<(), ReadError> {
        match write {
            Write::Code(code) => {
                put(&mut self.codes, code.number.0, &record::encode_code(code)?)?;
                if code.version == 1 {
                    self.code_index.add(code.hash.0.as_u128(), code.number.0);
                }
                Ok(())
            }
            Write::Activation(activation) => {
                let number = activation.at.number.0;
                put(&mut self.activations, number, &record::encode_activation(activation)?)?;
                if activation.version == 1 {
                    self.activation_index.add(u128::from(activation.at.id.0), number);
                }
                Ok(())
            }
            Write::Server(server) => {
                put(&mut self.servers, server.number.0, &record::encode_server(server)?)
            }
            Write::ForgetCode(number, _) => {
                self.code_index.forget();
                if let Some(hash) = self.hash_of(number.0)? {
                    self.log.forget_attempts_on(hash)?;
                }
                remove(&mut self.codes, number.0)
            }
            Write::ForgetActivation(number, _) => {
                self.activation_index.forget();
                remove(&mut self.activations, number.0)
            }
            Write::ForgetServer(number, _) => remove(&mut self.servers, number.0),
            Write::AccessToken(token) => {
                let row = record::encode_access_token(token)?;
                put(&mut self.access_tokens, token.number.0, &row)
            }
            Write::TokenUses(uses) => {
                for (token, at) in uses {
                    self.token_uses.insert(token.0, at.0).map_err(unreadable)?;
                }
                Ok(())
            }
            Write::CheckIns(check_ins) => pages::write_check_ins(&mut self.check_ins, check_ins),
            Write::Counters(rows) => pages::write_counters(&mut self.counters, rows),
            Write::Audit(event) => {
                self.log.add(event);
                Ok(())
            }
            Write::Attempt(event) => match event.code {
                // Invented codes must not create rows. A precheck of such a code never passes, and
                // checking each code that did pass would cost a tenth of all write time.
                Some(code)
                    if event.action == Action::PrecheckPassed
                        || self.log.has_attempts_on(code)?
                        || self.has_code(code)? =>
                {
                    self.log.note_attempt(code, event)
                }
                _ => Ok(()),
            },
            // The rate limiter writes its counters itself.
            Write::Charge(_) => Ok(()),
            Write::Setting(Setting { key, value: Some(value) }) => {
                self.settings.insert(key.as_str(), value.as_str()).map_err(unreadable)?;
                Ok(())
            }
            Write::Setting(Setting { key, value: None }) => {
                self.settings.remove(key.as_str()).map_err(unreadable)?;
                Ok(())
            }
        }
    }
}

fn stored_version<'k, K: Key + 'static>(
    table: &Table<'_, K, &'static [u8]>,
    key: K::SelfType<'k>,
) -> Result<Option<u32>, ReadError> {
    let row = table.get(key).map_err(unreadable)?;
    row.map(|row| record::version(row.value())).transpose()
}

/// Returns whether `version` directly follows the stored one.
fn follows<'k, K: Key + 'static>(
    table: &Table<'_, K, &'static [u8]>,
    key: K::SelfType<'k>,
    version: u32,
) -> Result<bool, ReadError> {
    Ok(stored_version(table, key)?.unwrap_or(0).checked_add(1) == Some(version))
}

fn is_at<'k, K: Key + 'static>(
    table: &Table<'_, K, &'static [u8]>,
    key: K::SelfType<'k>,
    version: u32,
) -> Result<bool, ReadError> {
    Ok(stored_version(table, key)? == Some(version))
}

fn put<'k, K: Key + 'static>(
    table: &mut Table<'_, K, &'static [u8]>,
    key: K::SelfType<'k>,
    value: &[u8],
) -> Result<(), ReadError> {
    table.insert(key, value).map_err(unreadable)?;
    Ok(())
}

fn remove<'k, K: Key + 'static>(
    table: &mut Table<'_, K, &'static [u8]>,
    key: K::SelfType<'k>,
) -> Result<(), ReadError> {
    table.remove(key).map_err(unreadable)?;
    Ok(())
}
