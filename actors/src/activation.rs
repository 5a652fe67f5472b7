//! The activation actor: the only writer of activations.

use crate::Failure;
use crate::attempts::{not_activated, prechecked, refused};
use crate::code_registry::{Activate, PrecheckCode, Replace, Restore, begin};
use crate::handles::Handles;
use crate::keeper::{self, Held, Keeper, Kept, Memory, Upkeep};
use crate::mailbox::Mailbox;
use crate::observed::{ActorMetrics, Observed, Transitions};
use crate::persistence::{Committed, Fate};
use crate::tuning::Tuning;
use crate::work::{Command, Shutdown, Work};
use actix::{Actor, ActorContext, Context, Handler};
use arc_swap::ArcSwap;
use iptunnel_domain::activation::{
    Activation as Record, ActivationId, ActivationRef, ActivationState, Release as Verdict,
    Request, Resume as Resumption,
};
use iptunnel_domain::audit::{Action, Actor as Who, Event};
use iptunnel_domain::code::Code;
use iptunnel_domain::time::Lifetimes;
use iptunnel_domain::{Refusal, Timestamp, Version};
use iptunnel_storage::{Change, ReadError, Store, Write};
use std::net::IpAddr;
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
    /// What becomes of all this.
    pub(crate) fate: Fate,
}

impl Command for Open {
    type Answer = Activated;
}

/// Asks whether the machine may go on with a consumed code. Sent by the code registry.
pub(crate) struct PrecheckHeld {
    pub(crate) by: ActivationRef,
    pub(crate) precheck: PrecheckCode,
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

/// Confirms an installation. Sent by the HTTP edge.
pub struct Confirm {
    /// The activation.
    pub id: ActivationId,
    /// What the edge found the install token to be: where it is wrong that is the answer, which is
    /// kept with the code.
    pub token: Result<(), Refusal>,
    /// The network it is asked from.
    pub from: IpAddr,
    /// When the request came.
    pub now: Timestamp,
}

impl Command for Confirm {
    type Answer = ();
}

/// Gives a code back after a failed installation. Sent by the HTTP edge.
#[derive(Clone)]
pub struct Release {
    /// The activation.
    pub id: ActivationId,
    /// The same for the token that may come with it.
    pub token: Result<(), Refusal>,
    /// The network it is asked from.
    pub from: IpAddr,
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

impl Kept for Record {
    type Key = ActivationId;

    fn key(&self) -> ActivationId {
        self.at.id
    }
    fn version(&self) -> Version {
        self.version
    }
    fn is_at_work(&self, now: Timestamp, _: &Tuning) -> bool {
        self.is_open(now)
    }
    fn is_forgettable(&self, now: Timestamp, tuning: &Tuning) -> bool {
        Self::is_forgettable(self, now, tuning.retention_seconds)
    }
    fn forget(&self) -> Write {
        Write::ForgetActivation(self.at.number, self.version)
    }
    fn oldest(store: &dyn Store, count: usize) -> Result<Vec<Self>, ReadError> {
        store.oldest_activations(None, count)
    }
}

/// The only writer of activations.
pub(crate) struct Activation {
    activations: Memory<Record>,
    tuning: Arc<ArcSwap<Tuning>>,
    handles: Arc<Handles>,
    metrics: ActorMetrics,
    observed: Observed,
    transitions: Transitions,
}

impl Activation {
    pub(crate) fn new(
        tuning: Arc<ArcSwap<Tuning>>,
        handles: Arc<Handles>,
        observed: &Observed,
    ) -> Self {
        Self {
            activations: Memory::new(),
            tuning,
            handles,
            metrics: observed.actor("activation"),
            observed: observed.clone(),
            transitions: observed.transitions(),
        }
    }

    /// As [`keeper::find`].
    fn find<C>(
        &mut self,
        work: Work<C, Record>,
        id: ActivationId,
        missing: fn(&Handles, Work<C, Record>),
        enough: impl FnOnce(&C, &Record) -> bool,
    ) -> Option<Held<C, Record>>
    where
        C: Command,
        Self: Handler<Work<C, Record>>,
    {
        keeper::find(self, work, id, enough, missing, |_| {})
    }

