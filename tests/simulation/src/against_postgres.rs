//! Compares the model of the shared database with the real engine. Two servers take the same steps on both,
//! one at a time. Every verdict, and everything that can be read afterwards, must be the same. Waits for the
//! standby and broken connections are not compared. `scripts/test` starts a cluster and sets `TEST_POSTGRES`.
//! The sequences are always the same ones. `PROPTEST_RNG_SEED=7 PROPTEST_CASES=10000` makes others, and more.
//!
//! Servers decide on the records they read last, so guards hold and fail as in reality. Some changes are
//! decided wrongly on purpose. Two cases never happen and are left out: activations of two codes with the
//! same id or number, and a record that is forgotten in the batch that changes it.

use crate::chance::Chance;
use crate::database::{Connection, Database, Standby};
use crate::planted::{Fault, Planted};
use iptunnel_domain::access::{AccessToken, Role, TokenNumber};
use iptunnel_domain::activation::{
    Activation, ActivationId, ActivationNumber, ActivationRef, ActivationState, Binding, Holder,
    Request,
};
use iptunnel_domain::address::HostName;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::code::{Code, CodeHash, CodeNumber, CodeState, ProductLetters};
use iptunnel_domain::import::Listed;
use iptunnel_domain::limit::Policy;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{EnrolledBy, Server, ServerId, ServerNumber};
use iptunnel_domain::{Timestamp, Version};
use iptunnel_storage::{
    AuditLog, Change, CheckIn, CheckInOf, Counted, Epochs, PostgresStore, Setting, Shared, Store,
    Verdict, Watermark, Write,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The number of codes, registered servers, settings and limits in each sequence.
const KINDS: u8 = 3;
/// The start time of all sequences.
const BEGUN: Timestamp = Timestamp(1_700_000_000);
/// The seed of the sequences, unless `PROPTEST_RNG_SEED` names another: a test never fails by chance.
const USUAL_SEED: u64 = 1;
/// A number of no server.
const NO_NUMBER: ServerNumber = ServerNumber(i32::MAX as u32);

/// One step of the first or the second server.
#[derive(Clone, Debug)]
enum Step {
    /// Commits a batch. The last field says whether the server then reads everything again.
    Commit(usize, Vec<Decision>, bool),
    /// Reads everything again.
    Look(usize),
    /// Forgets a code and all its activations, each at the version that the server knows.
    Forget(usize, u8),
    /// Deletes a server at the version that the server knows, or at a wrong one.
    Unregister(usize, u8, bool),
    /// Begins an epoch after the current one, or asks for one after an earlier epoch.
    BeginEpoch(usize, bool),
    /// Charges requests, each against some limits with their allowances.
    Charge(usize, Vec<Vec<u8>>, u32),
    /// Gives charges back.
    GiveBack(usize, Vec<u8>),
    /// Forgets counters, at this many seconds after the start time.
    ForgetCounters(usize, u64),
    /// Checks a server in, at this many seconds after the start time.
    CheckIn(usize, u8, u64),
}

/// A change that is decided on the records the server knows.
#[derive(Clone, Debug)]
enum Decision {
    /// Issues a code.
    Issue(u8),
    /// Issues a code under another number, though its hash may already exist.
    IssueBeside(u8),
    /// Opens an activation for a machine.
    Open(u8, Mistake),
    /// Replaces the open activation with one for another host of the same machine.
    Replace(u8, Mistake),
    /// Releases the activation and restores the code.
    Release(u8, Mistake),
    /// Confirms the activation.
    Confirm(u8, Mistake),
    /// Prolongs a code.
    Prolong(u8, Mistake),
    /// Registers a server for the first time.
    Register(u8),
    /// Imports a server that has the address of the next one.
    Import(u8),
    /// Registers a server again, and revokes or restores it.
    Change(u8, Mistake),
    /// Creates an access token or changes it: its name, and whether it is revoked.
    Grant(u8, u8, bool, Mistake),
    /// Uses an access token, at this many seconds after the start time.
    Use(u8, u64),
    /// Sets or removes a setting.
    Set(u8, Option<u8>),
    /// Records an attempt on a code.
    Try(u8),
    /// Writes only an audit event.
    Note,
}

/// The mistake in a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// It is based on an older version of its first record.
    Older,
    /// It is based on a newer version of its first record.
    Newer,
    /// It lacks a part: the consumed code, or the activation to close.
    Torn,
    /// It closes another activation of the code, if there is one.
    Another,
    /// It gives an activation a number that was given before.
    Taken,
}

