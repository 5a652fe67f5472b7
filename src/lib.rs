//! IPTunnel's activation server: the HTTP edge and the command line around the actors.
//!
//! * [`app`]: what exists, in which order it begins and ends
//! * [`http`]: requests in, answers out; decides nothing
//! * [`tokens`] and [`secrets`]: what is signed, and with what
//! * [`config`]: what an operator may choose
//! * [`console`] and [`tuning`]: what operators see, and what they turn
//! * [`cli`] and [`logging`]: how the program is started and what it tells
//! * [`mark`]: what the store must hold, and what happens where it does not
//! * [`sharing`]: what a server does beside others on one store
//! * [`doctor`]: what there is to know of a database
//! * [`moving`]: from one store into another
//! * [`remote`]: commands that ask a running server
//! * [`os`]: the clock and the randomness of the operating system

pub mod app;
pub mod cli;
pub mod config;
pub mod console;
mod hex;
pub mod http;
pub mod logging;
pub mod os;
pub mod secrets;
mod store;
pub mod tokens;
pub mod tuning;
