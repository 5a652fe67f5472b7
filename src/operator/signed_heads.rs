//! Signs the head of the audit log every minute and writes it to a separate file.
//!
//! An intruder who can write to the store can replace the whole log with a valid chain, or cut it
//! off. An earlier signed head reveals that. The file is beside the store and gets a line only when
//! the log has grown. Keep a copy of it, or of the server's log, which names each head, where an
//! intruder cannot reach it.

use super::auth::Operator;
use super::console::{Console, failed};
use crate::http::errors::ApiError;
use crate::http::respond::success;
use crate::private_file::beside;
use actix_web::http::StatusCode;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_domain::Timestamp;
use iptunnel_domain::audit::{ChainHash, Head};
use iptunnel_domain::lookup::{KeyedHash, LookupKey, Purpose};
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

/// How often the head is signed.
const EVERY: Duration = Duration::from_secs(60);
/// The most heads in one response.
const SHOWN: usize = 1000;

/// A head of the audit log with its time and signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedHead {
    /// The number of the last entry.
    pub entries: u64,
    /// The hash of the last entry.
    pub hash: String,
    /// The time of signing, in seconds since the Unix epoch.
    pub time: u64,
    /// The keyed hash of the three other fields under the lookup key.
    pub signature: String,
}

impl SignedHead {
    fn new(head: Head, now: Timestamp, key: &LookupKey) -> Self {
        let signature = sign(head, now, key).to_hex();
        Self { entries: head.entries, hash: head.hash.to_hex(), time: now.0, signature }
    }

    /// Returns the head if the signature is valid.
    pub fn verified(&self, key: &LookupKey) -> Option<Head> {
        let head = Head { entries: self.entries, hash: ChainHash::from_hex(&self.hash)? };
        let given = KeyedHash::from_hex(&self.signature)?;
        given.ct_eq(&sign(head, Timestamp(self.time), key)).then_some(head)
    }
}

fn sign(head: Head, now: Timestamp, key: &LookupKey) -> KeyedHash {
    let mut bytes = head.hash.0.to_vec();
    bytes.extend(head.entries.to_be_bytes());
    bytes.extend(now.0.to_be_bytes());
    key.hash(Purpose::AuditHead, &bytes)
}

/// Returns the path of the heads file for the store at `path`.
pub fn file_of(path: &Path) -> PathBuf {
    beside(path, ".heads")
}

/// Reads the heads in a file, oldest first. Skips an incomplete last line.
///
/// # Errors
/// If the file does not exist or cannot be read, or a complete line is not a head.
pub fn read_file(path: &Path) -> std::io::Result<Vec<SignedHead>> {
    let text = std::fs::read_to_string(path)?;
    let whole = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
    let head = |line: &str| serde_json::from_str(line).map_err(std::io::Error::other);
    whole.lines().map(head).collect()
}

fn append(path: &Path, head: &SignedHead) -> std::io::Result<()> {
    let mut line = serde_json::to_string(head)?;
    line.push('\n');
    let mut file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    file.write_all(line.as_bytes())?;
    file.sync_data()
}

/// Signs the head if it has changed since the last call.
fn note(console: &Console) -> Result<(), String> {
    let mut last = console.signed.lock().unwrap_or_else(PoisonError::into_inner);
    let state = &console.state;
    let head = state.handles.store().audit_head().map_err(|error| error.to_string())?;
    if head == *last {
        return Ok(());
    }
    let signed = SignedHead::new(head, state.clock.now(), &state.live.lookup);
    let path = file_of(&state.live.config.load().storage.path);
    append(&path, &signed).map_err(|error| format!("{}: {error}", path.display()))?;
    tracing::info!(entries = head.entries, hash = signed.hash, "signed the head of the audit log");
    *last = head;
    Ok(())
}

/// Signs the head at once and then every minute while the server runs.
pub async fn keep(console: Data<Console>) {
    loop {
        note_now(&console).await;
        tokio::time::sleep(EVERY).await;
    }
}

/// Signs the head if it has changed, and logs errors.
pub async fn note_now(console: &Data<Console>) {
    let of_thread = console.clone();
    if let Ok(Err(error)) = actix_web::web::block(move || note(&of_thread)).await {
        tracing::error!(error, "could not sign the head of the audit log");
    }
}

/// `GET /admin/audit/heads`: the newest heads, oldest first.
pub async fn list(console: Data<Console>, request: HttpRequest, _: Operator) -> HttpResponse {
    let path = file_of(&console.state.live.config.load().storage.path);
    let read = move || match read_file(&path) {
        // The first head is signed when the first entry has been written.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    };
    match actix_web::web::block(read).await {
        Ok(Ok(heads)) => {
            let shown = heads.len().saturating_sub(SHOWN);
            success(StatusCode::OK, heads.get(shown..).unwrap_or_default(), "Signed heads")
        }
        _ => failed(&request, &ApiError::internal()),
    }
}
