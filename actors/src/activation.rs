//! The activation actor: the only writer of activations.

pub use crate::messages::activations::{Activated, Confirm, Release, ReleaseOutcome};

use crate::Failure;
use crate::code_registry::begin;
use crate::handles::Handles;
use crate::memory::attempts::{not_activated, prechecked, refused, spent};
use crate::memory::record_cache::{
    self, CacheOwner, CachedRecord, Eviction, Loaded, RecordCache, begin_change, forward_change,
    run_ahead,
};
use crate::messages::activations::{Closing, Open, PrecheckHeld, Resume};
use crate::messages::codes::{Activate, Replace, Restore, Spent};
use crate::messages::servers::{Register, RegisterInstalled};
use crate::messages::{Command, Shutdown, Work};
use crate::persistence::Committed;
use crate::runtime::mailbox::{Actor, Mailbox, Receive};
use crate::runtime::metrics::{ActorMetrics, Metrics, Transitions};
use crate::runtime::tuning::ActorSettings;
use arc_swap::ArcSwap;
use iptunnel_domain::activation::{
    Activation as Record, ActivationId, ActivationNumber, Holder, Release as Verdict, Request,
    Resume as Resumption,
};
use iptunnel_domain::audit::{Action, Actor as Who, Event};
use iptunnel_domain::code::CodeHash;
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{Credential, EnrolledBy, Server};
use iptunnel_domain::{Refusal, Timestamp, Version};
use iptunnel_storage::{Change, ReadError, Store, Write};
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

impl CachedRecord for Record {
    type Key = ActivationId;
    type Number = ActivationNumber;

    fn key(&self) -> ActivationId {
        self.at.id
    }
    fn number(&self) -> ActivationNumber {
        self.at.number
    }
    fn version(&self) -> Version {
        self.version
    }
    fn is_at_work(&self, now: Timestamp, _: &ActorSettings) -> bool {
        self.is_open(now)
    }
    fn is_forgettable(&self, now: Timestamp, tuning: &ActorSettings) -> bool {
        Self::is_forgettable(self, now, tuning.retention_seconds)
    }
    fn is_dated_ahead(&self, now: Timestamp) -> bool {
        Self::is_dated_ahead(self, now)
    }
    fn forget(&self) -> Write {
        Write::ForgetActivation(self.at.number, self.version)
    }
    fn oldest(
        store: &dyn Store,
        after: Option<ActivationNumber>,
        count: usize,
    ) -> Result<Vec<Self>, ReadError> {
        store.oldest_activations(after, count)
    }
}

/// The most attempts on spent codes of which it is remembered that they were reported, 32 bytes each. Then
/// all are forgotten, and may be reported again.
const TRIED: usize = 10_000;

/// The only writer of activations.
pub(crate) struct Activation {
    activations: RecordCache<Record>,
    tuning: Arc<ArcSwap<ActorSettings>>,
    handles: Arc<Handles>,
    metrics: ActorMetrics,
    observed: Metrics,
    transitions: Transitions,
    /// Spent codes, and the machines that have tried them and were reported.
    tried: HashSet<(CodeHash, KeyedHash)>,
    ended: bool,
}

impl Activation {
    pub(crate) fn new(
        tuning: Arc<ArcSwap<ActorSettings>>,
        handles: Arc<Handles>,
        observed: &Metrics,
    ) -> Self {
        Self {
            activations: RecordCache::new(),
            tuning,
            handles,
            metrics: observed.actor("activation"),
            observed: observed.clone(),
            transitions: observed.transitions(),
            tried: HashSet::new(),
            ended: false,
        }
    }

    /// Calls [`record_cache::find`].
    fn find<C>(
        &mut self,
        work: Work<C, Record>,
        id: ActivationId,
        missing: fn(&Handles, Work<C, Record>),
        enough: impl FnOnce(&C, &Record) -> bool,
    ) -> Option<Loaded<C, Record>>
    where
        C: Command,
        Self: Receive<Work<C, Record>>,
    {
        record_cache::find(self, work, id, enough, missing)
    }

    /// Finds the activation of a command that carries a token. A wrong token is refused here.
    fn find_tokened<C: Tokened>(
        &mut self,
        work: Work<C, Record>,
        id: ActivationId,
        enough: impl FnOnce(&C, &Record) -> bool,
    ) -> Option<Loaded<C, Record>>
    where
        Self: Receive<Work<C, Record>>,
    {
        let enough = |asked: &C, known: &Record| asked.token().is_err() || enough(asked, known);
        let (work, activation) = self.find(work, id, unknown, enough)?;
        if let Err(refusal) = work.command.token().clone() {
            self.handles.attempts.add(work.command.refused(&activation, &refusal));
            work.reply.refuse(refusal);
            return None;
        }
        Some((work, activation))
    }

