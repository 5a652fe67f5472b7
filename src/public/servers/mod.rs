//! Registered servers: the legacy routes and the v2 routes.

pub mod listing;
pub mod v2;

use crate::http::access::{REGISTER, REGISTER_V2, Rule};
use crate::http::body::{Body, Field, fields, object};
use crate::http::caller::{address_of, network_of, token_of};
use crate::http::errors::ApiError;
use crate::http::respond::{
    LegacyFailure, Success, failure, failure_for, json, legacy_failure, success,
};
use crate::public::field_limits::{FIELD, UNREACHABLE};
use crate::public::requests::{RegisterRequest, ServerRequest};
use crate::state::State;
use crate::state::access::caller::Caller;
use crate::state::servers::set_revoked;
use crate::state::wrong_tokens::Listener;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_actors::Answer;
use iptunnel_actors::server_registry::{CheckIn, CheckedIn, Register, RegisterInstalled};
use iptunnel_domain::address::{caller_network, parse_public_ip};
use iptunnel_domain::agent_token::is_agent_token;
use iptunnel_domain::lookup::{KeyedHash, Purpose};
use iptunnel_domain::server::{Credential, EnrolledBy, Server, ServerId};
use iptunnel_domain::{Refusal, Timestamp, ticket};
use listing::ListedServer;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::net::IpAddr;
use utoipa::ToSchema;

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
    agent_token: Field<'a>,
    #[serde(borrow)]
    server_id: Field<'a>,
}

#[derive(Serialize, ToSchema)]
pub(in crate::public) struct Registered {
    #[schema(pattern = "^authorized$", examples("authorized"))]
    status: &'static str,
    #[serde(flatten)]
    server: ListedServer,
}

#[derive(Serialize, ToSchema)]
pub(in crate::public) struct ServerStatus<'a> {
    #[schema(pattern = "^revoked$", examples("revoked"))]
    status: &'a str,
    #[schema(pattern = "^[0-9a-f]{16}$", examples("0123456789abcdef"))]
    server_id: String,
}

#[derive(Serialize, ToSchema)]
pub(in crate::public) struct ServerAction<'a> {
    #[schema(pattern = "^[0-9a-f]{16}$", examples("0123456789abcdef"))]
    server_id: String,
    #[schema(pattern = "^(revoked|active)$", examples("revoked"))]
    status: &'a str,
}

#[derive(Serialize, ToSchema)]
pub(in crate::public) struct AliveStatus {
    #[schema(pattern = "^ok$", examples("ok"))]
    status: &'static str,
    #[schema(pattern = "^[0-9a-f]{16}$", examples("0123456789abcdef"))]
    server_id: String,
    /// Seconds until the next check-in.
    #[schema(examples(86400))]
    next_checkin_seconds: u64,
}

#[derive(Serialize, ToSchema)]
pub(in crate::public) struct RevokedRegistration {
    #[schema(examples("The token is not valid."))]
    error: &'static str,
    /// The server's id, if the server is revoked.
    #[schema(required = false, pattern = "^[0-9a-f]{16}$", examples("0123456789abcdef"))]
    server_id: String,
}

/// The body of a check-in response with status 200. It can also say that the server is revoked, if
/// the operator has configured status 200 for that.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code)]
pub(in crate::public) enum CheckInAnswer<'a> {
    Alive(AliveStatus),
    Revoked(ServerStatus<'a>),
}

fn bad_request(message: impl Into<String>) -> HttpResponse {
    legacy_failure(ApiError::bad_request(message))
}

/// Parses the body of a legacy request, or returns the 400 or 413 response.
fn legacy_body(bytes: &Body) -> Result<ServerBody<'_>, HttpResponse> {
    fields(bytes).map_err(legacy_failure)
}

