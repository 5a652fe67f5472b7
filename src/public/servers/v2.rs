//! The v2 routes that list, show and register servers.

use super::listing::ListedServer;
use super::{Family, SERVERS, read_registration};
use crate::http::caller::{address_of, network_of};
use crate::http::errors::ApiError;
use crate::http::respond::{Paged, PagedMeta, Pagination, Success, failure, json, success};
use crate::public::requests::RegisterRequest;
use crate::state::State;
use crate::state::access::caller::Caller;
use crate::state::servers::{self, SEARCHED, contains, find, look_through};
use actix_web::http::StatusCode;
use actix_web::web::{Data, Payload, Query};
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_actors::server_registry::{Filter, Servers};
use iptunnel_domain::server::{Server, ServerId};
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::{ReadError, Store};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// Servers on a page, if the caller does not say.
const PER_PAGE: u32 = 50;
/// The most servers on a page.
const MAX_PER_PAGE: u32 = 100;
/// The longest text to search for, in characters: more than any field of a server has room for.
const LONGEST_SEARCH: usize = 500;

/// A server, with its state in words.
#[derive(Serialize, ToSchema)]
pub(in crate::public) struct ServerEntry {
    #[serde(flatten)]
    server: ListedServer,
    #[schema(pattern = "^(active|revoked)$", examples("active"))]
    status: &'static str,
}

impl ServerEntry {
    fn of(server: Server) -> Self {
        let status = if server.revoked { "revoked" } else { "active" };
        Self { server: ListedServer::of(server), status }
    }
}

#[derive(Serialize, ToSchema)]
pub(in crate::public) struct ServerDeleted {
    #[schema(pattern = "^[0-9a-f]{16}$", examples("0123456789abcdef"))]
    server_id: String,
    #[schema(pattern = "^deleted$", examples("deleted"))]
    status: &'static str,
}

#[derive(Serialize, ToSchema)]
pub(in crate::public) struct ServerPage {
    /// Newest first.
    servers: Vec<ServerEntry>,
}

/// The query of a listing, as text.
#[derive(Deserialize)]
struct PageQuery {
    page: Option<String>,
    per_page: Option<String>,
    status: Option<String>,
    search: Option<String>,
}

/// The parsed query of a listing.
#[derive(Debug)]
struct Listing {
    page: u32,
    per_page: u32,
    filter: Filter,
    /// In lower case. Empty: no search.
    search: String,
}

fn number(name: &str, text: Option<&str>, default: u32, max: u32) -> Result<u32, Refusal> {
    let Some(text) = text else { return Ok(default) };
    let number = text.parse().ok().filter(|number| (1..=max).contains(number));
    number.ok_or_else(|| Refusal::InvalidField(format!("{name} must be a number from 1 to {max}.")))
}

impl Listing {
    /// Reads a query. A server whose last check-in was before `stale` is stale.
    fn read(query: &str, stale: Timestamp) -> Result<Self, Refusal> {
        let invalid = |message: &str| Refusal::InvalidField(message.to_owned());
        let query = Query::<PageQuery>::from_query(query)
            .map_err(|_| invalid("page, per_page, status and search may each be given once."))?
            .into_inner();
        let filter = match query.status.as_deref().unwrap_or_default() {
            "" | "all" => Filter::default(),
            "active" => Filter { revoked: Some(false), ..Filter::default() },
            "revoked" => Filter { revoked: Some(true), ..Filter::default() },
            "stale" => {
                Filter { revoked: Some(false), seen_before: Some(stale), ..Filter::default() }
            }
            _ => return Err(invalid("status must be all, active, revoked or stale.")),
        };
        let search = query.search.as_deref().unwrap_or_default().trim().to_lowercase();
        if search.chars().count() > LONGEST_SEARCH {
            let message = format!("search must be at most {LONGEST_SEARCH} characters long.");
            return Err(Refusal::InvalidField(message));
        }
        Ok(Self {
            page: number("page", query.page.as_deref(), 1, u32::MAX)?,
            per_page: number("per_page", query.per_page.as_deref(), PER_PAGE, MAX_PER_PAGE)?,
            filter,
            search,
        })
    }

    /// The servers before this page. They may be more than there can be.
    fn skipped(&self) -> usize {
        (self.page as usize - 1).saturating_mul(self.per_page as usize)
    }
}

/// The matches on a page, and how many there are in all.
struct Matches {
    servers: Vec<Server>,
    total: usize,
    /// Whether a search ended before it had looked at all servers.
    is_cut: bool,
}

