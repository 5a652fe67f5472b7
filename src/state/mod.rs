//! The state that both listeners share.
//!
//! * [`access`]: access tokens, and who may do what
//! * [`attention`]: what needs a person
//! * [`backups`]: the backups that are made while the server runs
//! * [`live`]: the values in effect; [`settings`]: changes them while the server runs
//! * [`servers`]: commands on servers that both listeners offer
//! * [`watchers`]: the pages that watch codes; [`wrong_tokens`]: wrong tokens, which it slows and notes

pub mod access;
pub mod attention;
pub mod backups;
pub mod live;
pub mod servers;
pub mod settings;
pub mod tickets;
pub mod watchers;
pub mod wrong_tokens;

use crate::http::body::{self, Body};
use crate::http::caller::Proxies;
use crate::http::errors::ApiError;
use crate::os::Clock;
use crate::store::troubles::Troubles;
use crate::webhooks::Webhooks;
use access::AccessTokens;
use actix_web::web::{Payload, block};
use attention::Attention;
use backups::Backups;
use iptunnel_actors::{Answer, Failure, Handles, Health, Pending};
use iptunnel_domain::audit::Event;
use iptunnel_storage::{ReadError, Store};
use live::Live;
use settings::Settings;
use std::sync::Arc;
use tickets::TicketTimes;
use watchers::Watchers;
use wrong_tokens::WrongTokens;

/// The state that the handlers share. One value for all workers.
pub struct State {
    /// The handles of the actors.
    pub handles: Arc<Handles>,
    /// The values in effect.
    pub live: Arc<Live>,
    /// The access tokens.
    pub access: Arc<AccessTokens>,
    /// The service that changes the values.
    pub settings: Arc<Settings>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The health of the server.
    pub health: Arc<Health>,
    /// The trusted proxies.
    pub proxies: Proxies,
    /// The times of the install tickets that were made.
    pub tickets: TicketTimes,
    /// The pages that watch codes.
    pub watchers: Arc<Watchers>,
    /// The events that need a person.
    pub attention: Arc<Attention>,
    /// The backups.
    pub backups: Arc<Backups>,
    /// The webhooks.
    pub webhooks: Arc<Webhooks>,
    /// The wrong tokens that were sent.
    pub wrong_tokens: WrongTokens,
    /// What is wrong with a shared store.
    pub troubles: Arc<Troubles>,
}

impl State {
    /// Reads a request's body, within the time that a request may take.
    ///
    /// # Errors
    /// The body is too large, or has not arrived within that time.
    pub async fn read(&self, payload: Payload) -> Body {
        body::read(payload, self.live.patience()).await
    }

    /// Writes entries to the audit log that belong to no other change. Logs if the store refuses them.
    pub async fn enter(&self, events: Vec<Event>) {
        let Some(action) = events.first().map(|event| event.action.name()) else { return };
        let written = self.ask(|handles| handles.keep_settings(Vec::new(), events)).await;
        if !matches!(written.outcome, Ok(Ok(()))) {
            tracing::warn!(action, "an entry could not be written to the audit log");
        }
    }

    /// Reads from the store on a thread that may block.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn read_store<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Store) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let store = Arc::clone(self.handles.store());
        match block(move || read(store.as_ref())).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => {
                tracing::error!(%error, "the store could not be read for a request");
                Err(Failure::StorageUnavailable.into())
            }
            Err(_) => Err(ApiError::internal()),
        }
    }

    /// Sends a command to the actors and waits for the answer, at most as long as a request may take.
    ///
    /// Requests that arrive together are sent together: each yields once before it is sent, so that the
    /// others are read first. Then the actors' thread is woken once for all of them and not for each, and
    /// their changes share a commit.
    pub async fn ask<T>(
        &self,
        send: impl FnOnce(&Handles) -> Result<Pending<T>, Failure>,
    ) -> Answer<T> {
        tokio::task::yield_now().await;
        match send(&self.handles) {
            Ok(pending) => pending.within(self.live.patience()).await,
            Err(failure) => failure.into(),
        }
    }
}
