//! The composition root: what exists, in which order it begins, and in which order it ends.

use crate::config::{Backend, Config, ConfigError, Layers};
use crate::http::caller::{Proxies, RequestIds};
use crate::http::metrics::HttpMetrics;
use crate::operator::console::Console;
use crate::operator::health::{AdminState, refuse_unknown_hosts};
use crate::operator::history::History;
use crate::operator::{self, signed_heads};
use crate::os::{Clock, NoRandomness, random_bytes, seeded_generator};
use crate::public::around::around;
use crate::public::{self, ROUTES, reference};
use crate::secrets::{SecretError, SigningFile, lookup_key};
use crate::state::settings::{OnChange, Tuner};
use crate::state::watchers::Watchers;
use crate::state::{State, master_hash, tuning_of};
use crate::store::cluster::{Figures, agree, share};
use crate::store::watermark::{self, MarkError};
use crate::tokens::Tokens;
use actix_web::dev::ServerHandle;
use actix_web::http::header::X_CONTENT_TYPE_OPTIONS;
use actix_web::middleware::{DefaultHeaders, from_fn};
use actix_web::web::Data;
use actix_web::{App, HttpServer};
use arc_swap::ArcSwap;
use iptunnel_actors::{Handles, Health, Observed, Parts, StartError};
use iptunnel_domain::audit::Action;
use iptunnel_storage::{
    Disks, FileDisk, JournaledStore, OpenDisk, OpenError, PostgresStore, ReadError, Store,
};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// What the server is made of and cannot make itself: a test gives it other things than `main`.
pub struct Surroundings {
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
    /// What the store holds could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A secret could not be read or made.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The store could not be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// What the store must hold could not be read.
    #[error(transparent)]
    Mark(#[from] MarkError),
    /// The actors could not be started.
    #[error(transparent)]
    Actors(#[from] StartError),
    /// The operating system has no randomness.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// Another server on the same store has other keys.
    #[error(
        "auth.lookup_key_file: this is not the key of the other servers on this database: copy the \
         files of [auth] from one of them"
    )]
    OtherKey,
    /// A listener could not be used.
    #[error("the server cannot listen: {0}")]
    Listen(#[from] std::io::Error),
    /// Something happened after which only a new start is safe.
    #[error("the server has to be started again: {0}")]
    Fatal(String),
}

/// The store's files: the one at `path`, and its journal beside it.
pub fn files(path: &Path) -> Disks {
    Disks { rows: file_disk(path.to_owned()), journal: file_disk(beside(path, ".journal")) }
}

/// The file beside the one at `path`, whose name goes on with `ending`.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn file_disk(path: PathBuf) -> OpenDisk {
    Box::new(move || Ok(Box::new(FileDisk::open(&path)?)))
}

/// The store that is configured. Where it is cannot be changed from within it.
pub fn open_store(config: &Config, disks: Disks) -> Result<Arc<dyn Store>, OpenError> {
    Ok(match config.storage.backend {
        Backend::Redb => Arc::new(JournaledStore::open(disks)?),
        Backend::Postgres => Arc::new(PostgresStore::open(&config.storage.url)?),
    })
}

