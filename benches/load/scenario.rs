//! The normal run: the whole life of install codes over growing numbers of connections, with the disk, and then
//! check-ins.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;

use crate::bare::Bare;
use crate::client::Connection;
use crate::closed_loop::{self, Step};
use crate::disk;
use crate::failure::{Context, Result};
use crate::requests::{Caller, RequestWriter};
use crate::server::{Memory, Server, Workspace};
use crate::statistics::Summary;
use crate::steps::{self, CheckInPath, Machine, Prechecked, Registration};

/// The numbers of connections, each with its number of codes: 110,000 codes in all. There are fewer codes where
/// few requests are in flight, because then each waits for its own sync.
const LIFECYCLES: [(usize, usize); 4] = [(1, 2_000), (16, 8_000), (64, 40_000), (256, 60_000)];
/// The release is measured with one code for this many codes of the life cycle.
const RELEASED_PART: usize = 4;
const CHECK_IN_CONNECTIONS: usize = 64;
const SERVERS: usize = 100_000;
/// The longest time until check-ins are written.
pub const CHECK_IN_FLUSH: Duration = Duration::from_secs(5);

/// The cheapest answer of a bare actix-web server, with which all steps are compared.
pub const BARE_STEP: &str = "bare actix";
/// Our cheapest request.
pub const HEALTHZ_STEP: &str = "healthz";
/// Its path.
pub const HEALTHZ_PATH: &str = "/api/v2/healthz";

/// The results of one round.
pub struct Round {
    /// The server's memory one second after it was ready, before the first measured request.
    pub idle: Memory,
    /// The server's memory at the end.
    pub loaded: Memory,
    /// The times of `fdatasync` in the server's folder, measured before and after the activates.
    pub fdatasync: Summary,
    /// The steps, in the same order in every round.
    pub rows: Vec<Row>,
    /// The store's commits during the check-ins and one flush after them, if the metrics show them. They include
    /// commits of other work, such as saved counters.
    pub check_in_commits: Option<f64>,
}

/// One measured step.
pub struct Row {
    /// The number of keep-alive connections.
    pub connections: usize,
    /// The step's name.
    pub step: &'static str,
    /// Its figures.
    pub summary: Summary,
    /// Its rate divided by that of `healthz` over the same connections.
    pub of_healthz: f64,
    /// Its rate divided by that of the bare server over as many connections.
    pub of_bare: f64,
    /// Its 99th percentile divided by that of the bare server over as many connections.
    pub p99_of_bare: f64,
    /// The server's processor time per request, in microseconds.
    pub processor_micros: f64,
    /// Its median time divided by that of `fdatasync`, if the disk was measured between the same steps.
    pub of_fdatasync: Option<f64>,
}

/// The settings of this measurement: high limits, lifetimes longer than a round, and the `wanted` settings.
pub fn settings(wanted: &[String]) -> Vec<String> {
    let limits = [
        "issue_per_ip_hour",
        "issue_per_ip_day",
        "issue_per_session_hour",
        "issue_per_fingerprint_day",
        "precheck_per_ip_day",
        "precheck_per_machine_day",
        "activate_per_ip_day",
        "activate_per_machine_day",
    ];
    let mut settings: Vec<String> =
        limits.iter().map(|limit| format!("limits.{limit}=1000000")).collect();
    settings.push("session.ttl_seconds=86400".into());
    settings.push("codes.ttl_seconds=3600".into());
    settings.push(format!("servers.checkin_flush_seconds={}", CHECK_IN_FLUSH.as_secs()));
    settings.extend_from_slice(wanted);
    settings
}

impl Round {
    /// The first row of a step at a number of connections.
    pub fn row(&self, step: &str, connections: usize) -> Option<&Row> {
        self.rows.iter().find(|row| row.step == step && row.connections == connections)
    }
}

