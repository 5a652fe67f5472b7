//! The metrics over the last 15 minutes and the last day.
//!
//! The sampler reads the same text that `/metrics` serves. Nothing is counted twice, and charts
//! always agree with what Prometheus scrapes. The figures that have charts survive a restart in a file
//! ([`Kept`]); the time in which no server ran is a gap.

use iptunnel_actors::Health;
use iptunnel_domain::Timestamp;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

/// How often the metrics are read.
const EVERY: Duration = Duration::from_secs(2);
/// Points in the 15-minute span.
const FINE: usize = 450;
/// Readings per point of the day: five minutes.
const COARSE_EVERY: u32 = 150;
/// Points in the 24-hour span.
const COARSE: usize = 288;
/// The most figures that are kept. With both spans they take less than 2 MB.
const NAMES: usize = 500;

/// The prefix of the figures for the actors' queues.
const DEPTH: &str = "depth:";

/// All metrics at one moment, by name and labels.
#[derive(Clone, Debug, Default)]
struct Snapshot(HashMap<String, f64>);

/// The name and labels of one metric.
struct Line<'a> {
    name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
}

impl<'a> Line<'a> {
    /// Parses a metric's key. Label values of this server contain no quotes or commas.
    fn parse(key: &'a str) -> Self {
        let (name, rest) = key.split_once('{').unwrap_or((key, ""));
        let pairs = rest.trim_end_matches('}').split(',');
        let labels = pairs
            .filter_map(|pair| pair.split_once('='))
            .map(|(label, value)| (label, value.trim_matches('"')))
            .collect();
        Self { name: name.strip_prefix("iptunnel_").unwrap_or(name), labels }
    }

    fn label(&self, name: &str) -> &'a str {
        self.labels.iter().find(|(label, _)| *label == name).map_or("", |(_, value)| value)
    }
}

impl Snapshot {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let pair = |line: &str| {
            let (key, value) = line.rsplit_once(' ')?;
            Some((key.to_owned(), value.parse().ok()?))
        };
        Self(lines.filter_map(pair).collect())
    }
}

/// Cumulative counts by the upper bound of each bucket, in seconds.
type Buckets = BTreeMap<u64, f64>;

/// Returns the `q` quantile, interpolated within its bucket.
fn quantile(buckets: &Buckets, q: f64) -> Option<f64> {
    let total = buckets.values().next_back().copied().filter(|total| *total > 0.0)?;
    let (mut low, mut below) = (0.0, 0.0);
    for (end, count) in buckets {
        let end = f64::from_bits(*end);
        if *count >= q * total {
            if end.is_infinite() {
                return Some(low);
            }
            let share = (q * total - below) / (count - below).max(f64::MIN_POSITIVE);
            return Some(low + (end - low) * share);
        }
        (low, below) = (end, *count);
    }
    Some(low)
}

