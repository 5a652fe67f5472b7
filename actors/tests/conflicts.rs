//! Several servers that share one store: guards that fail, commits that are refused, records that
//! cannot be read. These tests check the caller's answer and the state of the cache.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use arc_swap::ArcSwap;
use iptunnel_actors::activation::{Activated, Confirm, Release, ReleaseOutcome};
use iptunnel_actors::code_registry::{Activate, Issue, Issued, PrecheckCode};
use iptunnel_actors::server_registry::{CheckIn, CheckedIn, Delete, Filter, Register, SetRevoked};
use iptunnel_actors::stepped::{Step, Stepped};
use iptunnel_actors::{
    ActorSettings, Batches, Dependencies, Failure, Handles, Health, Limited, LimitedCommand,
    Metrics, Outcome, Pending,
};
use iptunnel_domain::access::{AccessToken, TokenNumber};
use iptunnel_domain::activation::{
    Activation, ActivationId, ActivationNumber, ActivationRef, Binding, Holder, Request,
};
use iptunnel_domain::address::HostName;
use iptunnel_domain::audit::{Action, Actor, Event, Head};
use iptunnel_domain::code::{Code, CodeHash, CodeNumber, CodeState, ProductLetters};
use iptunnel_domain::fleet::Silence;
use iptunnel_domain::limit::{Limits, Policy, Subject};
use iptunnel_domain::lookup::{KeyedHash, LookupKey};
use iptunnel_domain::server::{Bearer, Credential, EnrolledBy, Server, ServerId, ServerNumber};
use iptunnel_domain::time::Lifetimes;
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::{
    Attempts, AuditLog, Change, Charged, CheckInOf, CommitError, Counted, Counter, Disks,
    EmbeddedStore, Entry, Epochs, Finding, LastNumbers, Listener, ReadError, Records,
    Shared as SharedByServers, Store, Verdict, Watermark, Write,
};
use rand_core::SeedableRng;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::Duration;

type Read<T> = Result<T, ReadError>;
type PendingOutcome = std::pin::Pin<Box<dyn Future<Output = Outcome<()>>>>;

const NOW: Timestamp = Timestamp(1_000_000);
const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const PERMITS: usize = 64;
const DEADLINE: Duration = Duration::from_secs(30);
const GRANTED: Outcome<()> = Ok(Ok(()));
const OVERLOADED: Outcome<()> = Err(Failure::Overloaded);
const UNAVAILABLE: Outcome<()> = Err(Failure::StorageUnavailable);

/// A real store with faults and foreign changes that a test plans.
struct Shared {
    engine: EmbeddedStore,
    plan: Mutex<Plan>,
    /// Locked by a test while commits have to wait.
    busy: Mutex<()>,
    /// The charges by key.
    counters: Mutex<HashMap<u64, u32>>,
}

#[derive(Default)]
struct Plan {
    /// The number of changes of records still to be answered with a conflict and not written.
    conflicts: u8,
    /// The change that another server writes just before the next change of a record.
    elsewhere: Option<Change>,
    /// Whether commits are refused, and the refused changes.
    refusing: bool,
    refused: Vec<Change>,
    /// Whether the store neither reads nor counts.
    away: bool,
    /// The kind of record whose next lookup fails.
    unreadable: Option<&'static str>,
    /// What the primary shows of a server and no standby has: it is there until a test takes it out.
    unconfirmed: Option<Server>,
    /// The number of written changes of records.
    written: u32,
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap()
    }

    fn write(&self, change: &Change) -> Result<Verdict, CommitError> {
        Ok(self.engine.commit(std::slice::from_ref(change))?.remove(0))
    }

    fn commit_one(&self, plan: &mut Plan, change: &Change) -> Result<Verdict, CommitError> {
        let is_upkeep =
            |w: &Write| matches!(w, Write::CheckIns(_) | Write::Counters(_) | Write::Attempt(_));
        if change.0.iter().all(is_upkeep) {
            return self.write(change);
        }
        if plan.conflicts > 0 {
            plan.conflicts -= 1;
            return Ok(Verdict::Conflict);
        }
        if let Some(elsewhere) = plan.elsewhere.take() {
            assert_eq!(self.write(&elsewhere)?, Verdict::Written);
            assert_eq!(self.write(change)?, Verdict::Conflict, "{elsewhere:?}, then {change:?}");
            return Ok(Verdict::Conflict);
        }
        let verdict = self.write(change)?;
        plan.written += u32::from(verdict.is_written());
        let limits = change.limits().filter(|_| verdict.is_written());
        let Some(limits) = limits else { return Ok(verdict) };
        let charged = self.count(vec![limits.to_vec()]).remove(0);
        assert!(charged.granted, "no test here reaches a limit");
        Ok(Verdict::Charged(charged.used))
    }

    fn count(&self, requests: Vec<Vec<Counted>>) -> Vec<Charged> {
        let mut counters = self.counters.lock().unwrap();
        let charge = |request: Vec<Counted>| {
            let used = |one: &Counted| counters.get(&one.key).copied().unwrap_or(0);
            let granted = request.iter().all(|one| used(one) < one.allowed);
            let used = request.iter().map(|one| {
                let used = counters.entry(one.key).or_default();
                *used += u32::from(granted);
                *used
            });
            Charged { granted, used: used.collect() }
        };
        requests.into_iter().map(charge).collect()
    }

    fn read<T>(&self, kind: &str, read: impl FnOnce(&EmbeddedStore) -> Read<T>) -> Read<T> {
        self.is_there()?;
        let fails = self.plan().unreadable.take_if(|unreadable| *unreadable == kind).is_some();
        if fails { Err(planned_error()) } else { read(&self.engine) }
    }

    fn is_there(&self) -> Read<()> {
        if self.plan().away { Err(planned_error()) } else { Ok(()) }
    }
}

fn planned_error() -> ReadError {
    ReadError("planned by the test".into())
}