    /// The same where a token comes with the command: nothing is left to do where that is wrong.
    fn find_tokened<C: Tokened>(
        &mut self,
        work: Work<C, Record>,
        id: ActivationId,
        enough: impl FnOnce(&C, &Record) -> bool,
    ) -> Option<Held<C, Record>>
    where
        Self: Handler<Work<C, Record>>,
    {
        let enough = |asked: &C, known: &Record| asked.token().is_err() || enough(asked, known);
        let (work, activation, fate) = self.find(work, id, unknown, enough)?;
        if let Err(refusal) = work.command.token().clone() {
            self.handles.attempts.add(work.command.refused(&activation, &refusal));
            work.reply.refuse(refusal);
            return None;
        }
        Some((work, activation, fate))
    }

    fn answer<C: Command>(
        &self,
        work: Work<C, Record>,
        decision: Result<C::Answer, Refusal>,
        rests_on: Fate,
        begin_again: fn(&Handles, Work<C, Record>),
    ) {
        let generation = self.activations.generation();
        self.handles.answer_behind_the_disk(work, generation, decision, rests_on, begin_again);
    }
}

/// Sends a command to its first owner, here.
fn begin_here<C: Command>(handles: &Handles, work: Work<C, Record>)
where
    Activation: Handler<Work<C, Record>>,
{
    handles.activation.send(work);
}

/// What an installer asks of an activation, by its name and with a token.
trait Tokened: Command {
    /// What the edge found of the token.
    fn token(&self) -> &Result<(), Refusal>;
    /// An attempt on `to` that was refused.
    fn refused(&self, to: &Record, refusal: &Refusal) -> Event;
}

impl Tokened for Confirm {
    fn token(&self) -> &Result<(), Refusal> {
        &self.token
    }
    fn refused(&self, to: &Record, refusal: &Refusal) -> Event {
        refused(Action::ConfirmRefused, to, refusal, self.now, self.from)
    }
}

impl Tokened for Release {
    fn token(&self) -> &Result<(), Refusal> {
        &self.token
    }
    fn refused(&self, to: &Record, refusal: &Refusal) -> Event {
        refused(Action::ReleaseRefused, to, refusal, self.now, self.from)
    }
}

/// The name of an activation that there is not. A wrong token is told first.
fn unknown<C: Tokened>(_: &Handles, work: Work<C, Record>) {
    let refusal = work.command.token().clone().err();
    work.reply.refuse(refusal.unwrap_or(Refusal::ActivationNotFound));
}

/// What a code says of its activation may be what this server wanted and another one was faster with:
/// then the command goes back to where the code is looked up.
fn held_by_none<C: Command>(
    handles: &Handles,
    work: Work<C, Record>,
    begin_again: fn(&Handles, Work<C, Record>),
) {
    if !handles.is_shared() || !work.may_try_again() {
        return work.reply.refuse(Refusal::CodeUsed);
    }
    if let Some(work) = work.again() {
        begin_again(handles, work);
    }
}

/// Sends a precheck back to its first owner, the code registry.
fn precheck_again(handles: &Handles, work: Work<PrecheckHeld, Record>) {
    begin(handles, work.then(|held| held.precheck));
}

/// Sends an activate back to its first owner, the code registry.
fn activate_again(handles: &Handles, work: Work<Resume, Record>) {
    begin(handles, work.then(|resume| resume.activate));
}

/// What happened to an activation, as the log says it.
pub(crate) fn happened(action: Action, to: &Record, at: Timestamp, from: IpAddr) -> Event {
    let Request { holder, binding, .. } = to.request.as_ref();
    Event {
        identity: Some(holder.machine),
        code: Some(to.code),
        activation: Some(to.at.into()),
        address: Some(binding.public_ip),
        subject: binding.hostname.as_str().into(),
        ..Event::new(action, Who::Installer, at, Some(from))
    }
}

impl Actor for Activation {
    type Context = Context<Self>;
}

impl Handler<Work<Open, Record>> for Activation {
    type Result = ();

