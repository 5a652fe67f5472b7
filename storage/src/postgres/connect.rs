//! Connections to the database: its hosts, of which one is the primary, and a pool of connections.
//!
//! To connect, all hosts are asked at the same time, and the primary of the newest *timeline* is
//! used. Each promotion of a standby begins another timeline, so a primary that was left behind has
//! an older one and is never used again. As soon as a newer timeline is known, every connection to
//! an older one closes itself.

use super::tls::Tls;
use super::told;
use super::watched::{Socket, Watched, WatchedTls};
use crate::OpenError;
use crate::outage::Outage;
use deadpool_postgres::{
    Connect, Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts,
};
use socket2::{SockRef, TcpKeepalive};
use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::config::{Host, SslMode, SslNegotiation, TargetSessionAttrs};
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{
    AsyncMessage, Client, Config, Connection, Error, NoTls, SimpleQueryMessage, SimpleQueryRow,
};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Connections in the pool of one server: one follows the events of other servers, the others read.
const POOL: usize = 7;
/// The most connections of one server: those of the pool, one that commits, one that charges
/// limits, one that writes check-ins, one that tries whether commits succeed, one for upkeep.
pub(super) const CONNECTIONS: usize = POOL + 5;
/// How long connecting to one host may take if the URL does not say.
const CONNECT: Duration = Duration::from_secs(3);
/// How long to wait for the other hosts once a primary has answered. A primary of a newer timeline
/// answers as fast, and a stopped host does not answer at all.
const OTHERS: Duration = Duration::from_secs(1);
/// How long a reader waits for a connection before the store counts as unavailable.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long sent data may stay unacknowledged by the network.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// After this long without data a TCP keepalive is sent, so that firewalls and routers in between
/// do not drop the connection.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// The settings of every session. A server that stops in the middle of a transaction must not hold
/// its rows for long. Statements are planned once, and with indexes: a plan made while a table is
/// empty would otherwise scan the whole table once it is full. (Statements that join an array to a
/// table are planned again every few seconds: see `Planned`.)
const OPTIONS: &str = "-c idle_in_transaction_session_timeout=5000 -c timezone=UTC \
     -c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c jit=off";
/// The setting that the URL cannot override; it comes after the URL's options. A warning reports
/// that a wait for a standby was cancelled, so warnings must arrive.
const WARNINGS: &str = "-c client_min_messages=warning";
/// The first question to a host. Only a primary can be asked for its timeline. The start time tells
/// one server with two addresses from two servers.
const WHO: &str = "SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN 0 ELSE
         ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::integer END,
     pg_postmaster_start_time()::text, current_setting('default_transaction_read_only')";

/// When statements that join arrays to tables were last planned. The planner assumes ten values in
/// an array and the size that the table had then. A plan made while the table was nearly empty
/// would later scan the whole table for each value.
#[derive(Debug, Default)]
pub(super) struct Planned(Option<Instant>);

impl Planned {
    /// How long a plan may be used: a table does not grow by much in that time.
    const FOR: Duration = Duration::from_secs(5);

    /// Discards the plans of the connection if they are too old.
    pub(super) async fn anew(
        &mut self,
        client: &tokio_postgres::Client,
    ) -> Result<(), tokio_postgres::Error> {
        if self.0.is_none_or(|at| at.elapsed() >= Self::FOR) {
            client.batch_execute("DISCARD PLANS").await?;
            self.0 = Some(Instant::now());
        }
        Ok(())
    }
}

/// The purpose of a connection. It decides how long to wait for an answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Use {
    /// Reads, which callers wait for and soon repeat.
    Read,
    /// Commits. A caller must soon learn that a commit hangs, but a short absence of the standby
    /// must not make it fail.
    Commit,
    /// Changes to the schema and a new epoch, which touch many rows and wait for rows of other
    /// servers.
    Upkeep,
}