impl Store for Shared {
    fn commit(&self, changes: &[Change]) -> Result<Vec<Verdict>, CommitError> {
        let _busy = self.busy.lock().unwrap();
        let plan = &mut *self.plan();
        if plan.refusing {
            plan.refused.extend_from_slice(changes);
            return Err(CommitError::Refused("planned by the test".into()));
        }
        if changes.is_empty() {
            return self.engine.commit(changes);
        }
        changes.iter().map(|change| self.commit_one(plan, change)).collect()
    }
    /// Lets the server begin a commit before it has been told that the last one has ended.
    fn pace(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
    fn shared(&self) -> Option<&dyn SharedByServers> {
        Some(self)
    }
    fn close(&self) {
        self.engine.close();
    }
    fn follow(&self, listener: Listener) {
        self.engine.follow(listener);
    }
    fn settings(&self) -> Read<Vec<(String, String)>> {
        self.engine.settings()
    }

    fn agreed(&self, what: &str) -> Read<Option<KeyedHash>> {
        self.engine.agreed(what)
    }

    fn agree(&self, what: &str, hash: KeyedHash) -> Read<bool> {
        self.engine.agree(what, hash)
    }
}

impl Epochs for Shared {
    fn watermark(&self) -> Option<Watermark> {
        self.engine.watermark()
    }
    fn contains(&self, mark: &Watermark) -> Read<bool> {
        self.engine.contains(mark)
    }
    fn begin_epoch(&self, last: &Watermark, why: &str, now: Timestamp) -> Result<u64, CommitError> {
        self.engine.begin_epoch(last, why, now)
    }
}

impl Records for Shared {
    fn frontier(&self) -> Read<LastNumbers> {
        self.engine.frontier()
    }
    fn code(&self, hash: CodeHash) -> Read<Option<Code>> {
        self.read("code", |engine| engine.code(hash))
    }
    fn activation(&self, id: ActivationId) -> Read<Option<Activation>> {
        self.read("activation", |engine| engine.activation(id))
    }
    fn server(&self, number: ServerNumber) -> Read<Option<Server>> {
        self.read("server", |engine| engine.server(number))
    }
    fn servers_before(&self, before: Option<ServerNumber>, limit: usize) -> Read<Vec<Server>> {
        self.engine.servers_before(before, limit)
    }
    fn each_server(&self, each: &mut dyn FnMut(Server)) -> Read<()> {
        self.engine.each_server(each)
    }
    fn access_tokens(&self) -> Read<Vec<AccessToken>> {
        self.engine.access_tokens()
    }
    fn each_counter(&self, each: &mut dyn FnMut(u32, Counter)) -> Read<()> {
        self.engine.each_counter(each)
    }
    fn newest_codes(&self, limit: usize) -> Read<Vec<Code>> {
        self.engine.newest_codes(limit)
    }
    fn newest_activations(&self, limit: usize) -> Read<Vec<Activation>> {
        self.engine.newest_activations(limit)
    }
    fn oldest_codes(&self, after: Option<CodeNumber>, limit: usize) -> Read<Vec<Code>> {
        self.engine.oldest_codes(after, limit)
    }
    fn oldest_activations(
        &self,
        after: Option<ActivationNumber>,
        limit: usize,
    ) -> Read<Vec<Activation>> {
        self.engine.oldest_activations(after, limit)
    }
}

impl AuditLog for Shared {
    fn audit_head(&self) -> Read<Head> {
        self.engine.audit_head()
    }
    fn audit_from(&self, first: u64, each: &mut dyn FnMut(Entry) -> bool) -> Read<()> {
        self.engine.audit_from(first, each)
    }
    fn audit_before(&self, before: u64, each: &mut dyn FnMut(Entry) -> bool) -> Read<()> {
        self.engine.audit_before(before, each)
    }
    fn audit_number_at(&self, at: Timestamp) -> Read<u64> {
        self.engine.audit_number_at(at)
    }
    fn attempts(&self, code: CodeHash) -> Read<Attempts> {
        self.engine.attempts(code)
    }
}

impl Shared {
    fn servers_by(
        &self,
        keys: &[ServerId],
        key_of: fn(&Server) -> ServerId,
    ) -> Read<Vec<Option<Server>>> {
        self.read("server", |engine| {
            let mut found = HashMap::new();
            engine.each_server(&mut |server| {
                found.insert(key_of(&server), server);
            })?;
            if let Some(server) = &self.plan().unconfirmed {
                found.insert(key_of(server), server.clone());
            }
            Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
        })
    }
}

impl SharedByServers for Shared {
    fn process(&self) -> u32 {
        1
    }
    fn servers_of(&self, ids: &[ServerId]) -> Read<Vec<Option<Server>>> {
        self.servers_by(ids, |server| server.id)
    }
    fn servers_at(&self, addresses: &[ServerId]) -> Read<Vec<Option<Server>>> {
        self.servers_by(addresses, |server| server.address_id)
    }
    fn enrolled(&self, by: TokenNumber) -> Read<u64> {
        let mut count = 0;
        self.read("enrolled", |engine| {
            engine.each_server(&mut |server| {
                let is_enrolled = server.enrolled_by == EnrolledBy::Token(by);
                count += u64::from(is_enrolled && !server.revoked && !server.deleted);
            })
        })?;
        Ok(count)
    }
    fn check_in(&self, seen: Vec<CheckInOf>) -> Read<Vec<CheckInOf>> {
        if self.plan().refusing {
            return Err(planned_error());
        }
        let seen = Write::CheckIns(seen.into_iter().map(|one| one.seen).collect());
        let written = self.engine.commit(&[Change(vec![seen])]);
        written.map(|_| Vec::new()).map_err(|error| ReadError(error.to_string()))
    }
    fn seen_elsewhere(&self) -> Read<Vec<(ServerId, Timestamp)>> {
        Ok(Vec::new())
    }
    fn publish(&self, _: &str, _: KeyedHash) -> Read<u64> {
        Ok(0)
    }
    fn charge(&self, requests: Vec<Vec<Counted>>) -> Read<Vec<Charged>> {
        self.is_there()?;
        Ok(self.count(requests))
    }
    fn give_back(&self, counters: Vec<(u64, Timestamp)>) -> Read<()> {
        let mut counted = self.counters.lock().unwrap();
        for (key, _) in counters {
            *counted.entry(key).or_default() -= 1;
        }
        Ok(())
    }
    fn examine(&self) -> Read<Vec<Finding>> {
        Ok(Vec::new())
    }
    fn forget_counters(&self, _: Timestamp, _: u32) -> Read<()> {
        Ok(())
    }
    fn clock(&self) -> Read<u64> {
        Ok(0)
    }
}

/// The actors of one server on a shared store.
struct TestServer {
    store: Arc<Shared>,
    handles: Arc<Handles>,
    health: Arc<Health>,
    key: LookupKey,
}

/// Creates a store, and the folder that must live as long as the store.
fn store() -> (tempfile::TempDir, Arc<Shared>) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name| folder.path().join(name);
    let engine = EmbeddedStore::open(Disks::at(path("rows"), path("journal"))).unwrap();
    let store = Arc::new(Shared {
        engine,
        plan: Mutex::default(),
        busy: Mutex::default(),
        counters: Mutex::default(),
    });
    (folder, store)
}

