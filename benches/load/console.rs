//! Measures how long the console's pages take while 64 connections activate: several people look at them, each at
//! the pace of a person.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::client::Connection;
use crate::closed_loop;
use crate::failure::{Context, Result};
use crate::figures::{duration, grouped};
use crate::options::Options;
use crate::report::{print_head, print_value};
use crate::scenario;
use crate::server::{Server, Workspace};
use crate::statistics::{Spread, Summary};
use crate::steps::{self, Machine, Registration};
use crate::table;
use crate::targets::{self, Target};

/// The people, each with a session of its own.
const READERS: usize = 10;
/// How long a person looks at a page before the next one: a third of what anybody needs, for more figures in the
/// same time.
const PAUSE: Duration = Duration::from_millis(300);
/// The pages that they look at, in turns.
const PAGES: [&str; 5] = ["now", "now/live", "servers", "codes", "audit"];
/// The connections that activate.
const CONNECTIONS: usize = 64;
/// The codes that are activated in a round: some seconds.
const CODES: u32 = 30_000;
/// The rounds of activates.
const ROUNDS: u32 = 6;
/// The servers on the page *Servers*.
const SERVERS: usize = 20_000;
/// How long the pages are measured without load.
const ALONE: Duration = Duration::from_secs(10);

/// What a page must answer in, and the aim: what a person takes for at once.
const TARGET: Target = Target::lower("pages beside activates, p99", 200_000.0, 100_000.0, duration);

/// When a page was asked for.
const BETWEEN: u8 = 0;
const IDLE: u8 = 1;
const BUSY: u8 = 2;

/// The times of pages, in microseconds, each with its place in [`PAGES`] and when it was asked for.
type Times = Arc<Mutex<Vec<(usize, u8, u32)>>>;

struct Findings {
    times: Vec<(usize, u8, u32)>,
    activates_per_second: f64,
}

/// Measures, and prints the figures.
pub async fn run(options: &Options) -> Result<()> {
    let workspace = crate::workspace(options)?;
    let settings = scenario::settings(&options.settings);
    let server = Server::start(&options.server, &workspace, &settings).await?;
    let outcome = measure(&server, &workspace, options.quick).await;
    let findings = server.finish(outcome).await?;
    print(options, &findings);
    Ok(())
}

async fn measure(server: &Server, workspace: &Workspace, quick: bool) -> Result<Findings> {
    let scale = if quick { 10 } else { 1 };
    let token = workspace.master_token()?;
    let mut callers = scenario::open_callers(server.public, CONNECTIONS).await?;
    let servers = Registration::all(&token, SERVERS / scale as usize);
    closed_loop::run(steps::REGISTER, &mut callers, servers).await?;
    let (times, now, is_over) =
        (Times::default(), Arc::new(AtomicU8::new(BETWEEN)), Arc::new(AtomicBool::new(false)));
    let mut readers = JoinSet::new();
    for number in 0..READERS {
        let reader = Reader::log_in(server.admin, &token).await?;
        let (times, now, is_over) = (Arc::clone(&times), Arc::clone(&now), Arc::clone(&is_over));
        // So that they do not ask all at once.
        let first = PAUSE * number as u32 / READERS as u32;
        readers.spawn(reader.look(first, times, now, is_over));
    }
    let mut rates = Vec::new();
    let rounds = if quick { 2 } else { ROUNDS };
    for round in 0..rounds {
        let codes = CODES / scale;
        let machines = Machine::numbered(round * codes..(round + 1) * codes).collect();
        let prechecked = scenario::prechecked(&mut callers, machines).await?;
        now.store(BUSY, Ordering::Relaxed);
        let (_, summary) = closed_loop::run(steps::ACTIVATE, &mut callers, prechecked).await?;
        now.store(BETWEEN, Ordering::Relaxed);
        eprintln!("  round {} of {rounds}: {:.0} activates/s", round + 1, summary.rate);
        rates.push(summary.rate);
    }
    now.store(IDLE, Ordering::Relaxed);
    sleep(ALONE / scale).await;
    is_over.store(true, Ordering::Relaxed);
    while let Some(read) = readers.join_next().await {
        read.context("a reader has ended")??;
    }
    let times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
    let activates_per_second = Spread::of(rates).map_or(0.0, |spread| spread.median);
    Ok(Findings { times, activates_per_second })
}

