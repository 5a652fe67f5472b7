//! Compares activates while a backup is made with activates while none is, on one server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::client::Connection;
use crate::failure::{Context, Result};
use crate::requests::RequestWriter;
use crate::server::Workspace;

/// How long to wait before asking again.
const PAUSE: Duration = Duration::from_millis(20);

/// Returns the settings for this measurement: where backups go, and that few are kept.
pub fn settings(workspace: &Workspace) -> [String; 2] {
    let folder = workspace.path().join("backups");
    [format!("backup.folder={}", folder.display()), "backup.keep=1".into()]
}

/// Backups, one after the other.
pub struct Backups {
    is_over: Arc<AtomicBool>,
    task: JoinHandle<Result<Made>>,
}

/// The backups that were made.
#[derive(Clone, Copy, Default)]
pub struct Made {
    /// How many.
    pub count: u32,
    /// The bytes of the last one.
    pub size: u64,
    /// How long all of them took.
    pub took: Duration,
}

impl Backups {
    /// Begins to make backups with the master token of the server whose operators' listener is at `admin`.
    pub fn begin(admin: SocketAddr, token: String) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(make(admin, token, Arc::clone(&is_over)));
        Self { is_over, task }
    }

    /// Lets the last one end.
    pub async fn end(self) -> Result<Made> {
        self.is_over.store(true, Ordering::Relaxed);
        self.task.await.context("the backups have ended")?
    }
}

async fn make(admin: SocketAddr, token: String, is_over: Arc<AtomicBool>) -> Result<Made> {
    let mut writer = RequestWriter::new(admin.to_string());
    writer.bearer = Some(token);
    let mut connection = Connection::open(admin).await?;
    let mut made = Made::default();
    while !is_over.load(Ordering::Relaxed) {
        writer.post_json("/admin/backup", &[]);
        let begun = Instant::now();
        let answer = connection.exchange(writer.bytes()).await?;
        match answer.status {
            200 => made.size = size(answer.body).unwrap_or(made.size),
            202 => {
                writer.get("/admin/backup");
                loop {
                    let answer = connection.exchange(writer.bytes()).await?;
                    if !is_running(answer.body) {
                        made.size = size(answer.body).unwrap_or(made.size);
                        break;
                    }
                    sleep(PAUSE).await;
                }
            }
            _ => return Err(answer.unexpected("POST /admin/backup", 200)),
        }
        made.count += 1;
        made.took += begun.elapsed();
    }
    Ok(made)
}

fn is_running(body: &[u8]) -> bool {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    body.pointer("/data/running").is_some_and(|running| !running.is_null())
}

fn size(body: &[u8]) -> Option<u64> {
    let body: Value = serde_json::from_slice(body).ok()?;
    // Of the backup that was made, or of the last one of all.
    body.pointer("/data/size").or(body.pointer("/data/last/size"))?.as_u64()
}
