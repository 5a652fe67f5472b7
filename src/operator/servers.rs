//! The registered servers, page by page. There may be a million.

use super::auth::Operator;
use super::console::{Console, failed, parse_cursor, query_string, read};
use crate::http::errors::ApiError;
use crate::http::page::html;
use crate::http::respond::{rfc3339, success};
use crate::state::State;
use crate::state::attention::Cloned;
use crate::state::servers::{self, contains, look_through};
use actix_web::http::StatusCode;
use actix_web::web::{Data, Query};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use iptunnel_actors::server_registry::{self, Filter, Servers, Sort};
use iptunnel_domain::server::{EnrolledBy, Server, ServerId, ServerNumber};
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::{ReadError, Records, Store};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

/// Servers per page.
const PAGE: usize = 50;

/// The states to filter by: value and label.
pub static SHOWS: [(&str, &str); 7] = [
    ("all", "all"),
    ("live", "live"),
    ("stale", "stale"),
    ("silent", "silent"),
    ("cloned", "cloned"),
    ("revoked", "revoked"),
    ("deleted", "deleted and revoked"),
];
/// The sort orders: value and label.
pub static SORTS: [(&str, &str); 4] = [
    ("newest", "newest first"),
    ("oldest", "oldest first"),
    ("seen", "latest check-in first"),
    ("unseen", "oldest check-in first"),
];

/// The query of a request.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ServersQuery {
    /// One of [`SHOWS`].
    pub show: String,
    /// One of [`SORTS`].
    pub sort: String,
    /// A part of host name, address, id or note. Empty: all.
    pub text: String,
    /// The end of the previous page.
    pub cursor: String,
}

impl Default for ServersQuery {
    fn default() -> Self {
        let (show, sort) = ("all".into(), "newest".into());
        Self { show, sort, text: String::new(), cursor: String::new() }
    }
}

#[derive(Serialize)]
pub(super) struct Row {
    pub(super) server_id: String,
    pub(super) ip: String,
    pub(super) hostname: String,
    pub(super) registered_at: String,
    pub(super) last_checkin: String,
    pub(super) state: &'static str,
    /// That two machines may be checking in as this server, if that was seen in the last day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clone: Option<Cloned>,
    /// Who enrolled it: the name of a token, or where else its credential came from. Empty: not known.
    pub(super) enrolled_by: String,
    pub(super) note: String,
}

/// A page of servers.
#[derive(Serialize)]
pub struct List {
    count: usize,
    servers: Vec<Row>,
    next_cursor: Option<String>,
}

pub(super) fn invalid(message: &str) -> ApiError {
    Refusal::InvalidField(message.into()).into()
}

/// Returns the filter of a query, and the time before which a last check-in is stale.
fn filter(
    console: &Console,
    query: &ServersQuery,
    now: Timestamp,
) -> Result<(Filter, Timestamp), ApiError> {
    let hours = console.state.live.config.load().servers.stale_after_hours;
    let stale = Timestamp(now.0.saturating_sub(hours.saturating_mul(3600)));
    let filter = match query.show.as_str() {
        "all" => Filter::default(),
        "live" => Filter { revoked: Some(false), seen_since: Some(stale), ..Filter::default() },
        "stale" => Filter { revoked: Some(false), seen_before: Some(stale), ..Filter::default() },
        "silent" => {
            let silent = console.state.live.tuning.load().silence.since(now);
            Filter { revoked: Some(false), seen_before: Some(silent), ..Filter::default() }
        }
        // The clones are few, and are looked up by their ids.
        "cloned" => Filter::default(),
        "revoked" => Filter { revoked: Some(true), ..Filter::default() },
        "deleted" => Filter { deleted: true, revoked: Some(true), ..Filter::default() },
        _ => {
            return Err(invalid(
                "show must be all, live, stale, silent, cloned, revoked or deleted.",
            ));
        }
    };
    Ok((filter, stale))
}

async fn list(console: &Console, query: &ServersQuery) -> Result<List, ApiError> {
    let now = console.state.clock.now();
    let (filter, stale) = filter(console, query, now)?;
    let sort = match query.sort.as_str() {
        "newest" => Sort::Newest,
        "oldest" => Sort::Oldest,
        "seen" => Sort::SeenLast,
        "unseen" => Sort::SeenFirst,
        _ => return Err(invalid("sort must be newest, oldest, seen or unseen.")),
    };
    let cursor = parse_cursor(&query.cursor)?;
    let state = console.state.clone();
    let servers = Arc::clone(console.state.handles.servers());
    let text = query.text.trim().to_lowercase();
    let clones = console.state.attention.clones(now);
    let only_clones = query.show == "cloned";
    read(console, move |store| {
        let (count, (found, next)) = if only_clones {
            (clones.len(), (cloned(store, &servers, &clones, &text, now)?, None))
        } else if text.is_empty() {
            sorted(store, &servers, &filter, sort, cursor, now)?
        } else {
            let found = search(store, &servers, &filter, &text, cursor, now)?;
            (servers.count(&filter), found)
        };
        let of = |server: &Server| clones.get(&server.id).cloned();
        let servers = found.into_iter().map(|server| row(&state, of(&server), server, stale));
        let servers = servers.collect();
        Ok(List { count, servers, next_cursor: next.map(|place| place.to_string()) })
    })
    .await
}

