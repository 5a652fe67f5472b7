//! The store's surroundings.
//!
//! * [`files`]: where it is, and how it is opened; [`error`]: why it cannot be worked with
//! * [`watermark`]: what it must hold, noted outside of it
//! * [`cluster`]: what a server does beside others on one store

pub mod cluster;
pub mod error;
pub mod files;
pub mod watermark;
