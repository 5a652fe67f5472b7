//! Who a caller is, and the one function that admits it to a route.

use super::Entry;
use crate::http::access::{Denied, Rule};
use crate::http::caller::{address_of, token_of};
use crate::http::errors::ApiError;
use crate::http::respond::{failure, is_v2, legacy_failure};
use crate::http::routing::Gate;
use crate::state::State;
use crate::state::wrong_tokens::Listener;
use actix_web::dev::Payload;
use actix_web::error::ErrorInternalServerError;
use actix_web::web::Data;
use actix_web::{Error, FromRequest, HttpMessage, HttpRequest, HttpResponse};
use iptunnel_domain::access::{Role, TokenNumber, WhyNot};
use iptunnel_domain::lookup::KeyedHash;
use iptunnel_domain::server::{Bearer, EnrolledBy};
use iptunnel_domain::{Refusal, Timestamp};
use std::future::{Ready, ready};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::Mutex;

/// A caller that has shown a token which is good.
#[derive(Clone, Debug)]
pub struct Caller {
    /// What it has shown.
    pub holder: Holder,
    /// The keyed hash of the token; zeros for the command line.
    pub secret: KeyedHash,
}

/// The name of a caller on the server's socket.
pub const COMMAND_LINE: &str = "command line";
/// The name of a caller with the master token.
pub const MASTER_TOKEN: &str = "master token";

/// What a caller has shown.
#[derive(Clone, Debug)]
pub enum Holder {
    /// Nothing: it may use the server's socket.
    CommandLine,
    /// The master token.
    Master,
    /// An access token.
    Token(Arc<Entry>),
}

/// The result of looking at a token.
#[derive(Clone, Debug)]
pub enum Identity {
    /// No token was sent.
    Nobody,
    /// The token is good.
    Known(Caller),
    /// The token is genuine, but not good.
    NotGood(WhyNot, Caller),
    /// The token has the form of an access token, and something in it is wrong.
    Mistyped(KeyedHash),
    /// The token is none of this server's.
    Wrong(KeyedHash),
}

impl Identity {
    /// Returns what a check-in brings. A token that is not good any more is still the one that enrolled its
    /// servers: their agents go on, as they would without a token.
    pub fn bearer(&self) -> Bearer {
        match self {
            Self::Nobody => Bearer::Nobody,
            Self::Known(caller) | Self::NotGood(_, caller) => caller.bearer(),
            Self::Mistyped(secret) | Self::Wrong(secret) => Bearer::Token(*secret),
        }
    }

    /// Returns the role of an access token that is good.
    pub fn role(&self) -> Option<Role> {
        match self {
            Self::Known(caller) => caller.role(),
            _ => None,
        }
    }

    /// Notes the use of a token that is good.
    pub fn note_use(&self, now: Timestamp) {
        if let Self::Known(caller) = self {
            caller.note_use(now);
        }
    }
}

impl Caller {
    /// Returns the caller on the server's socket.
    pub const fn command_line() -> Self {
        Self { holder: Holder::CommandLine, secret: KeyedHash([0; 16]) }
    }

    /// Returns the role of its token. `None`: it may do everything.
    pub fn role(&self) -> Option<Role> {
        match &self.holder {
            Holder::CommandLine | Holder::Master => None,
            Holder::Token(entry) => Some(entry.token.role),
        }
    }

    /// Whether its role is `least` or includes it.
    pub fn has(&self, least: Role) -> bool {
        self.role().is_none_or(|role| role.permits(least))
    }

    /// Returns who it is, for people and for the audit log. No access token has one of these names.
    pub fn shown(&self) -> &str {
        match &self.holder {
            Holder::CommandLine => COMMAND_LINE,
            Holder::Master => MASTER_TOKEN,
            Holder::Token(entry) => &entry.token.name,
        }
    }

    /// Returns its access token if that enrols servers, and so sees no others.
    pub fn enrols_for(&self) -> Option<TokenNumber> {
        match &self.holder {
            Holder::Token(entry) if entry.token.role == Role::Enrol => Some(entry.token.number),
            _ => None,
        }
    }

