//! HTTP code that both listeners share. It depends on neither.
//!
//! * [`connection`]: connections, their deadlines and places
//! * [`caller`]: the caller's address; [`cookies`]: its cookies; [`cross_site`]: the check for requests from other sites;
//!   [`body`]: reading of request bodies
//! * [`respond`], [`errors`], [`page`]: responses, as JSON or as a page
//! * [`access`]: the table of who may do what; [`routing`]: paths, their methods, and the gate in front of
//!   them
//! * [`around`]: middleware for every request; [`metrics`]: the HTTP metrics
//! * [`tls`]: the certificates of the listeners
//! * [`story`]: the stage of a code

pub mod access;
pub mod around;
pub mod body;
pub mod caller;
pub mod connection;
pub mod cookies;
pub mod cross_site;
pub mod errors;
pub mod metrics;
pub mod page;
pub mod respond;
pub mod routing;
pub mod story;
pub mod tls;
