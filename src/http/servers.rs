//! Registered servers: the legacy routes and their v2 counterparts.

use super::body::{Body, Field, fields, object};
use super::caller::network_of;
use super::errors::ApiError;
use super::reference::requests::{RegisterRequest, ServerRequest};
use super::respond::{
    LegacyFailure, Success, failure, failure_for, json, legacy_failure, rfc3339, success,
};
use super::state::State;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Payload, Query};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use iptunnel_actors::server_registry::{CheckIn, CheckedIn, Filter, Register, Servers, SetRevoked};
use iptunnel_domain::address::parse_public_ip;
use iptunnel_domain::lookup::Purpose;
use iptunnel_domain::server::{Bearer, Server, ServerId, ServerNumber};
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::{ReadError, Store};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use utoipa::ToSchema;

/// Longer than any token or id that is good.
pub(super) const FIELD: usize = 4096;
/// Servers read from the store at a time while a listing streams: some 100 KB.
const PAGE: usize = 512;
/// The largest page that may be asked for.
const MAX_LIMIT: usize = 1000;

#[derive(Default, Deserialize)]
#[serde(default)]
struct ServerBody<'a> {
    #[serde(borrow)]
    token: Field<'a>,
    #[serde(borrow)]
    ip: Field<'a>,
    #[serde(borrow)]
    hostname: Field<'a>,
    #[serde(borrow)]
    server_id: Field<'a>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Registered {
    #[schema(pattern = "^authorized$", examples("authorized"))]
    status: &'static str,
    #[serde(flatten)]
    server: ListedServer,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ListedServer {
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
    /// 1 where the server is revoked, else 0.
    #[schema(minimum = 0, maximum = 1, examples(0))]
    revoked: u8,
    /// What the operator has noted.
    #[schema(examples(""))]
    note: String,
}

impl ListedServer {
    fn of(server: Server) -> Self {
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

#[derive(Serialize, ToSchema)]
pub(super) struct ServerStatus<'a> {
    #[schema(pattern = "^revoked$", examples("revoked"))]
    status: &'a str,
    #[schema(pattern = "^[0-9a-f]{16}$", examples("0123456789abcdef"))]
    server_id: String,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ServerAction<'a> {
    #[schema(pattern = "^[0-9a-f]{16}$", examples("0123456789abcdef"))]
    server_id: String,
    #[schema(pattern = "^(revoked|active)$", examples("revoked"))]
    status: &'a str,
}

#[derive(Serialize, ToSchema)]
pub(super) struct AliveStatus {
    #[schema(pattern = "^ok$", examples("ok"))]
    status: &'static str,
    #[schema(pattern = "^[0-9a-f]{16}$", examples("0123456789abcdef"))]
    server_id: String,
    /// When to check in next.
    #[schema(examples(86400))]
    next_checkin_seconds: u64,
}

#[derive(Serialize, ToSchema)]
pub(super) struct RevokedRegistration {
    #[schema(examples("The token is not valid."))]
    error: &'static str,
    /// Where the server is revoked.
    #[schema(required = false, pattern = "^[0-9a-f]{16}$", examples("0123456789abcdef"))]
    server_id: String,
}

/// What a check-in is told with status 200: that all is well; or, where the operator has chosen
/// so, that the server is revoked.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code)]
pub(super) enum CheckInAnswer<'a> {
    Alive(AliveStatus),
    Revoked(ServerStatus<'a>),
}

/// A legacy failure with status 400 and these words.
fn bad_request(message: impl Into<String>) -> HttpResponse {
    legacy_failure(ApiError::new(StatusCode::BAD_REQUEST, "validation_error", message))
}

fn forbidden(message: &str) -> HttpResponse {
    legacy_failure(ApiError::new(StatusCode::FORBIDDEN, "unauthorized", message))
}

fn bearer(state: &State, request: &HttpRequest) -> Bearer {
    let header = request.headers().get("authorization");
    // A header that is no text is somebody's token, though never a good one.
    state.bearer(header.map(|header| header.to_str().unwrap_or("?")))
}

/// The body of a legacy request, or the 400 (or 413) it deserves.
fn legacy_body(bytes: &Body) -> Result<ServerBody<'_>, HttpResponse> {
    fields(bytes).map_err(legacy_failure)
}

