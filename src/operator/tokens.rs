//! Access tokens: the page *Access*, and the same as JSON.

use super::auth::Operator;
use super::console::{Console, failed, see};
use crate::http::errors::ApiError;
use crate::http::page::html;
use crate::http::respond::{parse_time, rfc3339, success};
use crate::state::access::Entry;
use crate::state::access::change::{AccessError, NewToken, Terms, TokenText, listed};
use crate::state::servers::set_revoked;
use actix_web::http::StatusCode;
use actix_web::web::{Bytes, Data, Form, Path};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use futures_util::{StreamExt, stream};
use iptunnel_actors::server_registry::{Filter, Sort};
use iptunnel_domain::access::{AccessToken, Role, TokenNumber, WhyNot};
use iptunnel_domain::address::Network;
use iptunnel_domain::server::ServerId;
use iptunnel_domain::{Refusal, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// The seconds for which the secret before a rotation stays good, unless the request says otherwise: one
/// day, in which operators can hand out the new one.
const GRACE: u64 = 86_400;
/// Servers that are read at a time to be revoked.
const STEP: usize = 1000;
/// Servers that are revoked at the same time: they share commits, and leave permits to others.
const AT_ONCE: usize = 64;

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
}

impl Row {
    fn of(entry: &Entry, servers: usize, now: Timestamp) -> Self {
        let AccessToken { number, name, role, networks, addresses, .. } = &entry.token;
        let token = &entry.token;
        let last_used = Some(entry.last_used()).filter(|used| used.0 > 0);
        let old_secret = token.previous.filter(|(hash, _)| token.has_secret(hash, now));
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
        }
    }

    /// Returns the networks as a form shows them.
    fn networks(&self) -> String {
        listed(&self.networks)
    }

    /// Returns the addresses as a form shows them.
    fn addresses(&self) -> String {
        listed(&self.addresses)
    }

    /// Returns the day of its end, as a form shows it.
    fn end(&self) -> &str {
        self.expires_at.as_deref().and_then(|end| end.get(..10)).unwrap_or_default()
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::NotFound => Self::token_not_found(),
            AccessError::Refused(refusal) => refusal.into(),
            AccessError::Failed(failure) => failure.into(),
            AccessError::BrokenOff => Self::internal(),
        }
    }
}

async fn rows(console: &Console) -> Result<Vec<Row>, ApiError> {
    let entries = console.state.access.list().await?;
    let servers = Arc::clone(console.state.handles.servers());
    let enrolled = actix_web::web::block(move || servers.enrolled()).await;
    let enrolled: HashMap<_, _> = enrolled.map_err(|_| ApiError::internal())?;
    let now = console.state.clock.now();
    let count = |entry: &Entry| enrolled.get(&entry.token.number).copied().unwrap_or_default();
    Ok(entries.iter().map(|entry| Row::of(entry, count(entry), now)).collect())
}

async fn row(console: &Console, entry: &Entry) -> Result<Row, ApiError> {
    let filter = of_token(entry.token.number);
    let servers = Arc::clone(console.state.handles.servers());
    let count = actix_web::web::block(move || servers.count(&filter)).await;
    let count = count.map_err(|_| ApiError::internal())?;
    Ok(Row::of(entry, count, console.state.clock.now()))
}

/// Returns the filter of the servers that a token has enrolled and that are not revoked.
fn of_token(number: TokenNumber) -> Filter {
    Filter { revoked: Some(false), enrolled_by: Some(number), ..Filter::default() }
}

