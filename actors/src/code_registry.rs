//! The code-registry actor: the only writer of codes.
//!
//! The actor handles one message at a time, so consuming a code needs no lock. Memory caches the
//! codes in use. The cache runs ahead of the disk, but no answer does: an answer that depends on the
//! cache waits in the persistence actor's queue.

pub use crate::messages::codes::{Activate, Issue, Issued, PrecheckCode};

use crate::Failure;
use crate::activation::happened;
use crate::handles::Handles;
use crate::memory::attempts::{not_activated, prechecked};
use crate::memory::numbers::Numbers;
use crate::memory::record_cache::{
    self, CacheOwner, CachedRecord, Eviction, Loaded, RecordCache, begin_change, run_ahead,
};
use crate::messages::activations::{
    Activated, Closing, Open, PrecheckHeld, ReleaseOutcome, Resume,
};
use crate::messages::codes::{Replace, Restore, Spent};
use crate::messages::{Command, Shutdown, Work};
use crate::persistence::Committed;
use crate::rate_limiter::{LimitedCommand, charge_first};
use crate::runtime::mailbox::{Actor, Mailbox, Receive};
use crate::runtime::metrics::{ActorMetrics, Metrics, Transitions};
use crate::runtime::reply::Reply;
use crate::runtime::tuning::ActorSettings;
use arc_swap::ArcSwap;
use iptunnel_domain::activation::{Activation, ActivationId, ActivationNumber, ActivationRef};
use iptunnel_domain::audit::{Action, Actor as Who, Event};
use iptunnel_domain::code::{
    Activate as Consumption, Code, CodeHash, CodeNumber, CodeState, InstallCode, Precheck,
    ProductLetters,
};
use iptunnel_domain::lookup::LookupKey;
use iptunnel_domain::{Refusal, Timestamp, Version};
use iptunnel_storage::{Change, ReadError, Store, Write};
use rand_chacha::ChaCha20Rng;
use rand_core::Rng;
use std::sync::Arc;

impl LimitedCommand for Issue {
    const MAY_REPEAT: bool = false;

    fn forward(self, reply: Reply<Issued>, handles: &Handles) {
        handles.code_registry.send(Work::<_, Code>::new(self, reply));
    }
}

impl LimitedCommand for PrecheckCode {
    const MAY_REPEAT: bool = true;

    fn forward(self, reply: Reply<()>, handles: &Handles) {
        handles.code_registry.send(Work::new(self, reply));
    }
}

impl LimitedCommand for Activate {
    const MAY_REPEAT: bool = true;
    const IS_CHARGED_BY_CHANGE: bool = true;

    fn forward(self, reply: Reply<Activated>, handles: &Handles) {
        handles.code_registry.send(Work::new(self, reply));
    }
}

