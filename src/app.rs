//! The composition root: what exists, in which order it begins, and in which order it ends.

use crate::config::{Config, ConfigError, Layers, Loaded};
use crate::http::caller::{Proxies, RequestIds};
use crate::http::metrics::HttpMetrics;
use crate::operator::console::Console;
use crate::operator::health::refuse_unknown_hosts;
use crate::operator::history::History;
use crate::operator::{self, signed_heads};
use crate::os::{Clock, NoRandomness, random_bytes, seeded_generator};
use crate::public::around::around;
use crate::public::{self, ROUTES, reference};
use crate::secrets::SecretError;
use crate::state::State;
use crate::state::live::Live;
use crate::state::settings::{OnChange, Settings};
use crate::state::watchers::Watchers;
use crate::store::cluster::{Cluster, Figures, agree};
use crate::store::error::StoreError;
use crate::store::{files, watermark};
use actix_web::dev::{Server, ServerHandle};
use actix_web::http::header::X_CONTENT_TYPE_OPTIONS;
use actix_web::middleware::{DefaultHeaders, from_fn};
use actix_web::rt::spawn;
use actix_web::web::Data;
use actix_web::{App, HttpServer};
use iptunnel_actors::{Dependencies, Handles, Health, Metrics, StartError};
use iptunnel_domain::audit::Action;
use iptunnel_storage::{Disks, Store};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

/// What the server is made of and cannot make itself: a test gives it other things than `main`.
pub struct Environment {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The disks beneath the embedded store.
    pub disks: Disks,
    /// Where the public listens in.
    pub public: TcpListener,
    /// Where operators do.
    pub admin: TcpListener,
}

/// What the outside world asks of a running server.
pub enum Signal {
    /// Finish what was accepted, and end.
    Stop,
    /// Read the configuration again: whatever may change at run time changes.
    Reload(Box<dyn FnOnce() -> Result<Layers, ConfigError> + Send>),
}

/// Why the server could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What was configured contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A secret could not be read or made.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The store cannot be worked with.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The actors could not be started.
    #[error(transparent)]
    Actors(#[from] StartError),
    /// The operating system has no randomness.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// A listener could not be used.
    #[error("the server cannot listen: {0}")]
    Listen(#[from] std::io::Error),
    /// Something happened after which only a new start is safe.
    #[error("the server has to be started again: {0}")]
    Fatal(String),
}

/// How often actors are told the time.
const TICK: Duration = Duration::from_millis(200);
/// A connection without a request is closed after this long.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// The head of a request must be there after this long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Threads that serve operators: one may wait for a slow reader of a long export.
const OPERATORS_WORKERS: usize = 2;
/// How long the last head of the audit log and the store's mark are waited for.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long a server that cannot go on is given to hand out its last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Runs the server until it is told to stop, or cannot go on.
///
/// `started` is called once requests are answered.
///
/// # Errors
/// Where it could not start, or must be started again.
pub async fn run(
    layers: Layers,
    environment: Environment,
    mut signals: mpsc::Receiver<Signal>,
    on_change: OnChange,
    started: impl FnOnce(),
) -> Result<(), RunError> {
    let running = start(layers, environment, on_change)?;
    started();
    tracing::info!(public = %running.public.address, admin = %running.admin.address, "the server is up");
    let ended = serve(&running.state, &mut signals).await;
    stop(running, ended).await
}

/// A server that runs.
struct Running {
    state: Data<State>,
    console: Data<Console>,
    /// Where the store is, and beside it its mark.
    path: PathBuf,
    public: Listener,
    admin: Listener,
    /// What goes on beside requests.
    tasks: Vec<JoinHandle<()>>,
    /// What notes how far the server has come.
    notes: [JoinHandle<()>; 2],
}

/// A listener, and what serves it.
struct Listener {
    address: std::net::SocketAddr,
    handle: ServerHandle,
    serving: JoinHandle<std::io::Result<()>>,
}

/// Makes everything: the store, which knows what operators have changed; the values in force; the
/// actors; what both listeners share; the listeners; and what goes on beside them.
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
    let path = base.storage.path.clone();
    let store = open_store(&base, disks, &*clock)?;
    let kept = store.settings().map_err(StoreError::from)?;
    let loaded = with_kept(&layers, kept.clone())?;
    on_change(&loaded.config);
    let live = Arc::new(Live::begin(loaded.config.clone())?);
    agree(store.as_ref(), &live.lookup)?;
    let health = Arc::new(Health::default());
    let handles = start_actors(store, &live, &health, &mut registry, &*clock)?;
    let settings = Settings::new(
        (layers, kept),
        &loaded,
        on_change,
        Arc::clone(&live),
        Arc::clone(&handles),
        Arc::clone(&clock),
    );
    let state = Data::new(State {
        handles,
        settings: Arc::new(settings),
        clock,
        health,
        proxies: Proxies(loaded.config.server.trusted_proxies.clone()),
        request_ids: RequestIds::starting_at(u64::from_be_bytes(random_bytes()?)),
        watchers: Arc::new(Watchers::default()),
        metrics: HttpMetrics::new(&mut registry, &ROUTES),
        live,
    });
    let console = console_of(&state, registry);
    let tasks = go_on_beside(&state, &console, figures);
    let admin = listen(operators_server(admin, console.clone())?, admin_address);
    let public = listen(public_server(public, &state)?, public_address);
    let mark = watermark::keep(Arc::clone(state.handles.store()), path.clone(), epoch);
    let notes = [spawn(signed_heads::keep(console.clone())), spawn(mark)];
    Ok(Running { state, console, path, public, admin, tasks, notes })
}

