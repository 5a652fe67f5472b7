//! The model of the shared database against the engine itself: two servers do the same to both, one
//! thing after the other, and every verdict, and all that can be read then, must be the same. What
//! commits wait for, and how ways break, is not in it. `scripts/test` starts a cluster and names it in
//! `TEST_POSTGRES`.
//!
//! What servers decide on is what they read last, so guards hold and fail as they do in earnest. Some
//! changes are besides decided wrongly on purpose. Two things are left out, which never happen: a name
//! or a number of two codes' activations, and a record that is forgotten in the batch that changes it.

use crate::chance::Chance;
use crate::database::{Connection, Database, Standby};
use crate::planted::{Fault, Planted};
use iptunnel_domain::activation::{
    Activation, ActivationId, ActivationNumber, ActivationRef, ActivationState, Binding, Holder,
    Request,
};
use iptunnel_domain::address::HostName;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::code::{Code, CodeHash, CodeNumber, CodeState, ProductLetters};
use iptunnel_domain::limit::Policy;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{Server, ServerId, ServerNumber};
use iptunnel_domain::{Timestamp, Version};
use iptunnel_storage::{
    AuditLog, Change, CheckIn, CheckInOf, Counted, Epochs, PostgresStore, Setting, Shared, Store,
    Verdict, Watermark, Write,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Of each sequence, as many codes, registered servers, settings and limits.
const KINDS: u8 = 3;
/// When everything begins.
const BEGUN: Timestamp = Timestamp(1_800_000_000);
/// A number that no server has.
const NOBODY: ServerNumber = ServerNumber(i32::MAX as u32);

/// One step, by the first or the second server.
#[derive(Clone, Debug)]
enum Step {
    /// A batch is committed; whether the server then reads everything again.
    Commit(usize, Vec<Move>, bool),
    /// The server reads everything again.
    Look(usize),
    /// A code, and all its activations, are forgotten, each at the version that the server knows.
    Forget(usize, u8),
    /// An epoch begins after the present one, or is asked for after one that has passed.
    BeginEpoch(usize, bool),
    /// Charges requests, each against some limits with their allowances.
    Charge(usize, Vec<Vec<u8>>, u32),
    /// Gives charges back.
    GiveBack(usize, Vec<u8>),
    /// Counters are forgotten, so many seconds after the beginning.
    ForgetCounters(usize, u64),
    /// A server was seen, so many seconds after the beginning.
    CheckIn(usize, u8, u64),
}

/// A change that is decided on the records the server knows.
#[derive(Clone, Debug)]
enum Move {
    /// A code is issued.
    Issue(u8),
    /// A code is issued under another number, though its hash may be taken.
    IssueBeside(u8),
    /// A machine gets a code.
    Open(u8, Slip),
    /// The same machine gets it for another host: the open activation is closed.
    Replace(u8, Slip),
    /// A code is given back.
    Release(u8, Slip),
    /// An installation is complete.
    Confirm(u8, Slip),
    /// A code lives longer.
    Prolong(u8, Slip),
    /// A server registers for the first time.
    Register(u8),
    /// A server registers again, is revoked, or restored.
    Change(u8, Slip),
    /// A setting is changed, or no more.
    Set(u8, Option<u8>),
    /// Something is tried on a code.
    Try(u8),
    /// Something is noted that changes nothing.
    Note,
}

/// How a change is decided wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slip {
    None,
    /// On an older version of its first record.
    Older,
    /// On a newer one.
    Newer,
    /// A part is left out: the code that is opened, or the activation that is to be closed.
    Torn,
    /// Another activation of the code is closed, if there is one.
    Another,
    /// The number of an activation is one that was given before.
    Taken,
}

