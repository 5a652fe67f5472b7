//! View and change of settings.

use super::auth::Operator;
use super::console::{Console, failed, see};
use crate::config::Setting;
use crate::http::errors::ApiError;
use crate::http::page::html;
use crate::http::respond::success;
use crate::state::settings::{InForce, SettingsError, Wanted};
use actix_web::http::StatusCode;
use actix_web::http::header::{ETAG, HeaderValue};
use actix_web::web::{Bytes, Data, Form};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use iptunnel_domain::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(Template)]
#[template(path = "console/settings.html")]
struct Page<'a> {
    page: &'static str,
    operator: &'a Operator,
    tag: &'a str,
    live: Vec<&'a Setting>,
    fixed: Vec<&'a Setting>,
    refused: Option<String>,
}

impl From<SettingsError> for ApiError {
    fn from(error: SettingsError) -> Self {
        match error {
            SettingsError::HaveChanged => Self::settings_have_changed(),
            SettingsError::Refused(refusal) => refusal.into(),
            SettingsError::Failed(failure) => failure.into(),
            SettingsError::BrokenOff => Self::internal(),
        }
    }
}

fn shown(
    status: StatusCode,
    operator: &Operator,
    now: &InForce,
    refused: Option<String>,
) -> HttpResponse {
    let (live, fixed) = now.settings.iter().partition(|setting| setting.at_run_time);
    html(status, &Page { page: "settings", operator, tag: &now.tag, live, fixed, refused })
}

/// `GET /console/{key}/settings`
pub async fn page(console: Data<Console>, operator: Operator) -> HttpResponse {
    shown(StatusCode::OK, &operator, &console.state.settings.in_force(), None)
}

/// The fields of a form about a setting.
#[derive(Deserialize)]
pub struct Change {
    tag: String,
    key: String,
    #[serde(default)]
    value: String,
    /// 1 to undo an earlier change.
    #[serde(default)]
    undo: u8,
}

/// `POST /console/{key}/settings`
pub async fn change(
    console: Data<Console>,
    operator: Operator,
    form: Form<Change>,
) -> HttpResponse {
    let Change { key, value, undo, tag, .. } = form.into_inner();
    let wanted = vec![(key, (undo == 0).then_some(value))];
    let state = &console.state;
    let changed = state.settings.change(wanted, Some(tag), operator.who()).await;
    match changed.map_err(ApiError::from) {
        Ok(_) => see(&format!("{}/settings", operator.base)),
        Err(error) => {
            shown(error.status, &operator, &state.settings.in_force(), Some(error.message))
        }
    }
}

#[derive(Serialize)]
struct Settings<'a> {
    settings: &'a [Setting],
}

fn answer(now: &InForce, message: &str) -> HttpResponse {
    let mut response = success(StatusCode::OK, Settings { settings: &now.settings }, message);
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", now.tag)) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

/// `GET /admin/config`
pub async fn json_list(console: Data<Console>) -> HttpResponse {
    answer(&console.state.settings.in_force(), "Settings")
}

/// Parses the changes of a body: keys and values. `null` undoes a change (RFC 7396).
fn wanted(body: &[u8]) -> Result<Vec<Wanted>, ApiError> {
    let map: Map<String, Value> =
        serde_json::from_slice(body).map_err(|_| ApiError::from(Refusal::BodyNotJson))?;
    if map.is_empty() {
        let words = "The body must name at least one key.".to_owned();
        return Err(Refusal::InvalidField(words).into());
    }
    let text = |value: Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    };
    Ok(map.into_iter().map(|(key, value)| (key, text(value))).collect())
}

/// Returns the tag of `If-Match`. `*` means any.
fn condition(request: &HttpRequest) -> Result<Option<String>, ApiError> {
    let header = request.headers().get("if-match").map(|header| header.to_str().unwrap_or("?"));
    match header.map(str::trim) {
        None => Err(ApiError::condition_required()),
        Some("*") => Ok(None),
        Some(tag) => Ok(Some(tag.trim_matches('"').to_owned())),
    }
}

/// `PATCH /admin/config`
pub async fn json_change(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    body: Bytes,
) -> HttpResponse {
    let changed: Result<_, ApiError> = async {
        let tag = condition(&request)?;
        let wanted = wanted(&body)?;
        Ok(console.state.settings.change(wanted, tag, operator.who()).await?)
    }
    .await;
    match changed {
        Ok(now) => answer(&now, "Settings changed"),
        Err(error) => failed(&request, &error),
    }
}
