//! The audit log: list, filter and export.

use super::auth::Operator;
use super::console::{Console, failed, parse_cursor, query_string, read};
use crate::http::errors::ApiError;
use crate::http::page::html;
use crate::http::respond::{rfc3339, success};
use actix_web::http::StatusCode;
use actix_web::web::{Bytes, Data, Query};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::{AuditLog, Entry, ReadError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Entries per page.
const PAGE: usize = 100;
/// The most entries that one request searches: about 50 ms.
const SEARCHED: usize = 50_000;
/// Entries per chunk of an export.
const PIECE: usize = 1000;

/// The filter of a request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AuditQuery {
    /// The name of an action. Empty: all.
    pub action: String,
    /// The name of an actor, or `people` for operators and the administrator. Empty: all.
    pub actor: String,
    /// A part of subject, detail, address or the token's name. Empty: all.
    pub text: String,
    /// The end of the previous page.
    pub cursor: String,
}

/// A parsed filter.
#[derive(Clone)]
struct Wanted {
    action: Option<Action>,
    /// Any of these.
    actors: Option<Vec<Actor>>,
    text: String,
}

/// The actor of a filter that stands for all people who run the server.
const PEOPLE: &str = "people";

/// Parses the actors of a filter.
fn actors_of(name: &str) -> Option<Vec<Actor>> {
    match name {
        PEOPLE => Some(vec![Actor::Operator, Actor::Administrator]),
        name => Actor::from_name(name).map(|actor| vec![actor]),
    }
}

impl Wanted {
    fn of(query: &AuditQuery) -> Result<Self, ApiError> {
        let invalid =
            |field: &str| ApiError::from(Refusal::InvalidField(format!("{field} is not known.")));
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Ok(Self {
            action: some(&query.action)
                .map(|name| Action::from_name(&name).ok_or_else(|| invalid("action")))
                .transpose()?,
            actors: some(&query.actor)
                .map(|name| actors_of(&name).ok_or_else(|| invalid("actor")))
                .transpose()?,
            text: query.text.trim().to_lowercase(),
        })
    }

    fn matches(&self, event: &Event) -> bool {
        self.action.is_none_or(|action| action == event.action)
            && self.actors.as_ref().is_none_or(|actors| actors.contains(&event.actor))
            && (self.text.is_empty() || mentions(event, &self.text))
    }
}

/// Returns whether subject, detail, addresses, ids or the token's name of an event contain `text` (lower case).
pub(super) fn mentions(event: &Event, text: &str) -> bool {
    let address = |address: Option<std::net::IpAddr>| {
        address.is_some_and(|address| address.to_string().contains(text))
    };
    event.subject.to_lowercase().contains(text)
        || event.by.to_lowercase().contains(text)
        || event.detail.to_lowercase().contains(text)
        || address(event.address)
        || address(event.from)
        || event.server.is_some_and(|id| id.to_string().contains(text))
        || event.activation.is_some_and(|name| name.to_string() == text)
}

/// An entry as the console shows and exports it. It has every field that the hash covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The number of the entry.
    pub number: u64,
    /// The chain hash over this entry and all before it.
    pub hash: String,
    /// The time, in seconds since the Unix epoch.
    pub time: u64,
    /// The time by RFC 3339.
    pub at: String,
    /// The action.
    pub action: String,
    /// The actor.
    pub actor: String,
    /// The name of the access token that was shown; left out if none was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// The caller's address.
    pub from: Option<std::net::IpAddr>,
    /// The keyed hash of the machine or session.
    pub identity: Option<String>,
    /// The keyed hash of the code.
    pub code: Option<String>,
    /// The activation's number, and the first digits of its id.
    pub activation: Option<(u64, u16)>,
    /// The server.
    pub server: Option<String>,
    /// The address that was activated or registered.
    pub address: Option<std::net::IpAddr>,
    /// The subject, such as a code's hint or a host name.
    pub subject: String,
    /// Further detail.
    pub detail: String,
}

impl Row {
    fn of(entry: Entry) -> Self {
        let Entry { event, head } = entry;
        Self {
            number: head.entries,
            hash: head.hash.to_hex(),
            time: event.at.0,
            at: rfc3339(event.at),
            action: event.action.name().into(),
            actor: event.actor.name().into(),
            by: event.by,
            from: event.from,
            identity: event.identity.map(|hash| hash.to_hex()),
            code: event.code.map(|code| code.0.to_hex()),
            activation: event.activation.map(|name| (name.number.0, name.digits)),
            server: event.server.map(|id| id.to_string()),
            address: event.address,
            subject: event.subject,
            detail: event.detail,
        }
    }

    /// Parses the row back into its event. `None` if a field is invalid.
    pub fn event(&self) -> Option<Event> {
        use iptunnel_domain::activation::ActivationName;
        use iptunnel_domain::activation::ActivationNumber;
        use iptunnel_domain::code::CodeHash;
        use iptunnel_domain::lookup::KeyedHash;
        use iptunnel_domain::server::ServerId;
        // The hash covers no more than this much of a text.
        let whole = |text: &str| (Event::kept(text) == text).then(|| text.to_owned());
        let hash = |text: &Option<String>| match text {
            None => Some(None),
            Some(text) => KeyedHash::from_hex(text).map(Some),
        };
        Some(Event {
            at: Timestamp(self.time),
            action: Action::from_name(&self.action)?,
            actor: Actor::from_name(&self.actor)?,
            by: whole(&self.by)?,
            from: self.from,
            identity: hash(&self.identity)?,
            code: hash(&self.code)?.map(CodeHash),
            activation: self.activation.map(|(number, digits)| ActivationName {
                number: ActivationNumber(number),
                digits,
            }),
            server: match &self.server {
                None => None,
                Some(text) => Some(ServerId::parse(text)?),
            },
            address: self.address,
            subject: whole(&self.subject)?,
            detail: whole(&self.detail)?,
        })
    }

