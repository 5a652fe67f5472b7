//! What is measured, in which order: the disk, the life of install codes at growing numbers of connections,
//! then check-ins.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::sleep;

use crate::client::Connection;
use crate::closed_loop;
use crate::disk;
use crate::failure::{Context, Result};
use crate::requests::{Caller, RequestWriter};
use crate::server::{Memory, Server, Workspace};
use crate::statistics::Summary;
use crate::steps::{self, Machine, Registration};

/// Numbers of connections, and how many codes live their life at each: 54,000 in all, fewer where only a few
/// are under way at a time and every one waits for a sync of its own.
const LIFECYCLES: [(usize, usize); 4] = [(1, 2_000), (16, 8_000), (64, 20_000), (256, 24_000)];
/// One in so many of the codes is used to measure release.
const RELEASED_PART: usize = 4;
const CHECK_IN_CONNECTIONS: usize = 64;
const SERVERS: usize = 100_000;
const CHECK_IN_FLUSH: Duration = Duration::from_secs(5);

const HEALTHZ: &str = "/api/v2/healthz";

/// All that one round found out.
pub struct Round {
    /// Memory of the server one second after it was ready, before the first request that matters.
    pub idle: Memory,
    /// Memory at the end.
    pub loaded: Memory,
    /// Times of `fdatasync` in the server's folder.
    pub fdatasync: Summary,
    /// The steps, in the same order in every round.
    pub rows: Vec<Row>,
    /// Commits that the store made during the check-ins and one flush after, where the metrics tell.
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
    /// Its rate as a part of `healthz` at the same number of connections.
    pub of_healthz: f64,
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

/// One round on a server that nobody has used yet.
pub async fn run(server: &Server, workspace: &Workspace, quick: bool) -> Result<Round> {
    let scale = if quick { 10 } else { 1 };
    let healthz_for = Duration::from_secs(if quick { 1 } else { 2 });
    sleep(Duration::from_secs(1)).await;
    let idle = server.memory()?;
    let fdatasync = disk::measure(workspace.path())?;
    let mut rows = Vec::new();
    let mut machines = Machine::all();
    for (connections, codes) in LIFECYCLES {
        let mut callers = open_callers(server.public, connections).await?;
        let healthz = closed_loop::run_for("healthz", HEALTHZ, &mut callers, healthz_for).await?;
        let mut record = Recorder { rows: &mut rows, connections, healthz_rate: healthz.rate };
        record.add("healthz", healthz);
        lifecycle(&mut record, &mut callers, machines.by_ref().take(codes / scale).collect())
            .await?;
        let released = codes / scale / RELEASED_PART;
        release(&mut record, &mut callers, machines.by_ref().take(released).collect()).await?;
    }
    let token = workspace.master_token()?;
    let check_in_commits =
        check_ins(server, &mut rows, token, SERVERS / scale, healthz_for).await?;
    Ok(Round { idle, loaded: server.memory()?, fdatasync, rows, check_in_commits })
}

/// Adds rows at one number of connections, and says them at once: a round takes minutes.
struct Recorder<'a> {
    rows: &'a mut Vec<Row>,
    connections: usize,
    healthz_rate: f64,
}

impl Recorder<'_> {
    fn add(&mut self, step: &'static str, summary: Summary) {
        eprintln!("  {:>3} connections  {step:<9} {:>9.0}/s", self.connections, summary.rate);
        let of_healthz = summary.rate / self.healthz_rate;
        self.rows.push(Row { connections: self.connections, step, summary, of_healthz });
    }
}

/// Connections, each with a browser session of its own.
async fn open_callers(address: SocketAddr, count: usize) -> Result<Vec<Caller>> {
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
async fn lifecycle(
    record: &mut Recorder<'_>,
    callers: &mut Vec<Caller>,
    machines: Vec<Machine>,
) -> Result<()> {
    let (issued, summary) = closed_loop::run(steps::ISSUE, callers, machines).await?;
    record.add(steps::ISSUE.name, summary);
    let (prechecked, summary) = closed_loop::run(steps::PRECHECK, callers, issued).await?;
    record.add(steps::PRECHECK.name, summary);
    let (activated, summary) = closed_loop::run(steps::ACTIVATE, callers, prechecked).await?;
    record.add(steps::ACTIVATE.name, summary);
    let (_, summary) = closed_loop::run(steps::CONFIRM, callers, activated).await?;
    record.add(steps::CONFIRM.name, summary);
    Ok(())
}

/// Opens activations, unmeasured, and measures their release.
async fn release(
    record: &mut Recorder<'_>,
    callers: &mut Vec<Caller>,
    machines: Vec<Machine>,
) -> Result<()> {
    let (issued, _) = closed_loop::run(steps::ISSUE, callers, machines).await?;
    let (prechecked, _) = closed_loop::run(steps::PRECHECK, callers, issued).await?;
    let (activated, _) = closed_loop::run(steps::ACTIVATE, callers, prechecked).await?;
    let (_, summary) = closed_loop::run(steps::RELEASE, callers, activated).await?;
    record.add(steps::RELEASE.name, summary);
    Ok(())
}

/// Registers servers, then lets each check in once.
async fn check_ins(
    server: &Server,
    rows: &mut Vec<Row>,
    token: String,
    count: usize,
    healthz_for: Duration,
) -> Result<Option<f64>> {
    let mut callers = open_callers(server.public, CHECK_IN_CONNECTIONS).await?;
    let healthz = closed_loop::run_for("healthz", HEALTHZ, &mut callers, healthz_for).await?;
    let mut record =
        Recorder { rows, connections: CHECK_IN_CONNECTIONS, healthz_rate: healthz.rate };
    let (registered, summary) =
        closed_loop::run(steps::REGISTER, &mut callers, Registration::all(token, count)).await?;
    record.add(steps::REGISTER.name, summary);

    // Once more, because the check-ins are judged against it: nothing that drifts lies between the two.
    let healthz = closed_loop::run_for("healthz", HEALTHZ, &mut callers, healthz_for).await?;
    record.healthz_rate = healthz.rate;
    record.add("healthz", healthz);
    let before = commits(server).await;
    let (_, summary) = closed_loop::run(steps::CHECK_IN, &mut callers, registered).await?;
    record.add(steps::CHECK_IN.name, summary);
    let Some(before) = before else { return Ok(None) };
    sleep(CHECK_IN_FLUSH + Duration::from_secs(1)).await;
    Ok(commits(server).await.map(|after| after - before))
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
