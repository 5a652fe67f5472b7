//! Install tickets over HTTP: what the main stack's installer asks for when it has no token.

use super::field_limits::{ADDRESS, FIELD, UNREACHABLE};
use super::requests::TicketRequest;
use crate::http::access::{Denied, TICKETS};
use crate::http::body::{Field, fields};
use crate::http::caller::{address_of, token_of};
use crate::http::errors::ApiError;
use crate::http::respond::{Success, failure, json, legacy_failure, success, with_rates};
use crate::state::State;
use crate::state::access::Entry;
use crate::state::access::caller::{Caller, Holder, Identity};
use crate::state::wrong_tokens::Listener;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_actors::server_registry::ChargeTicket;
use iptunnel_actors::{Answer, Limited};
use iptunnel_domain::access::{Role, TokenNumber};
use iptunnel_domain::address::{caller_network, parse_public_ip};
use iptunnel_domain::limit::{Policy, Subject};
use iptunnel_domain::ticket::Ticket;
use iptunnel_domain::{Refusal, Timestamp};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;
use utoipa::ToSchema;

#[derive(Default, Deserialize)]
#[serde(default)]
struct TicketBody<'a> {
    #[serde(borrow)]
    ip: Field<'a>,
    #[serde(borrow)]
    ttl_seconds: Field<'a>,
    #[serde(borrow)]
    client_id: Field<'a>,
}

/// The fields of a request for a ticket. `None`: absent.
struct Wanted {
    address: Option<IpAddr>,
    ttl_seconds: u16,
    client: Option<TokenNumber>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct TicketData {
    /// The ticket. It is good once, for this address.
    #[schema(
        pattern = "^itk_[0-9a-f]{48}$",
        examples("itk_00000301ba60ce187b0258ab3d0fc1a29e5b7c8d9e0f1a2b")
    )]
    ticket: String,
    client: Client,
    #[schema(examples("1.2.3.4"))]
    ip: String,
    /// For how many seconds it is good.
    #[schema(minimum = 60, maximum = 3600, examples(600))]
    ttl_seconds: u16,
}

/// The access token that made the ticket.
#[derive(Serialize, ToSchema)]
pub(super) struct Client {
    #[schema(examples(1))]
    id: u32,
    #[schema(examples("office"))]
    name: String,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Authorized {
    #[schema(examples(true))]
    authorized: bool,
    /// A ticket. It is good once, for this address.
    #[schema(
        pattern = "^itk_[0-9a-f]{48}$",
        examples("itk_00000301ba60ce187b0258ab3d0fc1a29e5b7c8d9e0f1a2b")
    )]
    token: String,
    /// The name of the access token that made the ticket.
    #[schema(examples("office"))]
    client: String,
    #[schema(examples(1))]
    client_id: u32,
    #[schema(examples("1.2.3.4"))]
    ip: String,
}

#[derive(Serialize, ToSchema)]
pub(super) struct NotAuthorized {
    #[schema(examples("IP not pre-authorized"))]
    error: &'static str,
    #[schema(examples("1.2.3.4"))]
    ip: String,
    /// What to do.
    #[schema(examples("Ask the operator to add this address to an access token."))]
    message: &'static str,
}

fn invalid(message: String) -> Refusal {
    Refusal::InvalidField(message)
}

impl Wanted {
    fn read(body: TicketBody<'_>, allow_private: bool) -> Result<Self, Refusal> {
        let present = |field: Field<'_>, name: &str, max| match field {
            Field::Absent => Ok(None),
            field => field.required(name, max).map(|text| Some(text.into_owned())),
        };
        let address = match present(body.ip, "ip", ADDRESS)? {
            None => None,
            Some(text) => Some(public(parse_public_ip(&text, allow_private))?),
        };
        let ttl_seconds = match present(body.ttl_seconds, "ttl_seconds", FIELD)? {
            None => Ticket::TTL,
            Some(text) => text
                .parse()
                .ok()
                .filter(|ttl| (Ticket::MIN_TTL..=Ticket::MAX_TTL).contains(ttl))
                .ok_or_else(|| {
                    let (min, max) = (Ticket::MIN_TTL, Ticket::MAX_TTL);
                    invalid(format!("ttl_seconds must be a number from {min} to {max}."))
                })?,
        };
        let client = match present(body.client_id, "client_id", FIELD)? {
            None => None,
            Some(text) => Some(TokenNumber(text.parse().map_err(|_| no_client())?)),
        };
        Ok(Self { address, ttl_seconds, client })
    }
}

