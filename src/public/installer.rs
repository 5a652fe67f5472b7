//! The main stack's installer and its version, for the updater on servers that it has set up. The file is
//! the operator's.

use crate::http::errors::ApiError;
use crate::http::page::tagged;
use crate::http::respond::{failure_for, json};
use crate::state::State;
use actix_web::http::StatusCode;
use actix_web::web::{Data, block};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use iptunnel_domain::hex::hex;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use utoipa::ToSchema;

/// The path of the script, which its updater knows.
pub const SCRIPT: &str = "/iptunnel-install.sh";
/// The largest script, in bytes. It is kept in memory once.
const LARGEST: u64 = 4 << 20;

/// A script as it was read.
struct Script {
    stamp: Stamp,
    content: Bytes,
    /// The SHA-256 of the content, in hexadecimal digits.
    digest: String,
}

/// What changes when a file changes: device, file, size, and the times of both changes.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

fn stamp(file: &Metadata) -> Stamp {
    let modified = (file.mtime(), file.mtime_nsec());
    (file.dev(), file.ino(), file.size(), modified, (file.ctime(), file.ctime_nsec()))
}

/// The installer's file, read again when it has changed.
#[derive(Default)]
pub struct Installer {
    script: Mutex<Option<Arc<Script>>>,
    /// The last problem, so that each is logged once.
    problem: Mutex<String>,
}

impl Installer {
    /// Returns the script. Logs why it cannot be read.
    fn script(&self, path: &Path) -> Option<Arc<Script>> {
        let read = self.read(path);
        let problem = read.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let mut last = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != problem {
            last.clone_from(&problem);
            if !problem.is_empty() {
                let file = path.display();
                tracing::error!(%file, problem, "the file of installer.script cannot be sent");
            }
        }
        read.ok()
    }

    fn read(&self, path: &Path) -> io::Result<Arc<Script>> {
        // Opening a pipe would wait for ever.
        if !path.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let file = File::open(path)?;
        let before = stamp(&file.metadata()?);
        let mut known = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(script) = known.as_ref().filter(|script| script.stamp == before) {
            return Ok(Arc::clone(script));
        }
        let mut content = Vec::new();
        (&file).take(LARGEST + 1).read_to_end(&mut content)?;
        if content.len() as u64 > LARGEST {
            return Err(io::Error::other(format!("it is larger than {LARGEST} bytes")));
        }
        if stamp(&file.metadata()?) != before {
            return Err(io::Error::other("it is being written"));
        }
        let digest = hex(&Sha256::digest(&content));
        let script = Arc::new(Script { stamp: before, content: content.into(), digest });
        *known = Some(Arc::clone(&script));
        Ok(script)
    }
}

/// Returns the configured script, read on a thread that may block.
async fn script(state: &State, installer: &Data<Installer>) -> Option<Arc<Script>> {
    let path = state.live.config.load().installer.script.clone();
    if path.as_os_str().is_empty() {
        return None;
    }
    let installer = installer.clone();
    block(move || installer.script(&path)).await.ok().flatten()
}

/// `GET /iptunnel-install.sh`
#[utoipa::path(
    get,
    path = "/iptunnel-install.sh",
    operation_id = "installer",
    tag = "Main stack",
    summary = "The installer",
    description = "Sends the main stack's installer, if the operator has configured one. The ETag changes \
        with the script.",
    responses((
        status = 200,
        description = "The script.",
        body = String,
        content_type = "text/x-shellscript",
        example = "#!/usr/bin/env bash\n",
    )),
)]
pub async fn installer(
    state: Data<State>,
    installer: Data<Installer>,
    request: HttpRequest,
) -> HttpResponse {
    match script(&state, &installer).await {
        Some(script) => {
            let kind = "text/x-shellscript; charset=utf-8";
            tagged(&request, &format!("\"{}\"", script.digest), kind, script.content.clone())
        }
        None => failure_for(&request, ApiError::not_found()),
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct Version<'a> {
    #[schema(examples("2026.03.31"))]
    version: &'a str,
    /// What is new.
    #[schema(examples("Faster check-ins."))]
    notes: &'a str,
    /// Where the installer is loaded from.
    #[schema(examples("http://127.0.0.1:8080/iptunnel-install.sh"))]
    url: String,
    /// The SHA-256 of the installer.
    #[schema(
        pattern = "^[0-9a-f]{64}$",
        examples("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    )]
    sha256: &'a str,
}

async fn announce(
    state: &State,
    installer: &Data<Installer>,
    request: &HttpRequest,
) -> HttpResponse {
    let config = state.live.config.load_full();
    let version = &config.installer.version;
    let script = match version.is_empty() {
        true => None,
        false => script(state, installer).await,
    };
    let Some(script) = script else { return failure_for(request, ApiError::not_found()) };
    let url = format!("{}{SCRIPT}", config.server.public_url.origin());
    let notes = &config.installer.notes;
    json(StatusCode::OK, &Version { version, notes, url, sha256: &script.digest })
}

/// `GET /version.json`
#[utoipa::path(
    get,
    path = "/version.json",
    operation_id = "installer_version",
    tag = "Main stack",
    summary = "The installer's version",
    description = "Announces the main stack's installer, if the operator has configured one.",
    responses((status = 200, description = "The version.", body = Version<'static>)),
)]
pub async fn version(
    state: Data<State>,
    installer: Data<Installer>,
    request: HttpRequest,
) -> HttpResponse {
    announce(&state, &installer, &request).await
}

/// `GET /api/v2/version`
#[utoipa::path(
    get,
    path = "/api/v2/version",
    operation_id = "v2_installer_version",
    tag = "Main stack",
    summary = "The installer's version",
    description = "The same as /version.json: a bare object, as the main stack's updater reads it.",
    responses((status = 200, description = "The version.", body = Version<'static>)),
)]
pub async fn v2_version(
    state: Data<State>,
    installer: Data<Installer>,
    request: HttpRequest,
) -> HttpResponse {
    announce(&state, &installer, &request).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_changed_script_is_read_again_and_an_unchanged_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("install.sh");
        let installer = Installer::default();
        fs::write(&path, "one").unwrap();
        let first = installer.script(&path).unwrap();
        assert!(Arc::ptr_eq(&first, &installer.script(&path).unwrap()));
        fs::write(&path, "another").unwrap();
        let second = installer.script(&path).unwrap();
        assert_eq!((&first.content[..], &second.content[..]), (&b"one"[..], &b"another"[..]));
        assert_ne!(first.digest, second.digest);
    }

    #[test]
    fn what_is_no_file_or_too_large_is_not_sent() {
        let folder = tempfile::tempdir().unwrap();
        let installer = Installer::default();
        assert!(installer.script(&folder.path().join("missing")).is_none());
        assert!(installer.script(folder.path()).is_none());
        assert!(installer.script(Path::new("/dev/zero")).is_none());
        let path = folder.path().join("large");
        File::create(&path).unwrap().set_len(LARGEST).unwrap();
        assert_eq!(installer.script(&path).unwrap().content.len() as u64, LARGEST);
        File::create(&path).unwrap().set_len(LARGEST + 1).unwrap();
        assert!(installer.script(&path).is_none());
        assert!(installer.problem.lock().unwrap().contains("larger than"));
    }
}
