//! What operators ask for: to send events again. The request is an entry of the audit log, so it is durable, and
//! reaches the server that delivers, whichever it is.

use std::fmt;

/// What is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// The message about one entry of the audit log.
    Message(u64),
    /// All dead letters that are listed.
    DeadLetters,
    /// Everything from one entry of the audit log on.
    From(u64),
}

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(number) => write!(f, "message {number}"),
            Self::DeadLetters => f.write_str("dead letters"),
            Self::From(number) => write!(f, "from entry {number}"),
        }
    }
}

impl Replay {
    /// Reads what [`Replay`] writes as text.
    pub fn parse(text: &str) -> Option<Self> {
        let number = |front: &str| text.strip_prefix(front)?.parse().ok();
        match text {
            "dead letters" => Some(Self::DeadLetters),
            _ => number("message ")
                .map(Self::Message)
                .or_else(|| number("from entry ").map(Self::From)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_into_the_log_is_read_back() {
        for one in [Replay::Message(7), Replay::DeadLetters, Replay::From(9)] {
            assert_eq!(Replay::parse(&one.to_string()), Some(one));
        }
        assert_eq!(Replay::parse("message seven"), None);
    }
}
