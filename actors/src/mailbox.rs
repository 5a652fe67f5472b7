//! An actor's mailbox with its bound and its gauges.

use crate::health::Health;
use crate::observed::ActorMetrics;
use actix::dev::ToEnvelope;
use actix::prelude::SendError;
use actix::{Actor, Addr, Handler, Message};
use std::sync::Arc;

/// The one address through which an actor gets its messages. actix keeps a mailbox's bound only
/// for `try_send` on one shared address: so there is one, and nobody may clone it.
pub(crate) struct Mailbox<A: Actor> {
    address: Addr<A>,
    metrics: ActorMetrics,
    health: Arc<Health>,
}

impl<A: Actor> Mailbox<A> {
    pub(crate) fn new(address: Addr<A>, metrics: ActorMetrics, health: Arc<Health>) -> Self {
        Self { address, metrics, health }
    }

    /// Puts a message into the mailbox. `false` where that cannot be done, which happens only when
    /// the server goes down; the message is dropped and its reply tells the caller.
    pub(crate) fn send<M>(&self, message: M) -> bool
    where
        M: Message<Result = ()> + Send + 'static,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        self.metrics.depth.inc();
        match self.address.try_send(message) {
            Ok(()) => return true,
            // More messages than permits: a mistake of ours, which costs a request, not the server.
            Err(SendError::Full(_)) => {
                tracing::warn!(actor = self.metrics.name, "a mailbox is full");
            }
            Err(SendError::Closed(_)) if self.health.is_draining() => {}
            Err(SendError::Closed(_)) => self.health.fail("an actor has stopped"),
        }
        self.metrics.depth.dec();
        false
    }
}
