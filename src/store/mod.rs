//! The store's surroundings: what it must hold, and what a server does beside others on one store.

pub mod cluster;
pub mod watermark;