    /// Keeps an attempt of `holder` on a code that is in use. If another machine has used the code, the
    /// audit log has it too: once for each code and machine.
    fn note_attempt(
        &mut self,
        attempt: Event,
        holder: &Holder,
        used_by: &Record,
        refusal: Option<&Refusal>,
    ) {
        let is_other = used_by.request.holder.machine != holder.machine;
        if is_other && matches!(refusal, Some(Refusal::CodeUsed)) {
            self.observed.spent_codes_tried.inc();
            if self.tried.len() >= TRIED {
                self.tried.clear();
            }
            if self.tried.insert((used_by.code, holder.machine)) {
                self.handles.alarms.add(spent(&attempt, used_by));
            }
        }
        self.handles.attempts.add(attempt);
    }

    /// Answers a command that changes nothing, once the state that the answer depends on is on disk.
    fn answer<C: Command>(&self, work: Work<C, Record>, decision: Result<C::Answer, Refusal>) {
        self.handles.answer_once_confirmed(work.reply, self.activations.generation(), decision);
    }
}

/// A command of an installer that names an activation and carries a token.
trait Tokened: Command {
    /// Returns the HTTP edge's check of the token.
    fn token(&self) -> &Result<(), Refusal>;
    /// Returns the event of a refused attempt on `to`.
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

/// Refuses a command for an activation that does not exist. A wrong token is reported first; that
/// answer depends on no record and needs no confirmation.
fn unknown<C: Tokened>(handles: &Handles, work: Work<C, Record>) {
    match work.command.token().clone() {
        Err(refusal) => work.reply.refuse(refusal),
        Ok(()) => handles.answer_not_found(work.reply, Refusal::ActivationNotFound),
    }
}

/// Handles a command whose code names an activation that does not exist. Where servers share the
/// store the cached code may be out of date, because another server's change won. Then the command
/// goes back to the code registry, which looks the code up again.
fn held_by_none<C: Command>(
    handles: &Handles,
    work: Work<C, Record>,
    begin_again: fn(&Handles, Work<C, Record>),
) {
    if !handles.is_shared() || !work.may_try_again() {
        // The code is known to be used; its activation may be deleted a little before it.
        let refusal = work.reply.limit_reached().unwrap_or(Refusal::CodeUsed);
        return handles.answer_not_found(work.reply, refusal);
    }
    if let Some(work) = work.again() {
        begin_again(handles, work);
    }
}

/// Sends a precheck back to the code registry.
fn precheck_again(handles: &Handles, work: Work<PrecheckHeld, Record>) {
    begin(handles, work.then(|held| held.precheck));
}

/// Sends an activate back to the code registry.
fn activate_again(handles: &Handles, work: Work<Resume, Record>) {
    begin(handles, work.then(|resume| resume.activate));
}

/// Returns the audit event of a change of an activation.
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
    fn has_ended(&self) -> bool {
        self.ended
    }
}

impl Receive<Work<Open, Record>> for Activation {
    fn receive(&mut self, mut work: Work<Open, Record>) {
        self.metrics.taken();
        if !self.activations.is_current(&mut work.reply) {
            return work.reply.fail(Failure::StorageUnavailable);
        }
        let Work { command, mut reply, .. } = work;
        let Open { at, code, of_code, replaces, activate } = command;
        let Activate { request, from, life, now, prechecked_at, .. } = activate;
        let opened = Record::open(at, code.hash, request, now, &life);
        let (transition, action) = match replaces {
            Some(_) => (self.transitions.replaced.clone(), Action::Replaced),
            None => (self.transitions.activated.clone(), Action::Activated),
        };
        let mut change = Change(Vec::with_capacity(5));
        change.0.extend(replaces.iter().map(|old| Write::Activation(old.released.clone())));
        let event = happened(action, &opened, now, from);
        change.0.extend([
            Write::Code(code.clone()),
            Write::Activation(opened.clone()),
            Write::Audit(Arc::new(event)),
        ]);
        change.0.extend(reply.due().map(|due| Write::Charge(due.limits())));
        // Nobody knows its id before the answer, so no command can wait for this change.
        let of_activation = begin_change(self, at.id);
        let handles = Arc::clone(&self.handles);
        let activation = opened.clone();
        self.handles.persistence.commit_charged(
            change,
            Some(self.activations.generation()),
            move |committed, used| match committed {
                Committed::Written => {
                    reply.charged_with_change(used);
                    transition.inc();
                    of_code.written(&code);
                    of_activation.written(&activation);
                    if let Some(Closing { released, change }) = replaces {
                        change.written(&released);
                    }
                    reply.grant(Activated { activation });
                }
                Committed::Conflict => {
                    drop((of_code, of_activation, replaces));
                    let Record { code, request, .. } = activation;
                    let command = Activate { code, prechecked_at, request, from, life, now };
                    if let Some(work) = Work::new(command, reply).again() {
                        handles.code_registry.send(work);
                    }
                }
                Committed::Failed(failure) => reply.fail(failure),
            },
        );
        run_ahead(self, opened);
    }
}

