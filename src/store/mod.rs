//! How the server opens, checks and monitors its store.
//!
//! * [`files`]: the location and opening of the store; [`error`]: why the store cannot be used
//! * [`watermark`]: the minimum that the store must hold, recorded outside of it
//! * [`cluster`]: the monitoring of a store that several servers share

pub mod cluster;
pub mod error;
pub mod files;
pub mod watermark;
