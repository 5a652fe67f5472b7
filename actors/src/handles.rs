//! The handles to all actors, and how the actors start and stop.

use crate::Failure;
use crate::activation::{self, Activation, Confirm, Release};
use crate::code_registry::CodeRegistry;
use crate::memory::alarms::Alarms;
use crate::memory::attempts::{Gathered, RefusedEarly};
use crate::memory::counters::Counters;
use crate::memory::limit_counter::{LimitCounter, LimitCounterThread};
use crate::memory::numbers::Numbers;
use crate::memory::record_cache::Eviction;
use crate::messages::{Command, Shutdown, Tick, Work};
use crate::persistence::{Committed, Persistence, Writer};
use crate::rate_limiter::{Limited, LimitedCommand, RateLimiter, restore_counters};
use crate::runtime::health::Health;
use crate::runtime::mailbox::{Address, Hosted, Mailbox};
use crate::runtime::metrics::Metrics;
use crate::runtime::reader::Reader;
use crate::runtime::reply::{Pending, Permits, Reply};
use crate::runtime::tuning::ActorSettings;
use crate::server_registry::{
    self, CheckIn, CloneReported, Delete, DeleteUnseen, Heard, Import, Imported, Recovered,
    Register, RegisterInstalled, Registered, ServerRegistry, Servers, SetNote, SetRevoked,
};
use actix::{Arbiter, AsyncContext, Context};
use arc_swap::ArcSwap;
use iptunnel_domain::access::{AccessToken, TokenNumber};
use iptunnel_domain::audit::{Action, Event};
use iptunnel_domain::lookup::LookupKey;
use iptunnel_domain::server::ServerId;
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::{Change, LastNumbers, ReadError, Setting, Store, Write};
use rand_chacha::ChaCha20Rng;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// What the actors need from outside.
pub struct Dependencies {
    /// The store of all records.
    pub store: Arc<dyn Store>,
    /// The settings in force. They may be swapped at any time, without notice.
    pub tuning: Arc<ArcSwap<ActorSettings>>,
    /// The number of requests that may be under way at once.
    pub permits: usize,
    /// The health of the server, as far as the actors know it.
    pub health: Arc<Health>,
    /// The metrics of the actors.
    pub observed: Metrics,
    /// The source of codes and ids.
    pub random: ChaCha20Rng,
    /// The key under which codes are stored.
    pub lookup_key: LookupKey,
    /// The current time.
    pub now: Timestamp,
}