fn with_test_server(run: impl AsyncFnOnce(&TestServer)) {
    let (_folder, store) = store();
    actix::System::new().block_on(async {
        let test = TestServer::start(store);
        run(&test).await;
        test.health.drain();
        test.handles.stop().await;
        assert!(!test.health.has_failed());
    });
}

fn parts(store: &Arc<Shared>, permits: usize) -> Dependencies {
    Dependencies {
        store: Arc::clone(store) as Arc<dyn Store>,
        tuning: Arc::new(ArcSwap::from_pointee(tuning())),
        permits,
        health: Arc::new(Health::default()),
        observed: Metrics::new(&mut prometheus_client::registry::Registry::default()),
        random: rand_chacha::ChaCha20Rng::seed_from_u64(1),
        lookup_key: LookupKey::new(&[7; LookupKey::BYTES]),
        now: NOW,
    }
}

fn tuning() -> ActorSettings {
    ActorSettings {
        forget_after_seconds: 0,
        silence: Silence { interval: 86_400, after_intervals: 3, share_percent: 20 },
        lifetimes: Lifetimes::default(),
        limits: Limits::new(|_| 100, 1000),
        retention_seconds: 86_400,
        checkin_flush_seconds: 1,
        batches: Batches {
            code_registry: 100,
            activation: 100,
            rate_limiter: 100,
            server_registry: 100,
            persistence: 100,
        },
    }
}

fn holder(machine: u8) -> Holder {
    let hash = KeyedHash([machine; 16]);
    Holder { machine: hash, fingerprint: hash }
}

fn request(machine: u8, host: &str) -> Arc<Request> {
    let hostname = HostName::parse(host).unwrap();
    let binding = Binding { hostname, public_ip: IpAddr::from([1, 2, 3, 4]) };
    Arc::new(Request {
        holder: holder(machine),
        binding,
        requested_ref: "main".into(),
        installer_version: "1".into(),
        signing_key: "k".into(),
    })
}

/// Waits for the outcome of a request, without its details.
async fn outcome_of<T>(pending: Pending<T>) -> Outcome<()> {
    pending.within(DEADLINE).await.outcome.map(|decision| decision.map(|_| ()))
}

async fn granted<T>(pending: Pending<T>) -> T {
    match pending.within(DEADLINE).await.outcome {
        Ok(Ok(answer)) => answer,
        Ok(Err(refusal)) => panic!("refused: {refusal:?}"),
        Err(failure) => panic!("failed: {failure:?}"),
    }
}

async fn wait_until(what: &str, is: impl Fn() -> bool) {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.expect(what);
}

/// Waits for the answer, and returns the used part of the caller's limit.
async fn used<T>(pending: Pending<T>) -> u32 {
    pending.within(DEADLINE).await.rates.unwrap()[0].used
}

fn limited<C: LimitedCommand>(handles: &Handles, command: C) -> Pending<C::Answer> {
    let who = KeyedHash([9; 16]);
    let subjects = vec![Subject { policy: Policy::ActivatePerIpDay, who }];
    let limited = |reply| Limited { subjects, command: Ok(command), now: NOW, reply };
    handles.limited(limited).unwrap()
}

fn an_issue() -> Issue {
    let product = ProductLetters::parse("SD").unwrap();
    let session = KeyedHash([8; 16]);
    Issue { product, session, from: FROM, life: Lifetimes::default(), now: NOW }
}

fn registration(number: u8, hostname: &str) -> Register {
    Register {
        address_id: server_id(number),
        ip: IpAddr::from([1, 2, 3, number]),
        hostname: hostname.to_owned(),
        credential: Credential { hash: KeyedHash([6; 16]), by: EnrolledBy::Master, made_ms: None },
        max_servers: 0,
        is_good: Arc::new(|_| true),
        code: None,
        by: String::new(),
        from: FROM,
        from_its_address: false,
        now: NOW,
    }
}

fn check_in(number: u8, now: Timestamp) -> CheckIn {
    CheckIn { id: server_id(number), bearer: Bearer::Nobody, from: FROM, now }
}

/// A release. `proven` says whether the caller has proven to know the activation.
fn release(id: ActivationId, proven: bool) -> Release {
    Release { id, token: Ok(()), proven, from: FROM, life: Lifetimes::default(), now: NOW }
}

impl TestServer {
    fn start(store: Arc<Shared>) -> Self {
        let parts = parts(&store, PERMITS);
        let (health, key) = (Arc::clone(&parts.health), parts.lookup_key.clone());
        let handles = iptunnel_actors::start(parts).unwrap();
        handles.tick(NOW);
        Self { store, handles, health, key }
    }

    fn limited<C: LimitedCommand>(&self, command: C) -> Pending<C::Answer> {
        limited(&self.handles, command)
    }

