//! The code-registry actor: the only writer of codes.
//!
//! A code is consumed by one message handled before the next; that is the whole of its locking.
//! Memory holds the codes at work. It runs ahead of the disk, but no answer does: whatever rests
//! on memory goes back through the persistence actor's queue.

use crate::activation::{Activated, Open, PrecheckHeld, ReleaseOutcome, Resume};
use crate::eviction::{Eviction, Examined};
use crate::handles::Handles;
use crate::observed::{ActorMetrics, Observed, Transitions};
use crate::persistence::Committed;
use crate::rate_limiter::LimitedCommand;
use crate::reply::Reply;
use crate::tuning::Tuning;
use crate::work::{Command, Reload, Shutdown, Tick, Work};
use crate::{Failure, activation};
use actix::{Actor, ActorContext, Context, Handler, Message};
use arc_swap::ArcSwap;
use iptunnel_domain::activation::{
    Activation, ActivationId, ActivationNumber, ActivationRef, Holder, Request,
};
use iptunnel_domain::code::{
    Activate as Consumption, Code, CodeHash, CodeNumber, InstallCode, Precheck, ProductLetters,
};
use iptunnel_domain::lookup::{KeyedHash, LookupKey};
use iptunnel_domain::time::Lifetimes;
use iptunnel_domain::{Refusal, Timestamp, Version};
use iptunnel_storage::{Change, Frontier, Write};
use rand_chacha::ChaCha20Rng;
use rand_core::Rng;
use std::collections::HashMap;
use std::sync::Arc;

/// Issues a code. Sent by the rate limiter; answered when the code is on disk.
pub struct Issue {
    /// The product it will install.
    pub product: ProductLetters,
    /// The browser session that asks.
    pub session: KeyedHash,
    /// The lifetimes in force.
    pub life: Lifetimes,
    /// When the request came.
    pub now: Timestamp,
}

/// A code as issued.
pub struct Issued {
    /// The code: a secret.
    pub code: InstallCode,
    /// When it expires.
    pub expires_at: Timestamp,
}

impl Command for Issue {
    type Answer = Issued;
}

impl LimitedCommand for Issue {
    fn forward(self, reply: Reply<Issued>, handles: &Handles) {
        handles.code_registry.send(Work::<_, Code>::new(self, reply));
    }
}

/// Asks whether a machine may begin an installation. Sent by the rate limiter; changes nothing.
pub struct PrecheckCode {
    /// The code.
    pub code: CodeHash,
    /// The machine.
    pub holder: Holder,
    /// The lifetimes in force.
    pub life: Lifetimes,
    /// When the request came.
    pub now: Timestamp,
}

impl Command for PrecheckCode {
    type Answer = ();
}

impl LimitedCommand for PrecheckCode {
    fn forward(self, reply: Reply<()>, handles: &Handles) {
        handles.code_registry.send(Work::new(self, reply));
    }
}

/// Consumes a code, or takes an open activation up again. Sent by the rate limiter; answered when
/// the activation is on disk.
#[derive(Clone)]
pub struct Activate {
    /// The code.
    pub code: CodeHash,
    /// When the precheck was that the request rests on.
    pub prechecked_at: Timestamp,
    /// Who asks, and for what.
    pub request: Request,
    /// The lifetimes in force.
    pub life: Lifetimes,
    /// When the request came.
    pub now: Timestamp,
}

impl Command for Activate {
    type Answer = Activated;
}

impl LimitedCommand for Activate {
    fn forward(self, reply: Reply<Activated>, handles: &Handles) {
        handles.code_registry.send(Work::new(self, reply));
    }
}

/// Consumes a code anew for the machine that holds it, with another binding. Sent by the
/// activation actor, which has released the old activation.
pub(crate) struct Replace {
    pub(crate) code: Code,
    pub(crate) released: Activation,
    pub(crate) activate: Activate,
}

impl Command for Replace {
    type Answer = Activated;
}

/// Gives a code back. Sent by the activation actor, which has released its activation; answered
/// when both are on disk.
pub(crate) struct Restore {
    pub(crate) released: Activation,
    pub(crate) release: activation::Release,
}

impl Command for Restore {
    type Answer = ReleaseOutcome;
}

/// A commit showed that what memory holds of this code is not what the store holds.
pub(crate) struct Disown(pub(crate) CodeHash);

impl Message for Disown {
    type Result = ();
}

