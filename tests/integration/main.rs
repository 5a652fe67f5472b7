//! The real server, started on port 0 and spoken to over HTTP. Test names say what is promised.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod harness;
mod smoke;
