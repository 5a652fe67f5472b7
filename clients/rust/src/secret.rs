//! Secrets. Each kind has a type of its own, so that none is sent in another's place, and none shows its
//! content through `Debug` or `Display`. Serializing one writes its content: that is for the state that a
//! [`Store`](crate::Store) keeps, and for nothing else.

use crate::error::Error;
use crate::{Environment, Step};
use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::Zeroizing;

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Zeroizing<String>);

        impl $name {
            /// Takes the text of the secret, without blanks around it.
            pub fn new(text: impl Into<String>) -> Self {
                let text = Zeroizing::new(text.into());
                Self(Zeroizing::new(text.trim().to_owned()))
            }

            /// Returns the content. Never put it into a log, a message or a command line.
            pub fn reveal(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(hidden)"))
            }
        }
    };
}

secret! {
    /// A one-time install code, such as a person gets on the server's page.
    ///
    /// ```
    /// let code = iptunnel_client::Code::new(" IPT-SD-ABCDEF-GHJKLM-NPQRST\n");
    /// assert_eq!(code.reveal(), "IPT-SD-ABCDEF-GHJKLM-NPQRST");
    /// assert_eq!(format!("{code:?}"), "Code(hidden)");
    /// assert_eq!(code.hint(), "IPT-SD-ABCD...NPQRST");
    /// ```
    Code
}

secret! {
    /// Says that a code was checked for a machine. The server makes it; it is good for 15 minutes.
    PrecheckToken
}

secret! {
    /// The id of an activation. While the activation is open, whoever knows the id can release it.
    ActivationId
}

secret! {
    /// Belongs to one activation. The server makes it; it is good for 10 minutes, and after the confirm for
    /// an hour more to register the server.
    InstallToken
}

secret! {
    /// The credential of an installed server: `ipa_` and 48 hexadecimal digits. The machine makes it itself
    /// and keeps it before it is sent, so that a registration can be repeated.
    AgentToken
}

impl Code {
    /// Returns the first 11 and the last 6 characters, which are safe to show and to log.
    pub fn hint(&self) -> String {
        let length = self.0.len();
        // Of a shorter text this would show almost everything.
        let parts = (self.0.get(..11), self.0.get(length.saturating_sub(6)..));
        match parts {
            (Some(first), Some(last)) if length >= 27 => format!("{first}...{last}"),
            _ => "...".to_owned(),
        }
    }
}

impl AgentToken {
    /// Makes a new one of 24 random bytes.
    ///
    /// # Errors
    /// [`Error::NoRandomness`].
    pub fn random(environment: &dyn Environment) -> Result<Self, Error> {
        let mut bytes = Zeroizing::new([0; 24]);
        environment.random(bytes.as_mut()).map_err(|_| Error::NoRandomness(Step::Register))?;
        Ok(Self::new(format!("ipa_{}", hex(bytes.as_ref()))))
    }
}

/// Writes bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::System;

    #[test]
    fn no_secret_shows_its_content() {
        let shown = [
            format!("{:?}", Code::new("secret-1")),
            format!("{:?}", PrecheckToken::new("secret-2")),
            format!("{:?}", ActivationId::new("secret-3")),
            format!("{:?}", InstallToken::new("secret-4")),
            format!("{:?}", AgentToken::new("secret-5")),
        ];
        assert!(shown.iter().all(|text| text.ends_with("(hidden)") && !text.contains("secret")));
    }

    #[test]
    fn the_hint_of_a_short_or_odd_code_shows_nothing() {
        for text in ["", "IPT", "IPT-SD-ABCDEF-GHJKLM", "ääääääääääääääääääääääääääääääää"]
        {
            assert_eq!(Code::new(text).hint(), "...", "{text}");
        }
    }

    #[test]
    fn an_agent_token_has_the_form_that_the_server_takes_and_is_never_the_same() {
        let [one, two] = [(); 2].map(|()| AgentToken::random(&System::default()).unwrap());
        assert!(one != two);
        let digits = one.reveal().strip_prefix("ipa_").unwrap();
        assert_eq!(digits.len(), 48);
        assert!(digits.chars().all(|digit| matches!(digit, '0'..='9' | 'a'..='f')));
    }
}
