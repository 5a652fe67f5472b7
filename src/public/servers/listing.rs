//! `GET /status`: all servers, or a page of them.

use crate::http::errors::ApiError;
use crate::http::respond::{LegacyFailure, json, legacy_failure, rfc3339};
use crate::state::State;
use crate::state::access::caller::Caller;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Query};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use iptunnel_actors::server_registry::{Filter, Servers};
use iptunnel_domain::Timestamp;
use iptunnel_domain::access::TokenNumber;
use iptunnel_domain::server::{Server, ServerNumber};
use iptunnel_storage::{ReadError, Store};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// Servers per read of the store while a listing streams: about 100 KB.
const PAGE: usize = 512;
/// The most numbers of servers that are taken from memory at a time, 4 bytes each. To look for them takes
/// up to 50 ms with a million servers.
const AHEAD: usize = 32 * PAGE;
/// The largest `limit`.
const MAX_LIMIT: usize = 1000;

#[derive(Serialize, ToSchema)]
pub(in crate::public) struct ListedServer {
    #[schema(pattern = "^[0-9a-f]{16}$", examples("0123456789abcdef"))]
    server_id: String,
    #[schema(examples("1.2.3.4"))]
    ip: String,
    #[schema(examples("ns1.example.com"))]
    hostname: String,
    #[schema(format = DateTime, examples("2026-03-31T12:00:00+00:00"))]
    registered_at: String,
    #[schema(format = DateTime, examples("2026-03-31T12:05:00+00:00"))]
    last_checkin: String,
    /// 1 if the server is revoked, else 0.
    #[schema(minimum = 0, maximum = 1, examples(0))]
    revoked: u8,
    /// The operator's note.
    #[schema(examples(""))]
    note: String,
}

impl ListedServer {
    pub(super) fn of(server: Server) -> Self {
        Self {
            server_id: server.id.to_string(),
            ip: server.ip.to_string(),
            hostname: server.hostname,
            registered_at: rfc3339(server.registered_at),
            last_checkin: rfc3339(server.last_checkin),
            revoked: u8::from(server.revoked),
            note: server.note,
        }
    }
}

/// The query of `GET /status`, as text.
#[derive(Deserialize)]
struct StatusQuery {
    limit: Option<String>,
    cursor: Option<String>,
    revoked: Option<String>,
    stale: Option<String>,
}

/// The parsed query of `GET /status`.
struct Listing {
    filter: Filter,
    limit: Option<usize>,
    before: Option<ServerNumber>,
}

impl Listing {
    fn read(
        query: &str,
        (now, stale_after_hours): (Timestamp, u64),
        enrolled_by: Option<TokenNumber>,
    ) -> Result<Self, String> {
        let query = Query::<StatusQuery>::from_query(query)
            .map_err(|_| "limit, cursor, revoked and stale may each be given once.")?
            .into_inner();
        let limit = match query.limit.as_deref().map(str::parse::<usize>) {
            None => None,
            Some(Ok(limit)) if (1..=MAX_LIMIT).contains(&limit) => Some(limit),
            Some(_) => return Err(format!("limit must be a number from 1 to {MAX_LIMIT}.")),
        };
        let before = match query.cursor.as_deref().map(str::parse::<u32>) {
            None => None,
            Some(Ok(number)) => Some(ServerNumber(number)),
            Some(Err(_)) => return Err("cursor must be a next_cursor of an earlier page.".into()),
        };
        let flag = |name: &str, value: Option<&str>| match value {
            None => Ok(None),
            Some("0") => Ok(Some(false)),
            Some("1") => Ok(Some(true)),
            Some(_) => Err(format!("{name} must be 0 or 1.")),
        };
        let stale = flag("stale", query.stale.as_deref())? == Some(true);
        let horizon = Timestamp(now.0.saturating_sub(stale_after_hours.saturating_mul(3600)));
        let filter = Filter {
            revoked: flag("revoked", query.revoked.as_deref())?,
            seen_before: stale.then_some(horizon),
            enrolled_by,
            ..Filter::default()
        };
        Ok(Self { filter, limit, before })
    }
}