/// Returns the server id in a legacy request, or the error response.
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
    description = "Registers the server with this address. A repeated registration of the same address gets \
        the same id and updates the host name. With agent_token the machine checks in with a secret of its \
        own from then on, and no longer with the token that registered it.",
    request_body = RegisterRequest,
    responses((
            status = 200,
            description = "The server is registered.",
            body = Registered,
        ),(
            status = 400,
            description = "The body is missing or not a JSON object, or a field is missing or invalid. The error names it.",
            body = LegacyFailure,
        ),(
            status = 403,
            description = "The token is not valid, or the server is revoked. If it is revoked, the body has its id.",
            body = RevokedRegistration,
        )),
)]
pub async fn register(state: Data<State>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let now = state.clock.now();
    let from = address_of(&request, &state.proxies);
    let bytes = state.read(payload).await;
    let command = match read_registration(&state, &bytes, from, now, Family::Legacy).await {
        Ok(command) => command,
        Err(error) => return legacy_failure(error),
    };
    match command.send(&state).await.outcome {
        Ok(Ok(server)) => {
            let server = ListedServer::of(server);
            json(StatusCode::OK, &Registered { status: "authorized", server })
        }
        Ok(Err(Refusal::ServerRevoked(id))) => json(
            StatusCode::FORBIDDEN,
            &RevokedRegistration { error: "server is revoked", server_id: id.to_string() },
        ),
        Ok(Err(Refusal::InvalidField(message))) => bad_request(message),
        Ok(Err(refusal)) => legacy_failure(refusal),
        Err(error) => legacy_failure(error),
    }
}

/// The two routes that register a server. They differ in how they refuse.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Legacy,
    V2,
}

impl Family {
    /// Refuses a field.
    fn invalid(self, message: String) -> ApiError {
        match self {
            Self::Legacy => ApiError::bad_request(message),
            Self::V2 => Refusal::InvalidField(message).into(),
        }
    }

    const fn rule(self) -> &'static Rule {
        match self {
            Self::Legacy => &REGISTER,
            Self::V2 => &REGISTER_V2,
        }
    }
}

/// A registration that has been read.
enum Registration {
    /// With a token, or with a ticket.
    Vouched(Register),
    /// With an install token. Its activation decides.
    Installed(RegisterInstalled),
}

impl Registration {
    /// Sends it. The answer goes to the machine, which the operator's note is not for.
    async fn send(self, state: &State) -> Answer<Server> {
        let mut answer = match self {
            Self::Vouched(command) => state.ask(|handles| handles.register(command)).await,
            Self::Installed(command) => {
                state.ask(|handles| handles.register_installed(command)).await
            }
        };
        if let Ok(Ok(server)) = &mut answer.outcome {
            server.note.clear();
        }
        answer
    }
}

/// Reads a registration. The order of its checks: body, fields, token, address. A ticket proves the
/// address, so there the address comes first.
async fn read_registration(
    state: &State,
    bytes: &Body,
    from: IpAddr,
    now: Timestamp,
    family: Family,
) -> Result<Registration, ApiError> {
    let invalid = |message| family.invalid(message);
    let body: ServerBody<'_> = fields(bytes)?;
    let token = body.token.check("token", FIELD).map_err(invalid)?;
    let address = body.ip.check("ip", FIELD).map_err(invalid)?;
    let hostname = match body.hostname.optional("hostname", Server::HOSTNAME) {
        Ok(hostname) => hostname.into_owned(),
        Err(_) => return Err(invalid("hostname must be a string.".into())),
    };
    let agent_token = read_agent_token(state, body.agent_token).map_err(invalid)?;
    // What its check-ins show from now on.
    let shown = |hash| agent_token.unwrap_or(hash);
    let parse = || {
        let allow_private = state.live.config.load().server.allow_private_ips;
        parse_public_ip(&address, allow_private).ok_or_else(|| invalid(UNREACHABLE.into()))
    };
    let register = |ip, credential| Register {
        address_id: ServerId::of(ip, &state.live.lookup),
        ip,
        hostname,
        credential,
        max_servers: 0,
        is_good: state.access.good_ones(now),
        code: None,
        by: String::new(),
        from: caller_network(from),
        from_its_address: ip == from.to_canonical(),
        now,
    };
    let denied = |denied| ApiError::denied(denied, family == Family::Legacy);
    if token.starts_with(ticket::PREFIX) {
        let ip = parse()?;
        let found = state.credential_of_ticket(&token, ip, now);
        let refused = |why| state.refuse_token(why, (from, Listener::Public));
        let (credential, made_by) = match found {
            Ok(found) => found,
            Err(why) => return Err(denied(refused(why).await)),
        };
        let credential = Credential { hash: shown(credential.hash), ..credential };
        let (max_servers, by) = (made_by.token.max_servers, made_by.token.name.clone());
        made_by.note_use(now);
        return Ok(Registration::Vouched(Register { max_servers, by, ..register(ip, credential) }));
    }
    if let Some(pass) = state.live.tokens.load().verify_install(&token) {
        let hash = shown(state.live.lookup.hash(Purpose::Token, token.as_bytes()));
        // The activation says who vouches for it, and since when.
        let credential = Credential { hash, by: EnrolledBy::Unknown, made_ms: Some(0) };
        let register = register(parse()?, credential);
        let activation = pass.activation;
        return Ok(Registration::Installed(RegisterInstalled { activation, register }));
    }
    let identity = state.access.identify(&token, from, now);
    let admitted = state.admit(identity, family.rule(), (from, Listener::Public)).await;
    let caller = admitted.map_err(denied)?;
    let (hash, by) = (shown(caller.secret), caller.enrols_as());
    let credential = Credential { hash, by, made_ms: None };
    Ok(Registration::Vouched(Register {
        max_servers: caller.max_servers(),
        by: caller.shown().to_owned(),
        ..register(parse()?, credential)
    }))
}

