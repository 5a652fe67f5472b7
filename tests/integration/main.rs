//! Tests of the real server over HTTP, on a free port. Each test name states a promise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod browser;
mod cli;
mod clock;
mod cluster;
mod codes;
mod connections;
mod console;
mod corpus;
mod crash;
mod database;
mod database_tls;
mod deploy;
mod disk;
mod envelopes;
mod failover;
mod faults;
mod forwarded;
mod harness;
mod histories;
mod install;
mod install_binding;
mod install_life;
mod install_race;
mod install_tokens;
mod limits;
mod observed;
mod pages;
mod process;
mod protocol;
mod proxies;
mod readme;
mod reference;
mod remote;
mod retention;
mod secrecy;
mod secrets;
mod servers;
mod servers_status;
mod shutdown;
mod smoke;
mod terminal;
mod watch;
mod wire;
mod wrong_tokens;