    fn handle(&mut self, mut work: Work<Open, Record>, _: &mut Context<Self>) {
        self.metrics.taken();
        if !self.activations.is_current(&mut work.reply) {
            return work.reply.fail(Failure::StorageUnavailable);
        }
        let Work { command, reply, attempts, .. } = work;
        let Open { at, code, replaces, activate, fate } = command;
        let (replaced, fate_of_memory) = (replaces.as_ref().map(|old| old.at.id), fate.clone());
        let Activate { request, from, life, now, prechecked_at, .. } = activate;
        let opened = Record::open(at, code.hash, request, now, &life);
        let (transition, action) = match replaces {
            Some(_) => (self.transitions.replaced.clone(), Action::Replaced),
            None => (self.transitions.activated.clone(), Action::Activated),
        };
        let mut change = Change(Vec::with_capacity(4));
        change.0.extend(replaces.map(Write::Activation));
        let event = happened(action, &opened, now, from);
        change.0.extend([
            Write::Code(code),
            Write::Activation(opened.clone()),
            Write::Audit(Arc::new(event)),
        ]);
        let handles = Arc::clone(&self.handles);
        let activation = opened.clone();
        self.handles.persistence.commit(
            change,
            Some(self.activations.generation()),
            move |committed| match committed {
                Committed::Written => {
                    transition.inc();
                    reply.grant(Activated { activation });
                }
                Committed::Conflict => {
                    fate.fail();
                    handles.disown(activation.code, activation.at.id);
                    if let Some(replaced) = replaced {
                        handles.activation.send(Upkeep::Disown(replaced));
                    }
                    let Record { code, request, .. } = activation;
                    let command = Activate { code, prechecked_at, request, from, life, now };
                    if let Some(work) = (Work { command, reply, found: None, attempts }).again() {
                        handles.code_registry.send(work);
                    }
                }
                Committed::Failed(failure) => reply.fail(failure),
            },
        );
        self.activations.remember(opened, fate_of_memory);
    }
}

impl Handler<Work<PrecheckHeld, Record>> for Activation {
    type Result = ();

    fn handle(&mut self, work: Work<PrecheckHeld, Record>, _: &mut Context<Self>) {
        let id = work.command.by.id;
        let never = |_: &PrecheckHeld, _: &Record| false;
        let missing = |handles: &Handles, work| held_by_none(handles, work, precheck_again);
        let Some((work, activation, fate)) = self.find(work, id, missing, never) else {
            return;
        };
        if matches!(activation.state, ActivationState::Released(_)) {
            // The code is on its way back to the registry, ahead of this message.
            if let Some(work) = work.again() {
                precheck_again(&self.handles, work);
            }
            return;
        }
        let asked = &work.command.precheck;
        let decision = activation.precheck(&asked.holder, asked.now);
        self.handles.attempts.add(prechecked(asked, decision.as_ref().map(|&()| ())));
        self.answer(work, decision, fate, precheck_again);
    }
}

impl Handler<Work<Resume, Record>> for Activation {
    type Result = ();

    fn handle(&mut self, work: Work<Resume, Record>, _: &mut Context<Self>) {
        let id = work.command.by.id;
        let never = |_: &Resume, _: &Record| false;
        let missing = |handles: &Handles, work| held_by_none(handles, work, activate_again);
        let Some((mut work, activation, fate)) = self.find(work, id, missing, never) else {
            return;
        };
        let Resume { code, activate, .. } = &work.command;
        match activation.resume(&activate.request, code, activate.now, &activate.life) {
            Err(refusal) => {
                self.handles.attempts.add(not_activated(activate, &refusal));
                self.answer(work, Err(refusal), fate, activate_again);
            }
            Ok(Resumption::Repeat) => {
                self.transitions.repeated.inc();
                work.reply.give_back_charge();
                self.answer(work, Ok(Activated { activation }), fate, activate_again);
            }
            Ok(Resumption::Replace(released)) => {
                if !work.reply.claim() {
                    return;
                }
                let (fate, memory) = (Fate::default(), released.clone());
                let theirs = fate.clone();
                let replace = |Resume { code, activate, .. }| Replace {
                    code,
                    released,
                    activate,
                    fate: theirs,
                };
                if self.handles.code_registry.send(work.then(replace)) {
                    self.activations.remember(memory, fate);
                }
            }
            Ok(Resumption::Stale) => {
                // The code is on its way back to the registry, ahead of this message.
                if let Some(work) = work.again() {
                    activate_again(&self.handles, work);
                }
            }
        }
    }
}

impl Handler<Work<Confirm, Record>> for Activation {
    type Result = ();