/// Returns the keyed hash of the agent token in a registration, if there is one; or the problem.
fn read_agent_token(state: &State, field: Field<'_>) -> Result<Option<KeyedHash>, String> {
    if field == Field::Absent {
        return Ok(None);
    }
    let token = field.check("agent_token", FIELD)?;
    if !is_agent_token(&token) {
        return Err("agent_token must be ipa_ and 48 hexadecimal digits in lower case.".into());
    }
    Ok(Some(state.live.lookup.hash(Purpose::Token, token.as_bytes())))
}

/// `POST /checkin`
#[utoipa::path(
    post,
    path = "/checkin",
    operation_id = "checkin",
    tag = "Main stack",
    summary = "Check in",
    description = "Reports that the server is alive. The Authorization header is optional. If sent, it must \
        carry the agent token of the server, or else the token that registered it; or the master token.",
    request_body = ServerRequest,
    responses((
            status = 200,
            description = "The check-in was recorded; or the server is revoked, if the operator has configured status 200 for that.",
            body = CheckInAnswer,
        ),(
            status = 400,
            description = "The body is missing or not a JSON object, or a field is missing or invalid. The error names it.",
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
            description = "No server has this id.",
            body = LegacyFailure,
        )),
)]
pub async fn legacy_check_in(
    state: Data<State>,
    request: HttpRequest,
    payload: Payload,
) -> HttpResponse {
    let bytes = state.read(payload).await;
    let id = match server_id(&bytes) {
        Ok(id) => id,
        Err(response) => return response,
    };
    let outcome = match check_in(&state, &request, &id).await {
        Ok(outcome) => outcome,
        Err(error) => return legacy_failure(error),
    };
    let servers = &state.live.config.load().servers;
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
    let now = state.clock.now();
    let from = address_of(request, &state.proxies);
    let identity = state.access.identify(token_of(request), from, now);
    let bearer = identity.bearer();
    let command = CheckIn { id, bearer, from, now };
    let outcome = state.ask(|handles| handles.check_in(command)).await.outcome?;
    identity.note_use(now);
    if outcome == Err(Refusal::Unauthorized) {
        if let Some(role) = identity.role() {
            return Err(ApiError::token_of_others(role));
        }
        // It is slowed as anywhere, but check-ins have no limit: the answer stays the same.
        let _ = state.wrong_tokens.note(from, Listener::Public, now).await;
    }
    Ok(outcome?)
}

/// The prefix of the v2 routes of servers.
pub const SERVERS: &str = "/api/v2/servers";

/// Returns the id and the verb in `/api/v2/servers/{server_id}/{verb}`.
///
/// The router would match this path with a regular expression, which takes a third of the time of a
/// check-in.
pub(super) fn id_and_verb(path: &str) -> Option<(&str, &str)> {
    let (id, verb) = path.strip_prefix(SERVERS)?.strip_prefix('/')?.split_once('/')?;
    (!verb.contains('/')).then_some((id, verb))
}

