//! What was asked and what was answered, and its form as lines of JSON.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, BufRead, Write};

/// One request and its answer. Codes, machines, activations, tokens and servers are numbers that the
/// recorder gives: a history holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Who asked. A client asks one thing after the other.
    pub client: u32,
    /// Which server was asked.
    pub server: u32,
    /// When the request went out, in microseconds since the history began.
    pub invoked: u64,
    /// When the answer was there, or when it was no longer waited for; same unit.
    pub returned: u64,
    /// What was asked.
    pub call: Call,
    /// What was answered.
    pub answer: Answer,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// A browser asks for a code. The number is the recorder's for the code that comes back.
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
        /// Between which instants the precheck happened whose token is shown, in microseconds.
        prechecked: (u64, u64),
    },
    /// The installation is complete.
    Confirm {
        /// The code of the activation.
        code: u32,
        /// The activation.
        activation: u32,
    },
    /// The installation is given up.
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

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Issue: here is a code.
    Issued,
    /// Precheck: go on.
    Ready,
    /// Activate: the code is this machine's.
    Granted(Grant),
    /// Confirm: done.
    Confirmed,
    /// Release: given up, and whether the code is good again.
    Released {
        /// Whether the code is good again.
        restored: bool,
    },
    /// Release: the activation is confirmed and stays so.
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
    /// Check-in: go on.
    Alive,
    /// Register, revoke or check-in: the server is revoked.
    Revoked,
    /// Check-in or revoke: there is no such server.
    NotRegistered,
    /// No answer, or `outcome_unknown`: it may have happened, or may happen later.
    Perhaps,
    /// `overloaded`, `storage_unavailable` or `rate_limit_exceeded`: nothing happened.
    Nothing,
    /// Anything else; no state explains it.
    Other(String),
}

/// What an activate hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grant {
    /// The activation.
    pub activation: u32,
    /// The install token.
    pub token: u32,
}

impl Call {
    /// The code that is spoken of; `None` for servers.
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

    /// The server that is spoken of; `None` for codes.
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
    /// One line for people: seconds, who, what, answer.
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

/// Writes one line.
///
/// # Errors
/// What writing fails with.
pub fn write_line(into: &mut impl Write, operation: &Operation) -> io::Result<()> {
    serde_json::to_writer(&mut *into, operation)?;
    into.write_all(b"\n")
}

/// Reads a history, one operation a line; empty lines are skipped.
///
/// # Errors
/// What reading fails with, or that a line is not an operation; the message names the line.
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
    fn a_history_reads_back_from_its_lines() {
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
