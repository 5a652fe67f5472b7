//! Access tokens: the page *Access* ([`page`]), and the same as JSON ([`json`]).

pub mod json;
pub mod page;

use super::auth::Operator;
use super::console::Console;
use crate::http::errors::ApiError;
use crate::http::respond::{parse_time, rfc3339};
use crate::state::access::Entry;
use crate::state::access::change::AccessError;
use crate::state::servers::set_revoked;
use actix_web::web::block;
use futures_util::{StreamExt, stream};
use iptunnel_actors::server_registry::{Filter, Sort};
use iptunnel_domain::access::{AccessToken, Role, TokenNumber, WhyNot};
use iptunnel_domain::address::Network;
use iptunnel_domain::server::ServerId;
use iptunnel_domain::{Refusal, Timestamp, Version};
use serde::Serialize;
use std::collections::HashMap;
use std::future::ready;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// The seconds for which the secret before a rotation stays good, unless the request says otherwise: one
/// day, in which operators can hand out the new one.
const GRACE: u64 = 86_400;
/// Servers that are looked for at a time to be revoked.
const STEP: usize = 1000;
/// Servers that are revoked at the same time: they share commits, and leave permits to others.
const AT_ONCE: usize = 64;
/// How long one request revokes servers. Whoever has more repeats it. A third of the time that the command
/// line waits for an answer.
const A_REQUEST: Duration = Duration::from_secs(5);
/// How long another server on the database may go on to register servers with a revoked token: a second
/// until it knows (docs/access.md), and one for registrations that are on their way.
const BINDS: Duration = Duration::from_secs(2);
/// The pause before servers that were registered meanwhile are looked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A token as lists show it.
#[derive(Serialize)]
struct Row {
    id: u32,
    name: String,
    role: &'static str,
    /// `good`, `expired` or `revoked`.
    state: &'static str,
    created_at: String,
    last_used_at: Option<String>,
    expires_at: Option<String>,
    revoked_at: Option<String>,
    /// Until when the secret before the last rotation is good.
    old_secret_until: Option<String>,
    networks: Vec<String>,
    addresses: Vec<IpAddr>,
    max_servers: u32,
    /// The servers that it has enrolled and that are not revoked.
    servers: usize,
    /// The version, for the form of the page.
    #[serde(skip)]
    version: Version,
}

impl Row {
    fn of(entry: &Entry, servers: usize, now: Timestamp) -> Self {
        let AccessToken { number, name, role, networks, addresses, .. } = &entry.token;
        let token = &entry.token;
        let last_used = Some(entry.last_used()).filter(|used| used.0 > 0);
        let old_secret = token.earlier(now);
        Self {
            id: number.0,
            name: name.clone(),
            role: role.name(),
            state: match token.is_good(now, None) {
                Err(WhyNot::Revoked) => "revoked",
                Err(WhyNot::Expired) => "expired",
                Ok(()) | Err(WhyNot::WrongNetwork) => "good",
            },
            created_at: rfc3339(token.created_at),
            last_used_at: last_used.map(rfc3339),
            expires_at: token.expires_at.map(rfc3339),
            revoked_at: token.revoked_at.map(rfc3339),
            old_secret_until: old_secret.map(|(_, until)| rfc3339(until)),
            networks: networks.iter().map(Network::to_string).collect(),
            addresses: addresses.clone(),
            max_servers: token.max_servers,
            servers,
            version: token.version,
        }
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::NotFound => Self::token_not_found(),
            AccessError::HasChanged => Self::token_has_changed(),
            AccessError::Refused(refusal) => refusal.into(),
            AccessError::Failed(failure) => failure.into(),
            AccessError::BrokenOff => Self::internal(),
        }
    }
}

async fn rows(console: &Console) -> Result<Vec<Row>, ApiError> {
    let entries = console.state.access.list().await?;
    let servers = Arc::clone(console.state.handles.servers());
    let enrolled = block(move || servers.enrolled()).await;
    let enrolled: HashMap<_, _> = enrolled.map_err(|_| ApiError::internal())?;
    let now = console.state.clock.now();
    let count = |entry: &Entry| enrolled.get(&entry.token.number).copied().unwrap_or_default();
    Ok(entries.iter().map(|entry| Row::of(entry, count(entry), now)).collect())
}

