//! The code-registry actor: the only writer of codes.
//!
//! A code is consumed by one message handled before the next; that is the whole of its locking.
//! Memory holds the codes at work. It runs ahead of the disk, but no answer does: whatever rests
//! on memory goes back through the persistence actor's queue.

use crate::activation::{Activated, Open, PrecheckHeld, ReleaseOutcome, Resume, happened};
use crate::attempts::{not_activated, prechecked};
use crate::handles::Handles;
use crate::keeper::{self, Held, Keeper, Kept, Memory, Upkeep};
use crate::mailbox::{Actor, Mailbox, Receive};
use crate::numbers::Numbers;
use crate::observed::{ActorMetrics, Observed, Transitions};
use crate::persistence::{Committed, Fate};
use crate::rate_limiter::LimitedCommand;
use crate::reply::Reply;
use crate::tuning::Tuning;
use crate::work::{Command, Shutdown, Work};
use crate::{Failure, activation};
use arc_swap::ArcSwap;
use iptunnel_domain::activation::{
    Activation, ActivationId, ActivationNumber, ActivationRef, Holder, Request,
};
use iptunnel_domain::audit::{Action, Actor as Who, Event};
use iptunnel_domain::code::{
    Activate as Consumption, Code, CodeHash, CodeNumber, InstallCode, Precheck, ProductLetters,
};
use iptunnel_domain::lookup::{KeyedHash, LookupKey};
use iptunnel_domain::time::Lifetimes;
use iptunnel_domain::{Refusal, Timestamp, Version};
use iptunnel_storage::{Change, ReadError, Store, Write};
use rand_chacha::ChaCha20Rng;
use rand_core::Rng;
use std::net::IpAddr;
use std::sync::Arc;

/// Issues a code. Sent by the rate limiter; answered when the code is on disk.
pub struct Issue {
    /// The product it will install.
    pub product: ProductLetters,
    /// The browser session that asks.
    pub session: KeyedHash,
    /// The network it asks from.
    pub from: IpAddr,
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
    /// The network it asks from.
    pub from: IpAddr,
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
    pub request: Arc<Request>,
    /// The network it asks from.
    pub from: IpAddr,
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
    pub(crate) fate: Fate,
}

impl Command for Replace {
    type Answer = Activated;
}

/// Gives a code back. Sent by the activation actor, which has released its activation; answered
/// when both are on disk.
pub(crate) struct Restore {
    pub(crate) released: Activation,
    pub(crate) release: activation::Release,
    pub(crate) fate: Fate,
}

impl Command for Restore {
    type Answer = ReleaseOutcome;
}

impl Kept for Code {
    type Key = CodeHash;
    type Number = CodeNumber;

    fn key(&self) -> CodeHash {
        self.hash
    }
    fn number(&self) -> CodeNumber {
        self.number
    }
    fn version(&self) -> Version {
        self.version
    }
    fn is_at_work(&self, now: Timestamp, tuning: &Tuning) -> bool {
        self.is_live(now, &tuning.lifetimes)
    }
    fn is_forgettable(&self, now: Timestamp, tuning: &Tuning) -> bool {
        Self::is_forgettable(self, now, tuning.retention_seconds, &tuning.lifetimes)
    }
    fn is_dated_ahead(&self, now: Timestamp) -> bool {
        Self::is_dated_ahead(self, now)
    }
    fn forget(&self) -> Write {
        Write::ForgetCode(self.number, self.version)
    }
    fn oldest(
        store: &dyn Store,
        after: Option<CodeNumber>,
        count: usize,
    ) -> Result<Vec<Self>, ReadError> {
        store.oldest_codes(after, count)
    }
}

/// The only writer of codes.
pub(crate) struct CodeRegistry {
    codes: Memory<Code>,
    code_numbers: Numbers,
    activation_numbers: Numbers,
    random: ChaCha20Rng,
    key: LookupKey,
    tuning: Arc<ArcSwap<Tuning>>,
    handles: Arc<Handles>,
    metrics: ActorMetrics,
    observed: Observed,
    transitions: Transitions,
    ended: bool,
}

impl CodeRegistry {
    pub(crate) fn new(
        code_numbers: Numbers,
        activation_numbers: Numbers,
        random: ChaCha20Rng,
        key: LookupKey,
        tuning: Arc<ArcSwap<Tuning>>,
        handles: Arc<Handles>,
        observed: &Observed,
    ) -> Self {
        Self {
            codes: Memory::new(),
            code_numbers,
            activation_numbers,
            random,
            key,
            tuning,
            handles,
            metrics: observed.actor("code_registry"),
            observed: observed.clone(),
            transitions: observed.transitions(),
            ended: false,
        }
    }

