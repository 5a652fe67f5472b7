//! Connections: nobody holds what others need.
//!
//! * [`places`]: how many connections one network may hold
//! * [`stream`]: the deadlines of a connection, and the parser's refusals in the form of all others
//!   ([`refusal`]); [`progress`]: what the stream and the requests above it know of each other, with
//!   [`framing`], which tells heads from bodies
//! * [`wire`]: TCP with or without TLS; [`http_2`]: HTTP/2, which only TLS brings
//! * [`requests`]: around every request, what HTTP asks of a server
//! * [`descriptors`]: the limit of open files

pub mod descriptors;
pub mod framing;
mod http_2;
pub mod places;
mod progress;
mod refusal;
mod requests;
mod stream;
mod wire;

use super::around::Observer;
use super::tls::Tls;
use crate::os::Clock;
use actix_http::error::DispatchError;
use actix_http::{Extensions, HttpService, KeepAlive, Request};
use actix_service::{
    IntoServiceFactory, ServiceFactoryExt, apply_fn_factory, fn_factory, fn_service, map_config,
};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Response, Server, Service, ServiceFactory};
use actix_web::rt::net::{TcpStream, UnixStream};
use actix_web::web::Data;
use places::Places;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use socket2::SockRef;
use std::fmt::Debug;
use std::future::ready;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use stream::{ENOUGH, Stream};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use wire::Wire;

/// Connections that wait to be accepted. The kernel allows fewer where `net.core.somaxconn` is lower.
const BACKLOG: i32 = 4096;
/// Connections for commands, beside those on the network. Commands come one by one.
const COMMANDS: usize = 64;
/// The longest time until the head of a request has arrived. An operator may allow less for a whole
/// request.
const LONGEST_HEAD: Duration = Duration::from_secs(10);
/// The time in which the rest of a body is read and thrown away after its request was refused, so that
/// the caller gets the refusal.
const LINGER: Duration = Duration::from_secs(1);

/// The first byte of a TLS connection: a handshake (RFC 8446, section 5.1).
const TLS_BEGINS: u8 = 22;
/// The bytes of a request without TLS that are looked at: enough for its path.
const PLAIN: usize = 128;

/// The rules for the connections of one listener.
pub struct Rules {
    /// The longest time from the first byte of a head to its last.
    head: Duration,
    /// The longest time between two requests.
    idle: Duration,
    /// The longest time in which a caller takes nothing of its answer.
    answer: Duration,
    places: Arc<Places>,
    figures: Figures,
    observer: Data<Observer>,
    /// The certificate. `None`: plain HTTP.
    tls: Option<Arc<Tls>>,
    clock: Arc<dyn Clock>,
}

impl Debug for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { head, idle, answer, .. } = self;
        f.debug_struct("Rules")
            .field("head", head)
            .field("idle", idle)
            .field("answer", answer)
            .finish()
    }
}

impl Rules {
    /// Makes the rules. `deadline` is that of a request: each of its parts ends within it. So does the
    /// handshake of TLS together with the beginning of the first head.
    pub fn new(
        (deadline, idle): (Duration, Duration),
        places: Places,
        figures: Figures,
        observer: Data<Observer>,
        tls: Option<Arc<Tls>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (head, places) = (deadline.min(LONGEST_HEAD), Arc::new(places));
        Self { head, idle, answer: deadline, places, figures, observer, tls, clock }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    why: &'static str,
}

/// Counters of connections that the server ends.
#[derive(Clone, Debug)]
pub struct Figures {
    no_place: Counter,
    slow_head: Counter,
    unread_answer: Counter,
    handshake: Counter,
    cancelled: Counter,
}

impl Figures {
    /// Makes the counters and registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let family = Family::<Why, Counter>::default();
        let help = "Connections that the server ended: no_place (the network holds as many as one may), \
                    slow_head, unread_answer, handshake (TLS failed, or the caller spoke none), cancelled \
                    (it has cancelled too many requests over HTTP/2)";
        registry.register("connections_ended", help, family.clone());
        let of = |why| family.get_or_create_owned(&Why { why });
        Self {
            no_place: of("no_place"),
            slow_head: of("slow_head"),
            unread_answer: of("unread_answer"),
            handshake: of("handshake"),
            cancelled: of("cancelled"),
        }
    }
}

/// The sockets of one listener.
#[derive(Debug)]
pub struct Sockets {
    /// For callers on the network.
    pub tcp: TcpListener,
    /// For commands on the machine itself; nobody else can open it, so it has no deadlines.
    pub commands: Option<UnixListener>,
}

impl Sockets {
    /// A listener for callers on the network alone.
    pub const fn tcp(tcp: TcpListener) -> Self {
        Self { tcp, commands: None }
    }
}

/// The mark of a connection for commands: its caller may use the server's files.
#[derive(Clone, Copy, Debug)]
pub struct Administrator;

/// The size of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Threads that serve its connections.
    pub workers: usize,
    /// The most open connections.
    pub connections: usize,
    /// The time that accepted requests have to finish at a shutdown.
    pub grace: Duration,
}

