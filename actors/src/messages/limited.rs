//! The message of the rate limiter.

use crate::messages::Command;
use crate::runtime::reply::Reply;
use actix::Message;
use iptunnel_domain::limit::Subject;
use iptunnel_domain::{Refusal, Timestamp};

/// A request to a limited route. Sent by the HTTP edge; answered here where a limit or the request
/// itself refuses, else forwarded.
pub struct Limited<C: Command> {
    /// Who is to be charged.
    pub subjects: Vec<Subject>,
    /// What to do, or why the request is unusable: it is charged all the same.
    pub command: Result<C, Refusal>,
    /// When the request came.
    pub now: Timestamp,
    /// Who waits for it.
    pub reply: Reply<C::Answer>,
}

impl<C: Command> Message for Limited<C> {
    type Result = ();
}
