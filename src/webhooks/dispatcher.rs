//! The thread that delivers. It follows the audit log for each receiver, begins tries, each in a thread of its
//! own, and keeps in the store what they have come to.

use super::kept::Kept;
use super::message::Message;
use super::order::Replay;
use super::send::{LONGEST, Outcome, Sender};
use super::{Heard, Label, Queue, Tried, Webhooks, entry};
use crate::os::{Clock, random_bytes};
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{Action, Event};
use iptunnel_domain::webhook::{Outbox, is_order, subject, type_of};
use iptunnel_storage::{Entry, ReadError, Store};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// The interval at which the dispatcher looks for what is due.
const LOOK: Duration = Duration::from_millis(250);
/// The shortest time between two readings of the log, so that a busy server's log is read in large pieces.
const READ_EVERY: Duration = Duration::from_millis(100);
/// The longest time between two readings of the log, should no event have woken the dispatcher.
const READ_ANYWAY: Duration = Duration::from_secs(5);
/// The most entries that are read at once for one receiver: some milliseconds.
const READ: usize = 2000;
/// The shortest time between two writes of the states. So much may be delivered twice after a crash.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// The interval at which the file is looked at.
const RELOAD_EVERY: Duration = Duration::from_secs(1);
/// The seconds for which the lease is taken: twice the longest try. After a server has died another one takes
/// over within that time.
const LEASE: u32 = 30;
/// The interval at which the lease is made longer, and at which other servers try to take it.
const RENEW_EVERY: Duration = Duration::from_secs(3);

/// Says whether an event is told at all.
pub type IsTold = fn(&Event) -> bool;

/// Starts the dispatcher, unless this server has no file of webhooks.
///
/// # Errors
/// The operating system gives no thread.
pub fn start(
    webhooks: &Arc<Webhooks>,
    Queue(queue): Queue,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    is_told: IsTold,
) -> std::io::Result<()> {
    if webhooks.path.as_os_str().is_empty() {
        return Ok(());
    }
    let dispatcher = Dispatcher {
        webhooks: Arc::clone(webhooks),
        queue,
        store,
        clock,
        is_told,
        lines: BTreeMap::new(),
        generation: 0,
        holds_until: None,
        renew_at: Instant::now(),
        read_at: None,
        kept_at: None,
        reloaded_at: Instant::now(),
        has_failed: false,
    };
    thread::Builder::new().name("webhooks".into()).spawn(move || dispatcher.run()).map(drop)
}

/// What one receiver has had, and what is being sent to it.
struct Line {
    kept: Kept,
    sender: Sender,
    /// The messages of what waits, as far as they need not be read again.
    messages: HashMap<u64, Arc<Message>>,
    /// Whether the log has more than was read.
    is_behind: bool,
    /// Whether the store has an older state.
    is_changed: bool,
}

struct Dispatcher {
    webhooks: Arc<Webhooks>,
    queue: mpsc::Receiver<Heard>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    is_told: IsTold,
    lines: BTreeMap<String, Line>,
    /// Grows when the lease is lost: the outcomes of earlier tries are another server's business.
    generation: u64,
    /// Until when this server has the lease.
    holds_until: Option<Instant>,
    renew_at: Instant,
    read_at: Option<Instant>,
    kept_at: Option<Instant>,
    reloaded_at: Instant,
    /// Whether the last access to the store failed, so that a failure is logged once.
    has_failed: bool,
}

