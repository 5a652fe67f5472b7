//! Measures the cost of streaming all servers while machines activate.
//!
//! The same activates run twice, each time on a server just started: alone, and while one reader reads the whole
//! listing repeatedly, as fast as it can. The reader has its own thread, so that the activates' times include the
//! waits in the server but not the work of the reader, as far as two processors allow.
//!
//! Open activations stay in memory while they can be confirmed, so memory grows with every activate. The cost of
//! the listing is therefore the growth with it minus the growth of the same activates without it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::stage::CODES_UNDER_WAY;
use super::{Bench, CONNECTIONS};
use crate::closed_loop;
use crate::failure::{Context, Result};
use crate::scenario::{open_callers, prechecked};
use crate::server::Server;
use crate::statistics::Summary;
use crate::steps::{self, Machine};

/// The number of activates in each run. They last for one or two listings.
const ACTIVATES: usize = 80_000;
/// The number of pairs of runs. There are several, because the machine's speed may change between two runs.
const PAIRS: u32 = 3;
/// The time that a server gets to become idle before its memory is measured.
const REST: Duration = Duration::from_secs(1);
/// The interval between two looks at the memory.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
/// The run fails if the server sends nothing for this long.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 256 * 1024;
/// The longest line of a head or a chunk's length. Real lines are much shorter.
const LINE_BYTES: u64 = 8 * 1024;

/// Two runs that are compared.
pub struct Pair {
    /// The activates alone.
    pub alone: Activates,
    /// The activates during the listings.
    pub with_listing: Activates,
    /// The listings read during the second run.
    pub read: Reading,
}

impl Pair {
    /// The memory that the listing added, in megabytes.
    pub fn added_mb(&self) -> f64 {
        self.with_listing.grown_mb - self.alone.grown_mb
    }

    /// The 99th percentile of activate during the listing, divided by that of activate alone.
    pub fn slowdown(&self) -> f64 {
        self.with_listing.summary.p99_micros / self.alone.summary.p99_micros
    }
}

/// One run of activates.
pub struct Activates {
    /// Their figures.
    pub summary: Summary,
    /// The highest resident memory during the run minus that just before it, in megabytes.
    pub grown_mb: f64,
}

/// The reader's figures.
#[derive(Default)]
pub struct Reading {
    /// The number of whole listings, at least one.
    pub listings: u32,
    /// The bytes of their bodies.
    pub bytes: u64,
    /// Their total time.
    pub elapsed: Duration,
}

/// Measures with `servers` registered servers.
pub async fn measure(bench: &Bench<'_>, servers: usize) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    // These machines have no counters yet, so both runs of a pair add the same number of counters.
    let mut machines = Machine::all().skip(CODES_UNDER_WAY);
    let mut new_machines = || machines.by_ref().take(ACTIVATES / bench.scale).collect();
    for number in 1..=PAIRS {
        eprintln!(
            "activating alone and during a listing of {servers} servers: {number} of {PAIRS}"
        );
        let (alone, _) = activates(bench, new_machines(), None).await?;
        let reader = Reader { token: bench.workspace.master_token()?, servers };
        let (with_listing, read) = activates(bench, new_machines(), Some(reader)).await?;
        pairs.push(Pair { alone, with_listing, read });
    }
    Ok(pairs)
}

async fn activates(
    bench: &Bench<'_>,
    machines: Vec<Machine>,
    reader: Option<Reader>,
) -> Result<(Activates, Reading)> {
    let server = bench.start().await?;
    let outcome = measure_activates(&server, machines, reader).await;
    server.finish(outcome).await
}

