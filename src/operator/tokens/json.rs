//! Access tokens as JSON.

use super::{
    GRACE, Row, addresses, end, invalid, networks, number, revoke_servers, role, row, rows, shown,
};
use crate::http::errors::ApiError;
use crate::http::respond::success;
use crate::operator::auth::Operator;
use crate::operator::console::{Console, failed};
use crate::state::access::Entry;
use crate::state::access::change::{NewToken, Terms, TokenText};
use actix_web::http::StatusCode;
use actix_web::web::{Bytes, Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_domain::Refusal;
use serde::Serialize;
use serde_json::{Map, Value};
use std::sync::Arc;

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
            version: None,
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

/// A token with its text, which is shown this once.
#[derive(Serialize)]
struct WithText<'a> {
    token: &'a str,
    #[serde(flatten)]
    row: Row,
}

/// A revoked token, and how many of its servers this request has revoked. `servers` is how many are left.
#[derive(Serialize)]
struct Revoked {
    #[serde(flatten)]
    row: Row,
    servers_revoked: usize,
}

fn answer(request: &HttpRequest, outcome: Result<HttpResponse, ApiError>) -> HttpResponse {
    outcome.unwrap_or_else(|error| failed(request, &error))
}

/// Answers with a new secret.
async fn with_text(
    console: &Console,
    status: StatusCode,
    (entry, text): (Arc<Entry>, TokenText),
    done: &str,
) -> Result<HttpResponse, ApiError> {
    let token = WithText { token: text.reveal(), row: row(console, &entry).await? };
    Ok(success(status, token, &format!("{done}; the secret is shown this once")))
}

/// `GET /admin/tokens`
pub async fn list(console: Data<Console>, request: HttpRequest) -> HttpResponse {
    let tokens = rows(&console).await;
    let shown = tokens.map(|tokens| success(StatusCode::OK, List { tokens }, "Access tokens"));
    answer(&request, shown)
}

/// `POST /admin/tokens`
pub async fn create(
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
        let made = console.state.access.create(wanted, by, from).await?;
        with_text(&console, StatusCode::CREATED, made, "Token created").await
    };
    answer(&request, created.await)
}

/// `PATCH /admin/tokens/{id}`
pub async fn change(
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
        Ok(success(StatusCode::OK, row(&console, &entry).await?, "Token changed"))
    };
    answer(&request, changed.await)
}

/// `POST /admin/tokens/{id}/rotate`
pub async fn rotate(
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
        let made = console.state.access.rotate(number(&id)?, grace, None, by, from).await?;
        with_text(&console, StatusCode::OK, made, "Token rotated").await
    };
    answer(&request, rotated.await)
}

/// `POST /admin/tokens/{id}/revoke`. With `"servers": true` the servers that it has enrolled are revoked
/// too, for some seconds. The client repeats that until none is left.
pub async fn revoke(
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
        let revoked = Revoked { row: row(&console, &entry).await?, servers_revoked };
        Ok(success(StatusCode::OK, revoked, "Token revoked"))
    };
    answer(&request, revoked.await)
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
}
