//! The reply to a request. It travels inside the message, with the permit and the charge of the request.

use crate::rate_limiter::{Charge, DueCharge};
use crate::runtime::reply_queue::{Deliver, ReplyQueue};
use iptunnel_domain::Refusal;
use iptunnel_domain::limit::Standing;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

/// Why a request was neither granted nor refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server had no capacity or no time for it. Nothing happened.
    Overloaded,
    /// The store refused it or could not be read. Nothing happened.
    StorageUnavailable,
    /// It may or may not have happened.
    OutcomeUnknown,
}

/// Granted, refused by the rules, or failed.
pub type Outcome<T> = Result<Result<T, Refusal>, Failure>;

/// How a limited request stands against the policies that counted it.
pub type Rates = Vec<Standing>;

/// The answer to a request.
#[derive(Debug)]
pub struct Answer<T> {
    /// Granted, refused or failed.
    pub outcome: Outcome<T>,
    /// The standings, where the request was limited.
    pub rates: Option<Rates>,
}

impl<T> From<Failure> for Answer<T> {
    fn from(failure: Failure) -> Self {
        Self { outcome: Err(failure), rates: None }
    }
}

/// A permit for one request. The number of permits bounds all queues behind the HTTP edge. Returned
/// when dropped.
pub(crate) struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// The permits that are not in use.
#[derive(Clone)]
pub(crate) struct Permits {
    left: Arc<AtomicUsize>,
    /// How answers are returned.
    reply_queue: fn() -> ReplyQueue,
}

impl Permits {
    pub(crate) fn new(count: usize) -> Self {
        Self { left: Arc::new(AtomicUsize::new(count)), reply_queue: ReplyQueue::of_this_thread }
    }

    /// Creates permits for callers that poll for answers instead of waiting.
    pub(crate) fn stepped(count: usize) -> Self {
        Self { reply_queue: || ReplyQueue::Direct, ..Self::new(count) }
    }

    /// Creates `count` permits, and as many again for requests that are answered from memory.
    pub(crate) fn with_quick(count: usize, make: fn(usize) -> Self) -> (Self, Self) {
        (make(count), make(count))
    }

    fn take(&self) -> Option<Permit> {
        let one_less = |left: usize| left.checked_sub(1);
        self.left.fetch_update(Ordering::Acquire, Ordering::Relaxed, one_less).ok()?;
        Some(Permit(Arc::clone(&self.left)))
    }

    /// Creates the reply of a request and the pending answer of its caller. Returns `None` if no permit
    /// is left.
    pub(crate) fn request<T>(&self) -> Option<(Reply<T>, Pending<T>)> {
        let permit = self.take()?;
        let (sender, receiver) = oneshot::channel();
        let progress = Arc::new(AtomicU8::new(0));
        let inner = Inner {
            reply_queue: (self.reply_queue)(),
            sender: Some(sender),
            answer: None,
            progress: Arc::clone(&progress),
            generation: None,
            charge: None,
            due: None,
            retries: 0,
            rates: None,
            over_limit: None,
            _permit: permit,
        };
        Some((Reply(Some(Box::new(inner))), Pending { receiver, progress }))
    }
}

/// An actor changes state for this request. From now on its outcome is unknown until it is answered.
const CLAIMED: u8 = 1;
/// The caller has stopped waiting.
const ABANDONED: u8 = 2;
/// The answer has been sent.
const ANSWERED: u8 = 4;

/// The reply to the caller of one request.
///
/// If it is dropped without an answer, which happens only when the server shuts down, the caller is
/// notified.
pub struct Reply<T>(Option<Box<Inner<T>>>);

struct Inner<T> {
    /// The queue of the thread on which the caller waits.
    reply_queue: ReplyQueue,
    sender: Option<oneshot::Sender<Answer<T>>>,
    answer: Option<Answer<T>>,
    progress: Arc<AtomicU8>,
    /// The store's generation on which the first decision was made.
    generation: Option<u32>,
    charge: Option<Charge>,
    /// The charge that the change of the request will carry.
    due: Option<Box<DueCharge>>,
    /// How often the decision on the request was overtaken and had to be made again.
    retries: u8,
    rates: Option<Rates>,
    /// Set if a limit is reached: only what was granted before may be granted again. Seconds until the
    /// limit ends.
    over_limit: Option<u64>,
    _permit: Permit,
}

