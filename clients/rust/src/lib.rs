#![doc = include_str!("../README.md")]

mod answer;
mod client;
mod digest;
mod environment;
mod error;
#[cfg(test)]
mod fake;
mod installation;
mod patience;
mod secret;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod transport;

pub use client::{Activation, Binding, CheckIn, Client, Machine, Payload, Released};
pub use environment::{Environment, System};
pub use error::{Error, Problem, Refusal, Step};
pub use installation::{Installation, RunError};
pub use patience::Patience;
pub use secret::{ActivationId, AgentToken, Code, InstallToken, PrecheckToken};
pub use state::{Phase, State};
pub use store::{FileStore, Store};
pub use transport::{Network, Request, Response, Transport};
