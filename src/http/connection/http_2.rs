//! HTTP/2 (RFC 9113), on connections whose TLS handshake has chosen it.
//!
//! The server of actix-http has no bound for streams, heads, or answers that are not read. So this drives the
//! h2 crate itself, and gives it the bounds that a connection of HTTP/1.1 has:
//!
//! * **Requests of one network**: each stream beside another one takes a place, as a connection would.
//! * **Deadlines**: without a stream, a connection is idle, and its first stream must come in the time of a
//!   first head. A body and an answer are waited for as long as on HTTP/1.1.
//! * **Memory**: heads, bodies that wait and answers that wait have limits.
//! * **Bodies that nobody reads**: a request may be answered before its body has come. The rest is taken and thrown
//!   away for a while: a stream that is reset after its answer loses it for some callers (curl before 8.0).
//! * **Requests that their caller cancels** (CVE-2023-44487): work on them ends, as with a connection that is
//!   closed; and the connection ends after many.

use super::Rules;
use super::places::Place;
use super::requests::Answering;
use super::stream::{Stream, Unread};
use crate::http::tls::Secure;
use actix_http::{HttpMessage, Payload, Request};
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Response, Service};
use actix_web::error::PayloadError;
use actix_web::http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, HOST, HeaderName, HeaderValue, HttpDate, TRANSFER_ENCODING,
    UPGRADE,
};
use actix_web::http::{Method, StatusCode, Uri, Version};
use actix_web::rt::spawn;
use bytes::Bytes;
use futures_util::stream;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use std::cell::{Cell, RefCell};
use std::error::Error;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

/// The most streams of a connection at once. RFC 9113, section 5.1.2, recommends no fewer.
const STREAMS: u32 = 100;
/// The largest head of a request, in bytes as RFC 9113, section 10.5.1, counts them. The head that other servers
/// take by default (nginx, `large_client_header_buffers`).
const HEAD: u32 = 32 * 1024;
/// The bytes of a body that are taken in before its handler reads them: what a caller may send before it has
/// heard anything (RFC 9113, section 6.9.2), so nothing less can be asked for.
const BODY: u32 = 65_535;
/// The bytes of all bodies of a connection that are taken in so. That is 16 bodies.
const BODIES: u32 = 16 * BODY;
/// The bytes of an answer that wait to be sent, and that nothing but the connection holds back.
const ANSWER: usize = 64 * 1024;
/// The most requests that a caller cancels before they are answered, beyond those that are answered: a page that is
/// left while all its requests are under way.
const CANCELLED: usize = STREAMS as usize;
/// The most bytes of a body that are thrown away after its request was answered. No route takes one that is longer
/// than a sixteenth of that.
const THROWN_AWAY: usize = 1 << 20;
/// The time in which a caller closes a connection after it has been asked to. What it asks for later is refused.
const FAREWELL: Duration = Duration::from_secs(1);

/// The streams of a connection.
#[derive(Debug)]
struct Streams {
    open: Cell<usize>,
    /// The instant at which the connection is closed if it has no stream then.
    until: Cell<Instant>,
    /// The time until then, from the end of the last stream.
    idle: Cell<Duration>,
    cancelled: Cell<usize>,
    changed: Notify,
}

impl Streams {
    /// The end of a connection without a stream. `None` while there is one.
    fn end(&self) -> Option<Instant> {
        (self.open.get() == 0).then(|| self.until.get())
    }

    /// Gives the caller some time to close the connection, once no stream is open.
    fn farewell(&self) {
        self.idle.set(FAREWELL);
        self.until.set(Instant::now() + FAREWELL);
    }
}

/// A stream that is open. Dropping it ends the stream.
struct Open {
    streams: Rc<Streams>,
    is_answered: bool,
    /// The place of a stream beside others.
    _place: Option<Place>,
}

