//! Checks a **history**: what concurrent clients asked, what each was answered, and when.
//!
//! The question is whether the answers could have come from one server that does one thing after the
//! other (linearizability): is there an order of the operations, each at some instant between its
//! request and its answer, in which a sequential [`model`] gives exactly these answers? Codes do not
//! touch each other, so each code is a question of its own. [`search`](mod@search) answers it as Wing
//! and Gong proposed and Porcupine does: a depth-first search over what may come next, which remembers
//! the configurations it has seen.
//!
//! An operation without a reply, or with the reply `outcome_unknown`, may have taken effect at any time
//! after its request, or never. It is called a **perhaps**.
//!
//! The model is written from the contract and knows nothing of the product's code: a fault in
//! `iptunnel-domain` is found by it, not shared with it. The tests of this crate compare the two.
//!
//! | module | what it holds |
//! |---|---|
//! | [`history`] | operations, and their form as lines of JSON |
//! | [`model`] | one code and its activations: what may be answered in which state |
//! | [`search`](mod@search) | whether there is an order |
//! | [`explain`] | the smallest part of a code's history that has none |
//! | [`check`](mod@check) | all codes and servers of a history |

pub mod check;
pub mod explain;
pub mod history;
pub mod model;
pub mod search;

pub use check::{Violation, check, check_code};
pub use history::{Answer, Call, Operation};
pub use model::{Lifetimes, Rules};
