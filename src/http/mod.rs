//! HTTP as both listeners speak it. It knows neither.
//!
//! * [`caller`]: who calls, and [`cross_site`], from where; [`body`]: what was sent
//! * [`respond`], [`errors`], [`page`]: what is said back, as JSON or as a page
//! * [`routing`]: paths and their methods; [`metrics`]: what is counted
//! * [`story`]: where a code stands

pub mod body;
pub mod caller;
pub mod cross_site;
pub mod errors;
pub mod metrics;
pub mod page;
pub mod respond;
pub mod routing;
pub mod story;
