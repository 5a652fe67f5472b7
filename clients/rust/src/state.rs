//! What an installation must not forget.

use crate::client::{Activation, Binding, Machine};
use crate::secret::{AgentToken, Code, PrecheckToken};
use serde::{Deserialize, Serialize};

/// Where an installation stands. A [`Store`](crate::Store) keeps it before each request, so that a program
/// that was killed at any point goes on from what was kept last.
///
/// Serialized it holds secrets in clear: only its owner may read the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The version of this format.
    format: Format,
    /// The name of the product.
    pub product: String,
    /// Which machine it is.
    pub machine: Machine,
    /// The code that is used.
    pub code: Code,
    /// What will be, or is, the server's credential.
    pub agent_token: AgentToken,
    /// From the last precheck. It lets activate through after the code's own end.
    pub precheck_token: Option<PrecheckToken>,
    /// Where the machine is reached, once that is known.
    pub binding: Option<Binding>,
    /// Whether the payload has run to its end.
    pub payload_ran: bool,
    /// How far the conversation with the server has come.
    pub phase: Phase,
}

/// How far the conversation with the server has come. *May* means that a request may have been sent whose
/// answer is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The machine holds no activation.
    Ready,
    /// It may hold an activation.
    Activating,
    /// It holds this activation.
    Open(Activation),
    /// This activation may be confirmed, else it is open.
    Confirming(Activation),
    /// This activation is to be given up. It may be released already.
    Releasing(Activation),
    /// This activation is confirmed. The server may be registered.
    Confirmed(Activation),
    /// The server is registered.
    Registered {
        /// Its id.
        server_id: String,
    },
}

/// The version of the format: 1. Another one is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
struct Format;

impl From<Format> for u32 {
    fn from(_: Format) -> Self {
        1
    }
}

impl TryFrom<u32> for Format {
    type Error = String;
    fn try_from(number: u32) -> Result<Self, String> {
        match number {
            1 => Ok(Self),
            other => Err(format!("format {other} is not known to this program; use a newer one")),
        }
    }
}

impl State {
    pub(crate) fn new(
        product: String,
        machine: Machine,
        code: Code,
        agent_token: AgentToken,
    ) -> Self {
        Self {
            format: Format,
            product,
            machine,
            code,
            agent_token,
            precheck_token: None,
            binding: None,
            payload_ran: false,
            phase: Phase::Ready,
        }
    }

    /// Returns the server's id, once it is registered.
    pub fn server_id(&self) -> Option<&str> {
        match &self.phase {
            Phase::Registered { server_id } => Some(server_id),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{ActivationId, InstallToken};

    /// As the first version wrote it. It must be read for ever.
    const KEPT: &str = r#"{"format":1,"product":"slowdns","machine":{"id":"m","ssh_fingerprint":"f"},"code":"IPT-SD-ABCDEF-GHJKLM-NPQRST","agent_token":"ipa_0","precheck_token":"p","binding":{"hostname":"ns1.example.com","public_ip":"192.0.2.7"},"payload_ran":true,"phase":{"confirming":{"id":"act_0","token":"i"}}}"#;

    fn state() -> State {
        let machine = Machine { id: "m".into(), ssh_fingerprint: "f".into() };
        let code = Code::new("IPT-SD-ABCDEF-GHJKLM-NPQRST");
        let id = ActivationId::new("act_0");
        State {
            precheck_token: Some(PrecheckToken::new("p")),
            binding: Some(Binding {
                hostname: "ns1.example.com".into(),
                public_ip: [192, 0, 2, 7].into(),
            }),
            payload_ran: true,
            phase: Phase::Confirming(Activation { id, token: InstallToken::new("i") }),
            ..State::new("slowdns".into(), machine, code, AgentToken::new("ipa_0"))
        }
    }

    #[test]
    fn a_state_is_written_and_read_as_the_first_version_did() {
        assert_eq!(serde_json::to_string(&state()).unwrap(), KEPT);
        assert_eq!(serde_json::from_str::<State>(KEPT).unwrap(), state());
    }

    #[test]
    fn a_state_of_a_later_version_is_not_misread() {
        let later = KEPT.replace("\"format\":1", "\"format\":2");
        let error = serde_json::from_str::<State>(&later).unwrap_err().to_string();
        assert!(error.contains("use a newer one"), "{error}");
    }

    #[test]
    fn the_debug_form_of_a_state_has_no_secret() {
        let shown = format!("{:?}", state());
        for secret in ["ABCDEF", "GHJKLM", "ipa_0", "act_0", "\"p\"", "\"i\""] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
