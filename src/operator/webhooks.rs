//! Webhooks: how each receiver is, what was given up, and sending again. As a page and as JSON.

use super::auth::Operator;
use super::console::{Console, failed, read, see};
use super::servers::invalid;
use crate::http::errors::ApiError;
use crate::http::page::html;
use crate::http::respond::{parse_time, rfc3339, success};
use crate::os::random_bytes;
use crate::state::attention::Line;
use crate::webhooks::entry;
use crate::webhooks::message::{Message, number_of};
use crate::webhooks::order::Replay;
use crate::webhooks::report::{self, DeadLetter, Endpoint};
use crate::webhooks::send::Outcome;
use actix_web::http::StatusCode;
use actix_web::web::{Bytes, Data, Form, Path, Query, block};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use iptunnel_domain::Refusal;
use iptunnel_domain::audit::{Action, Actor, Event};
use iptunnel_domain::webhook::type_of;
use serde::{Deserialize, Serialize};

/// The most dead letters on the page.
const LISTED: usize = 100;

async fn endpoints(console: &Console) -> Result<Vec<Endpoint>, ApiError> {
    let (webhooks, now) = (console.state.webhooks.clone(), console.state.clock.now());
    if webhooks.senders().is_empty() {
        return Ok(Vec::new());
    }
    read(console, move |store| report::endpoints(&webhooks, store, now)).await
}

/// Returns the receivers that need a person, for the page *Now*.
///
/// # Errors
/// The store cannot be read.
pub(super) async fn attention(console: &Console) -> Result<Vec<Line>, ApiError> {
    let now = console.state.clock.now();
    let line = |at: Option<String>, text| Line {
        kind: "webhook",
        at: at.unwrap_or_else(|| rfc3339(now)),
        text,
        see: "webhooks".into(),
    };
    let of = |one: Endpoint| {
        let text = if one.state == "disabled" {
            format!("The webhook {} is disabled: its receiver says that it is gone.", one.name)
        } else {
            format!(
                "The webhook {} has failed for more than an hour: {}.",
                one.name, one.last_error
            )
        };
        line(one.failing_since, text)
    };
    let all = endpoints(console).await?.into_iter().filter(|one| one.needs_person);
    let problem = console.state.webhooks.problem();
    let of_file =
        problem.map(|why| line(None, format!("The changed file of webhooks is not used: {why}.")));
    Ok(of_file.into_iter().chain(all.map(of)).collect())
}

/// Enters what an operator asks for into the audit log, where the server that delivers finds it.
async fn ask(
    console: &Console,
    operator: &Operator,
    name: &str,
    action: Action,
    detail: String,
) -> Result<(), ApiError> {
    if console.state.webhooks.sender(name).is_none() {
        return Err(ApiError::webhook_not_found());
    }
    let (caller, from) = operator.who();
    let event = Event {
        subject: name.to_owned(),
        detail,
        by: caller.shown().to_owned(),
        ..Event::new(action, Actor::Operator, console.state.clock.now(), Some(from))
    };
    let written = console.state.ask(|handles| handles.keep_settings(Vec::new(), vec![event])).await;
    Ok(written.outcome??)
}

/// Sends a test message to a receiver, at once and past its outbox.
async fn test(console: &Console, name: &str) -> Result<(), ApiError> {
    let sender = console.state.webhooks.sender(name).ok_or_else(ApiError::webhook_not_found)?;
    let nonce = random_bytes().map(u64::from_be_bytes).map_err(|_| ApiError::internal())?;
    let now = console.state.clock.now();
    let outcome = block(move || sender.send(&Message::test(nonce, now), now)).await;
    match outcome.map_err(|_| ApiError::internal())? {
        Outcome::Delivered => Ok(()),
        Outcome::Gone => Err(ApiError::webhook_failed("it answered 410".into())),
        Outcome::Failed { why, .. } => Err(ApiError::webhook_failed(why)),
    }
}