/// Waits for the end, reloading on the way.
async fn serve(state: &State, signals: &mut mpsc::Receiver<Signal>) -> Result<(), RunError> {
    loop {
        tokio::select! {
            reason = state.health.failed() => return Err(RunError::Fatal(reason)),
            signal = signals.recv() => match signal {
                Some(Signal::Reload(read)) => state.settings.reload(read).await,
                Some(Signal::Stop) | None => return Ok(()),
            },
        }
    }
}

/// The way out: no new requests, then the actors in the order of their messages, then whoever only
/// watched.
async fn stop(running: Running, ended: Result<(), RunError>) -> Result<(), RunError> {
    let Running { state, console, path, public, admin, tasks, notes } = running;
    let (handles, grace) = (&state.handles, state.live.config.load().server.shutdown_grace);
    state.health.drain();
    state.watchers.close();
    tasks.iter().for_each(JoinHandle::abort);
    tracing::info!("the server is finishing what it accepted");
    // After a failure whoever waits has been answered: that has to reach them.
    let patience = if ended.is_ok() { grace } else { LAST_ANSWERS.min(grace) };
    if tokio::time::timeout(patience, public.handle.stop(true)).await.is_err() {
        public.handle.stop(false).await;
    }
    notes.iter().for_each(JoinHandle::abort);
    let store = Arc::clone(handles.store());
    let last_words = async {
        let mark = move || watermark::keep_now(store.as_ref(), &path);
        let _ = actix_web::web::block(mark).await;
        signed_heads::note_now(&console).await;
    };
    // They can be had another time; what was accepted cannot.
    let _ = tokio::time::timeout(LAST_WORDS.min(grace), last_words).await;
    let synced = tokio::time::timeout(grace, handles.stop()).await.is_ok();
    if !synced {
        handles.abandon();
    }
    admin.handle.stop(false).await;
    public.serving.abort();
    admin.serving.abort();
    if !synced {
        return Err(RunError::Fatal("the store did not sync in time".into()));
    }
    tracing::info!("everything is on disk");
    ended
}

/// The store, held against its mark.
fn open_store(
    config: &Config,
    disks: Disks,
    clock: &dyn Clock,
) -> Result<Arc<dyn Store>, StoreError> {
    let store = files::open(config, disks)?;
    watermark::check(store.as_ref(), &config.storage.path, clock.now())?;
    Ok(store)
}