fn moves() -> impl Strategy<Value = Move> {
    let which = || 0..KINDS;
    let slip = || {
        prop_oneof![
            12 => Just(Slip::None),
            1 => Just(Slip::Older),
            1 => Just(Slip::Newer),
            1 => Just(Slip::Torn),
            1 => Just(Slip::Another),
            1 => Just(Slip::Taken),
        ]
    };
    prop_oneof![
        3 => which().prop_map(Move::Issue),
        1 => which().prop_map(Move::IssueBeside),
        5 => (which(), slip()).prop_map(|(code, slip)| Move::Open(code, slip)),
        3 => (which(), slip()).prop_map(|(code, slip)| Move::Replace(code, slip)),
        4 => (which(), slip()).prop_map(|(code, slip)| Move::Release(code, slip)),
        2 => (which(), slip()).prop_map(|(code, slip)| Move::Confirm(code, slip)),
        1 => (which(), slip()).prop_map(|(code, slip)| Move::Prolong(code, slip)),
        2 => which().prop_map(Move::Register),
        2 => (which(), slip()).prop_map(|(server, slip)| Move::Change(server, slip)),
        2 => (which(), proptest::option::of(any::<u8>())).prop_map(|(key, to)| Move::Set(key, to)),
        1 => which().prop_map(Move::Try),
        1 => Just(Move::Note),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || 0..2_usize;
    let some = |most| proptest::collection::vec(0..KINDS, 1..=most);
    let limits = proptest::collection::btree_set(0..KINDS, 1..=2);
    let requests =
        proptest::collection::vec(limits.prop_map(|set| set.into_iter().collect()), 1..4);
    let seconds = || prop_oneof![0..300_u64, 80_000..120_000_u64];
    let step = prop_oneof![
        24 => (who(), proptest::collection::vec(moves(), 0..5), any::<bool>())
            .prop_map(|(who, moves, looks)| Step::Commit(who, moves, looks)),
        4 => who().prop_map(Step::Look),
        2 => (who(), 0..KINDS).prop_map(|(who, code)| Step::Forget(who, code)),
        1 => (who(), any::<bool>()).prop_map(|(who, passed)| Step::BeginEpoch(who, passed)),
        4 => (who(), requests, 0..4_u32)
            .prop_map(|(who, requests, allowed)| Step::Charge(who, requests, allowed)),
        2 => (who(), some(3)).prop_map(|(who, limits)| Step::GiveBack(who, limits)),
        1 => (who(), seconds()).prop_map(|(who, at)| Step::ForgetCounters(who, at)),
        2 => (who(), 0..KINDS, seconds()).prop_map(|(who, id, at)| Step::CheckIn(who, id, at)),
    ];
    proptest::collection::vec(step, 1..24)
}

/// The records that a server has read and not seen change.
#[derive(Clone, Default)]
struct Known {
    codes: BTreeMap<u8, Code>,
    activations: BTreeMap<ActivationId, Activation>,
    servers: BTreeMap<u8, Server>,
    /// How many numbers it has given to activations.
    given: u64,
}

/// Two servers over one of the two databases.
struct Side<'a> {
    stores: [&'a dyn Store; 2],
    /// The epoch when it all began.
    began: u64,
    /// The present one.
    epoch: u64,
}

impl Side<'_> {
    fn shared(&self, who: usize) -> &dyn Shared {
        self.stores[who].shared().unwrap()
    }
}

/// A sequence: names of its own in both databases.
struct Sequence {
    base: u64,
    known: [Known; 2],
    /// How many changes there were: each has an instant of its own.
    changes: u64,
}

/// All that can be read of a sequence's records.
#[derive(Debug, PartialEq)]
struct Stored {
    codes: Vec<Option<Code>>,
    activations: Vec<Option<Activation>>,
    codes_in_order: Vec<Code>,
    activations_in_order: Vec<Activation>,
    /// Without their numbers.
    servers: Vec<Option<Server>>,
    /// The newest first.
    servers_in_order: Vec<Server>,
    settings: Vec<(String, String)>,
    epoch: u64,
}