    fn issue(&self) -> Pending<Issued> {
        self.limited(an_issue())
    }

    fn activate(&self, code: CodeHash, machine: u8) -> Pending<Activated> {
        self.activate_for(code, machine, "a.example.com")
    }
    fn activate_for(&self, code: CodeHash, machine: u8, host: &str) -> Pending<Activated> {
        let (request, life) = (request(machine, host), Lifetimes::default());
        self.limited(Activate { code, prechecked_at: NOW, request, from: FROM, life, now: NOW })
    }
    fn confirm(&self, id: ActivationId) -> Pending<()> {
        self.handles.confirm(Confirm { id, token: Ok(()), from: FROM, now: NOW }).unwrap()
    }
    fn release(&self, id: ActivationId) -> Pending<ReleaseOutcome> {
        self.handles.release(release(id, true)).unwrap()
    }
    fn register(&self, number: u8, hostname: &str) -> Pending<Server> {
        self.handles.register(registration(number, hostname)).unwrap()
    }
    fn revoke(&self, number: u8) -> Pending<()> {
        self.handles
            .set_revoked(SetRevoked {
                id: server_id(number),
                revoked: true,
                by: String::new(),
                from: FROM,
                now: NOW,
            })
            .unwrap()
    }
    async fn issued(&self) -> CodeHash {
        granted(self.issue()).await.code.hash(&self.key)
    }
    async fn opened(&self, machine: u8) -> Activation {
        let code = self.issued().await;
        granted(self.activate(code, machine)).await.activation
    }

    /// Opens an activation through another server: it is in our store, but not in our cache.
    fn opened_elsewhere(&self, machine: u8) -> Activation {
        let (life, hash) = (Lifetimes::default(), CodeHash(KeyedHash([5; 16])));
        let product = ProductLetters::parse("SD").unwrap();
        let code = Code::issue(CodeNumber(1000), hash, product, hash.0, NOW, &life);
        self.store.write(&Change(vec![Write::Code(code.clone())])).unwrap();
        let (change, activation) = consumed_elsewhere(&code, machine);
        self.store.write(&change).unwrap();
        activation
    }

    fn code(&self, hash: CodeHash) -> Code {
        self.store.engine.code(hash).unwrap().unwrap()
    }
    fn server(&self, number: u8) -> Option<Server> {
        let servers = self.store.engine.servers_before(None, 100).unwrap();
        servers.into_iter().find(|server| server.id == server_id(number))
    }
    async fn revoked_elsewhere(&self) {
        let server = granted(self.register(1, "a")).await;
        self.meanwhile(Change(vec![Write::Server(server.set_revoked(true).unwrap())]));
    }

    /// Lets our server see a record that its primary shows and no standby has, and a standby take over
    /// that has never heard of it.
    async fn sees_and_loses(&self, server: Server) {
        let seen = Some(NOW.plus(u64::from(server.version)));
        let server = Server { last_checkin: NOW.plus(u64::from(server.version)), ..server };
        self.store.plan().unconfirmed = Some(server.clone());
        self.heard_of(&server);
        let is_seen = Filter { seen_since: seen, ..Filter::default() };
        wait_until("it is seen", || {
            self.handles.tick(NOW);
            self.handles.servers().count(&is_seen) == 1
        })
        .await;
        let plan = || self.store.plan();
        (plan().unconfirmed, plan().refusing) = (None, true);
        assert_eq!(outcome_of(self.issue()).await, UNAVAILABLE);
        self.mend_store().await;
    }

    /// Tells our server that another one has changed this one's record.
    fn heard_of(&self, server: &Server) {
        let event = Event::new(Action::ServerRevoked, Actor::Operator, NOW, None);
        self.handles.heard(&Event { server: Some(server.id), ..event });
    }

    /// Plans that another server writes `change` just before our next change of a record.
    fn meanwhile(&self, change: Change) {
        self.store.plan().elsewhere = Some(change);
    }

    /// Sends requests while the engine is busy. Each is decided on the cache as the one before left it,
    /// before anything is on disk.
    fn while_busy<T>(&self, send: impl FnOnce() -> T) -> T {
        let _busy = self.store.busy.lock().unwrap();
        let sent = send();
        // The requests are decided in microseconds.
        std::thread::sleep(Duration::from_millis(100));
        sent
    }

    /// Ends the refusals, and waits until the server has noticed this by itself.
    async fn mend_store(&self) {
        assert!(!self.health.is_ready(), "not ready while the store refuses");
        self.store.plan().refusing = false;
        wait_until("the server is ready again by itself", || self.health.is_ready()).await;
    }

    /// Blocks commits until the returned value is dropped.
    fn block_commits(&self) -> impl Drop {
        struct Released(mpsc::Sender<()>);
        impl Drop for Released {
            fn drop(&mut self) {
                self.0.send(()).unwrap();
            }
        }
        let (store, (release, released)) = (Arc::clone(&self.store), mpsc::channel());
        let (stands, still) = mpsc::channel();
        std::thread::spawn(move || {
            let _busy = store.busy.lock().unwrap();
            stands.send(()).unwrap();
            let _ = released.recv();
        });
        still.recv().unwrap();
        Released(release)
    }

    /// Checks one kind of request: it succeeds after up to three conflicts. After a fourth it fails as
    /// `overloaded` with nothing written, and the next try succeeds.
    async fn survives_three_conflicts<X, T>(
        &self,
        prepare: impl AsyncFn(u8) -> X,
        ask: impl Fn(&X) -> Pending<T>,
    ) {
        for (conflicts, expected) in [(1, GRANTED), (2, GRANTED), (3, GRANTED), (4, OVERLOADED)] {
            let it = prepare(conflicts).await;
            self.store.plan().conflicts = conflicts;
            self.store.plan().written = 0;
            assert_eq!(outcome_of(ask(&it)).await, expected, "after {conflicts} conflicts");
            assert_eq!(self.store.plan().written, u32::from(expected == GRANTED));
            assert_eq!(self.store.plan().conflicts, 0, "left of {conflicts}");
            if expected == OVERLOADED {
                assert_eq!(outcome_of(ask(&it)).await, GRANTED, "the next try");
            }
        }
    }

