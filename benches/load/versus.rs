//! Compares two programs in turns in one run. The machine's speed changes by the minute, so separate runs do not
//! show whether a change made a step faster. Each pair of turns takes a second or two and gives one ratio. The
//! report has the median and the range of many pairs.

use std::ops::Range;
use std::path::Path;

use crate::backups::{self, Backups, Made};
use crate::client::{Connection, string_field};
use crate::closed_loop::{self, Step};
use crate::failure::Result;
use crate::figures::{duration, grouped, ranged, ratio};
use crate::options::Options;
use crate::peers::fleet::{self, Fleet};
use crate::peers::postgres::{Cluster, Programs, Site};
use crate::report::{print_head, print_value};
use crate::requests::{Caller, RequestWriter};
use crate::scenario;
use crate::server::{Server, Workspace};
use crate::statistics::{Spread, Summary};
use crate::steps::{self, CheckInPath, Machine, Prechecked, Registration};
use crate::table;

/// The numbers of connections, each with the codes to activate in one turn. A turn takes some tenths of a second.
const TURNS: [(usize, usize); 3] = [(1, 1_500), (64, 8_000), (256, 10_000)];
/// The same for registrations and check-ins.
const SERVER_TURNS: [(usize, usize); 1] = [(64, 20_000)];
/// The codes that are activated before backups are made: their store has some hundred megabytes.
const FILLED: u32 = 300_000;
/// The connections that do this.
const FILLED_BY: usize = 64;
/// The number of pairs of turns.
const PAIRS: u32 = 12;
/// The number of pairs with `--quick`.
const QUICK_PAIRS: u32 = 3;

/// The step that is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// An installer activates its code.
    Activate,
    /// A server checks in.
    CheckIn,
    /// A server registers.
    Register,
}

impl Compared {
    /// Returns the step with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Activate, Self::CheckIn, Self::Register].into_iter().find(|step| step.name() == name)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Activate => "activate",
            Self::CheckIn => "check-in",
            Self::Register => "register",
        }
    }
}

/// The figures of one turn.
#[derive(Clone, Copy)]
struct Turn {
    rate: f64,
    p50_micros: f64,
    p99_micros: f64,
    processor_micros: f64,
}

/// A compared figure: its name, how to read it from a turn, and how to show it.
type Figure = (&'static str, fn(&Turn) -> f64, fn(f64) -> String);

const FIGURES: [Figure; 4] = [
    ("per second", |turn| turn.rate, grouped),
    ("p50", |turn| turn.p50_micros, duration),
    ("p99", |turn| turn.p99_micros, duration),
    ("server's time", |turn| turn.processor_micros, duration),
];

/// Compares the measured program with `other` on one PostgreSQL, each on its own database.
pub async fn run_on_postgres(options: &Options, other: &Path) -> Result<()> {
    let site = Site::set_up(&Programs::of(options)?, crate::workspace(options)?).await?;
    let cluster = Cluster::start(site, &[]).await?;
    let of_other = Options { server: other.to_owned(), ..options.clone() };
    let this = Fleet::start(options, &cluster, "this", 1, &[]).await?;
    let that = Fleet::start(&of_other, &cluster, "that", 1, &[]).await?;
    let outcome = match (this.servers.as_slice(), that.servers.as_slice()) {
        ([this], [that]) => {
            let program = |server| Program { server, master_token: String::new(), enrolling: None };
            let options = Options { step: Compared::Activate, ..options.clone() };
            compare(&program(this), &program(that), &options).await
        }
        _ => Ok(Vec::new()),
    };
    let (stopped, outcome) = (that.finish(Ok(())).await, this.finish(outcome).await);
    stopped?;
    print(options, other, &outcome?);
    Ok(())
}

/// Compares the measured program with `other` on the embedded engine.
pub async fn run(options: &Options, other: &Path) -> Result<()> {
    let (ours, theirs) = (crate::workspace(options)?, crate::workspace(options)?);
    let settings = scenario::settings(&options.settings);
    let this = Server::start(&options.server, &ours, &settings).await?;
    let that = Server::start(other, &theirs, &settings).await?;
    let outcome = async {
        let this = Program::of(&this, &ours).await?;
        let that = Program::of(&that, &theirs).await?;
        compare(&this, &that, options).await
    };
    let outcome = outcome.await;
    let (stopped, outcome) = (that.finish(Ok(())).await, this.finish(outcome).await);
    stopped?;
    print(options, other, &outcome?);
    Ok(())
}

/// Compares activates during a backup with those while none is made, on one server.
pub async fn run_during_backup(options: &Options) -> Result<()> {
    let workspace = crate::workspace(options)?;
    let mut settings = scenario::settings(&options.settings);
    settings.extend(backups::settings(&workspace));
    let server = Server::start(&options.server, &workspace, &settings).await?;
    let outcome = async {
        let program = Program::of(&server, &workspace).await?;
        // So that a backup takes longer than a turn.
        let mut first = Side::open(&program, FILLED_BY).await?;
        let from = u32::MAX / 2;
        let count = if options.quick { FILLED / 10 } else { FILLED };
        first.turn(Compared::Activate, from..from + count).await?;
        compare(&program, &program, options).await
    };
    let outcome = outcome.await;
    let lines = server.finish(outcome).await?;
    print_head(options);
    println!("this: while a backup is made; that: while none is\n");
    table::print(&lines, 1);
    Ok(())
}

fn print(options: &Options, other: &Path, lines: &[[String; 5]]) {
    print_head(options);
    print_value("against", &other.display().to_string());
    println!();
    table::print(lines, 1);
}

/// One of the two programs, as an operator knows it.
struct Program<'a> {
    server: &'a Server,
    master_token: String,
    /// An access token that enrols servers, if the program knows such tokens.
    enrolling: Option<String>,
}