/// Iterates over the servers of a listing, newest first, one page of the store at a time. Of the servers of
/// one access token only those are read: its holder, a machine, must not make the server read all.
struct Walk {
    store: Arc<dyn Store>,
    servers: Arc<Servers>,
    filter: Filter,
    before: Option<ServerNumber>,
    /// How many numbers to take from memory at a time.
    at_once: usize,
    /// The numbers of the next servers, if those are taken from memory.
    ahead: Vec<ServerNumber>,
    now: Timestamp,
    done: bool,
}

impl Walk {
    fn read_any(&mut self) -> Result<Vec<Server>, ReadError> {
        let page = self.store.servers_before(self.before, PAGE)?;
        self.done = page.len() < PAGE;
        self.before = page.last().map(|last| last.number).or(self.before);
        Ok(page)
    }

    fn read_own(&mut self) -> Result<Vec<Server>, ReadError> {
        if self.ahead.is_empty() {
            self.ahead = self.servers.newest(&self.filter, self.before, self.at_once);
        }
        let numbers = self.ahead.drain(..self.ahead.len().min(PAGE));
        self.done = numbers.len() == 0;
        let mut page = Vec::with_capacity(numbers.len());
        for number in numbers {
            self.before = Some(number);
            page.extend(self.store.server(number)?);
        }
        Ok(page)
    }

    /// Returns the matches among the next servers. The result can be empty before the end.
    fn next(&mut self) -> Result<Vec<Server>, ReadError> {
        let page = match self.filter.enrolled_by {
            Some(_) => self.read_own()?,
            None => self.read_any()?,
        };
        let seen = page.into_iter().map(|server| self.servers.as_last_seen(server, self.now));
        let mut found: Vec<_> = seen.filter(|server| self.filter.matches(server)).collect();
        if self.filter.enrolled_by.is_some() {
            // The caller's token lies on machines, which the operator's notes are not for.
            found.iter_mut().for_each(|server| server.note.clear());
        }
        Ok(found)
    }
}

/// `GET /status`
#[utoipa::path(
    get,
    path = "/status",
    operation_id = "status",
    tag = "Main stack",
    summary = "List servers",
    description = "Lists the registered servers, newest first. Without limit the response has all servers, even a million. A token that \
        enrols servers sees its own.",
    params(
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 1000, nullable = false,
            description = "Servers per page: 1 to 1000."),
        ("cursor" = Option<u32>, Query, nullable = false,
            description = "The next_cursor of the previous page."),
        ("revoked" = Option<u8>, Query, minimum = 0, maximum = 1, nullable = false,
            description = "1: only revoked servers. 0: only servers that are not revoked."),
        ("stale" = Option<u8>, Query, minimum = 0, maximum = 1, nullable = false,
            description = "1: only servers whose last check-in is too long ago."),
    ),
    responses((
            status = 200,
            description = "The servers.",
            body = StatusPage,
        ),(
            status = 400,
            description = "A query parameter is not valid.",
            body = LegacyFailure,
        ),(
            status = 403,
            description = "The token is missing or not valid, or its role does not include this.",
            body = LegacyFailure,
        )),
)]
pub async fn status(state: Data<State>, request: HttpRequest, caller: Caller) -> HttpResponse {
    let hours = state.live.config.load().servers.stale_after_hours;
    let now = state.clock.now();
    let listing = match Listing::read(request.query_string(), (now, hours), caller.enrols_for()) {
        Ok(listing) => listing,
        Err(message) => return legacy_failure(ApiError::bad_request(message)),
    };
    let walk = Walk {
        store: Arc::clone(state.handles.store()),
        servers: Arc::clone(state.handles.servers()),
        filter: listing.filter,
        before: listing.before,
        // One more than requested, to know whether there is a next page.
        at_once: listing.limit.map_or(AHEAD, |limit| limit + 1),
        ahead: Vec::new(),
        now,
        done: false,
    };
    match listing.limit {
        Some(limit) => one_page(walk, limit).await,
        None => stream(walk).await,
    }
}

