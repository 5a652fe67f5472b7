//! The message of the rate limiter.

use crate::messages::Command;
use crate::runtime::reply::Reply;
use actix::Message;
use iptunnel_domain::limit::Subject;
use iptunnel_domain::{Refusal, Timestamp};

/// A request to a limited route. Sent by the HTTP edge. The rate limiter answers it if a limit is
/// reached or the request is unusable; otherwise it forwards it.
pub struct Limited<C: Command> {
    /// The subjects to charge.
    pub subjects: Vec<Subject>,
    /// What to do, or why the request is unusable. An unusable request is charged, too.
    pub command: Result<C, Refusal>,
    /// When the request arrived.
    pub now: Timestamp,
    /// The reply to the caller.
    pub reply: Reply<C::Answer>,
}

impl<C: Command> Message for Limited<C> {
    type Result = ();
}
