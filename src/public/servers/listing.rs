//! `GET /status`: all servers, or a page of them.

use crate::http::errors::ApiError;
use crate::http::respond::{LegacyFailure, json, legacy_failure, rfc3339};
use crate::state::State;
use crate::state::access::caller::Caller;
use crate::state::servers::numbered;
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
use tokio::time::timeout;
use utoipa::ToSchema;

/// Servers per read of the store while a listing streams: about 100 KB.
const PAGE: usize = 512;
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

/// Where the servers of a listing come from.
enum Source {
    /// The store: all that were registered before this one.
    Before(Option<ServerNumber>),
    /// Memory, which has looked through all servers once. These are left.
    These(std::vec::IntoIter<ServerNumber>),
}

/// Iterates over the servers of a listing, newest first, one page of the store at a time.
struct Walk {
    store: Arc<dyn Store>,
    servers: Arc<Servers>,
    filter: Filter,
    from: Source,
    /// The last of these servers, if there may be others after it.
    more: Option<ServerNumber>,
    /// Servers per read of the store.
    step: usize,
    now: Timestamp,
    done: bool,
}

impl Walk {
    /// Looks at the servers for a listing once. Returns how many match, and the walk through them.
    ///
    /// Where few may match, memory says which, so that no other rows are read: the servers of one access
    /// token, whose holder is a machine, and a page of those that match a filter.
    fn begin(
        store: Arc<dyn Store>,
        servers: Arc<Servers>,
        listing: &Listing,
        now: Timestamp,
    ) -> (usize, Self) {
        let Listing { filter, limit, before } = *listing;
        // One more than requested, to know whether there is a next page.
        let most = limit.map_or(usize::MAX, |limit| limit + 1);
        let is_filtered = filter != Filter::default();
        let (count, from, more) =
            if filter.enrolled_by.is_some() || (is_filtered && limit.is_some()) {
                let (count, numbers) = servers.newest(&filter, before, most);
                let more = if numbers.len() == most { numbers.last().copied() } else { None };
                (count, Source::These(numbers.into_iter()), more)
            } else {
                (servers.count(&filter), Source::Before(before), None)
            };
        let step = PAGE.min(most);
        (count, Self { store, servers, filter, from, more, step, now, done: false })
    }

    /// Returns the matches among the next servers. The result can be empty before the end.
    fn next(&mut self) -> Result<Vec<Server>, ReadError> {
        let page = match &mut self.from {
            Source::Before(before) => {
                let page = self.store.servers_before(*before, self.step)?;
                self.done = page.len() < self.step;
                *before = page.last().map(|last| last.number).or(*before);
                page.into_iter().map(|server| self.servers.as_last_seen(server, self.now)).collect()
            }
            Source::These(numbers) => {
                let some: Vec<_> = numbers.by_ref().take(self.step).collect();
                self.done = numbers.len() == 0;
                numbered(self.store.as_ref(), &self.servers, &some, self.now)?
            }
        };
        // It may have changed since memory was looked at.
        let mut found: Vec<_> =
            page.into_iter().filter(|server| self.filter.matches(server)).collect();
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
    // Held until the servers have been looked at. A machine that asks again and again occupies one thread.
    let turn = caller.listing_turn();
    let _turn = match &turn {
        None => None,
        Some(turn) => match timeout(state.live.patience(), turn.lock()).await {
            Ok(turn) => Some(turn),
            Err(_) => return legacy_failure(iptunnel_actors::Failure::Overloaded),
        },
    };
    let limit = listing.limit;
    let (store, servers) = (Arc::clone(state.handles.store()), Arc::clone(state.handles.servers()));
    let begin = move || Walk::begin(store, servers, &listing, now);
    match limit {
        Some(limit) => one_page(begin, limit).await,
        None => stream(begin).await,
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

async fn one_page(
    begin: impl FnOnce() -> (usize, Walk) + Send + 'static,
    limit: usize,
) -> HttpResponse {
    let collected = actix_web::web::block(move || {
        let (count, mut walk) = begin();
        let mut servers = Vec::new();
        // Reads one more than requested, to know whether there is a next page.
        while servers.len() <= limit && !walk.done {
            servers.extend(walk.next()?);
        }
        let mut last = walk.more;
        if servers.len() > limit {
            servers.truncate(limit);
            last = servers.last().map(|server| server.number);
        }
        let next_cursor = last.map(|number| number.0.to_string());
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
async fn stream(begin: impl FnOnce() -> (usize, Walk) + Send + 'static) -> HttpResponse {
    let counted = actix_web::web::block(move || {
        let (count, walk) = begin();
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
