//! The stream below the HTTP parser, and above TLS. It gives the connection its deadlines, and the refusals of
//! the parser of HTTP/1.1 the form of all others.

use super::Rules;
use super::places::Place;
use super::progress::{Progress, Stage};
use super::refusal::{parsers_refusal, refusal};
use super::wire::Wire;
use crate::http::errors::ApiError;
use actix_web::http::StatusCode;
use bytes::{Buf, Bytes};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// A caller that takes this many bytes of an answer within the deadline is waited for again. TLS holds no more
/// than this back, so that what it holds is taken within the deadline too.
pub(super) const ENOUGH: usize = 16 * 1024;
/// The time for a refusal to reach a caller that is still sending. Closing earlier would reset the
/// connection, and the caller would lose the refusal.
const FAREWELL: Duration = Duration::from_secs(1);
/// The bytes that are read and thrown away at once while a connection ends.
const THROWN_AWAY: usize = 4096;

/// What a caller has not done in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Late {
    /// It has sent no request.
    Silent,
    /// It has begun a head and not sent all of it.
    Head,
    /// It does not read its answer.
    Answer,
}

/// An answer that the caller does not read.
#[derive(Debug)]
pub(super) struct Unread {
    /// The instant from which on the caller is waited for.
    pub(super) since: Instant,
    /// Bytes taken since then.
    taken: usize,
}

impl Unread {
    pub(super) fn begin() -> Self {
        Self { since: Instant::now(), taken: 0 }
    }

    /// Notes that the caller has taken so many bytes.
    pub(super) fn took(&mut self, bytes: usize) {
        self.taken += bytes;
        if self.taken >= ENOUGH {
            *self = Self::begin();
        }
    }
}

/// The end of a connection: a last answer, after which nothing is read any more.
#[derive(Debug)]
struct Farewell {
    answer: Bytes,
    until: Instant,
    is_shut: bool,
}

/// An accepted connection with its deadlines.
#[derive(Debug)]
pub struct Stream {
    wire: Wire,
    /// HTTP/2 has its own deadlines, except for answers that are not read.
    is_http_2: bool,
    progress: Rc<Progress>,
    rules: Arc<Rules>,
    timer: Pin<Box<Sleep>>,
    unread: Option<Unread>,
    farewell: Option<Farewell>,
    _place: Place,
}

impl Stream {
    /// `begun` is the instant at which the connection was accepted: a TLS handshake is part of the first head.
    pub(super) fn new(wire: Wire, rules: Arc<Rules>, place: Place, begun: Instant) -> Self {
        let is_secure = matches!(wire, Wire::Tls(_));
        Self {
            is_http_2: wire.is_http_2(),
            wire,
            progress: Rc::new(Progress::new(begun, is_secure)),
            timer: Box::pin(sleep_until(begun + rules.head)),
            rules,
            unread: None,
            farewell: None,
            _place: place,
        }
    }

    /// Whether the caller has chosen HTTP/2.
    pub(super) const fn is_http_2(&self) -> bool {
        self.is_http_2
    }

    /// What the requests of this connection tell the stream.
    pub(super) fn progress(&self) -> Rc<Progress> {
        Rc::clone(&self.progress)
    }

    /// The deadline of what the caller must do next, if it must do anything.
    fn deadline(&self) -> Option<(Instant, Late)> {
        let (stage, since) = self.progress.stage();
        let heard = match stage {
            _ if self.is_http_2 => None,
            Stage::New => Some((since + self.rules.head.min(self.rules.idle), Late::Silent)),
            Stage::Idle => Some((since + self.rules.idle, Late::Silent)),
            Stage::Head => Some((since + self.rules.head, Late::Head)),
            Stage::Request => None,
        };
        let unread = self.unread.as_ref();
        let read = unread.map(|unread| (unread.since + self.rules.answer, Late::Answer));
        heard.into_iter().chain(read).min_by_key(|(at, _)| *at)
    }

    /// Returns what the caller has not done in time. Otherwise sees to it that the connection is looked
    /// at again at the deadline. A timer that is set too early is left alone: it costs one look.
    fn late(&mut self, cx: &mut Context<'_>) -> Option<Late> {
        let (at, late) = self.deadline()?;
        if at < self.timer.deadline() {
            self.timer.as_mut().reset(at);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= at {
                return Some(late);
            }
            self.timer.as_mut().reset(at);
        }
        None
    }

    /// Begins the end of the connection.
    fn end(&mut self, answer: Bytes) {
        let until = Instant::now() + FAREWELL;
        self.timer.as_mut().reset(until);
        self.farewell = Some(Farewell { answer, until, is_shut: false });
    }

