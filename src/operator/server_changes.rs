//! Changes of servers: of one, of several, and of all that were not seen for long.

use super::auth::Operator;
use super::console::{Console, failed, read, see};
use super::servers::{Row, invalid, row};
use crate::http::errors::ApiError;
use crate::http::page::html;
use crate::http::respond::{rfc3339, success};
use crate::state::servers::{self, delete, numbered, set_note, set_revoked};
use actix_web::http::StatusCode;
use actix_web::web::{Bytes, Data, Form, Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use futures_util::{StreamExt, stream};
use iptunnel_actors::server_registry::{DeleteUnseen, Filter, Sort};
use iptunnel_domain::Timestamp;
use iptunnel_domain::server::ServerId;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The most servers that one request changes.
const SEVERAL: usize = 1000;
/// Changes of one request that wait for the disk together.
const AT_ONCE: usize = 64;
/// Servers that a preview shows.
const FIRST: usize = 10;
/// The most days without a check-in that can be asked for: a hundred years.
const MAX_DAYS: u64 = 36_500;
/// For how long one request deletes servers. What is left then is for the next request.
const DELETES_FOR: Duration = Duration::from_secs(3);

/// What can be done to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Revoke,
    Restore,
    Note(String),
    Delete,
}

impl Change {
    fn of(verb: &str, note: Option<String>) -> Result<Self, ApiError> {
        match (verb, note) {
            ("revoke", _) => Ok(Self::Revoke),
            ("restore", _) => Ok(Self::Restore),
            ("delete", _) => Ok(Self::Delete),
            ("note", Some(note)) => Ok(Self::Note(note)),
            ("note", None) => Err(invalid("note must be a string.")),
            _ => Err(invalid("action must be revoke, restore, note or delete.")),
        }
    }

    /// Returns what a server is afterwards.
    const fn status(&self) -> &'static str {
        match self {
            Self::Revoke => "revoked",
            Self::Restore => "active",
            Self::Note(_) => "noted",
            Self::Delete => "deleted",
        }
    }

    /// Returns what it means for servers, for a person who is asked first. `None`: nobody is asked.
    const fn meaning(&self) -> Option<&'static str> {
        match self {
            Self::Revoke => Some(
                "They stop at their next check-in, and cannot register until they are restored.",
            ),
            Self::Restore => Some("They can register and check in again."),
            Self::Note(_) => None,
            Self::Delete => Some(
                "Deleted servers can register again. Revoked ones stay revoked until they are restored.",
            ),
        }
    }

    async fn make(
        &self,
        console: &Console,
        operator: &Operator,
        id: &str,
    ) -> Result<ServerId, ApiError> {
        let (state, who) = (&console.state, operator.who());
        match self {
            Self::Revoke => set_revoked(state, id, true, who).await,
            Self::Restore => set_revoked(state, id, false, who).await,
            Self::Note(note) => set_note(state, id, note.clone(), who).await,
            Self::Delete => delete(state, id, who).await,
        }
    }

    /// Makes the change to several servers. One that fails does not stop the others.
    async fn make_to_all(&self, console: &Console, operator: &Operator, ids: &[String]) -> Several {
        let change = |id: &String| {
            let id = id.clone();
            async move { self.make(console, operator, &id).await.map_err(|error| (id, error)) }
        };
        let made: Vec<_> = stream::iter(ids.iter().map(change)).buffered(AT_ONCE).collect().await;
        let mut several = Several { status: self.status(), changed: 0, failed: Vec::new() };
        for outcome in made {
            match outcome {
                Ok(_) => several.changed += 1,
                Err((server_id, error)) => {
                    several.failed.push(Failed { server_id, error: error.message });
                }
            }
        }
        several
    }
}

/// What became of several servers.
#[derive(Serialize)]
struct Several {
    status: &'static str,
    changed: usize,
    failed: Vec<Failed>,
}

#[derive(Serialize)]
struct Failed {
    server_id: String,
    error: String,
}

#[derive(Serialize)]
struct Done {
    server_id: String,
    status: &'static str,
}

/// The fields of a form about a server.
#[derive(Deserialize)]
pub struct ServerForm {
    back: String,
    server_id: String,
    #[serde(default)]
    note: String,
}

