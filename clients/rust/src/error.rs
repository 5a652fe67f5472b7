//! What can go wrong. A refusal, no answer, and an answer that cannot be right are told apart, because
//! different things help: another code, patience, a newer client.

use std::fmt;
use std::time::Duration;

/// A request of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// Asks which address the server sees.
    Address,
    /// Checks a code for a machine; changes nothing.
    Precheck,
    /// Consumes the code.
    Activate,
    /// Fetches what is to be installed.
    Payload,
    /// Says that the installation works.
    Confirm,
    /// Gives the code back.
    Release,
    /// Registers the installed server.
    Register,
    /// Says that the installed server lives.
    CheckIn,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "show this machine's address",
            Self::Precheck => "check the install code",
            Self::Activate => "activate the install code",
            Self::Payload => "send the payload",
            Self::Confirm => "confirm the installation",
            Self::Release => "release the install code",
            Self::Register => "register the server",
            Self::CheckIn => "take the check-in",
        })
    }
}

/// What the server answered when it refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The reason for programs, such as `install_code_used`.
    pub code: String,
    /// The reason for people.
    pub message: String,
    /// When it is worth trying again, where the server says so.
    pub retry_after: Option<Duration>,
}

/// Why one try got no usable answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// No connection, or it broke before the answer was complete. The text is for people.
    #[error("{0}")]
    Network(String),
    /// The answer took too long.
    #[error("it did not answer in time")]
    Timeout,
    /// The answer is not one of this API: from a proxy or a login page, cut, or a redirect.
    #[error(
        "something else answered, with status {status}; check the server's address and the way there"
    )]
    NotThisApi {
        /// The HTTP status.
        status: u16,
    },
    /// The server cannot do it right now.
    #[error("{0}")]
    Unavailable(Refusal),
    /// The payload is not what the server meant to send.
    #[error("the payload does not match its checksum")]
    WrongDigest,
}

/// Why a request, or the step of an installation, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server said no. This try has changed nothing, and the same request gets the same answer.
    #[error("the server refuses to {step}: {refusal}")]
    Refused {
        /// The request.
        step: Step,
        /// The server's words.
        refusal: Refusal,
        /// The number of the try that was refused. Earlier ones got no answer.
        tries: u32,
    },
    /// All tries were in vain. The request may have taken effect, but repeating it is safe.
    #[error(
        "the server was asked to {step}, in vain ({tries} tries): {last}; please try again later"
    )]
    NoAnswer {
        /// The request.
        step: Step,
        /// The number of tries.
        tries: u32,
        /// What went wrong at the last try.
        last: Problem,
    },
    /// The answer is one of this API but lacks what it should have: the server is much newer or older.
    #[error(
        "the answer when asked to {step} has no usable {field}; update this program or the server"
    )]
    Unexpected {
        /// The request.
        step: Step,
        /// What the answer lacks.
        field: &'static str,
    },
    /// The installation is not at the point for this step.
    #[error("this is not the time to {0}: {1}")]
    OutOfOrder(Step, &'static str),
    /// An address or a name with which no client can be made.
    #[error("{0}")]
    Settings(String),
    /// The state could not be kept. Nothing was sent that rests on it.
    #[error(
        "the state of the installation cannot be saved: {0}; nothing more was asked of the server"
    )]
    Store(#[source] std::io::Error),
    /// The operating system gives no random bytes.
    #[error("the operating system gives no random bytes, which are needed to {0}")]
    NoRandomness(Step),
}

impl Error {
    /// Returns the server's refusal, if this is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }

    /// Whether the server refused with this code, such as `install_code_used`.
    pub fn is_refusal(&self, code: &str) -> bool {
        self.refusal().is_some_and(|refusal| refusal.code == code)
    }
}