impl Use {
    /// Returns how long the database may send nothing while an answer is due.
    const fn patience(self) -> Duration {
        Duration::from_secs(match self {
            Self::Read => 5,
            Self::Commit => 10,
            Self::Upkeep => 600,
        })
    }

    /// Returns the session options by which the database gives up first. A statement that waits in
    /// vain for a row or a table has then certainly failed and leaves nothing behind. (A wait for a
    /// standby has no such limit.)
    const fn limits(self) -> &'static str {
        match self {
            Self::Read => "-c lock_timeout=4000 -c statement_timeout=60000",
            Self::Commit => "-c lock_timeout=8000 -c statement_timeout=60000",
            Self::Upkeep => "-c lock_timeout=0 -c statement_timeout=600000",
        }
    }
}

/// A host of the URL.
#[derive(Debug)]
struct Place {
    /// The host as shown to people.
    shown: String,
    reach: Reach,
    /// The name that its certificate must have.
    name: String,
    port: u16,
}

#[derive(Debug)]
enum Reach {
    Name(String),
    Address(IpAddr),
    /// The folder of a Unix socket.
    Folder(PathBuf),
}

/// The address of one server.
#[derive(Clone, Debug)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Place {
    /// Returns the hosts of a URL, in their order.
    fn all_of(config: &Config) -> Result<Vec<Self>, String> {
        let (hosts, addresses) = (config.get_hosts(), config.get_hostaddrs());
        let (count, ports) = (hosts.len().max(addresses.len()), config.get_ports());
        if count == 0 {
            return Err("it names no host".into());
        }
        if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
            return Err("host and hostaddr must name equally many".into());
        }
        if ports.len() > 1 && ports.len() != count {
            return Err("there must be one port, or one for each host".into());
        }
        let place = |number: usize| {
            let port = ports.get(number).or(ports.first()).copied().unwrap_or(5432);
            let (name, mut reach) = match hosts.get(number) {
                Some(Host::Tcp(name)) => (name.clone(), Reach::Name(name.clone())),
                Some(Host::Unix(folder)) => (String::new(), Reach::Folder(folder.clone())),
                None => (String::new(), Reach::Name(String::new())),
            };
            if let Some(address) = addresses.get(number) {
                reach = Reach::Address(*address);
            }
            let shown = match &reach {
                _ if name.contains(':') => format!("[{name}]:{port}"),
                Reach::Folder(folder) => format!("{}:{port}", folder.display()),
                Reach::Address(address) if name.is_empty() => {
                    SocketAddr::new(*address, port).to_string()
                }
                _ => format!("{name}:{port}"),
            };
            Self { shown, reach, name, port }
        };
        Ok((0..count).map(place).collect())
    }

    async fn addresses(&self) -> io::Result<Vec<Address>> {
        Ok(match &self.reach {
            Reach::Name(name) => {
                let found = tokio::net::lookup_host((name.as_str(), self.port)).await?;
                found.map(Address::Tcp).collect()
            }
            Reach::Address(address) => vec![Address::Tcp(SocketAddr::new(*address, self.port))],
            Reach::Folder(folder) => {
                vec![Address::Unix(folder.join(format!(".s.PGSQL.{}", self.port)))]
            }
        })
    }
}

impl Address {
    async fn dial(&self) -> io::Result<Socket> {
        Ok(match self {
            Self::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
            Self::Tcp(address) => {
                let socket = TcpStream::connect(address).await?;
                socket.set_nodelay(true)?;
                let options = SockRef::from(&socket);
                options.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
                #[cfg(target_os = "linux")]
                options.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
                Socket::Tcp(socket)
            }
        })
    }
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Line {
    /// The host as shown to people.
    pub(super) host: String,
    address: Address,
    /// The name that its certificate must have.
    name: String,
    /// The timeline of its primary; 0 until it is known.
    timeline: AtomicU32,
    /// Whether a wait for a standby was cancelled since the last [`Self::take_cancelled`].
    cancelled: AtomicBool,
    /// Why the connection ended.
    ended: OnceLock<String>,
}

impl Line {
    pub(super) fn timeline(&self) -> u32 {
        self.timeline.load(Ordering::Relaxed)
    }

