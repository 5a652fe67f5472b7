//! Tells heads from bodies in what a connection sends (RFC 9112, sections 2, 6 and 7).
//!
//! The HTTP parser takes in several requests at once, and does not say where it is. But the deadline of a
//! head begins with the head, and a refusal has the envelope of the path in its own head. So this reads
//! what that takes: the ends of lines, and the lengths of bodies. Nothing else rests on it: a caller that
//! deceives it gains some seconds of a deadline.
//!
//! It also notices a chunk whose size cannot be read: the parser drops such a connection without a word.

use memchr::memchr;
use std::collections::VecDeque;

/// The bytes of a first line that are kept to tell the API of its path: enough for a method, a host and
/// the beginning of the path.
const BEGINNING: usize = 128;
/// The most heads that are kept. The parser takes in 16 at once, beside the one that is arriving.
const HEADS: usize = 17;
/// The bytes of a line that are kept: enough for the headers that say how long a body is.
const LINE: usize = 64;

/// The part of a request that comes next.
#[derive(Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Head,
    /// So many bytes of a body.
    Body(u64),
    ChunkSize,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    Trailers,
}

/// Follows what a connection sends.
#[derive(Debug, Default)]
pub struct Framing {
    part: Part,
    /// Whether the head has begun.
    has_begun: bool,
    /// The first bytes of the heads whose requests have not begun.
    waiting: VecDeque<Vec<u8>>,
    /// The first bytes of the head whose request has begun last.
    current: Vec<u8>,
    /// Memory for the first bytes of the next head.
    spare: Vec<u8>,
    /// The first bytes of a line that has not ended.
    line: Vec<u8>,
    /// The length of the body, and whether it comes in chunks, as far as the head has said it.
    length: u64,
    is_chunked: bool,
    /// Whether the size of a chunk cannot be read.
    is_broken: bool,
}

/// Appends what there is room for.
fn fill(kept: &mut Vec<u8>, bytes: &[u8], most: usize) {
    let room = most.saturating_sub(kept.len());
    kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
}

