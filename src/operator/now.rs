//! The page *Now*: health, what needs a person, a few figures. The page *Load*: all other figures.

use super::activations;
use super::auth::Operator;
use super::chart::{Drawn, draw, short};
use super::console::{Console, failed, read};
use super::faults::{self, OfFiles};
use super::history::Span;
use super::words::{self, HOST};
use crate::config::Backend;
use crate::http::errors::ApiError;
use crate::http::page::html;
use crate::http::respond::success;
use crate::http::story::CodeStage;
use crate::state::attention::Line;
use crate::store::troubles::Trouble;
use actix_web::http::StatusCode;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use iptunnel_actors::server_registry::ByState;
use iptunnel_domain::Timestamp;
use iptunnel_domain::activation::{Activation, Stage};
use iptunnel_storage::{ReadError, Records};
use serde::Serialize;
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The number of newest codes and activations that are counted by state: about 5 ms.
const LAST: usize = 2000;
/// The most open activations in the list, oldest first.
const LISTED: usize = 20;
/// The most activations that are checked for being open: about 40 ms.
const OPEN_AMONG: usize = 16_000;

/// The newest codes and activations by state.
#[derive(Clone, Default, Serialize)]
struct Installs {
    /// The number of newest codes and activations that are counted.
    of_the_last: usize,
    codes: BTreeMap<&'static str, usize>,
    activations: BTreeMap<&'static str, usize>,
    /// How many activations are open.
    open_count: usize,
    /// How many of the newest activations were checked, if older ones may be open as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    open_among: Option<usize>,
    /// The oldest open activations.
    open: Vec<activations::Row>,
}

/// Returns the newest activations, and whether they include all that can still be open.
/// `token_ttl` is the lifetime of install tokens in seconds.
fn recent(
    store: &dyn Records,
    token_ttl: u64,
    now: Timestamp,
) -> Result<(Vec<Activation>, bool), ReadError> {
    let goes_back = |found: &[Activation], asked: usize| {
        // Activations keep the lifetime that was set when they were opened.
        let longest = found.iter().map(|one| one.expires_at.since(one.opened_at)).max();
        let longest = longest.unwrap_or_default().max(token_ttl);
        let is_over = |last: &Activation| last.opened_at.plus(longest) <= now;
        found.len() < asked || found.last().is_none_or(is_over)
    };
    let found = store.newest_activations(LAST)?;
    if goes_back(&found, LAST) {
        return Ok((found, true));
    }
    let found = store.newest_activations(OPEN_AMONG)?;
    let all = goes_back(&found, OPEN_AMONG);
    Ok((found, all))
}

fn installs(store: &dyn Records, token_ttl: u64, now: Timestamp) -> Result<Installs, ReadError> {
    let mut found = Installs { of_the_last: LAST, ..Installs::default() };
    for state in ["issued", "used", "expired"] {
        found.codes.insert(state, 0);
    }
    for stage in Stage::ALL {
        found.activations.insert(stage.name(), 0);
    }
    for code in store.newest_codes(LAST)? {
        // The activation that uses the code is not read.
        let state = CodeStage::of(&code, None, now).name();
        *found.codes.entry(state).or_default() += 1;
    }
    let (activations, all) = recent(store, token_ttl, now)?;
    for activation in activations.iter().take(LAST) {
        *found.activations.entry(activation.stage(now).name()).or_default() += 1;
    }
    let open: Vec<&Activation> = activations.iter().filter(|one| one.is_open(now)).collect();
    found.open_count = open.len();
    found.open_among = (!all).then_some(activations.len());
    let oldest = open.into_iter().rev().take(LISTED);
    found.open = oldest.map(|activation| activations::Row::in_short(activation, now)).collect();
    Ok(found)
}

#[derive(Serialize)]
struct RouteRow {
    route: String,
    /// Requests per second by status class, such as `2xx`.
    outcomes: BTreeMap<String, f64>,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
}

impl RouteRow {
    fn shown(&self, class: &str) -> String {
        self.outcomes.get(class).map_or_else(|| "0".into(), |rate| short(*rate))
    }
}

/// Formats an optional figure. Templates pass it by value or by reference.
fn shown(value: impl Borrow<Option<f64>>) -> String {
    value.borrow().map_or_else(|| "–".into(), short)
}

/// Formats a figure. Templates pass it by value or by reference.
fn rate(value: impl Borrow<f64>) -> String {
    short(*value.borrow())
}

