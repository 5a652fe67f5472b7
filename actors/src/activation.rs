//! The activation actor: the only writer of activations.

use crate::Failure;
use crate::code_registry::{Activate, RETENTION_EVERY, Replace, Restore};
use crate::eviction::{Eviction, Examined};
use crate::handles::Handles;
use crate::observed::{ActorMetrics, Observed, Transitions};
use crate::persistence::Committed;
use crate::reply::Reply;
use crate::tuning::Tuning;
use crate::work::{Command, Reload, Shutdown, Tick, Work};
use actix::{Actor, ActorContext, Context, Handler, Message};
use arc_swap::ArcSwap;
use iptunnel_domain::activation::{
    Activation as Record, ActivationId, ActivationRef, Holder, Release as Verdict,
    Resume as Resumption,
};
use iptunnel_domain::code::Code;
use iptunnel_domain::time::Lifetimes;
use iptunnel_domain::{Refusal, Timestamp, Version};
use iptunnel_storage::{Change, Write};
use std::collections::HashMap;
use std::sync::Arc;

/// What an activate comes to.
#[derive(Clone, Debug)]
pub struct Activated {
    /// The activation, from which the install token is signed.
    pub activation: Record,
}

/// Opens an activation. Sent by the code registry, which has consumed the code for it.
pub(crate) struct Open {
    pub(crate) at: ActivationRef,
    /// The code as consumed.
    pub(crate) code: Code,
    /// The activation of the same machine that makes room.
    pub(crate) replaces: Option<Record>,
    pub(crate) activate: Activate,
}

impl Command for Open {
    type Answer = Activated;
}

/// Asks whether the machine may go on with a consumed code. Sent by the code registry.
pub(crate) struct PrecheckHeld {
    pub(crate) by: ActivationRef,
    pub(crate) holder: Holder,
    pub(crate) now: Timestamp,
}

impl Command for PrecheckHeld {
    type Answer = ();
}

/// Takes an open activation up again. Sent by the code registry, which found the code consumed.
pub(crate) struct Resume {
    pub(crate) by: ActivationRef,
    pub(crate) code: Code,
    pub(crate) activate: Activate,
}

impl Command for Resume {
    type Answer = Activated;
}

/// Confirms an installation. Sent by the HTTP edge, which has verified the install token.
pub struct Confirm {
    /// The activation.
    pub id: ActivationId,
    /// When the request came.
    pub now: Timestamp,
}

impl Command for Confirm {
    type Answer = ();
}

/// Gives a code back after a failed installation. Sent by the HTTP edge.
#[derive(Clone, Copy)]
pub struct Release {
    /// The activation.
    pub id: ActivationId,
    /// The lifetimes in force.
    pub life: Lifetimes,
    /// When the request came.
    pub now: Timestamp,
}

impl Command for Release {
    type Answer = ReleaseOutcome;
}

/// What a release comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseOutcome {
    /// The activation is over.
    Released {
        /// Whether the code is issued and unexpired now.
        code_restored: bool,
    },
    /// The installation was confirmed before; it stays so.
    Confirmed,
}

/// A commit showed that what memory holds of this activation is not what the store holds.
pub(crate) struct Disown(pub(crate) ActivationId);

impl Message for Disown {
    type Result = ();
}

/// These activations are on disk and closed: they may leave memory where they have not changed
/// since.
struct Evict(Vec<(ActivationId, Version)>);

impl Message for Evict {
    type Result = ();
}

/// The oldest activations in the store.
struct Oldest(Vec<Record>, Timestamp);

impl Message for Oldest {
    type Result = ();
}

/// Enough was forgotten that there may be more.
struct LookAgain(Timestamp);

impl Message for LookAgain {
    type Result = ();
}

/// The only writer of activations.
pub(crate) struct Activation {
    activations: HashMap<ActivationId, Record>,
    eviction: Eviction<ActivationId>,
    generation: u32,
    tuning: Arc<ArcSwap<Tuning>>,
    handles: Arc<Handles>,
    metrics: ActorMetrics,
    observed: Observed,
    transitions: Transitions,
    next_retention: Timestamp,
}

