//! `completions`: prints a completion script for a shell.

use super::Cli;
use super::terminal::print;
use clap::{CommandFactory, ValueEnum};

/// The shells that there are scripts for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// GNU Bash.
    Bash,
    /// The Z shell.
    Zsh,
    /// The friendly interactive shell.
    Fish,
}

impl From<Shell> for clap_complete::Shell {
    fn from(shell: Shell) -> Self {
        match shell {
            Shell::Bash => Self::Bash,
            Shell::Zsh => Self::Zsh,
            Shell::Fish => Self::Fish,
        }
    }
}

/// Prints the script.
///
/// # Errors
/// Standard output cannot be written.
pub fn completions(shell: Shell) -> Result<(), String> {
    // Into memory first: writing there cannot fail, and the generator panics where it does.
    let mut script = Vec::new();
    let shell = clap_complete::Shell::from(shell);
    clap_complete::generate(shell, &mut Cli::command(), "iptunnel-server", &mut script);
    // The generator for Bash mixes two spellings of a program's name that has a hyphen.
    let script =
        String::from_utf8_lossy(&script).replace("iptunnel__subcmd__server", "iptunnel__server");
    print(&script)
}
