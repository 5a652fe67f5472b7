//! What is measured, in which order: the disk, the life of install codes at growing numbers of connections,
//! then check-ins.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;

use crate::client::Connection;
use crate::closed_loop::{self, Step};
use crate::disk;
use crate::failure::{Context, Result};
use crate::requests::{Caller, RequestWriter};
use crate::server::{Memory, Server, Workspace};
use crate::statistics::Summary;
use crate::steps::{self, CheckInPath, Machine, Prechecked, Registration};

/// Numbers of connections, and how many codes live their life at each: 110,000 in all, fewer where only a few
/// are under way at a time and every one waits for a sync of its own.
const LIFECYCLES: [(usize, usize); 4] = [(1, 2_000), (16, 8_000), (64, 40_000), (256, 60_000)];
/// One in so many of the codes is used to measure release.
const RELEASED_PART: usize = 4;
const CHECK_IN_CONNECTIONS: usize = 64;
const SERVERS: usize = 100_000;
/// How far check-ins may lag on disk.
pub const CHECK_IN_FLUSH: Duration = Duration::from_secs(5);

/// The cheapest answer there is: what everything else is a part of.
pub const HEALTHZ_STEP: &str = "healthz";
/// Where it is.
pub const HEALTHZ_PATH: &str = "/api/v2/healthz";

/// All that one round found out.
pub struct Round {
    /// Memory of the server one second after it was ready, before the first request that matters.
    pub idle: Memory,
    /// Memory at the end.
    pub loaded: Memory,
    /// Times of `fdatasync` in the server's folder, taken before and after all activates.
    pub fdatasync: Summary,
    /// The steps, in the same order in every round.
    pub rows: Vec<Row>,
    /// Commits that the store made during the check-ins and one flush after, where the metrics tell. Those of
    /// other work under way, such as saved counters, are among them.
    pub check_in_commits: Option<f64>,
}

/// One measured step.
pub struct Row {
    /// Keep-alive connections.
    pub connections: usize,
    /// The step's name.
    pub step: &'static str,
    /// Its figures.
    pub summary: Summary,
    /// Its rate as a part of `healthz` over the same connections.
    pub of_healthz: f64,
    /// Its median time in that of `fdatasync`, where the disk was measured among the same steps.
    pub of_fdatasync: Option<f64>,
}

/// Settings of this measurement: limits out of the way, lifetimes longer than a round, and what the caller wants.
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

/// One round on a server that nobody has used yet.
pub async fn run(server: &Server, workspace: &Workspace, quick: bool) -> Result<Round> {
    let scale = if quick { 10 } else { 1 };
    let healthz_for = Duration::from_secs(if quick { 1 } else { 2 });
    sleep(Duration::from_secs(1)).await;
    let idle = server.memory()?;
    let mut syncs_micros = Vec::new();
    let mut rows = Vec::new();
    let mut machines = Machine::all();
    for (connections, codes) in LIFECYCLES {
        let mut section = Section::begin(server, connections, healthz_for).await?;
        lifecycle(&mut section, workspace.path(), machines.by_ref().take(codes / scale).collect())
            .await?;
        let released = codes / scale / RELEASED_PART;
        release(&mut section, machines.by_ref().take(released).collect()).await?;
        syncs_micros.extend(&section.syncs_micros);
        rows.extend(section.rows());
    }
    let mut section = Section::begin(server, CHECK_IN_CONNECTIONS, healthz_for).await?;
    let registrations = Registration::all(workspace.master_token()?, SERVERS / scale);
    let registered = section.measure(steps::REGISTER, registrations).await?;
    rows.extend(section.rows());
    let mut section = Section::begin(server, CHECK_IN_CONNECTIONS, healthz_for).await?;
    let check_in_commits = check_ins(server, &mut section, registered).await?;
    rows.extend(section.rows());
    let fdatasync = Summary::of_sequence(syncs_micros);
    Ok(Round { idle, loaded: server.memory()?, fdatasync, rows, check_in_commits })
}

