//! Search for codes, and the history of one code.

use super::audit::mentions;
use super::auth::Operator;
use super::console::{Console, failed, parse_cursor, read, see};
use crate::http::errors::ApiError;
use crate::http::page::html;
use crate::http::respond::{rfc3339, success};
use crate::http::story::{CodeStage, hints_of};
use actix_web::http::StatusCode;
use actix_web::web::{Data, Form, Path};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use iptunnel_domain::activation::ActivationId;
use iptunnel_domain::audit::{Action, Event};
use iptunnel_domain::code::{Code, CodeHash, CodeState, InstallCode};
use iptunnel_domain::lookup::{KeyedHash, Purpose};
use iptunnel_domain::time::Lifetimes;
use iptunnel_domain::{Refusal, Timestamp};
use iptunnel_storage::{ReadError, Store};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::net::IpAddr;

/// Codes per page.
const PAGE: usize = 50;
/// The most log entries that one search reads: about 50 ms.
const SEARCHED: usize = 50_000;
/// The most log entries that are read for the history of one code.
const AMONG: usize = 300_000;

/// A search. It is sent in a body and never logged or shown, because it may be a code.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Find {
    find: String,
    cursor: String,
}

#[derive(Serialize)]
struct Row {
    id: String,
    hint: String,
    last: &'static str,
    at: String,
    hostname: String,
    address: String,
}

#[derive(Default, Serialize)]
struct Found {
    codes: Vec<Row>,
    next_cursor: Option<u64>,
}

/// The result of a search: one code, or a list.
enum Hit {
    One(CodeHash),
    Many(Found),
}

async fn search(console: &Console, find: &Find) -> Result<Hit, ApiError> {
    let text = find.find.trim().to_owned();
    if let Ok(code) = InstallCode::parse(&text) {
        return Ok(Hit::One(code.hash(&console.state.live.lookup)));
    }
    let before = parse_cursor(&find.cursor)?.unwrap_or(u64::MAX);
    if let Some(id) = ActivationId::parse(&text) {
        let found = read(console, move |store| store.activation(id)).await?;
        return found.map(|found| Hit::One(found.code)).ok_or(Refusal::ActivationNotFound.into());
    }
    // The id of a code looks like many machine ids. What is no code's id is searched for.
    let id = KeyedHash::from_hex(&text);
    if let Some(hash) = id.map(CodeHash)
        && read(console, move |store| store.code(hash)).await?.is_some()
    {
        return Ok(Hit::One(hash));
    }
    let machine = console.state.live.lookup.hash(Purpose::Machine, text.as_bytes());
    let ids = Ids { machine, code: id, who: who(&text) };
    let found = read(console, move |store| scan(store, before, &text.to_lowercase(), &ids));
    Ok(Hit::Many(found.await?))
}

/// Whether an entry of the log belongs to the story of its code. That another machine has tried the code is
/// there already, as an attempt.
fn is_of_code(event: &Event) -> bool {
    event.action != Action::SpentCodeTried
}

/// What the text of a search may be an id of.
struct Ids {
    machine: KeyedHash,
    /// A code, which may have been deleted.
    code: Option<KeyedHash>,
    /// The first bytes of a machine's or session's hash, as histories show them.
    who: Option<[u8; 4]>,
}

impl Ids {
    fn include(&self, event: &Event) -> bool {
        let is_code = self.code.is_some() && event.code.map(|code| code.0) == self.code;
        let is_caller = event.identity.is_some_and(|identity| {
            identity == self.machine || self.who.is_some_and(|who| identity.0.starts_with(&who))
        });
        is_code || is_caller
    }
}

/// Parses eight hexadecimal digits.
fn who(text: &str) -> Option<[u8; 4]> {
    let digits = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u32::from_str_radix(text, 16).ok()).flatten().map(u32::to_be_bytes)
}