    /// Ends the connection with a refusal that the HTTP parser would have sent without a body.
    fn refuse(&mut self, status: StatusCode) {
        self.refuse_with(&ApiError::unreadable(status));
    }

    fn refuse_with(&mut self, error: &ApiError) {
        let answer = refusal(&self.rules, error, self.progress.is_v2());
        self.end(answer);
    }

    /// Ends a connection whose caller does not speak TLS, and has sent `beginning`.
    pub(super) async fn ask_for_tls(mut self, beginning: &[u8]) {
        self.progress.heard(beginning);
        self.refuse_with(&ApiError::not_tls());
        poll_fn(|cx| self.poll_farewell(cx)).await;
    }

    /// Sends the last answer, and throws away what still arrives until the caller has closed or the
    /// time is over.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(farewell) = &mut self.farewell else { return Poll::Ready(()) };
        if Instant::now() >= farewell.until || self.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut wire = Pin::new(&mut self.wire);
        while !farewell.answer.is_empty() {
            match ready!(wire.as_mut().poll_write(cx, &farewell.answer)) {
                Ok(sent @ 1..) => farewell.answer.advance(sent),
                Ok(0) | Err(_) => return Poll::Ready(()),
            }
        }
        if !farewell.is_shut {
            farewell.is_shut = true;
            if ready!(wire.as_mut().poll_shutdown(cx)).is_err() {
                return Poll::Ready(());
            }
        }
        let mut space = [0; THROWN_AWAY];
        loop {
            let mut rest = ReadBuf::new(&mut space);
            match ready!(wire.as_mut().poll_read(cx, &mut rest)) {
                Ok(()) if !rest.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
    }

    /// Notes that the caller has taken `sent` bytes, which is all there was if `is_all`.
    fn taken(&mut self, sent: usize, is_all: bool) {
        if is_all {
            self.unread = None;
        } else if let Some(unread) = &mut self.unread {
            unread.took(sent);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.is_http_2 {
            return Pin::new(&mut this.wire).poll_read(cx, buffer);
        }
        if this.farewell.is_none() {
            match this.late(cx) {
                Some(Late::Head) => {
                    this.rules.figures.slow_head.inc();
                    this.refuse(StatusCode::REQUEST_TIMEOUT);
                }
                Some(Late::Silent) => this.end(Bytes::new()),
                Some(Late::Answer) => return Poll::Ready(Err(this.cut_off())),
                None => {}
            }
        }
        if this.farewell.is_some() {
            // To read nothing means that the caller has closed.
            return this.poll_farewell(cx).map(Ok);
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.wire).poll_read(cx, buffer))?;
        if let Some(new) = buffer.filled().get(before..).filter(|new| !new.is_empty())
            && this.progress.heard(new)
        {
            // The parser would take it for a broken connection, and send nothing.
            this.refuse(StatusCode::BAD_REQUEST);
            buffer.set_filled(before);
            return this.poll_farewell(cx).map(Ok);
        }
        Poll::Ready(Ok(()))
    }
}

impl Stream {
    /// Counts a caller that does not read, and returns the error that ends its connection.
    fn cut_off(&self) -> io::Error {
        self.rules.figures.unread_answer.inc();
        io::Error::new(io::ErrorKind::TimedOut, "the caller does not read its answer")
    }

    /// Waits for the caller to take what was not taken.
    fn poll_unread<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.unread.get_or_insert_with(Unread::begin);
        match self.late(cx) {
            Some(Late::Answer) => Poll::Ready(Err(self.cut_off())),
            _ => Poll::Pending,
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let mut now = bytes;
        if this.farewell.is_none()
            && !this.is_http_2
            && let Some((before, status)) = parsers_refusal(bytes)
        {
            // The end of the answer before goes first.
            match bytes.get(..before) {
                Some(answer) if !answer.is_empty() => now = answer,
                _ => this.refuse(status),
            }
        }
        if this.farewell.is_some() {
            // The parser forgets the connection as soon as its own words are taken.
            return this.poll_farewell(cx).map(|()| Ok(bytes.len()));
        }
        match Pin::new(&mut this.wire).poll_write(cx, now) {
            Poll::Ready(Ok(sent)) => {
                this.taken(sent, sent == bytes.len());
                Poll::Ready(Ok(sent))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => this.poll_unread(cx),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // An answer may have been sent: from here on the caller is waited for.
        if self.farewell.is_none() && self.late(cx).is_some() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        match Pin::new(&mut self.wire).poll_flush(cx) {
            Poll::Ready(flushed) => {
                self.unread = None;
                Poll::Ready(flushed)
            }
            Poll::Pending => self.poll_unread(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_farewell(cx));
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