/// Returns a page in the order of registration. Reads no more rows than it returns.
fn page(
    store: &dyn Store,
    servers: &Servers,
    listing: &Listing,
    now: Timestamp,
) -> Result<Matches, ReadError> {
    let limit = listing.per_page as usize;
    let (total, numbers) = servers.page_at(&listing.filter, listing.skipped(), limit);
    let servers = servers::numbered(store, servers, &numbers, now)?;
    Ok(Matches { servers, total, is_cut: false })
}

/// Returns a page of the servers that contain a text. Looks at the newest [`SEARCHED`] servers. One whose
/// id is the text is found wherever it is, and one whose address it is unless it was imported.
fn search(
    store: &dyn Store,
    servers: &Servers,
    listing: &Listing,
    named: Option<ServerId>,
    now: Timestamp,
) -> Result<Matches, ReadError> {
    let (skipped, limit) = (listing.skipped(), listing.per_page as usize);
    let named = match named.and_then(|id| servers.number_of(id)) {
        Some(number) => store.server(number)?,
        None => None,
    };
    let (mut found, mut total) = (Vec::new(), 0);
    let mut count = |server: Server| {
        let server = servers.as_last_seen(server, now);
        if listing.filter.matches(&server) && contains(&server, &listing.search) {
            if (skipped..skipped.saturating_add(limit)).contains(&total) {
                found.push(server);
            }
            total += 1;
        }
    };
    let stopped = look_through(store, None, |server| {
        count(server);
        true
    })?;
    // Older than all that were looked at.
    let is_older = |server: &Server| stopped.is_some_and(|last| server.number < last);
    named.filter(is_older).into_iter().for_each(&mut count);
    Ok(Matches { servers: found, total, is_cut: stopped.is_some() })
}

/// `GET /api/v2/servers`
#[utoipa::path(
    get,
    path = "/api/v2/servers",
    operation_id = "servers",
    tag = "Servers",
    summary = "List servers",
    description = "Lists the registered servers page by page, newest first. A search looks at the newest \
        50,000 servers; if there are more, the message says so. A server whose id is the text is always found, and \
        one whose address it is, unless it was imported.",
    params(
        ("page" = Option<u32>, Query, minimum = 1, nullable = false, description = "The page. Default: 1."),
        ("per_page" = Option<u32>, Query, minimum = 1, maximum = 100, nullable = false,
            description = "Servers on a page: 1 to 100. Default: 50."),
        ("status" = Option<String>, Query, nullable = false,
            description = "all, active, revoked, or stale: active, but the last check-in is too long ago. Default: all."),
        ("search" = Option<String>, Query, max_length = 500, nullable = false,
            description = "A part of host name, address, id or note, in upper or lower case."),
    ),
    responses((status = 200, description = "The servers.", body = Paged<ServerPage>)),
)]
pub async fn list(state: Data<State>, request: HttpRequest) -> HttpResponse {
    match list_of(&state, &request).await {
        Ok(response) => response,
        Err(error) => failure(error),
    }
}

async fn list_of(state: &State, request: &HttpRequest) -> Result<HttpResponse, ApiError> {
    let now = state.clock.now();
    let hours = state.live.config.load().servers.stale_after_hours;
    let stale = Timestamp(now.0.saturating_sub(hours.saturating_mul(3600)));
    let listing = Listing::read(request.query_string(), stale)?;
    let (per_page, number) = (listing.per_page, listing.page);
    let servers = Arc::clone(state.handles.servers());
    let named = ServerId::parse(&listing.search).or_else(|| {
        let address = listing.search.parse().ok()?;
        Some(ServerId::of(address, &state.live.lookup))
    });
    let found = state.read_store(move |store| {
        if listing.search.is_empty() {
            page(store, &servers, &listing, now)
        } else {
            search(store, &servers, &listing, named, now)
        }
    });
    let Matches { servers, total, is_cut } = found.await?;
    let message = match is_cut {
        true => format!("Servers; only the newest {SEARCHED} were searched"),
        false => "Servers".into(),
    };
    let pages = total.div_ceil(per_page as usize);
    let pagination = Pagination { page: number, per_page, total, pages };
    let data = ServerPage { servers: servers.into_iter().map(ServerEntry::of).collect() };
    Ok(json(StatusCode::OK, &Paged { data, meta: PagedMeta { message: &message, pagination } }))
}