impl Dispatcher {
    fn run(mut self) {
        loop {
            match self.queue.recv_timeout(LOOK) {
                Ok(heard) => {
                    if self.hear(heard) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            loop {
                match self.queue.try_recv() {
                    Ok(heard) => {
                        if self.hear(heard) {
                            return;
                        }
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let outcome = self.step();
            self.report(outcome);
        }
    }

    /// Logs the first of several failures of the store.
    fn report(&mut self, outcome: Result<(), ReadError>) {
        match outcome {
            Ok(()) => self.has_failed = false,
            Err(error) if !self.has_failed => {
                self.has_failed = true;
                tracing::warn!(%error, "webhooks wait: their state in the store cannot be used");
            }
            Err(_) => {}
        }
    }

    /// Returns whether the server stops.
    fn hear(&mut self, heard: Heard) -> bool {
        match heard {
            Heard::Event => {}
            Heard::Tried(tried) => self.note(tried),
            Heard::Stop(done) => {
                let kept = self.keep(true);
                self.report(kept);
                let store = Arc::clone(&self.store);
                if let Some(rows) = store.webhooks() {
                    self.report(rows.release());
                }
                let _ = done.send(());
                return true;
            }
        }
        false
    }

    fn step(&mut self) -> Result<(), ReadError> {
        if self.reloaded_at.elapsed() >= RELOAD_EVERY {
            self.reloaded_at = Instant::now();
            self.webhooks.reload();
        }
        let senders = self.webhooks.senders();
        self.hold(senders.is_empty())?;
        if self.holds_until.is_none() {
            return Ok(());
        }
        self.follow_file(senders)?;
        if self.webhooks.ordered.swap(false, Ordering::Relaxed) {
            let obeyed = self.obey_orders();
            if obeyed.is_err() {
                self.webhooks.ordered.store(true, Ordering::Relaxed);
            }
            obeyed?;
        }
        self.read_log()?;
        self.begin();
        self.keep(false)?;
        self.show();
        Ok(())
    }

    /// Takes the lease, or makes it longer. Without it nothing is delivered.
    fn hold(&mut self, has_none: bool) -> Result<(), ReadError> {
        let now = Instant::now();
        if self.holds_until.is_some_and(|until| until <= now) {
            self.let_go();
        }
        if now < self.renew_at {
            return Ok(());
        }
        self.renew_at = now + RENEW_EVERY;
        let store = Arc::clone(&self.store);
        let Some(rows) = store.webhooks() else { return Ok(()) };
        if has_none {
            if self.holds_until.is_some() {
                self.keep(true)?;
                self.let_go();
                rows.release()?;
            }
            return Ok(());
        }
        if rows.hold(LEASE)? {
            if self.holds_until.is_none() {
                tracing::info!("this server delivers the webhooks");
                self.webhooks.ordered.store(true, Ordering::Relaxed);
            }
            self.holds_until = Some(now + Duration::from_secs(LEASE.into()));
        } else if self.holds_until.is_some() {
            self.let_go();
        }
        Ok(())
    }

    /// Forgets everything: another server delivers.
    fn let_go(&mut self) {
        self.holds_until = None;
        self.lines.clear();
        self.generation += 1;
        self.webhooks.figures.clear();
    }

    /// Follows the file: webhooks may be new, changed, or gone from it.
    fn follow_file(&mut self, senders: BTreeMap<String, Sender>) -> Result<(), ReadError> {
        if self.lines.keys().any(|name| !senders.contains_key(name)) {
            self.keep(true)?;
            self.lines.retain(|name, _| senders.contains_key(name));
            self.webhooks.figures.clear();
        }
        let is_new = |name: &String| !self.lines.contains_key(name);
        let states: HashMap<String, Vec<u8>> = match self.store.webhooks() {
            Some(rows) if senders.keys().any(is_new) => rows.states()?.into_iter().collect(),
            _ => HashMap::new(),
        };
        for (name, sender) in senders {
            if let Some(line) = self.lines.get_mut(&name) {
                if line.sender.endpoint() != sender.endpoint() {
                    line.sender = sender;
                    enable_elsewhere(&self.store, line)?;
                }
                continue;
            }
            let mut line = match states.get(&name).map(|bytes| Kept::decode(bytes)) {
                None => Line::new(self.store.audit_head()?.entries, sender),
                Some(Ok(kept)) => Line::of(kept, sender),
                Some(Err(why)) => {
                    let why = format!("the state of the webhook {name} cannot be read: {why}");
                    return Err(ReadError(why));
                }
            };
            enable_elsewhere(&self.store, &mut line)?;
            self.lines.insert(name, line);
        }
        Ok(())
    }

    /// Does what operators have asked for since it was last looked for.
    fn obey_orders(&mut self) -> Result<(), ReadError> {
        let first = self.lines.values().map(|line| line.kept.orders).min().unwrap_or_default();
        let mut orders = Vec::new();
        let mut last = first;
        self.store.audit_from(first.saturating_add(1), &mut |entry| {
            last = entry.head.entries;
            if is_order(entry.event.action) {
                orders.push(entry);
            }
            true
        })?;
        let now = self.clock.now();
        for entry in orders {
            let line = self.lines.get_mut(&entry.event.subject);
            if let Some(line) = line.filter(|line| entry.head.entries > line.kept.orders) {
                line.obey(&entry, self.store.as_ref(), now)?;
            }
        }
        for line in self.lines.values_mut() {
            line.kept.orders = line.kept.orders.max(last);
        }
        Ok(())
    }

    fn read_log(&mut self) -> Result<(), ReadError> {
        let since = self.read_at.map(|at| at.elapsed());
        if since.is_some_and(|since| since < READ_EVERY) {
            return Ok(());
        }
        let all = self.webhooks.woken.swap(false, Ordering::Relaxed)
            || since.is_none_or(|since| since >= READ_ANYWAY);
        if all {
            self.read_at = Some(Instant::now());
        }
        let now = self.clock.now();
        for (name, line) in self.lines.iter_mut().filter(|(_, line)| all || line.is_behind) {
            if let Err(error) = line.read(name, self.store.as_ref(), self.is_told, now) {
                self.webhooks.woken.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Begins what is due. Not so late that another server might have taken over before a try ends.
    fn begin(&mut self) {
        let now = self.clock.now();
        let last_moment = Instant::now() + LONGEST;
        if self.holds_until.is_none_or(|until| until < last_moment) {
            return;
        }
        for (name, line) in &mut self.lines {
            while let Some(number) = line.kept.outbox.begin(now) {
                let tried = |outcome| Tried {
                    generation: self.generation,
                    endpoint: name.clone(),
                    number,
                    outcome,
                };
                let failed = |why: String| tried(Outcome::Failed { why, retry_after: None });
                let outcome = match line.message(number, self.store.as_ref()) {
                    Ok(message) => {
                        let (sender, queue) = (line.sender.clone(), self.webhooks.queue.clone());
                        let mut tried = tried(Outcome::Delivered);
                        let attempt = move || {
                            tried.outcome = sender.send(&message, now);
                            // The dispatcher may have ended: then it is tried again after a restart.
                            let _ = queue.send(Heard::Tried(tried));
                        };
                        let begun = thread::Builder::new().name("webhook".into()).spawn(attempt);
                        begun.err().map(|error| failed(format!("no thread: {error}")))
                    }
                    Err(error) => Some(failed(error.to_string())),
                };
                if let Some(tried) = outcome {
                    let _ = self.webhooks.queue.send(Heard::Tried(tried));
                }
            }
        }
    }

    fn note(&mut self, tried: Tried) {
        let Tried { generation, endpoint, number, outcome } = tried;
        let Some(line) = self.lines.get_mut(&endpoint) else { return };
        if generation != self.generation {
            return;
        }
        let now = self.clock.now();
        let label = Label { endpoint };
        let figures = &self.webhooks.figures;
        line.is_changed = true;
        let outbox = &mut line.kept.outbox;
        let dead = outbox.not_listed + outbox.dead.len() as u64;
        match outcome {
            Outcome::Delivered => {
                if outbox.is_failing() {
                    tracing::info!(webhook = label.endpoint, "a webhook is delivered again");
                }
                outbox.delivered(number, now);
                figures.delivered.get_or_create(&label).inc();
            }
            Outcome::Gone => {
                tracing::error!(
                    webhook = label.endpoint,
                    "a webhook is disabled: its receiver says that it is gone (410)"
                );
                outbox.gone(now);
                line.kept.gone = line.sender.endpoint().fingerprint();
                figures.failures.get_or_create(&label).inc();
            }
            Outcome::Failed { why, retry_after } => {
                let had_failed = outbox.is_failing();
                let jitter = random_bytes().map(u32::from_be_bytes).unwrap_or_default();
                outbox.failed(number, &why, retry_after, jitter, now);
                if outbox.is_failing() && !had_failed {
                    let webhook = &label.endpoint;
                    tracing::warn!(
                        webhook,
                        why,
                        "a webhook fails; it is tried again for three days"
                    );
                }
                figures.failures.get_or_create(&label).inc();
            }
        }
        let outbox = &line.kept.outbox;
        let given_up = (outbox.not_listed + outbox.dead.len() as u64).saturating_sub(dead);
        figures.given_up.get_or_create(&label).inc_by(given_up);
        line.messages.retain(|number, _| outbox.waiting.contains_key(number));
    }

    /// Writes the states that have changed, at once or when it is time.
    fn keep(&mut self, at_once: bool) -> Result<(), ReadError> {
        let is_time = at_once || self.kept_at.is_none_or(|at| at.elapsed() >= KEEP_EVERY);
        let store = Arc::clone(&self.store);
        let Some(rows) = store.webhooks().filter(|_| is_time) else { return Ok(()) };
        let changed = self.lines.iter().filter(|(_, line)| line.is_changed);
        let states: Vec<_> =
            changed.map(|(name, line)| (name.clone(), line.kept.encode())).collect();
        if states.is_empty() {
            return Ok(());
        }
        self.kept_at = Some(Instant::now());
        if rows.keep(&states)? {
            self.lines.values_mut().for_each(|line| line.is_changed = false);
        } else {
            self.let_go();
        }
        Ok(())
    }

    fn show(&self) {
        let (figures, now) = (&self.webhooks.figures, self.clock.now());
        for (name, Line { kept: Kept { outbox, .. }, .. }) in &self.lines {
            let label = Label { endpoint: name.clone() };
            let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
            let age = |at: Option<Timestamp>| at.map_or(0, |at| now.since(at).cast_signed());
            figures.waiting.get_or_create(&label).set(whole(outbox.waiting.len()));
            figures.oldest.get_or_create(&label).set(age(outbox.oldest()));
            figures.failing.get_or_create(&label).set(age(outbox.failing_since));
            figures.dead.get_or_create(&label).set(whole(outbox.dead.len()));
            figures.disabled.get_or_create(&label).set(i64::from(outbox.disabled));
            for counted in [&figures.delivered, &figures.failures, &figures.given_up] {
                drop(counted.get_or_create(&label));
            }
        }
    }
}

/// Enables a webhook whose address is another one than that which was gone.
fn enable_elsewhere(store: &Arc<dyn Store>, line: &mut Line) -> Result<(), ReadError> {
    let is_elsewhere = line.kept.gone != line.sender.endpoint().fingerprint();
    if line.kept.outbox.disabled && is_elsewhere {
        line.kept.outbox.enable(store.audit_head()?.entries);
        line.is_changed = true;
    }
    Ok(())
}

/// Returns an entry that a state names.
fn named(store: &dyn Store, number: u64) -> Result<Entry, ReadError> {
    let missing = || ReadError(format!("the audit log has no entry {number}"));
    entry(store, number)?.ok_or_else(missing)
}

impl Line {
    /// A new webhook hears of what happens from now on.
    fn new(head: u64, sender: Sender) -> Self {
        let kept = Kept { outbox: Outbox::from(head), orders: head, ..Kept::default() };
        Self { is_changed: true, ..Self::of(kept, sender) }
    }

    fn of(kept: Kept, sender: Sender) -> Self {
        let messages = HashMap::new();
        Self { kept, sender, messages, is_behind: true, is_changed: false }
    }

    /// Reads on in the log, as far as there is room for more.
    fn read(
        &mut self,
        name: &str,
        store: &dyn Store,
        is_told: IsTold,
        now: Timestamp,
    ) -> Result<(), ReadError> {
        let mut looked = 0;
        self.is_behind = false;
        if self.kept.outbox.room() == 0 {
            self.is_behind = !self.kept.outbox.disabled;
            return Ok(());
        }
        let (kept, messages) = (&mut self.kept, &mut self.messages);
        let selection = &self.sender.endpoint().events;
        let (mut is_behind, mut is_changed, mut orders) = (false, false, Vec::new());
        store.audit_from(kept.outbox.read.saturating_add(1), &mut |entry| {
            if looked == READ || kept.outbox.room() == 0 {
                is_behind = true;
                return false;
            }
            looked += 1;
            is_changed = true;
            let number = entry.head.entries;
            if number > kept.orders {
                kept.orders = number;
                if is_order(entry.event.action) && entry.event.subject == name {
                    orders.push(entry.clone());
                }
            }
            match selection.wants(entry.event.action).filter(|_| is_told(&entry.event)) {
                None => kept.outbox.pass(number),
                Some(kind) => {
                    kept.outbox.take(number, subject(&entry.event), entry.event.at, now);
                    messages.insert(number, Arc::new(Message::of(&entry, kind)));
                }
            }
            true
        })?;
        self.is_behind = is_behind;
        self.is_changed |= is_changed;
        let waiting = &self.kept.outbox.waiting;
        self.messages.retain(|number, _| waiting.contains_key(number));
        orders.iter().try_for_each(|order| self.obey(order, store, now))
    }

    fn message(&mut self, number: u64, store: &dyn Store) -> Result<Arc<Message>, ReadError> {
        if let Some(message) = self.messages.get(&number) {
            return Ok(Arc::clone(message));
        }
        let entry = named(store, number)?;
        let kind = type_of(entry.event.action).unwrap_or_default();
        Ok(Arc::new(Message::of(&entry, kind)))
    }

    /// Does what an operator has asked for.
    fn obey(&mut self, order: &Entry, store: &dyn Store, now: Timestamp) -> Result<(), ReadError> {
        self.is_changed = true;
        self.is_behind = true;
        let outbox = &mut self.kept.outbox;
        if order.event.action == Action::WebhookEnabled {
            outbox.enable(order.head.entries);
            return Ok(());
        }
        let numbers = match Replay::parse(&order.event.detail) {
            Some(Replay::Message(number)) => vec![number],
            Some(Replay::DeadLetters) => outbox.dead.iter().map(|letter| letter.number).collect(),
            Some(Replay::From(number)) => {
                outbox.replay_from(number);
                Vec::new()
            }
            None => Vec::new(),
        };
        for number in numbers {
            let Entry { event, .. } = named(store, number)?;
            outbox.replay(number, subject(&event), event.at, now);
        }
        Ok(())
    }
}
