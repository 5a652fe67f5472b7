//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use crate::failure::{Context, Failure, Result};
use crate::limits_memory::MAX_CALLERS;

/// How often everything is measured where nobody says otherwise: the fewest of which the middle one means something.
const ROUNDS: u32 = 3;

/// Shown for `--help`, and where the target is run by something other than `cargo bench`.
pub const USAGE: &str = "\
Load on the activation server. Run it as: scripts/bench [OPTIONS], or cargo bench --bench load -- [OPTIONS]

  --quick             a tenth of the requests, half the time: to see that it works, not to quote
  --rounds N          how often, each time on a fresh server; median and spread are reported (3; quick, peers, postgres: 1)
  --server PATH       measure this program instead of the one just built
  --dir PATH          where the server's temporary folder is made (cargo's, under target/)
  --set KEY=VALUE     one more setting for the server; may be repeated
  --large             measure a million servers and ten million past activations, once; quick: a tenth of both
  --limits-memory     measure the memory that callers cost the rate limiter, and nothing else
  --count N           how many callers --limits-memory plays (10000000)
  --peers             compare activations with PostgreSQL's on the same disk, and measure nothing else
  --postgres          measure activates of one and two servers on a PostgreSQL database beside pgbench on the
                      same one, and check-ins beside those of the embedded engine, and nothing else; with --large:
                      what a million servers that check in once a minute cost the database
  --postgres-programs PATH   the folder of PostgreSQL's programs for these two; scripts/bench finds it
  --against PATH      compare activates with those of another program, turn about, and measure nothing else;
                      with --postgres: over a database for each
  --connections N     with --against: over so many (1, 64 or 256) and no others
  --help              this text";

/// What the person asked for.
pub enum Request {
    /// Measure.
    Run(Options),
    /// Say how to use it, and do nothing: `--help`, or `cargo test --all-targets`, which runs benchmarks too
    /// and would wait minutes for a measurement of a debug build.
    Explain,
}

/// How to measure.
#[derive(Clone)]
pub struct Options {
    /// Fewer requests, for a first look.
    pub quick: bool,
    /// How often everything is repeated, each time on a fresh server.
    pub rounds: u32,
    /// The program to measure.
    pub server: PathBuf,
    /// Where the temporary folder is made; the choice of the disk is part of the measurement.
    pub directory: Option<PathBuf>,
    /// Settings that win over those of the measurement.
    pub settings: Vec<String>,
    /// Measure what many servers and past activations cost instead of speed.
    pub large: bool,
    /// Measure the rate limiter's memory instead of speed.
    pub limits_memory: bool,
    /// Callers in that measurement.
    pub count: u64,
    /// Compare with this program instead.
    pub against: Option<PathBuf>,
    /// Numbers of connections to compare over, where not all of them.
    pub connections: Option<usize>,
    /// Compare with PostgreSQL instead.
    pub peers: bool,
    /// Measure servers that share a PostgreSQL database instead.
    pub postgres: bool,
    /// Where PostgreSQL's programs are.
    pub postgres_programs: Option<PathBuf>,
}

/// Reads the arguments after the program's name.
pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Request> {
    let mut started_by_cargo_bench = false;
    let mut rounds = None;
    let mut options = Options {
        quick: false,
        rounds: 0,
        server: PathBuf::from(env!("CARGO_BIN_EXE_iptunnel-server")),
        directory: None,
        settings: Vec::new(),
        large: false,
        limits_memory: false,
        count: 10_000_000,
        against: None,
        connections: None,
        peers: false,
        postgres: false,
        postgres_programs: None,
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => started_by_cargo_bench = true,
            "--quick" => options.quick = true,
            "--large" => options.large = true,
            "--limits-memory" => options.limits_memory = true,
            "--peers" => options.peers = true,
            "--rounds" => rounds = Some(at_least_one(&argument, arguments.next())?),
            "--count" => options.count = at_least_one(&argument, arguments.next())?,
            "--server" => options.server = value(&argument, arguments.next())?.into(),
            "--dir" => options.directory = Some(value(&argument, arguments.next())?.into()),
            "--against" => options.against = Some(value(&argument, arguments.next())?.into()),
            "--connections" => {
                options.connections = Some(at_least_one(&argument, arguments.next())?);
            }
            "--postgres" => options.postgres = true,
            "--postgres-programs" => {
                options.postgres_programs = Some(value(&argument, arguments.next())?.into());
            }
            "--set" => options.settings.push(value(&argument, arguments.next())?),
            "--help" | "-h" => return Ok(Request::Explain),
            unknown => return Err(Failure::new(format!("unknown option {unknown}\n\n{USAGE}"))),
        }
    }
    let once = options.quick || options.peers || options.postgres;
    options.rounds = rounds.unwrap_or(if once { 1 } else { ROUNDS });
    if options.count > MAX_CALLERS {
        return Err(Failure::new(format!("--count takes at most {MAX_CALLERS}: no two are alike")));
    }
    Ok(if started_by_cargo_bench { Request::Run(options) } else { Request::Explain })
}

fn value(option: &str, argument: Option<String>) -> Result<String> {
    argument.context(format!("{option} needs a value"))
}

fn at_least_one<N: FromStr + From<u8> + PartialOrd>(
    option: &str,
    argument: Option<String>,
) -> Result<N> {
    let text = value(option, argument)?;
    let number = text.parse::<N>().ok().filter(|number| *number >= N::from(1));
    number.context(format!("{option} takes a whole number from 1, not {text:?}"))
}