async fn measure_activates(
    server: &Server,
    machines: Vec<Machine>,
    reader: Option<Reader>,
) -> Result<(Activates, Reading)> {
    let mut callers = open_callers(server.public, CONNECTIONS).await?;
    let codes = prechecked(&mut callers, machines).await?;
    sleep(REST).await;
    let before = server.memory()?.resident_mb;
    let measured = async {
        let enough = Arc::new(AtomicBool::new(false));
        let reading = reader.map(|reader| {
            let (address, enough) = (server.public, Arc::clone(&enough));
            spawn_blocking(move || reader.read(address, &enough))
        });
        let (_, summary) = closed_loop::run(steps::ACTIVATE, &mut callers, codes).await?;
        enough.store(true, Ordering::Relaxed);
        let read = match reading {
            Some(reading) => reading.await.context("the reader of the listing")??,
            None => Reading::default(),
        };
        Ok((summary, read))
    };
    let ((summary, read), highest) = watch_memory(server, measured).await?;
    Ok((Activates { summary, grown_mb: highest - before }, read))
}

/// Returns the outcome of `work` and the highest resident memory during it, in megabytes.
async fn watch_memory<T>(
    server: &Server,
    work: impl Future<Output = Result<T>>,
) -> Result<(T, f64)> {
    let mut work = pin!(work);
    let mut highest = server.memory()?.resident_mb;
    loop {
        tokio::select! {
            outcome = &mut work => return Ok((outcome?, highest)),
            () = sleep(SAMPLE_INTERVAL) => highest = highest.max(server.memory()?.resident_mb),
        }
    }
}

/// An operator that lists all servers.
struct Reader {
    token: String,
    servers: usize,
}

impl Reader {
    /// Reads listings over one connection until `enough` is set. The last one is also read to its end.
    fn read(&self, address: SocketAddr, enough: &AtomicBool) -> Result<Reading> {
        let stream = TcpStream::connect(address).context("cannot connect for the listing")?;
        stream.set_read_timeout(Some(SILENCE_LIMIT)).context("cannot set a timeout")?;
        let mut reader = BufReader::with_capacity(READ_BYTES, stream);
        let start = Instant::now();
        let mut read = Reading::default();
        while !enough.load(Ordering::Relaxed) {
            let request = format!(
                "GET /status HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\n\r\n",
                self.token
            );
            reader.get_mut().write_all(request.as_bytes()).context("cannot ask for the listing")?;
            read.bytes += self.read_listing(&mut reader).context("cannot read the listing")?;
            read.listings += 1;
        }
        read.elapsed = start.elapsed();
        Ok(read)
    }

    /// Reads one listing to its end. Returns the bytes of its body.
    fn read_listing(&self, reader: &mut impl BufRead) -> io::Result<u64> {
        let status = read_line(reader)?;
        if !status.starts_with("HTTP/1.1 200") {
            return Err(io::Error::other(status));
        }
        while !read_line(reader)?.is_empty() {}
        let mut body = Body::default();
        loop {
            let line = read_line(reader)?;
            let length = u64::from_str_radix(&line, 16).map_err(|_| io::Error::other(line))?;
            body.take(reader, length)?;
            read_line(reader)?;
            if length == 0 {
                break;
            }
        }
        // The listing itself is an object, and so is each server in it.
        if body.objects != self.servers as u64 + 1 {
            let found = body.objects.saturating_sub(1);
            return Err(io::Error::other(format!("{found} servers instead of {}", self.servers)));
        }
        Ok(body.bytes)
    }
}

/// The received part of a body. Objects are counted by their opening brace, which no host name contains.
#[derive(Default)]
struct Body {
    bytes: u64,
    objects: u64,
}

impl Body {
    fn take(&mut self, reader: &mut impl BufRead, length: u64) -> io::Result<()> {
        self.bytes += length;
        let mut chunk = reader.take(length);
        loop {
            let part = chunk.fill_buf()?;
            if part.is_empty() {
                break;
            }
            self.objects += part.iter().filter(|byte| **byte == b'{').count() as u64;
            let length = part.len();
            chunk.consume(length);
        }
        if chunk.limit() > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// Reads a line of the head, or between chunks, without its end.
fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.take(LINE_BYTES).read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
