//! Several of our servers on one database.

use super::postgres::Cluster;
use crate::failure::Result;
use crate::options::Options;
use crate::requests::Caller;
use crate::scenario;
use crate::server::{Server, Workspace};

/// The servers with their shared keys.
pub struct Fleet {
    /// The folder with the keys, and with one watermark file per server.
    pub workspace: Workspace,
    /// The servers, in any order.
    pub servers: Vec<Server>,
}

impl Fleet {
    /// Starts `count` servers on a new database.
    pub async fn start(
        options: &Options,
        cluster: &Cluster,
        name: &str,
        count: usize,
        settings: &[&str],
    ) -> Result<Self> {
        cluster.sql(&format!("CREATE DATABASE {name}")).await?;
        let workspace = crate::workspace(options)?;
        let url = cluster.url(name, options.delay)?;
        let mut servers = Vec::new();
        for number in 0..count {
            let mut all = scenario::settings(&options.settings);
            all.extend(settings.iter().map(|setting| (*setting).to_owned()));
            all.push("storage.backend=postgres".into());
            all.push(format!("storage.url={url}"));
            all.push("server.trusted_proxies=127.0.0.1".into());
            let path = workspace.path().join(format!("{number}.redb"));
            all.push(format!("storage.path={}", path.display()));
            servers.push(Server::start(&options.server, &workspace, &all).await?);
        }
        Ok(Self { workspace, servers })
    }

    /// Opens so many connections to all servers together, equally many to each. Each has its own address and so its
    /// own counter, as installers do.
    pub async fn callers(&self, connections: usize) -> Result<Vec<Caller>> {
        let mut callers = Vec::new();
        for server in &self.servers {
            let share = connections / self.servers.len();
            callers.extend(scenario::open_callers(server.public, share).await?);
        }
        give_addresses(&mut callers);
        Ok(callers)
    }

    /// Stops all servers in order after a successful measurement. A failure gets the end of a server's log.
    pub async fn finish<T>(self, outcome: Result<T>) -> Result<T> {
        let mut stopped = Ok(());
        for server in self.servers {
            stopped = server.finish(stopped).await;
        }
        outcome.and_then(|value| stopped.map(|()| value))
    }
}

/// Gives each caller its own address, for servers that trust the address in a request.
pub fn give_addresses(callers: &mut [Caller]) {
    for (number, caller) in callers.iter_mut().enumerate() {
        let address = format!("9.9.{}.{}", number / 256, number % 256);
        caller.writer.forwarded_for = Some(address);
    }
}
