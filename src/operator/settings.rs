//! View and change of settings.

use super::auth::Operator;
use super::console::{Console, failed, query_string, see};
use crate::config::Setting;
use crate::http::errors::ApiError;
use crate::http::page::html;
use crate::http::respond::success;
use crate::state::settings::{InForce, SettingsError, Wanted};
use actix_web::http::StatusCode;
use actix_web::http::header::{ETAG, HeaderValue};
use actix_web::web::{Bytes, Data, Form, Query};
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
    /// Those that differ from their default first, then by section.
    sections: Vec<Section<'a>>,
    /// A change that was refused: its key, its value and the reason.
    refused: Option<Refused>,
    /// The key that was saved just now. Empty: none.
    saved: &'a str,
}

/// A part of the page.
struct Section<'a> {
    name: &'a str,
    settings: Vec<&'a Setting>,
}

/// A change that was refused.
struct Refused {
    key: String,
    value: String,
    message: String,
}

impl Page<'_> {
    /// Returns the refused value of a setting and the reason.
    fn refused_of(&self, key: &str) -> Option<&Refused> {
        self.refused.as_ref().filter(|refused| refused.key == key)
    }

    /// Returns the reason of a refusal that no setting of the page shows.
    fn refused_elsewhere(&self) -> Option<&str> {
        let is_shown = |key: &str| {
            self.sections.iter().flat_map(|section| &section.settings).any(|one| one.key == key)
        };
        let refused = self.refused.as_ref().filter(|refused| !is_shown(&refused.key));
        refused.map(|refused| refused.message.as_str())
    }
}

/// Sorts settings into sections: those that differ from their default, then the sections of the file.
fn sections(settings: &[Setting]) -> Vec<Section<'_>> {
    let (changed, others): (Vec<_>, Vec<_>) =
        settings.iter().partition(|setting| setting.is_changed());
    let mut sections = Vec::new();
    if !changed.is_empty() {
        sections.push(Section { name: "Changed", settings: changed });
    }
    for setting in others {
        let name = setting.key.split('.').next().unwrap_or_default();
        match sections.iter_mut().find(|section| section.name == name) {
            Some(section) => section.settings.push(setting),
            None => sections.push(Section { name, settings: vec![setting] }),
        }
    }
    sections
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
    refused: Option<Refused>,
    saved: &str,
) -> HttpResponse {
    let sections = sections(&now.settings);
    html(status, &Page { page: "settings", operator, tag: &now.tag, sections, refused, saved })
}

/// What the page has to say after a change.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct After {
    saved: String,
}

/// `GET /console/{key}/settings`
pub async fn page(console: Data<Console>, operator: Operator, after: Query<After>) -> HttpResponse {
    shown(StatusCode::OK, &operator, &console.state.settings.in_force(), None, &after.saved)
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
    let Change { key, value, undo, tag } = form.into_inner();
    let wanted = vec![(key.clone(), (undo == 0).then(|| value.clone()))];
    let state = &console.state;
    let changed = state.settings.change(wanted, Some(tag), operator.who()).await;
    match changed.map_err(ApiError::from) {
        // The key is one of the settings: it needs no escaping as the address of its row.
        Ok(_) => {
            see(&format!("{}/settings?{}#{key}", operator.base, query_string(&[("saved", &key)])))
        }
        Err(error) => {
            let refused = Refused { key, value, message: error.message };
            shown(error.status, &operator, &state.settings.in_force(), Some(refused), "")
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
