//! IPTunnel's activation server: the HTTP listeners and the command line around the actors. A module
//! imports only modules below it in this list.
//!
//! * [`cli`]: the command line, one file for each command
//! * [`app`]: creates, starts and stops all parts of the server
//! * [`operator`]: the operators' listener
//! * [`public`]: the public listener
//! * [`state`]: the state that both listeners share, and changes of settings
//! * [`backup`]: makes backups, checks and restores them
//! * [`webhooks`]: tells receivers what happens
//! * [`http`]: requests and answers, for both listeners
//! * [`store`]: opens the store, checks its watermark, and monitors a store that servers share
//! * [`tokens`] and [`secrets`]: signed tokens, and the keys on disk
//! * [`logging`]: the log
//! * [`config`]: the configuration
//! * [`counts`]: counts by key
//! * [`signed_head`]: heads of the audit log, signed
//! * [`age`]: secrets encrypted to an address or with a passphrase
//! * [`private_file`]: files that only the server's user reads
//! * `escape`: characters that a terminal would obey
//! * [`os`]: the clock and the random generator of the operating system

pub mod age;
pub mod app;
pub mod backup;
pub mod cli;
pub mod config;
pub mod counts;
mod escape;
pub mod http;
pub mod logging;
pub mod operator;
pub mod os;
pub mod private_file;
pub mod public;
pub mod secrets;
pub mod signed_head;
pub mod state;
pub mod store;
pub mod tokens;
pub mod webhooks;
