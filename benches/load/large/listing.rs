//! What it costs to stream all servers while machines activate.
//!
//! The same activates run twice, each time on a server just started: alone, and while one reader takes the
//! listing again and again, each time to its end, as fast as it can. It has a thread of its own, so that the
//! activates' times hold what the server makes them wait and not what the reader does, as far as two
//! processors let them.
//!
//! Activations that are open stay in memory for as long as they can be confirmed, so memory grows with every
//! activate. What the listing adds is therefore the growth with it less the growth without it, which the same
//! activates on the same store had.

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

/// Activates of either run: enough to last for a listing or two.
const ACTIVATES: usize = 80_000;
/// How often the two runs follow each other: the machine's speed may change between the two.
const PAIRS: u32 = 3;
/// What a server is given to come to rest before its memory is measured.
const REST: Duration = Duration::from_secs(1);
/// How closely memory is watched.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
/// A server that sends nothing for so long is taken for one that no longer answers.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 256 * 1024;
/// A line of a head is far shorter, and the length of a chunk still more so.
const LINE_BYTES: u64 = 8 * 1024;

/// Two runs to compare.
pub struct Pair {
    /// The activates with nothing beside them.
    pub alone: Activates,
    /// The same with the reader beside them.
    pub beside: Activates,
    /// What was read meanwhile.
    pub read: Reading,
}

impl Pair {
    /// Memory that the listing added, in megabytes.
    pub fn added_mb(&self) -> f64 {
        self.beside.grown_mb - self.alone.grown_mb
    }

    /// The 99th percentile of activate beside the listing, in that of activate alone.
    pub fn slowdown(&self) -> f64 {
        self.beside.summary.p99_micros / self.alone.summary.p99_micros
    }
}

/// One run of activates.
pub struct Activates {
    /// Their figures.
    pub summary: Summary,
    /// The highest resident memory during the run above that just before it, in megabytes.
    pub grown_mb: f64,
}

/// What the reader took.
#[derive(Default)]
pub struct Reading {
    /// Listings, each of them whole: one at least.
    pub listings: u32,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// How long that took in all.
    pub elapsed: Duration,
}

/// Measures with all of the `servers` there are.
pub async fn measure(bench: &Bench<'_>, servers: usize) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    // Machines that no counter is kept of yet: both runs of a pair add as many.
    let mut machines = Machine::all().skip(CODES_UNDER_WAY);
    let mut new_machines = || machines.by_ref().take(ACTIVATES / bench.scale).collect();
    for number in 1..=PAIRS {
        eprintln!(
            "activating alone, and beside a listing of {servers} servers: {number} of {PAIRS}"
        );
        let (alone, _) = activates(bench, new_machines(), None).await?;
        let reader = Reader { token: bench.workspace.master_token()?, servers };
        let (beside, read) = activates(bench, new_machines(), Some(reader)).await?;
        pairs.push(Pair { alone, beside, read });
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

/// The outcome of `work`, and the highest resident memory until then, in megabytes.
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

/// An operator who lists all servers.
struct Reader {
    token: String,
    servers: usize,
}

impl Reader {
    /// Reads listing after listing over one connection until it is `enough`; the last is read to its end, too.
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

    /// Reads one listing to its end; the bytes of its body.
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
        // The listing itself is an object, and each server in it is one.
        if body.objects != self.servers as u64 + 1 {
            let found = body.objects.saturating_sub(1);
            return Err(io::Error::other(format!("{found} servers instead of {}", self.servers)));
        }
        Ok(body.bytes)
    }
}

/// What has come of a body. Objects are told by their opening brace, which no host name holds.
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

/// A line of the head, or between chunks, without its end.
fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.take(LINE_BYTES).read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
