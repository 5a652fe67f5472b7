//! Requests and answers, and their form as lines of JSON.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, BufRead, Write};

/// One request and its answer. The recorder gives numbers to codes, machines, activations, tokens and
/// servers, so a history contains no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// The client that sent the request. A client sends one request at a time.
    pub client: u32,
    /// The server that got the request.
    pub server: u32,
    /// The time of the request, in microseconds since the history began.
    pub invoked: u64,
    /// The time when the answer came or the client stopped waiting, in the same unit.
    pub returned: u64,
    /// The request.
    pub call: Call,
    /// The answer.
    pub answer: Answer,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// A browser asks for a code. The recorder gives a number to the issued code.
    Issue {
        /// The code.
        code: u32,
    },
    /// A machine asks whether it may begin.
    Precheck {
        /// The code.
        code: u32,
        /// The machine: machine id and fingerprint.
        machine: u32,
    },
    /// A machine wants the code.
    Activate {
        /// The code.
        code: u32,
        /// The machine.
        machine: u32,
        /// The binding: host name and address.
        binding: u32,
        /// The time span of the precheck that gave the token, in microseconds.
        prechecked: (u64, u64),
    },
    /// The installation is complete.
    Confirm {
        /// The code of the activation.
        code: u32,
        /// The activation.
        activation: u32,
    },
    /// The installer gives up.
    Release {
        /// The code of the activation.
        code: u32,
        /// The activation.
        activation: u32,
    },
    /// A machine registers its address.
    Register {
        /// The address.
        node: u32,
    },
    /// An operator revokes a server.
    Revoke {
        /// The server's address.
        node: u32,
    },
    /// A server's agent checks in.
    CheckIn {
        /// The server's address.
        node: u32,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Issue: a code was issued.
    Issued,
    /// Precheck: the installation may begin.
    Ready,
    /// Activate: the machine got the code.
    Granted(Grant),
    /// Confirm: the installation is confirmed.
    Confirmed,
    /// Release: the activation is released.
    Released {
        /// Whether the code can be used again.
        restored: bool,
    },
    /// Release: the activation is confirmed and stays confirmed.
    StaysConfirmed,
    /// `install_code_used`.
    Used,
    /// `install_code_expired`.
    Expired,
    /// `install_code_max_activations`.
    MaxActivations,
    /// `precheck_token_invalid`.
    PrecheckTokenInvalid,
    /// `token_invalid`.
    TokenInvalid,
    /// `token_used`.
    TokenUsed,
    /// `activation_not_found`.
    ActivationNotFound,
    /// Register: authorized.
    Registered,
    /// Check-in: the server is active.
    Alive,
    /// Register, revoke or check-in: the server is revoked.
    Revoked,
    /// Check-in or revoke: the server is not registered.
    NotRegistered,
    /// No answer, or `outcome_unknown`: the request may have happened, or may happen later.
    Perhaps,
    /// `overloaded`, `storage_unavailable` or `rate_limit_exceeded`: nothing happened.
    Nothing,
    /// Any other answer. No state explains it.
    Other(String),
}

/// The result of a successful activate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grant {
    /// The activation.
    pub activation: u32,
    /// The install token.
    pub token: u32,
}

impl Call {
    /// The code of a request about a code.
    pub const fn code(&self) -> Option<u32> {
        match *self {
            Self::Issue { code }
            | Self::Precheck { code, .. }
            | Self::Activate { code, .. }
            | Self::Confirm { code, .. }
            | Self::Release { code, .. } => Some(code),
            Self::Register { .. } | Self::Revoke { .. } | Self::CheckIn { .. } => None,
        }
    }

    /// The server of a request about a server.
    pub const fn node(&self) -> Option<u32> {
        match *self {
            Self::Register { node } | Self::Revoke { node } | Self::CheckIn { node } => Some(node),
            _ => None,
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Issue { .. } => write!(f, "issue"),
            Self::Precheck { machine, .. } => write!(f, "precheck by machine {machine}"),
            Self::Activate { machine, binding, .. } => {
                write!(f, "activate by machine {machine} for host {binding}")
            }
            Self::Confirm { activation, .. } => write!(f, "confirm activation {activation}"),
            Self::Release { activation, .. } => write!(f, "release activation {activation}"),
            Self::Register { node } => write!(f, "register server {node}"),
            Self::Revoke { node } => write!(f, "revoke server {node}"),
            Self::CheckIn { node } => write!(f, "check-in of server {node}"),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Issued => "issued",
            Self::Ready => "ready",
            Self::Granted(Grant { activation, token }) => {
                return write!(f, "granted activation {activation} with token {token}");
            }
            Self::Confirmed => "confirmed",
            Self::Released { restored: true } => "released, code restored",
            Self::Released { restored: false } => "released, code not restored",
            Self::StaysConfirmed => "stays confirmed",
            Self::Used => "code used",
            Self::Expired => "code expired",
            Self::MaxActivations => "too many activations",
            Self::PrecheckTokenInvalid => "precheck token invalid",
            Self::TokenInvalid => "token invalid",
            Self::TokenUsed => "token used",
            Self::ActivationNotFound => "activation not found",
            Self::Registered => "registered",
            Self::Alive => "ok",
            Self::Revoked => "revoked",
            Self::NotRegistered => "server not found",
            Self::Perhaps => "no answer",
            Self::Nothing => "refused, nothing happened",
            Self::Other(text) => text,
        };
        f.write_str(text)
    }
}

impl fmt::Display for Operation {
    /// One line for people: time in seconds, client and server, request, answer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |micros: u64| format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
        write!(
            f,
            "{:>14} - {:>14}  client {:>3}, server {}  {}  ->  {}",
            seconds(self.invoked),
            seconds(self.returned),
            self.client,
            self.server,
            self.call,
            self.answer
        )
    }
}

/// Writes one operation as a line.
///
/// # Errors
/// Returns an error if writing fails.
pub fn write_line(into: &mut impl Write, operation: &Operation) -> io::Result<()> {
    serde_json::to_writer(&mut *into, operation)?;
    into.write_all(b"\n")
}

/// Reads a history with one operation per line, and skips empty lines.
///
/// # Errors
/// Returns an error if reading fails or a line is not an operation. The message names the line.
pub fn read(from: impl BufRead) -> io::Result<Vec<Operation>> {
    let mut operations = Vec::new();
    for (number, line) in from.lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let operation = serde_json::from_str(&line).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("line {}: {error}", number + 1))
        })?;
        operations.push(operation);
    }
    Ok(operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_history_can_be_read_again() {
        let call = Call::Activate { code: 7, machine: 1, binding: 0, prechecked: (1, 2) };
        let granted = Answer::Granted(Grant { activation: 3, token: 4 });
        let answers = [granted, Answer::Perhaps, Answer::Other("500 internal_error".into())];
        let history: Vec<Operation> = answers
            .into_iter()
            .map(|answer| Operation { client: 1, server: 2, invoked: 3, returned: 4, call, answer })
            .collect();
        let mut text = Vec::new();
        for operation in &history {
            write_line(&mut text, operation).unwrap();
        }
        assert_eq!(read(&text[..]).unwrap(), history);
        let error = read(&b"\n{}\n"[..]).unwrap_err();
        assert!(error.to_string().starts_with("line 2: "), "{error}");
    }
}
