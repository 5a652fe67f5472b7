//! Writes changes of one shape with one statement. Each change is written whole or not at all.
//!
//! The values of a column are sent as one array, so that the database plans, runs and answers once
//! for all changes of a batch with the same shape. A part of a change is a common table expression.
//! It applies only to the changes (by their position in the arrays) that the part before it has
//! written. The statement returns which changes were written, and fails if some change was written
//! in part, so that nothing of its transaction remains. The text depends on the shape alone, of
//! which there are few: each is prepared once per connection.

use super::rows::{actor_name, closed_at, signed, state_name, text, time};
use crate::{Change, Counted, Setting, Write};
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::AccessToken;
use iptunnel_domain::activation::{Activation, ActivationNumber};
use iptunnel_domain::audit::Event;
use iptunnel_domain::code::{Code, CodeState};
use iptunnel_domain::server::{EnrolledBy, Server};
use std::fmt::Write as _;
use tokio_postgres::types::{ToSql, Type};

/// A value for a statement, with its type in the statement.
pub(super) type Value<'a> = (Type, Box<dyn ToSql + Send + Sync + 'a>);

pub(super) fn value<'a>(kind: Type, value: impl ToSql + Send + Sync + 'a) -> Value<'a> {
    (kind, Box::new(value))
}

/// One value for each record, as an array.
pub(super) fn each<'a, I: IntoIterator, T: ToSql + Send + Sync + 'a>(
    kind: Type,
    records: I,
    of: impl Fn(I::Item) -> T,
) -> Value<'a> {
    value(kind, records.into_iter().map(of).collect::<Vec<T>>())
}

/// Returns the types of values, with which their statement is prepared.
pub(super) fn types(values: &[Value<'_>]) -> Vec<Type> {
    values.iter().map(|(kind, _)| kind.clone()).collect()
}

pub(super) fn reference<'a>(value: &'a Value<'_>) -> &'a (dyn ToSql + Sync) {
    value.1.as_ref()
}

/// The action of a part of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    NewCode,
    Code,
    NewActivation,
    Activation,
    NewServer,
    Server,
    Event,
    ForgetCode,
    ForgetActivation,
    ForgetServer,
    NewAccessToken,
    AccessToken,
    Set,
    Unset,
    Charge,
}

impl Part {
    /// `None` for writes that are written as sets, by statements of their own.
    const fn of(write: &Write) -> Option<Self> {
        Some(match write {
            Write::Code(code) if code.version == 1 => Self::NewCode,
            Write::Code(_) => Self::Code,
            Write::Activation(activation) if activation.version == 1 => Self::NewActivation,
            Write::Activation(_) => Self::Activation,
            Write::Server(server) if server.version == 1 => Self::NewServer,
            Write::Server(_) => Self::Server,
            Write::Audit(_) => Self::Event,
            Write::ForgetCode(..) => Self::ForgetCode,
            Write::ForgetActivation(..) => Self::ForgetActivation,
            Write::ForgetServer(..) => Self::ForgetServer,
            Write::AccessToken(token) if token.version == 1 => Self::NewAccessToken,
            Write::AccessToken(_) => Self::AccessToken,
            Write::Setting(Setting { value: Some(_), .. }) => Self::Set,
            Write::Setting(_) => Self::Unset,
            Write::Charge(_) => Self::Charge,
            Write::CheckIns(_) | Write::Counters(_) | Write::Attempt(_) | Write::TokenUses(_) => {
                return None;
            }
        })
    }

    /// Returns the parts of a change, in their order.
    pub(super) fn all_of(change: &Change) -> Vec<Self> {
        change.0.iter().filter_map(Self::of).collect()
    }
}

/// A statement and its values.
#[derive(Default)]
pub(super) struct Statement<'a> {
    pub(super) sql: String,
    pub(super) values: Vec<Value<'a>>,
    parts: usize,
    /// The last part that returns which changes it has written.
    named: Option<usize>,
    /// The parts that must write a row for each change.
    needed: Vec<usize>,
    /// The part with the counters that must be written, and the part that writes them.
    charged: Option<(usize, usize)>,
}

/// A column of a part: its name, and its value for each change.
type Column<'a> = (&'static str, Value<'a>);

fn column<'a, R: Copy, T: ToSql + Send + Sync + 'a>(
    name: &'static str,
    kind: Type,
    records: &[R],
    of: impl Fn(R) -> T,
) -> Column<'a> {
    (name, each(kind, records.iter().copied(), of))
}