impl Open {
    /// Opens a stream. `None`: the network of the peer holds as many places as it may.
    fn one(streams: &Rc<Streams>, rules: &Rules, peer: SocketAddr) -> Option<Self> {
        // The first one has the place of the connection.
        let place =
            if streams.open.get() == 0 { None } else { Some(rules.places.take(peer.ip())?) };
        streams.open.set(streams.open.get() + 1);
        Some(Self { streams: Rc::clone(streams), is_answered: false, _place: place })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Streams { open, until, idle, cancelled, changed } = &*self.streams;
        open.set(open.get().saturating_sub(1));
        let before = cancelled.get();
        cancelled.set(if self.is_answered { before.saturating_sub(1) } else { before + 1 });
        until.set(Instant::now() + idle.get());
        changed.notify_one();
    }
}

fn bounds() -> Builder {
    let mut bounds = Builder::new();
    bounds
        .max_concurrent_streams(STREAMS)
        // A page that is left cancels all its requests in one flight.
        .max_pending_accept_reset_streams(STREAMS as usize)
        .max_header_list_size(HEAD)
        .initial_window_size(BODY)
        .initial_connection_window_size(BODIES)
        .max_send_buffer_size(ANSWER);
    bounds
}

/// Waits until an instant, or for ever.
async fn reach(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// Serves a connection that was accepted at `begun`, until it ends. `is_draining` ends when the server shuts down.
pub(super) async fn serve<S>(
    stream: Stream,
    (peer, begun): (SocketAddr, Instant),
    rules: Arc<Rules>,
    app: Rc<S>,
    is_draining: impl Future<Output = ()>,
) where
    S: Service<Request, Response = Response<Answering>, Error = actix_web::Error> + 'static,
{
    let first = begun + rules.head.min(rules.idle);
    let connection = match timeout_at(first, bounds().handshake::<_, Bytes>(stream)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(_)) => return,
        Err(_) => {
            rules.figures.slow_head.inc();
            return;
        }
    };
    let streams = Rc::new(Streams {
        open: Cell::new(0),
        until: Cell::new(first),
        idle: Cell::new(rules.idle),
        cancelled: Cell::new(0),
        changed: Notify::new(),
    });
    drive(connection, &streams, is_draining, |(request, respond)| {
        begin(request, respond, (&streams, peer), &rules, &app);
    })
    .await;
    if streams.cancelled.get() > CANCELLED {
        rules.figures.cancelled.inc();
    }
}

type Arrived = (http::Request<RecvStream>, SendResponse<Bytes>);

/// Drives a connection until it ends, and hands over the requests that arrive.
async fn drive(
    mut connection: Connection<Stream, Bytes>,
    streams: &Streams,
    is_draining: impl Future<Output = ()>,
    begin: impl Fn(Arrived),
) {
    let mut is_draining = pin!(is_draining);
    let mut ending: Option<Instant> = None;
    loop {
        let is_time = tokio::select! {
            arrived = connection.accept() => {
                match arrived {
                    Some(Ok((_, mut respond)))
                        if ending.is_some_and(|since| since.elapsed() > FAREWELL) =>
                    {
                        respond.send_reset(Reason::REFUSED_STREAM);
                    }
                    Some(Ok(arrived)) => begin(arrived),
                    // The crate has told the caller why.
                    Some(Err(error)) => {
                        if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) {
                            streams.cancelled.set(CANCELLED + 1);
                        }
                        return;
                    }
                    None => return,
                }
                false
            }
            () = reach(streams.end()) => {
                if ending.is_some() {
                    return;
                }
                true
            }
            () = &mut is_draining, if ending.is_none() => true,
            () = streams.changed.notified() => false,
        };
        if is_time {
            connection.graceful_shutdown();
            streams.farewell();
            ending = Some(Instant::now());
        }
        if streams.cancelled.get() > CANCELLED {
            connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            let _ = timeout(FAREWELL, poll_fn(|cx| connection.poll_closed(cx))).await;
            return;
        }
    }
}

