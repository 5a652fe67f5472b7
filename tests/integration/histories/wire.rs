//! The way from a client to the servers: plain HTTP over connections that stay open. It loses requests
//! and answers, delays them, and delivers a request after its sender has given up. All of that is done
//! at the client's end, so that a run of a million redeems is not spent on carrying bytes.

use crate::harness::Answer;
use crate::process::Chance;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How bad the ways are: of a thousand requests and answers, how many are lost and how many are late.
#[derive(Default)]
pub struct Weather {
    lost: AtomicU64,
    late: AtomicU64,
}

impl Weather {
    pub fn set(&self, lost: u64, late: u64) {
        self.lost.store(lost, Ordering::SeqCst);
        self.late.store(late, Ordering::SeqCst);
    }

    /// What becomes of a request or an answer.
    fn fate(&self, chance: &mut Chance) -> Fate {
        if chance.below(1000) < self.lost.load(Ordering::SeqCst) {
            return Fate::Lost;
        }
        let late = chance.below(1000) < self.late.load(Ordering::SeqCst);
        Fate::Arrives(Duration::from_millis(if late { 1 + chance.below(2000) } else { 0 }))
    }
}

enum Fate {
    Lost,
    /// After so long.
    Arrives(Duration),
}

/// What a client hears.
pub enum Heard {
    Answer(Answer),
    /// Nobody is there: the request was not sent.
    Nobody,
    /// No answer: the request may have been read, or may be later.
    Silence,
}

/// A request: `GET` without a body, `POST` with one.
pub struct Request {
    pub path: String,
    /// Lines, each with its end.
    pub headers: String,
    pub body: Option<String>,
}

impl Request {
    fn bytes(&self) -> Vec<u8> {
        let Self { path, headers, body } = self;
        let (method, body) = body.as_ref().map_or(("GET", ""), |body| ("POST", body.as_str()));
        let length = body.len();
        format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\
             {headers}\r\n{body}"
        )
        .into_bytes()
    }
}

/// How long a connection may be idle: servers close theirs later, so none is closed just as it is used.
const IDLE: Duration = Duration::from_secs(1);
/// How long it is tried to reach a server.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a request that is delivered late waits for its answer.
const LINGER: Duration = Duration::from_secs(5);

/// A client's connections: one to each address.
#[derive(Default)]
pub struct Wire {
    open: HashMap<SocketAddr, (TcpStream, Instant)>,
}

impl Wire {
    /// Sends a request and waits for its answer, no longer than `patience`.
    pub fn send(
        &mut self,
        to: Option<SocketAddr>,
        request: &Request,
        patience: Duration,
        weather: &Weather,
        chance: &mut Chance,
    ) -> Heard {
        let Some((to, mut stream)) = to.and_then(|to| Some((to, self.connection(to)?))) else {
            return Heard::Nobody;
        };
        let begun = Instant::now();
        let Fate::Arrives(after) = weather.fate(chance) else { return Heard::Silence };
        if after >= patience {
            let bytes = request.bytes();
            std::thread::spawn(move || {
                std::thread::sleep(after);
                let _ = exchange(&mut stream, &bytes, Instant::now() + LINGER);
            });
            std::thread::sleep(patience);
            return Heard::Silence;
        }
        std::thread::sleep(after);
        let Ok(answer) = exchange(&mut stream, &request.bytes(), begun + patience) else {
            return Heard::Silence;
        };
        let Fate::Arrives(after) = weather.fate(chance) else { return Heard::Silence };
        let left = patience.saturating_sub(begun.elapsed());
        std::thread::sleep(after.min(left));
        if after > left {
            return Heard::Silence;
        }
        if answer.header("connection") != "close" {
            self.open.insert(to, (stream, Instant::now()));
        }
        Heard::Answer(answer)
    }

    /// A connection that is nobody else's, until it is put back.
    fn connection(&mut self, to: SocketAddr) -> Option<TcpStream> {
        match self.open.remove(&to) {
            Some((stream, used)) if used.elapsed() < IDLE => Some(stream),
            _ => {
                let stream = TcpStream::connect_timeout(&to, CONNECT).ok()?;
                stream.set_nodelay(true).ok()?;
                Some(stream)
            }
        }
    }
}

fn exchange(stream: &mut TcpStream, request: &[u8], until: Instant) -> io::Result<Answer> {
    stream.write_all(request)?;
    let mut bytes = Vec::with_capacity(4096);
    let mut head = None;
    loop {
        if head.is_none()
            && let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n")
        {
            head = Some(read_head(&bytes, end));
        }
        if let Some((answer, from, length)) = &mut head
            && bytes.len() >= *from + *length
        {
            answer.text = String::from_utf8_lossy(&bytes[*from..]).into_owned();
            return Ok(head.unwrap().0);
        }
        let left = until.saturating_duration_since(Instant::now());
        // Zero would mean for ever.
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut part = [0; 16_384];
        let count = stream.read(&mut part)?;
        if count == 0 || left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        bytes.extend_from_slice(&part[..count]);
    }
}

/// The answer without its body, and where that begins and how long it is.
fn read_head(bytes: &[u8], end: usize) -> (Answer, usize, usize) {
    let text = String::from_utf8_lossy(&bytes[..end]);
    let (first, lines) = text.split_once("\r\n").expect("an answer has headers");
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let header = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_lowercase(), value.to_owned()))
    };
    let headers: HashMap<_, _> = lines.split("\r\n").filter_map(header).collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok());
    let length = length.expect("every answer says how long it is");
    let status = status.expect("every answer has a status");
    (Answer { status, headers, text: String::new() }, end + 4, length)
}