/// Computes the figures between two snapshots, by name.
fn derive(before: &Snapshot, after: &Snapshot, seconds: f64) -> BTreeMap<String, f64> {
    let mut figures: BTreeMap<String, f64> = BTreeMap::new();
    let mut buckets: BTreeMap<String, Buckets> = BTreeMap::new();
    let mut batches: BTreeMap<String, [f64; 2]> = BTreeMap::new();
    let mut add = |name: String, value: f64| *figures.entry(name).or_default() += value;
    for (key, value) in &after.0 {
        let line = Line::parse(key);
        // A counter that got smaller was reset.
        let grown = value - before.0.get(key).copied().unwrap_or(0.0);
        let grown = if grown < 0.0 { *value } else { grown };
        let rate = grown / seconds;
        let end = || match line.label("le") {
            "+Inf" => f64::INFINITY.to_bits(),
            le => le.parse().unwrap_or(0.0_f64).to_bits(),
        };
        match line.name {
            "http_requests_total" => {
                let (route, status) = (line.label("route"), line.label("status"));
                let class = status.chars().next().unwrap_or('?');
                add("requests".into(), rate);
                add(format!("route:{route}:{class}xx"), rate);
                if matches!(route, "checkin" | "check_in") && class == '2' {
                    add("checkins".into(), rate);
                }
            }
            "http_request_seconds_bucket" => {
                let end = end();
                for name in ["all", line.label("route")] {
                    *buckets.entry(name.into()).or_default().entry(end).or_default() += grown;
                }
            }
            "persistence_commit_seconds_bucket" => {
                *buckets.entry("commit".into()).or_default().entry(end()).or_default() += grown;
            }
            "limit_decisions_total" if line.label("decision") == "refused" => {
                add("refused".into(), rate);
                add(format!("refused:{}", line.label("policy")), rate);
            }
            "code_transitions_total" => add(format!("codes:{}", line.label("transition")), rate),
            "persistence_commits_total" => add("commits".into(), rate),
            "actor_queue_depth" => add(format!("{DEPTH}{}", line.label("actor")), *value),
            "actor_messages_total" => add(format!("messages:{}", line.label("actor")), rate),
            "actor_batch_size_sum" => {
                batches.entry(line.label("actor").into()).or_default()[0] += grown;
            }
            "actor_batch_size_count" => {
                batches.entry(line.label("actor").into()).or_default()[1] += grown;
            }
            "codes_in_memory"
            | "activations_in_memory"
            | "servers"
            | "servers_silent"
            | "store_epoch"
            | "store_primaries"
            | "servers_with_other_secrets" => {
                add(line.name.into(), *value);
            }
            _ => {}
        }
    }
    for (actor, [sum, count]) in batches {
        if count > 0.0 {
            figures.insert(format!("batch:{actor}"), sum / count);
        }
    }
    for (name, buckets) in buckets {
        for (quantile_name, q) in [("p50", 0.5), ("p99", 0.99)] {
            if let Some(value) = quantile(&buckets, q) {
                figures.insert(format!("{quantile_name}:{name}"), value * 1000.0);
            }
        }
    }
    figures
}

/// The points of one time span, oldest first. Each holds the figures by their index.
#[derive(Default)]
struct Ring {
    points: VecDeque<Vec<f32>>,
    since: Option<(Instant, Snapshot)>,
}

#[derive(Default)]
struct Inner {
    places: HashMap<String, usize>,
    fine: Ring,
    coarse: Ring,
    latest: BTreeMap<String, f64>,
    /// The longest queues since the last point of the day, so that a short backlog shows too.
    deepest: BTreeMap<String, f64>,
    readings: u32,
}

impl Inner {
    fn take(&mut self, snapshot: &Snapshot, now: Instant) {
        for _ in 0..self.missed(now) {
            self.leave_gap();
        }
        let coarse_is_due = self.is_coarse_due();
        if let Some(figures) = self.fine.advance(snapshot, now) {
            for (name, value) in figures.iter().filter(|(name, _)| name.starts_with(DEPTH)) {
                let deepest = self.deepest.entry(name.clone()).or_default();
                *deepest = deepest.max(*value);
            }
            self.fine.push(&mut self.places, FINE, &figures);
            self.latest = figures;
        }
        if coarse_is_due {
            let deepest = std::mem::take(&mut self.deepest);
            if let Some(mut figures) = self.coarse.advance(snapshot, now) {
                figures.extend(deepest);
                self.coarse.push(&mut self.places, COARSE, &figures);
            } else if !self.coarse.points.is_empty() {
                self.coarse.push(&mut self.places, COARSE, &BTreeMap::new());
            }
        } else if self.coarse.since.is_none() {
            // After a restart the point that was begun goes on with this reading.
            self.coarse.since = Some((now, snapshot.clone()));
        }
    }

    /// Leaves out a reading. Each point has a fixed place in time.
    fn leave_gap(&mut self) {
        self.fine.push(&mut self.places, FINE, &BTreeMap::new());
        if self.is_coarse_due() {
            self.coarse.push(&mut self.places, COARSE, &BTreeMap::new());
        }
    }
}

impl Inner {
    /// Returns how many readings were missed since the last one.
    fn missed(&self, now: Instant) -> u64 {
        let Some((last, _)) = &self.fine.since else { return 0 };
        let rounds = now.duration_since(*last).as_secs_f64() / EVERY.as_secs_f64();
        let most = (FINE + COARSE * COARSE_EVERY as usize) as u64;
        (rounds.round() as u64).saturating_sub(1).min(most)
    }

    /// Counts a reading. Returns whether the day gets a point with it.
    fn is_coarse_due(&mut self) -> bool {
        let is_due = self.readings.is_multiple_of(COARSE_EVERY);
        self.readings = self.readings.wrapping_add(1);
        is_due
    }
}