    /// Checks that a failed lookup of `kind` fails the request, and that the next try is granted.
    async fn can_be_repeated_after_a_failed_read<T>(
        &self,
        kind: &'static str,
        ask: impl Fn() -> Pending<T>,
    ) {
        self.store.plan().unreadable = Some(kind);
        assert_eq!(outcome_of(ask()).await, UNAVAILABLE, "{kind} unreadable");
        assert!(self.store.plan().unreadable.is_none() && self.health.is_ready());
        assert_eq!(outcome_of(ask()).await, GRANTED, "{kind} readable again");
    }
}

fn server_id(number: u8) -> ServerId {
    ServerId(u64::from(number))
}

fn consumed_elsewhere(code: &Code, machine: u8) -> (Change, Activation) {
    let number = 1000 + u64::from(machine);
    let at = ActivationRef { number: ActivationNumber(number), id: ActivationId(number) };
    let (request, life) = (request(machine, "a.example.com"), Lifetimes::default());
    let opened = Activation::open(at, code.hash, request, NOW, &life);
    let writes = vec![Write::Code(code.consumed_by(at)), Write::Activation(opened.clone())];
    (Change(writes), opened)
}

#[test]
fn an_activate_a_confirm_and_a_release_survive_three_conflicts() {
    with_test_server(async |test| {
        let issued = async |_| test.issued().await;
        test.survives_three_conflicts(issued, |code| test.activate(*code, 1)).await;
        let opened = async |machine| test.opened(machine).await.at.id;
        test.survives_three_conflicts(opened, |id| test.confirm(*id)).await;
        test.survives_three_conflicts(opened, |id| test.release(*id)).await;
    });
}

#[test]
fn an_activate_for_another_binding_survives_three_conflicts() {
    with_test_server(async |test| {
        let ask = |old: &Activation| test.activate_for(old.code, 1, "b.example.com");
        test.survives_three_conflicts(async |_| test.opened(1).await, ask).await;
    });
}

#[test]
fn registrations_and_revocations_survive_three_conflicts() {
    with_test_server(async |test| {
        let numbered = async |number| number;
        test.survives_three_conflicts(numbered, |n| test.register(*n, "a")).await;
        test.survives_three_conflicts(numbered, |n| test.register(*n, "b")).await;
        test.survives_three_conflicts(numbered, |n| test.revoke(*n)).await;
        assert!((1..=4).all(|n| test.server(n).is_some_and(|s| s.revoked && s.hostname == "b")));
    });
}

#[test]
fn a_retried_request_is_charged_once_and_a_failed_one_is_not_charged() {
    with_test_server(async |test| {
        let code = test.issued().await;
        test.store.plan().conflicts = 4;
        assert_eq!(used(test.activate(code, 1)).await, 1, "only the issue is charged");
        test.store.plan().conflicts = 3;
        assert_eq!(used(test.activate(code, 1)).await, 2);
        // The new number is taken, so the caller has to ask again.
        test.store.plan().conflicts = 1;
        assert_eq!(outcome_of(test.issue()).await, OVERLOADED);
        assert_eq!(used(test.issue()).await, 3);
    });
}

#[test]
fn a_code_consumed_through_another_server_is_used_for_all_but_its_holder() {
    with_test_server(async |test| {
        for (asker, winner) in [(1, 2), (3, 3)] {
            let code = test.issued().await;
            let (consumed, open) = consumed_elsewhere(&test.code(code), winner);
            test.meanwhile(consumed);
            let first = outcome_of(test.activate(code, asker)).await;
            assert_eq!(first, if asker == winner { GRANTED } else { Ok(Err(Refusal::CodeUsed)) });
            assert_eq!(granted(test.activate(code, winner)).await.activation, open);
        }
    });
}

#[test]
fn a_repeat_is_never_granted_an_activation_whose_opening_conflicted() {
    with_test_server(async |test| {
        let code = test.issued().await;
        test.store.plan().conflicts = 1;
        for pending in test.while_busy(|| [test.activate(code, 1), test.activate(code, 1)]) {
            let granted = granted(pending).await.activation;
            let stored = test.store.engine.activation(granted.at.id).unwrap();
            assert_eq!(stored, Some(granted), "the granted activation is the stored one");
        }
    });
}

#[test]
fn a_confirm_or_release_sees_that_another_server_confirmed() {
    with_test_server(async |test| {
        let (one, two) = (test.opened(1).await, test.opened(2).await);
        let confirmed = |a: &Activation| Change(vec![Write::Activation(a.confirm(NOW).unwrap())]);
        test.meanwhile(confirmed(&one));
        assert_eq!(outcome_of(test.confirm(one.at.id)).await, Ok(Err(Refusal::TokenUsed)));
        test.meanwhile(confirmed(&two));
        assert_eq!(granted(test.release(two.at.id)).await, ReleaseOutcome::Confirmed);
    });
}

#[test]
fn a_registration_is_refused_after_another_server_revoked_it() {
    with_test_server(async |test| {
        test.revoked_elsewhere().await;
        let refusal = Refusal::ServerRevoked(server_id(1));
        assert_eq!(outcome_of(test.register(1, "b")).await, Ok(Err(refusal)));
    });
}

#[test]
fn a_revocation_succeeds_after_another_server_revoked_the_same_server() {
    with_test_server(async |test| {
        test.revoked_elsewhere().await;
        assert_eq!(outcome_of(test.revoke(1)).await, GRANTED);
    });
}

