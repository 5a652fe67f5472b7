//! Agent tokens: the secret of a machine's own, with which its server checks in.
//!
//! The machine makes it and keeps it before it registers. So it can repeat a registration whose answer was
//! lost, and no token that registers anything stays on the machine.

use crate::hex::bytes_of;

/// The first letters of every agent token.
pub const PREFIX: &str = "ipa_";
/// The random bytes of an agent token, as hexadecimal digits: a guess is right once in 2^192 times.
const BYTES: usize = 24;

/// Whether a text has the form of an agent token: the prefix and 48 lower-case hexadecimal digits.
pub fn is_agent_token(text: &str) -> bool {
    text.strip_prefix(PREFIX).and_then(bytes_of::<BYTES>).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_agent_token_is_its_prefix_and_48_hexadecimal_digits(text in "ipa_[0-9a-f]{48}") {
            prop_assert!(is_agent_token(&text));
        }

        #[test]
        fn no_other_text_is_an_agent_token(
            text in "(ipa_|ipt_|itk_|IPA_)?[0-9a-f]{0,47}[0-9a-fA-G_ -]?",
        ) {
            prop_assert!(!is_agent_token(&text));
            let (short, long) = (format!("ipa_{}", "a".repeat(47)), format!("ipa_{}", "a".repeat(49)));
            prop_assert!(!is_agent_token(&short) && !is_agent_token(&long));
        }
    }
}