    /// As [`keeper::find`]; `undo` is called where the code cannot be had.
    fn find<C>(
        &mut self,
        work: Work<C, Code>,
        hash: CodeHash,
        enough: impl FnOnce(&C, &Code) -> bool,
        undo: impl FnOnce(&Handles) + Clone + Send + 'static,
    ) -> Option<Held<C, Code>>
    where
        C: Command,
        Self: Receive<Work<C, Code>>,
    {
        let undo_there = undo.clone();
        let missing = |handles: &Handles, work: Work<C, Code>| {
            undo(handles);
            work.reply.refuse(Refusal::CodeNotFound);
        };
        keeper::find(self, work, hash, enough, missing, undo_there)
    }

    fn next_activation(&mut self, now: Timestamp) -> ActivationRef {
        let number = ActivationNumber(self.activation_numbers.next(now));
        ActivationRef { number, id: ActivationId(self.random.next_u64()) }
    }

    fn draw_code(&mut self, product: ProductLetters) -> InstallCode {
        let bits = u128::from(self.random.next_u64()) << 64 | u128::from(self.random.next_u64());
        InstallCode::from_random_bits(product, bits)
    }

    /// Sends a decision that changes nothing back through the queue of what may change it.
    fn answer<C: Command>(
        &self,
        work: Work<C, Code>,
        decision: Result<C::Answer, Refusal>,
        rests_on: Fate,
        begin_again: fn(&Handles, Work<C, Code>),
    ) {
        let generation = self.codes.generation();
        self.handles.answer_behind_the_disk(work, generation, decision, rests_on, begin_again);
    }
}

/// Sends a command to its first owner, here.
pub(crate) fn begin<C: Command>(handles: &Handles, work: Work<C, Code>)
where
    CodeRegistry: Receive<Work<C, Code>>,
{
    handles.code_registry.send(work);
}

impl Actor for CodeRegistry {
    fn has_ended(&self) -> bool {
        self.ended
    }
}

impl Receive<Work<Issue, Code>> for CodeRegistry {
    fn receive(&mut self, mut work: Work<Issue, Code>) {
        self.metrics.taken();
        if !self.codes.is_current(&mut work.reply) {
            return work.reply.fail(Failure::StorageUnavailable);
        }
        if !work.reply.claim() {
            return;
        }
        let Work { command: Issue { product, session, from, life, now }, reply, .. } = work;
        let code = self.draw_code(product);
        let number = CodeNumber(self.code_numbers.next(now));
        let record = Code::issue(number, code.hash(&self.key), product, session, now, &life);
        let event = Event {
            identity: Some(session),
            code: Some(record.hash),
            subject: code.hint(),
            ..Event::new(Action::CodeIssued, Who::Browser, now, Some(from))
        };
        let issued = Issued { code, expires_at: record.expires_at };
        let transitions = self.transitions.issued.clone();
        let (handles, hash) = (Arc::clone(&self.handles), record.hash);
        let change = Change(vec![Write::Code(record.clone()), Write::Audit(Arc::new(event))]);
        self.handles.persistence.commit(change, Some(self.codes.generation()), move |committed| {
            match committed {
                Committed::Written => {
                    transitions.inc();
                    reply.grant(issued);
                }
                // A new number that is taken: another server was faster. The caller asks again.
                Committed::Conflict => {
                    handles.code_registry.send(Upkeep::Disown(hash));
                    reply.fail(Failure::Overloaded);
                }
                Committed::Failed(failure) => reply.fail(failure),
            }
        });
        // Nobody knows the code before it is on disk: nothing can rest on it.
        self.codes.remember(record, Fate::default());
    }
}

impl Receive<Work<PrecheckCode, Code>> for CodeRegistry {
    fn receive(&mut self, work: Work<PrecheckCode, Code>) {
        let hash = work.command.code;
        let Some((work, code, fate)) = self.find(work, hash, |_, _| false, |_| {}) else {
            return;
        };
        match code.precheck(work.command.now, &work.command.life) {
            Err(refusal) => {
                self.handles.attempts.add(prechecked(&work.command, Err(&refusal)));
                self.answer(work, Err(refusal), fate, begin);
            }
            Ok(Precheck::Ready) => {
                self.handles.attempts.add(prechecked(&work.command, Ok(())));
                self.answer(work, Ok(()), fate, begin);
            }
            Ok(Precheck::Held(by)) => {
                self.handles.activation.send(work.then(|precheck| PrecheckHeld { by, precheck }));
            }
        }
    }
}