#[test]
fn after_a_refused_activate_any_machine_can_activate_the_code() {
    with_test_server(async |test| {
        let code = test.issued().await;
        test.store.plan().refusing = true;
        for pending in test.while_busy(|| [1, 1, 2].map(|machine| test.activate(code, machine))) {
            assert_eq!(outcome_of(pending).await, UNAVAILABLE);
        }
        assert_eq!(test.code(code).state, CodeState::Issued);
        let refused = std::mem::take(&mut test.store.plan().refused);
        let opened = refused[0].0.iter().find_map(|write| match write {
            Write::Activation(opened) => Some(opened),
            _ => None,
        });
        let never = opened.unwrap();
        test.mend_store().await;
        assert_eq!(
            outcome_of(test.confirm(never.at.id)).await,
            Ok(Err(Refusal::ActivationNotFound))
        );
        assert_eq!(granted(test.activate(code, 2)).await.activation.request.holder, holder(2));
        assert_eq!(used(test.issue()).await, 3, "failures are not charged");
    });
}

#[test]
fn a_refused_confirm_or_release_works_once_the_store_works_again() {
    with_test_server(async |test| {
        let (one, two) = (test.opened(1).await.at.id, test.opened(2).await.at.id);
        test.store.plan().refusing = true;
        let (confirm, release) = test.while_busy(|| (test.confirm(one), test.release(two)));
        assert_eq!([outcome_of(confirm).await, outcome_of(release).await], [UNAVAILABLE; 2]);
        test.mend_store().await;
        assert_eq!(
            [outcome_of(test.confirm(one)).await, outcome_of(test.release(two)).await],
            [GRANTED; 2]
        );
    });
}

#[test]
fn registrations_revocations_and_check_ins_work_again_after_the_store_refused() {
    with_test_server(async |test| {
        granted(test.register(1, "a")).await;
        let (seen, later) = (NOW.plus(5), NOW.plus(10));
        test.store.plan().refusing = true;
        let checked_in = granted(test.handles.check_in(check_in(1, seen)).unwrap()).await;
        assert_eq!(checked_in, CheckedIn::Active);
        test.handles.tick(seen);
        let both =
            async || [outcome_of(test.register(2, "b")).await, outcome_of(test.revoke(1)).await];
        assert_eq!(both().await, [UNAVAILABLE; 2]);
        assert!(test.server(2).is_none() && !test.server(1).unwrap().revoked);
        test.mend_store().await;
        test.handles.tick(later);
        assert_eq!(both().await, [GRANTED; 2]);
        let server = test.server(1).unwrap();
        assert_eq!((server.revoked, server.last_checkin), (true, seen));
    });
}

#[test]
fn a_precheck_or_activate_whose_read_failed_is_not_charged_and_can_be_repeated() {
    with_test_server(async |test| {
        let code = test.opened_elsewhere(1).code;
        let (holder, life) = (holder(1), Lifetimes::default());
        for kind in ["code", "activation"] {
            let precheck =
                || test.limited(PrecheckCode { code, holder, from: FROM, life, now: NOW });
            test.can_be_repeated_after_a_failed_read(kind, precheck).await;
            test.can_be_repeated_after_a_failed_read(kind, || test.activate(code, 1)).await;
        }
        // Failures and repeated activates are not charged. Two prechecks and this issue are.
        assert_eq!(used(test.issue()).await, 3);
    });
}

#[test]
fn a_confirm_registration_or_revocation_whose_read_failed_can_be_repeated() {
    with_test_server(async |test| {
        let id = test.opened_elsewhere(1).at.id;
        test.can_be_repeated_after_a_failed_read("activation", || test.confirm(id)).await;
        granted(test.register(1, "a")).await;
        test.can_be_repeated_after_a_failed_read("server", || test.register(1, "b")).await;
        test.can_be_repeated_after_a_failed_read("server", || test.revoke(1)).await;
    });
}

#[test]
fn a_release_whose_read_of_the_code_failed_can_be_repeated() {
    with_test_server(async |test| {
        let open = test.opened_elsewhere(1);
        test.can_be_repeated_after_a_failed_read("code", || test.release(open.at.id)).await;
        assert_eq!(test.code(open.code).state, CodeState::Issued);
    });
}

#[test]
fn an_activation_stays_open_if_its_release_cannot_read_the_code() {
    with_test_server(async |test| {
        let id = test.opened_elsewhere(1).at.id;
        test.store.plan().unreadable = Some("code");
        assert_eq!(outcome_of(test.release(id)).await, UNAVAILABLE);
        assert_eq!(outcome_of(test.confirm(id)).await, GRANTED);
    });
}

#[test]
fn while_a_commit_is_stuck_check_ins_are_answered_and_other_requests_fail_at_once() {
    with_test_server(async |test| {
        granted(test.register(1, "a")).await;
        let stuck = test.block_commits();
        let waiting: Vec<_> = (2..).take(PERMITS).map(|n| test.register(n, "b")).collect();
        let one_more = test.handles.register(registration(100, "b"));
        assert_eq!(one_more.err(), Some(Failure::Overloaded));
        let checked_in = async |at| {
            for _ in 0..2 * PERMITS {
                let answer = granted(test.handles.check_in(check_in(1, at)).unwrap()).await;
                assert_eq!(answer, CheckedIn::Active);
            }
        };
        checked_in(NOW.plus(1)).await;
        let is_ready = || {
            test.handles.tick(NOW.plus(2));
            test.health.is_ready()
        };
        wait_until("the stuck commit is noticed", || !is_ready()).await;
        let one_more = test.handles.register(registration(100, "b"));
        assert_eq!(one_more.err(), Some(Failure::StorageUnavailable));
        checked_in(NOW.plus(3)).await;
        drop(stuck);
        for pending in waiting {
            assert_eq!(outcome_of(pending).await, GRANTED);
        }
        wait_until("the server is ready again", is_ready).await;
        assert_eq!(outcome_of(test.register(100, "b")).await, GRANTED);
    });
}

