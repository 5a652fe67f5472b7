//! Reads request bodies within a size limit and parses their fields.

use actix_web::dev;
use actix_web::error::PayloadError;
use actix_web::web::Payload;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use iptunnel_domain::Refusal;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::cell::Cell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// The largest body that is read, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// The bytes of a body, or why the body is refused.
pub type Body = Result<Bytes, Refusal>;

/// Reads a body of at most [`MAX_BODY`] bytes, chunked or not.
///
/// # Errors
/// [`Refusal::BodyTooLarge`], and [`Refusal::BodyTooSlow`] where the body is not complete by the
/// deadline.
pub async fn read(payload: Payload, deadline: Duration) -> Body {
    let collected = tokio::time::timeout(deadline, collect(payload)).await;
    collected.unwrap_or(Err(Refusal::BodyTooSlow))
}

async fn collect(mut payload: Payload) -> Body {
    let mut body = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        // The connection is broken, so nobody receives this answer.
        let chunk = chunk.map_err(|_| Refusal::BodyNotJson)?;
        if body.len() + chunk.len() > MAX_BODY {
            return Err(Refusal::BodyTooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Returns the body with an error where it is not complete by the deadline, and sets `is_late` then.
pub fn in_time(body: dev::Payload, deadline: Duration, is_late: Rc<Cell<bool>>) -> dev::Payload {
    let end = Instant::now() + deadline;
    let chunks = stream::unfold((body, is_late), move |(mut body, is_late)| async move {
        let late = |_| {
            is_late.set(true);
            Some(Err(PayloadError::Io(ErrorKind::TimedOut.into())))
        };
        let chunk = timeout_at(end, body.next()).await.unwrap_or_else(late)?;
        Some((chunk, (body, is_late)))
    });
    dev::Payload::Stream { payload: Box::pin(chunks) }
}

/// Returns the fields of a body, or why it is refused.
pub fn fields<'de, T: Deserialize<'de>>(body: &'de Body) -> Result<T, Refusal> {
    body.as_ref().map_err(Clone::clone).and_then(|bytes| object(bytes))
}

/// Parses a JSON object into its fields. Ignores unknown fields.
pub fn object<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, Refusal> {
    let text = body.trim_ascii_start();
    match text.first() {
        None => Err(Refusal::BodyEmpty),
        // serde would accept an array as the fields in their order.
        Some(b'{') => serde_json::from_slice(text).map_err(|error| why_not(&error.to_string())),
        Some(_) => Err(Refusal::BodyNotJson),
    }
}

/// Returns why a body cannot be parsed. serde names a repeated key only in its message. The key is
/// always one of ours, because unknown ones are ignored.
fn why_not(error: &str) -> Refusal {
    let key = error.strip_prefix("duplicate field `").and_then(|rest| rest.split_once('`'));
    key.map_or(Refusal::BodyNotJson, |(key, _)| Refusal::BodyRepeatsKey(key.to_owned()))
}

/// The value of a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Field<'a> {
    /// Missing or `null`.
    #[default]
    Absent,
    /// A trimmed string, or the digits of an integer.
    Text(Cow<'a, str>),
    /// Anything else.
    WrongType,
}

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        Ok(match raw.as_bytes() {
            b"null" => Self::Absent,
            [b'"', inner @ .., b'"'] if !inner.contains(&b'\\') => {
                Self::Text(Cow::Borrowed(raw.trim_matches('"').trim()))
            }
            [b'"', ..] => match serde_json::from_str::<String>(raw) {
                // Databases cannot store a NUL in a text. JSON can contain one only as an escape.
                Ok(text) => Self::Text(Cow::Owned(text.trim().replace('\0', "\u{FFFD}"))),
                Err(_) => Self::WrongType,
            },
            [b'-', digits @ ..] | digits if digits.iter().all(u8::is_ascii_digit) => {
                Self::Text(Cow::Borrowed(raw))
            }
            _ => Self::WrongType,
        })
    }
}

impl<'a> Field<'a> {
    /// Returns this field, or `other` where this one is absent.
    pub fn or(self, other: Self) -> Self {
        if self == Self::Absent { other } else { self }
    }

    /// Returns the text of a required field.
    ///
    /// # Errors
    /// [`Refusal::InvalidField`] where it is missing, empty, of a wrong type, or longer than `max`
    /// characters.
    pub fn required(self, name: &str, max: usize) -> Result<Cow<'a, str>, Refusal> {
        self.check(name, max).map_err(Refusal::InvalidField)
    }

    /// Like [`Self::required`], but returns the problem as text.
    pub fn check(self, name: &str, max: usize) -> Result<Cow<'a, str>, String> {
        match self {
            Self::WrongType => Err(format!("{name} must be a string.")),
            Self::Text(text) if text.chars().count() > max => {
                Err(format!("{name} must be at most {max} characters long."))
            }
            Self::Text(text) if !text.is_empty() => Ok(text),
            Self::Absent | Self::Text(_) => Err(format!("{name} is required.")),
        }
    }

    /// Returns the text of an optional field, cut after `max` characters.
    ///
    /// # Errors
    /// [`Refusal::InvalidField`] where it is of a wrong type.
    pub fn optional(self, name: &str, max: usize) -> Result<Cow<'a, str>, Refusal> {
        match self {
            Self::WrongType => Err(Refusal::InvalidField(format!("{name} must be a string."))),
            Self::Absent => Ok(Cow::Borrowed("")),
            Self::Text(text) if text.chars().count() > max => {
                Ok(Cow::Owned(text.chars().take(max).collect()))
            }
            Self::Text(text) => Ok(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Deserialize)]
    struct One<'a> {
        #[serde(borrow, default)]
        f: Field<'a>,
    }

    fn field(json: &str) -> Field<'static> {
        let body = format!("{{\"f\":{json},\"unknown\":[1]}}");
        match object::<One>(body.as_bytes()).unwrap().f {
            Field::Text(text) => Field::Text(Cow::Owned(text.into_owned())),
            Field::Absent => Field::Absent,
            Field::WrongType => Field::WrongType,
        }
    }

    fn text(text: &str) -> Field<'static> {
        Field::Text(Cow::Owned(text.to_owned()))
    }

    #[test]
    fn strings_are_trimmed_integers_become_digits_and_null_is_absent() {
        assert_eq!(field(r#"" a b ""#), text("a b"));
        assert_eq!(field(r#"" \u0041\n""#), text("A"));
        assert_eq!(field(r#""\"""#), text("\""));
        assert_eq!(field(r#""a\u0000b""#), text("a\u{FFFD}b"));
        assert_eq!(field(r#""""#), text(""));
        assert_eq!(field("12345678901234567890123456789"), text("12345678901234567890123456789"));
        assert_eq!(field("-7"), text("-7"));
        assert_eq!(field("null"), Field::Absent);
        for other in ["1.5", "1e3", "true", "[]", "{}", r#"["x"]"#] {
            assert_eq!(field(other), Field::WrongType, "{other}");
        }
    }

    #[test]
    fn only_a_json_object_is_accepted_as_a_body() {
        let refusal = |body: &[u8]| object::<One>(body).map(|_| ()).unwrap_err();
        assert_eq!(refusal(b""), Refusal::BodyEmpty);
        assert_eq!(refusal(b" \n"), Refusal::BodyEmpty);
        for wrong in ["[]", "[\"x\"]", "1", "\"x\"", "null", "{", "{}x", "{\"f\":}", "{'f':1}"] {
            assert_eq!(refusal(wrong.as_bytes()), Refusal::BodyNotJson, "{wrong}");
        }
        assert_eq!(refusal(b"{\"f\":\"\xff\"}"), Refusal::BodyNotJson);
    }

    #[test]
    fn a_repeated_key_is_named() {
        let refusal = object::<One>(br#"{"f":"a","g":1,"g":2,"f":"b"}"#).map(|_| ()).unwrap_err();
        assert_eq!(refusal, Refusal::BodyRepeatsKey("f".into()));
    }

    #[test]
    fn a_deeply_nested_value_uses_no_stack_and_has_a_wrong_type() {
        let deep = format!("{{\"f\":{}1{}}}", "[".repeat(30_000), "]".repeat(30_000));
        assert_eq!(object::<One>(deep.as_bytes()).unwrap().f, Field::WrongType);
    }

    #[test]
    fn optional_text_is_cut_and_required_text_is_not() {
        assert_eq!(text("äöü").optional("f", 2).unwrap(), "äö");
        assert_eq!(text("äö").optional("f", 2).unwrap(), "äö");
        assert!(text("äöü").required("f", 2).is_err());
        assert!(text("").required("f", 2).is_err());
        assert!(Field::WrongType.optional("f", 2).is_err());
    }

    proptest! {
        #[test]
        fn no_body_makes_the_parser_panic(body: Vec<u8>) {
            let _ = object::<One>(&body);
        }
    }
}
