//! The page that lists the console's sessions and ends them, and the same as JSON.

use super::auth::Operator;
use super::console::{Console, failed, see};
use super::sessions::Session;
use crate::http::page::html;
use crate::http::respond::{rfc3339, success};
use actix_web::http::StatusCode;
use actix_web::web::{Data, Form, Path};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A session as lists show it.
#[derive(Serialize)]
struct Row {
    id: String,
    /// The name of the token of its login.
    token: String,
    from: IpAddr,
    browser: String,
    opened_at: String,
    last_used_at: String,
    ends_at: String,
}

fn rows(console: &Console) -> Vec<Row> {
    let row = |session: Session| Row {
        opened_at: rfc3339(session.opened),
        last_used_at: rfc3339(session.used),
        ends_at: rfc3339(session.life().until),
        id: session.id,
        token: session.token,
        from: session.from,
        browser: session.browser,
    };
    console.open_sessions().into_iter().map(row).collect()
}

#[derive(Template)]
#[template(path = "console/sessions.html")]
struct Page<'a> {
    page: &'static str,
    operator: &'a Operator,
    sessions: Vec<Row>,
}

/// `GET /console/{key}/sessions`
pub async fn page(console: Data<Console>, operator: Operator) -> HttpResponse {
    let page = Page { page: "sessions", operator: &operator, sessions: rows(&console) };
    html(StatusCode::OK, &page)
}

/// The fields of the form that ends a session.
#[derive(Deserialize)]
pub struct Ending {
    id: String,
}

/// `POST /console/{key}/sessions/end`
pub async fn end_one(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<Ending>,
) -> HttpResponse {
    match Console::end_session(&console, &form.id, operator.caller.shown(), operator.from).await {
        Ok(()) => see(&format!("{}/sessions", operator.base)),
        Err(error) => failed(&request, &error),
    }
}

#[derive(Serialize)]
struct List {
    sessions: Vec<Row>,
}

/// `GET /admin/sessions`
pub async fn json_list(console: Data<Console>) -> HttpResponse {
    success(StatusCode::OK, List { sessions: rows(&console) }, "Sessions")
}

#[derive(Serialize)]
struct Ended {
    id: String,
    status: &'static str,
}

/// `POST /admin/sessions/{id}/end`
pub async fn json_end(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    id: Path<String>,
) -> HttpResponse {
    let id = id.into_inner();
    match Console::end_session(&console, &id, operator.caller.shown(), operator.from).await {
        Ok(()) => success(StatusCode::OK, Ended { id, status: "ended" }, "Session ended"),
        Err(error) => failed(&request, &error),
    }
}