impl Receive<Work<PrecheckHeld, Record>> for Activation {
    fn receive(&mut self, work: Work<PrecheckHeld, Record>) {
        let id = work.command.by.id;
        let never = |_: &PrecheckHeld, _: &Record| false;
        let missing = |handles: &Handles, work| held_by_none(handles, work, precheck_again);
        let Some((work, activation)) = self.find(work, id, missing, never) else {
            return;
        };
        if activation.is_released() {
            // The code is on its way back, or to another activation, ahead of this message.
            if let Some(work) = work.again() {
                precheck_again(&self.handles, work);
            }
            return;
        }
        let asked = &work.command.precheck;
        let decision = activation.precheck(&asked.holder, asked.now);
        if let (Err(_), Some(limit)) = (&decision, work.reply.limit_reached()) {
            return work.reply.refuse(limit);
        }
        let attempt = prechecked(asked, decision.as_ref().map(|&()| ()));
        self.note_attempt(attempt, &asked.holder, &activation, decision.as_ref().err());
        self.answer(work, decision);
    }
}

impl Receive<Work<Resume, Record>> for Activation {
    fn receive(&mut self, work: Work<Resume, Record>) {
        let id = work.command.by.id;
        let never = |_: &Resume, _: &Record| false;
        let missing = |handles: &Handles, work| held_by_none(handles, work, activate_again);
        let Some((work, activation)) = self.find(work, id, missing, never) else {
            return;
        };
        let Resume { code, activate, .. } = &work.command;
        let resumed = activation.resume(&activate.request, code, activate.now, &activate.life);
        if let (Err(_) | Ok(Resumption::Replace(_)), Some(limit)) =
            (&resumed, work.reply.limit_reached())
        {
            return work.reply.refuse(limit);
        }
        match resumed {
            Err(refusal) => {
                let attempt = not_activated(activate, &refusal);
                let holder = &activate.request.holder;
                self.note_attempt(attempt, holder, &activation, Some(&refusal));
                self.answer(work, Err(refusal));
            }
            Ok(Resumption::Repeat) => {
                let repeated = self.transitions.repeated.clone();
                let generation = Some(self.activations.generation());
                let mut reply = work.reply;
                self.handles.persistence.confirm(generation, move |committed| match committed {
                    Committed::Failed(failure) => reply.fail(failure),
                    Committed::Written | Committed::Conflict => {
                        repeated.inc();
                        // A repeat is not charged again.
                        reply.give_back_charge();
                        reply.grant(Activated { activation });
                    }
                });
            }
            Ok(Resumption::Replace(released)) => {
                if !work.reply.claim() {
                    return;
                }
                let change = forward_change(self, id);
                let replace = |Resume { code, activate, .. }| Replace {
                    code,
                    replaced: Closing { released, change },
                    activate,
                };
                self.handles.code_registry.send(work.then(replace));
            }
            Ok(Resumption::Stale) => {
                // A message that gives the code back is ahead of this one in the registry's mailbox.
                if let Some(work) = work.again() {
                    activate_again(&self.handles, work);
                }
            }
        }
    }
}

