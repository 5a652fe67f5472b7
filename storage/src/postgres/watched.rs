//! A connection on which no wait is endless: it fails if something was asked and no answer comes.
//!
//! The protocol marks the end of an answer (`ReadyForQuery`) and the messages that ask for one
//! (`Query`, `Sync`), so both are counted as they pass. A batch is sent at once and its first
//! answer comes at once; only the count tells that the end of its transaction is still due.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// The socket under a connection.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// No socket: every use fails with this reason.
    Nowhere(String),
}

fn nowhere<T>(why: &str) -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::Error::new(io::ErrorKind::NotConnected, why)))
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(context, into),
            Self::Unix(socket) => Pin::new(socket).poll_read(context, into),
            Self::Nowhere(why) => nowhere(why),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(context, bytes),
            Self::Unix(socket) => Pin::new(socket).poll_write(context, bytes),
            Self::Nowhere(why) => nowhere(why),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(context),
            Self::Unix(socket) => Pin::new(socket).poll_flush(context),
            Self::Nowhere(why) => nowhere(why),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Nowhere(why) => nowhere(why),
        }
    }
}

/// Finds where messages begin: one byte for the kind, then four bytes with the length of the rest
/// including themselves.
#[derive(Debug, Default)]
struct Messages {
    head: [u8; 5],
    /// How many bytes of a header have arrived.
    have: usize,
    /// How many bytes of a message are still to come.
    rest: usize,
}

impl Messages {
    /// Reads the next bytes and reports the kind of each message that begins in them.
    fn pass(&mut self, mut bytes: &[u8], mut begins: impl FnMut(u8)) {
        while let Some(&next) = bytes.first() {
            if self.rest > 0 {
                let passed = self.rest.min(bytes.len());
                self.rest -= passed;
                bytes = bytes.get(passed..).unwrap_or_default();
                continue;
            }
            if let Some(place) = self.head.get_mut(self.have) {
                *place = next;
            }
            self.have += 1;
            bytes = bytes.get(1..).unwrap_or_default();
            if self.have == self.head.len() {
                let [kind, length @ ..] = self.head;
                self.have = 0;
                self.rest = (u32::from_be_bytes(length) as usize).saturating_sub(4);
                begins(kind);
            }
        }
    }
}

/// A stream whose other end must answer within its patience.
pub(super) struct Watched<S> {
    stream: S,
    patience: Duration,
    asked: Messages,
    answered: Messages,
    /// Bytes that come before the first message: the answer to the request for TLS.
    before: usize,
    /// Whether the database has answered once. What was written before that does not consist of
    /// messages.
    begun: bool,
    /// The number of answers that are due. The first one ends the greeting.
    owed: u32,
    /// When data must have arrived; `None` if no answer is due.
    due: Option<Instant>,
    /// Fires at or before `due`: it is reset only after it has fired.
    alarm: Pin<Box<Sleep>>,
    /// Whether it is set.
    rings: bool,
}

impl<S> Watched<S> {
    /// Watches a stream on which nothing was sent yet, and on which `before` bytes come before the
    /// first message.
    pub(super) fn new(stream: S, patience: Duration, before: usize) -> Self {
        Self {
            stream,
            patience,
            asked: Messages::default(),
            answered: Messages::default(),
            before,
            begun: false,
            owed: 1,
            due: None,
            alarm: Box::pin(tokio::time::sleep(patience)),
            rings: false,
        }
    }

    fn has_read(&mut self, bytes: &[u8]) {
        let skipped = self.before.min(bytes.len());
        self.before -= skipped;
        let (owed, begun) = (&mut self.owed, &mut self.begun);
        self.answered.pass(bytes.get(skipped..).unwrap_or_default(), |kind| {
            if kind == b'Z' {
                *owed = owed.saturating_sub(1);
                *begun = true;
            }
        });
        self.due = (self.owed > 0).then(|| Instant::now() + self.patience);
    }

    fn has_written(&mut self, bytes: &[u8]) {
        if self.begun {
            let owed = &mut self.owed;
            self.asked.pass(bytes, |kind| {
                if matches!(kind, b'Q' | b'S') {
                    *owed = owed.saturating_add(1);
                }
            });
        }
        // Also if only a part of a message was sent: the rest waits for buffer space.
        if self.due.is_none() {
            self.due = Some(Instant::now() + self.patience);
        }
    }

