//! A separate database for each test that needs one.

use iptunnel_storage::PostgresStore;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use tokio_postgres::{Client, NoTls};

/// A database that is dropped at the end of the test.
pub struct Database {
    /// Its URL.
    pub url: String,
    /// The URL of the cluster that contains it.
    cluster: String,
    name: String,
}

impl Database {
    /// Creates an empty database in the cluster that `TEST_POSTGRES` names (`scripts/test` starts one), if
    /// `TEST_SERVERS` sets how many servers share it. Otherwise the tests run on the embedded engine and
    /// this is `None`.
    pub fn where_wanted() -> Option<Arc<Self>> {
        Self::create(|_| String::new())
    }

    /// The same with the schema. A server takes it for a store, and so makes no secrets.
    pub fn with_schema() -> Option<Arc<Self>> {
        Self::create(|cluster| format!("TEMPLATE {} STRATEGY file_copy", template(cluster)))
    }

    fn create(how: impl FnOnce(&str) -> String) -> Option<Arc<Self>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        std::env::var("TEST_SERVERS").ok()?;
        let cluster = std::env::var("TEST_POSTGRES").expect("scripts/test starts a cluster");
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let name = format!("test_{}_{number}", std::process::id());
        execute(&cluster, &format!("CREATE DATABASE {name} {}", how(&cluster)));
        Some(Arc::new(Self { url: format!("{cluster}/{name}"), cluster, name }))
    }

    /// Returns how many servers are registered and how many of them are revoked. Deleted ones do not count.
    pub fn registered(&self) -> [i64; 2] {
        connected(self.url.clone(), async |client| {
            let sql =
                "SELECT count(*), count(*) FILTER (WHERE revoked) FROM server WHERE NOT deleted";
            let row = client.query_one(sql, &[]).await.unwrap();
            [row.get(0), row.get(1)]
        })
    }

    /// Makes the database that of a minute ago, when it comes to the servers that run.
    pub fn age_by_a_minute(&self) {
        connected(self.url.clone(), async |client| {
            let sql = "UPDATE process SET seen_at = seen_at - interval '1 minute'";
            client.batch_execute(sql).await.unwrap();
        });
    }

    /// Lets the time of the server that delivers webhooks be over.
    pub fn end_webhook_lease(&self) {
        connected(self.url.clone(), async |client| {
            let sql = "UPDATE webhook_lease SET until = clock_timestamp() - interval '1 second'";
            client.batch_execute(sql).await.unwrap();
        });
    }

    /// Returns the highest counter of any limit on activates.
    pub fn activates_counted(&self) -> i64 {
        connected(self.url.clone(), async |client| {
            let sql =
                "SELECT coalesce(max(used), 0)::bigint FROM counter WHERE policy LIKE 'activate%'";
            client.query_one(sql, &[]).await.unwrap().get(0)
        })
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        execute(&self.cluster, &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
    }
}

/// Returns the name of a database with the schema and nothing else. To make the schema for each test anew
/// would take a fifth of the time of all of them. (The storage crate's own tests do make it anew.)
fn template(cluster: &str) -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let name = format!("test_template_{}", std::process::id());
        let url = format!("{cluster}/{name}");
        execute(cluster, &format!("CREATE DATABASE {name}"));
        drop(PostgresStore::open(&url).unwrap());
        connected(url, async |client| client.batch_execute("DELETE FROM process").await.unwrap());
        // A database with connections, such as those that end just now, is no template.
        execute(
            cluster,
            &format!(
                "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE datname = '{name}'"
            ),
        );
        name
    })
}

/// Runs a statement on the cluster's own database.
fn execute(cluster: &str, sql: &str) {
    let sql = sql.to_owned();
    connected(format!("{cluster}/postgres"), async move |client| {
        client.batch_execute(&sql).await.unwrap();
    });
}

/// Runs `does` over a connection of its own.
fn connected<T: Send + 'static>(
    url: String,
    does: impl AsyncFnOnce(Client) -> T + Send + 'static,
) -> T {
    // Uses its own thread, since a test may run inside an async runtime.
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
            tokio::spawn(connection);
            does(client).await
        })
    };
    std::thread::spawn(run).join().unwrap()
}