/// Refuses an address at which no server could register.
fn public(address: Option<IpAddr>) -> Result<IpAddr, Refusal> {
    address.ok_or_else(|| invalid(UNREACHABLE.into()))
}

/// Returns the caller's own address, if a server could register at it.
fn own(state: &State, from: IpAddr) -> Result<IpAddr, Refusal> {
    let allow_private = state.live.config.load().server.allow_private_ips;
    public(parse_public_ip(&from.to_string(), allow_private))
}

fn no_client() -> Refusal {
    invalid("client_id must be the number of an access token to enrol that is good.".into())
}

/// Charges a request for a ticket to the caller's network.
async fn charge(
    state: &State,
    from: IpAddr,
    command: Result<ChargeTicket, Refusal>,
    now: Timestamp,
) -> Answer<()> {
    let who = state.live.network_hash(caller_network(from));
    let subjects = vec![Subject { policy: Policy::TicketPerIpHour, who }];
    state.ask(|handles| handles.limited(|reply| Limited { subjects, command, now, reply })).await
}

/// Returns the access token that makes the ticket of a caller without a token: the one that has its address
/// in its list.
fn client_of_address(
    state: &State,
    from: IpAddr,
    wanted: &Wanted,
    now: Timestamp,
) -> Result<Arc<Entry>, ApiError> {
    let entry = state.access.of_address(from, now);
    let entry = entry.ok_or_else(|| ApiError::denied(Denied::Missing, false))?;
    if wanted.address.is_some_and(|address| address != from) {
        let message = "ip must be absent, or the caller's own address, without a token.";
        return Err(invalid(message.into()).into());
    }
    Ok(entry)
}

/// Returns the access token that makes the ticket of a caller with a token: of an enrolling token this one,
/// of an operator the one that is named.
async fn client_of_token(
    state: &State,
    identity: Identity,
    from: IpAddr,
    wanted: &Wanted,
    now: Timestamp,
) -> Result<Arc<Entry>, ApiError> {
    let admitted = state.admit(identity, &TICKETS, (from, Listener::Public)).await;
    match admitted.map_err(|denied| ApiError::denied(denied, false))? {
        Caller { holder: Holder::Token(entry), .. } if entry.token.role == Role::Enrol => {
            let is_own = wanted.client.is_none_or(|client| client == entry.token.number);
            if is_own { Ok(entry) } else { Err(no_client().into()) }
        }
        _ => {
            let entry = wanted.client.and_then(|number| state.access.by_number(number));
            let good = entry.filter(|entry| {
                entry.token.role == Role::Enrol && entry.token.is_good(now, None).is_ok()
            });
            Ok(good.ok_or_else(no_client)?)
        }
    }
}