impl Receive<Work<Activate, Code>> for CodeRegistry {
    fn receive(&mut self, work: Work<Activate, Code>) {
        let hash = work.command.code;
        let consumes = |asked: &Activate, code: &Code| {
            let by = ActivationRef { number: ActivationNumber(0), id: ActivationId(0) };
            let decision = code.activate(by, asked.prechecked_at, &asked.life);
            matches!(decision, Ok(Consumption::Consume(_)))
        };
        let Some((work, code, fate)) = self.find(work, hash, consumes, |_| {}) else { return };
        let Activate { prechecked_at, life, .. } = work.command;
        let by = self.next_activation(work.command.now);
        match code.activate(by, prechecked_at, &life) {
            Err(refusal) => {
                self.handles.attempts.add(not_activated(&work.command, &refusal));
                self.answer(work, Err(refusal), fate, begin);
            }
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
                        fate: Fate::default(),
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
        let fate = work.command.fate.clone();
        if self.handles.activation.send(work) {
            self.codes.remember(code, fate);
        }
    }
}

impl Receive<Work<Replace, Code>> for CodeRegistry {
    fn receive(&mut self, mut work: Work<Replace, Code>) {
        self.metrics.taken();
        if !self.codes.is_current(&mut work.reply) {
            return work.reply.fail(Failure::StorageUnavailable);
        }
        let at = self.next_activation(work.command.activate.now);
        self.open(work.then(|Replace { code, released, activate, fate }| Open {
            at,
            code: code.consumed_by(at),
            replaces: Some(released),
            activate,
            fate,
        }));
    }
}

impl Receive<Work<Restore, Code>> for CodeRegistry {
    fn receive(&mut self, work: Work<Restore, Code>) {
        let (hash, id) = (work.command.released.code, work.command.released.at.id);
        // The activation is released in memory already, which must not stay so.
        let fate = work.command.fate.clone();
        let undo = move |handles: &Handles| {
            fate.fail();
            handles.activation.send(Upkeep::Disown(id));
        };
        let restores = |asked: &Restore, code: &Code| {
            code.restore(asked.released.at, asked.release.now, &asked.release.life).is_some()
        };
        let Some((work, code, _)) = self.find(work, hash, restores, undo) else { return };
        let Work { command: Restore { released, release, fate }, reply, attempts, .. } = work;
        let fate_of_code = fate.clone();
        let restored = code.restore(released.at, release.now, &release.life);
        let good = restored.as_ref().is_some_and(|code| !code.is_expired(release.now));
        let mut change = Change(Vec::with_capacity(3));
        change.0.push(Write::Activation(released.clone()));
        change.0.extend(restored.clone().map(Write::Code));
        change.0.push(Write::Audit(Arc::new(happened(
            Action::Released,
            &released,
            release.now,
            release.from,
        ))));
        let handles = Arc::clone(&self.handles);
        let transitions = self.transitions.released.clone();
        self.handles.persistence.commit(change, Some(self.codes.generation()), move |committed| {
            match committed {
                Committed::Written => {
                    transitions.inc();
                    reply.grant(ReleaseOutcome::Released { code_restored: good });
                }
                Committed::Conflict => {
                    fate.fail();
                    handles.disown(hash, released.at.id);
                    let work = Work { command: release, reply, found: None, attempts };
                    if let Some(work) = work.again() {
                        handles.activation.send(work);
                    }
                }
                Committed::Failed(failure) => reply.fail(failure),
            }
        });
        if let Some(code) = restored {
            self.codes.remember(code, fate_of_code);
        }
    }
}

impl Keeper for CodeRegistry {
    type Record = Code;

    fn memory(&mut self) -> &mut Memory<Code> {
        &mut self.codes
    }
    fn metrics(&self) -> &ActorMetrics {
        &self.metrics
    }
    fn handles(&self) -> &Arc<Handles> {
        &self.handles
    }
    fn tuning(&self) -> Arc<Tuning> {
        self.tuning.load_full()
    }
    fn step(tuning: &Tuning) -> usize {
        tuning.batches.code_registry
    }
    fn mailbox(handles: &Handles) -> &Mailbox<Self> {
        &handles.code_registry
    }
}

impl Receive<Upkeep<Code>> for CodeRegistry {
    fn receive(&mut self, upkeep: Upkeep<Code>) {
        self.metrics.taken();
        self.keep(upkeep);
        self.observed.codes_in_memory.set(self.codes.len() as i64);
    }
}

impl Receive<Shutdown> for CodeRegistry {
    fn receive(&mut self, shutdown: Shutdown) {
        self.metrics.taken();
        self.handles.activation.send(shutdown);
        self.ended = true;
    }
}
