//! Fixed-window rate limits as arithmetic: who is counted, in which window, and when to retry.

use crate::Timestamp;
use crate::lookup::KeyedHash;

/// The rate limits by name. Windows are whole UTC hours and whole UTC days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Policy {
    /// Codes issued to one address in an hour.
    IssuePerIpHour,
    /// Codes issued to one address in a day.
    IssuePerIpDay,
    /// Codes issued to one browser session in an hour.
    IssuePerSessionHour,
    /// Codes issued to one browser (network and `User-Agent`) in a day.
    IssuePerFingerprintDay,
    /// Prechecks of one address in a day.
    PrecheckPerIpDay,
    /// Prechecks of one machine in a day.
    PrecheckPerMachineDay,
    /// Activations of one address in a day.
    ActivatePerIpDay,
    /// Activations of one machine in a day.
    ActivatePerMachineDay,
    /// Install tickets that one address asks for in an hour.
    TicketPerIpHour,
}

impl Policy {
    /// All policies, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::IssuePerIpHour,
        Self::IssuePerIpDay,
        Self::IssuePerSessionHour,
        Self::IssuePerFingerprintDay,
        Self::PrecheckPerIpDay,
        Self::PrecheckPerMachineDay,
        Self::ActivatePerIpDay,
        Self::ActivatePerMachineDay,
        Self::TicketPerIpHour,
    ];

    /// Returns the name used in configuration, headers and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IssuePerIpHour => "issue_per_ip_hour",
            Self::IssuePerIpDay => "issue_per_ip_day",
            Self::IssuePerSessionHour => "issue_per_session_hour",
            Self::IssuePerFingerprintDay => "issue_per_fingerprint_day",
            Self::PrecheckPerIpDay => "precheck_per_ip_day",
            Self::PrecheckPerMachineDay => "precheck_per_machine_day",
            Self::ActivatePerIpDay => "activate_per_ip_day",
            Self::ActivatePerMachineDay => "activate_per_machine_day",
            Self::TicketPerIpHour => "ticket_per_ip_hour",
        }
    }

    /// Returns the policy with this number, if it exists.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Returns the length of the policy's window in seconds.
    pub const fn window_seconds(self) -> u64 {
        match self {
            Self::IssuePerIpHour | Self::IssuePerSessionHour | Self::TicketPerIpHour => 3600,
            _ => 86_400,
        }
    }

    /// Returns the end of the window that contains `now`.
    pub const fn window_end(self, now: Timestamp) -> Timestamp {
        let window = self.window_seconds();
        Timestamp((now.0 / window + 1) * window)
    }
}

/// The number of requests that each policy allows in a window; 0 closes its route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    allowed: [u32; Policy::ALL.len()],
    /// The most counters kept in memory.
    pub max_tracked: u32,
}

impl Limits {
    /// Takes each policy's limit from `allowed`.
    pub fn new(allowed: impl Fn(Policy) -> u32, max_tracked: u32) -> Self {
        Self { allowed: Policy::ALL.map(allowed), max_tracked }
    }

    /// Returns what `policy` allows in a window.
    pub fn allowed(&self, policy: Policy) -> u32 {
        self.allowed.get(policy as usize).copied().unwrap_or(0)
    }
}

impl Default for Limits {
    /// The API reference's limits for issue and activate, and the contract's for the others.
    fn default() -> Self {
        let allowed = |policy| match policy {
            Policy::IssuePerIpHour => 3,
            Policy::IssuePerIpDay | Policy::PrecheckPerIpDay | Policy::PrecheckPerMachineDay => 10,
            Policy::IssuePerSessionHour => 2,
            Policy::IssuePerFingerprintDay => 6,
            Policy::ActivatePerIpDay | Policy::ActivatePerMachineDay => 5,
            Policy::TicketPerIpHour => 60,
        };
        Self::new(allowed, 4_000_000)
    }
}