#[derive(Serialize)]
struct List {
    webhooks: Vec<Endpoint>,
    /// What is wrong with the file since it was changed.
    problem: Option<String>,
}

/// `GET /admin/webhooks`
pub async fn json_list(console: Data<Console>, request: HttpRequest) -> HttpResponse {
    match endpoints(&console).await {
        Ok(webhooks) => {
            let list = List { webhooks, problem: console.state.webhooks.problem() };
            success(StatusCode::OK, list, "Webhooks")
        }
        Err(error) => failed(&request, &error),
    }
}

/// The filter of the list of dead letters.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct DeadQuery {
    /// The name of a webhook. Empty: all.
    name: String,
}

#[derive(Serialize)]
struct Dead {
    dead_letters: Vec<DeadLetter>,
}

async fn dead(console: &Console, name: String) -> Result<Vec<DeadLetter>, ApiError> {
    let only = (!name.is_empty()).then_some(name);
    read(console, move |store| report::dead_letters(store, only.as_deref())).await
}

/// `GET /admin/webhooks/dead`
pub async fn json_dead(
    console: Data<Console>,
    request: HttpRequest,
    query: Query<DeadQuery>,
) -> HttpResponse {
    match dead(&console, query.into_inner().name).await {
        Ok(dead_letters) => success(StatusCode::OK, Dead { dead_letters }, "Dead letters"),
        Err(error) => failed(&request, &error),
    }
}

#[derive(Serialize)]
struct Done {
    webhook: String,
    status: &'static str,
}

fn answer(
    request: &HttpRequest,
    webhook: String,
    status: &'static str,
    done: Result<(), ApiError>,
) -> HttpResponse {
    match done {
        Ok(()) => success(StatusCode::OK, Done { webhook, status }, "Done"),
        Err(error) => failed(request, &error),
    }
}

/// `POST /admin/webhooks/{name}/test`
pub async fn json_test(
    console: Data<Console>,
    request: HttpRequest,
    name: Path<String>,
) -> HttpResponse {
    let done = test(&console, &name).await;
    answer(&request, name.into_inner(), "delivered", done)
}

/// `POST /admin/webhooks/{name}/enable`
pub async fn json_enable(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    name: Path<String>,
) -> HttpResponse {
    let done = ask(&console, &operator, &name, Action::WebhookEnabled, String::new()).await;
    answer(&request, name.into_inner(), "enabled", done)
}

/// The body of a request to send again. One of its fields says what.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ReplayBody {
    /// The id of a message, or the number of its entry in the audit log.
    message: Option<String>,
    /// All dead letters.
    dead: bool,
    /// Everything since a time, by RFC 3339.
    since: Option<String>,
}

/// Whether an entry of the audit log exists, and has a type that webhooks tell.
async fn is_told(console: &Console, number: u64) -> Result<bool, ApiError> {
    let entry = read(console, move |store| entry(store, number)).await?;
    Ok(entry.is_some_and(|entry| type_of(entry.event.action).is_some()))
}

async fn replay(
    console: &Console,
    operator: &Operator,
    name: &str,
    body: ReplayBody,
) -> Result<(), ApiError> {
    let what = match body {
        ReplayBody { message: Some(id), dead: false, since: None } => {
            let number = number_of(id.trim()).filter(|number| *number > 0);
            let words =
                "message must be the id of a message, or the number of an entry in the audit log.";
            let number = number.ok_or_else(|| invalid(words))?;
            if !is_told(console, number).await? {
                return Err(invalid("The audit log has no such entry, or no webhook tells it."));
            }
            Replay::Message(number)
        }
        ReplayBody { message: None, dead: true, since: None } => Replay::DeadLetters,
        ReplayBody { message: None, dead: false, since: Some(time) } => {
            let words = "since must be a date, or a time such as 2030-01-31T12:00:00Z.";
            let at = parse_time(time.trim()).ok_or_else(|| invalid(words))?;
            Replay::From(read(console, move |store| store.audit_number_at(at)).await?.max(1))
        }
        _ => return Err(invalid("Name one of message, dead and since.")),
    };
    ask(console, operator, name, Action::WebhookReplayed, what.to_string()).await
}

