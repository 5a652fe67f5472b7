//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::failure::{Context, Failure, Result};
use crate::limits_memory::MAX_CALLERS;
use crate::versus::Compared;

/// The default number of rounds: the smallest with a meaningful median.
const ROUNDS: u32 = 3;

/// The help text. It is shown for `--help`, and if something other than `cargo bench` runs the target.
pub const USAGE: &str = "\
Measures the activation server under load. Usage: scripts/bench [OPTIONS], or cargo bench --bench load -- [OPTIONS]

  --quick             send a tenth of the requests in half the time, as a first test and not for comparison
  --rounds N          repeat on a new server each time and report median and range (3; quick, peers, postgres: 1)
  --server PATH       measure this program instead of the one just built
  --dir PATH          make the server's temporary folder here (default: cargo's, under target/)
  --set KEY=VALUE     change a setting of the server; may be repeated
  --check             measure one round and compare it with benches/expected.toml. Fails if a ratio is more than
                      10 % below in two rounds. Takes less than three minutes
  --large             measure once with a million servers and ten million past activations; quick: a tenth of both
  --limits-memory     measure only the memory that callers cost the rate limiter
  --look-ups          measure look-ups of codes and activations that only the store has, and starts beside them
  --memory            measure the memory that a wave of installs leaves behind, when the server is idle again
  --count N           the number of callers for --limits-memory (10000000), of past installs for --look-ups
                      (1000000; quick: a tenth), of installs for --memory (60000)
  --peers             measure only activations, and compare them with PostgreSQL on the same disk
  --postgres          measure only activates of one and two servers on a PostgreSQL database, compared with pgbench
                      on the same database, and check-ins, compared with the embedded engine; with --large: measure
                      the cost of a million servers that check in once a minute
  --postgres-programs PATH   the folder of PostgreSQL's programs for --peers and --postgres; scripts/bench finds it
  --delay MS          with --postgres: measure also with so many milliseconds more for each round trip between our
                      servers and the database; with --against: measure only so
  --against PATH      measure only activates, in turns with another program; with --postgres: on one database each
  --step NAME         with --against on the embedded engine, instead of activate: check-in (with the access token that
                      has enrolled the server; with the master token, if the program knows no access tokens) or
                      register (likewise with a ticket)
  --during-backup     measure only activates, in turns while a backup is made and while none is
  --console           measure how long the console's pages take while 64 connections activate
  --connections N     with --against, --during-backup and --postgres: use only this number of connections (1, 64 or 256;
                      --postgres: 64 or 256 for each server)
  --help              show this text";

/// The chosen action.
pub enum Request {
    /// Measures.
    Run(Options),
    /// Only shows the help text, for `--help` and for `cargo test --all-targets`. The latter also runs
    /// benchmarks, and would measure a debug build for minutes.
    Explain,
}

/// The options of a measurement.
#[derive(Clone)]
pub struct Options {
    /// Sends fewer requests, for a first test.
    pub quick: bool,
    /// The number of rounds, each on a new server.
    pub rounds: u32,
    /// The program to measure.
    pub server: PathBuf,
    /// The folder for the temporary folder. It decides which disk is measured.
    pub directory: Option<PathBuf>,
    /// Settings that override those of the measurement.
    pub settings: Vec<String>,
    /// Compares a round with the ratios that are written down.
    pub check: bool,
    /// Measures the cost of many servers and past activations instead of speed.
    pub large: bool,
    /// Measures the rate limiter's memory instead of speed.
    pub limits_memory: bool,
    /// Measures look-ups of what only the store has, and starts beside it.
    pub look_ups: bool,
    /// Measures the memory that a wave of installs leaves behind.
    pub memory: bool,
    /// The number of callers or installs in these three measurements, if not the default.
    pub count: Option<u64>,
    /// Compares with this program instead.
    pub against: Option<PathBuf>,
    /// Compares activates during a backup with those while none is made.
    pub during_backup: bool,
    /// Measures the console's pages instead.
    pub console: bool,
    /// The step to compare.
    pub step: Compared,
    /// The only number of connections to compare over, if any.
    pub connections: Option<usize>,
    /// Compares with PostgreSQL instead.
    pub peers: bool,
    /// Measures servers that share a PostgreSQL database instead.
    pub postgres: bool,
    /// What each round trip between our servers and their database takes longer.
    pub delay: Duration,
    /// The folder of PostgreSQL's programs.
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
        check: false,
        large: false,
        limits_memory: false,
        look_ups: false,
        memory: false,
        count: None,
        against: None,
        during_backup: false,
        console: false,
        step: Compared::Activate,
        connections: None,
        peers: false,
        postgres: false,
        delay: Duration::ZERO,
        postgres_programs: None,
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => started_by_cargo_bench = true,
            "--quick" => options.quick = true,
            "--check" => options.check = true,
            "--large" => options.large = true,
            "--limits-memory" => options.limits_memory = true,
            "--memory" => options.memory = true,
            "--look-ups" => options.look_ups = true,
            "--peers" => options.peers = true,
            "--rounds" => rounds = Some(at_least_one(&argument, arguments.next())?),
            "--count" => options.count = Some(at_least_one(&argument, arguments.next())?),
            "--server" => options.server = value(&argument, arguments.next())?.into(),
            "--dir" => options.directory = Some(value(&argument, arguments.next())?.into()),
            "--against" => options.against = Some(value(&argument, arguments.next())?.into()),
            "--during-backup" => options.during_backup = true,
            "--console" => options.console = true,
            "--step" => {
                let name = value(&argument, arguments.next())?;
                let step = Compared::named(&name);
                options.step = step.context(format!(
                    "--step needs activate, check-in or register, not {name:?}"
                ))?;
            }
            "--connections" => {
                options.connections = Some(at_least_one(&argument, arguments.next())?);
            }
            "--postgres" => options.postgres = true,
            "--delay" => {
                options.delay = Duration::from_millis(at_least_one(&argument, arguments.next())?);
            }
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
    if options.count.is_some_and(|count| count > MAX_CALLERS) {
        return Err(Failure::new(format!(
            "--count takes at most {MAX_CALLERS}, because each caller has its own address"
        )));
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
    number.context(format!("{option} needs a whole number of at least 1, not {text:?}"))
}
