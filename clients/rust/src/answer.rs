//! Tells apart what an answer can be.

use crate::error::{Problem, Refusal};
use crate::transport::Response;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::time::Duration;

/// What came of one try.
pub(crate) enum Outcome<T> {
    /// The server did it.
    Done(T),
    /// The server said no: asking again changes nothing.
    Refused(Refusal),
    /// No usable answer. The time is that after which the server asks to be tried again.
    Again(Problem, Option<Duration>),
    /// An answer of this API without the field that is named.
    Lacks(&'static str),
}

impl<T> Outcome<T> {
    /// Goes on with what was done, if anything was.
    pub(crate) fn then<U>(self, read: impl FnOnce(T) -> Outcome<U>) -> Outcome<U> {
        match self {
            Self::Done(done) => read(done),
            Self::Refused(refusal) => Outcome::Refused(refusal),
            Self::Again(problem, later) => Outcome::Again(problem, later),
            Self::Lacks(field) => Outcome::Lacks(field),
        }
    }
}

/// The two forms of every answer under `/api/v2`. One has no key of the other.
#[derive(Deserialize)]
#[serde(untagged)]
enum Envelope {
    Success { data: Map<String, Value> },
    Failure { error: Reason },
}

#[derive(Deserialize)]
struct Reason {
    code: String,
    message: String,
}

/// The `data` of an answer.
pub(crate) struct Data(Map<String, Value>);

impl Data {
    /// Returns a text that is not empty.
    pub(crate) fn text(&self, field: &'static str) -> Result<&str, &'static str> {
        self.0.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).ok_or(field)
    }

    pub(crate) fn number(&self, field: &'static str) -> Result<u64, &'static str> {
        self.0.get(field).and_then(Value::as_u64).ok_or(field)
    }

    pub(crate) fn truth(&self, field: &'static str) -> Result<bool, &'static str> {
        self.0.get(field).and_then(Value::as_bool).ok_or(field)
    }
}

/// The longest pause that a server is believed to mean.
const A_DAY: Duration = Duration::from_secs(86_400);

/// `Retry-After` in seconds. A date, which only proxies send, counts as none.
fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.header("retry-after")?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(A_DAY))
}

/// Without characters that a terminal would obey.
fn plain(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).collect()
}

/// Reads an answer in the envelope of `/api/v2`.
pub(crate) fn read(response: &Response) -> Outcome<Data> {
    let (status, later) = (response.status, retry_after(response));
    match (status, serde_json::from_slice(&response.body)) {
        (200..300, Ok(Envelope::Success { data })) => Outcome::Done(Data(data)),
        (400..600, Ok(Envelope::Failure { error: Reason { code, message } })) => {
            let (code, message) = (plain(&code), plain(&message));
            let refusal = Refusal { status, code, message, retry_after: later };
            // 408: the request did not arrive in time, so nothing was decided about it.
            if status >= 500 || status == 408 {
                Outcome::Again(Problem::Unavailable(refusal), later)
            } else {
                Outcome::Refused(refusal)
            }
        }
        _ => Outcome::Again(Problem::NotThisApi { status }, later),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str, retry_after: &str) -> Outcome<Data> {
        let headers = vec![("Retry-After".to_owned(), retry_after.to_owned())];
        read(&Response { status, headers, body: body.into() })
    }

    const REFUSAL: &str = r#"{"error":{"code":"install_code_used","message":"Used.\u001b[2J"}}"#;

    #[test]
    fn only_4xx_in_the_envelope_are_refusals() {
        for status in [400, 401, 403, 404, 409, 413, 422, 429] {
            let Outcome::Refused(refusal) = answer(status, REFUSAL, "7") else {
                panic!("{status}")
            };
            assert_eq!((refusal.status, refusal.code.as_str()), (status, "install_code_used"));
            assert_eq!(refusal.message, "Used.[2J", "a terminal would obey it");
            assert_eq!(refusal.retry_after, Some(Duration::from_secs(7)));
        }
        for status in [408, 500, 502, 503, 504] {
            let outcome = answer(status, REFUSAL, "7");
            let seven = Some(Duration::from_secs(7));
            assert!(
                matches!(outcome, Outcome::Again(Problem::Unavailable(_), later) if later == seven),
                "{status}"
            );
        }
    }

    #[test]
    fn whatever_is_not_in_the_envelope_is_no_answer() {
        for (status, body) in [
            (200, ""),
            (200, r#"{"data":{"a":"#),
            (200, "<html>log in</html>"),
            (200, r#"{"data":"text"}"#),
            (200, r#"{"ok":true}"#),
            (200, REFUSAL),
            (302, ""),
            (302, r#"{"data":{}}"#),
            (404, "<h1>404 Not Found</h1>"),
            (404, r#"{"error":"not found"}"#),
            (404, r#"{"data":{}}"#),
            (429, "slow down"),
            (502, "<html>Bad Gateway</html>"),
        ] {
            let outcome = answer(status, body, "Fri, 31 Dec 2030 23:59:59 GMT");
            let expected = Problem::NotThisApi { status };
            assert!(
                matches!(outcome, Outcome::Again(problem, None) if problem == expected),
                "{status} {body}"
            );
        }
    }

    #[test]
    fn a_field_that_is_missing_or_of_a_wrong_type_is_named() {
        let body = r#"{"data":{"text":"a","empty":"","number":60,"truth":false},"meta":{}}"#;
        let Outcome::Done(data) = answer(200, body, "") else { panic!() };
        assert_eq!((data.text("text"), data.text("number")), (Ok("a"), Err("number")));
        assert_eq!((data.text("empty"), data.text("none")), (Err("empty"), Err("none")));
        assert_eq!((data.number("number"), data.number("text")), (Ok(60), Err("text")));
        assert_eq!((data.truth("truth"), data.truth("none")), (Ok(false), Err("none")));
    }

    #[test]
    fn a_server_is_not_believed_to_mean_more_than_a_day() {
        let Outcome::Refused(refusal) = answer(429, REFUSAL, "18446744073709551615") else {
            panic!()
        };
        assert_eq!(refusal.retry_after, Some(A_DAY));
    }
}