impl Ring {
    /// Computes the figures since the last call.
    fn advance(&mut self, snapshot: &Snapshot, now: Instant) -> Option<BTreeMap<String, f64>> {
        let (since, before) = self.since.replace((now, snapshot.clone()))?;
        let seconds = now.duration_since(since).as_secs_f64().max(0.001);
        Some(derive(&before, snapshot, seconds))
    }

    fn push(
        &mut self,
        places: &mut HashMap<String, usize>,
        length: usize,
        figures: &BTreeMap<String, f64>,
    ) {
        let mut point = vec![f32::NAN; places.len()];
        for (name, value) in figures {
            if let Some(place) = places.get(name) {
                if let Some(there) = point.get_mut(*place) {
                    *there = *value as f32;
                }
            } else if places.len() < NAMES {
                places.insert(name.clone(), places.len());
                point.push(*value as f32);
            }
        }
        if self.points.len() == length {
            self.points.pop_front();
        }
        self.points.push_back(point);
    }
}

/// Figures as the file has them: by name, the points of each span, the oldest first. A missing value is
/// `None`.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// The time of the last reading, in seconds since the Unix epoch.
    at: u64,
    /// The readings since the last point of the day.
    readings: u32,
    quarter: BTreeMap<String, Vec<Option<f32>>>,
    day: BTreeMap<String, Vec<Option<f32>>>,
}

impl Inner {
    fn of_ring(&self, ring: &Ring, name: &str) -> Vec<Option<f32>> {
        let place = self.places.get(name);
        let value = |point: &Vec<f32>| {
            place.and_then(|place| point.get(*place)).copied().filter(|value| value.is_finite())
        };
        ring.points.iter().map(value).collect()
    }
}

impl Ring {
    fn refill(
        &mut self,
        places: &mut HashMap<String, usize>,
        length: usize,
        kept: &BTreeMap<String, Vec<Option<f32>>>,
    ) {
        let points = kept.values().map(Vec::len).max().unwrap_or_default();
        for at in points.saturating_sub(length)..points {
            let value = |(name, values): (&String, &Vec<Option<f32>>)| {
                Some((name.clone(), f64::from((*values.get(at)?)?)))
            };
            self.push(places, length, &kept.iter().filter_map(value).collect());
        }
    }
}

/// The history of all figures.
#[derive(Default)]
pub struct History(RwLock<Inner>);

/// A time span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The last 15 minutes.
    Quarter,
    /// The last 24 hours.
    Day,
}

impl Span {
    /// Returns the seconds between two points.
    pub fn seconds_per_point(self) -> f64 {
        match self {
            Self::Quarter => EVERY.as_secs_f64(),
            Self::Day => EVERY.as_secs_f64() * f64::from(COARSE_EVERY),
        }
    }
}

impl History {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Returns the points of a figure, oldest first. A missing value is NaN. The length is always
    /// that of the span, even if the server has not run that long.
    pub fn points(&self, span: Span, name: &str) -> Vec<f32> {
        let inner = self.read();
        let (ring, length) = match span {
            Span::Quarter => (&inner.fine, FINE),
            Span::Day => (&inner.coarse, COARSE),
        };
        let place = inner.places.get(name);
        let value = |point: &Vec<f32>| {
            place.and_then(|place| point.get(*place)).copied().unwrap_or(f32::NAN)
        };
        let missing = length - ring.points.len().min(length);
        std::iter::repeat_n(f32::NAN, missing).chain(ring.points.iter().map(value)).collect()
    }

    /// Returns all figures of the last reading.
    pub fn latest(&self) -> BTreeMap<String, f64> {
        self.read().latest.clone()
    }