#[derive(Serialize)]
struct ActorRow {
    actor: String,
    depth: f64,
    capacity: usize,
    messages_per_second: f64,
    batch: Option<f64>,
}

impl ActorRow {
    fn in_words(&self) -> String {
        self.actor.replace('_', " ")
    }
}

/// What this server is and how it is.
#[derive(Serialize)]
struct Health {
    /// Whether it serves requests.
    ready: bool,
    version: &'static str,
    host: &'static str,
    uptime_seconds: u64,
    /// `embedded` or `PostgreSQL`.
    store: &'static str,
    servers_live: usize,
    servers_stale: usize,
    servers_revoked: usize,
    /// When the last backup that is known was made, by RFC 3339.
    last_backup_at: Option<String>,
    /// Whether this server makes backups: no database is behind it.
    #[serde(skip)]
    makes_backups: bool,
}

/// How often what a look has found is used again, in the time that the look took. So the console takes at most a
/// hundredth of a processor for it, however many people look; and where there is little to look through, each
/// look is one of its own.
const REUSE: u32 = 100;

/// What the last look has found.
struct Looked<T> {
    at: Instant,
    took: Duration,
    found: T,
}

impl<T> Looked<T> {
    /// Whether it is good enough for another page.
    fn is_fresh(&self, now: Instant) -> bool {
        now.duration_since(self.at) < self.took.saturating_mul(REUSE)
    }
}

/// What a look finds, for whoever asks next.
pub struct Reused<T>(Mutex<Option<Looked<T>>>);

impl<T> Default for Reused<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Reused<T> {
    /// Returns what the last look found, or looks.
    ///
    /// # Errors
    /// Those of the look.
    fn get<E>(&self, look: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        // Whoever comes meanwhile waits for this look.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = Instant::now();
        if let Some(fresh) = last.as_ref().filter(|looked| looked.is_fresh(at)) {
            return Ok(fresh.found.clone());
        }
        let found = look()?;
        *last = Some(Looked { at, took: at.elapsed(), found: found.clone() });
        Ok(found)
    }
}

/// What the page looks for in all servers and in the newest codes and activations.
#[derive(Default)]
pub struct Looks {
    states: Reused<ByState>,
    installs: Reused<Installs>,
}

/// The figures of the page.
#[derive(Serialize)]
pub struct Now {
    health: Health,
    /// What needs a person.
    attention: Vec<Line>,
    requests_per_second: f64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    check_ins_per_second: f64,
    refused_per_second: BTreeMap<String, f64>,
    routes: Vec<RouteRow>,
    actors: Vec<ActorRow>,
    commits_per_second: f64,
    commit_p50_ms: Option<f64>,
    commit_p99_ms: Option<f64>,
    servers: f64,
    /// The servers, not revoked, that have not checked in for `servers.silent_after_intervals`.
    servers_silent: u64,
    codes_in_memory: f64,
    activations_in_memory: f64,
    /// The store's epoch: 1, plus one for each time it was found to be an earlier state or was
    /// fenced.
    store_epoch: f64,
    /// `None` while the store cannot be read.
    installs: Option<Installs>,
}