/// These codes are on disk and no longer at work: they may leave memory where they have not
/// changed since.
struct Evict(Vec<(CodeHash, Version)>);

impl Message for Evict {
    type Result = ();
}

/// The oldest codes in the store.
struct Oldest(Vec<Code>, Timestamp);

impl Message for Oldest {
    type Result = ();
}

/// Seconds between two looks at the oldest codes.
pub(crate) const RETENTION_EVERY: u64 = 60;

/// The only writer of codes.
pub(crate) struct CodeRegistry {
    codes: HashMap<CodeHash, Code>,
    eviction: Eviction<CodeHash>,
    last_code: CodeNumber,
    last_activation: ActivationNumber,
    random: ChaCha20Rng,
    key: LookupKey,
    generation: u32,
    tuning: Arc<ArcSwap<Tuning>>,
    handles: Arc<Handles>,
    metrics: ActorMetrics,
    observed: Observed,
    transitions: Transitions,
    next_retention: Timestamp,
}

impl CodeRegistry {
    pub(crate) fn new(
        frontier: &Frontier,
        random: ChaCha20Rng,
        key: LookupKey,
        tuning: Arc<ArcSwap<Tuning>>,
        handles: Arc<Handles>,
        observed: &Observed,
    ) -> Self {
        Self {
            codes: HashMap::new(),
            eviction: Eviction::new(),
            last_code: frontier.code,
            last_activation: frontier.activation,
            random,
            key,
            generation: 0,
            tuning,
            handles,
            metrics: observed.actor("code_registry"),
            observed: observed.clone(),
            transitions: observed.transitions(),
            next_retention: Timestamp(0),
        }
    }

    /// Counts a message and checks on which state of the store its request was decided so far.
    /// A later one than ours: ours is void. An earlier one: the request rests on what never was.
    fn current<A>(&mut self, reply: &mut Reply<A>) -> bool {
        self.metrics.taken();
        let theirs = reply.generation(self.generation);
        self.reload(theirs);
        theirs == self.generation
    }

    fn reload(&mut self, generation: u32) {
        if generation > self.generation {
            self.generation = generation;
            self.codes.clear();
            self.eviction.clear();
        }
    }

    /// The command with its code, or nothing where the command was answered or went to look the
    /// code up first.
    fn find<C>(&mut self, mut work: Work<C, Code>, hash: CodeHash) -> Option<(Work<C, Code>, Code)>
    where
        C: Command,
        Self: Handler<Work<C, Code>>,
    {
        if !self.current(&mut work.reply) {
            work.reply.fail(Failure::StorageUnavailable);
            return None;
        }
        if let Some(code) = self.codes.get(&hash) {
            let code = code.clone();
            return Some((work, code));
        }
        match work.found.take() {
            Some(Some(code)) => Some((work, code)),
            Some(None) => {
                work.reply.refuse(Refusal::CodeNotFound);
                None
            }
            None => {
                let handles = Arc::clone(&self.handles);
                self.handles.reader.look_up(
                    work,
                    move |store, _| store.code(hash),
                    move |work| {
                        handles.code_registry.send(work);
                    },
                );
                None
            }
        }
    }

    fn remember(&mut self, code: Code) {
        let hash = code.hash;
        if self.codes.insert(hash, code).is_none() {
            self.eviction.watch(hash);
        }
    }

    fn next_activation(&mut self) -> ActivationRef {
        self.last_activation.0 += 1;
        ActivationRef { number: self.last_activation, id: ActivationId(self.random.next_u64()) }
    }

    fn draw_code(&mut self, product: ProductLetters) -> InstallCode {
        let bits = u128::from(self.random.next_u64()) << 64 | u128::from(self.random.next_u64());
        InstallCode::from_random_bits(product, bits)
    }

    /// Sends a decision that changes nothing back through the queue of what may change it.
    fn answer<A: Send + 'static>(&self, reply: Reply<A>, decision: Result<A, Refusal>) {
        self.handles.answer_behind_the_disk(reply, self.generation, decision);
    }

    fn evict(&mut self, now: Timestamp) {
        let tuning = self.tuning.load_full();
        let codes = &self.codes;
        let done =
            self.eviction.done(tuning.batches.code_registry, |hash| match codes.get(&hash) {
                None => Examined::Gone,
                Some(code) if code.is_live(now, &tuning.lifetimes) => Examined::AtWork,
                Some(code) => Examined::Done((hash, code.version)),
            });
        if !done.is_empty() {
            self.metrics.batch.observe(done.len() as f64);
            let handles = Arc::clone(&self.handles);
            // Behind the queue, so that whatever was last written of them is on disk.
            self.handles.persistence.commit(Change::default(), None, move |_| {
                handles.code_registry.send(Evict(done));
            });
        }
    }

    /// Reads the oldest codes; [`Oldest`] brings them back.
    fn look_for_forgettable(&self, now: Timestamp) {
        let handles = Arc::clone(&self.handles);
        let count = self.tuning.load().batches.code_registry;
        self.handles.reader.run(move |store| {
            if let Ok(codes) = store.oldest_codes(count) {
                handles.code_registry.send(Oldest(codes, now));
            }
        });
    }
}