/// Servers, and the cursor of the next page.
type Found = (Vec<Server>, Option<u64>);

/// Returns how many servers match, and a page of them in the order of `sort`.
fn sorted(
    store: &dyn Records,
    servers: &Servers,
    filter: &Filter,
    sort: Sort,
    cursor: Option<u64>,
    now: Timestamp,
) -> Result<(usize, Found), ReadError> {
    // Takes one more than it shows, to know whether there is a next page.
    let server_registry::Page { count, servers: mut page } =
        servers.page(filter, sort, cursor, PAGE + 1);
    let more = page.len() > PAGE;
    page.truncate(PAGE);
    let next = page.last().filter(|_| more).map(|placed| placed.place);
    let numbers: Vec<_> = page.iter().map(|placed| placed.number).collect();
    Ok((count, (servers::numbered(store, servers, &numbers, now)?, next)))
}

/// Returns the servers as which two machines may be checking in, the newest first.
fn cloned(
    store: &dyn Store,
    servers: &Servers,
    clones: &HashMap<ServerId, Cloned>,
    text: &str,
    now: Timestamp,
) -> Result<Vec<Server>, ReadError> {
    let ids: Vec<ServerId> = clones.keys().copied().collect();
    let mut found = servers::read(store, servers, &ids, now)?;
    found.retain(|server| contains(server, text));
    found.sort_unstable_by_key(|server| Reverse(server.number));
    Ok(found)
}

/// Returns a page of servers that contain `text`, newest first.
fn search(
    store: &dyn Records,
    servers: &Servers,
    filter: &Filter,
    text: &str,
    cursor: Option<u64>,
    now: Timestamp,
) -> Result<Found, ReadError> {
    let before = cursor.and_then(|n| u32::try_from(n).ok()).map(ServerNumber);
    let mut found = Vec::new();
    let stopped = look_through(store, before, |server| {
        let server = servers.as_last_seen(server, now);
        if filter.matches(&server) && contains(&server, text) {
            found.push(server);
        }
        found.len() < PAGE
    })?;
    Ok((found, stopped.map(|number| u64::from(number.0))))
}

/// Returns who enrolled a server, in words.
fn enrolled_by(state: &State, by: EnrolledBy) -> String {
    match by {
        EnrolledBy::Unknown => String::new(),
        EnrolledBy::Master => "master token".to_owned(),
        EnrolledBy::Token(number) => state.access.name_of(number),
        EnrolledBy::Activation(name) => name.to_string(),
        EnrolledBy::Import => "import".to_owned(),
    }
}

pub(super) fn row(state: &State, clone: Option<Cloned>, server: Server, stale: Timestamp) -> Row {
    let shown = if server.deleted {
        "deleted"
    } else if server.revoked {
        "revoked"
    } else if server.last_checkin < stale {
        "stale"
    } else {
        "live"
    };
    Row {
        server_id: server.id.to_string(),
        ip: server.ip.to_string(),
        enrolled_by: enrolled_by(state, server.enrolled_by),
        hostname: server.hostname,
        registered_at: rfc3339(server.registered_at),
        last_checkin: rfc3339(server.last_checkin),
        state: shown,
        clone,
        note: server.note,
    }
}

#[derive(Template)]
#[template(path = "console/servers.html")]
struct Page<'a> {
    page: &'static str,
    operator: &'a Operator,
    query: &'a ServersQuery,
    list: &'a List,
    /// The address to return to after a form.
    back: String,
    next: Option<String>,
}

fn path_of(base: &str, query: &ServersQuery, cursor: &str) -> String {
    let pairs = [
        ("show", query.show.as_str()),
        ("sort", &query.sort),
        ("text", &query.text),
        ("cursor", cursor),
    ];
    format!("{base}/servers?{}", query_string(&pairs))
}

/// `GET /console/{key}/servers`
pub async fn page(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    query: Query<ServersQuery>,
) -> HttpResponse {
    match list(&console, &query).await {
        Ok(list) => html(
            StatusCode::OK,
            &Page {
                page: "servers",
                operator: &operator,
                query: &query,
                back: path_of(&operator.base, &query, &query.cursor),
                next: list
                    .next_cursor
                    .as_ref()
                    .map(|cursor| path_of(&operator.base, &query, cursor)),
                list: &list,
            },
        ),
        Err(error) => failed(&request, &error),
    }
}

/// `GET /admin/servers`
pub async fn json_list(
    console: Data<Console>,
    request: HttpRequest,
    query: Query<ServersQuery>,
) -> HttpResponse {
    match list(&console, &query).await {
        Ok(list) => success(StatusCode::OK, list, "Servers"),
        Err(error) => failed(&request, &error),
    }
}