/// A caller counted under a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The policy.
    pub policy: Policy,
    /// The keyed hash of the address, session, browser or machine.
    pub who: KeyedHash,
}

impl Subject {
    /// Returns the key of the subject's counter: half of its keyed hash, mixed with the policy. Among
    /// 4 million counters the chance that two share a key is one in two million.
    pub const fn key(&self) -> u64 {
        // 2^64 divided by the golden ratio: spreads a few small numbers over all 64 bits.
        self.who.as_u64() ^ (self.policy as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

/// The use of a policy by a subject in the current window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The policy.
    pub policy: Policy,
    /// What it allows in a window.
    pub allowed: u32,
    /// What is used of it in the current window.
    pub used: u32,
    /// When the current window ends.
    pub window_end: Timestamp,
}

impl Standing {
    /// Whether the next request is refused.
    pub const fn refuses(&self) -> bool {
        self.used >= self.allowed
    }

    /// Returns what is left in the current window.
    pub const fn remaining(&self) -> u32 {
        self.allowed.saturating_sub(self.used)
    }
}

/// Returns the seconds until every refusing window has ended, or `None` if none refuses. Never 0: a
/// caller who retries at once would be refused again.
pub fn retry_after(standings: &[Standing], now: Timestamp) -> Option<u64> {
    let refusing = standings.iter().filter(|standing| standing.refuses());
    refusing.map(|standing| standing.window_end.since(now).max(1)).max()
}

/// Returns the standing with the least left; if several have the same, the one whose window ends
/// last.
pub fn tightest(standings: &[Standing]) -> Option<&Standing> {
    standings.iter().min_by_key(|s| (s.remaining(), std::cmp::Reverse(s.window_end)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn standing(policy: Policy, allowed: u32, used: u32, now: u64) -> Standing {
        Standing { policy, allowed, used, window_end: policy.window_end(Timestamp(now)) }
    }

    proptest! {
        #[test]
        fn a_caller_is_refused_until_exactly_the_promised_second(now in 0u64..4_000_000_000) {
            let standings = [
                standing(Policy::IssuePerIpHour, 3, 3, now),
                standing(Policy::IssuePerIpDay, 10, 10, now),
            ];
            let wait = retry_after(&standings, Timestamp(now)).unwrap();
            let (back, early) = (Timestamp(now + wait), Timestamp(now + wait - 1));
            let longest = standings[1].window_end;
            prop_assert!(early < longest && longest <= back);
            prop_assert!(Policy::IssuePerIpDay.window_end(back) > longest);
        }

        #[test]
        fn a_window_contains_its_second_and_ends_on_a_whole_hour_or_day(now in 0u64..4_000_000_000) {
            for policy in Policy::ALL {
                let end = policy.window_end(Timestamp(now)).0;
                prop_assert!(now < end && end - now <= policy.window_seconds());
                prop_assert_eq!(end % policy.window_seconds(), 0);
            }
        }
    }

    #[test]
    fn a_limit_of_zero_closes_the_route() {
        let closed = [standing(Policy::ActivatePerIpDay, 0, 0, 86_399)];
        assert_eq!(retry_after(&closed, Timestamp(86_399)), Some(1));
    }

    #[test]
    fn the_tightest_policy_has_the_least_left_and_then_the_latest_end() {
        let standings = [
            standing(Policy::IssuePerIpHour, 3, 1, 0),
            standing(Policy::IssuePerIpDay, 3, 1, 0),
            standing(Policy::IssuePerSessionHour, 9, 1, 0),
        ];
        assert_eq!(tightest(&standings).unwrap().policy, Policy::IssuePerIpDay);
    }

    #[test]
    fn policies_are_numbered_in_their_order() {
        for (number, policy) in Policy::ALL.into_iter().enumerate() {
            assert_eq!(Policy::from_number(number as u8), Some(policy));
        }
        assert_eq!(Policy::from_number(9), None);
    }
}