fn decisions() -> impl Strategy<Value = Decision> {
    let which = || 0..KINDS;
    let mistake = || {
        prop_oneof![
            12 => Just(Mistake::None),
            1 => Just(Mistake::Older),
            1 => Just(Mistake::Newer),
            1 => Just(Mistake::Torn),
            1 => Just(Mistake::Another),
            1 => Just(Mistake::Taken),
        ]
    };
    prop_oneof![
        3 => which().prop_map(Decision::Issue),
        1 => which().prop_map(Decision::IssueBeside),
        5 => (which(), mistake()).prop_map(|(code, mistake)| Decision::Open(code, mistake)),
        3 => (which(), mistake()).prop_map(|(code, mistake)| Decision::Replace(code, mistake)),
        4 => (which(), mistake()).prop_map(|(code, mistake)| Decision::Release(code, mistake)),
        2 => (which(), mistake()).prop_map(|(code, mistake)| Decision::Confirm(code, mistake)),
        1 => (which(), mistake()).prop_map(|(code, mistake)| Decision::Prolong(code, mistake)),
        2 => which().prop_map(Decision::Register),
        1 => which().prop_map(Decision::Import),
        2 => (which(), mistake()).prop_map(|(server, mistake)| Decision::Change(server, mistake)),
        2 => (which(), which(), any::<bool>(), mistake()).prop_map(
            |(token, name, revoked, mistake)| Decision::Grant(token, name, revoked, mistake)),
        1 => (which(), 0..300_u64).prop_map(|(token, at)| Decision::Use(token, at)),
        2 => (which(), proptest::option::of(any::<u8>())).prop_map(|(key, to)| Decision::Set(key, to)),
        1 => which().prop_map(Decision::Try),
        1 => Just(Decision::Note),
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
        24 => (who(), proptest::collection::vec(decisions(), 0..5), any::<bool>())
            .prop_map(|(who, decisions, looks)| Step::Commit(who, decisions, looks)),
        4 => who().prop_map(Step::Look),
        2 => (who(), 0..KINDS).prop_map(|(who, code)| Step::Forget(who, code)),
        2 => (who(), 0..KINDS, proptest::bool::weighted(0.8))
            .prop_map(|(who, server, right)| Step::Unregister(who, server, right)),
        1 => (who(), any::<bool>()).prop_map(|(who, passed)| Step::BeginEpoch(who, passed)),
        4 => (who(), requests, 0..4_u32)
            .prop_map(|(who, requests, allowed)| Step::Charge(who, requests, allowed)),
        2 => (who(), some(3)).prop_map(|(who, limits)| Step::GiveBack(who, limits)),
        1 => (who(), seconds()).prop_map(|(who, at)| Step::ForgetCounters(who, at)),
        2 => (who(), 0..KINDS, seconds()).prop_map(|(who, id, at)| Step::CheckIn(who, id, at)),
    ];
    proptest::collection::vec(step, 1..24)
}

/// The records as a server knows them.
#[derive(Clone, Default)]
struct Known {
    codes: BTreeMap<u8, Code>,
    activations: BTreeMap<ActivationId, Activation>,
    servers: BTreeMap<u8, Server>,
    tokens: BTreeMap<u8, AccessToken>,
    /// The number of activation numbers it has given.
    given: u64,
}

/// Two servers over one of the two databases.
struct Side<'a> {
    stores: [&'a dyn Store; 2],
    /// The epoch at the start.
    began: u64,
    /// The current epoch.
    epoch: u64,
}

impl Side<'_> {
    fn shared(&self, who: usize) -> &dyn Shared {
        self.stores[who].shared().unwrap()
    }
}

/// A sequence of steps, with its own records in both databases.
struct Sequence {
    base: u64,
    known: [Known; 2],
    /// The number of changes so far. Each has its own time.
    changes: u64,
}