    /// Returns whether a commit ended without its standby since the last call: an operator or the
    /// end of the database cancelled the wait. Such a commit is visible, and may be lost with a
    /// failover.
    pub(super) fn take_cancelled(&self) -> bool {
        self.cancelled.swap(false, Ordering::Relaxed)
    }

    /// Returns the same, and leaves it as it is.
    pub(super) fn was_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Returns why the connection ended, if that is known.
    pub(super) fn why_it_ended(&self) -> Option<&str> {
        self.ended.get().map(String::as_str)
    }

    /// Checks whether a notice reports a cancelled wait. The name of the waiting function is the
    /// same in every language of the database. A warning without a function name counts as a
    /// cancelled wait.
    fn heed(&self, notice: &DbError) {
        let of_wait = notice.routine().is_none_or(|routine| routine == "SyncRepWaitForLSN");
        if of_wait && notice.parsed_severity() == Some(Severity::Warning) {
            tracing::debug!(host = self.host, notice = notice.message(), "the database warns");
            self.cancelled.store(true, Ordering::Relaxed);
        }
    }
}

/// Runs one connection until it ends or its primary was left behind. After that nothing more is
/// sent to it.
async fn drive<S, T>(
    mut connection: Connection<S, T>,
    line: Arc<Line>,
    mut newest: watch::Receiver<u32>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let why = loop {
        tokio::select! {
            biased;
            changed = newest.changed() => {
                let (newest, own) = (*newest.borrow(), line.timeline());
                if changed.is_err() || (own > 0 && own < newest) {
                    break format!("{} was left behind by timeline {newest}", line.host);
                }
            }
            message = poll_fn(|context| connection.poll_message(context)) => match message {
                Some(Ok(AsyncMessage::Notice(notice))) => line.heed(&notice),
                Some(Ok(_)) => {}
                Some(Err(error)) => break told(&error),
                None => return,
            },
        }
    };
    tracing::debug!(host = line.host, why, "a connection to the database has ended");
    let _ = line.ended.set(why);
}

/// A connection to a primary.
pub(super) struct Found {
    pub(super) client: Client,
    pub(super) driver: JoinHandle<()>,
    pub(super) line: Arc<Line>,
    /// Identifies the server, whatever its address.
    instance: String,
}

/// The answer of a host.
pub(super) enum Answer {
    /// A primary that accepts commits.
    Primary(Found),
    /// A primary that is set to read-only.
    ReadOnly,
    Standby,
    /// It accepts the connection and does not answer.
    Silent,
    /// Nothing is reachable at its address.
    Unreached(String),
    /// It refuses this server.
    Refused(String),
}

/// The answer of one host.
pub(super) struct Seen {
    /// Its position among the hosts of the URL.
    place: usize,
    pub(super) host: String,
    pub(super) is: Answer,
}

impl Seen {
    /// Returns a sentence that describes the host.
    pub(super) fn words(&self) -> String {
        let host = &self.host;
        match &self.is {
            Answer::Primary(found) => {
                format!("{host} is the primary of timeline {}", found.line.timeline())
            }
            Answer::ReadOnly => {
                format!("{host} is a primary with default_transaction_read_only = on")
            }
            Answer::Standby => format!("{host} is a standby"),
            Answer::Silent => {
                format!("{host} accepts connections and does not answer: the server hangs")
            }
            Answer::Unreached(why) | Answer::Refused(why) => format!("{host} {why}"),
        }
    }
}

/// The advice if no host is a primary and one is a standby.
pub(super) const PROMOTE: &str = "make sure that the old primary is shut off, and then promote the standby (pg_ctl promote, or \
     SELECT pg_promote())";

/// Says why a primary is not used whose timeline is older than one that was seen.
pub(super) fn left_behind(host: &str, timeline: u32, newest: u32) -> String {
    format!(
        "{host} is a primary of timeline {timeline}, and timeline {newest} has been seen: a standby \
         was promoted, and this one was left behind. Shut it down and make it a standby of the new \
         primary. Only where it was restored on purpose: stop all servers and run `iptunnel-server \
         fence`"
    )
}

/// Finds the database and connects to it.
pub(super) struct Connector {
    places: Vec<Place>,
    config: Config,
    tls: Option<MakeRustlsConnect>,
    /// How long one host may take until a connection has come about.
    end: Duration,
    /// The highest timeline that was ever seen; 0 while none was.
    newest: watch::Sender<u32>,
    /// How many hosts were primaries when they were last asked.
    primaries: AtomicU32,
    away: Outage,
    split: Outage,
}

impl Connector {
    /// Makes a connector from a URL in libpq's format.
    ///
    /// # Errors
    /// What is wrong with the URL. The text never contains the URL, which may contain a password.
    pub(super) fn to(url: &str) -> Result<Arc<Self>, OpenError> {
        let wrong = |problem: String| OpenError::Engine(format!("storage.url: {problem}"));
        let (url, tls) = Tls::take_from(url).map_err(wrong)?;
        let mut config: Config = url.parse().map_err(|error: Error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            wrong(cause.unwrap_or_else(|| error.to_string()))
        })?;
        if config.get_target_session_attrs() == TargetSessionAttrs::ReadOnly {
            return Err(wrong("target_session_attrs must be any or read-write".into()));
        }
        config.ssl_mode(tls.mode());
        config.application_name("iptunnel-server");
        Ok(Arc::new(Self {
            places: Place::all_of(&config).map_err(wrong)?,
            end: config.get_connect_timeout().copied().unwrap_or(CONNECT),
            config,
            tls: tls.connector().map_err(wrong)?,
            newest: watch::Sender::new(0),
            primaries: AtomicU32::new(0),
            away: Outage::new("the database is away", "the database is back"),
            split: Outage::new(
                "several hosts of storage.url are primaries",
                "one host of storage.url is the primary",
            ),
        }))
    }