#[test]
fn a_revocation_holds_whatever_a_server_has_seen_of_versions_that_were_lost() {
    with_test_server(async |test| {
        let server = granted(test.register(1, "a")).await;
        for version in [2, 3, 4] {
            test.sees_and_loses(Server { version, ..server.clone() }).await;
        }
        let revoked = server.set_revoked(true).unwrap();
        test.store.write(&Change(vec![Write::Server(revoked.clone())])).unwrap();
        test.heard_of(&revoked);
        wait_until("the revocation is known", || {
            let revoked = Filter { revoked: Some(true), ..Filter::default() };
            test.handles.servers().count(&revoked) == 1
        })
        .await;
        let answer = granted(test.handles.check_in(check_in(1, NOW)).unwrap()).await;
        assert_eq!(answer, CheckedIn::Revoked);
    });
}

#[test]
fn a_revocation_that_was_lost_holds_nobody_up() {
    with_test_server(async |test| {
        let server = granted(test.register(1, "a")).await;
        test.sees_and_loses(server.set_revoked(true).unwrap()).await;
        let answer = granted(test.handles.check_in(check_in(1, NOW)).unwrap()).await;
        assert_eq!(answer, CheckedIn::Active, "nobody is told of what is lost");
        assert_eq!(outcome_of(test.register(1, "b")).await, GRANTED);
    });
}

#[test]
fn a_server_whose_registration_was_lost_is_not_found_and_registers_again() {
    with_test_server(async |test| {
        let never = granted(test.register(2, "a")).await;
        let (id, address_id) = (server_id(1), server_id(1));
        test.sees_and_loses(Server { id, address_id, ..never }).await;
        let check_in = || test.handles.check_in(check_in(1, NOW)).unwrap();
        assert_eq!(outcome_of(check_in()).await, Ok(Err(Refusal::ServerNotFound)));
        assert_eq!(outcome_of(test.revoke(1)).await, Ok(Err(Refusal::ServerNotFound)));
        assert_eq!(test.handles.servers().count(&Filter::default()), 1);
        assert_eq!(outcome_of(test.register(1, "a")).await, GRANTED);
        assert_eq!(granted(check_in()).await, CheckedIn::Active);
    });
}

/// Takes all possible steps except probes.
fn run(server: &mut Stepped) {
    let mut steps = Vec::new();
    loop {
        server.ready(&mut steps);
        steps.retain(|step| *step != Step::Probe);
        if !steps.iter().any(|step| server.step(*step)) {
            return;
        }
    }
}

fn outcome<T>(pending: &mut Pending<T>) -> Option<Outcome<()>> {
    pending.answered().map(|answer| answer.outcome.map(|decision| decision.map(|_| ())))
}

#[test]
fn unproven_requests_have_a_bounded_queue_and_delay_no_proven_request() {
    const UNPROVEN: usize = 256;
    let (_folder, store) = store();
    let mut server = Stepped::start(parts(&store, 1000)).unwrap();
    let ask = |server: &Stepped, id: usize, proven: bool| {
        server.handles().release(release(ActivationId(id as u64), proven)).unwrap()
    };
    let mut guesses: Vec<_> = (0..UNPROVEN + 44).map(|id| ask(&server, id, false)).collect();
    while server.step(Step::Activation) {}
    let (waiting, turned_away) = guesses.split_at_mut(UNPROVEN);
    assert!(waiting.iter_mut().all(|pending| outcome(pending).is_none()));
    assert!(turned_away.iter_mut().all(|pending| outcome(pending) == Some(OVERLOADED)));
    let mut proven = ask(&server, 1000, true);
    let looked_up = [Step::Activation, Step::Read, Step::HandOnFound, Step::Activation];
    let confirmed = [Step::Gather, Step::Write, Step::Answer];
    for step in looked_up.into_iter().chain(confirmed) {
        assert!(server.step(step), "{step:?}");
    }
    let nothing_there = Some(Ok(Err(Refusal::ActivationNotFound)));
    assert_eq!(outcome(&mut proven), nothing_there);
    assert!(waiting.iter_mut().all(|pending| outcome(pending).is_none()), "it goes first");
    run(&mut server);
    assert!(waiting.iter_mut().all(|pending| outcome(pending) == nothing_there));
}