/// Everything that can be read of a sequence's records.
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
    /// The servers at the addresses, without their numbers.
    servers_at: Vec<Option<Server>>,
    /// How many servers each access token has enrolled.
    enrolled: Vec<u64>,
    tokens: Vec<AccessToken>,
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

    fn token(&self, token: u8) -> TokenNumber {
        TokenNumber((self.base / 1000) as u32 + u32::from(token))
    }

    fn key(&self, key: u8) -> String {
        format!("{}.key_{key}", self.base)
    }

    fn at(&self, number: u64) -> ActivationRef {
        let number = self.base + number;
        ActivationRef { number: ActivationNumber(number), id: ActivationId(spread(number)) }
    }

    /// All ids that activations of this sequence may have.
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
        let ends = [100, 200, 20 * 3600];
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

    /// The fixed fields of a record depend only on its number, because a change may be based on a record that
    /// was never written.
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

    fn new_activation(&mut self, who: usize, code: u8, mistake: Mistake) -> Activation {
        let given = self.known[who].given
            - u64::from(mistake == Mistake::Taken && self.known[who].given > 0);
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

    /// Returns the activation to close: the one that holds the code, or another one of the code.
    fn to_close(&self, who: usize, code: &Code, mistake: Mistake) -> Option<Activation> {
        let CodeState::Consumed(by) = code.state else { return None };
        let known = &self.known[who].activations;
        let other = |one: &&Activation| one.code == code.hash && one.at.id != by.id;
        let other = known.values().find(other).filter(|_| mistake == Mistake::Another);
        other.or_else(|| known.get(&by.id)).cloned()
    }

    /// Decides on a change and updates the server's knowledge. Returns `None` if the server knows no record
    /// for it.
    fn decide(&mut self, who: usize, decision: &Decision) -> Option<Change> {
        let mut writes = match *decision {
            Decision::Issue(code) => vec![Write::Code(self.new_code(code, code.into()))],
            Decision::IssueBeside(code) => {
                vec![Write::Code(self.new_code(code, u64::from(KINDS + code)))]
            }
            Decision::Open(code, mistake) => {
                let before = self.known[who].codes.get(&code)?.clone();
                let opened = self.new_activation(who, code, mistake);
                let code = (mistake != Mistake::Torn).then(|| consumed(&before, &opened));
                code.into_iter().chain([Write::Activation(opened)]).collect()
            }
            Decision::Replace(code, mistake) => {
                let before = self.known[who].codes.get(&code)?.clone();
                let closed = self.to_close(who, &before, mistake)?;
                let opened = self.new_activation(who, code, mistake);
                let closed = closed_as(closed, ActivationState::Released(self.now()));
                let rest = [consumed(&before, &opened), Write::Activation(opened)];
                (mistake != Mistake::Torn).then_some(closed).into_iter().chain(rest).collect()
            }
            Decision::Release(code, mistake) => {
                let before = self.known[who].codes.get(&code)?.clone();
                let closed = self.to_close(who, &before, mistake)?;
                let closed = closed_as(closed, ActivationState::Released(self.now()));
                let version = before.version + 1;
                let back = Write::Code(Code { state: CodeState::Issued, version, ..before });
                (mistake != Mistake::Torn).then_some(closed).into_iter().chain([back]).collect()
            }
            Decision::Confirm(code, mistake) => {
                let before = self.known[who].codes.get(&code)?.clone();
                let closed = self.to_close(who, &before, mistake)?;
                vec![closed_as(closed, ActivationState::Confirmed(self.now()))]
            }
            Decision::Prolong(code, _) => {
                let before = self.known[who].codes.get(&code)?.clone();
                let (expires_at, version) = (self.now(), before.version + 1);
                vec![Write::Code(Code { expires_at, version, ..before })]
            }
            Decision::Register(server) => {
                let last_checkin = self.now();
                vec![Write::Server(Server {
                    number: NO_NUMBER,
                    id: self.server_id(server),
                    address_id: self.server_id(server),
                    ip: [8, 8, 8, server].into(),
                    hostname: "s.example.com".into(),
                    registered_at: BEGUN,
                    last_checkin,
                    token: Some(hash(3)),
                    enrolled_by: EnrolledBy::Unknown,
                    credential_ms: 0,
                    revoked: false,
                    deleted: false,
                    changed_here: true,
                    note: String::new(),
                    version: 1,
                })]
            }
            Decision::Import(server) => {
                let now = self.now();
                let listed = Listed {
                    id: self.server_id(server),
                    ip: [8, 8, 8, server].into(),
                    hostname: String::new(),
                    registered_at: BEGUN,
                    last_checkin: now,
                    revoked: server == 1,
                    note: String::new(),
                };
                let address = self.server_id((server + 1) % KINDS);
                vec![Write::Server(Server::import(NO_NUMBER, address, listed))]
            }
            Decision::Grant(token, name, revoked, _) => {
                let now = self.now();
                let before = self.known[who].tokens.get(&token);
                let number = self.token(token);
                let name = format!("{}.name_{name}", self.base);
                let revoked_at = revoked.then_some(now);
                let granted = match before {
                    Some(before) => AccessToken { name, revoked_at, ..before.changed() },
                    None => AccessToken {
                        number,
                        name,
                        role: Role::View,
                        secret: hash(u64::from(token)),
                        previous: None,
                        created_at: BEGUN,
                        expires_at: Some(BEGUN.plus(300)),
                        networks: Vec::new(),
                        addresses: Vec::new(),
                        max_servers: 3,
                        last_used: Timestamp(0),
                        revoked_at,
                        version: 1,
                    },
                };
                vec![Write::AccessToken(granted)]
            }
            Decision::Use(token, at) => {
                self.known[who].tokens.get(&token)?;
                vec![Write::TokenUses(vec![(self.token(token), BEGUN.plus(at))])]
            }
            Decision::Change(server, _) => {
                let before = self.known[who].servers.get(&server)?.clone();
                let last_checkin = self.now();
                let hostname = format!("s{}.example.com", last_checkin.0);
                let (revoked, version) = (!before.revoked, before.version + 1);
                vec![Write::Server(Server {
                    hostname,
                    last_checkin,
                    revoked,
                    deleted: revoked && last_checkin.0.is_multiple_of(3),
                    enrolled_by: EnrolledBy::Token(self.token(server)),
                    credential_ms: last_checkin.0 * 1000,
                    version,
                    ..before
                })]
            }
            Decision::Set(key, to) => {
                let value = to.map(|to| to.to_string());
                vec![Write::Setting(Setting { key: self.key(key), value })]
            }
            Decision::Try(code) => {
                let event = Event::new(Action::Activated, Actor::Installer, self.now(), None);
                let code = Some(self.code_hash(code));
                return Some(Change(vec![Write::Attempt(Event { code, ..event })]));
            }
            Decision::Note => Vec::new(),
        };
        writes.push(self.event(who, &about(decision)));
        if let Some(first) = writes.first_mut() {
            apply_mistake(first, mistake_of(decision));
        }
        self.remember(who, &writes);
        Some(Change(writes))
    }

    /// Updates the server's knowledge with its own writes. Later changes of the batch are based on them.
    fn remember(&mut self, who: usize, writes: &[Write]) {
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
                // The database gives the number to a new server.
                Write::Server(server) if server.version > 1 => {
                    let place = ids.iter().position(|id| *id == server.id).unwrap();
                    known.servers.insert(u8::try_from(place).unwrap(), server.clone());
                }
                Write::AccessToken(token) => {
                    let place = token.number.0 - (self.base / 1000) as u32;
                    known.tokens.insert(u8::try_from(place).unwrap(), token.clone());
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
        let first = (self.base / 1000) as u32;
        let place = |token: &AccessToken| u8::try_from(token.number.0 - first).unwrap();
        known.tokens = stored.tokens.iter().map(|token| (place(token), token.clone())).collect();
    }

    /// Returns the changes with the server numbers that this database gave.
    fn numbered(&self, side: &Side<'_>, changes: &[Change]) -> Vec<Change> {
        let number_of = |id: ServerId| {
            let found = side.shared(0).servers_of(&[id]).unwrap().pop().flatten();
            found.map_or(NO_NUMBER, |found| found.number)
        };
        let number = |mut write: Write| {
            match &mut write {
                Write::Server(server) => server.number = number_of(server.id),
                // It stands for the server's kind until here.
                Write::ForgetServer(ServerNumber(kind), version) => {
                    let id = self.server_id(u8::try_from(*kind).unwrap());
                    return Write::ForgetServer(number_of(id), *version);
                }
                _ => {}
            }
            write
        };
        let of = |change: &Change| Change(change.0.iter().cloned().map(number).collect());
        changes.iter().map(of).collect()
    }

    fn stored(&self, side: &Side<'_>, who: usize) -> Stored {
        let store = side.stores[who];
        let unnumbered = |server: Server| Server { number: NO_NUMBER, ..server };
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
            servers_at: side
                .shared(who)
                .servers_at(&ids)
                .unwrap()
                .into_iter()
                .map(|server| server.map(unnumbered))
                .collect(),
            enrolled: (0..KINDS)
                .map(|token| side.shared(who).enrolled(self.token(token)).unwrap())
                .collect(),
            tokens: store
                .access_tokens()
                .unwrap()
                .into_iter()
                .filter(|token| (0..KINDS).any(|kind| self.token(kind) == token.number))
                .collect(),
            settings: settings.into_iter().filter(|(key, _)| key.starts_with(&own)).collect(),
            epoch: side.epoch - side.began,
        }
    }

    /// Takes a step on one of the databases, and describes the answer.
    fn apply(&self, side: &mut Side<'_>, step: &Step, changes: &[Change]) -> String {
        match step {
            Step::Commit(who, ..) | Step::Forget(who, _) | Step::Unregister(who, ..) => {
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
                let Some(found) = found else { return "not registered".into() };
                let seen = CheckIn { server: found.number, at: Timestamp(BEGUN.0 + at) };
                let left = side.shared(*who).check_in(vec![CheckInOf { seen, id }]).unwrap();
                format!("{} left", left.len())
            }
        }
    }

    /// Returns the changes of a step.
    fn changes(&mut self, step: &Step) -> Vec<Change> {
        match step {
            Step::Commit(who, decisions, _) => {
                // Which of several tokens in one batch gets a name is not settled.
                let mut grants = 0;
                let mut is_one = |decision: &&Decision| {
                    grants += usize::from(matches!(decision, Decision::Grant(..)));
                    !matches!(decision, Decision::Grant(..)) || grants == 1
                };
                let decisions: Vec<&Decision> =
                    decisions.iter().filter(|one| is_one(one)).collect();
                decisions.into_iter().filter_map(|one| self.decide(*who, one)).collect()
            }
            Step::Unregister(who, server, right) => {
                let Some(known) = self.known[*who].servers.get(server) else { return Vec::new() };
                let version = known.version + u32::from(!right);
                let kind = ServerNumber(u32::from(*server));
                vec![Change(vec![Write::ForgetServer(kind, version)])]
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

/// The place of an activation's number in its sequence. Two servers never give the same number.
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

/// The subject of an event. The events of one record have an order.
fn about(decision: &Decision) -> String {
    match decision {
        Decision::Issue(code)
        | Decision::IssueBeside(code)
        | Decision::Open(code, _)
        | Decision::Replace(code, _)
        | Decision::Release(code, _)
        | Decision::Confirm(code, _)
        | Decision::Prolong(code, _)
        | Decision::Try(code) => format!("code {code}"),
        Decision::Register(server) | Decision::Import(server) | Decision::Change(server, _) => {
            format!("registered {server}")
        }
        Decision::Grant(token, ..) => format!("token {token}"),
        Decision::Use(..) => "uses".into(),
        Decision::Set(..) => "settings".into(),
        Decision::Note => "nothing".into(),
    }
}

const fn mistake_of(decision: &Decision) -> Mistake {
    match decision {
        Decision::Open(_, mistake)
        | Decision::Replace(_, mistake)
        | Decision::Release(_, mistake)
        | Decision::Confirm(_, mistake)
        | Decision::Prolong(_, mistake)
        | Decision::Change(_, mistake)
        | Decision::Grant(.., mistake) => *mistake,
        _ => Mistake::None,
    }
}

/// Changes the version of a changed record. New records keep theirs.
fn apply_mistake(write: &mut Write, mistake: Mistake) {
    let version: &mut Version = match write {
        Write::Code(code) => &mut code.version,
        Write::Activation(one) => &mut one.version,
        Write::Server(server) => &mut server.version,
        Write::AccessToken(token) => &mut token.version,
        _ => return,
    };
    match mistake {
        Mistake::Older if *version > 2 => *version -= 1,
        Mistake::Newer if *version > 1 => *version += 1,
        _ => {}
    }
}

/// Returns the times of a sequence's events in order, by server and record.
fn by_order(events: impl Iterator<Item = Event>, base: u64) -> BTreeMap<String, Vec<Timestamp>> {
    let mut orders: BTreeMap<String, Vec<Timestamp>> = BTreeMap::new();
    let own = format!("{base}: ");
    for event in events.filter(|event| event.subject.starts_with(&own)) {
        orders.entry(event.subject).or_default().push(event.at);
    }
    orders
}

/// The engine, with the number of sequences it has run.
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

    /// Runs a sequence on both databases. Returns a description of the first difference, if any.
    fn run_sequence(&mut self, steps: &[Step], planted: &Planted) -> Result<(), String> {
        let model = Database::new(Standby::Synchronous, Chance::new(1), planted.clone());
        model.keep_connections();
        let connections: [Connection; 2] = [model.open().unwrap(), model.open().unwrap()];
        self.sequences += 1;
        let mut sequence =
            Sequence { base: self.sequences * 10_000, known: Default::default(), changes: 0 };
        let [one, other] = &self.stores;
        let [first, second] = &connections;
        let before = one.audit_head().unwrap().entries;
        let mut real = Side { stores: [one, other], began: self.epoch, epoch: self.epoch };
        let mut modelled = Side { stores: [first, second], began: 1, epoch: 1 };
        // A server learns of a new epoch with its next commit.
        real.stores.iter().chain(&modelled.stores).for_each(|store| drop(store.commit(&[])));
        for (place, step) in steps.iter().enumerate() {
            let changes = sequence.changes(step);
            let answer_of = |side: &mut Side<'_>| {
                let answered = sequence.apply(side, step, &changes);
                (answered, sequence.stored(side, place % 2))
            };
            let (of_engine, of_model) = (answer_of(&mut real), answer_of(&mut modelled));
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
            return Err(format!("the audit logs: engine {of_engine:#?}\nmodel {of_model:#?}"));
        }
        Ok(())
    }

    /// Runs many sequences. Returns the shortest one with a difference, if any.
    fn compare(&mut self, planted: &Planted) -> Option<String> {
        let mut config =
            Config { failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
        if config.rng_seed == RngSeed::Random {
            config.rng_seed = RngSeed::Fixed(USUAL_SEED);
        }
        let seed = config.rng_seed;
        let engine = std::cell::RefCell::new(self);
        let outcome = TestRunner::new(config).run(&steps(), |steps| {
            engine.borrow_mut().run_sequence(&steps, planted).map_err(TestCaseError::fail)
        });
        match outcome {
            Ok(()) => None,
            Err(TestError::Fail(how, steps)) => {
                Some(format!("with PROPTEST_RNG_SEED={seed}: {how}\n{steps:#?}"))
            }
            Err(TestError::Abort(why)) => panic!("{why}"),
        }
    }
}

/// A database for one test.
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
fn the_model_of_the_database_behaves_like_the_database() {
    let database = Fresh::new("model");
    let difference = database.engine().compare(&Planted::default());
    assert!(difference.is_none(), "{}", difference.unwrap());
}

#[test]
fn the_model_and_the_database_refuse_a_change_of_a_server_that_was_deleted_since() {
    let database = Fresh::new("deleted");
    let mut engine = database.engine();
    for anew in [Decision::Register(1), Decision::Import(1)] {
        let steps = [
            Step::Commit(0, vec![Decision::Register(1)], true),
            Step::Look(1),
            Step::Unregister(1, 1, true),
            // The first server still knows the deleted record.
            Step::Commit(0, vec![anew, Decision::Change(1, Mistake::None)], true),
        ];
        if let Err(difference) = engine.run_sequence(&steps, &Planted::default()) {
            panic!("{difference}");
        }
    }
}

#[test]
fn the_model_and_the_database_give_an_address_to_the_same_server_of_a_batch() {
    let database = Fresh::new("address");
    let steps = [
        Step::Commit(0, vec![Decision::Register(1)], true),
        Step::Unregister(0, 1, true),
        // The import and the last registration are for the same address. The import comes later, because it
        // is the second change of its server.
        Step::Commit(
            0,
            vec![Decision::Change(1, Mistake::None), Decision::Import(1), Decision::Register(2)],
            true,
        ),
    ];
    if let Err(difference) = database.engine().run_sequence(&steps, &Planted::default()) {
        panic!("{difference}");
    }
}

#[test]
fn a_model_with_a_planted_fault_differs_from_the_database() {
    let database = Fresh::new("wrong_model");
    let mut engine = database.engine();
    for fault in [Fault::NoGuard, Fault::GuardByVersion, Fault::KeepCharges] {
        let difference = engine.compare(&Planted(vec![fault]));
        assert!(difference.is_some(), "the comparison does not find {fault:?}");
    }
}