/// The server that a legacy request names.
fn server_id(bytes: &Body) -> Result<String, HttpResponse> {
    let id = legacy_body(bytes)?.server_id.check("server_id", FIELD);
    id.map(Cow::into_owned).map_err(bad_request)
}

/// `POST /register`
#[utoipa::path(
    post,
    path = "/register",
    operation_id = "register",
    tag = "Main stack",
    summary = "Register a server",
    description = "Registers the server with this address, or finds it again: the same address always gets \
        the same id, and the new host name.",
    request_body = RegisterRequest,
    responses((
            status = 200,
            description = "The server is registered.",
            body = Registered,
        ),(
            status = 400,
            description = "The body is missing, not a JSON object, or a field is missing or not valid. The error says which.",
            body = LegacyFailure,
        ),(
            status = 403,
            description = "The token is not valid; or the server is revoked: then with its id.",
            body = RevokedRegistration,
        )),
)]
pub async fn register(state: Data<State>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let now = state.clock.now();
    let from = network_of(&request, &state.proxies);
    let bytes = match state.read(payload).await {
        Ok(bytes) => bytes,
        Err(error) => return legacy_failure(error),
    };
    let command = match read_registration(&state, &bytes, from, now) {
        Ok(command) => command,
        Err(response) => return response,
    };
    let answer = state.wait(state.handles.register(command)).await;
    match answer.outcome {
        Ok(Ok(server)) => {
            let server = ListedServer::of(server);
            json(StatusCode::OK, &Registered { status: "authorized", server })
        }
        Ok(Err(Refusal::ServerRevoked(id))) => json(
            StatusCode::FORBIDDEN,
            &RevokedRegistration { error: "server is revoked", server_id: id.to_string() },
        ),
        Ok(Err(refusal)) => legacy_failure(refusal),
        Err(error) => legacy_failure(error),
    }
}

fn read_registration(
    state: &State,
    bytes: &Body,
    from: IpAddr,
    now: Timestamp,
) -> Result<Register, HttpResponse> {
    let body = legacy_body(bytes)?;
    let token = body.token.check("token", FIELD).map_err(bad_request)?;
    let address = body.ip.check("ip", FIELD).map_err(bad_request)?;
    let hostname = match body.hostname.optional("hostname", Server::HOSTNAME_BYTES) {
        Ok(hostname) => hostname,
        Err(_) => return Err(bad_request("hostname must be a string.")),
    };
    let hash = state.lookup.hash(Purpose::Token, token.as_bytes());
    if !hash.ct_eq(&state.master.load()) {
        return Err(forbidden("The token is not valid."));
    }
    let allow_private = state.config.load().server.allow_private_ips;
    let ip = parse_public_ip(&address, allow_private).ok_or_else(|| {
        bad_request("ip must be an IPv4 or IPv6 address that the Internet can reach.")
    })?;
    let id = ServerId::of(ip, &state.lookup);
    Ok(Register { id, ip, hostname: hostname.into_owned(), token: hash, from, now })
}

