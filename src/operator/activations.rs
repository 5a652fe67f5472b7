//! Activations, as JSON.

use super::console::{Console, failed, read};
use crate::http::respond::{rfc3339, success};
use actix_web::http::StatusCode;
use actix_web::web::{Data, Query};
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_domain::activation::Activation;
use iptunnel_domain::{Refusal, Timestamp};
use serde::{Deserialize, Serialize};

/// The query of `GET /admin/activations`.
#[derive(Deserialize)]
pub struct ActivationsQuery {
    #[serde(default)]
    open: u8,
    #[serde(default)]
    limit: Option<usize>,
}

/// An activation as JSON, with or without details.
#[derive(Clone, Serialize)]
pub struct Row {
    /// The first digits of its id.
    pub activation: String,
    /// The keyed hash of its code.
    pub code: String,
    /// The machine's name.
    pub hostname: String,
    #[serde(flatten)]
    details: Option<Details>,
    /// Seconds since it was opened.
    pub age_seconds: u64,
}

#[derive(Clone, Serialize)]
struct Details {
    public_ip: String,
    state: &'static str,
    opened_at: String,
}

impl Row {
    /// Makes a row without details.
    pub fn in_short(activation: &Activation, now: Timestamp) -> Self {
        Self {
            activation: activation.at.id.reveal().chars().take(8).collect(),
            code: activation.code.0.to_hex(),
            hostname: activation.request.binding.hostname.as_str().to_owned(),
            details: None,
            age_seconds: now.0.saturating_sub(activation.opened_at.0),
        }
    }

    fn whole(activation: &Activation, now: Timestamp) -> Self {
        let details = Details {
            public_ip: activation.request.binding.public_ip.to_string(),
            state: activation.stage(now).name(),
            opened_at: rfc3339(activation.opened_at),
        };
        Self { details: Some(details), ..Self::in_short(activation, now) }
    }
}

#[derive(Serialize)]
struct Activations {
    activations: Vec<Row>,
}

/// The largest `limit`.
const ACTIVATIONS: usize = 1000;

/// `GET /admin/activations`: the newest activations. `?open=1` keeps only the open ones.
pub async fn json_list(
    console: Data<Console>,
    request: HttpRequest,
    query: Query<ActivationsQuery>,
) -> HttpResponse {
    let limit = query.limit.unwrap_or(100);
    if !(1..=ACTIVATIONS).contains(&limit) {
        let message = format!("limit must be a number from 1 to {ACTIVATIONS}.");
        return failed(&request, &Refusal::InvalidField(message).into());
    }
    let now = console.state.clock.now();
    let found = read(&console, move |store| store.newest_activations(limit)).await;
    match found {
        Ok(found) => {
            let wanted = |a: &&Activation| query.open == 0 || a.is_open(now);
            let activations = found.iter().filter(wanted).map(|one| Row::whole(one, now)).collect();
            success(StatusCode::OK, Activations { activations }, "Activations")
        }
        Err(error) => failed(&request, &error),
    }
}