impl<'a> Statement<'a> {
    /// Makes the statement of changes that all have the shape `parts`, each with the number of its
    /// first event. It returns the positions of those that were written, which begin at 1; null if
    /// all are always written.
    pub(super) fn of(parts: &[Part], changes: &[(&'a Change, i64)], process: i32) -> Self {
        let mut statement = Self::default();
        // Row by row, in the order of the parts.
        let rows: Vec<Vec<Placed<'a>>> = changes.iter().map(rows_of).collect();
        for (place, part) in parts.iter().enumerate() {
            let writes: Vec<Placed<'a>> =
                rows.iter().filter_map(|row| row.get(place).copied()).collect();
            statement.add(*part, &writes, process);
        }
        statement.end();
        statement
    }

    /// Makes a statement that writes a set of rows and returns nothing.
    pub(super) fn set(sql: String, values: Vec<Value<'a>>) -> Self {
        Self { sql, values, ..Self::default() }
    }

    fn push(&mut self, sql: &str) {
        self.sql.push_str(sql);
    }

    /// Appends the source of rows: the columns as a table `a`, in which `i` is the position of a
    /// change.
    fn source(&mut self, columns: impl IntoIterator<Item = Column<'a>>) {
        self.push(" FROM unnest(");
        let mut names = String::new();
        for (name, value) in columns {
            let comma = if names.is_empty() { "" } else { ", " };
            self.values.push(value);
            let _ = write!(self.sql, "{comma}${}", self.values.len());
            let _ = write!(names, "{name}, ");
        }
        let _ = write!(self.sql, ") WITH ORDINALITY AS a ({names}i)");
    }

    /// Appends, after `word`, the condition that the part before has written the change.
    fn guard(&mut self, word: &str) {
        if let Some(named) = self.named {
            self.is_among(word, "i", named);
        }
    }

    /// Appends the condition that `column` is among the values that a part returned. With `IS TRUE`
    /// the planner uses a hash table. Without it, it would expect few rows and use a nested loop.
    fn is_among(&mut self, word: &str, column: &str, part: usize) {
        let _ = write!(self.sql, " {word} (a.{column} IN (SELECT {column} FROM w{part})) IS TRUE");
    }

    /// Begins a part.
    fn part(&mut self, sql: &str) {
        let with = if self.parts == 0 { "WITH" } else { "," };
        let _ = write!(self.sql, "{with} w{} AS ({sql}", self.parts);
    }

    /// Ends a part that may or may not write.
    fn end_part(&mut self) -> usize {
        self.push(")");
        self.parts += 1;
        self.parts - 1
    }

    /// Ends a part that must write, and returns for which changes it has.
    fn end_named(&mut self) {
        let part = self.end_part();
        self.named = Some(part);
        self.needed.push(part);
    }

    /// Ends a part with the condition on its rows; `and` is a further condition.
    fn of_version(&mut self, table: &str, and: &str, returning: &str) {
        let _ = write!(
            self.sql,
            " WHERE {table}.number = a.number AND {table}.version = a.version{and}"
        );
        self.guard("AND");
        let _ = write!(self.sql, " RETURNING a.i{returning}");
        self.end_named();
    }

    /// Updates `columns` of the rows with the number and version in `of` that fulfil `and`.
    fn update(
        &mut self,
        table: &str,
        of: impl IntoIterator<Item = Column<'a>>,
        and: &str,
        columns: impl IntoIterator<Item = Column<'a>>,
    ) {
        let columns: Vec<Column<'a>> = columns.into_iter().collect();
        self.part(&format!("UPDATE {table} SET "));
        for (name, _) in &columns {
            let _ = write!(self.sql, "{name} = a.{name}, ");
        }
        let _ = write!(self.sql, "version = {table}.version + 1");
        self.source(of.into_iter().chain(columns));
        self.of_version(table, and, "");
    }

    /// Inserts new rows. Rows with a number of this process are new. If another unique column
    /// conflicts, the statement fails, and its changes are written one by one. `constant` is a
    /// column with the same value in all rows.
    fn insert(
        &mut self,
        table: &str,
        constant: (&str, &str),
        key: impl Fn() -> Column<'a>,
        columns: impl IntoIterator<Item = Column<'a>>,
    ) {
        let key_of = key();
        let returning = format!(" RETURNING {}", key_of.0);
        let written = self.insert_part(table, constant, key_of, columns, &returning);
        if self.named.is_some() {
            // Their count tells whether all were written.
            return self.needed.push(written);
        }
        self.name(written, key());
    }

    fn insert_part(
        &mut self,
        table: &str,
        constant: (&str, &str),
        key: Column<'a>,
        columns: impl IntoIterator<Item = Column<'a>>,
        returning: &str,
    ) -> usize {
        let all: Vec<Column<'a>> = std::iter::once(key).chain(columns).collect();
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        self.part(&format!(
            "INSERT INTO {table} ({}, {}) SELECT {}, a.{}",
            constant.0,
            names.join(", "),
            constant.1,
            names.join(", a."),
        ));
        self.source(all);
        self.guard("WHERE");
        self.push(returning);
        self.end_part()
    }

    /// An inserted row does not know its change; its key does.
    fn name(&mut self, written: usize, (key, keys): Column<'a>) {
        self.part("SELECT a.i");
        self.source([(key, keys)]);
        self.is_among("WHERE", key, written);
        self.end_named();
    }

    fn end(&mut self) {
        let (Some(named), Some(first)) = (self.named, self.needed.first()) else {
            // Nothing here depends on what is stored.
            return self.push(" SELECT NULL::bigint[]");
        };
        let parts = self.needed.len();
        let mut all = String::new();
        for part in &self.needed {
            let _ = write!(all, " + (SELECT count(*) FROM w{part})");
        }
        let mut wanted = format!("1 + {parts} * (SELECT count(*) FROM w{first})");
        let mut counts = String::new();
        if let Some((asked, counted)) = self.charged {
            let _ = write!(all, " + (SELECT count(*) FROM w{counted})");
            let _ = write!(wanted, " + (SELECT count(*) FROM w{asked})");
            let _ = write!(
                counts,
                ", counted.* FROM (SELECT array_agg(key) AS keys, array_agg(window_end) AS ends,
                     array_agg(before) AS before, array_agg(used) AS used FROM w{counted}) AS counted"
            );
        }
        let _ = write!(
            self.sql,
            " SELECT CASE WHEN all_or_nothing(1{all}, {wanted})
             THEN ARRAY(SELECT i FROM w{named}) END{counts}"
        );
    }

    fn add(&mut self, part: Part, writes: &[Placed<'a>], process: i32) {
        match part {
            Part::NewCode => self.new_codes(&records(writes, code)),
            Part::Code => self.codes(&records(writes, code), writes),
            Part::NewActivation => self.new_activations(&records(writes, activation)),
            Part::Activation => self.activations(&records(writes, activation)),
            Part::NewServer => self.new_servers(&records(writes, server)),
            Part::Server => self.servers(&records(writes, server)),
            Part::Event => self.events(&records(writes, event), process),
            Part::ForgetCode => {
                self.forget("code", ", hash", &records(writes, forgotten));
                let forgotten = self.parts - 1;
                for table in ["attempt", "attempts_of_code"] {
                    self.part(&format!(
                        "DELETE FROM {table} USING w{forgotten} WHERE {table}.code = w{forgotten}.hash"
                    ));
                    self.end_part();
                }
            }
            Part::ForgetActivation => self.forget("activation", "", &records(writes, forgotten)),
            Part::ForgetServer => self.forget("server", "", &records(writes, forgotten)),
            Part::NewAccessToken => self.new_access_tokens(&records(writes, access_token)),
            Part::AccessToken => {
                let tokens = records(writes, access_token);
                let of = [token_number(&tokens), before(&tokens, |token| token.version)];
                self.update("access_token", of, "", granted(&tokens));
            }
            Part::Set => {
                let set = records(writes, setting);
                self.part("INSERT INTO setting (key, value) SELECT a.key, a.value");
                self.source([
                    column("key", Type::TEXT_ARRAY, &set, |one| text(&one.key)),
                    column("value", Type::TEXT_ARRAY, &set, |one| one.value.as_deref().map(text)),
                ]);
                self.guard("WHERE");
                self.push(" ON CONFLICT (key) DO UPDATE SET value = excluded.value");
                self.end_part();
            }
            Part::Unset => {
                let unset = records(writes, setting);
                self.part("DELETE FROM setting USING (SELECT a.key");
                self.source([column("key", Type::TEXT_ARRAY, &unset, |one| text(&one.key))]);
                self.guard("WHERE");
                self.push(") AS a WHERE setting.key = a.key");
                self.end_part();
            }
            Part::Charge => self.charges(&records(writes, charge)),
        }
    }

    fn new_codes(&mut self, codes: &[&'a Code]) {
        self.insert(
            "code",
            ("version", "1"),
            || number(codes, |code| code.number.0),
            [
                bytes("hash", codes, |code| &code.hash.0.0),
                column("product", Type::TEXT_ARRAY, codes, |code| code.product.to_string()),
                bytes("session", codes, |code| &code.session.0),
                times("issued_at", codes, |code| code.issued_at),
            ]
            .into_iter()
            .chain(changing(codes)),
        );
    }

    /// The version alone is not enough: two servers may each have one of the same number. The
    /// holder of the code tells them apart.
    fn codes(&mut self, codes: &[&'a Code], writes: &[Placed<'a>]) {
        let of = [
            number(codes, |code| code.number.0),
            before(codes, |code| code.version),
            column("held_by", Type::INT8_ARRAY, writes, |one| one.closes.map(|at| signed(at.0))),
        ];
        let held = " AND code.consumed_by IS NOT DISTINCT FROM a.held_by";
        self.update("code", of, held, changing(codes));
    }

    fn new_activations(&mut self, activations: &[&'a Activation]) {
        let all = activations;
        self.insert(
            "activation",
            ("version", "1"),
            || number(all, |one| one.at.number.0),
            [
                column("id", Type::BYTEA_ARRAY, all, |one| one.at.id.0.to_be_bytes().to_vec()),
                bytes("code", all, |one| &one.code.0.0),
                bytes("machine", all, |one| &one.request.holder.machine.0),
                bytes("fingerprint", all, |one| &one.request.holder.fingerprint.0),
                words("hostname", all, |one| one.request.binding.hostname.as_str()),
                column("public_ip", Type::INET_ARRAY, all, |one| one.request.binding.public_ip),
                words("requested_ref", all, |one| &one.request.requested_ref),
                words("installer_version", all, |one| &one.request.installer_version),
                words("signing_key", all, |one| &one.request.signing_key),
                times("opened_at", all, |one| one.opened_at),
                times("expires_at", all, |one| one.expires_at),
            ]
            .into_iter()
            .chain(state(all)),
        );
    }

    fn activations(&mut self, all: &[&'a Activation]) {
        let of = [number(all, |one| one.at.number.0), before(all, |one| one.version)];
        self.update("activation", of, "", state(all));
    }

    /// Inserts servers; the database assigns their numbers.
    fn new_servers(&mut self, servers: &[&'a Server]) {
        let id = || server_id(servers);
        // Another server may have been faster.
        let written = self.insert_part(
            "server",
            ("version", "1"),
            id(),
            described(servers),
            " ON CONFLICT DO NOTHING RETURNING id, number",
        );
        self.name(written, id());
        self.part("INSERT INTO presence (server, last_seen) SELECT server.number, a.last_seen");
        self.source([id(), times("last_seen", servers, |server| server.last_checkin)]);
        let _ = write!(self.sql, " JOIN w{written} AS server USING (id)");
        self.end_part();
    }

    fn servers(&mut self, servers: &[&'a Server]) {
        let place =
            |name| column(name, Type::INT4_ARRAY, servers, |server| server.number.0.cast_signed());
        let of = [place("number"), before(servers, |server| server.version)];
        // An imported server may take the record of a deleted one.
        let columns = std::iter::once(server_id(servers)).chain(described(servers));
        self.update("server", of, "", columns);
        self.part("UPDATE presence SET last_seen = a.last_seen");
        self.source([place("number"), times("last_seen", servers, |server| server.last_checkin)]);
        self.push(" WHERE presence.server = a.number");
        self.push(" AND is_news(presence.last_seen, a.last_seen, a.last_seen)");
        self.guard("AND");
        self.end_part();
    }

    fn new_access_tokens(&mut self, tokens: &[&'a AccessToken]) {
        let columns = [
            column("role", Type::TEXT_ARRAY, tokens, |token| token.role.name()),
            times("created_at", tokens, |token| token.created_at),
            times("last_used", tokens, |token| token.last_used),
        ];
        // Another server may have been faster.
        let written = self.insert_part(
            "access_token",
            ("version", "1"),
            token_number(tokens),
            columns.into_iter().chain(granted(tokens)),
            " ON CONFLICT DO NOTHING RETURNING number",
        );
        self.name(written, token_number(tokens));
    }

    fn events(&mut self, numbered: &[(&'a Event, i64)], process: i32) {
        let process = ("process", process.to_string());
        let seq = || column("seq", Type::INT8_ARRAY, numbered, |(_, seq)| seq);
        let events: Vec<&Event> = numbered.iter().map(|(event, _)| *event).collect();
        self.insert("event", (process.0, &process.1), seq, told_of(&events));
    }

    /// Counts each limit once, by as many as the written changes need. If one does not allow all of them, its
    /// row is missing and the statement fails: then each change is written alone. Counters come in the order
    /// of their keys, as everywhere, so that no two statements wait for each other.
    fn charges(&mut self, charges: &[&'a [Counted]]) {
        let all: Vec<(i64, &Counted)> = (1..)
            .zip(charges)
            .flat_map(|(place, limits)| limits.iter().map(move |one| (place, one)))
            .collect();
        self.part(
            "SELECT a.key, a.window_end, max(a.policy) AS policy, max(a.allowed) AS allowed,
                 count(*)::integer AS times",
        );
        self.source([
            column("place", Type::INT8_ARRAY, &all, |(place, _)| place),
            column("key", Type::INT8_ARRAY, &all, |(_, one)| signed(one.key)),
            column("window_end", Type::TIMESTAMPTZ_ARRAY, &all, |(_, one)| time(one.window_end)),
            column("policy", Type::TEXT_ARRAY, &all, |(_, one)| one.policy.name()),
            column("allowed", Type::INT8_ARRAY, &all, |(_, one)| i64::from(one.allowed)),
        ]);
        if let Some(named) = self.named {
            let _ = write!(self.sql, " WHERE (a.place IN (SELECT i FROM w{named})) IS TRUE");
        }
        self.push(" GROUP BY a.key, a.window_end");
        let asked = self.end_part();
        self.part(&format!(
            "INSERT INTO counter AS c (key, window_end, policy, before, used, allowed)
             SELECT key, window_end, policy, 0, times, allowed FROM w{asked}
             WHERE times <= allowed ORDER BY key, window_end
             ON CONFLICT (key, window_end) DO UPDATE SET before = c.used,
                 used = c.used + excluded.used, allowed = excluded.allowed
             WHERE c.used + excluded.used <= excluded.allowed
             RETURNING key, window_end, before, used"
        ));
        self.charged = Some((asked, self.end_part()));
    }

    fn forget(&mut self, table: &str, more: &str, rows: &[(u64, u32)]) {
        self.part(&format!("DELETE FROM {table} USING (SELECT a.*"));
        self.source([
            column("number", Type::INT8_ARRAY, rows, |(place, _)| signed(place)),
            column("version", Type::INT8_ARRAY, rows, |(_, version)| i64::from(version)),
        ]);
        self.push(") AS a");
        self.of_version(table, "", more);
    }
}

/// The columns of events, without their process and number.
pub(super) fn told_of<'a>(all: &[&'a Event]) -> [Column<'a>; 12] {
    [
        times("at", all, |event| event.at),
        column("action", Type::TEXT_ARRAY, all, |event| event.action.name()),
        column("actor", Type::TEXT_ARRAY, all, actor_name),
        column("source", Type::INET_ARRAY, all, |event| event.from),
        column("identity", Type::BYTEA_ARRAY, all, |event| {
            event.identity.as_ref().map(|id| &id.0[..])
        }),
        column("code", Type::BYTEA_ARRAY, all, |event| {
            event.code.as_ref().map(|code| &code.0.0[..])
        }),
        column("activation", Type::INT8_ARRAY, all, |event| {
            event.activation.map(|at| signed(at.number.0))
        }),
        column("digits", Type::INT4_ARRAY, all, |event| {
            event.activation.map(|at| i32::from(at.digits))
        }),
        column("server", Type::BYTEA_ARRAY, all, |event| {
            event.server.map(|id| id.0.to_be_bytes().to_vec())
        }),
        column("address", Type::INET_ARRAY, all, |event| event.address),
        words("subject", all, |event| Event::kept(&event.subject)),
        words("detail", all, |event| Event::kept(&event.detail)),
    ]
}

/// The columns of a code that change.
fn changing<'a>(codes: &[&'a Code]) -> [Column<'a>; 4] {
    let by = |code: &Code| match code.state {
        CodeState::Issued => None,
        CodeState::Consumed(by) => Some(by),
    };
    [
        times("expires_at", codes, |code| code.expires_at),
        column("activations", Type::INT4_ARRAY, codes, |code| code.activations.cast_signed()),
        column("consumed_by", Type::INT8_ARRAY, codes, |code| {
            by(code).map(|by| signed(by.number.0))
        }),
        column("consumed_by_id", Type::BYTEA_ARRAY, codes, |code| {
            by(code).map(|by| by.id.0.to_be_bytes().to_vec())
        }),
    ]
}

/// The columns of an activation that change.
fn state<'a>(all: &[&'a Activation]) -> [Column<'a>; 2] {
    [
        column("state", Type::TEXT_ARRAY, all, |one| state_name(one.state)),
        column("closed_at", Type::TIMESTAMPTZ_ARRAY, all, |one| closed_at(one.state)),
    ]
}

fn server_id<'a>(servers: &[&'a Server]) -> Column<'a> {
    column("id", Type::BYTEA_ARRAY, servers, |server| server.id.0.to_be_bytes().to_vec())
}

/// The columns of a server, without its number and id.
fn described<'a>(servers: &[&'a Server]) -> [Column<'a>; 14] {
    let kind = |server: &Server| match server.enrolled_by {
        EnrolledBy::Unknown => "unknown",
        EnrolledBy::Master => "master",
        EnrolledBy::Token(_) => "token",
        EnrolledBy::Activation(_) => "activation",
        EnrolledBy::Import => "import",
    };
    let access_token = |server: &Server| match server.enrolled_by {
        EnrolledBy::Token(number) => Some(number.0.cast_signed()),
        _ => None,
    };
    let activation = |server: &Server| match server.enrolled_by {
        EnrolledBy::Activation(name) => Some(name),
        _ => None,
    };
    let elsewhere = |server: &Server| {
        (server.address_id != server.id).then(|| server.address_id.0.to_be_bytes().to_vec())
    };
    [
        column("address_id", Type::BYTEA_ARRAY, servers, elsewhere),
        column("ip", Type::INET_ARRAY, servers, |server| server.ip),
        words("hostname", servers, |server| &server.hostname),
        times("registered_at", servers, |server| server.registered_at),
        column("token", Type::BYTEA_ARRAY, servers, |server| {
            server.token.as_ref().map(|token| &token.0[..])
        }),
        column("enrolled_by", Type::TEXT_ARRAY, servers, kind),
        column("access_token", Type::INT4_ARRAY, servers, access_token),
        column("activation", Type::INT8_ARRAY, servers, |server| {
            activation(server).map(|name| signed(name.number.0))
        }),
        column("digits", Type::INT4_ARRAY, servers, |server| {
            activation(server).map(|name| i32::from(name.digits))
        }),
        column("credential_ms", Type::INT8_ARRAY, servers, |server| signed(server.credential_ms)),
        column("revoked", Type::BOOL_ARRAY, servers, |server| server.revoked),
        column("deleted", Type::BOOL_ARRAY, servers, |server| server.deleted),
        column("changed_here", Type::BOOL_ARRAY, servers, |server| server.changed_here),
        words("note", servers, |server| &server.note),
    ]
}

