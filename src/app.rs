//! The composition root: creates all parts of the server, starts them in order and stops them in order.

use crate::config::{self, Config, ConfigError, Layers, Loaded};
use crate::http::around::{Observer, around};
use crate::http::caller::{Proxies, RequestIds, UntrustedProxies};
use crate::http::connection::places::Places;
use crate::http::connection::{
    self, Figures as ConnectionFigures, Rules, Size, Sockets, descriptors,
};
use crate::http::metrics::HttpMetrics;
use crate::http::tls::files::{FileError, Files};
use crate::http::tls::{self, Certificates, Tls};
use crate::operator::console::Console;
use crate::operator::health::{Readiness, bodies_arrive_in_time, refuse_unknown_hosts};
use crate::operator::history::History;
use crate::operator::kept_file::KeptFile;
use crate::operator::now::Looks;
use crate::operator::sessions::Sessions;
use crate::operator::socket::{self, SocketError, SocketFile};
use crate::operator::{self, signed_heads};
use crate::os::{Clock, NoRandomness, random_bytes, seeded_generator};
use crate::private_file::Beside;
use crate::public::reference::Reference;
use crate::public::scripts::Scripts;
use crate::public::setup::Installers;
use crate::public::{self, ROUTES};
use crate::secrets::{SecretError, lookup_key};
use crate::state::State;
use crate::state::access::AccessTokens;
use crate::state::attention::Attention;
use crate::state::backups::{self, Backups};
use crate::state::live::Live;
use crate::state::settings::{OnChange, Settings};
use crate::state::tickets::TicketTimes;
use crate::state::watchers::Watchers;
use crate::state::wrong_tokens::{self, WrongTokens};
use crate::store::agreement::agree;
use crate::store::cluster::{Cluster, Figures};
use crate::store::error::StoreError;
use crate::store::examine::warn_of_open_folders;
use crate::store::{files, watermark};
use crate::webhooks::{self, Webhooks};
use actix_web::App;
use actix_web::dev::{Server, ServerHandle};
use actix_web::http::header::HeaderValue;
use actix_web::middleware::from_fn;
use actix_web::rt::spawn;
use actix_web::web::Data;
use iptunnel_actors::{Dependencies, Handles, Health, Metrics, StartError};
use iptunnel_domain::audit::Action;
use iptunnel_domain::lookup::LookupKey;
use iptunnel_storage::{Disks, Store};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

/// The dependencies that the caller provides. Tests provide others than the program.
pub struct Environment {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The disks beneath the embedded store.
    pub disks: Disks,
    /// The socket of the public listener.
    pub public: TcpListener,
    /// The socket of the operators' listener.
    pub admin: TcpListener,
}

/// A signal to a running server.
pub enum Signal {
    /// Finish accepted requests and shut down.
    Stop,
    /// Read the configuration again, and apply the changes that need no restart.
    Reload(Box<dyn FnOnce() -> Result<Layers, ConfigError> + Send>),
}