/// Searches the log, newest entry first, for codes whose events contain `text`.
fn scan(store: &dyn Store, before: u64, text: &str, ids: &Ids) -> Result<Found, ReadError> {
    let mut seen = HashSet::new();
    let (mut hits, mut looked, mut next_cursor) = (Vec::new(), 0, None);
    store.audit_before(before, &mut |entry| {
        looked += 1;
        let (number, event) = (entry.head.entries, entry.event);
        let matches = text.is_empty() || mentions(&event, text) || ids.include(&event);
        let matches = matches && is_of_code(&event);
        if let Some(code) = event.code.filter(|code| matches && seen.insert(*code)) {
            hits.push((code, event));
        }
        let goes_on = hits.len() < PAGE && looked < SEARCHED;
        next_cursor = (!goes_on && number > 1).then_some(number);
        goes_on
    })?;
    // The entry of the issue has the hint itself.
    let others = hits.iter().filter(|(_, event)| event.action != Action::CodeIssued);
    let others: Vec<CodeHash> = others.map(|(hash, _)| *hash).collect();
    let known: Vec<Code> = store.codes(&others)?.into_iter().flatten().collect();
    let mut hints = hints_of(store, &known)?;
    let mut hint = |hash| match hints.remove(&hash) {
        Some(hint) => hint,
        None if known.iter().any(|code| code.hash == hash) => String::new(),
        None => "(deleted)".into(),
    };
    let codes = hits
        .into_iter()
        .map(|(hash, event)| match event.action {
            Action::CodeIssued => row(hash, event.subject.clone(), event),
            _ => row(hash, hint(hash), event),
        })
        .collect();
    Ok(Found { codes, next_cursor })
}

fn row(hash: CodeHash, hint: String, event: Event) -> Row {
    let hostname = if event.action == Action::CodeIssued { String::new() } else { event.subject };
    Row {
        id: hash.0.to_hex(),
        hint,
        last: event.action.name(),
        at: rfc3339(event.at),
        hostname,
        address: event.address.map(|address| address.to_string()).unwrap_or_default(),
    }
}

#[derive(Serialize)]
struct Happened {
    at: String,
    action: &'static str,
    actor: &'static str,
    /// The name of the access token that was shown. Empty if none was.
    by: String,
    /// The first digits of a keyed hash, enough to tell machines or sessions apart.
    who: Option<String>,
    from: Option<IpAddr>,
    activation: Option<String>,
    /// The server that the activation enrolled.
    server: Option<String>,
    address: Option<IpAddr>,
    subject: String,
    detail: String,
    stands_out: bool,
}

/// The history of a code.
#[derive(Serialize)]
pub struct Timeline {
    hint: String,
    state: &'static str,
    expires_at: Option<String>,
    activations: u32,
    second_machine: bool,
    events: Vec<Happened>,
    attempts_not_kept: u64,
    /// Whether the search stopped at [`AMONG`] entries, before the end of the code's life.
    cut_short: bool,
}

fn timeline(
    store: &dyn Store,
    hash: CodeHash,
    now: Timestamp,
    life: &Lifetimes,
) -> Result<Option<Timeline>, ReadError> {
    let Some(code) = store.code(hash)? else { return Ok(None) };
    let activation = match code.state {
        CodeState::Consumed(by) => store.activation(by.id)?,
        CodeState::Issued => None,
    };
    let longest = life.max_lifetime.max(life.code) + life.precheck_token + life.install_token;
    // Uses the code's own times, because the lifetimes in force may have changed since.
    let over = code.expires_at.max(code.issued_at.plus(longest)).plus(longest);
    let (mut events, mut looked, mut cut_short) = (Vec::new(), 0, false);
    store.audit_from(store.audit_number_at(code.issued_at)?, &mut |entry| {
        looked += 1;
        cut_short = entry.event.at <= over && looked >= AMONG;
        let goes_on = entry.event.at <= over && !cut_short;
        if entry.event.code == Some(hash) && is_of_code(&entry.event) {
            events.push(entry.event);
        }
        goes_on
    })?;
    let issued = events.iter().find(|event| event.action == Action::CodeIssued);
    let hint = issued.map_or_else(String::new, |event| event.subject.clone());
    let attempts = store.attempts(hash)?;
    events.extend(attempts.kept);
    // Attempts are stored outside the log. Within one second, sort events in the order an installer
    // causes them.
    let step = |event: &Event| match event.action {
        Action::CodeIssued => 0,
        Action::PrecheckPassed => 1,
        action if !action.is_attempt() => 2,
        _ => 3,
    };
    events.sort_by_key(|event| (event.at, step(event)));
    let holder = activation.as_ref().map(|activation| activation.request.holder.machine);
    let is_second = |event: &Event| {
        let is_other = holder.is_some() && event.identity.is_some() && event.identity != holder;
        let refused = matches!(event.action, Action::PrecheckRefused | Action::ActivateRefused);
        refused && is_other
    };
    let second_machine = events.iter().any(is_second);
    let events = events
        .into_iter()
        .map(|event| Happened {
            stands_out: is_second(&event),
            at: rfc3339(event.at),
            action: event.action.name(),
            actor: event.actor.name(),
            by: event.by,
            who: event.identity.map(|hash| hash.to_hex().chars().take(8).collect()),
            from: event.from,
            activation: event.activation.map(|name| name.to_string()),
            server: event.server.map(|server| server.to_string()),
            address: event.address,
            subject: event.subject,
            detail: event.detail,
        })
        .collect();
    Ok(Some(Timeline {
        hint,
        state: CodeStage::of(&code, activation.as_ref(), now).name(),
        expires_at: (code.state == CodeState::Issued).then(|| rfc3339(code.expires_at)),
        activations: code.activations,
        second_machine,
        events,
        attempts_not_kept: attempts.more,
        cut_short,
    }))
}