/// `POST /admin/webhooks/{name}/replay`
pub async fn json_replay(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    name: Path<String>,
    body: Bytes,
) -> HttpResponse {
    let body = serde_json::from_slice(&body).map_err(|_| ApiError::from(Refusal::BodyNotJson));
    let done = match body {
        Ok(body) => replay(&console, &operator, &name, body).await,
        Err(error) => Err(error),
    };
    answer(&request, name.into_inner(), "asked", done)
}

#[derive(Template)]
#[template(path = "console/webhooks.html")]
struct Page<'a> {
    page: &'static str,
    operator: &'a Operator,
    webhooks: Vec<Endpoint>,
    problem: Option<String>,
    dead: Vec<DeadLetter>,
    refused: Option<String>,
    saved: Option<String>,
}

/// What the page says of the change before it.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Said {
    /// What was done: `replay`, `enable` or `test`.
    done: String,
}

impl Said {
    fn words(&self) -> Option<String> {
        let words = match self.done.as_str() {
            "replay" => "It is sent again within seconds.",
            "enable" => "The webhook is enabled within seconds.",
            "test" => "The test message was delivered.",
            _ => return None,
        };
        Some(words.to_owned())
    }
}

async fn shown(
    console: &Console,
    operator: &Operator,
    request: &HttpRequest,
    (saved, refused): (Option<String>, Option<ApiError>),
) -> HttpResponse {
    let found = async {
        let mut letters = dead(console, String::new()).await?;
        letters.truncate(LISTED);
        Ok((endpoints(console).await?, letters))
    };
    match found.await {
        Ok((webhooks, dead)) => {
            let status = refused.as_ref().map_or(StatusCode::OK, |error| error.status);
            let page = Page {
                page: "webhooks",
                operator,
                webhooks,
                problem: console.state.webhooks.problem(),
                dead,
                refused: refused.map(|error| error.message),
                saved,
            };
            html(status, &page)
        }
        Err(error) => failed(request, &error),
    }
}

/// `GET /console/{key}/webhooks`
pub async fn page(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    said: Query<Said>,
) -> HttpResponse {
    shown(&console, &operator, &request, (said.words(), None)).await
}

/// The fields of the page's forms.
#[derive(Deserialize)]
pub struct Fields {
    name: String,
    /// The number of an entry; empty for all dead letters.
    #[serde(default)]
    number: String,
}

async fn after(
    console: &Console,
    operator: &Operator,
    request: &HttpRequest,
    what: &str,
    done: Result<(), ApiError>,
) -> HttpResponse {
    match done {
        Ok(()) => see(&format!("{}/webhooks?done={what}", operator.base)),
        Err(error) => shown(console, operator, request, (None, Some(error))).await,
    }
}

/// `POST /console/{key}/webhooks/replay`
pub async fn page_replay(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<Fields>,
) -> HttpResponse {
    let Fields { name, number } = form.into_inner();
    let message = (!number.is_empty()).then_some(number);
    let body = ReplayBody { dead: message.is_none(), message, since: None };
    let done = replay(&console, &operator, &name, body).await;
    after(&console, &operator, &request, "replay", done).await
}

/// `POST /console/{key}/webhooks/enable`
pub async fn page_enable(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<Fields>,
) -> HttpResponse {
    let done = ask(&console, &operator, &form.name, Action::WebhookEnabled, String::new()).await;
    after(&console, &operator, &request, "enable", done).await
}

/// `POST /console/{key}/webhooks/test`
pub async fn page_test(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<Fields>,
) -> HttpResponse {
    let done = test(&console, &form.name).await;
    after(&console, &operator, &request, "test", done).await
}
