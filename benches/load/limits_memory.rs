//! Measures the memory that callers cost the rate limiter: millions of requests, each from a new address. The
//! memory must stop growing when the limiter tracks as many callers as it may.
//!
//! Each write has 32 pipelined requests, because only their number matters here, not their latency.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::client::Connection;
use crate::failure::{Context, Result};
use crate::figures::{grouped, megabytes};
use crate::server::Server;
use crate::statistics::Spread;
use crate::targets::{self, Target};

/// The default number of callers.
pub const CALLERS: u64 = 10_000_000;
const CONNECTIONS: usize = 64;
const REQUESTS_PER_WRITE: u64 = 32;
const REPORT_EVERY: u64 = 1_000_000;
/// 200 MB for the largest allowed number of counters, and 64 MB for other growth under this load: connection
/// buffers, the store's cache, and unused memory of the allocator.
const GROWTH: Target = Target::lower("peak RSS above idle", 264.0, 264.0, megabytes);
/// The run fails if the answers to a write take longer, because the server seems to hang.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// 11.0.0.0, the first IPv4 address of a caller. Every second caller has an IPv4 address.
const FIRST_IPV4: u32 = 0x0b00_0000;
/// More callers would reach 127.0.0.1, the address of the trusted proxy.
pub const MAX_CALLERS: u64 = 2 * (0x7f00_0000 - FIRST_IPV4 as u64);

/// The settings of this measurement. The server takes the caller's address from the request. The limits are the
/// defaults.
pub fn settings(wanted: &[String]) -> Vec<String> {
    let mut settings = vec!["server.trusted_proxies=127.0.0.1".to_owned()];
    settings.extend_from_slice(wanted);
    settings
}

/// The progress of all connections.
struct Progress {
    count: u64,
    /// The first request that no connection has taken yet.
    next: AtomicU64,
    /// The requests that were counted and answered as invalid.
    unprocessable: AtomicU64,
    /// The requests that were not counted, because there was no space for a counter.
    overloaded: AtomicU64,
}

/// Sends the requests of `count` callers and prints the growth of the server's memory.
pub async fn run(server: &Server, count: u64) -> Result<()> {
    sleep(Duration::from_secs(1)).await;
    let idle = server.memory()?.resident_mb;
    print_memory(0, idle);
    let progress = Arc::new(Progress {
        count,
        next: AtomicU64::new(0),
        unprocessable: AtomicU64::new(0),
        overloaded: AtomicU64::new(0),
    });
    let (reached, mut milestones) = mpsc::unbounded_channel();
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        tasks.spawn(flood(server.public, Arc::clone(&progress), reached.clone()));
    }
    drop(reached);
    loop {
        tokio::select! {
            Some(sent) = milestones.recv() => print_memory(sent, server.memory()?.resident_mb),
            joined = tasks.join_next() => match joined {
                Some(connection) => connection.context("a connection's task")??,
                None => break,
            },
        }
    }
    summarize(server, &progress, idle, start.elapsed())
}

fn print_memory(callers: u64, resident_mb: f64) {
    println!("{:>12} callers  RSS {:>9}", grouped(callers as f64), megabytes(resident_mb));
}

fn summarize(server: &Server, progress: &Progress, idle: f64, elapsed: Duration) -> Result<()> {
    let memory = server.memory()?;
    let growth = memory.peak_mb - idle;
    let rate = progress.count as f64 / elapsed.as_secs_f64();
    print_memory(progress.count, memory.resident_mb);
    println!();
    println!(
        "{} requests a second; {} answered 422, {} answered 503",
        grouped(rate),
        grouped(progress.unprocessable.load(Ordering::Relaxed) as f64),
        grouped(progress.overloaded.load(Ordering::Relaxed) as f64),
    );
    println!(
        "peak RSS {}, idle {}: grown by {}",
        megabytes(memory.peak_mb),
        megabytes(idle),
        megabytes(growth)
    );
    println!();
    targets::print(&[(GROWTH, Spread::of([growth]))]);
    Ok(())
}

/// Sends requests until none is left, and reports each milestone.
async fn flood(
    address: SocketAddr,
    progress: Arc<Progress>,
    reached: mpsc::UnboundedSender<u64>,
) -> Result<()> {
    let mut connection = Connection::open(address).await?;
    let mut requests = String::with_capacity(8 * 1024);
    loop {
        let first = progress.next.fetch_add(REQUESTS_PER_WRITE, Ordering::Relaxed);
        if first >= progress.count {
            return Ok(());
        }
        let end = (first + REQUESTS_PER_WRITE).min(progress.count);
        requests.clear();
        for caller in first..end {
            write_request(&mut requests, address, caller).context("cannot write a request")?;
        }
        connection.send(requests.as_bytes()).await?;
        let answers = receive(&mut connection, end - first, &progress);
        timeout(ANSWER_LIMIT, answers).await.context("precheck: no answer")??;
        if first / REPORT_EVERY != end / REPORT_EVERY && end != progress.count {
            // The receiver is gone only if the measurement has already failed.
            let _ = reached.send(end / REPORT_EVERY * REPORT_EVERY);
        }
    }
}

async fn receive(connection: &mut Connection, count: u64, progress: &Progress) -> Result<()> {
    for _ in 0..count {
        let answer = connection.receive().await?;
        match answer.status {
            422 => progress.unprocessable.fetch_add(1, Ordering::Relaxed),
            503 => progress.overloaded.fetch_add(1, Ordering::Relaxed),
            _ => return Err(answer.unexpected("precheck without fields", 422)),
        };
    }
    Ok(())
}

/// Writes an empty precheck. It is charged to its caller's address and then refused as invalid.
fn write_request(
    out: &mut String,
    host: SocketAddr,
    caller: u64,
) -> std::result::Result<(), std::fmt::Error> {
    write!(
        out,
        "POST /api/v2/slowdns/install/precheck HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: "
    )?;
    write_address(out, caller)?;
    out.push_str("\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}");
    Ok(())
}

/// Writes the address of a caller. Every second address is IPv4, from 11.0.0.0 upwards. The others are IPv6, each
/// in its own /64, because the limiter counts /64 networks.
fn write_address(out: &mut String, caller: u64) -> std::result::Result<(), std::fmt::Error> {
    let number = caller / 2;
    if caller.is_multiple_of(2) {
        let offset = u32::try_from(number).unwrap_or(0);
        return write!(out, "{}", Ipv4Addr::from_bits(FIRST_IPV4 + offset));
    }
    let network = (0x2a00_u128 << 112) | (u128::from(number) << 64);
    write!(out, "{}", Ipv6Addr::from_bits(network | 1))
}