impl<'a> Program<'a> {
    async fn of(server: &'a Server, workspace: &Workspace) -> Result<Self> {
        let master_token = workspace.master_token()?;
        let mut writer = RequestWriter::new(server.admin.to_string());
        writer.bearer = Some(master_token.clone());
        writer.post_json("/admin/tokens", &[("name", "load"), ("role", "enrol")]);
        let mut connection = Connection::open(server.admin).await?;
        let answer = connection.exchange(writer.bytes()).await?;
        let enrolling = match answer.status {
            201 => string_field(answer.body, "token").map(str::to_owned),
            404 => None,
            _ => return Err(answer.unexpected("POST /admin/tokens", 201)),
        };
        Ok(Self { server, master_token, enrolling })
    }
}

/// A program with open connections to it.
struct Side<'a> {
    program: &'a Program<'a>,
    callers: Vec<Caller>,
    /// The registered servers that check in.
    servers: Vec<CheckInPath>,
}

/// The inputs of one turn.
enum Inputs {
    Activate(Vec<Prechecked>),
    CheckIn(Vec<CheckInPath>),
    Register(Vec<Registration>),
}

impl<'a> Side<'a> {
    async fn open(program: &'a Program<'a>, connections: usize) -> Result<Self> {
        let callers = scenario::open_callers(program.server.public, connections).await?;
        Ok(Self { program, callers, servers: Vec::new() })
    }

    /// Sets the token in the header of all further requests.
    fn authorize(&mut self, bearer: Option<&String>) {
        for caller in &mut self.callers {
            caller.writer.bearer = bearer.cloned();
        }
    }

    async fn run<In: Send + 'static, Out: Send + 'static>(
        &mut self,
        step: Step<In, Out>,
        inputs: Vec<In>,
    ) -> Result<(Vec<Out>, Summary)> {
        closed_loop::run(step, &mut self.callers, inputs).await
    }

    /// Does what comes before the step, without a measurement.
    async fn prepare(&mut self, step: Compared, numbers: Range<u32>) -> Result<Inputs> {
        let enrolling = self.program.enrolling.clone();
        let token = enrolling.as_ref().unwrap_or(&self.program.master_token);
        let registrations = || Registration::numbered(token, numbers.clone());
        Ok(match step {
            Compared::Activate => {
                let machines = Machine::numbered(numbers).collect();
                Inputs::Activate(scenario::prechecked(&mut self.callers, machines).await?)
            }
            Compared::CheckIn => {
                if self.servers.is_empty() {
                    self.servers = self.run(steps::REGISTER, registrations()).await?.0;
                }
                self.authorize(Some(token));
                Inputs::CheckIn(std::mem::take(&mut self.servers))
            }
            Compared::Register if enrolling.is_some() => {
                self.authorize(enrolling.as_ref());
                let tickets = self.run(steps::TICKET, registrations()).await?.0;
                self.authorize(None);
                Inputs::Register(tickets)
            }
            Compared::Register => Inputs::Register(registrations()),
        })
    }