    /// The highest timeline that was ever seen; 0 while none was.
    pub(super) fn newest(&self) -> u32 {
        *self.newest.borrow()
    }

    /// How many hosts were primaries when they were last asked.
    pub(super) fn primaries(&self) -> u32 {
        self.primaries.load(Ordering::Relaxed)
    }

    /// From now on no primary of a timeline older than `timeline` is used. Returns the highest that
    /// is known.
    pub(super) fn know(&self, timeline: u32) -> u32 {
        let mut newest = 0;
        self.newest.send_if_modified(|known| {
            let news = timeline > *known;
            *known = timeline.max(*known);
            newest = *known;
            news
        });
        newest
    }

    /// Makes a pool of connections to the primary.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn pool(self: &Arc<Self>, of: Use) -> Result<Pool, OpenError> {
        let connector = PoolConnector { connector: Arc::clone(self), of };
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_connect(self.config.clone(), connector, recycling);
        let timeouts = Timeouts {
            wait: Some(PATIENCE),
            // The connector has a time limit of its own.
            create: Some(self.end * 2),
            recycle: Some(PATIENCE),
        };
        let size = if matches!(of, Use::Upkeep) { 1 } else { POOL };
        // A closed connection is dropped without a log line: the outage was logged.
        let is_open = Hook::sync_fn(|client: &mut deadpool_postgres::ClientWrapper, _| {
            if client.is_closed() { Err(HookError::message("it has ended")) } else { Ok(()) }
        });
        let pool = Pool::builder(manager).max_size(size).timeouts(timeouts).pre_recycle(is_open);
        pool.runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| OpenError::Engine(format!("storage.url: {error}")))
    }

    /// Connects to the primary of the newest timeline.
    ///
    /// # Errors
    /// The state of each host, and what to do.
    pub(super) async fn connect(self: &Arc<Self>, of: Use) -> Result<Found, String> {
        let found = self.choose(self.survey(of, Some(OTHERS)).await);
        match &found {
            Ok(_) => self.away.ends(),
            Err(why) => {
                self.away.begins(why);
            }
        }
        found
    }

    /// Asks all hosts at the same time for their state. Once one is a primary, the others get
    /// `others` more time, or less if they have all finished.
    pub(super) async fn survey(self: &Arc<Self>, of: Use, others: Option<Duration>) -> Vec<Seen> {
        let (answers, mut heard) = mpsc::unbounded_channel();
        // Dropping the set when this returns stops the questions still under way.
        let mut asked = JoinSet::new();
        for place in 0..self.places.len() {
            asked.spawn(Arc::clone(self).ask(place, of, answers.clone()));
        }
        drop(answers);
        let (mut seen, mut until) = (Vec::<Seen>::new(), None);
        loop {
            let next = match until {
                None => heard.recv().await,
                Some(until) => timeout_at(until, heard.recv()).await.unwrap_or(None),
            };
            let Some(next) = next else { break };
            if let (Answer::Primary(_), Some(others), None) = (&next.is, others, until) {
                until = Some(Instant::now() + others);
            }
            seen.push(next);
        }
        seen.sort_by_key(|seen| seen.place);
        // A name may have addresses at which no server runs.
        let there: HashSet<usize> =
            seen.iter().filter(|seen| seen.is_there()).map(|seen| seen.place).collect();
        seen.retain(|seen| seen.is_there() || !there.contains(&seen.place));
        seen
    }

    /// Asks a host for its state, at all of its addresses.
    async fn ask(self: Arc<Self>, place: usize, of: Use, answers: mpsc::UnboundedSender<Seen>) {
        let Some(host) = self.places.get(place) else { return };
        let until = Instant::now() + self.end;
        let tell = {
            let shown = host.shown.clone();
            move |is: Answer| answers.send(Seen { place, host: shown.clone(), is })
        };
        let addresses = match timeout_at(until, host.addresses()).await {
            Ok(Ok(addresses)) if !addresses.is_empty() => addresses,
            Ok(Err(error)) => {
                let _ = tell(Answer::Unreached(format!("has no address: {error}")));
                return;
            }
            _ => {
                let _ = tell(Answer::Unreached("has no address that could be found".into()));
                return;
            }
        };
        let mut asked = JoinSet::new();
        for address in addresses {
            let (way, tell) = (Arc::clone(&self), tell.clone());
            asked.spawn(async move {
                let _ = tell(way.ask_at(place, address, of, until).await);
            });
        }
        while asked.join_next().await.is_some() {}
    }

    async fn ask_at(&self, place: usize, address: Address, of: Use, until: Instant) -> Answer {
        let socket = match timeout_at(until, address.dial()).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let words = "refuses connections: no database runs there";
                return Answer::Unreached(words.into());
            }
            Ok(Err(error)) => return Answer::Unreached(format!("cannot be reached: {error}")),
            Err(_) => {
                let words = "does not answer: it is off, or this machine cannot reach it";
                return Answer::Unreached(words.into());
            }
        };
        let greeted = timeout_at(until, self.greet(place, address, socket, of)).await;
        match greeted {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => Answer::Refused(format!("refuses this server: {why}")),
            Err(_) => Answer::Silent,
        }
    }

    async fn greet(
        &self,
        place: usize,
        address: Address,
        socket: Socket,
        of: Use,
    ) -> Result<Answer, String> {
        let Some(Place { shown, name, .. }) = self.places.get(place) else {
            return Err("the host does not exist".into());
        };
        let line = Arc::new(Line {
            host: shown.clone(),
            address,
            name: name.clone(),
            timeline: AtomicU32::new(0),
            cancelled: AtomicBool::new(false),
            ended: OnceLock::new(),
        });
        let spoken = match &self.tls {
            None => self.speak(socket, NoTls, line, of).await,
            Some(tls) => {
                let tls = MakeTlsConnect::<Socket>::make_tls_connect(&mut tls.clone(), name);
                let tls = tls.map_err(|error| error.to_string())?;
                self.speak(socket, WatchedTls { tls, patience: of.patience() }, line, of).await
            }
        };
        spoken.map_err(|error| told(&error))
    }

    async fn speak<T>(
        &self,
        socket: Socket,
        tls: T,
        line: Arc<Line>,
        of: Use,
    ) -> Result<Answer, Error>
    where
        T: TlsConnect<Watched<Socket>>,
        T::Stream: Send + 'static,
    {
        let mut config = self.config.clone();
        let own = config.get_options().map(|own| format!(" {own}")).unwrap_or_default();
        config.options(format!("{OPTIONS} {}{own} {WARNINGS}", of.limits()));
        // The request for TLS is answered by one byte.
        let asks = self.tls.is_some() && config.get_ssl_negotiation() == SslNegotiation::Postgres;
        let watched = Watched::new(socket, of.patience(), usize::from(asks));
        let (client, connection) = config.connect_raw(watched, tls).await?;
        let driver = tokio::spawn(drive(connection, Arc::clone(&line), self.newest.subscribe()));
        let said = client.simple_query(WHO).await?;
        let row = said.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let value = |place: usize| row.and_then(|row: &SimpleQueryRow| row.get(place));
        if value(0) != Some("f") {
            return Ok(Answer::Standby);
        }
        if value(3) == Some("on") {
            return Ok(Answer::ReadOnly);
        }
        let timeline = value(1).and_then(|timeline| timeline.parse().ok()).unwrap_or_default();
        line.timeline.store(timeline, Ordering::Relaxed);
        let instance = value(2).unwrap_or_default().to_owned();
        Ok(Answer::Primary(Found { client, driver, line, instance }))
    }

    /// Records which hosts are primaries and the newest timeline among them. Returns the primaries,
    /// the one of the newest timeline first.
    fn heed(&self, seen: Vec<Seen>) -> Vec<Found> {
        let silent = seen.iter().any(|seen| matches!(seen.is, Answer::Silent));
        let hosts: HashSet<usize> = seen.iter().map(|seen| seen.place).collect();
        let all_have_answered = !silent && hosts.len() == self.places.len();
        let primaries = primaries_of(seen);
        self.primaries.store(primaries.len() as u32, Ordering::Relaxed);
        if primaries.len() > 1 {
            self.split.begins(&several(&primaries));
        } else if all_have_answered {
            self.split.ends();
        }
        let (before, newest) = (self.newest(), primaries.first());
        if let Some(Line { host, timeline, .. }) = newest.map(|found| &*found.line) {
            let timeline = timeline.load(Ordering::Relaxed);
            if self.know(timeline) > before && before > 0 {
                tracing::warn!(host, timeline, "a standby was promoted: its database is used now");
            }
        }
        primaries
    }

    /// Checks whether another host has become a primary, even if no connection has broken.
    pub(super) async fn look_around(self: &Arc<Self>) {
        if self.places.len() > 1 {
            self.heed(self.survey(Use::Read, None).await);
        }
    }

    /// Returns the primary of the newest timeline among those that were found.
    fn choose(&self, seen: Vec<Seen>) -> Result<Found, String> {
        let standby = seen.iter().any(|seen| matches!(seen.is, Answer::Standby));
        let words: Vec<String> = seen.iter().map(Seen::words).collect();
        let mut primaries = self.heed(seen);
        if primaries.is_empty() {
            let advice = if standby { format!(": {PROMOTE}") } else { String::new() };
            return Err(format!("no host is a primary ({}){advice}", words.join("; ")));
        }
        let found = primaries.remove(0);
        let (timeline, newest) = (found.line.timeline(), self.newest());
        if timeline < newest {
            return Err(left_behind(&found.line.host, timeline, newest));
        }
        if primaries.first().is_some_and(|other| other.line.timeline() == timeline) {
            primaries.insert(0, found);
            return Err(format!("nobody can tell which is the right one: {}", several(&primaries)));
        }
        Ok(found)
    }

    /// Asks the database to cancel what a connection waits for.
    pub(super) async fn cancel(&self, found: &Found) {
        let token = found.client.cancel_token();
        let cancelled = async {
            let socket = found.line.address.dial().await.ok()?;
            match &self.tls {
                None => token.cancel_query_raw(socket, NoTls).await.ok(),
                Some(tls) => {
                    let name = &found.line.name;
                    let tls = MakeTlsConnect::<Socket>::make_tls_connect(&mut tls.clone(), name);
                    token.cancel_query_raw(socket, tls.ok()?).await.ok()
                }
            }
        };
        let _ = timeout(OTHERS, cancelled).await;
    }
}