impl<T: Send> Deliver for Inner<T> {
    fn deliver(&mut self) {
        if let (Some(sender), Some(answer)) = (self.sender.take(), self.answer.take()) {
            // This fails if the caller has hung up. There is nothing to undo.
            let _ = sender.send(answer);
        }
    }
}

impl<T: Send + 'static> Reply<T> {
    /// Grants the request.
    pub(crate) fn grant(self, answer: T) {
        self.send(Ok(Ok(answer)));
    }

    /// Refuses the request by the rules.
    pub(crate) fn refuse(self, refusal: Refusal) {
        self.send(Ok(Err(refusal)));
    }

    /// Fails the request and gives its charge back.
    pub(crate) fn fail(mut self, failure: Failure) {
        self.give_back_charge();
        self.send(Err(failure));
    }

    pub(crate) fn decide(self, decision: Result<T, Refusal>) {
        self.send(Ok(decision));
    }

    fn send(mut self, outcome: Outcome<T>) {
        let Some(mut inner) = self.0.take() else { return };
        let before = inner.progress.fetch_or(ANSWERED, Ordering::AcqRel);
        if before & ABANDONED != 0 {
            // The caller was told that the request failed. Failed requests are not charged.
            if let Some(charge) = inner.charge.take() {
                charge.give_back();
            }
            return;
        }
        let rates = inner.rates.take();
        inner.answer = Some(Answer { outcome, rates });
        inner.reply_queue.clone().send(inner);
    }
}

impl<T> Reply<T> {
    /// Claims the request, just before state changes for it. Returns `false` if the caller has given
    /// up; then nothing may change.
    pub(crate) fn claim(&self) -> bool {
        let Some(inner) = &self.0 else { return false };
        let before = inner.progress.fetch_or(CLAIMED, Ordering::AcqRel);
        if before & (ABANDONED | CLAIMED) == ABANDONED {
            inner.progress.fetch_and(!CLAIMED, Ordering::AcqRel);
            return false;
        }
        true
    }

    /// Returns the generation of the store on which the request was first decided. If this is the first
    /// decision, that is `mine`.
    pub(crate) fn generation(&mut self, mine: u32) -> u32 {
        self.0.as_mut().map_or(mine, |inner| *inner.generation.get_or_insert(mine))
    }

    pub(crate) fn charged(&mut self, charge: Option<Charge>, rates: Rates) {
        if let Some(inner) = &mut self.0 {
            inner.charge = charge;
            inner.rates = Some(rates);
        }
    }

    /// Lets the request go on although it is not charged yet: its change carries the charge.
    pub(crate) fn owes(&mut self, due: DueCharge) {
        if let Some(inner) = &mut self.0 {
            inner.due = Some(Box::new(due));
        }
    }

    /// Returns the charge that the change of the request has to carry; `None` if it was charged.
    pub(crate) fn due(&self) -> Option<&DueCharge> {
        self.0.as_ref()?.due.as_deref()
    }

    /// Returns how often the decision on the request was overtaken and had to be made again.
    pub(crate) fn retries(&self) -> u8 {
        self.0.as_ref().map_or(0, |inner| inner.retries)
    }

    /// Counts that the decision on the request was overtaken.
    pub(crate) fn count_retry(&mut self) {
        if let Some(inner) = &mut self.0 {
            inner.retries = inner.retries.saturating_add(1);
        }
    }

    /// Takes the charge out, to be made in another way.
    pub(crate) fn take_due(&mut self) -> Option<Box<DueCharge>> {
        self.0.as_mut()?.due.take()
    }

    /// The change is written, and with it the charge.
    pub(crate) fn charged_with_change(&mut self, used: Option<Vec<u32>>) {
        if let Some(due) = self.take_due() {
            let (charge, rates) = due.charged(used);
            if let Some(inner) = &mut self.0 {
                (inner.charge, inner.rates) = (Some(charge), rates);
            }
        }
    }

    /// Lets the request go on although a limit is reached, because a machine must not lose what it
    /// holds. Nothing is charged, and nothing new may be granted.
    pub(crate) fn over_limit(&mut self, retry_after: u64, rates: Rates) {
        if let Some(inner) = &mut self.0 {
            inner.over_limit = Some(retry_after);
            inner.rates = Some(rates);
        }
    }