/// Returns the address of the page that the form came from. Other targets are not allowed.
fn origin(operator: &Operator, to: String) -> String {
    let page = format!("{}/servers", operator.base);
    if to.starts_with(&page) { to } else { page }
}

/// Redirects to the page that the form came from.
fn back(operator: &Operator, to: &str) -> HttpResponse {
    see(&origin(operator, to.to_owned()))
}

async fn by_form(
    console: &Console,
    request: &HttpRequest,
    operator: &Operator,
    form: &ServerForm,
    change: Change,
) -> HttpResponse {
    match change.make(console, operator, &form.server_id).await {
        Ok(_) => back(operator, &form.back),
        Err(error) => failed(request, &error),
    }
}

/// `POST /console/{key}/servers/revoke`
pub async fn revoke(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<ServerForm>,
) -> HttpResponse {
    by_form(&console, &request, &operator, &form, Change::Revoke).await
}

/// `POST /console/{key}/servers/restore`
pub async fn restore(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<ServerForm>,
) -> HttpResponse {
    by_form(&console, &request, &operator, &form, Change::Restore).await
}

/// `POST /console/{key}/servers/note`
pub async fn note(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<ServerForm>,
) -> HttpResponse {
    let change = Change::Note(form.note.trim().to_owned());
    by_form(&console, &request, &operator, &form, change).await
}

/// `POST /console/{key}/servers/delete`
pub async fn delete_one(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<ServerForm>,
) -> HttpResponse {
    by_form(&console, &request, &operator, &form, Change::Delete).await
}

/// Checks the ids of a request.
fn check_ids(ids: &[String]) -> Result<(), ApiError> {
    if ids.is_empty() || ids.len() > SEVERAL {
        return Err(invalid(&format!("server_ids must name 1 to {SEVERAL} servers.")));
    }
    Ok(())
}

#[derive(Template)]
#[template(path = "console/several.html")]
struct SeveralPage<'a> {
    page: &'static str,
    operator: &'a Operator,
    title: String,
    meaning: &'static str,
    action: &'a str,
    ids: &'a [String],
    /// The first of the servers.
    first: Vec<Row>,
    back: String,
}

