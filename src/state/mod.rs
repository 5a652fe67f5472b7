//! What both listeners share.
//!
//! * [`live`]: the values in force; [`settings`]: how they change while the server runs
//! * [`servers`]: what is done to servers on either listener
//! * [`watchers`]: the pages that watch codes

pub mod live;
pub mod servers;
pub mod settings;
pub mod watchers;

use crate::http::body::{self, Body};
use crate::http::caller::{Proxies, RequestIds};
use crate::http::metrics::HttpMetrics;
use crate::os::Clock;
use actix_web::web::Payload;
use iptunnel_actors::{Answer, Failure, Handles, Health, Pending};
use live::Live;
use settings::Settings;
use std::sync::Arc;
use watchers::Watchers;

/// What the handlers share. One value for all workers.
pub struct State {
    /// The way to the actors.
    pub handles: Arc<Handles>,
    /// What is in force.
    pub live: Arc<Live>,
    /// The way to other values.
    pub settings: Arc<Settings>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Whether the server is fit.
    pub health: Arc<Health>,
    /// Whose word about callers is believed.
    pub proxies: Proxies,
    /// Where request ids come from.
    pub request_ids: RequestIds,
    /// The pages that watch codes.
    pub watchers: Arc<Watchers>,
    /// What is counted at the edge.
    pub metrics: HttpMetrics,
}

impl State {
    /// Reads a request's body as long as a request may take.
    ///
    /// # Errors
    /// Where it has not arrived by then.
    pub async fn read(&self, payload: Payload) -> Result<Body, Failure> {
        body::read(payload, self.live.patience()).await
    }

    /// Waits for an answer as long as a request may take.
    pub async fn wait<T>(&self, pending: Result<Pending<T>, Failure>) -> Answer<T> {
        match pending {
            Ok(pending) => pending.within(self.live.patience()).await,
            Err(failure) => failure.into(),
        }
    }
}