/// Begins work on a request.
fn begin<S>(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    (streams, peer): (&Rc<Streams>, SocketAddr),
    rules: &Arc<Rules>,
    app: &Rc<S>,
) where
    S: Service<Request, Response = Response<Answering>, Error = actix_web::Error> + 'static,
{
    let Some(open) = Open::one(streams, rules, peer) else {
        rules.figures.no_place.inc();
        // Says that nothing was done: the caller may send it again (RFC 9113, section 8.7).
        return respond.send_reset(Reason::REFUSED_STREAM);
    };
    let (head, body) = request.into_parts();
    let waits = head.headers.get(http::header::EXPECT).is_some_and(|value| {
        value.as_bytes().eq_ignore_ascii_case(b"100-continue") && !body.is_end_stream()
    });
    let body = Rc::new(RefCell::new(body));
    match request_of(&head, payload_of(&body), peer) {
        Some(request) => {
            if waits {
                // Fails for a stream that has ended, which the answer will notice.
                let _ = respond.send_informational(go_on());
            }
            let (app, rules) = (Rc::clone(app), Arc::clone(rules));
            spawn(async move {
                answer(request, respond, open, &rules, app).await;
                throw_away(&body, rules.answer).await;
            });
        }
        None => respond.send_reset(Reason::PROTOCOL_ERROR),
    }
}

/// The body of a request, which its handler and its end share.
type Body = Rc<RefCell<RecvStream>>;

/// Says that the body may come (RFC 9110, section 10.1.1).
fn go_on() -> http::Response<()> {
    let mut head = http::Response::new(());
    *head.status_mut() = http::StatusCode::CONTINUE;
    head
}