/// The configuration with what operators have changed, as far as that still counts.
fn with_kept(layers: &Layers, kept: Vec<(String, String)>) -> Result<Loaded, ConfigError> {
    let loaded = layers.with_kept(Vec::new(), kept)?;
    for problem in &loaded.left_out {
        tracing::warn!(problem, "an operator's earlier change does not count any more");
    }
    Ok(loaded)
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

/// As many requests at once as the shortest queue holds.
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

fn console_of(state: &Data<State>, registry: Registry) -> Data<Console> {
    Data::new(Console {
        state: state.clone(),
        registry: Arc::new(registry),
        sessions: Default::default(),
        history: Arc::new(History::default()),
        signed: Default::default(),
    })
}

/// What goes on beside requests: the actors' time, the console's charts, and on a shared store what
/// other servers do.
fn go_on_beside(state: &Data<State>, console: &Console, figures: Figures) -> Vec<JoinHandle<()>> {
    let (health, registry) = (Arc::clone(&state.health), Arc::clone(&console.registry));
    let settings_changed = follow_the_store(state);
    let history = Arc::clone(&console.history);
    let mut tasks = vec![
        spawn(tick(Arc::clone(&state.handles), Arc::clone(&state.clock))),
        spawn(history.keep(registry, Arc::clone(&health))),
    ];
    let store = Arc::clone(state.handles.store());
    if store.shared().is_some() {
        let allow_async_failover = state.live.config.load().storage.allow_async_failover;
        let clock = Arc::clone(&state.clock);
        let cluster = Cluster { store, clock, health, figures, allow_async_failover };
        tasks.push(spawn(cluster.watch()));
        tasks.push(spawn(Arc::clone(&state.settings).keep_following(settings_changed)));
    }
    tasks
}

/// Tells whoever wants to know what the store's change feed says. Rings what is returned when
/// settings have changed.
fn follow_the_store(state: &State) -> Arc<Notify> {
    let settings_changed = Arc::new(Notify::new());
    let (watchers, handles) = (Arc::clone(&state.watchers), Arc::clone(&state.handles));
    let (health, changed) = (Arc::clone(&state.health), Arc::clone(&settings_changed));
    let shared = state.handles.store().shared().is_some();
    state.handles.store().follow(Box::new(move |event| {
        watchers.tell(event);
        handles.heard(event);
        match event.action {
            Action::SettingChanged => changed.notify_one(),
            // What memory holds may be ahead of a store that has become an earlier one.
            Action::StoreFenced if shared => health.fail("a new epoch has begun"),
            _ => {}
        }
    }));
    settings_changed
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

fn public_server(socket: TcpListener, state: &Data<State>) -> std::io::Result<Server> {
    let (state, config) = (state.clone(), state.live.config.load_full());
    let (limits, workers) = (config.server.clone(), config.server.workers.get());
    let reference = Data::new(reference::of(&config));
    let server = HttpServer::new(move || {
        App::new()
            .app_data(state.clone())
            .app_data(reference.clone())
            .wrap(from_fn(around))
            .configure(|routes| public::routes(routes, &config.products))
    });
    Ok(server
        .workers(workers)
        .max_connections(limits.max_connections.get().div_ceil(workers))
        .backlog(4096)
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(HEAD_TIMEOUT)
        .shutdown_timeout(limits.shutdown_grace.as_secs())
        .disable_signals()
        .listen(socket)?
        .run())
}

fn operators_server(socket: TcpListener, console: Data<Console>) -> std::io::Result<Server> {
    let server = HttpServer::new(move || {
        App::new()
            .app_data(console.clone())
            .wrap(from_fn(refuse_unknown_hosts))
            .wrap(DefaultHeaders::new().add((X_CONTENT_TYPE_OPTIONS, "nosniff")))
            .configure(operator::routes)
    });
    Ok(server.workers(OPERATORS_WORKERS).disable_signals().listen(socket)?.run())
}