fn spread(number: u64) -> u64 {
    number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn hash(number: u64) -> KeyedHash {
    KeyedHash((u128::from(spread(number)) << 64 | u128::from(number)).to_be_bytes())
}

impl Sequence {
    fn now(&mut self) -> Timestamp {
        self.changes += 1;
        Timestamp(BEGUN.0 + self.changes)
    }

    fn code_hash(&self, code: u8) -> CodeHash {
        CodeHash(hash(self.base + u64::from(code)))
    }

    fn server_id(&self, server: u8) -> ServerId {
        ServerId(spread(self.base + u64::from(server)))
    }

    fn key(&self, key: u8) -> String {
        format!("{}.key_{key}", self.base)
    }

    fn at(&self, number: u64) -> ActivationRef {
        let number = self.base + number;
        ActivationRef { number: ActivationNumber(number), id: ActivationId(spread(number)) }
    }

    /// All that activations of this sequence can be called.
    fn all_at(&self) -> Vec<ActivationId> {
        (0..KINDS)
            .flat_map(|code| (0..2).map(move |who| (code, who)))
            .flat_map(|(code, who)| {
                (0..self.known[who].given).map(move |given| place(code, who, given))
            })
            .map(|number| self.at(number).id)
            .collect()
    }

    fn limit(&self, limit: u8, allowed: u32) -> Counted {
        let ends = [100, 200, 30 * 3600];
        Counted {
            key: spread(self.base + u64::from(limit)),
            policy: Policy::ALL[usize::from(limit) % Policy::ALL.len()],
            window_end: Timestamp(BEGUN.0 + ends[usize::from(limit) % ends.len()]),
            allowed,
        }
    }

    fn event(&mut self, who: usize, about: &str) -> Write {
        let subject = format!("{}: server {who}, {about}", self.base);
        let event = Event::new(Action::Activated, Actor::Installer, self.now(), None);
        Write::Audit(Arc::new(Event { subject, ..event }))
    }

    /// What never changes of a record depends on its number alone: one that was never written may be
    /// the base of a change.
    fn new_code(&self, code: u8, number: u64) -> Code {
        Code {
            number: CodeNumber(self.base + number),
            hash: self.code_hash(code),
            product: ProductLetters::parse("SD").unwrap(),
            session: hash(9),
            issued_at: BEGUN,
            expires_at: BEGUN.plus(300),
            activations: 0,
            state: CodeState::Issued,
            version: 1,
        }
    }

    fn new_activation(&mut self, who: usize, code: u8, slip: Slip) -> Activation {
        let given =
            self.known[who].given - u64::from(slip == Slip::Taken && self.known[who].given > 0);
        self.known[who].given = given + 1;
        Activation {
            at: self.at(place(code, who, given)),
            code: self.code_hash(code),
            request: Arc::new(Request {
                holder: Holder { machine: hash(1), fingerprint: hash(2) },
                binding: Binding {
                    hostname: HostName::parse("a.example.com").unwrap(),
                    public_ip: [8, 8, 8, 8].into(),
                },
                requested_ref: "main".into(),
                installer_version: "1".into(),
                signing_key: "k1".into(),
            }),
            opened_at: BEGUN,
            expires_at: BEGUN.plus(600),
            state: ActivationState::Open,
            version: 1,
        }
    }

    /// The activation that is to be closed: the code's holder, or another of the code.
    fn to_close(&self, who: usize, code: &Code, slip: Slip) -> Option<Activation> {
        let CodeState::Consumed(by) = code.state else { return None };
        let known = &self.known[who].activations;
        let other = |one: &&Activation| one.code == code.hash && one.at.id != by.id;
        let other = known.values().find(other).filter(|_| slip == Slip::Another);
        other.or_else(|| known.get(&by.id)).cloned()
    }

    /// The writes of a change, with what the server then knows; `None` where it knows nothing that it
    /// could be decided on.
    fn decide(&mut self, who: usize, decision: &Move) -> Option<Change> {
        let mut writes = match *decision {
            Move::Issue(code) => vec![Write::Code(self.new_code(code, code.into()))],
            Move::IssueBeside(code) => {
                vec![Write::Code(self.new_code(code, u64::from(KINDS + code)))]
            }
            Move::Open(code, slip) => {
                let before = self.known[who].codes.get(&code)?.clone();
                let opened = self.new_activation(who, code, slip);
                let code = (slip != Slip::Torn).then(|| consumed(&before, &opened));
                code.into_iter().chain([Write::Activation(opened)]).collect()
            }
            Move::Replace(code, slip) => {
                let before = self.known[who].codes.get(&code)?.clone();
                let closed = self.to_close(who, &before, slip)?;
                let opened = self.new_activation(who, code, slip);
                let closed = closed_as(closed, ActivationState::Released(self.now()));
                let rest = [consumed(&before, &opened), Write::Activation(opened)];
                (slip != Slip::Torn).then_some(closed).into_iter().chain(rest).collect()
            }
            Move::Release(code, slip) => {
                let before = self.known[who].codes.get(&code)?.clone();
                let closed = self.to_close(who, &before, slip)?;
                let closed = closed_as(closed, ActivationState::Released(self.now()));
                let version = before.version + 1;
                let back = Write::Code(Code { state: CodeState::Issued, version, ..before });
                (slip != Slip::Torn).then_some(closed).into_iter().chain([back]).collect()
            }
            Move::Confirm(code, slip) => {
                let before = self.known[who].codes.get(&code)?.clone();
                let closed = self.to_close(who, &before, slip)?;
                vec![closed_as(closed, ActivationState::Confirmed(self.now()))]
            }
            Move::Prolong(code, _) => {
                let before = self.known[who].codes.get(&code)?.clone();
                let (expires_at, version) = (self.now(), before.version + 1);
                vec![Write::Code(Code { expires_at, version, ..before })]
            }
            Move::Register(server) => {
                let last_checkin = self.now();
                vec![Write::Server(Server {
                    number: NOBODY,
                    id: self.server_id(server),
                    ip: [8, 8, 8, server].into(),
                    hostname: "s.example.com".into(),
                    registered_at: BEGUN,
                    last_checkin,
                    token: hash(3),
                    revoked: false,
                    note: String::new(),
                    version: 1,
                })]
            }
            Move::Change(server, _) => {
                let before = self.known[who].servers.get(&server)?.clone();
                let last_checkin = self.now();
                let hostname = format!("s{}.example.com", last_checkin.0);
                let (revoked, version) = (!before.revoked, before.version + 1);
                vec![Write::Server(Server { hostname, last_checkin, revoked, version, ..before })]
            }
            Move::Set(key, to) => {
                let value = to.map(|to| to.to_string());
                vec![Write::Setting(Setting { key: self.key(key), value })]
            }
            Move::Try(code) => {
                let event = Event::new(Action::Activated, Actor::Installer, self.now(), None);
                let code = Some(self.code_hash(code));
                return Some(Change(vec![Write::Attempt(Event { code, ..event })]));
            }
            Move::Note => Vec::new(),
        };
        writes.push(self.event(who, &about(decision)));
        if let Some(first) = writes.first_mut() {
            mistake(first, slip_of(decision));
        }
        self.believe(who, &writes);
        Some(Change(writes))
    }

    /// Changes of a batch are decided on those before them.
    fn believe(&mut self, who: usize, writes: &[Write]) {
        let hashes: Vec<CodeHash> = (0..KINDS).map(|code| self.code_hash(code)).collect();
        let ids: Vec<ServerId> = (0..KINDS).map(|server| self.server_id(server)).collect();
        let known = &mut self.known[who];
        for write in writes {
            match write {
                Write::Code(code) => {
                    let place = hashes.iter().position(|hash| *hash == code.hash).unwrap();
                    known.codes.insert(u8::try_from(place).unwrap(), code.clone());
                }
                Write::Activation(one) => drop(known.activations.insert(one.at.id, one.clone())),
                // A new one has its number from the database.
                Write::Server(server) if server.version > 1 => {
                    let place = ids.iter().position(|id| *id == server.id).unwrap();
                    known.servers.insert(u8::try_from(place).unwrap(), server.clone());
                }
                _ => {}
            }
        }
    }

    /// Updates the server's knowledge from the store.
    fn look(&mut self, who: usize, stored: &Stored) {
        let known = &mut self.known[who];
        let some = |(place, code): (u8, &Option<Code>)| Some((place, code.clone()?));
        known.codes = (0..).zip(&stored.codes).filter_map(some).collect();
        let activations = stored.activations.iter().flatten();
        known.activations = activations.map(|one| (one.at.id, one.clone())).collect();
        let some = |(place, server): (u8, &Option<Server>)| Some((place, server.clone()?));
        known.servers = (0..).zip(&stored.servers).filter_map(some).collect();
    }

    /// The same changes as this database's servers would send them: it gave the numbers of servers.
    fn numbered(&self, side: &Side<'_>, changes: &[Change]) -> Vec<Change> {
        let number = |mut write: Write| {
            if let Write::Server(server) = &mut write {
                let found = side.shared(0).servers_of(&[server.id]).unwrap().pop().flatten();
                server.number = found.map_or(NOBODY, |found| found.number);
            }
            write
        };
        let of = |change: &Change| Change(change.0.iter().cloned().map(number).collect());
        changes.iter().map(of).collect()
    }

    fn stored(&self, side: &Side<'_>, who: usize) -> Stored {
        let store = side.stores[who];
        let unnumbered = |server: Server| Server { number: NOBODY, ..server };
        let hashes: Vec<CodeHash> = (0..KINDS).map(|code| self.code_hash(code)).collect();
        let ids: Vec<ServerId> = (0..KINDS).map(|server| self.server_id(server)).collect();
        let first = self.base - 1;
        let in_order = store.servers_before(None, usize::from(KINDS)).unwrap();
        let in_order = in_order.into_iter().filter(|server| ids.contains(&server.id));
        let own = format!("{}.", self.base);
        let settings = store.settings().unwrap();
        Stored {
            codes: store.codes(&hashes).unwrap(),
            activations: store.activations(&self.all_at()).unwrap(),
            codes_in_order: store.oldest_codes(Some(CodeNumber(first)), 100).unwrap(),
            activations_in_order: store
                .oldest_activations(Some(ActivationNumber(first)), 100)
                .unwrap(),
            servers: side
                .shared(who)
                .servers_of(&ids)
                .unwrap()
                .into_iter()
                .map(|server| server.map(unnumbered))
                .collect(),
            servers_in_order: in_order.map(unnumbered).collect(),
            settings: settings.into_iter().filter(|(key, _)| key.starts_with(&own)).collect(),
            epoch: side.epoch - side.began,
        }
    }

    /// Takes a step on one of the databases, and describes the answer.
    fn does(&self, side: &mut Side<'_>, step: &Step, changes: &[Change]) -> String {
        match step {
            Step::Commit(who, ..) | Step::Forget(who, _) => {
                let changes = self.numbered(side, changes);
                let verdicts: Vec<Verdict> = side.stores[*who].commit(&changes).unwrap();
                let mark = side.stores[*who].watermark().unwrap();
                format!("{verdicts:?}, in epoch {}", mark.epoch - side.began)
            }
            Step::Look(_) => String::new(),
            Step::BeginEpoch(who, passed) => {
                let last =
                    Watermark { epoch: side.epoch - u64::from(*passed), ..Watermark::default() };
                let at = Timestamp(BEGUN.0 + self.changes);
                side.epoch = side.stores[*who].begin_epoch(&last, "a test", at).unwrap();
                format!("epoch {}", side.epoch - side.began)
            }
            Step::Charge(who, requests, allowed) => {
                let limits = |request: &Vec<u8>| {
                    request.iter().map(|limit| self.limit(*limit, *allowed)).collect()
                };
                let requests = requests.iter().map(limits).collect();
                format!("{:?}", side.shared(*who).charge(requests).unwrap())
            }
            Step::GiveBack(who, limits) => {
                let place = |limit: &u8| {
                    let limit = self.limit(*limit, 0);
                    (limit.key, limit.window_end)
                };
                side.shared(*who).give_back(limits.iter().map(place).collect()).unwrap();
                String::new()
            }
            Step::ForgetCounters(who, at) => {
                side.shared(*who).forget_counters(Timestamp(BEGUN.0 + at), u32::MAX).unwrap();
                String::new()
            }
            Step::CheckIn(who, server, at) => {
                let id = self.server_id(*server);
                let found = side.shared(*who).servers_of(&[id]).unwrap().pop().flatten();
                let Some(found) = found else { return "nobody".into() };
                let seen = CheckIn { server: found.number, at: Timestamp(BEGUN.0 + at) };
                let left = side.shared(*who).check_in(vec![CheckInOf { seen, id }]).unwrap();
                format!("{} left", left.len())
            }
        }
    }

    /// The changes of a step.
    fn changes(&mut self, step: &Step) -> Vec<Change> {
        match step {
            Step::Commit(who, moves, _) => {
                moves.iter().filter_map(|decision| self.decide(*who, decision)).collect()
            }
            Step::Forget(who, code) => {
                let known = &self.known[*who];
                let Some(code) = known.codes.get(code) else { return Vec::new() };
                let of_code = known.activations.values().filter(|one| one.code == code.hash);
                let forget = |one: &Activation| Write::ForgetActivation(one.at.number, one.version);
                let writes =
                    of_code.map(forget).chain([Write::ForgetCode(code.number, code.version)]);
                writes.map(|write| Change(vec![write])).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The place of an activation's number in its sequence. Two servers never give the same.
const fn place(code: u8, who: usize, given: u64) -> u64 {
    1000 + 1000 * code as u64 + 500 * who as u64 + given
}

fn consumed(before: &Code, by: &Activation) -> Write {
    let (state, version) = (CodeState::Consumed(by.at), before.version + 1);
    Write::Code(Code { state, version, activations: before.activations + 1, ..before.clone() })
}

fn closed_as(one: Activation, state: ActivationState) -> Write {
    Write::Activation(Activation { state, version: one.version + 1, ..one })
}

/// The subject of an event. The events of each record have one order.
fn about(decision: &Move) -> String {
    match decision {
        Move::Issue(code)
        | Move::IssueBeside(code)
        | Move::Open(code, _)
        | Move::Replace(code, _)
        | Move::Release(code, _)
        | Move::Confirm(code, _)
        | Move::Prolong(code, _)
        | Move::Try(code) => format!("code {code}"),
        Move::Register(server) | Move::Change(server, _) => format!("registered {server}"),
        Move::Set(..) => "settings".into(),
        Move::Note => "nothing".into(),
    }
}

const fn slip_of(decision: &Move) -> Slip {
    match decision {
        Move::Open(_, slip)
        | Move::Replace(_, slip)
        | Move::Release(_, slip)
        | Move::Confirm(_, slip)
        | Move::Prolong(_, slip)
        | Move::Change(_, slip) => *slip,
        _ => Slip::None,
    }
}

/// Moves the version of a record that is changed, not of one that is new.
fn mistake(write: &mut Write, slip: Slip) {
    let version: &mut Version = match write {
        Write::Code(code) => &mut code.version,
        Write::Activation(one) => &mut one.version,
        Write::Server(server) => &mut server.version,
        _ => return,
    };
    match slip {
        Slip::Older if *version > 2 => *version -= 1,
        Slip::Newer if *version > 1 => *version += 1,
        _ => {}
    }
}

/// The events of a sequence by server and by what they are about, in their order.
fn by_order(events: impl Iterator<Item = Event>, base: u64) -> BTreeMap<String, Vec<Timestamp>> {
    let mut orders: BTreeMap<String, Vec<Timestamp>> = BTreeMap::new();
    let own = format!("{base}: ");
    for event in events.filter(|event| event.subject.starts_with(&own)) {
        orders.entry(event.subject).or_default().push(event.at);
    }
    orders
}

/// The engine, and how many sequences it has seen.
struct Engine {
    stores: [PostgresStore; 2],
    epoch: u64,
    sequences: u64,
}

impl Engine {
    fn new(url: &str) -> Self {
        let stores = [PostgresStore::open(url).unwrap(), PostgresStore::open(url).unwrap()];
        let epoch = stores[0].watermark().unwrap().epoch;
        Self { stores, epoch, sequences: 0 }
    }

    /// Runs a sequence on both databases, and describes any difference.
    fn differs(&mut self, steps: &[Step], planted: &Planted) -> Result<(), String> {
        let model = Database::new(Standby::Synchronous, Chance::new(1), planted.clone());
        model.spare();
        let connections: [Connection; 2] = [model.open().unwrap(), model.open().unwrap()];
        self.sequences += 1;
        let mut sequence =
            Sequence { base: self.sequences * 10_000, known: Default::default(), changes: 0 };
        let [one, other] = &self.stores;
        let [first, second] = &connections;
        let before = one.audit_head().unwrap().entries;
        let mut real = Side { stores: [one, other], began: self.epoch, epoch: self.epoch };
        let mut modelled = Side { stores: [first, second], began: 1, epoch: 1 };
        // A server learns of an epoch with its next commit.
        real.stores.iter().chain(&modelled.stores).for_each(|store| drop(store.commit(&[])));
        for (place, step) in steps.iter().enumerate() {
            let changes = sequence.changes(step);
            let told = |side: &mut Side<'_>| {
                let answered = sequence.does(side, step, &changes);
                (answered, sequence.stored(side, place % 2))
            };
            let (of_engine, of_model) = (told(&mut real), told(&mut modelled));
            self.epoch = real.epoch;
            if of_engine != of_model {
                return Err(format!(
                    "step {place}: {step:?}\n{changes:#?}\nengine {of_engine:#?}\nmodel {of_model:#?}"
                ));
            }
            match step {
                Step::Commit(who, _, true) | Step::Look(who) => sequence.look(*who, &of_engine.1),
                _ => {}
            }
        }
        let mut events = Vec::new();
        let each = &mut |entry: iptunnel_storage::Entry| {
            events.push(entry.event);
            true
        };
        one.audit_from(before + 1, each).unwrap();
        let of_engine = by_order(events.into_iter(), sequence.base);
        let modelled_events = model.events_from(0).into_iter().map(|(_, event)| event);
        let of_model = by_order(modelled_events, sequence.base);
        if of_engine != of_model {
            return Err(format!("the logs: engine {of_engine:#?}\nmodel {of_model:#?}"));
        }
        Ok(())
    }

    /// Plays many; the shortest that differs, and how.
    fn compare(&mut self, sequences: u32, planted: &Planted) -> Option<String> {
        let config = Config {
            cases: sequences,
            failure_persistence: None,
            max_shrink_iters: 300,
            ..Config::default()
        };
        let engine = std::cell::RefCell::new(self);
        let outcome = TestRunner::new(config).run(&steps(), |steps| {
            engine.borrow_mut().differs(&steps, planted).map_err(TestCaseError::fail)
        });
        match outcome {
            Ok(()) => None,
            Err(TestError::Fail(how, steps)) => Some(format!("{how}\n{steps:#?}")),
            Err(TestError::Abort(why)) => panic!("{why}"),
        }
    }
}

/// A database of the test's own.
struct Fresh {
    cluster: String,
    name: String,
}

impl Fresh {
    fn new(name: &str) -> Self {
        let cluster = std::env::var("TEST_POSTGRES").expect("scripts/test starts a cluster");
        let name = format!("{name}_{}", std::process::id());
        let fresh = Self { cluster, name };
        fresh.execute(&format!("CREATE DATABASE {}", fresh.name));
        fresh
    }

    fn execute(&self, sql: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let url = format!("{}/postgres", self.cluster);
            let (client, connection) =
                tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            client.batch_execute(sql).await.unwrap();
        });
    }

    fn engine(&self) -> Engine {
        Engine::new(&format!("{}/{}", self.cluster, self.name))
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        self.execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
    }
}

#[test]
fn the_model_of_the_database_does_what_the_database_does() {
    let database = Fresh::new("model");
    let difference = database.engine().compare(200, &Planted::default());
    assert!(difference.is_none(), "{}", difference.unwrap());
}

#[test]
fn a_model_that_judges_a_guard_otherwise_is_found_out() {
    let database = Fresh::new("wrong_model");
    let mut engine = database.engine();
    for fault in [Fault::NoGuard, Fault::GuardByVersion, Fault::KeepCharges] {
        let difference = engine.compare(200, &Planted(vec![fault]));
        assert!(difference.is_some(), "{fault:?} makes no difference");
    }
}