/// How often actors are told the time.
const TICK: Duration = Duration::from_millis(200);
/// A connection without a request is closed after this long.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// The head of a request must be there after this long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the server until it is told to stop, or cannot go on.
///
/// `started` is called once requests are answered.
///
/// # Errors
/// Where it could not start, or must be started again.
pub async fn run(
    layers: Layers,
    surroundings: Surroundings,
    mut signals: mpsc::Receiver<Signal>,
    on_change: OnChange,
    started: impl FnOnce(),
) -> Result<(), RunError> {
    let Surroundings { clock, disks, public: public_socket, admin: admin_socket } = surroundings;
    let mut registry = Registry::with_prefix("iptunnel");
    let (figures, epoch) = (Figures::new(&mut registry), store_epoch(&mut registry));
    clock.set_backs().register(&mut registry);

    // The store, which knows what operators have changed; then secrets; then the actors.
    let base = layers.with(&[])?.config;
    let store = open_store(&base, disks)?;
    watermark::check(store.as_ref(), &base.storage.path, clock.now())?;
    let kept = store.settings()?;
    let loaded = layers.with_kept(Vec::new(), kept.clone())?;
    for problem in &loaded.left_out {
        tracing::warn!(problem, "an operator's earlier change does not count any more");
    }
    let config = loaded.config.clone();
    on_change(&config);
    let tuner = Tuner::new(layers, kept, &loaded, on_change);
    let lookup = lookup_key(&config.auth.lookup_key_file)?;
    let tokens = Tokens::new(&SigningFile::read_or_make(&config.auth.signing_key_file)?);
    let master = master_hash(&config, &lookup)?;
    agree(store.as_ref(), &lookup)?;
    let health = Arc::new(Health::default());
    let tuning = Arc::new(ArcSwap::from_pointee(tuning_of(&config)));
    let handles = iptunnel_actors::start(Parts {
        store,
        tuning: Arc::clone(&tuning),
        permits: permits(&config),
        health: Arc::clone(&health),
        observed: Observed::new(&mut registry),
        random: seeded_generator()?,
        lookup_key: lookup.clone(),
        now: clock.now(),
    })?;

    // The edge.
    let watchers = Arc::new(Watchers::default());
    let (told, hearing) = (Arc::clone(&watchers), Arc::clone(&handles));
    let resettle = Arc::new(Notify::new());
    let settings_changed = Arc::clone(&resettle);
    let (fenced, shared) = (Arc::clone(&health), handles.store().shared().is_some());
    handles.store().follow(Box::new(move |event| {
        told.tell(event);
        hearing.heard(event);
        match event.action {
            Action::SettingChanged => settings_changed.notify_one(),
            // What memory holds may be ahead of a store that has become an earlier one.
            Action::StoreFenced if shared => fenced.fail("a new epoch has begun"),
            _ => {}
        }
    }));
    let (server, grace) = (config.server.clone(), config.server.shutdown_grace);
    let state = Data::new(State {
        handles: Arc::clone(&handles),
        tuner,
        tuning,
        tokens: ArcSwap::from_pointee(tokens),
        master: ArcSwap::from_pointee(master),
        lookup,
        clock: Arc::clone(&clock),
        health: Arc::clone(&health),
        proxies: Proxies(server.trusted_proxies.clone()),
        request_ids: RequestIds::starting_at(u64::from_be_bytes(random_bytes()?)),
        watchers,
        metrics: HttpMetrics::new(&mut registry, &ROUTES),
        config: ArcSwap::from_pointee(config),
    });
    let bind = admin_socket.local_addr()?;
    let registry = Arc::new(registry);
    let history = Arc::new(History::default());
    let sampler = Arc::clone(&history).keep(Arc::clone(&registry), Arc::clone(&health));
    let sampler = actix_web::rt::spawn(sampler);
    let console = Console {
        state: state.clone(),
        sessions: Default::default(),
        history,
        signed: Default::default(),
    };
    let console = Data::new(console);
    let admin = operators_server(admin_socket, Arc::clone(&health), registry, console.clone())?;
    let admin_handle = admin.handle();
    let address = public_socket.local_addr()?;
    let public = public_server(public_socket, &server, state.clone())?;
    let public_handle = public.handle();
    let servers = [actix_web::rt::spawn(admin), actix_web::rt::spawn(public)];
    let ticker = actix_web::rt::spawn(tick(Arc::clone(&handles), clock));
    let signer = actix_web::rt::spawn(signed_heads::keep(console.clone()));
    let marker = watermark::keep(Arc::clone(handles.store()), base.storage.path.clone(), epoch);
    let marker = actix_web::rt::spawn(marker);
    let sharing = handles.store().shared().is_some();
    let sharer = sharing.then(|| actix_web::rt::spawn(share(state.clone(), resettle, figures)));
    started();

    tracing::info!(public = %address, admin = %bind, "the server is up");
    let ended = serve(&state, &health, &mut signals).await;

    // The way out: no new requests, then the actors in the order of their messages, then whoever
    // only watched.
    health.drain();
    state.watchers.close();
    ticker.abort();
    if let Some(sharer) = sharer {
        sharer.abort();
    }
    sampler.abort();
    tracing::info!("the server is finishing what it accepted");
    // After a failure whoever waits has been answered: that has to reach them.
    let patience = if ended.is_ok() { grace } else { LAST_ANSWERS.min(grace) };
    end(public_handle, true, patience).await;
    signer.abort();
    marker.abort();
    let (store, path) = (Arc::clone(handles.store()), base.storage.path.clone());
    let last_words = async {
        let _ = actix_web::web::block(move || watermark::keep_now(store.as_ref(), &path)).await;
        signed_heads::note_now(&console).await;
    };
    // They can be had another time; what was accepted cannot.
    let _ = tokio::time::timeout(LAST_WORDS.min(grace), last_words).await;
    let synced = tokio::time::timeout(grace, handles.stop()).await.is_ok();
    if !synced {
        handles.abandon();
    }
    end(admin_handle, false, grace).await;
    for server in servers {
        server.abort();
    }
    if !synced {
        return Err(RunError::Fatal("the store did not sync in time".into()));
    }
    tracing::info!("everything is on disk");
    ended
}

