//! Checks a recorded history: `cargo run -p iptunnel-checker -- FILE [--finished]`.
//!
//! `--finished` says that the recorder tried to finish every code at the end. The exit status is 0 if the
//! history has no violation, 1 if it has one, and 2 if the file cannot be read.

use iptunnel_checker::{Rules, check, history};
use std::fs::File;
use std::io::BufReader;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut file = None;
    // The same rules as in `tests/integration/histories`.
    let mut rules = Rules {
        max_activations: 255,
        lifetimes: None,
        revocation_reaches: 120_000_000,
        finished: false,
    };
    for argument in std::env::args().skip(1) {
        if argument == "--finished" {
            rules.finished = true;
        } else {
            file = Some(argument);
        }
    }
    let Some(file) = file else {
        eprintln!("usage: iptunnel-checker FILE [--finished]");
        return ExitCode::from(2);
    };
    let operations = match File::open(&file).map(BufReader::new).and_then(history::read) {
        Ok(operations) => operations,
        Err(error) => {
            eprintln!("{file}: {error}");
            return ExitCode::from(2);
        }
    };
    let violations = check(&operations, &rules);
    for violation in &violations {
        println!("{violation}");
    }
    println!("{} operations, {} violations", operations.len(), violations.len());
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
