//! Backups: an operator asks for one, and sees how it went.

use super::auth::Operator;
use super::console::{Console, failed};
use super::servers::invalid;
use crate::age::Recipient;
use crate::http::connection::Administrator;
use crate::http::errors::ApiError;
use crate::http::respond::success;
use crate::state::backups::{self, Made, NotBegun, Progress, Wanted};
use actix_web::http::StatusCode;
use actix_web::web::{Bytes, Data, block};
use actix_web::{HttpRequest, HttpResponse};
use iptunnel_domain::Refusal;
use iptunnel_domain::audit::Actor;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use zeroize::Zeroizing;

/// The body of a request. Only the command line may name a folder and what the secrets are encrypted to:
/// whoever it is may use the server's files anyway.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct BackupBody {
    /// The folder of the backup, by an absolute path.
    folder: Option<PathBuf>,
    /// An address of age.
    recipient: Option<String>,
    passphrase: Option<String>,
}

impl BackupBody {
    fn read(body: &[u8], is_command: bool) -> Result<Self, ApiError> {
        if body.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        let read: Self = serde_json::from_slice(body).map_err(|_| Refusal::BodyNotJson)?;
        let names = read.folder.is_some() || read.recipient.is_some() || read.passphrase.is_some();
        if names && !is_command {
            return Err(invalid(
                "Only a command on the server's machine may name folder, recipient and passphrase. Others \
                 use the folder and the recipient of the settings.",
            ));
        }
        Ok(read)
    }

    fn wanted(self, operator: &Operator) -> Result<Wanted, ApiError> {
        if self.folder.as_ref().is_some_and(|folder| folder.is_relative()) {
            return Err(invalid("folder must be an absolute path."));
        }
        let passphrase = self.passphrase.map(Zeroizing::new).map(Recipient::passphrase);
        let passphrase = passphrase.transpose().map_err(|error| invalid(&format!("{error}.")))?;
        let address = self.recipient.map(|text| {
            let words = "recipient must be an address of age, which begins with age1.";
            Recipient::address(&text).ok_or_else(|| invalid(words))
        });
        let keys = passphrase.or(address.transpose()?);
        let (caller, from) = operator.who();
        Ok(Wanted {
            folder: self.folder,
            keys,
            actor: Actor::Operator,
            by: caller.shown().to_owned(),
            from: Some(from),
        })
    }
}

#[derive(Serialize)]
struct Begun {
    state: &'static str,
    name: String,
}

#[derive(Serialize)]
struct Done {
    state: &'static str,
    #[serde(flatten)]
    made: Made,
}

/// `POST /admin/backup`: makes a backup. Answers when it is made, or after the time that a request may take:
/// then it goes on, and `GET /admin/backup` tells how.
pub async fn json_make(
    console: Data<Console>,
    operator: Operator,
    request: HttpRequest,
    body: Bytes,
) -> HttpResponse {
    let is_command = request.conn_data::<Administrator>().is_some();
    let wanted = BackupBody::read(&body, is_command).and_then(|body| body.wanted(&operator));
    let begun = wanted.and_then(|wanted| {
        backups::begin(&console.state, wanted).map_err(|why| match why {
            NotBegun::Busy => ApiError::backup_running(),
            NotBegun::Shared => ApiError::backup_of_database(),
        })
    });
    let (name, pending) = match begun {
        Ok(begun) => begun,
        Err(error) => return failed(&request, &error),
    };
    match tokio::time::timeout(console.state.live.patience(), pending).await {
        Ok(Ok(Ok(made))) => success(StatusCode::OK, Done { state: "made", made }, "Backup made"),
        Ok(Ok(Err(why))) => failed(&request, &ApiError::backup_failed(why)),
        Ok(Err(_)) => failed(&request, &ApiError::internal()),
        Err(_) => {
            success(StatusCode::ACCEPTED, Begun { state: "running", name }, "Backup is being made")
        }
    }
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    progress: Progress,
    folder: PathBuf,
    every_hours: u64,
    keep: usize,
    /// The backups in the folder, the newest first.
    kept: Vec<Made>,
}

/// `GET /admin/backup`: what is being made, the last one, the last failure since, and those in the folder.
pub async fn json_show(console: Data<Console>, request: HttpRequest) -> HttpResponse {
    let state = console.state.clone();
    let config = state.live.config.load_full();
    let (folder, of_thread) = (config.backup.folder.clone(), state.clone());
    let listed = block(move || backups::list(&of_thread, &folder)).await;
    let mut kept = match listed {
        Ok(Ok(kept)) => kept,
        Ok(Err(error)) => return failed(&request, &ApiError::backup_failed(error.to_string())),
        Err(_) => return failed(&request, &ApiError::internal()),
    };
    kept.reverse();
    let shown = Shown {
        progress: state.backups.progress(),
        folder: config.backup.folder.clone(),
        every_hours: config.backup.every_hours,
        keep: config.backup.keep,
        kept,
    };
    success(StatusCode::OK, shown, "Backups")
}
