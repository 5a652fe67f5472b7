//! What is sent: the JSON of an event, and its signatures by Standard Webhooks 1.0.

use super::endpoints::Secret;
use crate::http::respond::rfc3339;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use iptunnel_domain::Timestamp;
use iptunnel_domain::webhook::{signed_content, subject};
use iptunnel_storage::Entry;
use ring::hmac;
use serde::Serialize;
use serde_json::{Value, json};

/// A message, ready to be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its id, the same at every try.
    pub id: String,
    /// Its body.
    pub body: String,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'a str,
    timestamp: String,
    data: Value,
}

/// Returns the id of the message about an entry. It names the hash of the entry too: after a store was set
/// back to an earlier state, another entry may have the same number.
fn id_of(entry: &Entry) -> String {
    let hash = entry.head.hash.to_hex();
    format!("msg_{}_{}", entry.head.entries, hash.get(..16).unwrap_or(&hash))
}

/// Returns the number of the entry that a message is about.
pub fn number_of(id: &str) -> Option<u64> {
    let rest = id.strip_prefix("msg_").unwrap_or(id);
    rest.split('_').next()?.parse().ok()
}

impl Message {
    /// Makes the message about an entry of the audit log.
    pub fn of(entry: &Entry, kind: &str) -> Self {
        let event = &entry.event;
        let data = json!({
            "number": entry.head.entries,
            "about": subject(event),
            "actor": event.actor.name(),
            "by": event.by,
            "from": event.from,
            "server": event.server.map(|id| id.to_string()),
            "code": event.code.map(|code| code.0.to_hex()),
            "activation": event.activation.map(|name| name.to_string()),
            "address": event.address,
            "subject": event.subject,
            "detail": event.detail,
        });
        let body = Body { r#type: kind, timestamp: rfc3339(event.at), data };
        Self { id: id_of(entry), body: serde_json::to_string(&body).unwrap_or_default() }
    }

    /// Makes the message of a test.
    pub fn test(nonce: u64, now: Timestamp) -> Self {
        let data = json!({ "detail": "An operator asked for this test." });
        let body = Body { r#type: "webhook.test", timestamp: rfc3339(now), data };
        let id = format!("msg_test_{nonce:016x}");
        Self { id, body: serde_json::to_string(&body).unwrap_or_default() }
    }

    /// Returns the header `webhook-signature` of a try at `now`: one signature for each secret.
    pub fn signature(&self, secrets: &[Secret], now: Timestamp) -> String {
        let content = signed_content(&self.id, now.0, self.body.as_bytes());
        let signed = secrets.iter().map(|secret| sign(secret, &content));
        signed.collect::<Vec<_>>().join(" ")
    }
}

fn sign(secret: &Secret, content: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.bytes());
    format!("v1,{}", STANDARD.encode(hmac::sign(&key, content)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use iptunnel_domain::audit::{Action, Actor, ChainHash, Event, Head};
    use iptunnel_domain::server::ServerId;

    /// The vector of the libraries of Standard Webhooks (github.com/standard-webhooks/standard-webhooks).
    #[test]
    fn a_signature_is_that_of_the_published_vector() {
        let message = Message {
            id: "msg_p5jXN8AQM9LWM0D4loKWxJek".into(),
            body: r#"{"test": 2432232314}"#.into(),
        };
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let now = Timestamp(1_614_265_330);
        assert_eq!(message.signature(std::slice::from_ref(&secret), now), expected);
        let both = message.signature(&[secret.clone(), secret], now);
        assert_eq!(both, format!("{expected} {expected}"));
    }

    #[test]
    fn a_message_says_what_the_log_says_under_an_id_that_is_its_own() {
        let event = Event {
            server: Some(ServerId(7)),
            subject: "ns1.example.com".into(),
            ..Event::new(Action::ServerRevoked, Actor::Operator, Timestamp(60), None)
        };
        let head = Head { entries: 42, hash: ChainHash([0xab; 32]) };
        let message = Message::of(&Entry { event, head }, "server.revoked");
        assert_eq!(message.id, "msg_42_abababababababab");
        assert_eq!(number_of(&message.id), Some(42));
        assert_eq!((number_of("42"), number_of("msg_test_00")), (Some(42), None));
        let body: Value = serde_json::from_str(&message.body).unwrap();
        assert_eq!(body["type"], "server.revoked");
        assert_eq!(body["timestamp"], "1970-01-01T00:01:00+00:00");
        assert_eq!(body["data"]["subject"], "ns1.example.com");
        assert_eq!(body["data"]["about"], "server:0000000000000007");
    }
}
