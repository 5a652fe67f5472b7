//! Install tickets: who may have one made, and what one proves.

use super::State;
use super::access::Entry;
use crate::http::access::Denied;
use crate::http::errors::ApiError;
use crate::os::random_bytes;
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::{Role, TokenNumber};
use iptunnel_domain::lookup::Purpose;
use iptunnel_domain::server::{Credential, EnrolledBy};
use iptunnel_domain::ticket::Ticket;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// By how much tickets may be dated ahead of the clock, in milliseconds: enough for a thousand that are
/// made in one second.
const AHEAD: u64 = 1000;

/// The time of the last ticket of this server, in milliseconds. Each ticket has a later one than the
/// ticket before, so that of two tickets for one machine the second is good although the first was used.
#[derive(Default)]
pub struct TicketTimes(AtomicU64);

impl TicketTimes {
    fn next(&self, now_ms: u64) -> u64 {
        let after = |last: u64| {
            // A clock that was set back is followed.
            let follows = (now_ms..now_ms.saturating_add(AHEAD)).contains(&last);
            if follows { last + 1 } else { now_ms }
        };
        let before =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(after(last)));
        after(before.unwrap_or_else(|last| last))
    }
}

impl State {
    /// Makes a ticket of an access token for the machine at `address`: its text, which is a secret.
    ///
    /// # Errors
    /// There is no randomness, or no ticket can name this token.
    pub fn make_ticket(
        &self,
        token: TokenNumber,
        address: IpAddr,
        ttl_seconds: u16,
    ) -> Result<String, ApiError> {
        let [chance] = random_bytes::<1>().map_err(|_| ApiError::internal())?;
        let made_ms = self.tickets.next(self.clock.now_ms());
        let ticket = Ticket { token, made_ms, ttl_seconds, chance };
        ticket.text(address, &self.live.lookup).ok_or_else(ApiError::internal)
    }

    /// Returns what the machine at `address` registers with, and the access token that made the ticket.
    ///
    /// # Errors
    /// The ticket is not one of this server's for this address, its time is over, or its access token is
    /// not good any more.
    pub fn credential_of_ticket(
        &self,
        text: &str,
        address: IpAddr,
        now: Timestamp,
    ) -> Result<(Credential, Arc<Entry>), Denied> {
        let ticket = Ticket::verify(text, address, &self.live.lookup).ok_or(Denied::TicketWrong)?;
        if ticket.life().is_over(now) {
            return Err(Denied::TicketOver);
        }
        let entry = self.access.by_number(ticket.token).ok_or(Denied::TicketWrong)?;
        entry.token.is_good(now, None).map_err(Denied::NotGood)?;
        if entry.token.role != Role::Enrol {
            return Err(Denied::TicketWrong);
        }
        let hash = self.live.lookup.hash(Purpose::Token, text.as_bytes());
        let by = EnrolledBy::Token(ticket.token);
        Ok((Credential { hash, by, made_ms: Some(ticket.made_ms) }, entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ticket_has_a_later_time_until_the_clock_is_set_back() {
        let times = TicketTimes::default();
        assert_eq!(
            [5000, 5000, 5001, 7000, 7000].map(|now| times.next(now)),
            [5000, 5001, 5002, 7000, 7001]
        );
        assert_eq!([6500, 3000, 3000].map(|now| times.next(now)), [7002, 3000, 3001]);
    }
}