impl Activation {
    pub(crate) fn new(
        tuning: Arc<ArcSwap<Tuning>>,
        handles: Arc<Handles>,
        observed: &Observed,
    ) -> Self {
        Self {
            activations: HashMap::new(),
            eviction: Eviction::new(),
            generation: 0,
            tuning,
            handles,
            metrics: observed.actor("activation"),
            observed: observed.clone(),
            transitions: observed.transitions(),
            next_retention: Timestamp(0),
        }
    }

    /// As in the code registry: whether the request was decided on the state of the store that
    /// memory rests on.
    fn current<A>(&mut self, reply: &mut Reply<A>) -> bool {
        self.metrics.taken();
        let theirs = reply.generation(self.generation);
        self.reload(theirs);
        theirs == self.generation
    }

    fn reload(&mut self, generation: u32) {
        if generation > self.generation {
            self.generation = generation;
            self.activations.clear();
            self.eviction.clear();
        }
    }

    /// The command with its activation, or nothing where the command was answered with `missing`
    /// or went to look the activation up first.
    fn find<C>(
        &mut self,
        mut work: Work<C, Record>,
        id: ActivationId,
        missing: Refusal,
    ) -> Option<(Work<C, Record>, Record)>
    where
        C: Command,
        Self: Handler<Work<C, Record>>,
    {
        if !self.current(&mut work.reply) {
            work.reply.fail(Failure::StorageUnavailable);
            return None;
        }
        if let Some(activation) = self.activations.get(&id) {
            let activation = activation.clone();
            return Some((work, activation));
        }
        match work.found.take() {
            Some(Some(activation)) => Some((work, activation)),
            Some(None) => {
                work.reply.refuse(missing);
                None
            }
            None => {
                let handles = Arc::clone(&self.handles);
                self.handles.reader.look_up(
                    work,
                    move |store, _| store.activation(id),
                    move |work| {
                        handles.activation.send(work);
                    },
                );
                None
            }
        }
    }

    fn remember(&mut self, activation: Record) {
        let id = activation.at.id;
        if self.activations.insert(id, activation).is_none() {
            self.eviction.watch(id);
        }
    }

    fn answer<A: Send + 'static>(&self, reply: Reply<A>, decision: Result<A, Refusal>) {
        self.handles.answer_behind_the_disk(reply, self.generation, decision);
    }

    fn evict(&mut self, now: Timestamp) {
        let activations = &self.activations;
        let step = self.tuning.load().batches.activation;
        let done = self.eviction.done(step, |id| match activations.get(&id) {
            None => Examined::Gone,
            Some(activation) if activation.is_open(now) => Examined::AtWork,
            Some(activation) => Examined::Done((id, activation.version)),
        });
        if !done.is_empty() {
            self.metrics.batch.observe(done.len() as f64);
            let handles = Arc::clone(&self.handles);
            self.handles.persistence.commit(Change::default(), None, move |_| {
                handles.activation.send(Evict(done));
            });
        }
    }

    fn look_for_forgettable(&self, now: Timestamp) {
        let handles = Arc::clone(&self.handles);
        let count = self.tuning.load().batches.activation;
        self.handles.reader.run(move |store| {
            if let Ok(activations) = store.oldest_activations(count) {
                handles.activation.send(Oldest(activations, now));
            }
        });
    }
}

impl Actor for Activation {
    type Context = Context<Self>;
}

impl Handler<Work<Open, Record>> for Activation {
    type Result = ();