/// Asks whether several servers are to be changed.
async fn confirm(
    console: &Console,
    operator: &Operator,
    (action, meaning): (&str, &'static str),
    ids: &[String],
    to: String,
) -> Result<HttpResponse, ApiError> {
    let now = console.state.clock.now();
    let hours = console.state.live.config.load().servers.stale_after_hours;
    let stale = Timestamp(now.0.saturating_sub(hours.saturating_mul(3600)));
    let wanted: Vec<_> = ids.iter().filter_map(|id| ServerId::parse(id)).take(FIRST).collect();
    let (state, servers) = (console.state.clone(), Arc::clone(console.state.handles.servers()));
    let first = read(console, move |store| {
        let found = servers::read(store, &servers, &wanted, now)?;
        Ok(found.into_iter().map(|server| row(&state, None, server, stale)).collect::<Vec<_>>())
    });
    let (first, back) = (first.await?, origin(operator, to));
    let (verb, count) = (action.get(..1).unwrap_or_default().to_uppercase(), ids.len());
    let rest = action.get(1..).unwrap_or_default();
    let title = format!("{verb}{rest} {count} server{}", if count == 1 { "" } else { "s" });
    let page = SeveralPage { page: "servers", operator, title, meaning, action, ids, first, back };
    Ok(html(StatusCode::OK, &page))
}

/// `POST /console/{key}/servers/several`: what is ticked on the page. Asks first, unless it is a note.
pub async fn several(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    body: Bytes,
) -> HttpResponse {
    let (mut to, mut action, mut note, mut ids) = (String::new(), String::new(), None, Vec::new());
    let mut is_confirmed = false;
    for (name, value) in form_urlencoded::parse(&body) {
        match name.as_ref() {
            "back" => to = value.into_owned(),
            "action" => action = value.into_owned(),
            "note" => note = Some(value.trim().to_owned()),
            "confirmed" => is_confirmed = value == "yes",
            "server_id" => ids.push(value.into_owned()),
            _ => {}
        }
    }
    let change = Change::of(&action, note).and_then(|change| {
        let none = || invalid("Please tick the servers first.");
        if ids.is_empty() { Err(none()) } else { check_ids(&ids).map(|()| change) }
    });
    let change = match change {
        Ok(change) => change,
        Err(error) => return failed(&request, &error),
    };
    if let Some(meaning) = change.meaning().filter(|_| !is_confirmed) {
        let asked = confirm(&console, &operator, (action.as_str(), meaning), &ids, to).await;
        return asked.unwrap_or_else(|error| failed(&request, &error));
    }
    let made = change.make_to_all(&console, &operator, &ids).await;
    match made.failed.first() {
        None => back(&operator, &to),
        Some(first) => {
            let all = ids.len();
            let words = format!(
                "{} of {all} servers were changed. Server {}: {}",
                made.changed, first.server_id, first.error
            );
            failed(&request, &invalid(&words))
        }
    }
}

#[derive(Deserialize)]
struct NoteBody {
    note: String,
}

/// `POST /admin/servers/{server_id}/revoke`, `/restore`, `/note` and `/delete`
pub async fn json_action(
    console: Data<Console>,
    operator: Operator,
    request: HttpRequest,
    path: Path<(String, String)>,
    body: Bytes,
) -> HttpResponse {
    let (id, verb) = path.into_inner();
    let change = match verb.as_str() {
        "note" => match serde_json::from_slice::<NoteBody>(&body) {
            Ok(body) => Change::of(&verb, Some(body.note)),
            Err(_) => Err(invalid("The body must be an object with a string note.")),
        },
        _ => Change::of(&verb, None).map_err(|_| ApiError::not_found()),
    };
    let made = match change {
        Ok(change) => change.make(&console, &operator, &id).await.map(|id| (id, change.status())),
        Err(error) => Err(error),
    };
    match made {
        Ok((id, status)) => {
            success(StatusCode::OK, Done { server_id: id.to_string(), status }, "Done")
        }
        Err(error) => failed(&request, &error),
    }
}

#[derive(Deserialize)]
struct SeveralBody {
    action: String,
    server_ids: Vec<String>,
    note: Option<String>,
}

/// `POST /admin/servers/several`
pub async fn json_several(
    console: Data<Console>,
    operator: Operator,
    request: HttpRequest,
    body: Bytes,
) -> HttpResponse {
    let read = serde_json::from_slice::<SeveralBody>(&body).map_err(|_| {
        invalid("The body must be an object with action, server_ids (a list) and for a note note.")
    });
    let checked = read.and_then(|body| {
        check_ids(&body.server_ids)?;
        Ok((Change::of(&body.action, body.note)?, body.server_ids))
    });
    match checked {
        Ok((change, ids)) => {
            let made = change.make_to_all(&console, &operator, &ids).await;
            success(StatusCode::OK, made, "Done")
        }
        Err(error) => failed(&request, &error),
    }
}

/// For how many days servers were not seen.
#[derive(Deserialize)]
pub struct Days {
    days: Option<String>,
}

/// The servers that were not seen for some days.
#[derive(Serialize)]
pub(super) struct Unseen {
    days: u64,
    /// Before that they were last seen.
    before: String,
    count: usize,
    /// Those that were not seen for longest.
    first: Vec<Row>,
}

impl Days {
    fn read(&self) -> Result<u64, ApiError> {
        let days = self.days.as_deref().and_then(|days| days.trim().parse().ok());
        days.filter(|days| (1..=MAX_DAYS).contains(days))
            .ok_or_else(|| invalid(&format!("days must be a number from 1 to {MAX_DAYS}.")))
    }
}

fn before(console: &Console, days: u64) -> Timestamp {
    Timestamp(console.state.clock.now().0.saturating_sub(days.saturating_mul(86_400)))
}

async fn preview(console: &Console, days: u64) -> Result<Unseen, ApiError> {
    let (before, now) = (before(console, days), console.state.clock.now());
    let filter = Filter { seen_before: Some(before), ..Filter::default() };
    let (state, servers) = (console.state.clone(), Arc::clone(console.state.handles.servers()));
    read(console, move |store| {
        let page = servers.page(&filter, Sort::SeenFirst, None, FIRST);
        let numbers: Vec<_> = page.servers.iter().map(|placed| placed.number).collect();
        let first = numbered(store, &servers, &numbers, now)?;
        let first = first.into_iter().map(|server| row(&state, None, server, before)).collect();
        Ok(Unseen { days, before: rfc3339(before), count: page.count, first })
    })
    .await
}

/// What was deleted of the servers that were not seen.
#[derive(Serialize)]
struct Deleted {
    deleted: usize,
    /// Those that are left. The same request goes on with them.
    left: usize,
}

/// Deletes servers that were not seen for some days, for some seconds.
async fn delete_unseen(
    console: &Console,
    operator: &Operator,
    days: u64,
) -> Result<Deleted, ApiError> {
    let state = &console.state;
    let (before, begun) = (before(console, days), Instant::now());
    let (caller, from) = operator.who();
    let command =
        DeleteUnseen { before, by: caller.shown().to_owned(), from, now: state.clock.now() };
    let mut deleted = 0;
    while begun.elapsed() < DELETES_FOR {
        match state.ask(|handles| handles.delete_unseen(command.clone())).await.outcome?? {
            0 => break,
            some => deleted += some,
        }
    }
    let filter = Filter { seen_before: Some(before), ..Filter::default() };
    Ok(Deleted { deleted, left: state.handles.servers().count(&filter) })
}

/// `GET /admin/servers/unseen`: what would be deleted.
pub async fn json_unseen(
    console: Data<Console>,
    request: HttpRequest,
    query: Query<Days>,
) -> HttpResponse {
    let unseen = match query.read() {
        Ok(days) => preview(&console, days).await,
        Err(error) => Err(error),
    };
    match unseen {
        Ok(unseen) => success(StatusCode::OK, unseen, "Servers that were not seen"),
        Err(error) => failed(&request, &error),
    }
}

#[derive(Deserialize)]
struct DaysBody {
    days: serde_json::Number,
}

/// `POST /admin/servers/unseen`: deletes them.
pub async fn json_delete_unseen(
    console: Data<Console>,
    operator: Operator,
    request: HttpRequest,
    body: Bytes,
) -> HttpResponse {
    let read = serde_json::from_slice::<DaysBody>(&body)
        .map_err(|_| invalid("The body must be an object with a number days."));
    let days = read.and_then(|body| Days { days: Some(body.days.to_string()) }.read());
    let deleted = match days {
        Ok(days) => delete_unseen(&console, &operator, days).await,
        Err(error) => Err(error),
    };
    match deleted {
        Ok(deleted) => success(StatusCode::OK, deleted, "Servers deleted"),
        Err(error) => failed(&request, &error),
    }
}

#[derive(Template)]
#[template(path = "console/unseen.html")]
struct UnseenPage<'a> {
    page: &'static str,
    operator: &'a Operator,
    unseen: Unseen,
}