impl Framing {
    /// Notes bytes that have arrived.
    pub fn heard(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = match &mut self.part {
                Part::Body(left) | Part::Chunk(left) => {
                    let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= taken as u64;
                    if *left == 0 {
                        let is_chunk = matches!(self.part, Part::Chunk(_));
                        self.part = if is_chunk { Part::ChunkEnd } else { Part::Head };
                    }
                    taken
                }
                _ => self.heard_line(bytes),
            };
            bytes = bytes.get(taken..).unwrap_or_default();
        }
    }

    /// Notes bytes up to the end of a line. Returns how many they are.
    fn heard_line(&mut self, bytes: &[u8]) -> usize {
        let end = memchr(b'\n', bytes);
        let piece = end.and_then(|end| bytes.get(..=end)).unwrap_or(bytes);
        if self.part == Part::Head {
            self.heard_head(piece);
        }
        let mut kept = std::mem::take(&mut self.line);
        let line = if kept.is_empty() && end.is_some() {
            piece.get(..LINE).unwrap_or(piece)
        } else {
            fill(&mut kept, piece, LINE);
            &kept
        };
        self.is_broken |= match self.part {
            Part::ChunkSize => size_of_chunk(line).is_none(),
            Part::ChunkEnd => !line.trim_ascii().is_empty(),
            _ => false,
        };
        if end.is_some() {
            self.line_ended(line.trim_ascii());
            kept.clear();
        }
        self.line = kept;
        piece.len()
    }

    fn heard_head(&mut self, mut piece: &[u8]) {
        if !self.has_begun {
            // The parser skips empty lines before a head.
            let begin = piece.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
            let Some(head) = begin.and_then(|begin| piece.get(begin..)) else { return };
            piece = head;
            self.has_begun = true;
            if self.waiting.len() < HEADS {
                self.waiting.push_back(std::mem::take(&mut self.spare));
            }
        }
        if let Some(beginning) = self.waiting.back_mut()
            && !beginning.ends_with(b"\n")
        {
            fill(beginning, piece, BEGINNING);
        }
    }

    fn line_ended(&mut self, line: &[u8]) {
        match self.part {
            Part::Head if line.is_empty() => {
                if std::mem::take(&mut self.has_begun) {
                    let length = std::mem::take(&mut self.length);
                    self.part = match (std::mem::take(&mut self.is_chunked), length) {
                        (true, _) => Part::ChunkSize,
                        (false, 0) => Part::Head,
                        (false, length) => Part::Body(length),
                    };
                }
            }
            Part::Head => {
                if let Some(value) = value_of(line, b"content-length") {
                    let digits = std::str::from_utf8(value).ok();
                    self.length = digits.and_then(|digits| digits.parse().ok()).unwrap_or(0);
                } else if let Some(value) = value_of(line, b"transfer-encoding") {
                    self.is_chunked = value.to_ascii_lowercase().ends_with(b"chunked");
                }
            }
            Part::ChunkSize => {
                self.part = match size_of_chunk(line).unwrap_or(0) {
                    0 => Part::Trailers,
                    size => Part::Chunk(size),
                };
            }
            Part::ChunkEnd => self.part = Part::ChunkSize,
            Part::Trailers if line.is_empty() => self.part = Part::Head,
            Part::Trailers | Part::Body(_) | Part::Chunk(_) => {}
        }
    }

    /// Notes that the next request has begun: the parser has read its head.
    pub fn request_begun(&mut self) {
        let next = self.waiting.pop_front().unwrap_or_default();
        self.spare = std::mem::replace(&mut self.current, next);
        self.spare.clear();
    }

    /// Returns how many heads have arrived, whole or in part, whose requests have not begun.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns whether a body cannot be read any further.
    pub const fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Returns whether a head has begun and not ended.
    pub const fn is_within_head(&self) -> bool {
        self.has_begun
    }

    /// Returns the path of the head that the parser reads next, or else of the request that has begun last,
    /// as far as it is kept. `None` if it has no path yet.
    pub fn path(&self) -> Option<String> {
        let beginning = self.waiting.front().unwrap_or(&self.current);
        let target = beginning.split(|byte| byte.is_ascii_whitespace()).nth(1)?;
        let target = String::from_utf8_lossy(target);
        // A caller may name the host as well (RFC 9112, section 3.2.2).
        let path = match target.split_once("://") {
            Some((_, rest)) => rest.find('/').and_then(|slash| rest.get(slash..)).unwrap_or("/"),
            None => &target,
        };
        Some(format!("/{}", path.trim_start_matches('/')))
    }
}

/// Returns the size at the beginning of a line, or of the first part of a line (RFC 9112, section 7.1).
/// `None` if it is not a size.
fn size_of_chunk(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';' || byte.is_ascii_whitespace()).next()?;
    let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
    u64::from_str_radix(digits, 16).ok()
}