    fn handle(&mut self, mut work: Work<Open, Record>, _: &mut Context<Self>) {
        if !self.current(&mut work.reply) {
            return work.reply.fail(Failure::StorageUnavailable);
        }
        let Work { command: Open { at, code, replaces, activate }, reply, attempts, .. } = work;
        let Activate { request, life, now, prechecked_at, .. } = activate;
        let opened = Record::open(at, code.hash, request, now, &life);
        let transition = match replaces {
            Some(_) => self.transitions.replaced.clone(),
            None => self.transitions.activated.clone(),
        };
        let mut change = Change(Vec::with_capacity(3));
        change.0.extend(replaces.map(Write::Activation));
        change.0.extend([Write::Code(code), Write::Activation(opened.clone())]);
        let handles = Arc::clone(&self.handles);
        let activation = opened.clone();
        self.handles.persistence.commit(change, Some(self.generation), move |committed| {
            match committed {
                Committed::Written => {
                    transition.inc();
                    reply.grant(Activated { activation });
                }
                Committed::Conflict => {
                    handles.disown(activation.code, activation.at.id);
                    let Record { code, request, .. } = activation;
                    let command = Activate { code, prechecked_at, request, life, now };
                    if let Some(work) = (Work { command, reply, found: None, attempts }).again() {
                        handles.code_registry.send(work);
                    }
                }
                Committed::Unavailable => reply.fail(Failure::StorageUnavailable),
                Committed::Unknown => reply.fail(Failure::OutcomeUnknown),
            }
        });
        self.remember(opened);
    }
}

impl Handler<Work<PrecheckHeld, Record>> for Activation {
    type Result = ();

    fn handle(&mut self, work: Work<PrecheckHeld, Record>, _: &mut Context<Self>) {
        let id = work.command.by.id;
        let Some((work, activation)) = self.find(work, id, Refusal::CodeUsed) else { return };
        let decision = activation.precheck(&work.command.holder, work.command.now);
        self.answer(work.reply, decision);
    }
}

impl Handler<Work<Resume, Record>> for Activation {
    type Result = ();

    fn handle(&mut self, work: Work<Resume, Record>, _: &mut Context<Self>) {
        let id = work.command.by.id;
        let Some((mut work, activation)) = self.find(work, id, Refusal::CodeUsed) else { return };
        let Resume { code, activate, .. } = &work.command;
        match activation.resume(&activate.request, code, activate.now, &activate.life) {
            Err(refusal) => self.answer(work.reply, Err(refusal)),
            Ok(Resumption::Repeat) => {
                self.transitions.repeated.inc();
                work.reply.give_back_charge();
                self.answer(work.reply, Ok(Activated { activation }));
            }
            Ok(Resumption::Replace(released)) => {
                if !work.reply.claim() {
                    return;
                }
                let replace = |Resume { code, activate, .. }| Replace {
                    code,
                    released: released.clone(),
                    activate,
                };
                if self.handles.code_registry.send(work.then(replace)) {
                    self.remember(released);
                }
            }
            Ok(Resumption::Stale) => {
                // The code is on its way back to the registry, ahead of this message.
                if let Some(work) = work.again() {
                    self.handles.code_registry.send(work.then(|Resume { activate, .. }| activate));
                }
            }
        }
    }
}

impl Handler<Work<Confirm, Record>> for Activation {
    type Result = ();

    fn handle(&mut self, work: Work<Confirm, Record>, _: &mut Context<Self>) {
        let id = work.command.id;
        let missing = Refusal::ActivationNotFound;
        let Some((work, activation)) = self.find(work, id, missing) else { return };
        let confirmed = match activation.confirm(work.command.now) {
            Ok(confirmed) => confirmed,
            Err(refusal) => return self.answer(work.reply, Err(refusal)),
        };
        if !work.reply.claim() {
            return;
        }
        let transition = self.transitions.confirmed.clone();
        let handles = Arc::clone(&self.handles);
        let change = Change(vec![Write::Activation(confirmed.clone())]);
        self.handles.persistence.commit(change, Some(self.generation), move |committed| {
            match committed {
                Committed::Written => {
                    transition.inc();
                    work.reply.grant(());
                }
                Committed::Conflict => {
                    handles.activation.send(Disown(id));
                    if let Some(work) = work.again() {
                        handles.activation.send(work);
                    }
                }
                Committed::Unavailable => work.reply.fail(Failure::StorageUnavailable),
                Committed::Unknown => work.reply.fail(Failure::OutcomeUnknown),
            }
        });
        self.remember(confirmed);
    }
}

