//! What a connection is about: waiting for a request, reading its head, or working on it.

use super::framing::Framing;
use crate::http::respond::is_v2;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use tokio::time::Instant;

/// The stage of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing has arrived since the connection was opened.
    New,
    /// Nothing has arrived since the last answer.
    Idle,
    /// Something has arrived, and it is not yet a whole head.
    Head,
    /// A request is worked on, or its answer is being sent.
    Request,
}

/// What the stream below the HTTP parser and the requests above it know of each other.
#[derive(Debug)]
pub struct Progress {
    stage: Cell<Stage>,
    since: Cell<Instant>,
    is_secure: bool,
    framing: RefCell<Framing>,
}

impl Progress {
    /// `begun` is the instant at which the connection was accepted.
    pub(super) fn new(begun: Instant, is_secure: bool) -> Self {
        Self {
            stage: Cell::new(Stage::New),
            since: Cell::new(begun),
            is_secure,
            framing: RefCell::default(),
        }
    }

    /// The stage, and the instant at which it began, or for a request the instant at which its head began.
    pub(super) fn stage(&self) -> (Stage, Instant) {
        (self.stage.get(), self.since.get())
    }

    /// Whether the connection is one of TLS.
    pub(super) const fn is_secure(&self) -> bool {
        self.is_secure
    }

    fn enter(&self, stage: Stage) {
        self.stage.set(stage);
        // A request has no deadline here, and to read the clock for each would show.
        if stage != Stage::Request {
            self.since.set(Instant::now());
        }
    }

    /// Notes bytes that have arrived. Returns whether the only request that has no answer yet is broken.
    pub(super) fn heard(&self, bytes: &[u8]) -> bool {
        let mut framing = self.framing.borrow_mut();
        framing.heard(bytes);
        if matches!(self.stage.get(), Stage::New | Stage::Idle) {
            self.enter(Stage::Head);
        }
        let has_begun = usize::from(self.stage.get() == Stage::Request);
        framing.is_broken() && framing.waiting() + has_begun == 1
    }

    /// Whether the request that cannot be read belongs to the API under `/api/v2`.
    pub(super) fn is_v2(&self) -> bool {
        self.framing.borrow().path().is_some_and(|path| is_v2(&path))
    }
}

/// A request that is worked on. Dropping it ends the request.
pub(super) struct Ongoing(Rc<Progress>);

impl Ongoing {
    pub(super) fn begin(progress: &Rc<Progress>) -> Self {
        progress.framing.borrow_mut().request_begun();
        progress.enter(Stage::Request);
        Self(Rc::clone(progress))
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        // The next head may have begun to arrive behind this request.
        let is_within_head = self.0.framing.borrow().is_within_head();
        self.0.enter(if is_within_head { Stage::Head } else { Stage::Idle });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(heads: &[&str]) -> Progress {
        let progress = Progress::new(Instant::now(), false);
        for head in heads {
            progress.heard(head.as_bytes());
        }
        progress
    }

    #[test]
    fn the_api_of_an_unreadable_request_is_known_by_the_beginning_of_its_head() {
        for head in ["POST /api/v2/x HTTP/9", "GET //api/v2/healthz H", "FROB /api/v2 \0"] {
            assert!(after(&[head]).is_v2(), "{head}");
        }
        assert!(after(&["PO", "ST /a", "pi/v2/x", " HTTP/1.1\r\n"]).is_v2());
        for head in ["POST /register HTTP/9", "GET /api/v22 H", "\0\0", "", "GET"] {
            assert!(!after(&[head]).is_v2(), "{head}");
        }
    }

    #[test]
    fn a_stage_begins_with_the_first_byte_and_ends_with_the_answer() {
        let progress = Rc::new(after(&[]));
        assert_eq!(progress.stage().0, Stage::New);
        progress.heard(b"POST /api/v2/x HTTP/1.1\r\nContent-Length: 6\r\n\r\n");
        assert_eq!(progress.stage().0, Stage::Head);
        let ongoing = Ongoing::begin(&progress);
        progress.heard(b"a body");
        assert_eq!(progress.stage().0, Stage::Request);
        drop(ongoing);
        assert_eq!(progress.stage().0, Stage::Idle);
        assert!(progress.is_v2(), "the last request decides");
    }

    #[test]
    fn a_head_that_begins_behind_a_request_has_its_own_stage_and_path() {
        let progress = Rc::new(after(&[]));
        progress.heard(b"GET /status HTTP/1.1\r\n\r\nGET /api/v2/x");
        drop(Ongoing::begin(&progress));
        assert_eq!(progress.stage().0, Stage::Head);
        assert!(progress.is_v2());
    }
}