/// Why the actors did not start.
#[derive(Debug)]
pub enum StartError {
    /// The store could not be read.
    Read(ReadError),
    /// The operating system did not start a thread.
    Thread(std::io::Error),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(error) => error.fmt(f),
            Self::Thread(error) => write!(f, "cannot start a thread: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<ReadError> for StartError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<std::io::Error> for StartError {
    fn from(error: std::io::Error) -> Self {
        Self::Thread(error)
    }
}

/// The mailboxes of all actors. One value, shared by all.
pub struct Handles {
    pub(crate) rate_limiter: Mailbox<RateLimiter>,
    pub(crate) code_registry: Mailbox<CodeRegistry>,
    pub(crate) activation: Mailbox<Activation>,
    pub(crate) server_registry: Mailbox<ServerRegistry>,
    pub(crate) persistence: Arc<Persistence>,
    pub(crate) reader: Reader,
    /// The limit counter; only where servers share the store.
    pub(crate) limit_counter: Option<LimitCounter>,
    pub(crate) attempts: Gathered,
    pub(crate) alarms: Alarms,
    /// Registered servers that another process changed and whose records could not be read yet. They
    /// are read again at the next tick.
    pub(crate) missed: Mutex<HashSet<ServerId>>,
    permits: Permits,
    /// Permits for requests that are answered from memory: these go on while all others wait for the
    /// store.
    quick_permits: Permits,
    health: Arc<Health>,
    servers: Arc<Servers>,
    store: Arc<dyn Store>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// The arbiter on which actix runs the actors.
    arbiter: Option<actix::ArbiterHandle>,
}

/// A commit that takes longer than this is stuck: a thousand times what one takes on a good disk,
/// and less than a caller waits.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// A command with its reply, and the pending answer of its caller.
type Begun<C, R> = (Work<C, R>, Pending<<C as Command>::Answer>);

/// Starts the actors. All four run on one arbiter, so their messages to each other do not cross
/// threads. Persistence and the readers run on threads of their own.
///
/// # Errors
/// [`StartError`] if the store cannot be read or a thread cannot be started.
pub fn start(parts: Dependencies) -> Result<Arc<Handles>, StartError> {
    let arbiter = Arbiter::new();
    let (send, receive) = std::sync::mpsc::channel();
    let permits = Permits::with_quick(parts.permits, Permits::new);
    let loaded = Restored::read(parts)?;
    let handle = arbiter.handle();
    arbiter.spawn_fn(move || {
        let (limiter, codes) = (Context::new(), Context::new());
        let (activations, registry) = (Context::new(), Context::new());
        let addresses = Addresses {
            rate_limiter: Address::Actix(limiter.address()),
            code_registry: Address::Actix(codes.address()),
            activation: Address::Actix(activations.address()),
            server_registry: Address::Actix(registry.address()),
        };
        let assembled = loaded.assemble(addresses, permits, Some(handle));
        let Assembled { handles, actors, writer, counting } = assembled;
        limiter.run(Hosted(actors.rate_limiter));
        codes.run(Hosted(actors.code_registry));
        activations.run(Hosted(actors.activation));
        registry.run(Hosted(actors.server_registry));
        // This fails only if the receiving thread below has ended; then nothing is left to start.
        let _ = send.send((handles, writer, counting));
    });
    let (handles, writer, counting) =
        receive.recv().map_err(|_| std::io::Error::other("the arbiter has ended"))?;
    let mut threads = handles.reader.spawn(&handles.store)?;
    if let Some(counting) = counting {
        threads.push(counting.spawn(Arc::clone(&handles.store))?);
    }
    threads.push(writer.spawn()?);
    *handles.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
    Ok(handles)
}

/// The state with which the actors start.
pub(crate) struct Restored {
    parts: Dependencies,
    frontier: LastNumbers,
    registered: Registered,
    counters: Counters,
}

/// The addresses of the actors.
pub(crate) struct Addresses {
    pub(crate) rate_limiter: Address<RateLimiter>,
    pub(crate) code_registry: Address<CodeRegistry>,
    pub(crate) activation: Address<Activation>,
    pub(crate) server_registry: Address<ServerRegistry>,
}

/// The actors. Actix or a simulation runs them.
pub(crate) struct Actors {
    pub(crate) rate_limiter: RateLimiter,
    pub(crate) code_registry: CodeRegistry,
    pub(crate) activation: Activation,
    pub(crate) server_registry: ServerRegistry,
}

/// The actors and threads to run, and the handles to them.
pub(crate) struct Assembled {
    pub(crate) handles: Arc<Handles>,
    pub(crate) actors: Actors,
    pub(crate) writer: Writer,
    /// Only where servers share the store.
    pub(crate) counting: Option<LimitCounterThread>,
}

impl Restored {
    /// Reads the starting state from the store.
    pub(crate) fn read(parts: Dependencies) -> Result<Self, StartError> {
        let store = parts.store.as_ref();
        let (frontier, registered) = (store.frontier()?, Registered::load(store)?);
        let counters = restore_counters(store, parts.now)?;
        Ok(Self { parts, frontier, registered, counters })
    }