fn token_number<'a>(tokens: &[&'a AccessToken]) -> Column<'a> {
    column("number", Type::INT4_ARRAY, tokens, |token| token.number.0.cast_signed())
}

/// The columns of an access token that change.
fn granted<'a>(tokens: &[&'a AccessToken]) -> [Column<'a>; 9] {
    [
        words("name", tokens, |token| &token.name),
        bytes("secret", tokens, |token| &token.secret.0),
        column("previous", Type::BYTEA_ARRAY, tokens, |token| {
            token.previous.as_ref().map(|(hash, _)| &hash.0[..])
        }),
        column("previous_until", Type::TIMESTAMPTZ_ARRAY, tokens, |token| {
            token.previous.map(|(_, until)| time(until))
        }),
        column("expires_at", Type::TIMESTAMPTZ_ARRAY, tokens, |token| token.expires_at.map(time)),
        column("networks", Type::TEXT_ARRAY, tokens, |token| spaced(&token.networks)),
        column("addresses", Type::TEXT_ARRAY, tokens, |token| spaced(&token.addresses)),
        column("max_servers", Type::INT8_ARRAY, tokens, |token| i64::from(token.max_servers)),
        column("revoked_at", Type::TIMESTAMPTZ_ARRAY, tokens, |token| token.revoked_at.map(time)),
    ]
}