/// `POST /checkin`
#[utoipa::path(
    post,
    path = "/checkin",
    operation_id = "checkin",
    tag = "Main stack",
    summary = "Check in",
    description = "Says that the server is alive. An Authorization is not needed; where one is sent it must \
        be the token that registered the server or the master token.",
    request_body = ServerRequest,
    responses((
            status = 200,
            description = "The server is alive, or, where the operator has chosen so, revoked.",
            body = CheckInAnswer,
        ),(
            status = 400,
            description = "The body is missing, not a JSON object, or a field is missing or not valid. The error says which.",
            body = LegacyFailure,
        ),(
            status = 401,
            description = "The token is not valid.",
            body = LegacyFailure,
        ),(
            status = 403,
            description = "The server is revoked.",
            body = ServerStatus,
        ),(
            status = 404,
            description = "There is no such server.",
            body = LegacyFailure,
        )),
)]
pub async fn legacy_check_in(
    state: Data<State>,
    request: HttpRequest,
    payload: Payload,
) -> HttpResponse {
    let bytes = match state.read(payload).await {
        Ok(bytes) => bytes,
        Err(error) => return legacy_failure(error),
    };
    let id = match server_id(&bytes) {
        Ok(id) => id,
        Err(response) => return response,
    };
    let outcome = match check_in(&state, &request, &id).await {
        Ok(outcome) => outcome,
        Err(error) => return legacy_failure(error),
    };
    let servers = &state.config.load().servers;
    match outcome {
        CheckedIn::Active => {
            let next_checkin_seconds = servers.next_checkin_seconds;
            let alive =
                AliveStatus { status: "ok", server_id: id.to_lowercase(), next_checkin_seconds };
            json(StatusCode::OK, &alive)
        }
        CheckedIn::Revoked => {
            let status = ServerStatus { status: "revoked", server_id: id.to_lowercase() };
            json(revoked_status(servers.revoked_checkin_status), &status)
        }
    }
}

fn revoked_status(configured: u16) -> StatusCode {
    StatusCode::from_u16(configured).unwrap_or(StatusCode::FORBIDDEN)
}

async fn check_in(state: &State, request: &HttpRequest, id: &str) -> Result<CheckedIn, ApiError> {
    let id = ServerId::parse(id).ok_or(Refusal::ServerNotFound)?;
    let command = CheckIn { id, bearer: bearer(state, request), now: state.clock.now() };
    let answer = state.wait(state.handles.check_in(command)).await;
    Ok(answer.outcome??)
}

/// Where the v2 routes of servers are.
pub const SERVERS: &str = "/api/v2/servers";
/// The verb of a check-in.
pub const CHECK_IN: &str = "check-in";

/// The id and the verb in `/api/v2/servers/{server_id}/{verb}`.
///
/// Taken apart here and not by the router, whose patterns are regular expressions: a third of the
/// time of a check-in would go there.
fn id_and_verb(path: &str) -> Option<(&str, &str)> {
    let (id, verb) = path.strip_prefix(SERVERS)?.strip_prefix('/')?.split_once('/')?;
    (!verb.contains('/')).then_some((id, verb))
}

/// `POST /api/v2/servers/{server_id}/check-in`. The body does not matter, as long as it is one.
#[utoipa::path(
    post,
    path = "/api/v2/servers/{server_id}/check-in",
    operation_id = "server_check_in",
    tag = "Servers",
    summary = "Check a server in",
    description = "Says that the server is alive. A body is not needed; where one is sent it is a JSON \
        object. An Authorization, where sent, must be the token that registered the server or the \
        master token.",
    params(("server_id" = String, Path, description = "The id from the registration.", example = "0123456789abcdef")),
    responses((
        status = 200,
        description = "The server is alive, or, where the operator has chosen so, revoked.",
        body = Success<CheckInAnswer>,
    )),
)]
pub async fn v2_check_in(
    state: Data<State>,
    request: HttpRequest,
    payload: Payload,
) -> HttpResponse {
    let Some((id, CHECK_IN)) = id_and_verb(request.path()) else {
        return failure_for(&request, ApiError::not_found());
    };
    match state.read(payload).await {
        Ok(Ok(bytes)) if bytes.trim_ascii().is_empty() => {}
        Ok(Ok(bytes)) => {
            if let Err(refusal) = object::<ServerBody<'_>>(&bytes) {
                return failure(refusal);
            }
        }
        Ok(Err(refusal)) => return failure(refusal),
        Err(error) => return failure(error),
    }
    let outcome = match check_in(&state, &request, id).await {
        Ok(outcome) => outcome,
        Err(error) => return failure(error),
    };
    let servers = &state.config.load().servers;
    let server_id = id.to_lowercase();
    match outcome {
        CheckedIn::Active => {
            let next_checkin_seconds = servers.next_checkin_seconds;
            let alive = AliveStatus { status: "ok", server_id, next_checkin_seconds };
            success(StatusCode::OK, alive, "Check-in accepted")
        }
        CheckedIn::Revoked if servers.revoked_checkin_status == 200 => success(
            StatusCode::OK,
            ServerStatus { status: "revoked", server_id },
            "Server is revoked",
        ),
        CheckedIn::Revoked => {
            let status = revoked_status(servers.revoked_checkin_status);
            failure(ApiError::new(status, "revoked", "Server is revoked."))
        }
    }
}