impl Receive<Work<Confirm, Record>> for Activation {
    fn receive(&mut self, work: Work<Confirm, Record>) {
        let id = work.command.id;
        let confirms = |asked: &Confirm, known: &Record| known.confirm(asked.now).is_ok();
        let Some((work, activation)) = self.find_tokened(work, id, confirms) else { return };
        let confirmed = match activation.confirm(work.command.now) {
            Ok(confirmed) => confirmed,
            Err(refusal) => {
                self.handles.attempts.add(work.command.refused(&activation, &refusal));
                return self.answer(work, Err(refusal));
            }
        };
        if !work.reply.claim() {
            return;
        }
        let transition = self.transitions.confirmed.clone();
        let under_way = begin_change(self, id);
        let handles = Arc::clone(&self.handles);
        let Confirm { now, from, .. } = work.command;
        let event = happened(Action::Confirmed, &confirmed, now, from);
        let change =
            Change(vec![Write::Activation(confirmed.clone()), Write::Audit(Arc::new(event))]);
        let record = confirmed.clone();
        self.handles.persistence.commit(
            change,
            Some(self.activations.generation()),
            move |committed| match committed {
                Committed::Written => {
                    transition.inc();
                    under_way.written(&record);
                    work.reply.grant(());
                }
                Committed::Conflict => {
                    drop(under_way);
                    if let Some(work) = work.again() {
                        handles.activation.send(work);
                    }
                }
                Committed::Failed(failure) => work.reply.fail(failure),
            },
        );
        run_ahead(self, confirmed);
    }
}

impl Receive<Work<RegisterInstalled, Record>> for Activation {
    fn receive(&mut self, work: Work<RegisterInstalled, Record>) {
        let id = work.command.activation;
        let allows = |asked: &RegisterInstalled, known: &Record| {
            known.enrols(asked.register.ip, asked.register.now).is_ok()
        };
        let missing = |handles: &Handles, work: Work<RegisterInstalled, Record>| {
            handles.answer_not_found(work.reply, Refusal::ActivationNotFound);
        };
        let Some((work, activation)) = self.find(work, id, missing, allows) else { return };
        let Register { ip, now, .. } = work.command.register;
        match activation.enrols(ip, now) {
            Err(refusal) => self.answer(work, Err(refusal)),
            Ok(confirmed_at) => {
                let by = EnrolledBy::Activation(activation.at.into());
                let made_ms = Some(confirmed_at.0.saturating_mul(1000));
                let work =
                    work.then::<Register, Server>(|RegisterInstalled { register, .. }| {
                        let credential = Credential { by, made_ms, ..register.credential };
                        Register { credential, code: Some(activation.code), ..register }
                    });
                self.handles.server_registry.send(work);
            }
        }
    }
}

impl Receive<Work<Release, Record>> for Activation {
    fn receive(&mut self, work: Work<Release, Record>) {
        let id = work.command.id;
        let gives_back = |asked: &Release, known: &Record| {
            matches!(known.release(asked.now), Ok(Verdict::GiveBack(_)))
        };
        let Some((work, activation)) = self.find_tokened(work, id, gives_back) else {
            return;
        };
        match activation.release(work.command.now) {
            Err(refusal) => {
                self.handles.attempts.add(work.command.refused(&activation, &refusal));
                self.answer(work, Err(refusal));
            }
            Ok(Verdict::Confirmed) => self.answer(work, Ok(ReleaseOutcome::Confirmed)),
            Ok(Verdict::Lapsed) => {
                self.answer(work, Ok(ReleaseOutcome::Released { code_restored: false }));
            }
            Ok(Verdict::GiveBack(released)) => {
                if !work.reply.claim() {
                    return;
                }
                let change = forward_change(self, id);
                let released = Closing { released, change };
                let restore = |release| Restore { released, release };
                self.handles.code_registry.send(work.then(restore));
            }
        }
    }
}

impl CacheOwner for Activation {
    type Record = Record;

    fn memory(&mut self) -> &mut RecordCache<Record> {
        &mut self.activations
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
        tuning.batches.activation
    }
    fn mailbox(handles: &Handles) -> &Mailbox<Self> {
        &handles.activation
    }
    /// The codes that these activations consumed are needed no longer either.
    fn evicted(&self, activations: Vec<Record>) {
        let spent = activations.iter().map(|record| (record.code, record.at)).collect();
        self.handles.code_registry.send(Spent(spent));
    }
}

impl Receive<Eviction<Record>> for Activation {
    fn receive(&mut self, upkeep: Eviction<Record>) {
        self.metrics.taken();
        self.keep(upkeep);
        self.observed.activations_in_memory.set(self.activations.len() as i64);
    }
}

impl Receive<Shutdown> for Activation {
    fn receive(&mut self, shutdown: Shutdown) {
        self.metrics.taken();
        self.handles.server_registry.send(shutdown);
        self.ended = true;
    }
}