    fn handle(&mut self, work: Work<Confirm, Record>, _: &mut Context<Self>) {
        let id = work.command.id;
        let confirms = |asked: &Confirm, known: &Record| known.confirm(asked.now).is_ok();
        let Some((work, activation, fate)) = self.find_tokened(work, id, confirms) else { return };
        let confirmed = match activation.confirm(work.command.now) {
            Ok(confirmed) => confirmed,
            Err(refusal) => {
                self.handles.attempts.add(work.command.refused(&activation, &refusal));
                return self.answer(work, Err(refusal), fate, begin_here);
            }
        };
        if !work.reply.claim() {
            return;
        }
        let transition = self.transitions.confirmed.clone();
        let fate = Fate::default();
        let fate_of_memory = fate.clone();
        let handles = Arc::clone(&self.handles);
        let Confirm { now, from, .. } = work.command;
        let event = happened(Action::Confirmed, &confirmed, now, from);
        let change =
            Change(vec![Write::Activation(confirmed.clone()), Write::Audit(Arc::new(event))]);
        self.handles.persistence.commit(
            change,
            Some(self.activations.generation()),
            move |committed| match committed {
                Committed::Written => {
                    transition.inc();
                    work.reply.grant(());
                }
                Committed::Conflict => {
                    fate.fail();
                    handles.activation.send(Upkeep::Disown(id));
                    if let Some(work) = work.again() {
                        handles.activation.send(work);
                    }
                }
                Committed::Failed(failure) => work.reply.fail(failure),
            },
        );
        self.activations.remember(confirmed, fate_of_memory);
    }
}

impl Handler<Work<Release, Record>> for Activation {
    type Result = ();

    fn handle(&mut self, work: Work<Release, Record>, _: &mut Context<Self>) {
        let id = work.command.id;
        let gives_back = |asked: &Release, known: &Record| {
            matches!(known.release(asked.now), Ok(Verdict::GiveBack(_)))
        };
        let Some((work, activation, fate)) = self.find_tokened(work, id, gives_back) else {
            return;
        };
        match activation.release(work.command.now) {
            Err(refusal) => {
                self.handles.attempts.add(work.command.refused(&activation, &refusal));
                self.answer(work, Err(refusal), fate, begin_here);
            }
            Ok(Verdict::Confirmed) => {
                self.answer(work, Ok(ReleaseOutcome::Confirmed), fate, begin_here);
            }
            Ok(Verdict::Lapsed) => {
                let lapsed = ReleaseOutcome::Released { code_restored: false };
                self.answer(work, Ok(lapsed), fate, begin_here);
            }
            Ok(Verdict::GiveBack(released)) => {
                if !work.reply.claim() {
                    return;
                }
                let fate = Fate::default();
                let (memory, theirs) = (released.clone(), fate.clone());
                let restore = |release| Restore { released, release, fate: theirs };
                if self.handles.code_registry.send(work.then(restore)) {
                    self.activations.remember(memory, fate);
                }
            }
        }
    }
}

impl Keeper for Activation {
    type Record = Record;

    fn memory(&mut self) -> &mut Memory<Record> {
        &mut self.activations
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
        tuning.batches.activation
    }
    fn mailbox(handles: &Handles) -> &Mailbox<Self> {
        &handles.activation
    }
}

impl Handler<Upkeep<Record>> for Activation {
    type Result = ();

    fn handle(&mut self, upkeep: Upkeep<Record>, _: &mut Context<Self>) {
        self.metrics.taken();
        self.keep(upkeep);
        self.observed.activations_in_memory.set(self.activations.len() as i64);
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
