//! Configuration in two steps: a raw mirror of the file, then a checked [`Config`].
//!
//! * `key`: the one table of keys, with what each may be and whether it may change at run time
//! * `raw`: the sections as files spell them, and the defaults; `convert`: to the checked types
//! * `check`: defaults, file, environment and flags, laid over each other and held against the table
//! * `unknown`: what may have been meant by a name that the table lacks
//! * `setting`: every key with its value, what it may be and where it comes from
//! * `show`: the configuration as text, and what differs between two
//! * `model`: everything that may be chosen, checked
//! * `url`: the address under which browsers reach the server
//!
//! Nothing here looks at the process: variables and flags are handed in, so that a test is one
//! more caller. Only the named file and the number of processors are asked for.

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
    ActorSize, Actors, Admin, Auth, Backend, Config, Log, LogFormat, LogLevel, Pages, Product,
    Server, Servers, Storage,
};
pub use setting::{Setting, settings};
pub use show::Changed;
pub use url::PublicUrl;