/// Revokes all servers that a token has enrolled. Returns how many.
async fn revoke_servers(
    console: &Console,
    operator: &Operator,
    number: TokenNumber,
) -> Result<usize, ApiError> {
    let mut revoked = 0;
    let mut after = None;
    loop {
        let servers = Arc::clone(console.state.handles.servers());
        let page = super::console::read(console, move |store| {
            let page = servers.page(&of_token(number), Sort::Oldest, after, STEP);
            let last = page.last().map(|(place, _)| *place);
            let mut ids = Vec::with_capacity(page.len());
            for (_, number) in page {
                ids.extend(store.server(number)?.map(|server| server.id));
            }
            Ok((ids, last))
        });
        let (ids, last) = page.await?;
        let Some(last) = last else { return Ok(revoked) };
        after = Some(last);
        let revoke = |id: ServerId| async move {
            set_revoked(&console.state, &id.to_string(), true, operator.who()).await
        };
        let mut done = stream::iter(ids).map(revoke).buffer_unordered(AT_ONCE);
        while let Some(one) = done.next().await {
            one?;
            revoked += 1;
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

/// The fields of a JSON body, taken one by one.
struct Fields(Map<String, Value>);

impl Fields {
    fn read(body: &[u8]) -> Result<Self, ApiError> {
        if body.trim_ascii().is_empty() {
            return Ok(Self(Map::new()));
        }
        serde_json::from_slice(body).map(Self).map_err(|_| Refusal::BodyNotJson.into())
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(format!("{name} must be a string."))),
        }
    }

    fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        let list = self.0.remove(name).map(serde_json::from_value::<Vec<String>>).transpose();
        list.map_err(|_| invalid(format!("{name} must be a list of strings.")))
    }

    fn number<T: TryFrom<u64>>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| T::try_from(number).ok());
        let wrong = || invalid(format!("{name} must be a whole number that is not negative."));
        number.map(Some).ok_or_else(wrong)
    }

    fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        let flag = self.0.remove(name).unwrap_or(Value::Bool(false)).as_bool();
        flag.ok_or_else(|| invalid(format!("{name} must be true or false.")))
    }

    fn terms(&mut self) -> Result<Terms, ApiError> {
        let expires_at = match self.0.remove("expires_at") {
            None => None,
            Some(Value::Null) => Some(None),
            Some(Value::String(text)) => Some(Some(end(&text)?)),
            Some(_) => return Err(invalid("expires_at must be a string or null.")),
        };
        Ok(Terms {
            name: None,
            expires_at,
            networks: self.texts("networks")?.map(|texts| networks(&texts)).transpose()?,
            addresses: self.texts("addresses")?.map(|texts| addresses(&texts)).transpose()?,
            max_servers: self.number("max_servers")?,
        })
    }

    /// Refuses fields that have not been taken: a typing error must not pass for a term that holds.
    fn end(self) -> Result<(), ApiError> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(invalid(format!("{} is not known here.", shown(name)))),
        }
    }
}

#[derive(Serialize)]
struct List {
    tokens: Vec<Row>,
}

/// `GET /admin/tokens`
pub async fn json_list(console: Data<Console>, request: HttpRequest) -> HttpResponse {
    match rows(&console).await {
        Ok(tokens) => success(StatusCode::OK, List { tokens }, "Access tokens"),
        Err(error) => failed(&request, &error),
    }
}

/// A token with its text, which is shown this once.
#[derive(Serialize)]
struct WithText<'a> {
    token: &'a str,
    #[serde(flatten)]
    row: Row,
}

/// `POST /admin/tokens`
pub async fn json_create(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    body: Bytes,
) -> HttpResponse {
    let created = async {
        let mut fields = Fields::read(&body)?;
        let required = |name: &str| invalid(format!("{name} is required."));
        let name = fields.text("name")?.ok_or_else(|| required("name"))?;
        let role = role(&fields.text("role")?.ok_or_else(|| required("role"))?)?;
        let terms = fields.terms()?;
        fields.end()?;
        let wanted = NewToken { name, role, terms };
        let (by, from) = operator.who();
        let (entry, text) = console.state.access.create(wanted, by, from).await?;
        Ok::<_, ApiError>((row(&console, &entry).await?, text))
    };
    match created.await {
        Ok((row, text)) => {
            let token = WithText { token: text.reveal(), row };
            success(StatusCode::CREATED, token, "Token created; it is shown this once")
        }
        Err(error) => failed(&request, &error),
    }
}

/// Returns the number in a path.
fn number(id: &str) -> Result<TokenNumber, ApiError> {
    id.parse().map(TokenNumber).map_err(|_| ApiError::token_not_found())
}

/// `PATCH /admin/tokens/{id}`
pub async fn json_change(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    id: Path<String>,
    body: Bytes,
) -> HttpResponse {
    let changed = async {
        let mut fields = Fields::read(&body)?;
        let name = fields.text("name")?;
        let terms = Terms { name, ..fields.terms()? };
        fields.end()?;
        let (by, from) = operator.who();
        let entry = console.state.access.change(number(&id)?, terms, by, from).await?;
        row(&console, &entry).await
    };
    match changed.await {
        Ok(row) => success(StatusCode::OK, row, "Token changed"),
        Err(error) => failed(&request, &error),
    }
}