async fn row(console: &Console, entry: &Entry) -> Result<Row, ApiError> {
    let filter = of_token(entry.token.number);
    let servers = Arc::clone(console.state.handles.servers());
    let count = block(move || servers.count(&filter)).await;
    let count = count.map_err(|_| ApiError::internal())?;
    Ok(Row::of(entry, count, console.state.clock.now()))
}

/// Returns the filter of the servers that a token has enrolled and that are not revoked.
fn of_token(number: TokenNumber) -> Filter {
    Filter { revoked: Some(false), enrolled_by: Some(number), ..Filter::default() }
}

/// Revokes servers that a token has enrolled, as many as [`A_REQUEST`] allows. Returns how many. A repeat
/// goes on with those that are left. The token has just been revoked: on a shared store it waits for those
/// that other servers still register.
async fn revoke_servers(
    console: &Console,
    operator: &Operator,
    number: TokenNumber,
) -> Result<usize, ApiError> {
    let begun = Instant::now();
    let end = begun + A_REQUEST;
    let is_shared = console.state.handles.store().shared().is_some();
    let mut revoked = 0;
    let mut after = None;
    loop {
        let servers = Arc::clone(console.state.handles.servers());
        let page = block(move || servers.page(&of_token(number), Sort::Oldest, after, STEP));
        let page = page.await.map_err(|_| ApiError::internal())?.servers;
        let last = page.last().map(|placed| placed.place);
        if last.is_none() && is_shared && begun.elapsed() < BINDS {
            sleep(LOOK_AGAIN).await;
            after = None;
            continue;
        }
        let Some(last) = last.filter(|_| Instant::now() < end) else { return Ok(revoked) };
        after = Some(last);
        let revoke = |id: ServerId| async move {
            set_revoked(&console.state, &id.to_string(), true, operator.who()).await
        };
        // Those that have begun run to their end.
        let in_time = stream::iter(page).take_while(|_| ready(Instant::now() < end));
        let mut done = in_time.map(|placed| revoke(placed.id)).buffer_unordered(AT_ONCE);
        while let Some(one) = done.next().await {
            match one {
                Ok(_) => revoked += 1,
                // It was deleted meanwhile.
                Err(error) if error == Refusal::ServerNotFound.into() => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn invalid(words: impl Into<String>) -> ApiError {
    Refusal::InvalidField(words.into()).into()
}

fn networks(texts: &[String]) -> Result<Vec<Network>, ApiError> {
    let parse = |text: &String| {
        Network::parse(text).ok_or_else(|| {
            let words =
                "networks must be like 10.0.0.0/8 or 2001:db8::/32, without bits after the prefix";
            invalid(format!("{words}: {}.", shown(text)))
        })
    };
    texts.iter().map(parse).collect()
}

fn addresses(texts: &[String]) -> Result<Vec<IpAddr>, ApiError> {
    let parse = |text: &String| {
        let address = text.parse::<IpAddr>().map(|address| address.to_canonical());
        address.map_err(|_| invalid(format!("addresses must be IP addresses: {}.", shown(text))))
    };
    texts.iter().map(parse).collect()
}

/// Returns the beginning of what was typed, for an error.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

fn end(text: &str) -> Result<Timestamp, ApiError> {
    parse_time(text).ok_or_else(|| {
        invalid(
            "expires_at must be a date such as 2030-01-31 or a time such as 2030-01-31T12:00:00Z.",
        )
    })
}

fn role(text: &str) -> Result<Role, ApiError> {
    let known = Role::ALL.map(Role::name).join(", ");
    Role::from_name(text).ok_or_else(|| invalid(format!("role must be one of {known}.")))
}

/// Returns the number in a path or a form.
fn number(id: &str) -> Result<TokenNumber, ApiError> {
    id.parse().map(TokenNumber).map_err(|_| ApiError::token_not_found())
}