async fn now(console: &Data<Console>) -> Result<Now, ApiError> {
    let time = console.state.clock.now();
    let token_ttl = console.state.live.tuning.load().lifetimes.install_token;
    let config = console.state.live.config.load_full();
    let stale =
        Timestamp(time.0.saturating_sub(config.servers.stale_after_hours.saturating_mul(3600)));
    let of_files = Arc::clone(&config);
    let of_thread = console.clone();
    // This page is what people look at while the store is away. It does not wait for the store then.
    let is_away = console.state.troubles.has(Trouble::Silent);
    let (installs, counts, of_files) = read(console, move |store| {
        let looks = &of_thread.looks;
        let installs = || looks.installs.get(|| installs(store, token_ttl, time)).ok();
        let installs = if is_away { None } else { installs() };
        let servers = of_thread.state.handles.servers();
        let counts = looks.states.get(|| Ok::<_, ReadError>(servers.by_state(stale)))?;
        Ok((installs, counts, OfFiles::look(&of_files, time)))
    })
    .await?;
    let latest = console.history.latest();
    let figure = |name: &str| latest.get(name).copied();
    let or_zero = |name: &str| figure(name).unwrap_or_default();
    let named = |prefix: &str| -> Vec<(String, f64)> {
        let rest =
            |(name, value): (&String, &f64)| Some((name.strip_prefix(prefix)?.to_owned(), *value));
        latest.iter().filter_map(rest).collect()
    };
    let mut routes: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
    for (name, rate) in named("route:") {
        if let Some((route, class)) = name.split_once(':') {
            routes.entry(route.to_owned()).or_default().insert(class.to_owned(), rate);
        }
    }
    let routes = routes
        .into_iter()
        .map(|(route, outcomes)| RouteRow {
            p50_ms: figure(&format!("p50:{route}")),
            p99_ms: figure(&format!("p99:{route}")),
            route,
            outcomes,
        })
        .collect();
    let sizes = &config.actors;
    let actors = [
        ("rate_limiter", sizes.rate_limiter),
        ("code_registry", sizes.code_registry),
        ("activation", sizes.activation),
        ("server_registry", sizes.server_registry),
        ("persistence", sizes.persistence),
    ]
    .map(|(actor, size)| ActorRow {
        actor: actor.to_owned(),
        depth: or_zero(&format!("depth:{actor}")),
        capacity: size.queue,
        messages_per_second: or_zero(&format!("messages:{actor}")),
        batch: figure(&format!("batch:{actor}")),
    });
    let silent = console.state.handles.servers().silent();
    let faults = faults::present(console, of_files, or_zero, time);
    let attention = console.state.attention.lines(faults, &silent, time);
    let of_webhooks = super::webhooks::attention(console).await?;
    let health = Health {
        ready: console.state.health.is_ready(),
        version: env!("CARGO_PKG_VERSION"),
        host: HOST.as_str(),
        uptime_seconds: console.started.elapsed().as_secs(),
        store: match config.storage.backend {
            Backend::Redb => "embedded",
            Backend::Postgres => "PostgreSQL",
        },
        servers_live: counts.live,
        servers_stale: counts.stale,
        servers_revoked: counts.revoked,
        last_backup_at: console.state.backups.progress().last.map(|last| last.made_at),
        makes_backups: config.storage.backend == Backend::Redb,
    };
    Ok(Now {
        health,
        attention: attention.into_iter().chain(of_webhooks).collect(),
        requests_per_second: or_zero("requests"),
        p50_ms: figure("p50:all"),
        p99_ms: figure("p99:all"),
        check_ins_per_second: or_zero("checkins"),
        refused_per_second: named("refused:").into_iter().collect(),
        routes,
        actors: actors.into(),
        commits_per_second: or_zero("commits"),
        commit_p50_ms: figure("p50:commit"),
        commit_p99_ms: figure("p99:commit"),
        servers: or_zero("servers"),
        servers_silent: silent.servers,
        codes_in_memory: or_zero("codes_in_memory"),
        activations_in_memory: or_zero("activations_in_memory"),
        store_epoch: or_zero("store_epoch"),
        installs,
    })
}

/// A figure with its curves.
struct Chart {
    title: &'static str,
    unit: &'static str,
    value: String,
    quarter: Drawn,
    day: Drawn,
}

/// A figure: title, unit, name.
type Charted = (&'static str, &'static str, &'static str);

/// The figures of the first page: what the server is for, and whether it is quick.
const FIRST: [Charted; 4] = [
    ("Installs confirmed", "/s", "codes:confirmed"),
    ("Check-ins", "/s", "checkins"),
    ("Requests", "/s", "requests"),
    ("Response time p99", " ms", "p99:all"),
];

/// The figures of the page *Load*.
const OTHERS: [Charted; 8] = [
    ("Codes issued", "/s", "codes:issued"),
    ("Codes activated", "/s", "codes:activated"),
    ("Response time p50", " ms", "p50:all"),
    ("Refused by limits", "/s", "refused"),
    ("Commits", "/s", "commits"),
    ("Commit time p99", " ms", "p99:commit"),
    ("Storage queue", "", "depth:persistence"),
    ("Code queue", "", "depth:code_registry"),
];

/// Returns the names of the figures that have charts.
pub fn charted() -> impl Iterator<Item = &'static str> {
    FIRST.iter().chain(&OTHERS).map(|(_, _, name)| *name)
}

/// Returns how often something happened in a span of time, from its rates.
fn times(rates: &[f32], span: Span) -> f64 {
    let known = rates.iter().filter(|rate| rate.is_finite());
    // The sum of nothing is a negative zero.
    known.map(|rate| f64::from(*rate)).fold(0.0, |sum, rate| sum + rate) * span.seconds_per_point()
}