    /// Returns the subject; if that is empty, the address or the server's id.
    fn shown_subject(&self) -> String {
        match (self.subject.as_str(), self.address) {
            ("", Some(address)) => address.to_string(),
            ("", None) => self.server.clone().unwrap_or_default(),
            (subject, _) => subject.to_owned(),
        }
    }
}

#[derive(Serialize)]
struct List {
    entries_in_all: u64,
    head_hash: String,
    entries: Vec<Row>,
    next_cursor: Option<u64>,
}

async fn list(console: &Console, query: &AuditQuery) -> Result<List, ApiError> {
    let wanted = Wanted::of(query)?;
    let before = parse_cursor(&query.cursor)?.unwrap_or(u64::MAX);
    read(console, move |store| {
        let head = store.audit_head()?;
        let (mut entries, mut looked, mut next_cursor) = (Vec::new(), 0, None);
        store.audit_before(before, &mut |entry| {
            looked += 1;
            let number = entry.head.entries;
            if wanted.matches(&entry.event) {
                entries.push(Row::of(entry));
            }
            let goes_on = entries.len() < PAGE && looked < SEARCHED;
            next_cursor = (!goes_on && number > 1).then_some(number);
            goes_on
        })?;
        Ok(List {
            entries_in_all: head.entries,
            head_hash: head.hash.to_hex(),
            entries,
            next_cursor,
        })
    })
    .await
}

#[derive(Template)]
#[template(path = "console/audit.html")]
struct Page<'a> {
    page: &'static str,
    operator: &'a Operator,
    query: &'a AuditQuery,
    list: &'a List,
    actions: Vec<&'static str>,
    actors: Vec<&'static str>,
    /// The lists to choose from: the actor of the query, and the name.
    lists: [(&'static str, &'static str); 2],
    filter: String,
    next: Option<String>,
}

/// `GET /console/{key}/audit`
pub async fn page(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    query: Query<AuditQuery>,
) -> HttpResponse {
    let mut query = query.into_inner();
    // Without a question, what people did: installers and servers write a thousand times as many entries.
    if request.query_string().is_empty() {
        PEOPLE.clone_into(&mut query.actor);
    }
    let list = match list(&console, &query).await {
        Ok(list) => list,
        Err(error) => return failed(&request, &error),
    };
    let pairs = [("action", query.action.as_str()), ("actor", &query.actor), ("text", &query.text)];
    let filter = query_string(&pairs);
    let page = Page {
        page: "audit",
        operator: &operator,
        query: &query,
        next: list
            .next_cursor
            .map(|cursor| format!("{}/audit?{filter}&cursor={cursor}", operator.base)),
        list: &list,
        actions: Action::ALL.into_iter().filter(|a| !a.is_attempt()).map(Action::name).collect(),
        actors: Actor::ALL.map(Actor::name).to_vec(),
        lists: [(PEOPLE, "What people did"), ("", "Everything")],
        filter,
    };
    html(StatusCode::OK, &page)
}

/// `GET /admin/audit`
pub async fn json_list(
    console: Data<Console>,
    request: HttpRequest,
    query: Query<AuditQuery>,
) -> HttpResponse {
    match list(&console, &query).await {
        Ok(list) => success(StatusCode::OK, list, "Audit log"),
        Err(error) => failed(&request, &error),
    }
}

/// Returns the next chunk of an export and the number of the entry after it. `None`: it is the
/// last.
fn piece(
    store: &dyn AuditLog,
    wanted: &Wanted,
    first: u64,
) -> Result<(String, Option<u64>), ReadError> {
    let (mut text, mut looked, mut next) = (String::new(), 0, None);
    store.audit_from(first, &mut |entry| {
        looked += 1;
        if looked > PIECE {
            next = Some(entry.head.entries);
            return false;
        }
        if wanted.matches(&entry.event) {
            text += &serde_json::to_string(&Row::of(entry)).unwrap_or_default();
            text.push('\n');
        }
        true
    })?;
    Ok((text, next))
}

/// `GET /admin/audit/export`, `GET /console/{key}/audit/export`: streams all matching entries as JSON
/// Lines, oldest first, in constant memory.
pub async fn export(
    console: Data<Console>,
    request: HttpRequest,
    query: Query<AuditQuery>,
) -> HttpResponse {
    let wanted = match Wanted::of(&query) {
        Ok(wanted) => wanted,
        Err(error) => return failed(&request, &error),
    };
    let store = Arc::clone(console.state.handles.store());
    let pieces = futures_util::stream::unfold(Some(1), move |first| {
        let (store, wanted) = (Arc::clone(&store), wanted.clone());
        async move {
            let first = first?;
            let piece = actix_web::web::block(move || piece(store.as_ref(), &wanted, first)).await;
            Some(match piece {
                Ok(Ok((text, next))) => (Ok(Bytes::from(text)), next),
                // The status has been sent. A broken export is recognised because it does not reach
                // the log's head.
                Ok(Err(error)) => (Err(std::io::Error::other(error.0)), None),
                Err(error) => (Err(std::io::Error::other(error)), None),
            })
        }
    });
    HttpResponse::Ok()
        .insert_header(("content-type", "application/jsonl"))
        .insert_header(("cache-control", "no-store"))
        .insert_header(("content-disposition", "attachment; filename=\"audit.jsonl\""))
        .streaming(pieces)
}