/// `POST /revoke`
#[utoipa::path(
    post,
    path = "/revoke",
    operation_id = "revoke",
    tag = "Main stack",
    summary = "Revoke a server",
    description = "Revokes a server's registration, again and again with the same answer.",
    request_body = ServerRequest,
    responses((
            status = 200,
            description = "The server is revoked.",
            body = ServerStatus,
        ),(
            status = 400,
            description = "The body is missing, not a JSON object, or a field is missing or not valid. The error says which.",
            body = LegacyFailure,
        ),(
            status = 403,
            description = "The master token is missing or wrong.",
            body = LegacyFailure,
        ),(
            status = 404,
            description = "There is no such server.",
            body = LegacyFailure,
        )),
)]
pub async fn legacy_revoke(
    state: Data<State>,
    request: HttpRequest,
    payload: Payload,
) -> HttpResponse {
    if bearer(&state, &request) != Bearer::Master {
        return forbidden("The master token is required.");
    }
    let bytes = match state.read(payload).await {
        Ok(bytes) => bytes,
        Err(error) => return legacy_failure(error),
    };
    let id = match server_id(&bytes) {
        Ok(id) => id,
        Err(response) => return response,
    };
    match set_revoked(&state, &request, &id, true).await {
        Ok(id) => {
            json(StatusCode::OK, &ServerStatus { status: "revoked", server_id: id.to_string() })
        }
        Err(error) => legacy_failure(error),
    }
}

async fn set_revoked(
    state: &State,
    request: &HttpRequest,
    id: &str,
    revoked: bool,
) -> Result<ServerId, ApiError> {
    let id = ServerId::parse(id).ok_or(Refusal::ServerNotFound)?;
    let (from, now) = (network_of(request, &state.proxies), state.clock.now());
    let command = SetRevoked { id, revoked, from, now };
    let answer = state.wait(state.handles.set_revoked(command)).await;
    answer.outcome??;
    Ok(id)
}

/// For the reference: the first of the two verbs of [`v2_action`].
#[utoipa::path(
    post,
    path = "/api/v2/servers/{server_id}/revoke",
    operation_id = "server_revoke",
    tag = "Servers",
    summary = "Revoke a server",
    description = "Revokes a server's registration, again and again with the same answer.",
    params(("server_id" = String, Path, description = "The id from the registration.", example = "0123456789abcdef")),
    responses((status = 200, description = "The server is revoked.", body = Success<ServerAction>)),
)]
#[allow(dead_code)]
pub(super) fn server_revoke() {}

/// For the reference: the second.
#[utoipa::path(
    post,
    path = "/api/v2/servers/{server_id}/restore",
    operation_id = "server_restore",
    tag = "Servers",
    summary = "Restore a server",
    description = "Takes a revocation back: the only way to do so.",
    params(("server_id" = String, Path, description = "The id from the registration.", example = "0123456789abcdef")),
    responses((status = 200, description = "The server is active.", body = Success<ServerAction>)),
)]
#[allow(dead_code)]
pub(super) fn server_restore() {}