/// Returns the request as those of HTTP/1.1 are. `None` if it cannot be one.
fn request_of(head: &http::request::Parts, body: Payload, peer: SocketAddr) -> Option<Request> {
    let mut request = Request::with_payload(body);
    request.extensions_mut().insert(Secure);
    let to = request.head_mut();
    to.method = Method::from_bytes(head.method.as_str().as_bytes()).ok()?;
    to.uri = Uri::try_from(head.uri.path_and_query()?.as_str()).ok()?;
    to.version = Version::HTTP_2;
    to.peer_addr = Some(peer);
    for (name, value) in &head.headers {
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
        to.headers.append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    if let Some(host) = head.uri.authority() {
        // RFC 9113, section 8.3.1.
        if host.as_str().contains('@') {
            return None;
        }
        to.headers.insert(HOST, HeaderValue::from_str(host.as_str()).ok()?);
    }
    Some(request)
}

fn payload_of(body: &Body) -> Payload {
    if body.borrow().is_end_stream() {
        return Payload::None;
    }
    let pieces = stream::unfold(Rc::clone(body), |body| async {
        let piece = next_piece(&body).await?;
        Some((piece.map_err(|error| PayloadError::Io(io::Error::other(error))), body))
    });
    Payload::Stream { payload: Box::pin(pieces) }
}

async fn next_piece(body: &Body) -> Option<Result<Bytes, h2::Error>> {
    let piece = poll_fn(|cx| body.borrow_mut().poll_data(cx)).await?;
    if let Ok(piece) = &piece {
        // Fails for a stream that has ended, which the next piece says.
        let _ = body.borrow_mut().flow_control().release_capacity(piece.len());
    }
    Some(piece)
}

/// Takes the rest of a body and throws it away, for a while and up to a bound.
async fn throw_away(body: &Body, patience: Duration) {
    let rest = async {
        let mut left = THROWN_AWAY;
        while left > 0
            && let Some(Ok(piece)) = next_piece(body).await
        {
            left = left.saturating_sub(piece.len());
        }
    };
    // Whatever is still to come is cancelled then.
    let _ = timeout(patience, rest).await;
}

/// Works on a request and sends its answer, unless the caller cancels it.
async fn answer<S>(
    request: Request,
    mut respond: SendResponse<Bytes>,
    mut open: Open,
    rules: &Rules,
    app: Rc<S>,
) where
    S: Service<Request, Response = Response<Answering>, Error = actix_web::Error> + 'static,
{
    let is_head = request.method() == Method::HEAD;
    let answered = tokio::select! {
        biased;
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
        answered = app.call(request) => answered,
    };
    let answer: Response<BoxBody> = match answered {
        Ok(answer) => answer.map_body(|_, body| body.boxed()),
        Err(error) => error.into(),
    };
    let (answer, body) = answer.into_parts();
    let size = body.size();
    let Some(head) = head_of(&answer, size, rules) else {
        return respond.send_reset(Reason::INTERNAL_ERROR);
    };
    let has_body = !is_head && !size.is_eof() && !is_without_body(answer.status());
    let Ok(stream) = respond.send_response(head, !has_body) else { return };
    open.is_answered = if has_body { send(body, stream, rules).await } else { true };
}

/// Statuses whose answers have no body (RFC 9110, section 6.4.1).
fn is_without_body(status: StatusCode) -> bool {
    status.is_informational()
        || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
}

/// Returns the head of an answer, without what only HTTP/1.1 says (RFC 9113, section 8.2.2).
fn head_of(answer: &Response<()>, size: BodySize, rules: &Rules) -> Option<http::Response<()>> {
    const OF_HTTP_1: [&HeaderName; 4] =
        [&CONNECTION, &TRANSFER_ENCODING, &UPGRADE, &CONTENT_LENGTH];
    let mut head = http::Response::new(());
    *head.status_mut() = http::StatusCode::from_u16(answer.status().as_u16()).ok()?;
    let headers = head.headers_mut();
    for (name, value) in answer.headers() {
        if !OF_HTTP_1.contains(&name) && name.as_str() != "keep-alive" {
            let name = http::HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
            headers.append(name, http::HeaderValue::from_bytes(value.as_bytes()).ok()?);
        }
    }
    if let BodySize::Sized(length) = size
        && !is_without_body(answer.status())
    {
        headers.insert(http::header::CONTENT_LENGTH, length.into());
    }
    if !answer.headers().contains_key(DATE) {
        let now = UNIX_EPOCH + Duration::from_secs(rules.clock.now().0);
        let date = HttpDate::from(now).to_string();
        headers.insert(http::header::DATE, http::HeaderValue::try_from(date).ok()?);
    }
    Some(head)
}

/// Sends a body. Returns whether the caller has taken all of it.
async fn send(mut body: BoxBody, mut to: SendStream<Bytes>, rules: &Rules) -> bool {
    let mut left = match body.size() {
        BodySize::Sized(length) => Some(length),
        _ => None,
    };
    loop {
        let piece = tokio::select! {
            biased;
            _ = poll_fn(|cx| to.poll_reset(cx)) => return false,
            piece = next_of(&mut body) => piece,
        };
        match piece {
            None => return to.send_data(Bytes::new(), true).is_ok(),
            Some(Ok(piece)) => {
                left = left.map(|left| left.saturating_sub(piece.len() as u64));
                if !send_piece(piece, &mut to, left == Some(0), rules).await {
                    return false;
                }
                if left == Some(0) {
                    return true;
                }
            }
            Some(Err(_)) => {
                to.send_reset(Reason::INTERNAL_ERROR);
                return false;
            }
        }
    }
}

async fn next_of(body: &mut BoxBody) -> Option<Result<Bytes, Box<dyn Error>>> {
    poll_fn(|cx| Pin::new(&mut *body).poll_next(cx)).await
}

/// Sends a piece of a body as fast as the caller takes it. Returns whether it has taken it in time.
async fn send_piece(
    mut piece: Bytes,
    to: &mut SendStream<Bytes>,
    is_last: bool,
    rules: &Rules,
) -> bool {
    let mut unread = Unread::begin();
    while !piece.is_empty() {
        to.reserve_capacity(piece.len());
        if to.capacity() == 0 {
            let end = unread.since + rules.answer;
            match timeout_at(end, poll_fn(|cx| to.poll_capacity(cx))).await {
                Ok(Some(Ok(_))) => {}
                Ok(_) => return false,
                Err(_) => {
                    rules.figures.unread_answer.inc();
                    to.send_reset(Reason::CANCEL);
                    return false;
                }
            }
        }
        let part = piece.split_to(to.capacity().min(piece.len()));
        unread.took(part.len());
        if to.send_data(part, is_last && piece.is_empty()).is_err() {
            return false;
        }
    }
    true
}
