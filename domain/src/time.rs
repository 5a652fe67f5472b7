//! Time as the rules see it: whole seconds, handed in by whoever owns a clock.

/// Whole seconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The instant `seconds` later; stays at the end of time instead of wrapping.
    pub const fn plus(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// Seconds from `earlier` to this instant, 0 where `earlier` is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// How long things live. All configurable; the defaults are those of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Seconds from issue until a code expires.
    pub code: u64,
    /// Seconds a precheck carries an install further.
    pub precheck_token: u64,
    /// Seconds an activation stays open.
    pub install_token: u64,
    /// Seconds a released code is good again, at least.
    pub restored: u64,
    /// Seconds from first issue beyond which no release prolongs a code.
    pub max_lifetime: u64,
    /// How many activations one code may see in its life.
    pub max_activations: u32,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            code: 300,
            precheck_token: 900,
            install_token: 600,
            restored: 300,
            max_lifetime: 3600,
            max_activations: 5,
        }
    }
}