/// `GET /console/{key}/servers/unseen`
pub async fn unseen(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    query: Query<Days>,
) -> HttpResponse {
    let unseen = match query.read() {
        Ok(days) => preview(&console, days).await,
        Err(error) => Err(error),
    };
    match unseen {
        Ok(unseen) => {
            html(StatusCode::OK, &UnseenPage { page: "servers", operator: &operator, unseen })
        }
        Err(error) => failed(&request, &error),
    }
}

/// `POST /console/{key}/servers/unseen`
pub async fn delete_all_unseen(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<Days>,
) -> HttpResponse {
    let deleted = match form.read() {
        Ok(days) => delete_unseen(&console, &operator, days).await.map(|deleted| (days, deleted)),
        Err(error) => Err(error),
    };
    match deleted {
        Ok((_, Deleted { left: 0, .. })) => back(&operator, ""),
        // The page shows what is left.
        Ok((days, _)) => see(&format!("{}/servers/unseen?days={days}", operator.base)),
        Err(error) => failed(&request, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_a_number_within_a_hundred_years() {
        let read = |days: Option<&str>| Days { days: days.map(str::to_owned) }.read().ok();
        assert_eq!([read(Some(" 1 ")), read(Some("36500"))], [Some(1), Some(36_500)]);
        for wrong in [None, Some(""), Some("0"), Some("36501"), Some("-1"), Some("x"), Some("1.5")]
        {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