fn spaced(all: &[impl ToString]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn number<'a, R>(records: &[&'a R], of: impl Fn(&'a R) -> u64) -> Column<'a> {
    column("number", Type::INT8_ARRAY, records, |one| signed(of(one)))
}

/// The version on which a change was decided.
fn before<'a, R>(records: &[&'a R], of: impl Fn(&'a R) -> u32) -> Column<'a> {
    column("version", Type::INT8_ARRAY, records, |one| i64::from(of(one)) - 1)
}

fn times<'a, R>(
    name: &'static str,
    records: &[&'a R],
    of: impl Fn(&'a R) -> Timestamp,
) -> Column<'a> {
    column(name, Type::TIMESTAMPTZ_ARRAY, records, |one| time(of(one)))
}

fn bytes<'a, R>(
    name: &'static str,
    records: &[&'a R],
    of: impl Fn(&'a R) -> &'a [u8; 16],
) -> Column<'a> {
    column(name, Type::BYTEA_ARRAY, records, |one| &of(one)[..])
}

fn words<'a, R>(
    name: &'static str,
    records: &[&'a R],
    of: impl Fn(&'a R) -> &'a str,
) -> Column<'a> {
    column(name, Type::TEXT_ARRAY, records, |one| text(of(one)))
}

/// A write, and what its statement needs from the rest of its change.
#[derive(Clone, Copy)]
struct Placed<'a> {
    write: &'a Write,
    /// Its number if it is an event.
    seq: i64,
    /// The activation that the change closes.
    closes: Option<ActivationNumber>,
}

