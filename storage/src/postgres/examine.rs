//! Whether a database keeps what a store promises, as far as it can be asked.

use super::{migrate, unreadable};
use crate::{Finding, Grade, ReadError};
use deadpool_postgres::Client;
use tokio_postgres::Row;

/// Connections that one server opens, at most: two are taken out of the pool for good.
const CONNECTIONS: i64 = super::connect::CONNECTIONS as i64 + 2;
/// Updates of the presence table before their share in place says anything.
const ENOUGH_UPDATES: i64 = 10_000;
/// Per cent of the check-ins that must rewrite their row in its own page: the others write to the
/// index as well, and leave the table to grow.
const HOT: i64 = 95;
/// The oldest version with all that the schema uses (`gen_random_uuid`).
const OLDEST: i32 = 130_000;

const ASK: &str = "SELECT
    current_setting('server_version_num')::integer AS version,
    current_setting('server_version') AS version_name,
    pg_is_in_recovery() AS standby,
    current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('synchronous_standby_names') AS names,
    (SELECT count(*) FROM pg_stat_replication) AS standbys,
    (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')) AS synchronous,
    (SELECT count(*) FROM pg_stat_replication WHERE sync_state IS NULL) AS unseen,
    current_setting('max_connections')::bigint
        - current_setting('superuser_reserved_connections')::bigint
        - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS free,
    (SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'presence') AS updates,
    (SELECT n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'presence') AS hot";

/// What the database's clock says, in milliseconds since the Unix epoch.
pub(super) async fn store_clock(client: &Client) -> Result<u64, ReadError> {
    let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
    let now = client.prepare_cached(now).await.map_err(unreadable)?;
    let row = client.query_one(&now, &[]).await.map_err(unreadable)?;
    row.try_get(0).map(i64::cast_unsigned).map_err(unreadable)
}

fn get<'row, T: tokio_postgres::types::FromSql<'row>>(
    row: &'row Row,
    column: &str,
) -> Result<T, ReadError> {
    row.try_get(column).map_err(unreadable)
}

fn finding(grade: Grade, what: String, why: &'static str, mend: &str) -> Finding {
    Finding { grade, what, why, mend: mend.to_owned() }
}

pub(super) async fn examine(client: &Client) -> Result<Vec<Finding>, ReadError> {
    let row = client.query_one(ASK, &[]).await.map_err(unreadable)?;
    let mut findings = Vec::new();
    let mut judge = |good: bool, grade: Grade, what: String, why: &'static str, mend: &str| {
        findings.push(finding(if good { Grade::Good } else { grade }, what, why, mend));
    };
    let version: &str = get(&row, "version_name")?;
    judge(
        get::<i32>(&row, "version")? >= OLDEST,
        Grade::Breaks,
        format!("version {version}"),
        "the schema needs PostgreSQL 13 or later",
        "upgrade PostgreSQL",
    );
    let standby: bool = get(&row, "standby")?;
    judge(
        !standby,
        Grade::Breaks,
        if standby { "this is a standby".into() } else { "this is a primary".into() },
        "a standby takes no commits",
        "name all hosts in storage.url, with target_session_attrs=read-write",
    );
    for (setting, why) in [
        ("fsync", "without it a commit that was answered may be lost with the power"),
        ("full_page_writes", "without it a page may be torn when the power fails"),
    ] {
        let value: &str = get(&row, setting)?;
        judge(
            value == "on",
            Grade::Breaks,
            format!("{setting} = {value}"),
            why,
            &format!("ALTER SYSTEM SET {setting} = on; SELECT pg_reload_conf();"),
        );
    }
    let commit: &str = get(&row, "synchronous_commit")?;
    let (standbys, synchronous): (i64, i64) = (get(&row, "standbys")?, get(&row, "synchronous")?);
    judge(
        commit == "on" || commit == "remote_apply" || (standbys == 0 && commit != "off"),
        Grade::Breaks,
        format!("synchronous_commit = {commit}"),
        "a commit is answered before it is on every disk that it must be on",
        "ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf();",
    );
    let (names, unseen): (&str, i64) = (get(&row, "names")?, get(&row, "unseen")?);
    let standbys_are = format!(
        "{standbys} standbys, {synchronous} of them synchronous; synchronous_standby_names = '{names}'"
    );
    let of_standbys = if unseen > 0 {
        (
            Grade::Warns,
            "what standbys do is not shown to this role",
            "GRANT pg_monitor TO the role of storage.url;",
        )
    } else if standbys > 0 && names.is_empty() {
        (
            Grade::Breaks,
            "a standby that has not heard of a commit, once promoted, brings a spent code back",
            "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'; SELECT pg_reload_conf();",
        )
    } else if !names.is_empty() && synchronous == 0 {
        (
            Grade::Warns,
            "every commit waits for a standby, and none is there",
            "start the standby, or, knowing what it means, take its name out of \
             synchronous_standby_names",
        )
    } else {
        (Grade::Good, "a failover loses nothing that was answered", "")
    };
    let (grade, why, mend) = of_standbys;
    judge(grade == Grade::Good, grade, standbys_are, why, mend);
    let free: i64 = get(&row, "free")?;
    judge(
        free >= CONNECTIONS,
        Grade::Warns,
        format!("{free} connections are free"),
        "each server opens up to ten",
        "ALTER SYSTEM SET max_connections = 200; and start PostgreSQL again",
    );
    let updates = get::<Option<i64>>(&row, "updates")?.unwrap_or_default();
    let hot = get::<Option<i64>>(&row, "hot")?.unwrap_or_default();
    if updates >= ENOUGH_UPDATES {
        let share = hot.saturating_mul(100) / updates;
        judge(
            share >= HOT,
            Grade::Warns,
            format!("{share} % of check-ins stay in their page (HOT)"),
            "the others write to the index as well, and the table grows",
            "VACUUM FULL presence; and look for transactions that stay open for long",
        );
    }
    Ok(findings)
}

/// What there is to say of the store in the database, which may have none yet. A server that runs goes
/// on when a newer one has brought the schema further: this is for whoever wants to start one.
pub(super) async fn of_store(client: &Client) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let Some(found) = migrate::step_of(client).await? else {
        let what = "there is no schema yet".to_owned();
        return Ok(vec![finding(Grade::Good, what, "the first server that starts makes it", "")]);
    };
    let known = migrate::known();
    let grade = if found > known { Grade::Breaks } else { Grade::Good };
    let schema = finding(
        grade,
        format!("schema {found}, and this program knows {known}"),
        "a program does not start on a schema that a newer one has made",
        "start the newer program",
    );
    let epoch = client.query_one("SELECT number, since::text FROM epoch", &[]).await?;
    let (epoch, since): (i64, &str) = (epoch.try_get(0)?, epoch.try_get(1)?);
    let epoch = finding(
        Grade::Good,
        format!("epoch {epoch}, since {since}"),
        "it grows where the database was found to lack what had been acknowledged",
        "",
    );
    Ok(vec![schema, epoch])
}