/// Waits for the end, reloading on the way.
async fn serve(
    state: &State,
    health: &Health,
    signals: &mut mpsc::Receiver<Signal>,
) -> Result<(), RunError> {
    loop {
        tokio::select! {
            reason = health.failed() => return Err(RunError::Fatal(reason)),
            signal = signals.recv() => match signal {
                Some(Signal::Reload(read)) => state.tuner.reload(state, read).await,
                Some(Signal::Stop) | None => return Ok(()),
            },
        }
    }
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

/// How long the last head of the audit log and the store's mark are waited for.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long a server that cannot go on is given to hand out its last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Stops a listener. Requests under way are finished where `graceful`, within `grace`; whatever is
/// left then is cut off.
async fn end(server: ServerHandle, graceful: bool, grace: Duration) {
    if graceful && tokio::time::timeout(grace, server.stop(true)).await.is_ok() {
        return;
    }
    server.stop(false).await;
}

fn public_server(
    socket: TcpListener,
    config: &crate::config::Server,
    state: Data<State>,
) -> std::io::Result<actix_web::dev::Server> {
    let workers = config.workers.get();
    let products = state.config.load().products.clone();
    let reference = Data::new(reference::of(&state.config.load()));
    let server = HttpServer::new(move || {
        App::new()
            .app_data(state.clone())
            .app_data(reference.clone())
            .wrap(from_fn(around))
            .configure(|routes| public::routes(routes, &products))
    });
    Ok(server
        .workers(workers)
        .max_connections(config.max_connections.get().div_ceil(workers))
        .backlog(4096)
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(HEAD_TIMEOUT)
        .shutdown_timeout(config.shutdown_grace.as_secs())
        .disable_signals()
        .listen(socket)?
        .run())
}

/// Threads that serve operators: one may wait for a slow reader of a long export.
const OPERATORS_WORKERS: usize = 2;

fn operators_server(
    socket: TcpListener,
    health: Arc<Health>,
    registry: Arc<Registry>,
    console: Data<Console>,
) -> std::io::Result<actix_web::dev::Server> {
    let state = Data::new(AdminState { health, registry });
    let server = HttpServer::new(move || {
        App::new()
            .app_data(state.clone())
            .app_data(console.clone())
            .wrap(from_fn(refuse_unknown_hosts))
            .wrap(DefaultHeaders::new().add((X_CONTENT_TYPE_OPTIONS, "nosniff")))
            .configure(operator::routes)
    });
    Ok(server.workers(OPERATORS_WORKERS).disable_signals().listen(socket)?.run())
}