/// `POST /api/v2/servers/{server_id}/check-in`. The body is empty or any JSON object.
#[utoipa::path(
    post,
    path = "/api/v2/servers/{server_id}/check-in",
    operation_id = "server_check_in",
    tag = "Servers",
    summary = "Check a server in",
    description = "Reports that the server is alive. The body is optional. If sent, it must be a JSON \
        object. The Authorization header is optional too. If sent, it must carry the agent token of the \
        server, or else the token that registered it; or the master token.",
    params(("server_id" = String, Path, description = "The id from the registration.", example = "0123456789abcdef")),
    responses((
        status = 200,
        description = "The check-in was recorded; or the server is revoked, if the operator has configured status 200 for that.",
        body = Success<CheckInAnswer>,
    )),
)]
pub async fn v2_check_in(
    state: Data<State>,
    request: HttpRequest,
    payload: Payload,
) -> HttpResponse {
    let Some((id, _)) = id_and_verb(request.path()) else {
        return failure_for(&request, ApiError::not_found());
    };
    match state.read(payload).await {
        Ok(bytes) if bytes.trim_ascii().is_empty() => {}
        Ok(bytes) => {
            if let Err(refusal) = object::<ServerBody<'_>>(&bytes) {
                return failure(refusal);
            }
        }
        Err(refusal) => return failure(refusal),
    }
    let outcome = match check_in(&state, &request, id).await {
        Ok(outcome) => outcome,
        Err(error) => return failure(error),
    };
    let servers = &state.live.config.load().servers;
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
            failure(ApiError::revoked(status))
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
    description = "Revokes a server's registration. A repeated request gets the same response.",
    request_body = ServerRequest,
    responses((
            status = 200,
            description = "The server is revoked.",
            body = ServerStatus,
        ),(
            status = 400,
            description = "The body is missing or not a JSON object, or a field is missing or invalid. The error names it.",
            body = LegacyFailure,
        ),(
            status = 403,
            description = "The token is missing or not valid, or its role does not include this.",
            body = LegacyFailure,
        ),(
            status = 404,
            description = "No server has this id.",
            body = LegacyFailure,
        )),
)]
pub async fn legacy_revoke(
    state: Data<State>,
    request: HttpRequest,
    caller: Caller,
    payload: Payload,
) -> HttpResponse {
    let bytes = state.read(payload).await;
    let id = match server_id(&bytes) {
        Ok(id) => id,
        Err(response) => return response,
    };
    match set_revoked(&state, &id, true, (&caller, network_of(&request, &state.proxies))).await {
        Ok(id) => {
            json(StatusCode::OK, &ServerStatus { status: "revoked", server_id: id.to_string() })
        }
        Err(error) => legacy_failure(error),
    }
}

/// `POST /api/v2/servers/{server_id}/revoke`
#[utoipa::path(
    post,
    path = "/api/v2/servers/{server_id}/revoke",
    operation_id = "server_revoke",
    tag = "Servers",
    summary = "Revoke a server",
    description = "Revokes a server's registration. A repeated request gets the same response.",
    params(("server_id" = String, Path, description = "The id from the registration.", example = "0123456789abcdef")),
    responses((status = 200, description = "The server is revoked.", body = Success<ServerAction>)),
)]
pub async fn server_revoke(
    state: Data<State>,
    request: HttpRequest,
    caller: Caller,
) -> HttpResponse {
    v2_action(&state, &request, &caller, true).await
}

/// `POST /api/v2/servers/{server_id}/restore`
#[utoipa::path(
    post,
    path = "/api/v2/servers/{server_id}/restore",
    operation_id = "server_restore",
    tag = "Servers",
    summary = "Restore a server",
    description = "Restores a revoked server. No other request can undo a revocation.",
    params(("server_id" = String, Path, description = "The id from the registration.", example = "0123456789abcdef")),
    responses((status = 200, description = "The server is active.", body = Success<ServerAction>)),
)]
pub async fn server_restore(
    state: Data<State>,
    request: HttpRequest,
    caller: Caller,
) -> HttpResponse {
    v2_action(&state, &request, &caller, false).await
}

async fn v2_action(
    state: &State,
    request: &HttpRequest,
    caller: &Caller,
    revoked: bool,
) -> HttpResponse {
    let Some((id, _)) = id_and_verb(request.path()) else {
        return failure(ApiError::not_found());
    };
    let (status, message) =
        if revoked { ("revoked", "Server revoked") } else { ("active", "Server restored") };
    match set_revoked(state, id, revoked, (caller, network_of(request, &state.proxies))).await {
        Ok(id) => {
            success(StatusCode::OK, ServerAction { server_id: id.to_string(), status }, message)
        }
        Err(error) => failure(error),
    }
}