/// `POST /api/v2/install-tickets/issue`
#[utoipa::path(
    post,
    path = "/api/v2/install-tickets/issue",
    operation_id = "ticket_issue",
    tag = "Servers",
    summary = "Get an install ticket",
    description = "Makes a ticket with which one machine registers once: send it as token of a registration. \
        Without Authorization for the caller's own address, if an enrolling access token has it in its list. \
        With an enrolling access token for any address. With another token of the role operate for the \
        enrolling token that client_id names. The body is optional. A rate limit applies to each address \
        that asks without a token.",
    request_body = TicketRequest,
    responses((status = 201, description = "The ticket.", body = Success<TicketData>)),
)]
pub async fn issue(state: Data<State>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let now = state.clock.now();
    let from = address_of(&request, &state.proxies);
    let bytes = state.read(payload).await;
    let is_empty = bytes.as_ref().is_ok_and(|bytes| bytes.trim_ascii().is_empty());
    let body = if is_empty { Ok(TicketBody::default()) } else { fields(&bytes) };
    let allow_private = state.live.config.load().server.allow_private_ips;
    let wanted = body.and_then(|body| Wanted::read(body, allow_private));
    let identity = state.access.identify(token_of(&request), from, now);
    if !matches!(identity, Identity::Nobody) {
        // The token bounds what its holder gets. Requests without one must not use that up.
        let issued = async {
            let wanted = wanted?;
            let entry = client_of_token(&state, identity, from, &wanted, now).await?;
            issued(&state, &entry, from, &wanted, now)
        };
        return answer(issued.await);
    }
    let command = wanted.as_ref().map(|_| ChargeTicket).map_err(Clone::clone);
    let charged = charge(&state, from, command, now).await;
    let response = match (charged.outcome, wanted) {
        (Ok(Ok(())), Ok(wanted)) => client_of_address(&state, from, &wanted, now)
            .and_then(|entry| issued(&state, &entry, from, &wanted, now)),
        (Ok(Err(refusal)), _) | (Ok(Ok(())), Err(refusal)) => Err(refusal.into()),
        (Err(error), _) => Err(error.into()),
    };
    with_rates(answer(response), charged.rates.as_ref(), now)
}

fn answer(issued: Result<TicketData, ApiError>) -> HttpResponse {
    match issued {
        Ok(data) => success(StatusCode::CREATED, data, "Install ticket issued"),
        Err(error) => failure(error),
    }
}

fn issued(
    state: &State,
    entry: &Entry,
    from: IpAddr,
    wanted: &Wanted,
    now: Timestamp,
) -> Result<TicketData, ApiError> {
    let address = wanted.address.map_or_else(|| own(state, from), Ok)?;
    let (id, ttl_seconds) = (entry.token.number, wanted.ttl_seconds);
    let ticket = state.make_ticket(id, address, ttl_seconds)?;
    entry.note_use(now);
    let client = Client { id: id.0, name: entry.token.name.clone() };
    Ok(TicketData { ticket, client, ip: address.to_string(), ttl_seconds })
}

/// `GET /authorize`
#[utoipa::path(
    get,
    path = "/authorize",
    operation_id = "authorize",
    tag = "Main stack",
    summary = "Get an install ticket by address",
    description = "Makes a ticket for the caller's own address, if an enrolling access token has it in its \
        list. A rate limit applies to each address.",
    responses(
        (status = 200, description = "The ticket.", body = Authorized),
        (status = 404, description = "No access token has this address in its list, or the Internet cannot reach it.", body = NotAuthorized),
    ),
)]
pub async fn authorize(state: Data<State>, request: HttpRequest) -> HttpResponse {
    let now = state.clock.now();
    let from = address_of(&request, &state.proxies);
    let answer = charge(&state, from, Ok(ChargeTicket), now).await;
    let response = match answer.outcome {
        Ok(Ok(())) => authorized(&state, from, now),
        Ok(Err(refusal)) => legacy_failure(refusal),
        Err(error) => legacy_failure(error),
    };
    with_rates(response, answer.rates.as_ref(), now)
}

fn authorized(state: &State, from: IpAddr, now: Timestamp) -> HttpResponse {
    let ip = from.to_string();
    let entry = match (own(state, from), state.access.of_address(from, now)) {
        (Ok(_), Some(entry)) => entry,
        (own, _) => {
            let message = match own {
                Ok(_) => "Ask the operator to add this address to an access token.",
                Err(_) => UNREACHABLE,
            };
            let answer = NotAuthorized { error: "IP not pre-authorized", ip, message };
            return json(StatusCode::NOT_FOUND, &answer);
        }
    };
    let id = entry.token.number;
    match state.make_ticket(id, from, Ticket::TTL) {
        Ok(token) => {
            entry.note_use(now);
            let client = entry.token.name.clone();
            json(
                StatusCode::OK,
                &Authorized { authorized: true, token, client, client_id: id.0, ip },
            )
        }
        Err(error) => legacy_failure(error),
    }
}