    /// A turn while backups are made, one after the other.
    async fn turn_during_backups(&mut self, step: Compared, numbers: Range<u32>) -> Result<Turn> {
        let Program { server, master_token, .. } = self.program;
        let backups = Backups::begin(server.admin, master_token.clone());
        let turn = self.turn(step, numbers).await;
        let Made { count, size, took } = backups.end().await?;
        eprintln!("  {count} backups in {:.1} s, the last one of {size} bytes", took.as_secs_f64());
        turn
    }

    async fn turn(&mut self, step: Compared, numbers: Range<u32>) -> Result<Turn> {
        let inputs = self.prepare(step, numbers).await?;
        let server = self.program.server;
        let before = server.processor_time()?;
        let summary = match inputs {
            Inputs::Activate(inputs) => self.run(steps::ACTIVATE, inputs).await?.1,
            Inputs::Register(inputs) => self.run(steps::REGISTER, inputs).await?.1,
            Inputs::CheckIn(inputs) => {
                let summary;
                (self.servers, summary) = self.run(steps::CHECK_IN, inputs).await?;
                summary
            }
        };
        let used = server.processor_time()?.saturating_sub(before);
        Ok(Turn {
            rate: summary.rate,
            p50_micros: summary.p50_micros,
            p99_micros: summary.p99_micros,
            processor_micros: used.as_secs_f64() * 1e6 / summary.count as f64,
        })
    }
}

async fn compare(
    this: &Program<'_>,
    that: &Program<'_>,
    options: &Options,
) -> Result<Vec<[String; 5]>> {
    let mut lines =
        vec![["connections", options.step.name(), "this", "that", "this / that"].map(String::from)];
    let turns: &[_] = if options.step == Compared::Activate { &TURNS } else { &SERVER_TURNS };
    let wanted = |turn: &&(usize, usize)| options.connections.is_none_or(|only| only == turn.0);
    let mut next = 0;
    for &(connections, count) in turns.iter().filter(wanted) {
        let mut this = Side::open(this, connections).await?;
        let mut that = Side::open(that, connections).await?;
        if options.postgres {
            // Each caller has its own counter, as installers do. They would wait for each other on one row.
            fleet::give_addresses(&mut this.callers);
            fleet::give_addresses(&mut that.callers);
        }
        let mut pairs = Vec::new();
        for number in 0..if options.quick { QUICK_PAIRS } else { PAIRS } {
            let mut some = || {
                let first = next;
                next += count as u32;
                first..next
            };
            // The first program changes from pair to pair.
            if options.during_backup {
                let (this, that) = (&mut this, &mut that);
                let (during, without) = (some(), some());
                if number % 2 == 0 {
                    let first = this.turn_during_backups(options.step, during).await?;
                    pairs.push((first, that.turn(options.step, without).await?));
                } else {
                    let first = that.turn(options.step, without).await?;
                    pairs.push((this.turn_during_backups(options.step, during).await?, first));
                }
            } else if number % 2 == 0 {
                let first = this.turn(options.step, some()).await?;
                pairs.push((first, that.turn(options.step, some()).await?));
            } else {
                let first = that.turn(options.step, some()).await?;
                pairs.push((this.turn(options.step, some()).await?, first));
            }
        }
        eprintln!("  {connections:>3} connections  {} pairs", pairs.len());
        lines.extend(FIGURES.map(|figure| line(connections, figure, &pairs)));
    }
    Ok(lines)
}

fn line(connections: usize, (name, of, show): Figure, pairs: &[(Turn, Turn)]) -> [String; 5] {
    let spread = |values: &mut dyn Iterator<Item = f64>, show: fn(f64) -> String| {
        Spread::of(values).map_or_else(String::new, |spread| ranged(spread, show))
    };
    [
        connections.to_string(),
        name.to_owned(),
        spread(&mut pairs.iter().map(|(this, _)| of(this)), show),
        spread(&mut pairs.iter().map(|(_, that)| of(that)), show),
        spread(&mut pairs.iter().map(|(this, that)| of(this) / of(that)), ratio),
    ]
}