impl Seen {
    fn is_there(&self) -> bool {
        !matches!(self.is, Answer::Unreached(_))
    }
}

/// Says that there are several primaries, which they are, and what to do.
pub(super) fn several(primaries: &[Found]) -> String {
    let shown =
        |found: &Found| format!("{} of timeline {}", found.line.host, found.line.timeline());
    let shown: Vec<String> = primaries.iter().map(shown).collect();
    format!("{} hosts are primaries: {}", shown.len(), shown.join(", "))
}

/// Returns the primaries among those that were found, each server once, the one of the newest
/// timeline first.
pub(super) fn primaries_of(seen: Vec<Seen>) -> Vec<Found> {
    let mut primaries: Vec<Found> = seen
        .into_iter()
        .filter_map(|seen| match seen.is {
            Answer::Primary(found) => Some(found),
            _ => None,
        })
        .collect();
    let mut instances = HashSet::new();
    primaries.retain(|found| instances.insert(found.instance.clone()));
    primaries.sort_by_key(|found| std::cmp::Reverse(found.line.timeline()));
    primaries
}

/// Makes the connections of a pool.
struct PoolConnector {
    connector: Arc<Connector>,
    of: Use,
}

type Connecting<'a> =
    Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), Error>> + Send + 'a>>;

impl Connect for PoolConnector {
    fn connect(&self, _: &Config) -> Connecting<'_> {
        Box::pin(async move {
            match self.connector.connect(self.of).await {
                Ok(found) => Ok((found.client, found.driver)),
                Err(why) => nowhere(why).await,
            }
        })
    }
}