    /// Returns the figures with these names, for a file. `now` is the present by both clocks.
    pub fn kept<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
        now: (Timestamp, Instant),
    ) -> Kept {
        let inner = self.read();
        let since = inner.fine.since.as_ref().map(|(last, _)| now.1.duration_since(*last));
        let mut kept = Kept {
            at: now.0.0.saturating_sub(since.unwrap_or_default().as_secs()),
            readings: inner.readings % COARSE_EVERY,
            ..Kept::default()
        };
        for name in names {
            kept.quarter.insert(name.to_owned(), inner.of_ring(&inner.fine, name));
            kept.day.insert(name.to_owned(), inner.of_ring(&inner.coarse, name));
        }
        kept
    }

    /// Returns the history that begins with what a file has, and a gap until now. What is dated in the future
    /// or is older than a day is left out.
    pub fn after(kept: &Kept, now: Timestamp) -> Self {
        let (mut inner, seconds) = (Inner::default(), now.since(Timestamp(kept.at)));
        let day = COARSE as u64 * u64::from(COARSE_EVERY) * EVERY.as_secs();
        if kept.at <= now.0 && seconds < day {
            inner.readings = kept.readings;
            inner.fine.refill(&mut inner.places, FINE, &kept.quarter);
            inner.coarse.refill(&mut inner.places, COARSE, &kept.day);
            // The first reading gives no point: at least this is a gap.
            for _ in 0..(seconds / EVERY.as_secs()).max(1) {
                inner.leave_gap();
            }
        }
        Self(RwLock::new(inner))
    }

    fn take(&self, text: &str, now: Instant) {
        let snapshot = Snapshot::parse(text);
        let mut inner = self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        inner.take(&snapshot, now);
    }

    /// Reads the metrics periodically until the server shuts down.
    pub async fn keep(self: Arc<Self>, registry: Arc<Registry>, health: Arc<Health>) {
        let mut interval = tokio::time::interval(EVERY);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !health.is_draining() {
            interval.tick().await;
            let (history, registry) = (Arc::clone(&self), Arc::clone(&registry));
            let read = move || {
                let mut text = String::new();
                if prometheus_client::encoding::text::encode(&mut text, &registry).is_ok() {
                    history.take(&text, Instant::now());
                }
            };
            // Fails only at shutdown.
            let _ = actix_web::web::block(read).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::metrics::HttpMetrics;
    use actix_web::http::StatusCode;

    /// Feeds a text as the `n`th reading.
    fn take(history: &History, begun: Instant, n: usize, text: &str) {
        history.take(text, begun + EVERY * n as u32);
    }

    #[test]
    fn a_stall_leaves_a_gap_of_the_same_length() {
        let (history, begun) = (History::default(), Instant::now());
        for n in [0, 1, 2, 3, 8, 9] {
            take(&history, begun, n, &format!("iptunnel_servers {n}\n"));
        }
        let points = history.points(Span::Quarter, "servers");
        let known: Vec<usize> = (0..9).filter(|n| points[FINE - 9 + n].is_finite()).collect();
        // The first reading gives no point. The stall leaves a gap that is not closed.
        assert_eq!(known, [0, 1, 2, 7, 8]);
        // A slightly late reading leaves no gap. A reading after days makes the whole span a gap.
        history.take("iptunnel_servers 1\n", begun + EVERY * 10 + EVERY / 3);
        assert!(history.points(Span::Quarter, "servers")[FINE - 1].is_finite());
        take(&history, begun, 1_000_000, "iptunnel_servers 2\n");
        let points = history.points(Span::Day, "servers");
        assert!(points.iter().rev().skip(1).all(|point| point.is_nan()));
    }

    #[test]
    fn after_a_restart_the_charts_go_on_behind_a_gap_as_long_as_it_took() {
        let (history, begun) = (History::default(), Instant::now());
        let every = COARSE_EVERY as usize;
        for n in 0..2 * every + 50 {
            take(&history, begun, n, &format!("iptunnel_servers {n}\n"));
        }
        let read = begun + EVERY * (2 * every as u32 + 49);
        let now = (Timestamp(1_000_001), read + Duration::from_secs(1));
        let kept = history.kept(["servers", "never"].into_iter(), now);
        let kept: Kept = serde_json::from_str(&serde_json::to_string(&kept).unwrap()).unwrap();
        // Ten seconds after the last reading, its successor reads first.
        let again = History::after(&kept, Timestamp(1_000_010));
        for n in 0..every {
            take(&again, begun, n, "iptunnel_servers 1000\n");
        }
        let quarter = again.points(Span::Quarter, "servers");
        let before = FINE - (every - 1) - 5;
        assert_eq!(quarter[before - 1], (2 * every + 49) as f32);
        assert!(quarter[before..before + 5].iter().all(|point| point.is_nan()), "{quarter:?}");
        assert!(quarter[before + 5..].iter().all(|point| *point == 1000.0));
        // The day goes on with the point that was begun: it is due after the readings that were left.
        let day = again.points(Span::Day, "servers");
        assert_eq!(day[COARSE - 3..], [every as f32, 2.0 * every as f32, 1000.0]);

        for wrong in [Timestamp(999_999), Timestamp(1_000_000 + 86_400)] {
            let again = History::after(&kept, wrong);
            assert!(again.points(Span::Day, "servers").iter().all(|point| point.is_nan()));
        }
        let later = History::after(&kept, Timestamp(1_000_000 + 43_200));
        assert!(later.points(Span::Quarter, "servers").iter().all(|point| point.is_nan()));
        let day = later.points(Span::Day, "servers");
        assert_eq!(day.iter().rposition(|point| point.is_finite()), Some(COARSE - 1 - 144));
    }

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn rates_and_quantiles_are_computed_from_real_metrics() {
        let mut registry = Registry::with_prefix("iptunnel");
        let metrics = HttpMetrics::new(&mut registry, &["issue", "checkin"]);
        let before = Snapshot::parse(&text(&registry));
        for n in 0..100 {
            let took = Duration::from_micros(if n < 98 { 300 } else { 40_000 });
            metrics.count(Some("issue"), StatusCode::CREATED, took);
        }
        for _ in 0..10 {
            metrics.count(Some("checkin"), StatusCode::OK, Duration::from_micros(300));
        }
        let figures = derive(&before, &Snapshot::parse(&text(&registry)), 10.0);
        assert_eq!(figures["requests"], 11.0);
        assert_eq!(figures["route:issue:2xx"], 10.0);
        assert_eq!(figures["checkins"], 1.0);
        assert!((0.2..0.4).contains(&figures["p50:issue"]), "{}", figures["p50:issue"]);
        assert!((25.0..52.0).contains(&figures["p99:issue"]), "{}", figures["p99:issue"]);
        assert!((0.2..0.4).contains(&figures["p99:checkin"]));
    }

    #[test]
    fn a_counter_reset_gives_no_negative_rate() {
        let at = |value: &str| {
            Snapshot::parse(&format!("iptunnel_persistence_commits_total {value}\n# EOF\n"))
        };
        assert_eq!(derive(&at("100"), &at("40"), 10.0)["commits"], 4.0);
        assert_eq!(derive(&at("100"), &at("140"), 10.0)["commits"], 4.0);
    }

    #[test]
    fn a_quantile_is_within_its_bucket_and_none_without_counts() {
        let buckets = |counts: &[(f64, f64)]| -> Buckets {
            counts.iter().map(|(end, count)| (end.to_bits(), *count)).collect()
        };
        assert_eq!(quantile(&buckets(&[(1.0, 0.0), (f64::INFINITY, 0.0)]), 0.5), None);
        let some = buckets(&[(1.0, 50.0), (2.0, 100.0), (f64::INFINITY, 100.0)]);
        assert_eq!(quantile(&some, 0.5), Some(1.0));
        assert_eq!(quantile(&some, 0.75), Some(1.5));
        assert_eq!(quantile(&buckets(&[(1.0, 0.0), (f64::INFINITY, 9.0)]), 0.5), Some(1.0));
    }

    #[test]
    fn a_short_backlog_shows_in_the_day() {
        let (history, begun) = (History::default(), Instant::now());
        for n in 0..2 * COARSE_EVERY as usize + 1 {
            let depth = if n == 42 { 900 } else { 1 };
            let text = format!("iptunnel_actor_queue_depth{{actor=\"a\"}} {depth}\n");
            take(&history, begun, n, &text);
        }
        let day = history.points(Span::Day, "depth:a");
        assert_eq!(day[COARSE - 2..], [900.0, 1.0]);
    }

    #[test]
    fn a_span_has_a_fixed_number_of_points() {
        let (history, begun) = (History::default(), Instant::now());
        for n in 0..FINE + 10 {
            take(&history, begun, n, &format!("iptunnel_servers {n}\n"));
        }
        let points = history.points(Span::Quarter, "servers");
        assert_eq!((points.len(), points[FINE - 1]), (FINE, (FINE + 9) as f32));
        assert_eq!(history.points(Span::Day, "servers").len(), COARSE);
        assert!(history.points(Span::Quarter, "nothing").iter().all(|point| point.is_nan()));
        for n in 0..2 * NAMES {
            let text = format!("iptunnel_actor_queue_depth{{actor=\"a{n}\"}} 1\n");
            take(&history, begun, FINE + 10 + n, &text);
        }
        assert!(history.read().places.len() <= NAMES);
    }
}
