//! An actor's mailbox with its gauges, and who takes messages out of it.

use crate::runtime::health::Health;
use crate::runtime::metrics::ActorMetrics;
use actix::{Addr, Context, Handler, Message};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An actor of this crate. It knows nothing of who runs it: actix on an arbiter, or a simulation
/// one message at a time.
pub(crate) trait Actor: Sized + Unpin + 'static {
    /// Whether it has passed on the end, and takes no more messages.
    fn has_ended(&self) -> bool;
}

/// What an actor does with one message: a short function that translates, decides and forwards.
pub(crate) trait Receive<M> {
    fn receive(&mut self, message: M);
}

/// An actor as actix runs it.
pub(crate) struct Hosted<A>(pub(crate) A);

impl<A: Actor> actix::Actor for Hosted<A> {
    type Context = Context<Self>;
}

impl<A, M> Handler<M> for Hosted<A>
where
    A: Actor + Receive<M>,
    M: Message<Result = ()>,
{
    type Result = ();

    fn handle(&mut self, message: M, context: &mut Context<Self>) {
        self.0.receive(message);
        if self.0.has_ended() {
            actix::ActorContext::stop(context);
        }
    }
}

/// One message on its way to an actor that is run by hand.
type Step<A> = Box<dyn FnOnce(&mut A) + Send>;

/// The messages of an actor that is run by hand, in the order in which they came.
pub(crate) struct Inbox<A>(Arc<Mutex<VecDeque<Step<A>>>>);

impl<A> Clone for Inbox<A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<A> Inbox<A> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Step<A>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Lets the actor take its next message. `false` where there is none.
    pub(crate) fn step(&self, actor: &mut A) -> bool {
        // Let go of first: the message may send others here.
        let next = self.lock().pop_front();
        next.map(|step| step(actor)).is_some()
    }
}

/// Where an actor gets its messages.
pub(crate) enum Address<A: Actor> {
    Actix(Addr<Hosted<A>>),
    Stepped(Inbox<A>),
}

/// The way to an actor. It has no bound of its own and refuses nothing: a request in it holds a
/// permit, of which there are few, and whatever actors tell each other follows from a request or
/// from the clock. So no message of theirs is ever lost for want of a place.
pub(crate) struct Mailbox<A: Actor> {
    address: Address<A>,
    metrics: ActorMetrics,
    health: Arc<Health>,
}

impl<A: Actor> Mailbox<A> {
    pub(crate) fn new(address: Address<A>, (metrics, health): (ActorMetrics, Arc<Health>)) -> Self {
        Self { address, metrics, health }
    }

    /// Puts a message into the mailbox. `false` where the actor has ended, which happens only when
    /// the server goes down; the message is dropped and its reply tells the caller.
    pub(crate) fn send<M>(&self, message: M) -> bool
    where
        M: Message<Result = ()> + Send + 'static,
        A: Receive<M>,
    {
        match &self.address {
            Address::Actix(address) if address.connected() => {
                self.metrics.depth.inc();
                address.do_send(message);
            }
            Address::Actix(_) => {
                if !self.health.is_draining() {
                    self.health.fail(&format!("the actor {} has stopped", self.metrics.name));
                }
                return false;
            }
            Address::Stepped(inbox) => {
                self.metrics.depth.inc();
                inbox.lock().push_back(Box::new(|actor| actor.receive(message)));
            }
        }
        true
    }
}