impl CachedRecord for Code {
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
    fn is_at_work(&self, now: Timestamp, tuning: &ActorSettings) -> bool {
        self.is_live(now, &tuning.lifetimes)
    }
    fn is_forgettable(&self, now: Timestamp, tuning: &ActorSettings) -> bool {
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
    codes: RecordCache<Code>,
    code_numbers: Numbers,
    activation_numbers: Numbers,
    random: ChaCha20Rng,
    key: LookupKey,
    tuning: Arc<ArcSwap<ActorSettings>>,
    handles: Arc<Handles>,
    metrics: ActorMetrics,
    observed: Metrics,
    transitions: Transitions,
    ended: bool,
}

impl CodeRegistry {
    pub(crate) fn new(
        code_numbers: Numbers,
        activation_numbers: Numbers,
        random: ChaCha20Rng,
        key: LookupKey,
        tuning: Arc<ArcSwap<ActorSettings>>,
        handles: Arc<Handles>,
        observed: &Metrics,
    ) -> Self {
        Self {
            codes: RecordCache::new(),
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

    /// Calls [`record_cache::find`]. A code that does not exist is refused.
    fn find<C>(
        &mut self,
        work: Work<C, Code>,
        hash: CodeHash,
        enough: impl FnOnce(&C, &Code) -> bool,
    ) -> Option<Loaded<C, Code>>
    where
        C: Command,
        Self: Receive<Work<C, Code>>,
    {
        let missing = |handles: &Handles, work: Work<C, Code>| match work.reply.limit_reached() {
            Some(limit) => work.reply.refuse(limit),
            None => handles.answer_not_found(work.reply, Refusal::CodeNotFound),
        };
        record_cache::find(self, work, hash, enough, missing)
    }

    fn next_activation(&mut self, now: Timestamp) -> ActivationRef {
        let number = ActivationNumber(self.activation_numbers.next(now));
        ActivationRef { number, id: ActivationId(self.random.next_u64()) }
    }

    fn draw_code(&mut self, product: ProductLetters) -> InstallCode {
        let bits = u128::from(self.random.next_u64()) << 64 | u128::from(self.random.next_u64());
        InstallCode::from_random_bits(product, bits)
    }

    /// Answers a command that changes nothing, once the state that the answer depends on is on disk.
    fn answer<C: Command>(&self, work: Work<C, Code>, decision: Result<C::Answer, Refusal>) {
        self.handles.answer_once_confirmed(work.reply, self.codes.generation(), decision);
    }
}

/// Sends a command to the code registry.
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
        // Nobody knows the code before it is on disk, so no command can wait for this change.
        let under_way = begin_change(self, record.hash);
        let written = record.clone();
        let change = Change(vec![Write::Code(record.clone()), Write::Audit(Arc::new(event))]);
        self.handles.persistence.commit(change, Some(self.codes.generation()), move |committed| {
            match committed {
                Committed::Written => {
                    transitions.inc();
                    under_way.written(&written);
                    reply.grant(issued);
                }
                // Another server took the new number first. The caller has to ask again.
                Committed::Conflict => reply.fail(Failure::Overloaded),
                Committed::Failed(failure) => reply.fail(failure),
            }
        });
        run_ahead(self, record);
    }
}

impl Receive<Work<PrecheckCode, Code>> for CodeRegistry {
    fn receive(&mut self, work: Work<PrecheckCode, Code>) {
        let hash = work.command.code;
        let Some((work, code)) = self.find(work, hash, |_, _| false) else {
            return;
        };
        let decision = code.precheck(work.command.now, &work.command.life);
        if let (Err(_) | Ok(Precheck::Ready), Some(limit)) = (&decision, work.reply.limit_reached())
        {
            return work.reply.refuse(limit);
        }
        match decision {
            Err(refusal) => {
                self.handles.attempts.add(prechecked(&work.command, Err(&refusal)));
                self.answer(work, Err(refusal));
            }
            Ok(Precheck::Ready) => {
                self.handles.attempts.add(prechecked(&work.command, Ok(())));
                self.answer(work, Ok(()));
            }
            Ok(Precheck::Held(by)) => {
                self.handles.activation.send(work.then(|precheck| PrecheckHeld { by, precheck }));
            }
        }
    }
}

/// Whether an activate consumes the code.
fn consumes(asked: &Activate, code: &Code) -> bool {
    let by = ActivationRef { number: ActivationNumber(0), id: ActivationId(0) };
    let decision = code.activate(by, asked.prechecked_at, &asked.life);
    matches!(decision, Ok(Consumption::Consume(_)))
}

impl Receive<Work<Activate, Code>> for CodeRegistry {
    fn receive(&mut self, work: Work<Activate, Code>) {
        let hash = work.command.code;
        // What leads to no change, or is not known to lead to one, is charged before it is decided.
        if work.reply.due().is_some()
            && !self.codes.leads_to_change(hash, |code| consumes(&work.command, code))
        {
            return charge_first(&self.handles, work);
        }
        let Some((work, code)) = self.find(work, hash, consumes) else { return };
        let Activate { prechecked_at, life, .. } = work.command;
        let by = self.next_activation(work.command.now);
        let decision = code.activate(by, prechecked_at, &life);
        if let (Err(_) | Ok(Consumption::Consume(_)), Some(limit)) =
            (&decision, work.reply.limit_reached())
        {
            return work.reply.refuse(limit);
        }
        match decision {
            Err(refusal) => {
                self.handles.attempts.add(not_activated(&work.command, &refusal));
                self.answer(work, Err(refusal));
            }
            Ok(Consumption::Held(by)) => {
                self.handles.activation.send(work.then(|activate| Resume { by, code, activate }));
            }
            Ok(Consumption::Consume(code)) => {
                if work.reply.claim() {
                    let of_code = begin_change(self, hash);
                    self.open(work.then(|activate| Open {
                        at: by,
                        code,
                        of_code,
                        replaces: None,
                        activate,
                    }));
                }
            }
        }
    }
}

impl CodeRegistry {
    /// Forwards the opening of an activation. Then it caches the code as consumed, where the cache may
    /// run ahead of the store.
    fn open(&mut self, work: Work<Open, Activation>) {
        let code = work.command.code.clone();
        if self.handles.activation.send(work) {
            run_ahead(self, code);
        }
    }
}

impl Receive<Work<Replace, Code>> for CodeRegistry {
    fn receive(&mut self, mut work: Work<Replace, Code>) {
        self.metrics.taken();
        if !self.codes.is_current(&mut work.reply) {
            return work.reply.fail(Failure::StorageUnavailable);
        }
        let hash = work.command.code.hash;
        if self.codes.is_changing(hash) {
            let handles = Arc::clone(&self.handles);
            let command = Box::new(move || {
                handles.code_registry.send(work);
            });
            return self.codes.park(hash, command);
        }
        let at = self.next_activation(work.command.activate.now);
        let of_code = begin_change(self, hash);
        self.open(work.then(|Replace { code, replaced, activate }| Open {
            at,
            code: code.consumed_by(at),
            of_code,
            replaces: Some(replaced),
            activate,
        }));
    }
}

impl Receive<Work<Restore, Code>> for CodeRegistry {
    fn receive(&mut self, work: Work<Restore, Code>) {
        let hash = work.command.released.released.code;
        let restored = |asked: &Restore, code: &Code| {
            let Restore { released, release } = asked;
            code.restore(released.released.at, release.now, &release.life)
        };
        let restores = |asked: &Restore, code: &Code| restored(asked, code).is_some();
        let Some((work, code)) = self.find(work, hash, restores) else { return };
        let restored = restored(&work.command, &code);
        let Work { command, reply, .. } = work;
        let Restore { released: Closing { released, change: of_activation }, release } = command;
        let handles = Arc::clone(&self.handles);
        let begin_again = move |reply, release| {
            if let Some(work) = Work::new(release, reply).again() {
                handles.activation.send(work);
            }
        };
        let Some(code) = restored else {
            // The code was read before its activation was. Releasing the activation alone would leave
            // the code consumed for ever.
            drop(of_activation);
            return begin_again(reply, release);
        };
        let good = !code.is_expired(release.now);
        let event = happened(Action::Released, &released, release.now, release.from);
        let change = Change(vec![
            Write::Activation(released.clone()),
            Write::Code(code.clone()),
            Write::Audit(Arc::new(event)),
        ]);
        let of_code = begin_change(self, hash);
        let (transitions, memory) = (self.transitions.released.clone(), code.clone());
        self.handles.persistence.commit(change, Some(self.codes.generation()), move |committed| {
            match committed {
                Committed::Written => {
                    transitions.inc();
                    of_code.written(&code);
                    of_activation.written(&released);
                    reply.grant(ReleaseOutcome::Released { code_restored: good });
                }
                Committed::Conflict => {
                    drop((of_code, of_activation));
                    begin_again(reply, release);
                }
                Committed::Failed(failure) => reply.fail(failure),
            }
        });
        run_ahead(self, memory);
    }
}

impl CacheOwner for CodeRegistry {
    type Record = Code;

    fn memory(&mut self) -> &mut RecordCache<Code> {
        &mut self.codes
    }
    fn metrics(&self) -> &ActorMetrics {
        &self.metrics
    }
    fn handles(&self) -> &Arc<Handles> {
        &self.handles
    }
    fn tuning(&self) -> Arc<ActorSettings> {
        self.tuning.load_full()
    }
    fn step(tuning: &ActorSettings) -> usize {
        tuning.batches.code_registry
    }
    fn mailbox(handles: &Handles) -> &Mailbox<Self> {
        &handles.code_registry
    }
}

impl Receive<Eviction<Code>> for CodeRegistry {
    fn receive(&mut self, upkeep: Eviction<Code>) {
        self.metrics.taken();
        self.keep(upkeep);
        self.observed.codes_in_memory.set(self.codes.len() as i64);
    }
}

impl Receive<Spent> for CodeRegistry {
    /// Evicts codes before their lifetime ends. The change that consumed such a code is on disk: it
    /// is no newer than the last change of its activation, which is on disk.
    fn receive(&mut self, Spent(spent): Spent) {
        self.metrics.taken();
        for (code, by) in spent {
            self.codes.evict_if(code, |code| code.state == CodeState::Consumed(by));
        }
        self.codes.shrink();
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