/// Makes an error with a text of ours: the library builds its errors only from socket errors.
async fn nowhere(why: String) -> Result<(Client, JoinHandle<()>), Error> {
    let mut config = Config::new();
    config.user("nobody").ssl_mode(SslMode::Disable);
    let (client, connection) = config.connect_raw(Socket::Nowhere(why), NoTls).await?;
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok((client, driver))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_its_password() {
        for (url, words) in [
            ("postgres://u:geheim@h/d?sslmode=maybe", "sslmode must be"),
            ("postgres://u:geheim@h/d?sslmode=verify-full", "sslrootcert"),
            ("postgres://u:geheim@h:port/d", "storage.url"),
            ("postgres://u:geheim@h/d?nonsense=1", "nonsense"),
            ("postgres://u:geheim@h/d?sslmode=verify-ca&sslrootcert=/none", "/none"),
        ] {
            let error = Connector::to(url).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(words) && !error.contains("geheim"), "{url}: {error}");
        }
    }

    #[test]
    fn several_hosts_and_all_modes_are_taken() {
        for query in [
            "",
            "?sslmode=disable",
            "?sslmode=allow",
            "?sslmode=prefer&target_session_attrs=read-write",
            "?target_session_attrs=read-write&sslmode=require",
        ] {
            let way = Connector::to(&format!("postgres://u:p@h1:5432,h2:5433/d{query}")).unwrap();
            let hosts: Vec<_> = way.places.iter().map(|place| place.shown.as_str()).collect();
            assert_eq!(hosts, ["h1:5432", "h2:5433"], "{query}");
        }
    }
}