/// Writes a figure as a card shows it. A rate below one a second is told as a count.
fn value_of(unit: &str, latest: Option<f64>, quarter: &[f32]) -> String {
    match latest {
        // A counter appears with its first event.
        _ if unit == "/s" && latest.unwrap_or_default() < 1.0 => {
            format!("{:.0} in 15 min", times(quarter, Span::Quarter))
        }
        Some(value) => format!("{}{unit}", short(value)),
        None => "–".into(),
    }
}

fn charts(console: &Console, charted: &[Charted]) -> Vec<Chart> {
    let latest = console.history.latest();
    let chart = |(title, unit, name): &Charted| {
        let quarter = console.history.points(Span::Quarter, name);
        let day = console.history.points(Span::Day, name);
        Chart {
            title,
            unit,
            value: value_of(unit, latest.get(*name).copied(), &quarter),
            quarter: draw(&format!("{title}, 15 minutes"), unit, &quarter),
            day: draw(&format!("{title}, 24 hours"), unit, &day),
        }
    };
    charted.iter().map(chart).collect()
}

#[derive(Template)]
#[template(path = "console/now.html")]
struct Page<'a> {
    page: &'static str,
    operator: &'a Operator,
    now: Now,
    charts: Vec<Chart>,
}

#[derive(Template)]
#[template(path = "console/live.html")]
struct Live {
    operator: Operator,
    now: Now,
    charts: Vec<Chart>,
}

#[derive(Template)]
#[template(path = "console/load.html")]
struct LoadPage<'a> {
    page: &'static str,
    operator: &'a Operator,
    now: Now,
    limits: Vec<LimitRow>,
    charts: Vec<Chart>,
    classes: BTreeSet<String>,
}

#[derive(Template)]
#[template(path = "console/load_live.html")]
struct LoadLive {
    operator: Operator,
    now: Now,
    limits: Vec<LimitRow>,
    charts: Vec<Chart>,
    classes: BTreeSet<String>,
}

/// What a limit refuses.
struct LimitRow {
    /// The key of its setting.
    key: String,
    /// What it counts, in the words of the setting.
    words: String,
    refused_per_second: f64,
}

/// Returns what each limit refuses, in the words of the settings.
fn limits(console: &Console, now: &Now) -> Vec<LimitRow> {
    let in_force = console.state.settings.in_force();
    let row = |(policy, rate): (&String, &f64)| {
        let key = format!("limits.{policy}");
        let setting = in_force.settings.iter().find(|setting| setting.key == key);
        let words = setting.and_then(|setting| setting.description.split(':').next());
        let words = words.unwrap_or(policy).to_owned();
        LimitRow { key, words, refused_per_second: *rate }
    };
    now.refused_per_second.iter().map(row).collect()
}

fn classes(now: &Now) -> BTreeSet<String> {
    now.routes.iter().flat_map(|row| row.outcomes.keys().cloned()).collect()
}

/// `GET /console/{key}/now`
pub async fn page(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
) -> HttpResponse {
    match now(&console).await {
        Ok(now) => {
            let charts = charts(&console, &FIRST);
            html(StatusCode::OK, &Page { page: "now", operator: &operator, now, charts })
        }
        Err(error) => failed(&request, &error),
    }
}

/// `GET /console/{key}/now/live`: the part of the page that is refreshed.
pub async fn live(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
) -> HttpResponse {
    match now(&console).await {
        Ok(now) => {
            let charts = charts(&console, &FIRST);
            html(StatusCode::OK, &Live { operator, now, charts })
        }
        Err(error) => failed(&request, &error),
    }
}

/// `GET /console/{key}/load`
pub async fn load_page(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
) -> HttpResponse {
    match now(&console).await {
        Ok(now) => {
            let (charts, classes) = (charts(&console, &OTHERS), classes(&now));
            let limits = limits(&console, &now);
            let page = LoadPage { page: "load", operator: &operator, now, limits, charts, classes };
            html(StatusCode::OK, &page)
        }
        Err(error) => failed(&request, &error),
    }
}

/// `GET /console/{key}/load/live`: the part of the page that is refreshed.
pub async fn load_live(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
) -> HttpResponse {
    match now(&console).await {
        Ok(now) => {
            let (charts, classes) = (charts(&console, &OTHERS), classes(&now));
            let limits = limits(&console, &now);
            html(StatusCode::OK, &LoadLive { operator, now, limits, charts, classes })
        }
        Err(error) => failed(&request, &error),
    }
}