    /// Creates the actors and gives each the handles to all.
    pub(crate) fn assemble(
        self,
        addresses: Addresses,
        (permits, quick_permits): (Permits, Permits),
        arbiter: Option<actix::ArbiterHandle>,
    ) -> Assembled {
        let Self { parts, frontier, registered, counters } = self;
        let Dependencies { store, tuning, health, observed, random, lookup_key, now, .. } = parts;
        let process = store.shared().map(iptunnel_storage::Shared::process);
        let (limit_counter, counting) = LimitCounter::new(store.as_ref()).unzip();
        let persistence = Arc::new(Persistence::new(&observed));
        let mailbox_of = |name| (observed.actor(name), Arc::clone(&health));
        let Addresses { rate_limiter, code_registry, activation, server_registry } = addresses;
        let handles = Arc::new(Handles {
            rate_limiter: Mailbox::new(rate_limiter, mailbox_of("rate_limiter")),
            code_registry: Mailbox::new(code_registry, mailbox_of("code_registry")),
            activation: Mailbox::new(activation, mailbox_of("activation")),
            server_registry: Mailbox::new(server_registry, mailbox_of("server_registry")),
            persistence: Arc::clone(&persistence),
            reader: Reader::default(),
            limit_counter,
            missed: Mutex::default(),
            attempts: Gathered::new(observed.attempts_not_kept.clone()),
            alarms: Alarms::new(observed.alarms_not_kept.clone()),
            permits,
            quick_permits,
            health: Arc::clone(&health),
            servers: registered.published(),
            store: Arc::clone(&store),
            threads: Mutex::default(),
            arbiter,
        });
        let reloaded = Arc::downgrade(&handles);
        let recovered = move |generation| {
            if let Some(handles) = reloaded.upgrade() {
                handles.activation.send(Eviction::Reload(generation));
                handles.code_registry.send(Eviction::Reload(generation));
                handles.server_registry.send(Recovered(generation));
            }
        };
        let shared = || Arc::clone(&handles);
        let actors = Actors {
            rate_limiter: RateLimiter::new(
                counters,
                Arc::clone(&tuning),
                shared(),
                &observed,
                parts.now,
            ),
            code_registry: CodeRegistry::new(
                Numbers::new(frontier.code.0, process),
                Numbers::new(frontier.activation.0, process),
                random,
                lookup_key,
                Arc::clone(&tuning),
                shared(),
                &observed,
            ),
            activation: Activation::new(Arc::clone(&tuning), shared(), &observed),
            server_registry: ServerRegistry::new(
                registered,
                Arc::clone(&tuning),
                shared(),
                &observed,
                now,
            ),
        };
        let writer = persistence.writer(store, tuning, health, &observed, recovered);
        Assembled { handles, actors, writer, counting }
    }
}

impl Handles {
    /// Sends a limited request.
    pub fn limited<C: LimitedCommand>(
        &self,
        request: impl FnOnce(Reply<C::Answer>) -> Limited<C>,
    ) -> Result<Pending<C::Answer>, Failure> {
        let (reply, pending) = self.request()?;
        self.rate_limiter.send(request(reply));
        Ok(pending)
    }

    /// Creates the reply of a request that may have to wait for the store. While the store is stuck,
    /// new requests fail at once instead of waiting.
    fn request<A>(&self) -> Result<(Reply<A>, Pending<A>), Failure> {
        if !self.health.commits_flow() {
            return Err(Failure::StorageUnavailable);
        }
        self.permits.request().ok_or(Failure::Overloaded)
    }

    fn begin<C: Command, R>(&self, command: C) -> Result<Begun<C, R>, Failure> {
        let (reply, pending) = self.request()?;
        Ok((Work::new(command, reply), pending))
    }

    /// Sends a confirmation.
    pub fn confirm(&self, command: Confirm) -> Result<Pending<()>, Failure> {
        let (work, pending) = self.begin(command)?;
        self.activation.send(work);
        Ok(pending)
    }

    /// Sends a release.
    pub fn release(
        &self,
        command: Release,
    ) -> Result<Pending<activation::ReleaseOutcome>, Failure> {
        let (work, pending) = self.begin(command)?;
        self.activation.send(work);
        Ok(pending)
    }

    /// Sends a registration.
    pub fn register(
        &self,
        command: Register,
    ) -> Result<Pending<iptunnel_domain::server::Server>, Failure> {
        let (work, pending) = self.begin(command)?;
        self.server_registry.send(work);
        Ok(pending)
    }

    /// Sends a registration with an install token.
    pub fn register_installed(
        &self,
        command: RegisterInstalled,
    ) -> Result<Pending<iptunnel_domain::server::Server>, Failure> {
        let (work, pending) = self.begin(command)?;
        self.activation.send(work);
        Ok(pending)
    }

    /// Sends a check-in.
    pub fn check_in(
        &self,
        command: CheckIn,
    ) -> Result<Pending<crate::server_registry::CheckedIn>, Failure> {
        let (reply, pending) = self.quick_permits.request().ok_or(Failure::Overloaded)?;
        self.server_registry.send(Work::<_, iptunnel_domain::server::Server>::new(command, reply));
        Ok(pending)
    }

