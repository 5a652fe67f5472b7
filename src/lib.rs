//! IPTunnel's activation server: the HTTP edge and the command line around the actors. Imports go
//! one way, down this list.
//!
//! * [`cli`]: the command line, one file a command
//! * [`app`]: what exists, in which order it begins and ends
//! * [`operator`]: the operators' listener, whole
//! * [`public`]: the public listener, whole
//! * [`state`]: what both share, and how settings change
//! * [`http`]: requests in, answers out, for both
//! * [`store`]: what the store must hold, and what a server does beside others on one store
//! * [`tokens`] and [`secrets`]: what is signed, and with what
//! * [`logging`]: what the program tells
//! * [`config`]: what an operator may choose
//! * [`os`]: the clock and the randomness of the operating system

pub mod app;
pub mod cli;
pub mod config;
mod hex;
pub mod http;
pub mod logging;
pub mod operator;
pub mod os;
pub mod public;
pub mod secrets;
pub mod state;
pub mod store;
pub mod tokens;