    /// Fails if an answer is overdue, else makes sure that this is checked in time.
    fn is_in_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(due) = self.due else { return Ok(()) };
        loop {
            if !self.rings {
                self.alarm.as_mut().reset(due);
                self.rings = true;
            }
            if self.alarm.as_mut().poll(context).is_pending() {
                return Ok(());
            }
            self.rings = false;
            if Instant::now() >= due {
                let seconds = self.patience.as_secs();
                let words = format!("the database has not answered for {seconds} s");
                return Err(io::Error::new(io::ErrorKind::TimedOut, words));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let watched = self.get_mut();
        let before = into.filled().len();
        let Poll::Ready(read) = Pin::new(&mut watched.stream).poll_read(context, into) else {
            return match watched.is_in_time(context) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            };
        };
        watched.has_read(into.filled().get(before..).unwrap_or_default());
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let watched = self.get_mut();
        let written = ready!(Pin::new(&mut watched.stream).poll_write(context, bytes))?;
        watched.has_written(bytes.get(..written).unwrap_or_default());
        // The task that writes now waits for the answer next, and must be woken if none comes.
        watched.is_in_time(context)?;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Watched<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}

/// TLS that is watched above the encryption, where the messages can be read.
pub(super) struct WatchedTls<T> {
    pub(super) tls: T,
    pub(super) patience: Duration,
}

impl<T> TlsConnect<Watched<Socket>> for WatchedTls<T>
where
    T: TlsConnect<Socket>,
    T::Future: Send + 'static,
{
    type Stream = Watched<T::Stream>;
    type Error = T::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, T::Error>> + Send>>;

    fn connect(self, stream: Watched<Socket>) -> Self::Future {
        let (handshake, patience) = (self.tls.connect(stream.stream), self.patience);
        Box::pin(async move { Ok(Watched::new(handshake.await?, patience, 0)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const PATIENCE: Duration = Duration::from_secs(10);
    const READY: [u8; 6] = [b'Z', 0, 0, 0, 5, b'I'];
    const QUERY: [u8; 7] = [b'Q', 0, 0, 0, 6, b';', 0];

    /// Runs with a clock that jumps to the next alarm as soon as everybody waits.
    fn run(test: impl Future<Output = ()>) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap().block_on(test);
    }

    /// A watched stream whose greeting is over, and the database's end of it.
    async fn greeted() -> (Watched<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let mut watched = Watched::new(ours, PATIENCE, 1);
        watched.write_all(b"may we speak TLS, and hello").await.unwrap();
        // The answer to the first question reads like the kind of a message.
        theirs.write_all(b"N").await.unwrap();
        theirs.write_all(&READY).await.unwrap();
        let mut greeting = [0; 7];
        watched.read_exact(&mut greeting).await.unwrap();
        (watched, theirs)
    }

    async fn read(watched: &mut Watched<tokio::io::DuplexStream>) -> io::Result<usize> {
        watched.read(&mut [0; 1024]).await
    }

    #[test]
    fn a_question_without_an_answer_fails_when_patience_is_over() {
        run(async {
            let (mut watched, _theirs) = greeted().await;
            watched.write_all(&QUERY).await.unwrap();
            let asked = Instant::now();
            let error = read(&mut watched).await.unwrap_err();
            assert_eq!((error.kind(), asked.elapsed()), (io::ErrorKind::TimedOut, PATIENCE));
        });
    }

    #[test]
    fn an_idle_connection_may_be_silent_for_any_time() {
        run(async {
            let (mut watched, mut theirs) = greeted().await;
            watched.write_all(&QUERY).await.unwrap();
            theirs.write_all(&READY).await.unwrap();
            assert_eq!(read(&mut watched).await.unwrap(), READY.len());
            let later = tokio::spawn(async move {
                tokio::time::sleep(PATIENCE * 100).await;
                theirs.write_all(b"N").await.unwrap();
                theirs
            });
            assert_eq!(read(&mut watched).await.unwrap(), 1);
            let _theirs = later.await.unwrap();
            // Patience begins with the question, however long ago the last alarm rang.
            watched.write_all(&QUERY).await.unwrap();
            let asked = Instant::now();
            assert!(read(&mut watched).await.is_err());
            assert_eq!(asked.elapsed(), PATIENCE);
        });
    }

    #[test]
    fn of_questions_sent_at_once_the_last_must_be_answered_as_well() {
        run(async {
            let (mut watched, mut theirs) = greeted().await;
            // Cut anywhere: the end of the second question is sent alone.
            let both = [&QUERY[..], &[b'P', 0, 0, 0, 6, b'S', b'S', b'S', 0, 0, 0, 4]].concat();
            watched.write_all(&both[..10]).await.unwrap();
            watched.write_all(&both[10..]).await.unwrap();
            theirs.write_all(&READY[..2]).await.unwrap();
            theirs.write_all(&READY[2..]).await.unwrap();
            while read(&mut watched).await.unwrap() == 0 {}
            let begun = Instant::now();
            let error = loop {
                if let Err(error) = read(&mut watched).await {
                    break error;
                }
            };
            assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, PATIENCE));
        });
    }

    #[test]
    fn a_long_answer_takes_its_time_as_long_as_some_of_it_comes() {
        run(async {
            let (mut watched, mut theirs) = greeted().await;
            watched.write_all(&QUERY).await.unwrap();
            tokio::spawn(async move {
                for _ in 0..5 {
                    tokio::time::sleep(PATIENCE * 9 / 10).await;
                    theirs.write_all(&[b'D', 0, 0, 0, 5, b'Z']).await.unwrap();
                }
                theirs.write_all(&READY).await.unwrap();
                std::future::pending::<()>().await;
            });
            let mut all = [0; 36];
            watched.read_exact(&mut all).await.unwrap();
            assert_eq!(watched.owed, 0);
        });
    }
}
