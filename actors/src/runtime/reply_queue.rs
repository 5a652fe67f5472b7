//! The way back across threads: answers for the requests of one worker thread go through one queue,
//! and a task on that thread hands them out. A commit that answers thirty requests of a worker thus
//! wakes it once; one by one, each would cost a system call here and a turn of its loop there.

use std::cell::RefCell;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Something that is handed to whoever waits for it, on the thread where they wait.
pub(crate) trait Deliver: Send {
    fn deliver(&mut self);
}

type Delivery = Box<dyn Deliver>;

/// The queue of one thread. It has no bound of its own: every answer in it holds a permit.
#[derive(Clone)]
pub(crate) enum ReplyQueue {
    /// A task of the thread hands answers out.
    Thread(UnboundedSender<Delivery>),
    /// Whoever waits looks for the answer: there is no task and no thread.
    Direct,
}

thread_local! {
    static HERE: RefCell<Option<ReplyQueue>> = const { RefCell::new(None) };
}

/// How many answers are handed out before other tasks of the thread have their turn.
const AT_ONCE: usize = 64;

impl ReplyQueue {
    /// The queue of this thread; its task begins with the first request.
    pub(crate) fn of_this_thread() -> Self {
        HERE.with_borrow_mut(|here| match here {
            // Closed where an earlier runtime on this thread, and the task with it, has ended.
            Some(Self::Thread(sender)) if !sender.is_closed() => Self::Thread(sender.clone()),
            _ => here.insert(Self::open()).clone(),
        })
    }

    fn open() -> Self {
        let (sender, receiver) = unbounded_channel();
        tokio::task::spawn_local(hand_out(receiver));
        Self::Thread(sender)
    }

    /// Sends an answer. Where the thread has ended nobody waits for it any more.
    pub(crate) fn send(&self, mut delivery: Delivery) {
        match self {
            Self::Thread(sender) => {
                let _ = sender.send(delivery);
            }
            Self::Direct => delivery.deliver(),
        }
    }
}

async fn hand_out(mut receiver: UnboundedReceiver<Delivery>) {
    let mut deliveries = Vec::with_capacity(AT_ONCE);
    while receiver.recv_many(&mut deliveries, AT_ONCE).await > 0 {
        for mut delivery in deliveries.drain(..) {
            delivery.deliver();
        }
    }
}