/// Returns the id in `/api/v2/servers/{server_id}`.
pub fn id_in(path: &str) -> Option<&str> {
    path.strip_prefix(SERVERS)?.strip_prefix('/').filter(|id| !id.contains('/'))
}

/// `GET /api/v2/servers/{server_id}`
#[utoipa::path(
    get,
    path = "/api/v2/servers/{server_id}",
    operation_id = "server",
    tag = "Servers",
    summary = "Show a server",
    description = "Shows a registered server.",
    params(("server_id" = String, Path, description = "The id from the registration.", example = "0123456789abcdef")),
    responses((status = 200, description = "The server.", body = Success<ServerEntry>)),
)]
pub async fn one(state: Data<State>, request: HttpRequest) -> HttpResponse {
    let Some(id) = id_in(request.path()) else { return failure(ApiError::not_found()) };
    match find(&state, id).await {
        Ok(server) => success(StatusCode::OK, ServerEntry::of(server), "Server"),
        Err(error) => failure(error),
    }
}

/// `DELETE /api/v2/servers/{server_id}`
#[utoipa::path(
    delete,
    path = "/api/v2/servers/{server_id}",
    operation_id = "server_delete",
    tag = "Servers",
    summary = "Delete a server",
    description = "Deletes a server. A revoked server leaves the lists, but stays revoked: its address cannot \
        register before it is restored by its id.",
    params(("server_id" = String, Path, description = "The id from the registration.", example = "0123456789abcdef")),
    responses((status = 200, description = "The server is deleted.", body = Success<ServerDeleted>)),
)]
pub async fn delete(state: Data<State>, request: HttpRequest, caller: Caller) -> HttpResponse {
    let Some(id) = id_in(request.path()) else { return failure(ApiError::not_found()) };
    let who = (&caller, network_of(&request, &state.proxies));
    match servers::delete(&state, id, who).await {
        Ok(id) => {
            let data = ServerDeleted { server_id: id.to_string(), status: "deleted" };
            success(StatusCode::OK, data, "Server deleted")
        }
        Err(error) => failure(error),
    }
}

/// `POST /api/v2/servers/register`
#[utoipa::path(
    post,
    path = "/api/v2/servers/register",
    operation_id = "server_register",
    tag = "Servers",
    summary = "Register a server",
    description = "Registers the server with this address. A repeated registration of the same address gets \
        the same id and updates the host name. With agent_token the machine checks in with a secret of its \
        own from then on, and no longer with the token that registered it.",
    request_body = RegisterRequest,
    responses((status = 200, description = "The server is registered.", body = Success<ServerEntry>)),
)]
pub async fn register(state: Data<State>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let now = state.clock.now();
    let from = address_of(&request, &state.proxies);
    let bytes = state.read(payload).await;
    let command = match read_registration(&state, &bytes, from, now, Family::V2).await {
        Ok(command) => command,
        Err(error) => return failure(error),
    };
    match command.send(&state).await.outcome {
        Ok(Ok(server)) => success(StatusCode::OK, ServerEntry::of(server), "Server registered"),
        Ok(Err(refusal)) => failure(refusal),
        Err(error) => failure(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_with_its_defaults_and_its_bounds() {
        let read = |query| Listing::read(query, Timestamp(7));
        let listing = read("").unwrap();
        assert_eq!((listing.page, listing.per_page, listing.skipped()), (1, 50, 0));
        let listing = read("page=3&per_page=100&status=stale&search=%20NS1&other=x").unwrap();
        assert_eq!((listing.skipped(), &*listing.search), (200, "ns1"));
        assert_eq!(listing.filter.seen_before, Some(Timestamp(7)));
        for (query, field) in [
            ("page=0", "page must"),
            ("page=x", "page must"),
            ("page=4294967296", "page must"),
            ("per_page=0", "per_page must"),
            ("per_page=101", "per_page must"),
            ("per_page=", "per_page must"),
            ("status=gone", "status must"),
            ("page=1&page=2", "page, per_page"),
        ] {
            let Refusal::InvalidField(message) = read(query).unwrap_err() else {
                panic!("{query}")
            };
            assert!(message.starts_with(field), "{query}: {message}");
        }
        assert!(read(&format!("search={}", "x".repeat(501))).is_err());
    }

    #[test]
    fn the_id_of_a_path_is_its_last_part() {
        assert_eq!(id_in("/api/v2/servers/x"), Some("x"));
        assert_eq!(id_in("/api/v2/servers/x/y"), None);
        assert_eq!(id_in("/api/v2/serversx"), None);
    }
}
