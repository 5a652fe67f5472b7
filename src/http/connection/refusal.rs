//! The refusals of the HTTP parser: of requests that it cannot read, and that no handler sees.

use super::Rules;
use crate::http::errors::ApiError;
use crate::http::respond::failure_text;
use actix_web::http::StatusCode;
use bytes::Bytes;
use std::time::Duration;

/// Longer than any refusal of the parser. Each has a status line and three short headers.
const LONGEST: usize = 256;

/// Finds a refusal of the parser at the end of what is written to a connection: a head with one of its
/// statuses and no body. Handlers never send these without a body. Returns where it begins.
pub(super) fn parsers_refusal(bytes: &[u8]) -> Option<(usize, StatusCode)> {
    // Most answers end with a body.
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let skipped = bytes.len().saturating_sub(LONGEST);
    let end = bytes.get(skipped..)?;
    let begin = end.windows(7).rposition(|word| word == b"HTTP/1.")?;
    let head = std::str::from_utf8(end.get(begin..)?).ok()?;
    let status = [StatusCode::BAD_REQUEST, StatusCode::REQUEST_TIMEOUT, TOO_LARGE]
        .into_iter()
        .find(|status| {
            head.get(8..).is_some_and(|rest| rest.starts_with(&format!(" {} ", status.as_str())))
        })?;
    let is_empty = head.contains("\r\ncontent-length: 0\r\n");
    is_empty.then_some((skipped + begin, status))
}

const TOO_LARGE: StatusCode = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;

/// Makes the answer to a request that cannot be read, in the envelope of its API. It ends the
/// connection. Counts it like every other answer.
pub(super) fn refusal(rules: &Rules, error: &ApiError, is_v2: bool) -> Bytes {
    let status = error.status;
    rules.observer.metrics.count(None, status, Duration::ZERO);
    let body = failure_text(is_v2, error);
    let reason = status.canonical_reason().unwrap_or_default();
    let (code, length, id) = (status.as_u16(), body.len(), rules.observer.request_ids.make());
    let head = format!(
        "HTTP/1.1 {code} {reason}\r\ncontent-length: {length}\r\ncontent-type: application/json\r\n\
         connection: close\r\ncache-control: no-store\r\nx-content-type-options: nosniff\r\n\
         x-request-id: {id}\r\n\r\n"
    );
    Bytes::from([head.into_bytes(), body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSAL: &str = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\
         date: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n";

    #[test]
    fn a_refusal_of_the_parser_is_found_alone_and_behind_another_answer() {
        let found = parsers_refusal(REFUSAL.as_bytes());
        assert_eq!(found, Some((0, StatusCode::BAD_REQUEST)));
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 400\r\n\r\n{}", "x".repeat(400));
        let both = format!("{answer}{REFUSAL}");
        assert_eq!(parsers_refusal(both.as_bytes()), Some((answer.len(), StatusCode::BAD_REQUEST)));
    }

    #[test]
    fn answers_of_handlers_are_left_alone() {
        let other_status = REFUSAL.replace("400 Bad Request", "304 Not Modified");
        let with_body = REFUSAL.replace("length: 0", "length: 2");
        for answer in [&other_status, &with_body, "0\r\n\r\n", "\r\n\r\n", ""] {
            assert_eq!(parsers_refusal(answer.as_bytes()), None, "{answer}");
        }
        assert_eq!(parsers_refusal(format!("{REFUSAL}{{}}").as_bytes()), None);
    }
}