async fn story(console: &Console, hash: CodeHash) -> Result<Timeline, ApiError> {
    let (now, life) = (console.state.clock.now(), console.state.live.tuning.load().lifetimes);
    let found = read(console, move |store| timeline(store, hash, now, &life)).await?;
    found.ok_or(Refusal::CodeNotFound.into())
}

fn parse_id(id: &str) -> Result<CodeHash, ApiError> {
    KeyedHash::from_hex(id).map(CodeHash).ok_or(Refusal::CodeNotFound.into())
}

#[derive(Template)]
#[template(path = "console/codes.html")]
struct ListPage<'a> {
    page: &'static str,
    operator: &'a Operator,
    find: &'a str,
    found: Found,
    refused: Option<String>,
}

#[derive(Template)]
#[template(path = "console/code.html")]
struct CodePage<'a> {
    page: &'static str,
    operator: &'a Operator,
    line: &'a Timeline,
}

async fn shown(console: &Console, operator: &Operator, find: &Find) -> HttpResponse {
    let (found, refused) = match search(console, find).await {
        Ok(Hit::One(hash)) => return see(&format!("{}/codes/{}", operator.base, hash.0.to_hex())),
        Ok(Hit::Many(found)) => (found, None),
        Err(error) => (Found::default(), Some(error.message)),
    };
    // A search for a code never reaches this page: it has redirected to the code's page.
    let page = ListPage { page: "codes", operator, find: &find.find, found, refused };
    html(StatusCode::OK, &page)
}

/// `GET /console/{key}/codes`: the newest codes.
pub async fn page(console: Data<Console>, operator: Operator) -> HttpResponse {
    shown(&console, &operator, &Find::default()).await
}

/// `POST /console/{key}/codes`: searches codes.
pub async fn find(console: Data<Console>, operator: Operator, form: Form<Find>) -> HttpResponse {
    shown(&console, &operator, &form).await
}

/// `GET /console/{key}/codes/{code}`: the history of one code.
pub async fn code_page(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    path: Path<(String, String)>,
) -> HttpResponse {
    let story = async { story(&console, parse_id(&path.1)?).await };
    match story.await {
        Ok(line) => {
            html(StatusCode::OK, &CodePage { page: "codes", operator: &operator, line: &line })
        }
        Err(error) => failed(&request, &error),
    }
}

/// `GET /admin/codes/{code}`: the history of one code, by the id from a search.
pub async fn json_code(
    console: Data<Console>,
    request: HttpRequest,
    id: Path<String>,
) -> HttpResponse {
    let story = async { story(&console, parse_id(&id)?).await };
    match story.await {
        Ok(line) => success(StatusCode::OK, line, "Code"),
        Err(error) => failed(&request, &error),
    }
}

/// `POST /admin/codes`: searches codes. The body has `find` and `cursor`. Returns a list; for a
/// full code or an activation id, returns the history of that code.
pub async fn json_find(
    console: Data<Console>,
    operator: Operator,
    request: HttpRequest,
    body: actix_web::web::Bytes,
) -> HttpResponse {
    drop(operator);
    let find = if body.trim_ascii().is_empty() {
        Find::default()
    } else {
        match serde_json::from_slice::<Find>(&body) {
            Ok(find) => find,
            Err(_) => return failed(&request, &Refusal::BodyNotJson.into()),
        }
    };
    match search(&console, &find).await {
        Ok(Hit::One(hash)) => match story(&console, hash).await {
            Ok(line) => success(StatusCode::OK, line, "Code"),
            Err(error) => failed(&request, &error),
        },
        Ok(Hit::Many(found)) => success(StatusCode::OK, found, "Codes"),
        Err(error) => failed(&request, &error),
    }
}
