//! Configuration in two steps: a raw mirror of the file, then a checked [`Config`].
//!
//! * `key`: the one table of keys, with the allowed values of each and whether it can change at run time
//! * `raw`: the sections as they are in the file, and the defaults; `convert`: to the checked types
//! * `check`: merges defaults, file, environment and flags, and checks them against the table
//! * `unknown`: suggestions for a name that is not in the table
//! * `setting`: every key with its value, its allowed values and its source
//! * `show`: the configuration as text, and the differences between two configurations
//! * `model`: the checked configuration
//! * `url`: the address under which browsers reach the server
//!
//! This module does not read the process: it receives variables and flags as arguments, and tests can
//! pass their own. It reads only the named file and the number of processors.

mod check;
mod convert;
mod key;
mod model;
mod raw;
mod setting;
mod show;
#[cfg(test)]
mod tests;
mod unknown;
mod url;

pub use check::{ConfigError, Layers, Loaded, Source, Sources};
pub use key::at_run_time;
pub use model::{
    ActorSize, Actors, Admin, Auth, Backend, Config, Installer, Log, LogFormat, LogLevel, Pages,
    Product, Server, Servers, Storage, Webhooks,
};
pub use setting::{Setting, settings};
pub use show::Changed;
pub use url::PublicUrl;
