//! Checks a **history**: the requests of concurrent clients, their answers, and the times of both.
//!
//! It checks linearizability: could one server that handles one request at a time have given these
//! answers? This is the case if the operations have an order in which a sequential [`model`] gives exactly
//! these answers, and each operation takes effect between its request and its answer. Codes are
//! independent, so each code is checked alone. [`search`](mod@search) looks for the order with the
//! algorithm of Wing and Gong, as Porcupine does: a depth-first search over the possible next operations
//! that remembers the configurations it has visited.
//!
//! An operation without an answer, or with the answer `outcome_unknown`, may take effect at any time after
//! its request, or never. Its answer is recorded as [`Answer::Perhaps`].
//!
//! The model follows the contract and does not use the product's code, so it finds faults in
//! `iptunnel-domain` and does not share them. The tests of this crate compare the two.
//!
//! | module | content |
//! |---|---|
//! | [`history`] | operations, and their form as lines of JSON |
//! | [`model`] | one code and its activations, with the possible answers in each state |
//! | [`search`](mod@search) | the search for an order |
//! | [`explain`] | the smallest part of a code's history that has no order |
//! | [`check`](mod@check) | the check of all codes and servers of a history |

pub mod check;
pub mod explain;
pub mod history;
pub mod model;
pub mod search;

pub use check::{Violation, check, check_code};
pub use history::{Answer, Call, Operation};
pub use model::{Lifetimes, Rules};
