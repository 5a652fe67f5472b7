//! An HTTP/1.1 client that uses little processor time, because it shares the machine with the server.
//!
//! It reads the status line, `Content-Length` and the body. It refuses what the server should not send, such as
//! a chunked body.

use std::io::BufRead;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::failure::{Context, Failure, Result};

/// Much more than any answer of the API. One read can also take 32 pipelined answers.
const BUFFER_BYTES: usize = 32 * 1024;
/// A longer answer is an error. The metrics page is the longest answer.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// A keep-alive connection with one buffer for all its answers.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// The end of the bytes read from the socket.
    filled: usize,
    /// The end of the bytes handed out. The bytes between the two are early answers to pipelined requests.
    consumed: usize,
}

/// An answer, borrowed from the connection's buffer.
pub struct Answer<'a> {
    /// The status code.
    pub status: u16,
    head: &'a [u8],
    /// The whole body.
    pub body: &'a [u8],
}

impl Connection {
    /// Connects without Nagle's algorithm, because a request is one write and must be sent at once.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream =
            TcpStream::connect(address).await.context(format!("cannot connect to {address}"))?;
        stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        Ok(Self { stream, buffer: vec![0; BUFFER_BYTES], filled: 0, consumed: 0 })
    }

    /// Sends one request and reads its answer.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        self.send(request).await?;
        self.receive().await
    }

    /// Sends one request, or several that are answered in order.
    pub async fn send(&mut self, requests: &[u8]) -> Result<()> {
        self.stream.write_all(requests).await.context("cannot send to the server")
    }

    /// Reads the next answer.
    pub async fn receive(&mut self) -> Result<Answer<'_>> {
        let head = loop {
            if let Some(head) = parse_head(self.unread())? {
                break head;
            }
            self.read_more().await?;
        };
        let length = head.length + head.body_length;
        while self.unread().len() < length {
            self.read_more().await?;
        }
        let start = self.consumed;
        self.consumed += length;
        let answer = self.buffer.get(start..self.consumed).unwrap_or_default();
        let (head_bytes, body) = answer.split_at_checked(head.length).unwrap_or_default();
        Ok(Answer { status: head.status, head: head_bytes, body })
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.consumed..self.filled).unwrap_or_default()
    }

    async fn read_more(&mut self) -> Result<()> {
        self.free_buffer_space()?;
        let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
        let count = self.stream.read(room).await.context("cannot read from the server")?;
        if count == 0 {
            return Err(Failure::new("the server closed the connection before its answer"));
        }
        self.filled += count;
        Ok(())
    }

    /// Starts again at the buffer's beginning if nothing is unread, which is nearly always the case. Otherwise
    /// moves the unread bytes there, or grows the buffer.
    fn free_buffer_space(&mut self) -> Result<()> {
        if self.consumed == self.filled {
            self.filled = 0;
            self.consumed = 0;
        } else if self.filled == self.buffer.len() && self.consumed > 0 {
            self.buffer.copy_within(self.consumed..self.filled, 0);
            self.filled -= self.consumed;
            self.consumed = 0;
        }
        if self.filled < self.buffer.len() {
            return Ok(());
        }
        if self.buffer.len() >= MAX_ANSWER_BYTES {
            return Err(Failure::new(format!("an answer is longer than {MAX_ANSWER_BYTES} bytes")));
        }
        self.buffer.resize(self.buffer.len() * 2, 0);
        Ok(())
    }
}

impl Answer<'_> {
    /// Returns the bytes of its head and of its body.
    pub fn length(&self) -> (usize, usize) {
        (self.head.len(), self.body.len())
    }

    /// Searches for the first header with this name. Too slow for the measured path.
    pub fn header(&self, name: &str) -> Option<&str> {
        let head = std::str::from_utf8(self.head).ok()?;
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// Turns this answer into a failure of `request`, with its status and body.
    pub fn unexpected(&self, request: &str, expected: u16) -> Failure {
        let body = String::from_utf8_lossy(self.body);
        Failure::new(format!("{request}: expected {expected}, got {}: {body}", self.status))
    }
}

/// The relevant content of an answer's head.
#[derive(Debug, PartialEq)]
struct Head {
    status: u16,
    /// The number of bytes before the body.
    length: usize,
    body_length: usize,
}

/// Reads a head. Returns `None` if it is still incomplete.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>> {
    let mut rest = bytes;
    let Some(status_line) = take_line(&mut rest) else { return Ok(None) };
    let Some(status) = parse_status(status_line) else {
        let line = String::from_utf8_lossy(status_line);
        return Err(Failure::new(format!("not an HTTP/1.1 status line: {line}")));
    };
    let mut body_length = None;
    loop {
        let Some(line) = take_line(&mut rest) else { return Ok(None) };
        if line.is_empty() {
            break;
        }
        if let Some(value) = header_value(line, b"content-length:") {
            body_length = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
        } else if header_value(line, b"transfer-encoding:").is_some() {
            return Err(Failure::new(
                "the server sent a chunked answer, which this client does not read",
            ));
        }
    }
    let body_length = body_length.context("the server sent an answer without a Content-Length")?;
    Ok(Some(Head { status, length: bytes.len() - rest.len(), body_length }))
}

/// Takes the next line without its end. Returns `None` if it is incomplete. `skip_until` uses the C library's
/// `memchr`, which is ten times as fast as a loop.
fn take_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let before = *rest;
    let length = rest.skip_until(b'\n').ok()?;
    let line = before.get(..length)?.strip_suffix(b"\n")?;
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

fn parse_status(line: &[u8]) -> Option<u16> {
    let code = line.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    std::str::from_utf8(code).ok()?.parse().ok()
}

/// The value if the line is the header `name`, which is in lower case and ends with the colon.
fn header_value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (found, value) = line.split_at_checked(name.len())?;
    found.eq_ignore_ascii_case(name).then_some(value)
}

/// Finds the value of `"key":"value"` in compact JSON by going from quote to quote. This needs no parser,
/// because the values (codes, ids, tokens) are never escaped and each key occurs once.
pub fn string_field<'a>(json: &'a [u8], key: &str) -> Option<&'a str> {
    let mut rest = json;
    while rest.skip_until(b'"').ok()? > 0 {
        let value = rest.strip_prefix(key.as_bytes()).and_then(|rest| rest.strip_prefix(br#"":""#));
        if let Some(value) = value {
            let mut after = value;
            let length = after.skip_until(b'"').ok()?;
            return std::str::from_utf8(value.get(..length)?.strip_suffix(b"\"")?).ok();
        }
    }
    None
}