/// Steps over the same connections, beside `healthz` over these. Whatever else goes on in the machine changes
/// within seconds, so `healthz` is measured before the steps and again among them, and the mean of both is
/// what they are parts of; and the disk right before an activate and right after it.
struct Section {
    connections: usize,
    callers: Vec<Caller>,
    healthz_for: Duration,
    steps: Vec<(&'static str, Summary)>,
    syncs_micros: Vec<u32>,
}

impl Section {
    /// Opens the connections and measures `healthz`.
    async fn begin(server: &Server, connections: usize, healthz_for: Duration) -> Result<Self> {
        let callers = open_callers(server.public, connections).await?;
        let (steps, syncs_micros) = (Vec::new(), Vec::new());
        let mut section = Self { connections, callers, healthz_for, steps, syncs_micros };
        section.healthz().await?;
        Ok(section)
    }

    async fn healthz(&mut self) -> Result<()> {
        let time = self.healthz_for;
        let summary =
            closed_loop::run_for(HEALTHZ_STEP, HEALTHZ_PATH, &mut self.callers, time).await?;
        self.add(HEALTHZ_STEP, summary);
        Ok(())
    }

    fn disk(&mut self, folder: &Path) -> Result<()> {
        self.syncs_micros.extend(disk::measure(folder)?);
        Ok(())
    }

    /// A step that is reported.
    async fn measure<In, Out>(&mut self, step: Step<In, Out>, inputs: Vec<In>) -> Result<Vec<Out>>
    where
        In: Send + 'static,
        Out: Send + 'static,
    {
        let (outputs, summary) = closed_loop::run(step, &mut self.callers, inputs).await?;
        self.add(step.name, summary);
        Ok(outputs)
    }

    /// Says a figure at once, too: a round takes minutes.
    fn add(&mut self, step: &'static str, summary: Summary) {
        eprintln!("  {:>3} connections  {step:<9} {:>9.0}/s", self.connections, summary.rate);
        self.steps.push((step, summary));
    }

    fn rows(self) -> impl Iterator<Item = Row> {
        let healthz = self.steps.iter().filter(|(step, _)| *step == HEALTHZ_STEP);
        let rates: Vec<f64> = healthz.map(|(_, summary)| summary.rate).collect();
        let healthz_rate = rates.iter().sum::<f64>() / rates.len() as f64;
        let measured = !self.syncs_micros.is_empty();
        let fdatasync_micros = measured.then(|| Summary::of_sequence(self.syncs_micros).p50_micros);
        let connections = self.connections;
        self.steps.into_iter().map(move |(step, summary)| Row {
            connections,
            step,
            summary,
            of_healthz: summary.rate / healthz_rate,
            of_fdatasync: fdatasync_micros.map(|micros| summary.p50_micros / micros),
        })
    }
}

/// Connections, each with a browser session of its own.
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

/// Takes every machine through a whole install, one step after the other for all of them.
async fn lifecycle(section: &mut Section, folder: &Path, machines: Vec<Machine>) -> Result<()> {
    let issued = section.measure(steps::ISSUE, machines).await?;
    let prechecked = section.measure(steps::PRECHECK, issued).await?;
    section.disk(folder)?;
    let activated = section.measure(steps::ACTIVATE, prechecked).await?;
    section.disk(folder)?;
    section.healthz().await?;
    section.measure(steps::CONFIRM, activated).await?;
    Ok(())
}

/// Opens activations, unmeasured, and measures their release.
async fn release(section: &mut Section, machines: Vec<Machine>) -> Result<()> {
    let prechecked = prechecked(&mut section.callers, machines).await?;
    let (activated, _) =
        closed_loop::run(steps::ACTIVATE, &mut section.callers, prechecked).await?;
    section.measure(steps::RELEASE, activated).await?;
    Ok(())
}

/// Takes machines, unmeasured, up to where they may activate.
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
    section: &mut Section,
    registered: Vec<CheckInPath>,
) -> Result<Option<f64>> {
    let before = commits(server).await;
    section.measure(steps::CHECK_IN, registered).await?;
    sleep(CHECK_IN_FLUSH + Duration::from_secs(1)).await;
    let after = commits(server).await;
    section.healthz().await?;
    Ok(before.zip(after).map(|(before, after)| after - before))
}

/// The store's commits so far, as the operator's metrics count them; nothing where they do not.
async fn commits(server: &Server) -> Option<f64> {
    let metrics = server.get(server.admin, "/metrics").await.ok()?;
    let values = metrics.lines().filter_map(commit_counter);
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

/// The value, where the line is a counter of commits: `name{labels} value`, the labels optional.
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