/// Measures one round on a new server.
pub async fn run(
    server: &Server,
    bare: &Bare,
    workspace: &Workspace,
    quick: bool,
) -> Result<Round> {
    let scale = if quick { 10 } else { 1 };
    let healthz_for = Duration::from_secs(if quick { 1 } else { 2 });
    sleep(Duration::from_secs(1)).await;
    let idle = server.memory()?;
    let mut syncs_micros = Vec::new();
    let mut rows = Vec::new();
    let mut machines = Machine::all();
    for (connections, codes) in LIFECYCLES {
        let mut section = Section::begin((server, bare), connections, healthz_for).await?;
        lifecycle(&mut section, workspace.path(), machines.by_ref().take(codes / scale).collect())
            .await?;
        let released = codes / scale / RELEASED_PART;
        release(&mut section, machines.by_ref().take(released).collect()).await?;
        syncs_micros.extend(&section.syncs_micros);
        rows.extend(section.rows());
    }
    let mut section = Section::begin((server, bare), CHECK_IN_CONNECTIONS, healthz_for).await?;
    let registrations = Registration::all(&workspace.master_token()?, SERVERS / scale);
    let registered = section.measure(steps::REGISTER, registrations).await?;
    rows.extend(section.rows());
    let mut section = Section::begin((server, bare), CHECK_IN_CONNECTIONS, healthz_for).await?;
    let check_in_commits = check_ins(server, &mut section, registered).await?;
    rows.extend(section.rows());
    let fdatasync = Summary::of_sequence(syncs_micros);
    Ok(Round { idle, loaded: server.memory()?, fdatasync, rows, check_in_commits })
}

/// Several steps and `healthz` over the same connections, and the bare server over as many. Other load on the
/// machine changes within seconds. So these two are measured before the steps and between them, and the steps are
/// compared with the mean of both.
/// The disk is measured right before and right after the activates.
struct Section<'a> {
    server: &'a Server,
    connections: usize,
    callers: Vec<Caller>,
    bare_callers: Vec<Caller>,
    healthz_for: Duration,
    steps: Vec<Measured>,
    syncs_micros: Vec<u32>,
}