impl Actor for CodeRegistry {
    type Context = Context<Self>;
}

impl Handler<Work<Issue, Code>> for CodeRegistry {
    type Result = ();

    fn handle(&mut self, mut work: Work<Issue, Code>, _: &mut Context<Self>) {
        if !self.current(&mut work.reply) {
            return work.reply.fail(Failure::StorageUnavailable);
        }
        if !work.reply.claim() {
            return;
        }
        let Work { command: Issue { product, session, life, now }, reply, .. } = work;
        let code = self.draw_code(product);
        self.last_code.0 += 1;
        let record =
            Code::issue(self.last_code, code.hash(&self.key), product, session, now, &life);
        let issued = Issued { code, expires_at: record.expires_at };
        let transitions = self.transitions.issued.clone();
        let change = Change(vec![Write::Code(record.clone())]);
        self.handles.persistence.commit(change, Some(self.generation), move |committed| {
            match committed {
                Committed::Written => {
                    transitions.inc();
                    reply.grant(issued);
                }
                // A new number that is taken: another server was faster. The caller asks again.
                Committed::Conflict => reply.fail(Failure::Overloaded),
                Committed::Unavailable => reply.fail(Failure::StorageUnavailable),
                Committed::Unknown => reply.fail(Failure::OutcomeUnknown),
            }
        });
        self.remember(record);
    }
}

impl Handler<Work<PrecheckCode, Code>> for CodeRegistry {
    type Result = ();

    fn handle(&mut self, work: Work<PrecheckCode, Code>, _: &mut Context<Self>) {
        let hash = work.command.code;
        let Some((work, code)) = self.find(work, hash) else { return };
        match code.precheck(work.command.now, &work.command.life) {
            Err(refusal) => self.answer(work.reply, Err(refusal)),
            Ok(Precheck::Ready) => self.answer(work.reply, Ok(())),
            Ok(Precheck::Held(by)) => {
                let held = |PrecheckCode { holder, now, .. }| PrecheckHeld { by, holder, now };
                self.handles.activation.send(work.then(held));
            }
        }
    }
}

impl Handler<Work<Activate, Code>> for CodeRegistry {
    type Result = ();

    fn handle(&mut self, work: Work<Activate, Code>, _: &mut Context<Self>) {
        let hash = work.command.code;
        let Some((work, code)) = self.find(work, hash) else { return };
        let Activate { prechecked_at, life, .. } = work.command;
        let by = self.next_activation();
        match code.activate(by, prechecked_at, &life) {
            Err(refusal) => self.answer(work.reply, Err(refusal)),
            Ok(Consumption::Held(by)) => {
                self.handles.activation.send(work.then(|activate| Resume { by, code, activate }));
            }
            Ok(Consumption::Consume(code)) => {
                if work.reply.claim() {
                    self.open(work.then(|activate| Open {
                        at: by,
                        code,
                        replaces: None,
                        activate,
                    }));
                }
            }
        }
    }
}

impl CodeRegistry {
    /// Forwards the opening of an activation and, that done, takes the code for consumed.
    fn open(&mut self, work: Work<Open, Activation>) {
        let code = work.command.code.clone();
        if self.handles.activation.send(work) {
            self.remember(code);
        }
    }
}

impl Handler<Work<Replace, Code>> for CodeRegistry {
    type Result = ();

    fn handle(&mut self, mut work: Work<Replace, Code>, _: &mut Context<Self>) {
        if !self.current(&mut work.reply) {
            return work.reply.fail(Failure::StorageUnavailable);
        }
        let at = self.next_activation();
        self.open(work.then(|Replace { code, released, activate }| Open {
            at,
            code: code.consumed_by(at),
            replaces: Some(released),
            activate,
        }));
    }
}