#[derive(Serialize, ToSchema)]
pub(in crate::public) struct StatusPage {
    /// The number of matching servers.
    #[schema(examples(1))]
    count: usize,
    servers: Vec<ListedServer>,
    /// The `cursor` for the next page. Only with `limit`, and only if there are more servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, examples("4711"))]
    next_cursor: Option<String>,
}

async fn one_page(mut walk: Walk, limit: usize) -> HttpResponse {
    let collected = actix_web::web::block(move || {
        let count = walk.servers.count(&walk.filter);
        let mut servers = Vec::new();
        // Reads one more than requested, to know whether there is a next page.
        while servers.len() <= limit && !walk.done {
            servers.extend(walk.next()?);
        }
        let more = servers.len() > limit;
        servers.truncate(limit);
        let last = servers.last().map(|server| server.number.0.to_string());
        let next_cursor = last.filter(|_| more);
        let servers = servers.into_iter().map(ListedServer::of).collect();
        Ok::<_, ReadError>(StatusPage { count, servers, next_cursor })
    })
    .await;
    match collected {
        Ok(Ok(page)) => json(StatusCode::OK, &page),
        Ok(Err(error)) => unreadable(&error),
        Err(_) => legacy_failure(ApiError::internal()),
    }
}

fn unreadable(error: &ReadError) -> HttpResponse {
    tracing::error!(%error, "could not list the servers");
    legacy_failure(iptunnel_actors::Failure::StorageUnavailable)
}

/// Streams all matches, with one page at a time in memory.
async fn stream(walk: Walk) -> HttpResponse {
    let counted = actix_web::web::block(move || {
        let count = walk.servers.count(&walk.filter);
        next_chunk(walk, format!("{{\"count\":{count},\"servers\":["), true)
    })
    .await;
    let first = match counted {
        Ok(Ok(first)) => first,
        Ok(Err(error)) => return unreadable(&error),
        Err(_) => return legacy_failure(ApiError::internal()),
    };
    let chunks = futures_util::stream::unfold(Some(first), |step| async {
        let (chunk, rest) = step?;
        let next = match rest {
            None => None,
            Some((walk, is_first)) => {
                let next =
                    actix_web::web::block(move || next_chunk(walk, String::new(), is_first)).await;
                match next {
                    Ok(Ok(next)) => Some(next),
                    // The status has been sent. The response ends in the middle, so that a JSON
                    // parser reports an error.
                    Ok(Err(error)) => return Some((Err(error.0), None)),
                    Err(error) => return Some((Err(error.to_string()), None)),
                }
            }
        };
        Some((Ok::<Bytes, String>(chunk), next))
    });
    HttpResponse::Ok()
        .insert_header(("content-type", "application/json"))
        .insert_header(("cache-control", "no-store"))
        .streaming(futures_util::TryStreamExt::map_err(
            chunks,
            actix_web::error::ErrorInternalServerError,
        ))
}

/// A chunk of the stream, and the state for the next one.
type Chunk = (Bytes, Option<(Walk, bool)>);

fn next_chunk(mut walk: Walk, mut text: String, mut is_first: bool) -> Result<Chunk, ReadError> {
    // A filter may match nothing on many pages. Continue until there is something to send.
    loop {
        for server in walk.next()? {
            if !is_first {
                text.push(',');
            }
            is_first = false;
            let listed = serde_json::to_string(&ListedServer::of(server));
            text.push_str(&listed.map_err(|e| ReadError(e.to_string()))?);
        }
        if walk.done {
            text.push_str("]}");
            return Ok((text.into(), None));
        }
        if !text.is_empty() {
            return Ok((text.into(), Some((walk, is_first))));
        }
    }
}