/// The records of writes with the same action.
fn records<'a, R>(writes: &[Placed<'a>], of: fn(&'a Write, i64) -> Option<R>) -> Vec<R> {
    writes.iter().filter_map(|one| of(one.write, one.seq)).collect()
}

const fn code(write: &Write, _: i64) -> Option<&Code> {
    if let Write::Code(code) = write { Some(code) } else { None }
}

const fn activation(write: &Write, _: i64) -> Option<&Activation> {
    if let Write::Activation(activation) = write { Some(activation) } else { None }
}

const fn server(write: &Write, _: i64) -> Option<&Server> {
    if let Write::Server(server) = write { Some(server) } else { None }
}

const fn access_token(write: &Write, _: i64) -> Option<&AccessToken> {
    if let Write::AccessToken(token) = write { Some(token) } else { None }
}

const fn setting(write: &Write, _: i64) -> Option<&Setting> {
    if let Write::Setting(setting) = write { Some(setting) } else { None }
}

const fn charge(write: &Write, _: i64) -> Option<&[Counted]> {
    if let Write::Charge(limits) = write { Some(limits.as_slice()) } else { None }
}

fn event(write: &Write, seq: i64) -> Option<(&Event, i64)> {
    if let Write::Audit(event) = write { Some((event, seq)) } else { None }
}

const fn forgotten(write: &Write, _: i64) -> Option<(u64, u32)> {
    match write {
        Write::ForgetCode(place, version) => Some((place.0, *version)),
        Write::ForgetActivation(place, version) => Some((place.0, *version)),
        Write::ForgetServer(place, version) => Some((place.0 as u64, *version)),
        _ => None,
    }
}

/// Returns the writes of a change, in their order.
fn rows_of<'a>(&(change, mut seq): &(&'a Change, i64)) -> Vec<Placed<'a>> {
    let closes = change.0.iter().find_map(closed);
    let row = |write: &'a Write| {
        let placed = Placed { write, seq, closes };
        seq += i64::from(matches!(write, Write::Audit(_)));
        placed
    };
    change.0.iter().map(row).collect()
}

/// Writing an activation over an earlier version closes it.
const fn closed(write: &Write) -> Option<ActivationNumber> {
    match write {
        Write::Activation(activation) if activation.version > 1 => Some(activation.at.number),
        _ => None,
    }
}