/// `POST /api/v2/servers/{server_id}/revoke` and `/restore`, and 404 for every other verb.
pub async fn v2_action(state: Data<State>, request: HttpRequest) -> HttpResponse {
    let (id, revoked, status, message) = match id_and_verb(request.path()) {
        Some((id, "revoke")) => (id, true, "revoked", "Server revoked"),
        Some((id, "restore")) => (id, false, "active", "Server restored"),
        _ => return failure_for(&request, ApiError::not_found()),
    };
    if bearer(&state, &request) != Bearer::Master {
        return failure(Refusal::Unauthorized);
    }
    match set_revoked(&state, &request, id, revoked).await {
        Ok(id) => {
            success(StatusCode::OK, ServerAction { server_id: id.to_string(), status }, message)
        }
        Err(error) => failure(error),
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

/// What `GET /status` is asked for.
struct Listing {
    filter: Filter,
    limit: Option<usize>,
    before: Option<ServerNumber>,
}

impl Listing {
    fn read(query: &str, now: Timestamp, stale_after_hours: u64) -> Result<Self, String> {
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
            seen_since: None,
        };
        Ok(Self { filter, limit, before })
    }
}

/// Walks the servers that a listing shows, newest first, a page of the store at a time.
struct Walk {
    store: Arc<dyn Store>,
    servers: Arc<Servers>,
    filter: Filter,
    before: Option<ServerNumber>,
    done: bool,
}

impl Walk {
    /// The matches among the next servers; empty pages are possible before the end.
    fn next(&mut self) -> Result<Vec<Server>, ReadError> {
        let page = self.store.servers_before(self.before, PAGE)?;
        self.done = page.len() < PAGE;
        self.before = page.last().map(|last| last.number).or(self.before);
        let seen = page.into_iter().map(|server| self.servers.as_last_seen(server));
        Ok(seen.filter(|server| self.filter.matches(server)).collect())
    }
}

/// `GET /status`
#[utoipa::path(
    get,
    path = "/status",
    operation_id = "status",
    tag = "Main stack",
    summary = "List servers",
    description = "Lists the registered servers, newest first. Without limit all are sent, a million too.",
    params(
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 1000, nullable = false,
            description = "Servers on a page: 1 to 1000."),
        ("cursor" = Option<u32>, Query, nullable = false,
            description = "next_cursor of an earlier page."),
        ("revoked" = Option<u8>, Query, minimum = 0, maximum = 1, nullable = false,
            description = "1 for revoked servers only, 0 for the others."),
        ("stale" = Option<u8>, Query, minimum = 0, maximum = 1, nullable = false,
            description = "1 for servers only that have not checked in for long."),
    ),
    responses((
            status = 200,
            description = "The servers.",
            body = StatusPage,
        ),(
            status = 400,
            description = "A part of the query is not valid.",
            body = LegacyFailure,
        ),(
            status = 403,
            description = "The master token is missing or wrong.",
            body = LegacyFailure,
        )),
)]
pub async fn status(state: Data<State>, request: HttpRequest) -> HttpResponse {
    if bearer(&state, &request) != Bearer::Master {
        return forbidden("The master token is required.");
    }
    let hours = state.config.load().servers.stale_after_hours;
    let listing = match Listing::read(request.query_string(), state.clock.now(), hours) {
        Ok(listing) => listing,
        Err(message) => return bad_request(message),
    };
    let walk = Walk {
        store: Arc::clone(state.handles.store()),
        servers: Arc::clone(state.handles.servers()),
        filter: listing.filter,
        before: listing.before,
        done: false,
    };
    match listing.limit {
        Some(limit) => one_page(walk, limit).await,
        None => stream(walk).await,
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct StatusPage {
    /// How many servers match.
    #[schema(examples(1))]
    count: usize,
    servers: Vec<ListedServer>,
    /// With `limit`, while more follow: the `cursor` of the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, examples("4711"))]
    next_cursor: Option<String>,
}

async fn one_page(mut walk: Walk, limit: usize) -> HttpResponse {
    let collected = actix_web::web::block(move || {
        let count = walk.servers.count(&walk.filter);
        let mut servers = Vec::new();
        // One more than asked for tells whether there is a next page.
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
    tracing::error!(%error, "servers could not be listed");
    legacy_failure(iptunnel_actors::Failure::StorageUnavailable)
}

/// All matches, in memory one page at a time.
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
                    // The head is out: the answer ends in the middle, which no parser takes whole.
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

/// A piece of the stream, and what is left to do after it.
type Chunk = (Bytes, Option<(Walk, bool)>);

fn next_chunk(mut walk: Walk, mut text: String, mut is_first: bool) -> Result<Chunk, ReadError> {
    // A filter may leave nothing of many pages; the caller waits for something to send.
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
