//! The state of a webhook as it is kept in the store: JSON that names entries of the audit log.

use iptunnel_domain::Timestamp;
use iptunnel_domain::webhook::{DeadLetter, Outbox, Waiting};
use serde::{Deserialize, Serialize};

/// The format that this program writes, and the newest it reads.
const FORMAT: u32 = 1;

/// What is kept of one webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// What it has had.
    pub outbox: Outbox,
    /// The last entry that was searched for what operators ask for.
    pub orders: u64,
    /// The fingerprint of the address that has said that it is gone.
    pub gone: String,
}

#[derive(Serialize, Deserialize)]
struct Row {
    format: u32,
    read: u64,
    orders: u64,
    waiting: Vec<WaitingRow>,
    dead: Vec<DeadRow>,
    not_listed: u64,
    failures: u32,
    failing_since: Option<u64>,
    rests_until: u64,
    last_error: String,
    last_delivered: Option<u64>,
    gone: String,
    disabled: bool,
}

#[derive(Serialize, Deserialize)]
struct WaitingRow {
    number: u64,
    subject: String,
    at: u64,
    tries: u32,
    first_try: Option<u64>,
    due: u64,
}

#[derive(Serialize, Deserialize)]
struct DeadRow {
    number: u64,
    subject: String,
    at: u64,
    given_up: u64,
    tries: u32,
    why: String,
}

impl Kept {
    /// Returns the bytes for the store.
    pub fn encode(&self) -> Vec<u8> {
        let outbox = &self.outbox;
        let (read, waiting) = outbox.durable();
        let waiting = waiting.into_iter().map(|(number, one)| WaitingRow {
            number,
            subject: one.subject.clone(),
            at: one.at.0,
            tries: one.tries,
            first_try: one.first_try.map(|at| at.0),
            due: one.due.0,
        });
        let dead = outbox.dead.iter().map(|letter| DeadRow {
            number: letter.number,
            subject: letter.subject.clone(),
            at: letter.at.0,
            given_up: letter.given_up.0,
            tries: letter.tries,
            why: letter.why.clone(),
        });
        let row = Row {
            format: FORMAT,
            read,
            orders: self.orders,
            waiting: waiting.collect(),
            dead: dead.collect(),
            not_listed: outbox.not_listed,
            failures: outbox.failures,
            failing_since: outbox.failing_since.map(|at| at.0),
            rests_until: outbox.rests_until.0,
            last_error: outbox.last_error.clone(),
            last_delivered: outbox.last_delivered.map(|at| at.0),
            gone: self.gone.clone(),
            disabled: outbox.disabled,
        };
        serde_json::to_vec(&row).unwrap_or_default()
    }

    /// Reads bytes that [`Self::encode`] wrote.
    ///
    /// # Errors
    /// They are damaged, or a newer program wrote them.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let row: Row = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if row.format > FORMAT {
            return Err(format!("it has format {}, and this program knows {FORMAT}", row.format));
        }
        let waiting = row.waiting.into_iter().map(|one| {
            let waiting = Waiting {
                subject: one.subject,
                at: Timestamp(one.at),
                tries: one.tries,
                first_try: one.first_try.map(Timestamp),
                due: Timestamp(one.due),
                under_way: false,
            };
            (one.number, waiting)
        });
        let dead = row.dead.into_iter().map(|one| DeadLetter {
            number: one.number,
            subject: one.subject,
            at: Timestamp(one.at),
            given_up: Timestamp(one.given_up),
            tries: one.tries,
            why: one.why,
        });
        let outbox = Outbox {
            read: row.read,
            waiting: waiting.collect(),
            dead: dead.collect(),
            not_listed: row.not_listed,
            failures: row.failures,
            failing_since: row.failing_since.map(Timestamp),
            rests_until: Timestamp(row.rests_until),
            last_error: row.last_error,
            last_delivered: row.last_delivered.map(Timestamp),
            disabled: row.disabled,
        };
        Ok(Self { outbox, orders: row.orders, gone: row.gone })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_back_and_a_newer_format_is_refused() {
        let now = Timestamp(1_800_000_000);
        let mut outbox = Outbox::from(3);
        for number in 4..8 {
            outbox.take(number, "server:1".into(), now, now);
        }
        outbox.begin(now);
        outbox.failed(4, "it answered 500", None, 0, now);
        let dead = DeadLetter {
            number: 2,
            subject: "fleet".into(),
            at: now,
            given_up: now,
            tries: 3,
            why: "it answered 400".into(),
        };
        outbox.dead.push_back(dead);
        let kept = Kept { outbox, orders: 7, gone: String::new() };
        let back = Kept::decode(&kept.encode()).unwrap();
        assert_eq!(back, kept, "the other events wait behind the one that has failed");
        let text = String::from_utf8(kept.encode()).unwrap();
        let newer = text.replace("\"format\":1", "\"format\":2");
        assert!(Kept::decode(newer.as_bytes()).unwrap_err().contains("format 2"));
        assert!(Kept::decode(b"{").is_err());
    }

    /// A row as the first program with webhooks wrote it. Later programs must read it.
    #[test]
    fn a_row_of_the_first_format_is_still_read() {
        let row = br#"{"format":1,"read":9,"orders":9,"waiting":[{"number":7,"subject":"fleet","at":1,"tries":1,"first_try":2,"due":3}],"dead":[],"not_listed":0,"failures":1,"failing_since":2,"rests_until":0,"last_error":"it answered 500","last_delivered":null,"gone":"","disabled":false}"#;
        let kept = Kept::decode(row).unwrap();
        assert_eq!((kept.outbox.read, kept.outbox.waiting[&7].tries), (9, 1));
    }
}