impl Handler<Work<Restore, Code>> for CodeRegistry {
    type Result = ();

    fn handle(&mut self, work: Work<Restore, Code>, _: &mut Context<Self>) {
        let hash = work.command.released.code;
        let Some((work, code)) = self.find(work, hash) else { return };
        let Work { command: Restore { released, release }, reply, attempts, .. } = work;
        let restored = code.restore(released.at, release.now, &release.life);
        let good = restored.as_ref().is_some_and(|code| !code.is_expired(release.now));
        let mut change = Change(vec![Write::Activation(released.clone())]);
        change.0.extend(restored.clone().map(Write::Code));
        let handles = Arc::clone(&self.handles);
        let transitions = self.transitions.released.clone();
        self.handles.persistence.commit(change, Some(self.generation), move |committed| {
            match committed {
                Committed::Written => {
                    transitions.inc();
                    reply.grant(ReleaseOutcome::Released { code_restored: good });
                }
                Committed::Conflict => {
                    handles.disown(hash, released.at.id);
                    let work = Work { command: release, reply, found: None, attempts };
                    if let Some(work) = work.again() {
                        handles.activation.send(work);
                    }
                }
                Committed::Unavailable => reply.fail(Failure::StorageUnavailable),
                Committed::Unknown => reply.fail(Failure::OutcomeUnknown),
            }
        });
        if let Some(code) = restored {
            self.remember(code);
        }
    }
}

impl Handler<Disown> for CodeRegistry {
    type Result = ();

    fn handle(&mut self, Disown(hash): Disown, _: &mut Context<Self>) {
        self.metrics.taken();
        self.codes.remove(&hash);
    }
}

impl Handler<Evict> for CodeRegistry {
    type Result = ();

    fn handle(&mut self, Evict(codes): Evict, _: &mut Context<Self>) {
        self.metrics.taken();
        for (hash, version) in codes {
            match self.codes.get(&hash) {
                Some(code) if code.version == version => {
                    self.codes.remove(&hash);
                }
                Some(_) => self.eviction.watch(hash),
                None => {}
            }
        }
    }
}

impl Handler<Oldest> for CodeRegistry {
    type Result = ();

    fn handle(&mut self, Oldest(codes, now): Oldest, _: &mut Context<Self>) {
        self.metrics.taken();
        let tuning = self.tuning.load_full();
        let forgettable =
            |code: &&Code| code.is_forgettable(now, tuning.retention_seconds, &tuning.lifetimes);
        let forgotten: Vec<&Code> = codes.iter().take_while(forgettable).collect();
        if forgotten.is_empty() {
            return;
        }
        for code in &forgotten {
            self.codes.remove(&code.hash);
            let change = Change(vec![Write::ForgetCode(code.number, code.version)]);
            self.handles.persistence.commit(change, None, |_| {});
        }
        if forgotten.len() == codes.len() {
            // There may be more; next time they are the oldest.
            let handles = Arc::clone(&self.handles);
            self.handles.persistence.commit(Change::default(), None, move |committed| {
                if committed == Committed::Written {
                    handles.code_registry.send(LookAgain(now));
                }
            });
        }
    }
}

/// Enough was forgotten that there may be more.
struct LookAgain(Timestamp);

impl Message for LookAgain {
    type Result = ();
}

impl Handler<LookAgain> for CodeRegistry {
    type Result = ();

    fn handle(&mut self, LookAgain(now): LookAgain, _: &mut Context<Self>) {
        self.metrics.taken();
        self.look_for_forgettable(now);
    }
}

impl Handler<Tick> for CodeRegistry {
    type Result = ();

    fn handle(&mut self, Tick(now): Tick, _: &mut Context<Self>) {
        self.metrics.taken();
        self.evict(now);
        self.observed.codes_in_memory.set(self.codes.len() as i64);
        if now >= self.next_retention {
            self.next_retention = now.plus(RETENTION_EVERY);
            self.look_for_forgettable(now);
        }
    }
}

impl Handler<Reload> for CodeRegistry {
    type Result = ();

    fn handle(&mut self, Reload(generation): Reload, _: &mut Context<Self>) {
        self.metrics.taken();
        self.reload(generation);
    }
}

impl Handler<Shutdown> for CodeRegistry {
    type Result = ();

    fn handle(&mut self, shutdown: Shutdown, context: &mut Context<Self>) {
        self.metrics.taken();
        self.handles.activation.send(shutdown);
        context.stop();
    }
}