/// Collects the log messages of level warning or above.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Logged {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Message(String);
        impl tracing::field::Visit for Message {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        self.0.lock().unwrap().push(message.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn an_outage_of_the_store_is_logged_once_at_its_begin_and_once_at_its_end() {
    let (_folder, store) = store();
    let mut server = Stepped::start(parts(&store, 64)).unwrap();
    let logged = Logged::default();
    let all_hear = |server: &mut Stepped, away: bool, expected: [Outcome<()>; 3]| {
        (store.plan().away, store.plan().refusing) = (away, away);
        for _ in 0..3 {
            let handles = server.handles();
            let mut issue = limited(handles, an_issue());
            let mut release = handles.release(release(ActivationId(1), true)).unwrap();
            let mut setting = handles.keep_settings(Vec::new(), Vec::new()).unwrap();
            run(server);
            let heard = [outcome(&mut issue), outcome(&mut release), outcome(&mut setting)];
            assert_eq!(heard, expected.clone().map(Some));
            server.step(Step::Probe);
        }
    };
    let there = [GRANTED, Ok(Err(Refusal::ActivationNotFound)), GRANTED];
    // While only one dispatcher exists, tracing asks the thread that first reaches a log line whether
    // anybody wants it. That may be the thread of another test, which has none.
    let _second = tracing::Dispatch::new(Logged::default());
    tracing::subscriber::with_default(logged.clone(), || {
        all_hear(&mut server, false, there.clone());
        all_hear(&mut server, true, [UNAVAILABLE; 3]);
        store.plan().refusing = false;
        server.step(Step::Probe);
        all_hear(&mut server, false, there);
    });
    let mut logged = logged.0.lock().unwrap().clone();
    logged.sort_unstable();
    let once = [
        "records can be read again",
        "records cannot be read",
        "the store counts requests for the rate limits again",
        "the store does not count requests for the rate limits",
        "the store does not take commits",
        "the store takes commits again",
    ];
    assert_eq!(logged, once);
}

#[test]
fn a_server_whose_commits_are_refused_never_answers_not_found() {
    with_test_server(async |test| {
        // A former primary still answers reads, but lacks everything written after its failover.
        let (code, id) = (CodeHash(KeyedHash([4; 16])), ActivationId(4));
        let (holder, life) = (holder(1), Lifetimes::default());
        let precheck = || PrecheckCode { code, holder, from: FROM, life, now: NOW };
        let check_in =
            || CheckIn { id: server_id(4), bearer: Bearer::Nobody, from: FROM, now: NOW };
        let asks: [&dyn Fn() -> PendingOutcome; 6] = [
            &|| Box::pin(outcome_of(test.limited(precheck()))),
            &|| Box::pin(outcome_of(test.activate(code, 1))),
            &|| Box::pin(outcome_of(test.confirm(id))),
            &|| Box::pin(outcome_of(test.release(id))),
            &|| Box::pin(outcome_of(test.revoke(4))),
            &|| Box::pin(outcome_of(test.handles.check_in(check_in()).unwrap())),
        ];
        for ask in asks {
            test.store.plan().refusing = true;
            assert_eq!(ask().await, UNAVAILABLE);
            test.mend_store().await;
            let refused = ask().await;
            let not_found = matches!(
                refused,
                Ok(Err(Refusal::CodeNotFound
                    | Refusal::ActivationNotFound
                    | Refusal::ServerNotFound))
            );
            assert!(not_found, "{refused:?}");
        }
    });
}

/// Waits until the server lists so many servers.
async fn wait_until_listed(test: &TestServer, count: usize) {
    let all = Filter::default();
    wait_until("the list is up to date", || test.handles.servers().count(&all) == count).await;
}

#[test]
fn a_server_that_was_deleted_and_registered_elsewhere_is_followed() {
    with_test_server(async |test| {
        let server = granted(test.register(1, "a")).await;
        let forget = Write::ForgetServer(server.number, server.version);
        test.store.write(&Change(vec![forget])).unwrap();
        test.heard_of(&server);
        wait_until_listed(test, 0).await;
        let check_in = || test.handles.check_in(check_in(1, NOW)).unwrap();
        assert_eq!(outcome_of(check_in()).await, Ok(Err(Refusal::ServerNotFound)));
        let again = Server { number: ServerNumber(900), ..server };
        test.store.write(&Change(vec![Write::Server(again.clone())])).unwrap();
        assert_eq!(granted(check_in()).await, CheckedIn::Active);
        // It has heard of neither of the next two.
        test.store.write(&Change(vec![Write::ForgetServer(again.number, 1)])).unwrap();
        let third = Server { number: ServerNumber(901), ..again };
        test.store.write(&Change(vec![Write::Server(third)])).unwrap();
        assert_eq!(granted(test.register(1, "c")).await.version, 2);
        assert_eq!(outcome_of(test.revoke(1)).await, GRANTED);
    });
}

#[test]
fn a_server_that_was_imported_elsewhere_registers_under_its_id() {
    with_test_server(async |test| {
        let server = granted(test.register(9, "a")).await;
        let (id, address_id, number) = (server_id(100), server_id(1), ServerNumber(900));
        let imported = Server { id, address_id, number, revoked: true, ..server };
        test.store.write(&Change(vec![Write::Server(imported.clone())])).unwrap();
        let refused = Ok(Err(Refusal::ServerRevoked(id)));
        assert_eq!(outcome_of(test.register(1, "b")).await, refused);
        let restored = imported.set_revoked(false).unwrap();
        test.store.write(&Change(vec![Write::Server(restored)])).unwrap();
        assert_eq!(granted(test.register(1, "b")).await.id, id);
        assert_eq!(
            granted(test.handles.check_in(check_in(100, NOW)).unwrap()).await,
            CheckedIn::Active
        );
    });
}

#[test]
fn servers_that_another_one_has_enrolled_count_for_an_access_tokens_bound() {
    with_test_server(async |test| {
        let by = EnrolledBy::Token(TokenNumber(3));
        let bounded = |number| {
            let register = registration(number, "a");
            let credential = Credential { by, ..register.credential };
            test.handles.register(Register { credential, max_servers: 3, ..register }).unwrap()
        };
        let server = granted(bounded(1)).await;
        let elsewhere = Server {
            id: server_id(50),
            address_id: server_id(50),
            number: ServerNumber(900),
            ..server.clone()
        };
        test.store.write(&Change(vec![Write::Server(elsewhere)])).unwrap();
        // Both are asked for at once, and one is left.
        let (one, other) = (bounded(2), bounded(3));
        let outcomes = [outcome_of(one).await, outcome_of(other).await];
        assert!(outcomes.contains(&GRANTED), "{outcomes:?}");
        assert!(outcomes.contains(&Ok(Err(Refusal::TooManyServers))), "{outcomes:?}");
        assert_eq!(outcome_of(bounded(1)).await, GRANTED, "it is enrolled already");
        test.store.plan().unreadable = Some("enrolled");
        assert_eq!(outcome_of(bounded(4)).await, UNAVAILABLE);
        assert_eq!(outcome_of(bounded(4)).await, Ok(Err(Refusal::TooManyServers)));
    });
}

#[test]
fn a_server_that_came_back_elsewhere_after_its_deletion_checks_in_at_once() {
    with_test_server(async |test| {
        let server = granted(test.register(1, "a")).await;
        let delete = Delete { id: server.id, by: String::new(), from: FROM, now: NOW };
        granted(test.handles.delete_server(delete).unwrap()).await;
        let check_in = || test.handles.check_in(check_in(1, NOW)).unwrap();
        assert_eq!(outcome_of(check_in()).await, Ok(Err(Refusal::ServerNotFound)));
        let hidden = test.server(1).unwrap();
        let back = Server { deleted: false, version: hidden.version + 1, ..hidden };
        test.store.write(&Change(vec![Write::Server(back)])).unwrap();
        assert_eq!(granted(check_in()).await, CheckedIn::Active);
    });
}
