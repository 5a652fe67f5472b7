//! Some of our servers on one database.

use super::postgres::Cluster;
use crate::failure::Result;
use crate::options::Options;
use crate::requests::Caller;
use crate::scenario;
use crate::server::{Server, Workspace};

/// The servers, with the keys that they share.
pub struct Fleet {
    /// Each has a mark of its own in it.
    pub workspace: Workspace,
    /// In no order.
    pub servers: Vec<Server>,
}

impl Fleet {
    /// Starts `count` servers on a database of their own.
    pub async fn start(
        options: &Options,
        cluster: &Cluster,
        name: &str,
        count: usize,
        settings: &[&str],
    ) -> Result<Self> {
        cluster.sql(&format!("CREATE DATABASE {name}")).await?;
        let workspace = crate::workspace(options)?;
        let mut servers = Vec::new();
        for number in 0..count {
            let mut all = scenario::settings(&options.settings);
            all.extend(settings.iter().map(|setting| (*setting).to_owned()));
            all.push("storage.backend=postgres".into());
            all.push(format!("storage.url={}", cluster.url(name)));
            all.push("server.trusted_proxies=127.0.0.1".into());
            let path = workspace.path().join(format!("{number}.redb"));
            all.push(format!("storage.path={}", path.display()));
            servers.push(Server::start(&options.server, &workspace, &all).await?);
        }
        Ok(Self { workspace, servers })
    }

    /// Connections, as many to each. Each has an address of its own, and with it a counter, as installers
    /// have.
    pub async fn callers(&self, connections: usize) -> Result<Vec<Caller>> {
        let mut callers = Vec::new();
        for server in &self.servers {
            let share = connections / self.servers.len();
            callers.extend(scenario::open_callers(server.public, share).await?);
        }
        give_addresses(&mut callers);
        Ok(callers)
    }

    /// Ends all of them in order after a measurement that went well, else says what a log said.
    pub async fn finish<T>(self, outcome: Result<T>) -> Result<T> {
        let mut stopped = Ok(());
        for server in self.servers {
            stopped = server.finish(stopped).await;
        }
        outcome.and_then(|value| stopped.map(|()| value))
    }
}

/// Gives each caller an address of its own, for servers that trust whoever says so.
pub fn give_addresses(callers: &mut [Caller]) {
    for (number, caller) in callers.iter_mut().enumerate() {
        let address = format!("9.9.{}.{}", number / 256, number % 256);
        caller.writer.forwarded_for = Some(address);
    }
}