/// `POST /admin/tokens/{id}/rotate`
pub async fn json_rotate(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    id: Path<String>,
    body: Bytes,
) -> HttpResponse {
    let rotated = async {
        let mut fields = Fields::read(&body)?;
        let grace = fields.number("grace_seconds")?.unwrap_or(GRACE);
        fields.end()?;
        let (by, from) = operator.who();
        let (entry, text) = console.state.access.rotate(number(&id)?, grace, by, from).await?;
        Ok::<_, ApiError>((row(&console, &entry).await?, text))
    };
    match rotated.await {
        Ok((row, text)) => {
            let token = WithText { token: text.reveal(), row };
            success(StatusCode::OK, token, "Token rotated; the new secret is shown this once")
        }
        Err(error) => failed(&request, &error),
    }
}

/// A revoked token, and how many of its servers were revoked with it.
#[derive(Serialize)]
struct Revoked {
    #[serde(flatten)]
    row: Row,
    servers_revoked: usize,
}

/// `POST /admin/tokens/{id}/revoke`. With `"servers": true` the servers that it has enrolled are revoked
/// too.
pub async fn json_revoke(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    id: Path<String>,
    body: Bytes,
) -> HttpResponse {
    let revoked = async {
        let mut fields = Fields::read(&body)?;
        let with_servers = fields.flag("servers")?;
        fields.end()?;
        let (number, (by, from)) = (number(&id)?, operator.who());
        let entry = console.state.access.revoke(number, by, from).await?;
        let servers_revoked =
            if with_servers { revoke_servers(&console, &operator, number).await? } else { 0 };
        Ok::<_, ApiError>(Revoked { row: row(&console, &entry).await?, servers_revoked })
    };
    match revoked.await {
        Ok(revoked) => success(StatusCode::OK, revoked, "Token revoked"),
        Err(error) => failed(&request, &error),
    }
}

#[derive(Template)]
#[template(path = "console/access.html")]
struct Page<'a> {
    page: &'static str,
    operator: &'a Operator,
    roles: [(&'static str, &'static str); 4],
    tokens: Vec<Row>,
    refused: Option<String>,
    /// The name of a token that was made or rotated just now, and its text.
    fresh: Option<(String, TokenText)>,
}

/// The roles as the page explains them.
const ROLES: [(&str, &str); 4] = [
    ("enrol", "registers servers, checks them in and sees only those"),
    ("view", "reads everything here"),
    ("operate", "view, and changes servers and codes"),
    ("admin", "operate, and changes settings, tokens and sessions"),
];

async fn shown_page(
    console: &Console,
    request: &HttpRequest,
    operator: &Operator,
    done: Result<Option<(Row, TokenText)>, ApiError>,
) -> HttpResponse {
    let mut tokens = match rows(console).await {
        Ok(tokens) => tokens,
        Err(error) => return failed(request, &error),
    };
    // Tokens in use first, the newest first.
    tokens.sort_by_key(|row| (row.state == "revoked", std::cmp::Reverse(row.id)));
    let (status, refused, fresh) = match done {
        Ok(fresh) => (StatusCode::OK, None, fresh.map(|(row, text)| (row.name, text))),
        Err(error) => (error.status, Some(error.message), None),
    };
    let page = Page { page: "access", operator, roles: ROLES, tokens, refused, fresh };
    html(status, &page)
}

/// `GET /console/{key}/access`
pub async fn page(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
) -> HttpResponse {
    shown_page(&console, &request, &operator, Ok(None)).await
}

/// The fields of a form about a token. The lists are separated by commas or blanks.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct TokenForm {
    id: String,
    name: String,
    role: String,
    expires_at: String,
    networks: String,
    addresses: String,
    max_servers: String,
    grace_hours: String,
}

