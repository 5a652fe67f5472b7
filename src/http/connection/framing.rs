//! Tells heads from bodies in what a connection sends (RFC 9112, sections 2, 6 and 7).
//!
//! The HTTP parser takes in several requests at once, and does not say where it is. But the deadline of a
//! head begins with the head, and a refusal has the envelope of the path in its own head. So this reads
//! what that takes: the ends of lines, and the lengths of bodies. Nothing else rests on it: a caller that
//! deceives it gains some seconds of a deadline.

/// The bytes of a head that are kept to tell the API of its path: enough for a method, a host and the
/// beginning of the path.
const BEGINNING: usize = 128;
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
    /// So many bytes of a chunk, its line end included.
    Chunk(u64),
    Trailers,
}

/// Follows what a connection sends.
#[derive(Debug, Default)]
pub struct Framing {
    part: Part,
    /// Whether the head has begun.
    has_begun: bool,
    /// The first bytes of the latest head.
    beginning: Vec<u8>,
    /// The first bytes of the line.
    line: Vec<u8>,
    /// The length of the body, and whether it comes in chunks, as far as the head has said it.
    length: u64,
    is_chunked: bool,
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
                        self.part = if is_chunk { Part::ChunkSize } else { Part::Head };
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
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let piece = end.and_then(|end| bytes.get(..=end)).unwrap_or(bytes);
        if self.part == Part::Head {
            // The parser skips empty lines before a head.
            if !self.has_begun && piece.iter().any(|byte| !matches!(byte, b'\r' | b'\n')) {
                self.has_begun = true;
                self.beginning.clear();
            }
            if self.has_begun {
                fill(&mut self.beginning, piece, BEGINNING);
            }
        }
        fill(&mut self.line, piece, LINE);
        if end.is_some() {
            self.line_ended();
            self.line.clear();
        }
        piece.len()
    }

    fn line_ended(&mut self) {
        let line = self.line.trim_ascii();
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
                let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
                let digits = std::str::from_utf8(digits.trim_ascii()).ok();
                let size = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
                self.part = match size.unwrap_or(0) {
                    0 => Part::Trailers,
                    size => Part::Chunk(size.saturating_add(2)),
                };
            }
            Part::Trailers if line.is_empty() => self.part = Part::Head,
            Part::Trailers | Part::Body(_) | Part::Chunk(_) => {}
        }
    }

    /// Returns whether a head has begun and not ended.
    pub const fn is_within_head(&self) -> bool {
        self.has_begun
    }

    /// Returns the path of the latest head, as far as it is kept, or `None` if it has none yet.
    pub fn path(&self) -> Option<String> {
        let target = self.beginning.split(|byte| byte.is_ascii_whitespace()).nth(1)?;
        let target = String::from_utf8_lossy(target);
        // A caller may name the host as well (RFC 9112, section 3.2.2).
        let path = match target.split_once("://") {
            Some((_, rest)) => rest.find('/').and_then(|slash| rest.get(slash..)).unwrap_or("/"),
            None => &target,
        };
        Some(format!("/{}", path.trim_start_matches('/')))
    }
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
    fn the_latest_head_says_the_path() {
        for (sent, path) in [
            ("POST /api/v2/x HTTP/9", "/api/v2/x"),
            ("GET //api/v2/healthz H", "/api/v2/healthz"),
            ("GET http://h:8080/api/v2/x?y=://", "/api/v2/x?y=://"),
            ("GET https://h", "/"),
            ("FROB /api/v2 \0", "/api/v2"),
            ("GET /a HTTP/1.1\r\n\r\nGET /b", "/b"),
            ("GET /a HTTP/1.1\r\n\r\n\r\n", "/a"),
            ("POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\nGET /b", "/a"),
        ] {
            assert_eq!(after(sent.as_bytes()).path().as_deref(), Some(path), "{sent:?}");
        }
        for sent in ["", "GET", "\0\0", "\r\n"] {
            assert_eq!(after(sent.as_bytes()).path(), None, "{sent:?}");
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
            prop_assert_eq!(framing.path(), Some("/half".to_owned()));
        }

        #[test]
        fn no_bytes_make_it_panic_or_grow(pieces: Vec<Vec<u8>>) {
            let mut framing = Framing::default();
            for piece in pieces {
                framing.heard(&piece);
                let _ = framing.path();
            }
            prop_assert!(framing.beginning.len() <= BEGINNING && framing.line.len() <= LINE);
        }
    }
}
