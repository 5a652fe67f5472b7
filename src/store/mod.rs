//! How the server opens, checks and monitors its store.
//!
//! * [`files`]: the location and opening of the store; [`error`]: why the store cannot be used
//! * [`first_start`]: makes the secrets before there is a store; [`agreement`]: whether a server's
//!   secrets are those of its store, and of the other servers on it
//! * [`examine`]: findings on the server's own files
//! * [`watermark`]: the minimum that the store must hold, recorded outside of it
//! * [`cluster`]: the monitoring of a store that several servers share; [`troubles`]: what it finds wrong

pub mod agreement;
pub mod cluster;
pub mod error;
pub mod examine;
pub mod files;
pub mod first_start;
pub mod troubles;
pub mod watermark;