    /// Sends the revocation or the restoration of a server.
    pub fn set_revoked(&self, command: SetRevoked) -> Result<Pending<()>, Failure> {
        let (work, pending) = self.begin(command)?;
        self.server_registry.send(work);
        Ok(pending)
    }

    /// Sends a note on a server.
    pub fn set_note(&self, command: SetNote) -> Result<Pending<()>, Failure> {
        let (work, pending) = self.begin(command)?;
        self.server_registry.send(work);
        Ok(pending)
    }

    /// Sends the deletion of a server.
    pub fn delete_server(&self, command: Delete) -> Result<Pending<()>, Failure> {
        let (work, pending) = self.begin(command)?;
        self.server_registry.send(work);
        Ok(pending)
    }

    /// Sends the deletion of servers that were not seen for long. The answer is how many were deleted; 0
    /// means that none is left.
    pub fn delete_unseen(&self, command: DeleteUnseen) -> Result<Pending<usize>, Failure> {
        let (work, pending) = self.begin(command)?;
        self.server_registry.send::<Work<_>>(work);
        Ok(pending)
    }

    /// Sends servers from another program's list.
    pub fn import_servers(&self, command: Import) -> Result<Pending<Imported>, Failure> {
        let (work, pending) = self.begin(command)?;
        self.server_registry.send::<Work<_>>(work);
        Ok(pending)
    }

    /// Stores settings together with their audit events. Only one caller may write settings.
    pub fn keep_settings(
        &self,
        settings: Vec<Setting>,
        events: Vec<Event>,
    ) -> Result<Pending<()>, Failure> {
        let settings = settings.into_iter().map(Write::Setting);
        let events = events.into_iter().map(Arc::new).map(Write::Audit);
        let unless_changed = |is_written: bool| is_written.then_some(()).ok_or(Failure::Overloaded);
        self.keep(settings.chain(events).collect(), unless_changed)
    }

    /// Stores an access token together with its audit event. The answer is `false` if another server has
    /// changed the token meanwhile: then nothing is written.
    pub fn keep_token(&self, token: AccessToken, event: Event) -> Result<Pending<bool>, Failure> {
        let change = vec![Write::AccessToken(token), Write::Audit(Arc::new(event))];
        self.keep(change, Ok)
    }

    /// Stores when access tokens were last used.
    pub fn keep_token_uses(
        &self,
        uses: Vec<(TokenNumber, Timestamp)>,
    ) -> Result<Pending<()>, Failure> {
        self.keep(vec![Write::TokenUses(uses)], |_| Ok(()))
    }

    /// Writes one change. `answer` makes the answer from whether its guards held.
    fn keep<A: Send + 'static>(
        &self,
        change: Vec<Write>,
        answer: impl FnOnce(bool) -> Result<A, Failure> + Send + 'static,
    ) -> Result<Pending<A>, Failure> {
        let (reply, pending) = self.request()?;
        if !reply.claim() {
            return Ok(pending);
        }
        self.persistence.commit(Change(change), None, move |committed| {
            let answer = match committed {
                Committed::Written => answer(true),
                Committed::Conflict => answer(false),
                Committed::Failed(failure) => Err(failure),
            };
            match answer {
                Ok(answer) => reply.grant(answer),
                Err(failure) => reply.fail(failure),
            }
        });
        Ok(pending)
    }

    /// Writes the gathered attempts on codes to the store.
    fn flush_attempts(&self) {
        let attempts = self.attempts.take();
        if !attempts.is_empty() {
            let change = Change(attempts.into_iter().map(Write::Attempt).collect());
            // If the store refuses, they are lost. No decision depends on them.
            self.persistence.commit(change, None, |_| {});
        }
    }

    /// Writes the gathered alarms to the audit log.
    fn flush_alarms(self: &Arc<Self>) {
        let events = self.alarms.take();
        if events.is_empty() {
            return;
        }
        let writes = events.iter().cloned().map(Arc::new).map(Write::Audit).collect();
        let handles = Arc::clone(self);
        self.persistence.commit(Change(writes), None, move |committed| match committed {
            Committed::Written | Committed::Failed(Failure::OutcomeUnknown) => {}
            Committed::Conflict | Committed::Failed(_) => handles.alarms.take_back(events),
        });
    }

    /// Returns all registered servers, for reading.
    pub fn servers(&self) -> &Arc<Servers> {
        &self.servers
    }