/// `GET /admin/now`
pub async fn json(console: Data<Console>, request: HttpRequest) -> HttpResponse {
    match now(&console).await {
        Ok(now) => success(StatusCode::OK, now, "Now"),
        Err(error) => failed(&request, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iptunnel_domain::activation::{
        ActivationId, ActivationNumber, ActivationRef, ActivationState, Binding, Holder, Request,
    };
    use iptunnel_domain::address::HostName;
    use iptunnel_domain::code::CodeHash;
    use iptunnel_domain::lookup::KeyedHash;
    use iptunnel_storage::{Change, Disks, EmbeddedStore, Store, Write};
    use std::net::IpAddr;

    #[test]
    fn what_was_found_is_used_again_for_a_hundred_times_as_long_as_the_look_took() {
        let at = Instant::now();
        let looked = |took| Looked { at, took: Duration::from_millis(took), found: () };
        let after = |seconds| at + Duration::from_secs(seconds);
        assert!(looked(50).is_fresh(after(4)) && !looked(50).is_fresh(after(5)));
        assert!(!looked(0).is_fresh(at));
        let reused = Reused::default();
        *reused.0.lock().unwrap() = Some(Looked { at, took: Duration::from_secs(3600), found: 7 });
        assert_eq!(reused.get(|| Err(())), Ok(7));
        assert_eq!(Reused::<u32>::default().get(|| Err(())), Err(()));
    }

    #[test]
    fn rare_events_are_counted_and_frequent_ones_are_a_rate() {
        let rates = [0.5, f32::NAN, 0.5];
        assert_eq!(value_of("/s", Some(0.5), &rates), "2 in 15 min");
        assert_eq!(value_of("/s", None, &[]), "0 in 15 min");
        assert_eq!(value_of("/s", Some(12.0), &rates), "12/s");
        assert_eq!(
            (value_of(" ms", Some(0.5), &rates), value_of("", None, &[])),
            ("0.5 ms".into(), "–".into())
        );
    }

    /// Makes an activation that was opened in second `number`.
    fn activation(number: u64) -> Activation {
        let hash = KeyedHash(u128::from(number).to_be_bytes());
        Activation {
            at: ActivationRef { number: ActivationNumber(number), id: ActivationId(number) },
            code: CodeHash(hash),
            request: Arc::new(Request {
                holder: Holder { machine: hash, fingerprint: hash },
                binding: Binding {
                    hostname: HostName::parse("ns1.example.com").unwrap(),
                    public_ip: IpAddr::from([1, 2, 3, 4]),
                },
                requested_ref: "main".into(),
                installer_version: String::new(),
                signing_key: "k1".into(),
            }),
            opened_at: Timestamp(number),
            expires_at: Timestamp(number + 10_000),
            state: ActivationState::Open,
            version: 1,
        }
    }

    #[test]
    fn every_open_activation_within_the_search_limit_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        let store = EmbeddedStore::open(Disks::at(path("rows"), path("journal"))).unwrap();
        let mut opened = 0;
        let mut open_until = |last: u64| {
            let changes: Vec<Change> = (opened + 1..=last)
                .map(|number| Change(vec![Write::Activation(activation(number))]))
                .collect();
            store.commit(&changes).unwrap();
            opened = last;
            let found = installs(&store, 10_000, Timestamp(last)).unwrap();
            (found.open_count, found.open_among, found.open[0].age_seconds)
        };
        assert_eq!(open_until(1_500), (1_500, None, 1_499));
        // More than are counted by state. The list still begins with the oldest.
        assert_eq!(open_until(9_000), (9_000, None, 8_999));
        // The search must also pass activations that have expired in the meantime.
        assert_eq!(open_until(15_000), (10_000, None, 9_999));
        let all_at_once = installs(&store, 20_000, Timestamp(15_000)).unwrap();
        assert_eq!(all_at_once.activations["open"], LAST);
        let (count, among, _) = open_until(30_000);
        assert_eq!((count, among), (10_000, None));
        let never_over = installs(&store, u64::MAX, Timestamp(30_000)).unwrap();
        assert_eq!(never_over.open_among, Some(OPEN_AMONG), "the page says how many were checked");
    }
}