    /// Returns the refusal for anything new, if a limit is reached.
    pub(crate) fn limit_reached(&self) -> Option<Refusal> {
        let retry_after = self.0.as_ref()?.over_limit?;
        Some(Refusal::RateLimited { retry_after })
    }

    /// Gives the charge back, because the request does not count.
    pub(crate) fn give_back_charge(&mut self) {
        let Some(inner) = &mut self.0 else { return };
        if let Some(charge) = inner.charge.take() {
            charge.give_back();
            for standing in inner.rates.iter_mut().flatten() {
                standing.used = standing.used.saturating_sub(1);
            }
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        self.give_back_charge();
    }
}

/// The pending answer of a request.
pub struct Pending<T> {
    receiver: oneshot::Receiver<Answer<T>>,
    progress: Arc<AtomicU8>,
}

impl<T> Pending<T> {
    /// Waits for the answer, but no longer than `deadline`. At the deadline a request that no actor has
    /// claimed fails as overloaded; the outcome of a claimed request is unknown.
    pub async fn within(mut self, deadline: Duration) -> Answer<T> {
        if let Ok(answer) = tokio::time::timeout(deadline, &mut self.receiver).await {
            return answer.unwrap_or_else(|_| self.lost().into());
        }
        match self.abandon() {
            Some(failure) => failure.into(),
            None => self.receiver.await.unwrap_or_else(|_| Failure::Overloaded.into()),
        }
    }

    /// Returns the answer once it has arrived. It can be taken only once.
    pub fn answered(&mut self) -> Option<Answer<T>> {
        match self.receiver.try_recv() {
            Ok(answer) => Some(answer),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(self.lost().into()),
        }
    }

    /// Stops waiting, and returns the failure to report. Returns `None` if the answer has been sent.
    pub fn abandon(&self) -> Option<Failure> {
        let before = self.progress.fetch_or(ABANDONED, Ordering::AcqRel);
        (before & ANSWERED == 0).then(|| unless_claimed(before))
    }

    fn lost(&self) -> Failure {
        unless_claimed(self.progress.load(Ordering::Acquire))
    }
}

fn unless_claimed(progress: u8) -> Failure {
    if progress & CLAIMED == 0 { Failure::Overloaded } else { Failure::OutcomeUnknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    /// Runs one request on a thread that can wait, and returns its answer.
    fn play(worker: impl FnOnce(Reply<()>)) -> Answer<()> {
        actix::System::new().block_on(async {
            let (reply, pending) = Permits::new(1).request().unwrap();
            worker(reply);
            pending.within(SOON).await
        })
    }

    #[test]
    fn each_request_needs_a_permit_and_returns_it() {
        actix::System::new().block_on(async {
            let permits = Permits::new(1);
            let (reply, pending) = permits.request::<()>().unwrap();
            assert!(permits.request::<()>().is_none());
            reply.grant(());
            assert!(matches!(pending.within(SOON).await.outcome, Ok(Ok(()))));
            assert!(permits.request::<()>().is_some());
        });
    }

    #[test]
    fn answers_from_other_threads_reach_their_callers() {
        let answer = play(|reply| {
            std::thread::spawn(move || reply.grant(())).join().unwrap();
        });
        assert_eq!(answer.outcome, Ok(Ok(())));
    }

    #[test]
    fn an_unclaimed_request_is_overloaded_at_the_deadline_and_cannot_be_claimed_later() {
        let mut kept = None;
        assert_eq!(play(|reply| kept = Some(reply)).outcome, Err(Failure::Overloaded));
        assert!(!kept.unwrap().claim());
    }

    #[test]
    fn a_claimed_request_has_an_unknown_outcome_at_the_deadline() {
        let mut kept = None;
        let answer = play(|reply| {
            assert!(reply.claim());
            kept = Some(reply);
        });
        assert_eq!(answer.outcome, Err(Failure::OutcomeUnknown));
        assert!(kept.unwrap().claim(), "a claimed request may go on");
    }

    #[test]
    fn a_dropped_reply_notifies_its_caller() {
        assert_eq!(play(drop).outcome, Err(Failure::Overloaded));
    }
}