/// The reasons why the server cannot start or must stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A secret cannot be read or created.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The actors cannot be started.
    #[error(transparent)]
    Actors(#[from] StartError),
    /// The operating system gives no random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// The socket for the command line cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The certificate of a listener cannot be used.
    #[error(transparent)]
    Certificate(#[from] FileError),
    /// The file of the webhooks cannot be used.
    #[error("{0}")]
    Webhooks(String),
    /// A listener cannot be used.
    #[error("the server cannot listen: {0}")]
    Listen(#[from] std::io::Error),
    /// A failure after which the server must be restarted.
    #[error("the server stopped and must be restarted: {0}")]
    Fatal(String),
}

/// The interval at which the actors receive the time.
const TICK: Duration = Duration::from_millis(200);
/// Threads that serve operators. Two, because a slow reader of a long export may block one.
const OPERATORS_WORKERS: usize = 2;
/// The most connections of operators. They are few, and Prometheus is one of them.
const OPERATORS_CONNECTIONS: usize = 512;
/// The time that operators' requests have to finish at a shutdown. The listener is the last to stop.
const OPERATORS_GRACE: Duration = Duration::from_secs(1);
/// The longest time at shutdown to write the last head of the audit log and the store's mark.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// The longest time to send the last answers after a failure.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Runs the server until a signal stops it or a failure occurs.
///
/// Calls `started` as soon as the server answers requests. The secrets must exist:
/// [`first_start::make_secrets`](crate::store::first_start::make_secrets) comes first.
///
/// # Errors
/// The server cannot start, or must be restarted.
pub async fn run(
    layers: Layers,
    environment: Environment,
    mut signals: mpsc::Receiver<Signal>,
    on_change: OnChange,
    started: impl FnOnce(),
) -> Result<(), RunError> {
    let running = start(layers, environment, on_change)?;
    started();
    tracing::info!(public = %running.public.address, admin = %running.admin.address, "the server is running");
    let ended = serve(&running, &mut signals).await;
    stop(running, ended).await
}

/// A running server.
struct Running {
    state: Data<State>,
    console: Data<Console>,
    /// The path of the store. Its mark is beside it.
    path: PathBuf,
    public: Listener,
    admin: Listener,
    /// The socket for the command line.
    socket: Option<SocketFile>,
    certificates: Arc<Certificates>,
    /// The background tasks.
    tasks: Vec<JoinHandle<()>>,
    /// The tasks that write the store's mark and the signed heads of the audit log.
    notes: [JoinHandle<()>; 2],
}

/// A listener with the server that serves it.
struct Listener {
    address: std::net::SocketAddr,
    handle: ServerHandle,
    serving: JoinHandle<std::io::Result<()>>,
}

/// Creates and starts everything, in this order: the store, which holds the operators' changes; the
/// live values; the actors; the state that both listeners share; the background tasks; the listeners.
fn start(
    layers: Layers,
    environment: Environment,
    on_change: OnChange,
) -> Result<Running, RunError> {
    let Environment { clock, disks, public, admin } = environment;
    let (public_address, admin_address) = (public.local_addr()?, admin.local_addr()?);
    let mut registry = Registry::with_prefix("iptunnel");
    let (figures, epoch) = (Figures::new(&mut registry), store_epoch(&mut registry));
    clock.set_backs().register(&mut registry);

    let base = layers.with(&[])?.config;
    descriptors::provide(base.server.max_connections.get().saturating_add(OPERATORS_CONNECTIONS));
    let path = base.storage.path.clone();
    warn_of_open_folders(&base);
    tls::examine::warn(&base, clock.now());
    let certificates = Arc::new(certificates(&base, &mut registry, &*clock)?);
    let lookup = lookup_key(&base.auth.lookup_key_file)?;
    let store = open_store(&base, disks, &lookup, &*clock)?;
    let (commands, socket) = socket::of_server(&base)?.unzip();
    let kept = store.settings().map_err(StoreError::from)?;
    let tokens = store.access_tokens().map_err(StoreError::from)?;
    let loaded = with_kept(&layers, kept.clone())?;
    on_change(&loaded.config);
    let live = Arc::new(Live::begin(loaded.config.clone(), lookup)?);
    let health = Arc::new(Health::default());
    registry.register_collector(Box::new(Readiness(Arc::clone(&health))));
    let handles = start_actors(store, &live, &health, &mut registry, &*clock)?;
    let settings = Settings::new(
        (layers, kept),
        &loaded,
        on_change,
        Arc::clone(&live),
        Arc::clone(&handles),
        Arc::clone(&clock),
    );
    let access =
        AccessTokens::new(tokens, Arc::clone(&live), Arc::clone(&handles), Arc::clone(&clock));
    let ended = ConnectionFigures::new(&mut registry);
    let backups = Backups::new(Arc::clone(&clock), &mut registry);
    let (webhooks, queue) =
        Webhooks::open(&base.webhooks.file, &mut registry).map_err(RunError::Webhooks)?;
    let state = Data::new(State {
        backups,
        handles,
        access: Arc::new(access),
        settings: Arc::new(settings),
        clock,
        health,
        proxies: Proxies(loaded.config.server.trusted_proxies.clone()),
        tickets: TicketTimes::default(),
        watchers: Arc::new(Watchers::default()),
        attention: Arc::new(Attention::default()),
        webhooks,
        wrong_tokens: WrongTokens::new(&mut registry),
        troubles: Arc::default(),
        live,
    });
    let observed = observers(&state, &mut registry)?;
    let console = console_of(&state, registry);
    let mut tasks = start_background_tasks(&state, &console, figures);
    let (store, clock) = (Arc::clone(state.handles.store()), Arc::clone(&state.clock));
    webhooks::start(&state.webhooks, queue, store, clock, wrong_tokens::is_told)?;
    tasks.push(spawn(Arc::clone(&certificates).keep(Arc::clone(&state.clock))));
    let admin = Sockets { tcp: admin, commands };
    let admin = listen(
        operators_server(
            (admin, certificates.operators.clone()),
            observed.operators,
            console.clone(),
            ended.clone(),
        )?,
        admin_address,
    );
    let public = (public, certificates.public.clone());
    let public = listen(public_server(public, observed.public, &state, ended)?, public_address);
    let mark = watermark::keep(Arc::clone(state.handles.store()), path.clone(), epoch);
    let notes = [spawn(signed_heads::keep(console.clone())), spawn(mark)];
    Ok(Running { state, console, path, public, admin, socket, certificates, tasks, notes })
}

/// Waits for a signal to stop or for a failure, and reloads the configuration at each signal to do so.
async fn serve(running: &Running, signals: &mut mpsc::Receiver<Signal>) -> Result<(), RunError> {
    let state = &running.state;
    loop {
        tokio::select! {
            reason = state.health.failed() => return Err(RunError::Fatal(reason)),
            signal = signals.recv() => match signal {
                Some(Signal::Reload(read)) => {
                    state.settings.reload(read).await;
                    running.certificates.reload(state.clock.now());
                }
                Some(Signal::Stop) | None => return Ok(()),
            },
        }
    }
}

/// Shuts down: first the public listener, then the actors in the order of their messages, then the
/// operators' listener, which only observes.
async fn stop(running: Running, ended: Result<(), RunError>) -> Result<(), RunError> {
    let Running { state, console, path, public, admin, socket, tasks, notes, .. } = running;
    let (handles, grace) = (&state.handles, state.live.config.load().server.shutdown_grace);
    state.health.drain();
    state.watchers.close();
    state.backups.stop();
    tasks.iter().for_each(JoinHandle::abort);
    tracing::info!("the server is shutting down and finishes accepted requests");
    // After a failure all waiting requests are already answered: only the answers remain to be sent.
    let patience = if ended.is_ok() { grace } else { LAST_ANSWERS.min(grace) };
    if tokio::time::timeout(patience, public.handle.stop(true)).await.is_err() {
        public.handle.stop(false).await;
    }
    notes.iter().for_each(JoinHandle::abort);
    let store = Arc::clone(handles.store());
    let webhooks = Arc::clone(&state.webhooks);
    let last_words = async {
        let mark = move || watermark::keep_now(store.as_ref(), &path);
        let _ = actix_web::web::block(mark).await;
        state.access.write_uses().await;
        state.keep_last_wrong_tokens().await;
        signed_heads::note_now(&console).await;
        Console::keep_files_now(&console).await;
        let _ = actix_web::web::block(move || webhooks.stop()).await;
    };
    // The mark and the head can be written later; accepted changes must be synced now.
    let _ = tokio::time::timeout(LAST_WORDS.min(grace), last_words).await;
    let synced = tokio::time::timeout(grace, handles.stop()).await.is_ok();
    if !synced {
        handles.abandon();
    }
    drop(socket);
    admin.handle.stop(false).await;
    public.serving.abort();
    admin.serving.abort();
    if !synced {
        return Err(RunError::Fatal("the store did not sync in time".into()));
    }
    tracing::info!("all accepted changes are on disk");
    ended
}

/// Opens the store, and checks it against the lookup key and against its mark. A new epoch must not
/// begin because the key is wrong.
fn open_store(
    config: &Config,
    disks: Disks,
    lookup: &LookupKey,
    clock: &dyn Clock,
) -> Result<Arc<dyn Store>, StoreError> {
    let store = files::open(config, disks)?;
    agree(store.as_ref(), lookup, &config.auth.lookup_key_file)?;
    watermark::check(store.as_ref(), &config.storage.path, clock.now())?;
    Ok(store)
}

/// Returns the configuration with those operators' changes that are still valid. Logs the others.
fn with_kept(layers: &Layers, kept: Vec<(String, String)>) -> Result<Loaded, ConfigError> {
    let loaded = layers.with_kept(Vec::new(), kept)?;
    for problem in &loaded.left_out {
        tracing::warn!(
            problem,
            "an operator's earlier change is no longer valid and has no effect"
        );
    }
    Ok(loaded)
}

/// Reads the certificates of the listeners that speak HTTPS.
fn certificates(
    config: &Config,
    registry: &mut Registry,
    clock: &dyn Clock,
) -> Result<Certificates, FileError> {
    let figures = tls::Figures::new(registry);
    let open = |files: Option<Files>| {
        files.map(|files| Tls::open(files, &figures, clock.now()).map(Arc::new)).transpose()
    };
    let (public, operators) = (Files::of_public(config), Files::of_operators(config));
    Ok(Certificates { public: open(public)?, operators: open(operators)? })
}

fn start_actors(
    store: Arc<dyn Store>,
    live: &Live,
    health: &Arc<Health>,
    registry: &mut Registry,
    clock: &dyn Clock,
) -> Result<Arc<Handles>, RunError> {
    Ok(iptunnel_actors::start(Dependencies {
        store,
        tuning: Arc::clone(&live.tuning),
        permits: permits(&live.config.load()),
        health: Arc::clone(health),
        observed: Metrics::new(registry),
        random: seeded_generator()?,
        lookup_key: live.lookup.clone(),
        now: clock.now(),
    })?)
}

/// Returns how many requests may be processed at once: the length of the shortest queue.
fn permits(config: &Config) -> usize {
    let actors = &config.actors;
    let queues = [
        actors.code_registry.queue,
        actors.activation.queue,
        actors.rate_limiter.queue,
        actors.server_registry.queue,
        actors.persistence.queue,
    ];
    queues.into_iter().min().unwrap_or(1)
}

/// The observers of both listeners.
struct Observers {
    public: Data<Observer>,
    operators: Data<Observer>,
}

/// Returns the value of `Strict-Transport-Security`. It is for all ports of the host, so there is none where
/// browsers are to use plain HTTP.
fn hsts(server: &config::Server) -> Option<HeaderValue> {
    let value = HeaderValue::try_from(format!("max-age={}", server.hsts.as_secs()));
    value.ok().filter(|_| server.public_url.is_https())
}

fn observers(state: &State, registry: &mut Registry) -> Result<Observers, NoRandomness> {
    let hsts = hsts(&state.live.config.load().server);
    let observer = |listener, proxies, untrusted_proxies, metrics| {
        let request_ids = RequestIds::starting_at(u64::from_be_bytes(random_bytes()?));
        let health = Arc::clone(&state.health);
        Ok(Data::new(Observer {
            listener,
            proxies,
            untrusted_proxies,
            request_ids,
            metrics,
            health,
            hsts: hsts.clone(),
        }))
    };
    let untrusted_proxies = UntrustedProxies::default();
    untrusted_proxies.register(registry);
    let public = HttpMetrics::new(registry, &ROUTES);
    let operators = registry.sub_registry_with_prefix("operators");
    let operators = HttpMetrics::new(operators, &operator::ROUTES);
    Ok(Observers {
        public: observer("public", state.proxies.clone(), Some(untrusted_proxies), public)?,
        // No proxy is in front of the operators' listener.
        operators: observer("operators", Proxies::default(), None, operators)?,
    })
}

fn console_of(state: &Data<State>, registry: Registry) -> Data<Console> {
    let store = state.live.config.load().storage.path.clone();
    let kept = |beside| KeptFile::of(&store, beside, state.live.lookup.clone());
    let charts = kept(Beside::Charts);
    let epoch = state.handles.store().watermark().unwrap_or_default().epoch;
    let history = History::after(&charts.read().unwrap_or_default(), state.clock.now());
    Data::new(Console {
        state: state.clone(),
        registry: Arc::new(registry),
        looks: Looks::default(),
        sessions: Arc::new(Sessions::kept_in(kept(Beside::Sessions), epoch)),
        history: Arc::new(history),
        charts: Mutex::new(charts),
        started: Instant::now(),
        signed: Default::default(),
    })
}

/// Starts the background tasks: the actors' ticks, the history for the console's charts and, with a
/// shared store, the tasks that follow the store and the other servers.
fn start_background_tasks(
    state: &Data<State>,
    console: &Data<Console>,
    figures: Figures,
) -> Vec<JoinHandle<()>> {
    let (health, registry) = (Arc::clone(&state.health), Arc::clone(&console.registry));
    let (settings_changed, tokens_changed) = follow_the_store(state, &console.sessions);
    let history = Arc::clone(&console.history);
    let mut tasks = vec![
        spawn(tick(Arc::clone(&state.handles), Arc::clone(&state.clock))),
        spawn(history.keep(registry, Arc::clone(&health))),
        spawn(Console::keep_files(console.clone())),
        spawn(keep_wrong_tokens(state.clone())),
        spawn(keep_token_uses(state.clone())),
        spawn(read_attention(state.clone())),
        spawn(backups::keep(state.clone())),
    ];
    let store = Arc::clone(state.handles.store());
    if store.shared().is_some() {
        let allow_async_failover = state.live.config.load().storage.allow_async_failover;
        let clock = Arc::clone(&state.clock);
        let live = Arc::clone(&state.live);
        let secrets = Box::new(move || live.in_common());
        let troubles = Arc::clone(&state.troubles);
        let cluster =
            Cluster { store, clock, health, figures, allow_async_failover, secrets, troubles };
        tasks.push(spawn(cluster.watch()));
        tasks.push(spawn(Arc::clone(&state.settings).keep_following(settings_changed)));
        tasks.push(spawn(Arc::clone(&state.access).keep_following(tokens_changed)));
    }
    tasks
}

/// Forwards the store's change feed to the watching pages and the actors. Returns notifications that fire
/// when settings and when access tokens have changed.
fn follow_the_store(state: &State, sessions: &Arc<Sessions>) -> (Arc<Notify>, Arc<Notify>) {
    let sessions = Arc::clone(sessions);
    let (settings_changed, tokens_changed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let of_tokens = Arc::clone(&tokens_changed);
    let (watchers, handles) = (Arc::clone(&state.watchers), Arc::clone(&state.handles));
    let (health, changed) = (Arc::clone(&state.health), Arc::clone(&settings_changed));
    let (attention, webhooks) = (Arc::clone(&state.attention), Arc::clone(&state.webhooks));
    let shared = state.handles.store().shared().is_some();
    state.handles.store().follow(Box::new(move |event| {
        watchers.tell(event);
        attention.hear(event);
        webhooks.hear(event);
        handles.heard(event);
        match event.action {
            Action::SettingChanged => changed.notify_one(),
            // Here it has ended already, unless its file was copied from another server.
            Action::SessionEnded => {
                sessions.end(&event.subject);
            }
            Action::TokenCreated
            | Action::TokenChanged
            | Action::TokenRotated
            | Action::TokenRevoked => of_tokens.notify_one(),
            // The cache may be ahead of a store that was set back to an earlier state.
            Action::StoreFenced if shared => health.fail("a new epoch has begun"),
            _ => {}
        }
    }));
    (settings_changed, tokens_changed)
}

async fn keep_wrong_tokens(state: Data<State>) {
    state.keep_wrong_tokens().await;
}

/// Reads what needs a person from the log of the last day.
async fn read_attention(state: Data<State>) {
    let (attention, now) = (Arc::clone(&state.attention), state.clock.now());
    let health = Arc::clone(&state.health);
    let goes_on = move || !health.is_draining() && !health.has_failed();
    // A store that cannot be read has been logged.
    let _ = state.read_store(move |store| attention.read(store, now, goes_on)).await;
}

async fn keep_token_uses(state: Data<State>) {
    state.access.keep_uses().await;
}

async fn tick(handles: Arc<Handles>, clock: Arc<dyn Clock>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        handles.tick(clock.now());
    }
}

fn store_epoch(registry: &mut Registry) -> Gauge {
    let epoch = Gauge::default();
    let help = "Grows where the store was found to lack what had been acknowledged";
    registry.register("store_epoch", help, epoch.clone());
    epoch
}

fn listen(server: Server, address: std::net::SocketAddr) -> Listener {
    Listener { address, handle: server.handle(), serving: spawn(server) }
}

/// Returns the rules for connections of a listener.
fn rules(
    state: &State,
    observer: &Data<Observer>,
    places: Places,
    ended: ConnectionFigures,
    tls: Option<Arc<Tls>>,
) -> Rules {
    let server = state.live.config.load().server.clone();
    let times = (server.request_timeout, server.idle_timeout);
    Rules::new(times, places, ended, observer.clone(), tls, Arc::clone(&state.clock))
}

fn public_server(
    (socket, tls): (TcpListener, Option<Arc<Tls>>),
    observer: Data<Observer>,
    state: &Data<State>,
    ended: ConnectionFigures,
) -> std::io::Result<Server> {
    let (state, config) = (state.clone(), state.live.config.load_full());
    let limits = &config.server;
    let size = Size {
        workers: limits.workers.get(),
        connections: limits.max_connections.get(),
        grace: limits.shutdown_grace,
    };
    let of_one = limits.max_connections_per_ip.get();
    let places = Places::new(of_one, size.connections, state.proxies.clone());
    let rules = rules(&state, &observer, places, ended, tls);
    let reference = Data::new(Reference::of(config.clone()));
    let scripts = Data::new(Scripts::default());
    let installers = Data::new(Installers::of(&config));
    connection::serve(Sockets::tcp(socket), size, rules, move || {
        App::new()
            .app_data(state.clone())
            .app_data(observer.clone())
            .app_data(reference.clone())
            .app_data(scripts.clone())
            .app_data(installers.clone())
            .wrap(from_fn(around))
            .configure(|routes| public::routes(routes, &config.products))
    })
}

fn operators_server(
    (sockets, tls): (Sockets, Option<Arc<Tls>>),
    observer: Data<Observer>,
    console: Data<Console>,
    ended: ConnectionFigures,
) -> std::io::Result<Server> {
    let connections = OPERATORS_CONNECTIONS;
    let size = Size { workers: OPERATORS_WORKERS, connections, grace: OPERATORS_GRACE };
    let places = Places::new(connections, connections, Proxies::default());
    let rules = rules(&console.state, &observer, places, ended, tls);
    connection::serve(sockets, size, rules, move || {
        App::new()
            .app_data(console.clone())
            .app_data(observer.clone())
            .wrap(from_fn(bodies_arrive_in_time))
            .wrap(from_fn(refuse_unknown_hosts))
            .wrap(from_fn(around))
            .configure(operator::routes)
    })
}
