//! How messages travel: mailboxes, replies, permits, the threads that read; and what is seen of it.

pub(crate) mod health;
pub(crate) mod mailbox;
pub(crate) mod metrics;
pub(crate) mod reader;
pub(crate) mod reply;
pub(crate) mod reply_queue;
pub mod stepped;
pub(crate) mod tuning;
