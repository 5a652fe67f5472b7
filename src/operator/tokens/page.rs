//! The page *Access*.

use super::{
    GRACE, Row, addresses, end, invalid, networks, number, revoke_servers, role, row, rows,
};
use crate::http::errors::ApiError;
use crate::http::page::html;
use crate::http::respond::rfc3339;
use crate::operator::auth::Operator;
use crate::operator::console::{Console, failed, see};
use crate::state::access::change::{NewToken, Terms, TokenText, listed};
use actix_web::http::StatusCode;
use actix_web::web::{Data, Form};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use iptunnel_domain::Version;
use iptunnel_domain::access::AccessToken;
use serde::Deserialize;

impl Row {
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

#[derive(Template)]
#[template(path = "console/access.html")]
struct Page<'a> {
    page: &'static str,
    operator: &'a Operator,
    roles: [(&'static str, &'static str); 4],
    tokens: Vec<Row>,
    /// The number of tokens that are not shown.
    left_out: usize,
    refused: Option<String>,
    /// The name of a token that was made or rotated just now, and its text.
    fresh: Option<(String, TokenText)>,
}

/// The most tokens on the page: about 1 MB.
const MOST_SHOWN: usize = 500;
/// The roles as the page explains them.
const ROLES: [(&str, &str); 4] = [
    ("enrol", "registers servers, checks them in and sees only those"),
    ("view", "reads everything here"),
    ("operate", "view, and changes servers and codes"),
    ("admin", "operate, and changes settings, tokens and sessions"),
];

/// The fields of a form about a token. A term that is not sent stays as it is; one that is sent empty ends.
/// The lists are separated by commas or blanks.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct TokenForm {
    id: String,
    /// The version of the token that the form shows.
    version: Option<Version>,
    name: Option<String>,
    role: String,
    expires_at: Option<String>,
    networks: Option<String>,
    addresses: Option<String>,
    max_servers: Option<String>,
    grace_hours: String,
}

impl TokenForm {
    fn terms(&self) -> Result<Terms, ApiError> {
        let list = |text: &str| -> Vec<String> {
            let parts = text.split(|c: char| c == ',' || c.is_whitespace());
            parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let most = || invalid("max_servers must be a whole number that is not negative.");
        let day = |text: &str| match text.trim() {
            "" => Ok(None),
            text => end(text).map(Some),
        };
        let bound = |text: &str| match text.trim() {
            "" => Ok(0),
            text => text.parse().map_err(|_| most()),
        };
        Ok(Terms {
            version: self.version,
            name: self.name.clone(),
            expires_at: self.expires_at.as_deref().map(day).transpose()?,
            networks: self.networks.as_deref().map(|text| networks(&list(text))).transpose()?,
            addresses: self.addresses.as_deref().map(|text| addresses(&list(text))).transpose()?,
            max_servers: self.max_servers.as_deref().map(bound).transpose()?,
        })
    }

    fn grace(&self) -> Result<u64, ApiError> {
        match self.grace_hours.trim() {
            "" => Ok(GRACE),
            text => {
                let most = AccessToken::MAX_GRACE / 3600;
                let hours = text.parse::<u64>().ok().filter(|hours| *hours <= most);
                let words =
                    || invalid(format!("The hours must be a whole number from 0 to {most}."));
                hours.map(|hours| hours * 3600).ok_or_else(words)
            }
        }
    }
}

/// Shows the page, with the error or the new secret of what was done.
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
    let left_out = tokens.len().saturating_sub(MOST_SHOWN);
    tokens.truncate(MOST_SHOWN);
    let (status, refused, fresh) = match done {
        Ok(fresh) => (StatusCode::OK, None, fresh.map(|(row, text)| (row.name, text))),
        Err(error) => (error.status, Some(error.message), None),
    };
    let page = Page { page: "access", operator, roles: ROLES, tokens, left_out, refused, fresh };
    html(status, &page)
}

/// Leads back to the page after a change, or shows it with the error.
async fn back(
    console: &Console,
    request: &HttpRequest,
    operator: &Operator,
    done: Result<(), ApiError>,
) -> HttpResponse {
    match done {
        Ok(()) => see(&format!("{}/access", operator.base)),
        Err(error) => shown_page(console, request, operator, Err(error)).await,
    }
}

/// `GET /console/{key}/access`
pub async fn page(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
) -> HttpResponse {
    shown_page(&console, &request, &operator, Ok(None)).await
}

/// `POST /console/{key}/access/create`: shows the page with the text of the token.
pub async fn create(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<TokenForm>,
) -> HttpResponse {
    let created = async {
        let (name, role) = (form.name.clone().unwrap_or_default(), role(&form.role)?);
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
        let mut terms = form.terms()?;
        let end = console.state.access.by_number(number).and_then(|entry| entry.token.expires_at);
        let day = form.expires_at.as_deref().map(str::trim).filter(|day| !day.is_empty());
        if day.zip(end).is_some_and(|(day, end)| rfc3339(end).starts_with(day)) {
            // The form knows the day alone. What nobody has changed keeps its time.
            terms.expires_at = None;
        }
        console.state.access.change(number, terms, by, from).await?;
        Ok(())
    };
    back(&console, &request, &operator, changed.await).await
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
        let (access, grace) = (&console.state.access, form.grace()?);
        let (entry, text) = access.rotate(number, grace, form.version, by, from).await?;
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
    let (by, from) = operator.who();
    let revoked =
        async { Ok(console.state.access.revoke(number(&form.id)?, by, from).await.map(drop)?) };
    back(&console, &request, &operator, revoked.await).await
}

/// `POST /console/{key}/access/revoke-servers`: revokes servers that a token has enrolled, for some seconds.
/// The page shows how many are left.
pub async fn revoke_enrolled(
    console: Data<Console>,
    request: HttpRequest,
    operator: Operator,
    form: Form<TokenForm>,
) -> HttpResponse {
    let revoked = async { revoke_servers(&console, &operator, number(&form.id)?).await.map(drop) };
    back(&console, &request, &operator, revoked.await).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::web::Query;

    #[test]
    fn what_a_form_leaves_empty_is_no_bound_and_what_it_does_not_have_stays() {
        let terms = |form: &str| Query::<TokenForm>::from_query(form).unwrap().terms().unwrap();
        let empty = terms("expires_at=&networks=&addresses=&max_servers=");
        assert_eq!((empty.expires_at, empty.max_servers), (Some(None), Some(0)));
        assert_eq!((empty.networks, empty.addresses), (Some(vec![]), Some(vec![])));
        let none = terms("id=1");
        assert_eq!((none.expires_at, none.max_servers), (None, None));
        assert_eq!((none.networks, none.addresses), (None, None));
        let two = terms("networks=10.0.0.0/8,+2001:db8::/32%0A");
        assert_eq!(two.networks.unwrap().len(), 2);
    }
}