/// A person with a session.
struct Reader {
    connection: Connection,
    /// The beginning of each request, and its end.
    begin: String,
    end: String,
}

impl Reader {
    async fn log_in(admin: SocketAddr, token: &str) -> Result<Self> {
        let mut connection = Connection::open(admin).await?;
        let form = format!("token={token}");
        let request = format!(
            "POST /console/login HTTP/1.1\r\nHost: {admin}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {}\r\n\r\n{form}",
            form.len()
        );
        let answer = connection.exchange(request.as_bytes()).await?;
        if answer.status != 303 {
            return Err(answer.unexpected("POST /console/login", 303));
        }
        let location = answer.header("location").and_then(|at| at.strip_suffix("/now"));
        let base = location.context("the login leads nowhere")?.to_owned();
        let cookie = answer.header("set-cookie").and_then(|set| set.split(';').next());
        let cookie = cookie.context("the login sets no cookie")?;
        let end = format!(" HTTP/1.1\r\nHost: {admin}\r\nCookie: {cookie}\r\n\r\n");
        Ok(Self { begin: format!("GET {base}/"), end, connection })
    }

    async fn look(
        mut self,
        first: Duration,
        times: Times,
        now: Arc<AtomicU8>,
        is_over: Arc<AtomicBool>,
    ) -> Result<()> {
        sleep(first).await;
        for place in (0..PAGES.len()).cycle() {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            let page = PAGES.get(place).copied().unwrap_or_default();
            let request = [&self.begin, page, &self.end].concat();
            let (asked, when) = (Instant::now(), now.load(Ordering::Relaxed));
            let answer = self.connection.exchange(request.as_bytes()).await?;
            let took = u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX);
            if answer.status != 200 {
                return Err(answer.unexpected(page, 200));
            }
            times.lock().unwrap_or_else(PoisonError::into_inner).push((place, when, took));
            sleep(PAUSE).await;
        }
        Ok(())
    }
}

fn print(options: &Options, findings: &Findings) {
    print_head(options);
    print_value("readers", &format!("{READERS}, each a page every {} ms", PAUSE.as_millis()));
    let rate =
        format!("{}/s over {CONNECTIONS} connections", grouped(findings.activates_per_second));
    print_value("activates", &rate);
    println!();
    let of = |page: Option<usize>, when: u8| {
        let meant = findings
            .times
            .iter()
            .filter(|(place, at, _)| *at == when && page.is_none_or(|page| page == *place));
        let times: Vec<u32> = meant.map(|(_, _, took)| *took).collect();
        (!times.is_empty()).then(|| Summary::of_sequence(times))
    };
    let line = |name: &str, page: Option<usize>| {
        let cells = |when| match of(page, when) {
            Some(summary) => [
                summary.count.to_string(),
                duration(summary.p50_micros),
                duration(summary.p99_micros),
            ],
            None => ["0", "", ""].map(String::from),
        };
        let ([busy, busy_p50, busy_p99], [_, idle_p50, idle_p99]) = (cells(BUSY), cells(IDLE));
        [name.to_owned(), busy, busy_p50, busy_p99, idle_p50, idle_p99]
    };
    let head = ["page", "looks", "p50", "p99", "p50 without load", "p99 without load"];
    let mut lines = vec![head.map(String::from)];
    lines.extend(PAGES.iter().enumerate().map(|(place, page)| line(page, Some(place))));
    lines.push(line("all", None));
    table::print(&lines, 0);
    println!();
    let reached = of(None, BUSY).and_then(|summary| Spread::of([summary.p99_micros]));
    targets::print(&[(TARGET, reached)]);
}