impl Handler<Work<Release, Record>> for Activation {
    type Result = ();

    fn handle(&mut self, work: Work<Release, Record>, _: &mut Context<Self>) {
        let id = work.command.id;
        let missing = Refusal::ActivationNotFound;
        let Some((work, activation)) = self.find(work, id, missing) else { return };
        match activation.release(work.command.now) {
            Err(refusal) => self.answer(work.reply, Err(refusal)),
            Ok(Verdict::Confirmed) => self.answer(work.reply, Ok(ReleaseOutcome::Confirmed)),
            Ok(Verdict::Lapsed) => {
                self.answer(work.reply, Ok(ReleaseOutcome::Released { code_restored: false }));
            }
            Ok(Verdict::GiveBack(released)) => {
                if !work.reply.claim() {
                    return;
                }
                let restore = |release| Restore { released: released.clone(), release };
                if self.handles.code_registry.send(work.then(restore)) {
                    self.remember(released);
                }
            }
        }
    }
}

impl Handler<Disown> for Activation {
    type Result = ();

    fn handle(&mut self, Disown(id): Disown, _: &mut Context<Self>) {
        self.metrics.taken();
        self.activations.remove(&id);
    }
}

impl Handler<Evict> for Activation {
    type Result = ();

    fn handle(&mut self, Evict(activations): Evict, _: &mut Context<Self>) {
        self.metrics.taken();
        for (id, version) in activations {
            match self.activations.get(&id) {
                Some(activation) if activation.version == version => {
                    self.activations.remove(&id);
                }
                Some(_) => self.eviction.watch(id),
                None => {}
            }
        }
    }
}

impl Handler<Oldest> for Activation {
    type Result = ();

    fn handle(&mut self, Oldest(activations, now): Oldest, _: &mut Context<Self>) {
        self.metrics.taken();
        let retention = self.tuning.load().retention_seconds;
        let forgotten: Vec<&Record> =
            activations.iter().take_while(|a| a.is_forgettable(now, retention)).collect();
        for activation in &forgotten {
            self.activations.remove(&activation.at.id);
            let write = Write::ForgetActivation(activation.at.number, activation.version);
            self.handles.persistence.commit(Change(vec![write]), None, |_| {});
        }
        if !forgotten.is_empty() && forgotten.len() == activations.len() {
            let handles = Arc::clone(&self.handles);
            self.handles.persistence.commit(Change::default(), None, move |committed| {
                if committed == Committed::Written {
                    handles.activation.send(LookAgain(now));
                }
            });
        }
    }
}

impl Handler<LookAgain> for Activation {
    type Result = ();

    fn handle(&mut self, LookAgain(now): LookAgain, _: &mut Context<Self>) {
        self.metrics.taken();
        self.look_for_forgettable(now);
    }
}

impl Handler<Tick> for Activation {
    type Result = ();

    fn handle(&mut self, Tick(now): Tick, _: &mut Context<Self>) {
        self.metrics.taken();
        self.evict(now);
        self.observed.activations_in_memory.set(self.activations.len() as i64);
        if now >= self.next_retention {
            self.next_retention = now.plus(RETENTION_EVERY);
            self.look_for_forgettable(now);
        }
    }
}

impl Handler<Reload> for Activation {
    type Result = ();

    fn handle(&mut self, Reload(generation): Reload, _: &mut Context<Self>) {
        self.metrics.taken();
        self.reload(generation);
    }
}

impl Handler<Shutdown> for Activation {
    type Result = ();

    fn handle(&mut self, shutdown: Shutdown, context: &mut Context<Self>) {
        self.metrics.taken();
        self.handles.server_registry.send(shutdown);
        context.stop();
    }
}
