//! Signs the head of the audit log every minute and writes it to a separate file.
//!
//! An intruder who can write to the store can replace the whole log with a valid chain, or cut it
//! off. An earlier signed head reveals that. The file is beside the store and gets a line only when
//! the log has grown. Keep a copy of it, or of the server's log, which names each head, where an
//! intruder cannot reach it.

use super::console::{Console, failed};
use crate::http::errors::ApiError;
use crate::http::respond::success;
use crate::signed_head::{HeadKey, append, file_of, read_file};
use actix_web::http::StatusCode;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use std::io::ErrorKind;
use std::sync::PoisonError;
use std::time::Duration;

/// How often the head is signed.
const EVERY: Duration = Duration::from_secs(60);
/// The most heads in one response.
const SHOWN: usize = 1000;

/// Signs the head if it has changed since the last call.
fn note(console: &Console) -> Result<(), String> {
    let mut last = console.signed.lock().unwrap_or_else(PoisonError::into_inner);
    let state = &console.state;
    let head = state.handles.store().audit_head().map_err(|error| error.to_string())?;
    if head == *last {
        return Ok(());
    }
    let key = HeadKey::of(&state.live.lookup).ok_or("there is no key to sign with")?;
    let signed = key.sign(head, state.clock.now());
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
pub async fn list(console: Data<Console>, request: HttpRequest) -> HttpResponse {
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

#[derive(Serialize)]
struct PublicKey {
    algorithm: &'static str,
    public_key: String,
}

/// `GET /admin/audit/public-key`: the key that verifies heads.
pub async fn public_key(console: Data<Console>, request: HttpRequest) -> HttpResponse {
    match HeadKey::of(&console.state.live.lookup) {
        Some(key) => {
            let key = PublicKey { algorithm: "Ed25519", public_key: key.public() };
            success(StatusCode::OK, key, "Public key")
        }
        None => failed(&request, &ApiError::internal()),
    }
}