/// Serves an application on sockets.
///
/// # Errors
/// A socket cannot be used.
pub fn serve<F, A, S, B>(sockets: Sockets, size: Size, rules: Rules, app: F) -> io::Result<Server>
where
    F: Fn() -> A + Send + Clone + 'static,
    A: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig, Error = actix_web::Error> + 'static,
    S::InitError: Debug,
    S::Response: Into<Response<B>> + 'static,
    S::Service: 'static,
    <S::Service as Service<Request>>::Future: 'static,
    B: MessageBody + 'static,
{
    let Sockets { tcp, commands } = sockets;
    SockRef::from(&tcp).listen(BACKLOG)?;
    let rules = Arc::new(rules);
    // Whoever fills the places on the network must not keep commands out.
    let connections = size.connections + if commands.is_some() { COMMANDS } else { 0 };
    let server = Server::build()
        .workers(size.workers)
        .max_concurrent_connections(connections.div_ceil(size.workers))
        .shutdown_timeout(size.grace.as_secs())
        .disable_signals();
    let signal = server.graceful_shutdown_signal();
    let shutdown = move || {
        let signal = signal.clone();
        async move { signal.notified().await }
    };
    let app = move || {
        let app = map_config(app().into_factory(), |()| AppConfig::default());
        apply_fn_factory(app, requests::call::<S::Service, B>)
    };
    let server = match commands {
        None => server,
        Some(commands) => {
            let (app, shutdown) = (app.clone(), shutdown.clone());
            server.listen_uds("commands", commands, move || {
                let http = HttpService::build()
                    .graceful_shutdown_signal(shutdown.clone())
                    .on_connect_ext(|_: &UnixStream, data: &mut Extensions| {
                        data.insert(Administrator);
                    })
                    .h1(app());
                fn_service(|unix: UnixStream| ready(Ok((unix, None)))).and_then(http)
            })?
        }
    };
    let factory = move || {
        let (rules, app, shutdown) = (Arc::clone(&rules), app.clone(), shutdown.clone());
        fn_factory(move || {
            let (rules, app, shutdown) = (Arc::clone(&rules), app(), shutdown.clone());
            async move {
                // Both versions of HTTP share one.
                let app = app.new_service(()).await;
                let app = Rc::new(app.map_err(|error| tracing::error!(?error, "no service"))?);
                let of_http_1 = Rc::clone(&app);
                let http_1 = HttpService::build()
                    .graceful_shutdown_signal(shutdown.clone())
                    // The stream has the timers for this: those of the parser end with the first head.
                    .keep_alive(KeepAlive::Os)
                    .client_request_timeout(Duration::ZERO)
                    .client_disconnect_timeout(LINGER)
                    .on_connect_ext(|stream: &Stream, data: &mut Extensions| {
                        data.insert(stream.progress());
                    })
                    .h1(fn_factory(move || ready(Ok::<_, ()>(Rc::clone(&of_http_1)))))
                    .new_service(())
                    .await;
                let http_1 = Rc::new(http_1?);
                Ok::<_, ()>(fn_service(move |tcp: TcpStream| {
                    let (rules, app, http_1) =
                        (Arc::clone(&rules), Rc::clone(&app), Rc::clone(&http_1));
                    let (is_draining, drains) = (shutdown(), shutdown());
                    async move {
                        let admitted = tokio::select! {
                            biased;
                            admitted = admit(tcp, &rules) => admitted?,
                            // Nobody has asked for anything yet.
                            () = drains => return Ok(()),
                        };
                        let (stream, peer, begun) = match admitted {
                            Some(admitted) => admitted,
                            None => return Ok(()),
                        };
                        if stream.is_http_2() {
                            // In a box, so that other connections need no room for it.
                            Box::pin(http_2::serve(stream, (peer, begun), rules, app, is_draining))
                                .await;
                            return Ok(());
                        }
                        http_1.call((stream, Some(peer))).await
                    }
                }))
            }
        })
    };
    Ok(server.listen("http", tcp, factory)?.run())
}

/// Gives a new connection its place, or closes it. Then shakes hands, where the listener speaks TLS. `None`: it
/// has ended.
async fn admit(
    tcp: TcpStream,
    rules: &Arc<Rules>,
) -> Result<Option<(Stream, SocketAddr, Instant)>, DispatchError> {
    let peer = tcp.peer_addr().map_err(DispatchError::Io)?;
    let Some(place) = rules.places.take(peer.ip()) else {
        rules.figures.no_place.inc();
        return Err(DispatchError::Io(io::ErrorKind::QuotaExceeded.into()));
    };
    let begun = Instant::now();
    let new = |wire| Stream::new(wire, Arc::clone(rules), place, begun);
    let Some(tls) = &rules.tls else { return Ok(Some((new(Wire::Plain(tcp)), peer, begun))) };
    match timeout_at(begun + rules.head, Box::pin(shake_hands(tcp, tls))).await {
        Ok(Ok(Shaken::Tls(wire))) => return Ok(Some((new(wire), peer, begun))),
        Ok(Ok(Shaken::Plain(tcp, beginning))) => {
            rules.figures.handshake.inc();
            new(Wire::Plain(tcp)).ask_for_tls(&beginning).await;
        }
        // Whoever only looks whether somebody listens closes at once.
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Ok(Err(error)) => {
            rules.figures.handshake.inc();
            tracing::debug!(%error, "a TLS handshake has failed");
        }
        Err(_) => {
            rules.figures.slow_head.inc();
        }
    }
    Ok(None)
}

/// How a handshake went.
enum Shaken {
    Tls(Wire),
    /// The caller does not speak TLS. It has sent this much, which is not taken from the connection.
    Plain(TcpStream, Vec<u8>),
}

async fn shake_hands(tcp: TcpStream, tls: &Tls) -> io::Result<Shaken> {
    let mut beginning = [0; PLAIN];
    let length = tcp.peek(&mut beginning).await?;
    let beginning = beginning.get(..length).unwrap_or_default();
    if beginning.first().is_some_and(|first| *first != TLS_BEGINS) {
        return Ok(Shaken::Plain(tcp, beginning.to_owned()));
    }
    let mut stream = TlsAcceptor::from(tls.config()).accept(tcp).await?;
    stream.get_mut().1.set_buffer_limit(Some(ENOUGH));
    Ok(Shaken::Tls(Wire::Tls(Box::new(stream))))
}
