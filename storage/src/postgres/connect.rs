//! The way to the database: its address, TLS as libpq's `sslmode` names it, a pool of connections.

use super::tls::Tls;
use crate::OpenError;
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts};
use std::time::{Duration, Instant};
use tokio_postgres::{Config, NoTls};

/// Connections of one server: one commits, one charges limits, one follows; the others read.
pub(super) const CONNECTIONS: usize = 8;
/// How long a connection may take to come about, to each address.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a reader waits for a connection before the store counts as away.
const PATIENCE: Duration = Duration::from_secs(5);
/// What every session is told. A server that stands still in the middle of a transaction must not
/// hold its rows for long; no statement of this program runs for minutes. Statements are planned once,
/// and by index: what is planned while a table is empty would else go on to look at all of it when it
/// is full. (Those that join an array to a table are planned anew every few seconds: see `Planned`.)
const OPTIONS: &str = "-c idle_in_transaction_session_timeout=5000 -c statement_timeout=60000 \
     -c timezone=UTC -c client_min_messages=warning -c plan_cache_mode=force_generic_plan \
     -c enable_seqscan=off -c jit=off";

/// When statements that join arrays to tables were last planned. The database takes an array for ten
/// values, and a table for as large as it was then: planned while a table was nearly empty, such a
/// statement would go on to read all of it for each value.
#[derive(Debug, Default)]
pub(super) struct Planned(Option<Instant>);

impl Planned {
    /// For how long a plan is good: a table does not grow by much in that time.
    const FOR: Duration = Duration::from_secs(5);

    /// Lets the connection plan anew, where that is due.
    pub(super) async fn anew(
        &mut self,
        client: &tokio_postgres::Client,
    ) -> Result<(), tokio_postgres::Error> {
        if self.0.is_none_or(|at| at.elapsed() >= Self::FOR) {
            client.batch_execute("DISCARD PLANS").await?;
            self.0 = Some(Instant::now());
        }
        Ok(())
    }
}

/// Where the database is and how to reach it: a URL as libpq takes it.
///
/// # Errors
/// What is wrong with it. The text never holds the URL, which may hold a password.
pub(super) fn pool(url: &str) -> Result<Pool, OpenError> {
    let wrong = |problem: String| OpenError::Engine(format!("storage.url: {problem}"));
    let (url, tls) = Tls::take_from(url).map_err(wrong)?;
    let mut config: Config = url.parse().map_err(|error: tokio_postgres::Error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        wrong(cause.unwrap_or_else(|| error.to_string()))
    })?;
    config.ssl_mode(tls.mode());
    config.connect_timeout(CONNECT);
    config.tcp_user_timeout(Duration::from_secs(10));
    config.keepalives_idle(Duration::from_secs(10));
    config.application_name("iptunnel-server");
    let own = config.get_options().map(|own| format!(" {own}")).unwrap_or_default();
    config.options(format!("{OPTIONS}{own}"));
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = match tls.connector().map_err(wrong)? {
        Some(connector) => Manager::from_config(config, connector, recycling),
        None => Manager::from_config(config, NoTls, recycling),
    };
    let timeouts =
        Timeouts { wait: Some(PATIENCE), create: Some(PATIENCE * 2), recycle: Some(PATIENCE) };
    let pool = Pool::builder(manager).max_size(CONNECTIONS).timeouts(timeouts);
    pool.runtime(Runtime::Tokio1).build().map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_its_password() {
        for (url, words) in [
            ("postgres://u:geheim@h/d?sslmode=maybe", "sslmode must be"),
            ("postgres://u:geheim@h/d?sslmode=verify-full", "sslrootcert"),
            ("postgres://u:geheim@h:port/d", "storage.url"),
            ("postgres://u:geheim@h/d?nonsense=1", "nonsense"),
            ("postgres://u:geheim@h/d?sslmode=verify-ca&sslrootcert=/none", "/none"),
        ] {
            let error = pool(url).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(words) && !error.contains("geheim"), "{url}: {error}");
        }
    }

    #[test]
    fn several_hosts_and_all_modes_are_taken() {
        for query in [
            "",
            "?sslmode=disable",
            "?sslmode=allow",
            "?sslmode=prefer&target_session_attrs=read-write",
            "?target_session_attrs=read-write&sslmode=require",
        ] {
            assert!(pool(&format!("postgres://u:p@h1:5432,h2:5433/d{query}")).is_ok(), "{query}");
        }
    }
}
