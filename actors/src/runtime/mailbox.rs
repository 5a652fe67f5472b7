//! An actor's mailbox with its gauges, and how the actor is run.

use crate::runtime::health::Health;
use crate::runtime::metrics::ActorMetrics;
use actix::{Addr, Context, Handler, Message};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An actor of this crate. It does not know how it is run: by actix on an arbiter, or by a simulation
/// one message at a time.
pub(crate) trait Actor: Sized + Unpin + 'static {
    /// Whether it has forwarded the shutdown and takes no more messages.
    fn has_ended(&self) -> bool;
}

/// The handler of one message type: a short function that translates, decides and forwards.
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

/// One message to an actor that is run step by step.
type Step<A> = Box<dyn FnOnce(&mut A) + Send>;

/// The messages of an actor that is run step by step, in the order of arrival.
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

    /// Lets the actor handle its next message. Returns `false` if there is none.
    pub(crate) fn step(&self, actor: &mut A) -> bool {
        // The lock is released first, because the message may send others here.
        let next = self.lock().pop_front();
        next.map(|step| step(actor)).is_some()
    }
}

/// The address of an actor.
pub(crate) enum Address<A: Actor> {
    Actix(Addr<Hosted<A>>),
    Stepped(Inbox<A>),
}

/// The mailbox of an actor. It needs no bound of its own and refuses no message: every request in it
/// holds a permit, the number of permits is bounded, and all messages between actors follow from a
/// request or from the clock. So no message is lost because a mailbox is full.
pub(crate) struct Mailbox<A: Actor> {
    address: Address<A>,
    metrics: ActorMetrics,
    health: Arc<Health>,
}

impl<A: Actor> Mailbox<A> {
    pub(crate) fn new(address: Address<A>, (metrics, health): (ActorMetrics, Arc<Health>)) -> Self {
        Self { address, metrics, health }
    }

    /// Sends a message to the actor. Returns `false` if the actor has ended, which happens only when
    /// the server shuts down. The message is dropped then, and its reply notifies the caller.
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
