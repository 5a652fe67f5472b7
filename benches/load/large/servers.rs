//! Registers servers over HTTP and checks each of them in.

use std::time::Duration;

use tokio::time::sleep;

use super::{Bench, CONNECTIONS};
use crate::closed_loop;
use crate::failure::Result;
use crate::scenario::{CHECK_IN_FLUSH, open_callers};
use crate::server::{Memory, Server};
use crate::statistics::Summary;
use crate::steps::{self, Registration};

/// The cost of the servers.
pub struct Registered {
    /// The number of servers.
    pub count: usize,
    /// The memory before the first registration.
    pub idle: Memory,
    /// The memory after all check-ins are on disk.
    pub checked_in: Memory,
    /// The figures of the registrations.
    pub register: Summary,
    /// The figures of the check-ins.
    pub check_in: Summary,
}

/// Registers servers on an empty folder.
pub async fn register(bench: &Bench<'_>, count: usize) -> Result<Registered> {
    eprintln!("registering {count} servers");
    let server = bench.start().await?;
    let registrations = Registration::all(&bench.workspace.master_token()?, count);
    let outcome = measure(&server, registrations).await;
    server.finish(outcome).await
}

async fn measure(server: &Server, registrations: Vec<Registration>) -> Result<Registered> {
    sleep(Duration::from_secs(1)).await;
    let idle = server.memory()?;
    let count = registrations.len();
    let mut callers = open_callers(server.public, CONNECTIONS).await?;
    let (paths, register) = closed_loop::run(steps::REGISTER, &mut callers, registrations).await?;
    let (_, check_in) = closed_loop::run(steps::CHECK_IN, &mut callers, paths).await?;
    // The last check-in is written within one interval, plus the time of the write.
    sleep(CHECK_IN_FLUSH * 2).await;
    Ok(Registered { count, idle, checked_in: server.memory()?, register, check_in })
}
