//! The reply queue of a worker thread. All answers for the thread's requests go through it, and a task
//! on that thread delivers them. A commit that answers thirty requests of a worker wakes it once.
//! Without the queue each answer would cost a system call here and a turn of the worker's event loop.

use std::cell::RefCell;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// An answer that is delivered on the thread where its caller waits.
pub(crate) trait Deliver: Send {
    fn deliver(&mut self);
}

type Delivery = Box<dyn Deliver>;

/// The reply queue of one thread. It needs no bound of its own, because every answer in it holds a
/// permit.
#[derive(Clone)]
pub(crate) enum ReplyQueue {
    /// A task of the thread delivers the answers.
    Thread(UnboundedSender<Delivery>),
    /// The answer is delivered at once; the caller polls for it. For simulations without threads.
    Direct,
}

thread_local! {
    static HERE: RefCell<Option<ReplyQueue>> = const { RefCell::new(None) };
}

/// The number of answers delivered before other tasks of the thread run.
const AT_ONCE: usize = 64;

impl ReplyQueue {
    /// Returns the queue of this thread. The first request starts its task.
    pub(crate) fn of_this_thread() -> Self {
        HERE.with_borrow_mut(|here| match here {
            // It is closed if an earlier runtime on this thread has ended, and its task with it.
            Some(Self::Thread(sender)) if !sender.is_closed() => Self::Thread(sender.clone()),
            _ => here.insert(Self::open()).clone(),
        })
    }

    fn open() -> Self {
        let (sender, receiver) = unbounded_channel();
        tokio::task::spawn_local(deliver_all(receiver));
        Self::Thread(sender)
    }

    /// Sends an answer. If the thread has ended, no caller waits for it.
    pub(crate) fn send(&self, mut delivery: Delivery) {
        match self {
            Self::Thread(sender) => {
                let _ = sender.send(delivery);
            }
            Self::Direct => delivery.deliver(),
        }
    }
}

async fn deliver_all(mut receiver: UnboundedReceiver<Delivery>) {
    let mut deliveries = Vec::with_capacity(AT_ONCE);
    while receiver.recv_many(&mut deliveries, AT_ONCE).await > 0 {
        for mut delivery in deliveries.drain(..) {
            delivery.deliver();
        }
    }
}