/// A step's name and figures, and the server's processor time per request in microseconds.
type Measured = (&'static str, Summary, f64);

impl<'a> Section<'a> {
    /// Opens the connections and measures `healthz`.
    async fn begin(
        (server, bare): (&'a Server, &Bare),
        connections: usize,
        healthz_for: Duration,
    ) -> Result<Self> {
        let callers = open_callers(server.public, connections).await?;
        let bare_callers = bare.open_callers(connections).await?;
        let (steps, syncs_micros) = (Vec::new(), Vec::new());
        let mut section =
            Self { server, connections, callers, bare_callers, healthz_for, steps, syncs_micros };
        section.healthz().await?;
        Ok(section)
    }

    /// Measures the two answers with which the steps are compared.
    async fn healthz(&mut self) -> Result<()> {
        let (time, before) = (self.healthz_for, self.server.processor_time()?);
        let bare = &mut self.bare_callers;
        let summary = closed_loop::run_for(BARE_STEP, HEALTHZ_PATH, bare, time).await?;
        self.add(BARE_STEP, summary, before)?;
        let before = self.server.processor_time()?;
        let summary =
            closed_loop::run_for(HEALTHZ_STEP, HEALTHZ_PATH, &mut self.callers, time).await?;
        self.add(HEALTHZ_STEP, summary, before)
    }

    fn disk(&mut self, folder: &Path) -> Result<()> {
        self.syncs_micros.extend(disk::measure(folder)?);
        Ok(())
    }

    /// Runs a step that is reported.
    async fn measure<In, Out>(&mut self, step: Step<In, Out>, inputs: Vec<In>) -> Result<Vec<Out>>
    where
        In: Send + 'static,
        Out: Send + 'static,
    {
        let before = self.server.processor_time()?;
        let (outputs, summary) = closed_loop::run(step, &mut self.callers, inputs).await?;
        self.add(step.name, summary, before)?;
        Ok(outputs)
    }

    /// Adds a figure, and also prints it at once, because a round takes minutes.
    fn add(&mut self, step: &'static str, summary: Summary, before: Duration) -> Result<()> {
        let used = self.server.processor_time()?.saturating_sub(before);
        let micros = used.as_secs_f64() * 1e6 / summary.count as f64;
        let (connections, rate) = (self.connections, summary.rate);
        eprintln!("  {connections:>3} connections  {step:<17} {rate:>9.0}/s {micros:>6.1} \u{b5}s");
        self.steps.push((step, summary, micros));
        Ok(())
    }

    fn rows(self) -> impl Iterator<Item = Row> {
        let mean = |of: &str, figure: fn(&Summary) -> f64| {
            let (sum, count) = self
                .steps
                .iter()
                .filter(|(step, ..)| *step == of)
                .fold((0.0, 0.0), |(sum, count), (_, summary, _)| {
                    (sum + figure(summary), count + 1.0)
                });
            sum / count
        };
        let healthz_rate = mean(HEALTHZ_STEP, |summary| summary.rate);
        let bare_rate = mean(BARE_STEP, |summary| summary.rate);
        let bare_p99 = mean(BARE_STEP, |summary| summary.p99_micros);
        let measured = !self.syncs_micros.is_empty();
        let fdatasync_micros = measured.then(|| Summary::of_sequence(self.syncs_micros).p50_micros);
        let connections = self.connections;
        self.steps.into_iter().map(move |(step, summary, processor_micros)| Row {
            connections,
            step,
            summary,
            of_healthz: summary.rate / healthz_rate,
            of_bare: summary.rate / bare_rate,
            p99_of_bare: summary.p99_micros / bare_p99,
            processor_micros,
            of_fdatasync: fdatasync_micros.map(|micros| summary.p50_micros / micros),
        })
    }
}

/// Opens connections, each with its own browser session.
pub async fn open_callers(address: SocketAddr, count: usize) -> Result<Vec<Caller>> {
    let mut callers = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = Connection::open(address).await?;
        let mut writer = RequestWriter::new(address.to_string());
        writer.get("/slowdns");
        let page = connection.exchange(writer.bytes()).await.context("GET /slowdns")?;
        if page.status != 200 {
            return Err(page.unexpected("GET /slowdns", 200));
        }
        let set_cookie =
            page.header("set-cookie").context("GET /slowdns: no Set-Cookie in the answer")?;
        let cookie = set_cookie.split(';').next().unwrap_or_default().to_owned();
        callers.push(Caller { connection, writer, cookie });
    }
    Ok(callers)
}

/// Installs all machines. Each step is done for all of them before the next one.
async fn lifecycle(section: &mut Section<'_>, folder: &Path, machines: Vec<Machine>) -> Result<()> {
    let issued = section.measure(steps::ISSUE, machines).await?;
    let prechecked = section.measure(steps::PRECHECK, issued).await?;
    section.disk(folder)?;
    let activated = section.measure(steps::ACTIVATE, prechecked).await?;
    section.disk(folder)?;
    section.healthz().await?;
    section.measure(steps::CONFIRM, activated).await?;
    Ok(())
}

/// Activates codes in an order unrelated to their issue, and measures their release.
async fn release(section: &mut Section<'_>, machines: Vec<Machine>) -> Result<()> {
    let mut prechecked = prechecked(&mut section.callers, machines).await?;
    steps::scatter_order(&mut prechecked);
    let activated = section.measure(steps::ACTIVATE_SCATTERED, prechecked).await?;
    section.measure(steps::RELEASE, activated).await?;
    Ok(())
}

/// Takes machines through issue and precheck without a measurement.
pub async fn prechecked(
    callers: &mut Vec<Caller>,
    machines: Vec<Machine>,
) -> Result<Vec<Prechecked>> {
    let (issued, _) = closed_loop::run(steps::ISSUE, callers, machines).await?;
    let (prechecked, _) = closed_loop::run(steps::PRECHECK, callers, issued).await?;
    Ok(prechecked)
}

/// Lets each server check in once.
async fn check_ins(
    server: &Server,
    section: &mut Section<'_>,
    registered: Vec<CheckInPath>,
) -> Result<Option<f64>> {
    let before = commits(server).await;
    section.measure(steps::CHECK_IN, registered).await?;
    sleep(CHECK_IN_FLUSH + Duration::from_secs(1)).await;
    let after = commits(server).await;
    section.healthz().await?;
    Ok(before.zip(after).map(|(before, after)| after - before))
}

/// The store's commits so far according to the operator's metrics, if these show them.
async fn commits(server: &Server) -> Option<f64> {
    let metrics = server.get(server.admin, "/metrics").await.ok()?;
    let values = metrics.lines().filter_map(commit_counter);
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

/// The value of a line that counts commits, in the form `name{labels} value` with optional labels.
fn commit_counter(line: &str) -> Option<f64> {
    let name = line.split(['{', ' ']).next()?;
    if !(name.contains("persistence") && name.contains("commits") && name.ends_with("_total")) {
        return None;
    }
    let value = match line.rsplit_once('}') {
        Some((_, value)) => value,
        None => line.strip_prefix(name)?,
    };
    value.split_whitespace().next()?.parse().ok()
}