impl TokenForm {
    fn terms(&self) -> Result<Terms, ApiError> {
        let list = |text: &str| -> Vec<String> {
            let parts = text.split(|c: char| c == ',' || c.is_whitespace());
            parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let most = || invalid("max_servers must be a whole number that is not negative.");
        Ok(Terms {
            name: None,
            expires_at: Some(match self.expires_at.trim() {
                "" => None,
                text => Some(end(text)?),
            }),
            networks: Some(networks(&list(&self.networks))?),
            addresses: Some(addresses(&list(&self.addresses))?),
            max_servers: Some(match self.max_servers.trim() {
                "" => 0,
                text => text.parse().map_err(|_| most())?,
            }),
        })
    }

    fn grace(&self) -> Result<u64, ApiError> {
        match self.grace_hours.trim() {
            "" => Ok(GRACE),
            text => text
                .parse::<u64>()
                .map(|hours| hours.saturating_mul(3600))
                .map_err(|_| invalid("The hours must be a whole number that is not negative.")),
        }
    }
}

/// `POST /console/{key}/access/create`: shows the page with the text of the token.
pub async fn create(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<TokenForm>,
) -> HttpResponse {
    let created = async {
        let (name, role) = (form.name.clone(), role(&form.role)?);
        let wanted = NewToken { name, role, terms: form.terms()? };
        let (by, from) = operator.who();
        let (entry, text) = console.state.access.create(wanted, by, from).await?;
        Ok(Some((row(&console, &entry).await?, text)))
    };
    shown_page(&console, &request, &operator, created.await).await
}

/// `POST /console/{key}/access/change`
pub async fn change(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<TokenForm>,
) -> HttpResponse {
    let changed = async {
        let (number, (by, from)) = (number(&form.id)?, operator.who());
        let mut terms = Terms { name: Some(form.name.clone()), ..form.terms()? };
        let end = console.state.access.by_number(number).and_then(|entry| entry.token.expires_at);
        let is_same_day = |end| rfc3339(end).starts_with(form.expires_at.trim());
        if !form.expires_at.trim().is_empty() && end.is_some_and(is_same_day) {
            // The form knows the day alone. What nobody has changed keeps its time.
            terms.expires_at = None;
        }
        console.state.access.change(number, terms, by, from).await?;
        Ok::<_, ApiError>(())
    };
    match changed.await {
        Ok(()) => see(&format!("{}/access", operator.base)),
        Err(error) => shown_page(&console, &request, &operator, Err(error)).await,
    }
}

/// `POST /console/{key}/access/rotate`: shows the page with the new text of the token.
pub async fn rotate(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<TokenForm>,
) -> HttpResponse {
    let rotated = async {
        let (number, (by, from)) = (number(&form.id)?, operator.who());
        let (entry, text) = console.state.access.rotate(number, form.grace()?, by, from).await?;
        Ok(Some((row(&console, &entry).await?, text)))
    };
    shown_page(&console, &request, &operator, rotated.await).await
}

/// `POST /console/{key}/access/revoke`
pub async fn revoke(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<TokenForm>,
) -> HttpResponse {
    let revoked = async {
        let (by, from) = operator.who();
        console.state.access.revoke(number(&form.id)?, by, from).await?;
        Ok::<_, ApiError>(())
    };
    match revoked.await {
        Ok(()) => see(&format!("{}/access", operator.base)),
        Err(error) => shown_page(&console, &request, &operator, Err(error)).await,
    }
}

/// `POST /console/{key}/access/revoke-servers`: revokes the servers that a token has enrolled.
pub async fn revoke_enrolled(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<TokenForm>,
) -> HttpResponse {
    let revoked = async { revoke_servers(&console, &operator, number(&form.id)?).await };
    match revoked.await {
        Ok(_) => see(&format!("{}/access", operator.base)),
        Err(error) => shown_page(&console, &request, &operator, Err(error)).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(error: ApiError) -> String {
        error.message
    }

    #[test]
    fn a_field_that_is_wrong_is_named() {
        let terms = |body: &str| {
            let mut fields = Fields::read(body.as_bytes()).unwrap();
            fields.terms().and_then(|_| fields.end()).map_err(words).unwrap_err()
        };
        for (body, name) in [
            (r#"{"networks": "10.0.0.0/8"}"#, "networks"),
            (r#"{"networks": ["10.0.0.1/8"]}"#, "networks"),
            (r#"{"addresses": ["x"]}"#, "addresses"),
            (r#"{"expires_at": "soon"}"#, "expires_at"),
            (r#"{"expires_at": 5}"#, "expires_at"),
            (r#"{"max_servers": -1}"#, "max_servers"),
            (r#"{"max_servers": 4294967296}"#, "max_servers"),
            (r#"{"netwroks": []}"#, "netwroks"),
        ] {
            let words = terms(body);
            assert!(words.starts_with(name), "{words}");
        }
        assert_eq!(Fields::read(b"[]").err().unwrap().code, "invalid_json");
    }

    #[test]
    fn what_a_form_leaves_empty_is_no_bound() {
        let terms = TokenForm::default().terms().unwrap();
        assert_eq!((terms.expires_at, terms.max_servers), (Some(None), Some(0)));
        let form =
            TokenForm { networks: "10.0.0.0/8, 2001:db8::/32\n".into(), ..TokenForm::default() };
        assert_eq!(form.terms().unwrap().networks.unwrap().len(), 2);
    }
}