    /// Returns the store, to read listings from. It may be behind the actors, but never behind an
    /// answer.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Records an attempt that the HTTP edge refused, with its code. Attempts refused by a rate limit
    /// are not recorded: a flood must not store more than the limits allow.
    pub fn note_refused(&self, attempt: RefusedEarly, refusal: &Refusal) {
        if !matches!(refusal, Refusal::RateLimited { .. }) {
            self.attempts.add(attempt.because(refusal));
        }
    }

    /// Whether other servers also write to the store. If so, cached records may be out of date.
    pub(crate) fn is_shared(&self) -> bool {
        self.limit_counter.is_some()
    }

    /// Handles an event from any server of the cluster, so that memory follows the store soon.
    pub fn heard(self: &Arc<Self>, event: &Event) {
        if !self.is_shared() {
            return;
        }
        match (event.action, event.server) {
            (Action::FleetSilent, _) => {
                self.server_registry.send(Heard::of(event));
            }
            (Action::CloneSeen, Some(id)) => {
                self.server_registry.send(CloneReported(id, event.at));
            }
            (action, Some(id)) => {
                server_registry::follow(self, id, action == Action::ServerCheckedIn);
            }
            _ => {}
        }
    }

    /// Sends the time to every actor.
    pub fn tick(self: &Arc<Self>, now: Timestamp) {
        self.flush_attempts();
        self.flush_alarms();
        self.health.note_commits_flow(self.persistence.writes_for() < STUCK_AFTER);
        let missed =
            std::mem::take(&mut *self.missed.lock().unwrap_or_else(PoisonError::into_inner));
        missed.into_iter().for_each(|server| server_registry::follow(self, server, false));
        self.rate_limiter.send(Tick(now));
        self.code_registry.send(Eviction::Tick(now));
        self.activation.send(Eviction::Tick(now));
        self.server_registry.send(Tick(now));
    }

    /// Shuts the actors down in the order in which messages pass them. Persistence is last, once
    /// everything is on disk. Requests must have stopped before.
    pub async fn stop(self: &Arc<Self>) {
        self.flush_attempts();
        self.flush_alarms();
        let (done, ended) = oneshot::channel();
        self.rate_limiter.send(Shutdown(done));
        // An error means that an actor had already ended. Then there is nothing to wait for.
        let _ = ended.await;
        self.persistence.stop();
        self.reader.stop();
        if let Some(limit_counter) = &self.limit_counter {
            limit_counter.stop();
        }
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let (done, ended) = oneshot::channel();
        // On a thread of its own: the caller has a deadline, and a stuck store would hold it up beyond
        // that.
        std::thread::spawn(move || {
            for thread in threads {
                // A thread that panicked has been reported by its own end.
                let _ = thread.join();
            }
            // This fails if the caller has stopped waiting.
            let _ = done.send(());
        });
        let _ = ended.await;
        if let Some(arbiter) = &self.arbiter {
            arbiter.stop();
        }
        // Closed here, not when the last of many owners is dropped: the caller may open the store again
        // at once.
        self.store.close();
    }

    /// Closes the store on another thread, without waiting, where shutting down took too long.
    pub fn abandon(&self) {
        let store = Arc::clone(&self.store);
        std::thread::spawn(move || store.close());
    }

    /// Answers a request that changes nothing, once the state that the answer depends on is on disk. So
    /// no caller learns of a change that may still be lost.
    pub(crate) fn answer_once_confirmed<A: Send + 'static>(
        &self,
        reply: Reply<A>,
        generation: u32,
        decision: Result<A, Refusal>,
    ) {
        self.persistence.confirm(Some(generation), move |committed| match committed {
            Committed::Written | Committed::Conflict => reply.decide(decision),
            Committed::Failed(failure) => reply.fail(failure),
        });
    }

    /// Refuses a request for a record that was not found, once a commit has confirmed this. A former
    /// primary still answers reads, but lacks everything written after its failover.
    pub(crate) fn answer_not_found<A: Send + 'static>(
        &self,
        mut reply: Reply<A>,
        refusal: Refusal,
    ) {
        let generation = reply.generation(self.persistence.generation());
        self.answer_once_confirmed(reply, generation, Err(refusal));
    }
}