fn value_of<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let (front, rest) = line.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    front.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(sent: &[u8]) -> Framing {
        let mut framing = Framing::default();
        framing.heard(sent);
        framing
    }

    /// Whole requests, with every way of saying how long a body is.
    const WHOLE: [&str; 7] = [
        "GET /1 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /2 HTTP/1.0\n\n",
        "\r\n\r\nGET /3 HTTP/1.1\r\n\r\n",
        "POST /4 HTTP/1.1\r\ncontent-LENGTH:  4 \r\nHost: x\r\n\r\nG\r\n\r",
        "POST /5 HTTP/1.1\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n3;x=y\r\nG /\r\nA\r\n0\r\n\r\n456789\r\n0\r\n\r\n",
        "POST /6 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 9\r\n\r\n",
        "DELETE /7 HTTP/1.1\r\nContent-Length: 0\r\nX-Content-Length: 5\r\n\r\n",
    ];

    #[test]
    fn a_whole_request_leaves_no_head_begun() {
        for whole in WHOLE {
            let framing = after(whole.as_bytes());
            assert!(!framing.is_within_head() && framing.part == Part::Head, "{whole:?}");
        }
    }

    #[test]
    fn the_head_that_is_read_next_says_the_path() {
        for (sent, path) in [
            ("POST /api/v2/x HTTP/9", "/api/v2/x"),
            ("GET //api/v2/healthz H", "/api/v2/healthz"),
            ("GET http://h:8080/api/v2/x?y=://", "/api/v2/x?y=://"),
            ("GET https://h", "/"),
            ("FROB /api/v2 \0", "/api/v2"),
            ("\rFROB /api/v2 \0", "/api/v2"),
            ("GET /a HTTP/1.1\r\n\r\nGET /b", "/a"),
            ("POST /a HTTP/1.1\r\nContent-Length: -2\r\n\r\n{}", "/a"),
            ("GET /a HTTP/1.1\r\n\r\n\r\n", "/a"),
            ("POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\nGET /b", "/a"),
        ] {
            assert_eq!(after(sent.as_bytes()).path().as_deref(), Some(path), "{sent:?}");
        }
        for sent in ["", "GET", "\0\0", "\r\n"] {
            assert_eq!(after(sent.as_bytes()).path(), None, "{sent:?}");
        }
    }

    #[test]
    fn a_chunk_without_a_size_is_noticed_as_soon_as_it_arrives() {
        let after = |chunks: &str| {
            let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
            after([head, chunks].concat().as_bytes()).is_broken()
        };
        for broken in
            ["z", "2z", "\r\n", "+2", "-", "2\r\n{}z", "2\r\n{}\r\n\r\n", "fffffffffffffffff"]
        {
            assert!(after(broken), "{broken:?}");
        }
        for fine in
            ["", "2", "2;z", "2 ;z", "a\r\nzz", "0\r\nz: z\r\n\r\nz", "0000000000000000000f"]
        {
            assert!(!after(fine), "{fine:?}");
        }
    }

    #[test]
    fn each_request_that_begins_makes_way_for_the_next_head() {
        let mut framing = after(b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\nGET /c");
        for path in ["/a", "/b", "/c", "/c"] {
            assert_eq!(framing.path().as_deref(), Some(path));
            framing.request_begun();
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_requests_are_cut_into_pieces(
            requests in prop::collection::vec(prop::sample::select(&WHOLE[..]), 0..6),
            cuts in prop::collection::vec(0usize..200, 0..8),
        ) {
            let sent = [requests.concat().as_bytes(), b"POST /half HTTP/1.1\r\nContent-Le"].concat();
            let mut framing = Framing::default();
            let mut left = sent.as_slice();
            for cut in cuts {
                let (piece, rest) = left.split_at(cut.min(left.len()));
                framing.heard(piece);
                left = rest;
            }
            framing.heard(left);
            prop_assert!(framing.is_within_head());
            requests.iter().for_each(|_| framing.request_begun());
            prop_assert_eq!(framing.path(), Some("/half".to_owned()));
        }

        #[test]
        fn it_does_not_matter_how_any_bytes_are_cut_into_pieces(
            sent in "([\r\n :;05aG/z]|Content-Length: 3|Transfer-Encoding: chunked|\r\n\r\n){0,40}",
            length in 1usize..9,
        ) {
            let (whole, mut pieces) = (after(sent.as_bytes()), Framing::default());
            sent.as_bytes().chunks(length).for_each(|piece| pieces.heard(piece));
            prop_assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
        }

        #[test]
        fn no_bytes_make_it_panic_or_grow(pieces: Vec<Vec<u8>>) {
            let mut framing = Framing::default();
            for piece in pieces {
                framing.heard(&piece);
                let _ = framing.path();
            }
            prop_assert!(framing.waiting.len() <= HEADS && framing.line.len() <= LINE);
            prop_assert!(framing.waiting.iter().all(|beginning| beginning.len() <= BEGINNING));
        }
    }
}