    /// Returns what it locks to list servers, if its access token sees its own alone: to find them among all
    /// takes long, so one request of a token does it at a time.
    pub fn listing_turn(&self) -> Option<Arc<Mutex<()>>> {
        match &self.holder {
            Holder::Token(entry) if entry.token.role == Role::Enrol => {
                Some(Arc::clone(&entry.listing))
            }
            _ => None,
        }
    }

    fn bearer(&self) -> Bearer {
        match &self.holder {
            Holder::CommandLine | Holder::Master => Bearer::Master,
            Holder::Token(_) => {
                self.enrols_for().map_or(Bearer::Token(self.secret), Bearer::Access)
            }
        }
    }

    /// Returns who vouches for a server that it registers.
    pub fn enrols_as(&self) -> EnrolledBy {
        match &self.holder {
            Holder::CommandLine | Holder::Master => EnrolledBy::Master,
            Holder::Token(entry) => EnrolledBy::Token(entry.token.number),
        }
    }

    /// Returns how many servers it may have enrolled; 0 for no bound.
    pub fn max_servers(&self) -> u32 {
        match &self.holder {
            Holder::CommandLine | Holder::Master => 0,
            Holder::Token(entry) => entry.token.max_servers,
        }
    }

    fn note_use(&self, now: Timestamp) {
        if let Holder::Token(entry) = &self.holder {
            entry.note_use(now);
        }
    }
}

impl State {
    /// Admits a caller to a route. Notes the use of its token, or the wrong token. This is the only place
    /// that decides who may do what.
    ///
    /// # Errors
    /// The reason why it may not use the route.
    pub async fn admit(
        &self,
        identity: Identity,
        rule: &Rule,
        (from, listener): (IpAddr, Listener),
    ) -> Result<Caller, Denied> {
        let now = self.clock.now();
        let wrong = match identity {
            Identity::Known(caller) => {
                return match caller.role() {
                    Some(has) if !rule.admits(has) => {
                        Err(Denied::Role { has, least: rule.words() })
                    }
                    _ => {
                        caller.note_use(now);
                        Ok(caller)
                    }
                };
            }
            Identity::Nobody => return Err(Denied::Missing),
            Identity::NotGood(why, _) => Denied::NotGood(why),
            Identity::Mistyped(_) => Denied::Mistyped,
            Identity::Wrong(_) => Denied::Wrong,
        };
        Err(self.refuse_token(wrong, (from, listener)).await)
    }

    /// Notes a token that is refused. Returns why it is: because of `wrong`, or because there were too many.
    pub async fn refuse_token(
        &self,
        wrong: Denied,
        (from, listener): (IpAddr, Listener),
    ) -> Denied {
        match self.wrong_tokens.note(from, listener, self.clock.now()).await {
            Err(Refusal::RateLimited { retry_after }) => Denied::Slowed(retry_after),
            _ => wrong,
        }
    }
}

impl FromRequest for Caller {
    type Error = Error;
    type Future = Ready<Result<Self, Error>>;

    /// Returns the caller that has passed the gate. A handler behind no gate has none.
    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let caller = request.extensions().get::<Self>().cloned();
        ready(caller.ok_or_else(|| ErrorInternalServerError("a route without a gate")))
    }
}

/// The gate of the public listener: the token in the `Authorization` header.
pub struct PublicGate;

impl Gate for PublicGate {
    async fn admit(request: &HttpRequest, rule: &'static Rule) -> Result<(), HttpResponse> {
        let Some(state) = request.app_data::<Data<State>>() else {
            return Err(failure(ApiError::internal()));
        };
        let from = address_of(request, &state.proxies);
        let identity = state.access.identify(token_of(request), from, state.clock.now());
        match state.admit(identity, rule, (from, Listener::Public)).await {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Ok(())
            }
            Err(denied) if is_v2(rule.path) => Err(failure(ApiError::denied(denied, false))),
            Err(denied) => Err(legacy_failure(ApiError::denied(denied, true))),
        }
    }
}
