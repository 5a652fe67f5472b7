//! How messages travel: mailboxes, replies, permits, the reader threads, health and metrics.

pub(crate) mod health;
pub(crate) mod mailbox;
pub(crate) mod metrics;
pub(crate) mod reader;
pub(crate) mod reply;
pub(crate) mod reply_queue;
pub mod stepped;
pub(crate) mod tuning;
