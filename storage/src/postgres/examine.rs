//! Examines whether a database keeps the promises of a store, as far as it can be asked.

use super::connect::{Answer, Connector, Found, PROMOTE, Seen, left_behind};
use super::{migrate, told, trial, unreadable};
use crate::{Finding, Grade, ReadError};
use tokio_postgres::{Client, Error, Row, SimpleQueryMessage};

/// The most connections that one server opens.
const CONNECTIONS: i64 = super::connect::CONNECTIONS as i64;
/// Updates of the presence table that are needed before the share of in-place updates is
/// meaningful.
const ENOUGH_UPDATES: i64 = 10_000;
/// The percentage of check-ins that must rewrite their row in its own page. The others write to the
/// index as well and let the table grow.
const HOT: i64 = 95;
/// The oldest version with all that the schema uses (`gen_random_uuid`).
const OLDEST: i32 = 130_000;

/// A running backup (`pg_basebackup`, `pg_receivewal`) replicates like a standby. It replays
/// nothing, so it does not count as one.
const ASK: &str = "SELECT
    current_setting('server_version_num')::integer AS version,
    current_setting('server_version') AS version_name,
    pg_is_in_recovery() AS standby,
    current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('synchronous_standby_names') AS names,
    (SELECT count(*) FROM pg_stat_replication WHERE replay_lsn IS NOT NULL) AS standbys,
    (SELECT string_agg(DISTINCT quote_ident(application_name), ', ') FROM pg_stat_replication
        WHERE replay_lsn IS NOT NULL) AS called,
    (SELECT count(*) FROM pg_stat_replication
        WHERE replay_lsn IS NOT NULL AND sync_state IN ('sync', 'quorum')) AS synchronous,
    (SELECT count(*) FROM pg_stat_replication
        WHERE replay_lsn IS NULL AND sync_state IN ('sync', 'quorum')) AS copies,
    (SELECT count(*) FROM pg_stat_replication WHERE sync_state IS NULL) AS unseen,
    current_setting('max_connections')::bigint
        - current_setting('superuser_reserved_connections')::bigint
        - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS free,
    (SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'presence') AS updates,
    (SELECT n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'presence') AS hot";

/// The users of connections, those with the most first.
const HOLDERS: &str = "SELECT coalesce(nullif(application_name, ''), usename, 'others'), count(*)
     FROM pg_stat_activity WHERE backend_type = 'client backend'
     GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 5";

/// Tables with locks of others that a commit has to wait for.
const LOCKS: &str = "SELECT DISTINCT relname, pg_locks.pid,
         coalesce(nullif(application_name, ''), usename, 'somebody') AS holder,
         coalesce(extract(epoch FROM clock_timestamp() - xact_start)::bigint, 0) AS seconds
     FROM pg_locks JOIN pg_class ON pg_class.oid = relation
     LEFT JOIN pg_stat_activity ON pg_stat_activity.pid = pg_locks.pid
     WHERE granted AND locktype = 'relation' AND relkind = 'r'
     AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'code'::regclass)
     AND mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
     AND pg_locks.pid <> pg_backend_pid() ORDER BY relname, pg_locks.pid";

/// The advice if commits wait for a standby.
const WITHOUT_STANDBY: &str = "start the standby. If it is lost, first make sure that this is still the primary \
     and that no standby was promoted, and only then take its name out of synchronous_standby_names";

/// Returns the time of the database's clock, in milliseconds since the Unix epoch. It is one
/// question and one answer, whose duration tells how exactly the clock is known.
pub(super) async fn store_clock(client: &Client) -> Result<u64, ReadError> {
    let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
    let said = client.simple_query(now).await.map_err(unreadable)?;
    let milliseconds = said.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse::<i64>().ok(),
        _ => None,
    });
    let milliseconds =
        milliseconds.ok_or_else(|| ReadError("the database returned no time".into()))?;
    Ok(milliseconds.cast_unsigned())
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

/// What a base backup needs.
const ASK_FOR_BACKUP: &str = "SELECT
    current_setting('server_version') AS version_name,
    current_setting('wal_level') AS wal_level,
    current_setting('max_wal_senders')::integer AS senders,
    (SELECT count(*) FROM pg_stat_replication) AS used,
    current_setting('archive_mode') AS archive_mode,
    pg_size_pretty(pg_database_size(current_database())) AS size,
    (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user) AS replicates,
    current_user::text AS role";

/// Returns findings on whether `pg_basebackup` can take a backup.
pub(super) async fn examine_backup(client: &Client) -> Result<Vec<Finding>, ReadError> {
    let row = client.query_one(ASK_FOR_BACKUP, &[]).await.map_err(unreadable)?;
    let mut findings = Vec::new();
    let mut judge = |good: bool, grade: Grade, what: String, why: &'static str, mend: &str| {
        findings.push(finding(if good { Grade::Good } else { grade }, what, why, mend));
    };
    let (version, size): (&str, &str) = (get(&row, "version_name")?, get(&row, "size")?);
    let why = "pg_basebackup must be of this version or a later one";
    judge(true, Grade::Good, format!("version {version}, a database of {size}"), why, "");
    let level: &str = get(&row, "wal_level")?;
    judge(
        level != "minimal",
        Grade::Stops,
        format!("wal_level = {level}"),
        "a base backup needs the write-ahead log of the time in which it is taken",
        "ALTER SYSTEM SET wal_level = replica; and restart PostgreSQL",
    );
    let (senders, used): (i32, i64) = (get(&row, "senders")?, get(&row, "used")?);
    judge(
        i64::from(senders) >= used + 2,
        Grade::Stops,
        format!("max_wal_senders = {senders}, {used} in use"),
        "pg_basebackup uses two of them",
        "ALTER SYSTEM SET max_wal_senders = 10; and restart PostgreSQL",
    );
    let role: &str = get(&row, "role")?;
    let replicates: bool = get(&row, "replicates")?;
    judge(
        replicates,
        Grade::Warns,
        format!("the role {role} {} REPLICATION", if replicates { "has" } else { "does not have" }),
        "pg_basebackup connects as a role that has it, which need not be that of the servers",
        "CREATE ROLE backup LOGIN REPLICATION; and a line for it in pg_hba.conf",
    );
    let archive: &str = get(&row, "archive_mode")?;
    judge(
        archive != "off",
        Grade::Warns,
        format!("archive_mode = {archive}"),
        "without an archive of the write-ahead log, what happened after a base backup cannot be restored",
        "set archive_mode and archive_command, or run pg_receivewal on another machine",
    );
    Ok(findings)
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
        ("fsync", "without it an acknowledged commit may be lost in a power failure"),
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
        "a commit is acknowledged before it is on every disk that must have it",
        "ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf();",
    );
    let (names, unseen): (&str, i64) = (get(&row, "names")?, get(&row, "unseen")?);
    let copies: i64 = get(&row, "copies")?;
    let called = get::<Option<&str>>(&row, "called")?.unwrap_or_default().to_owned();
    let standbys_are = format!(
        "{standbys} standbys, {synchronous} of them synchronous; synchronous_standby_names = '{names}'"
    );
    let name_them = format!(
        "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 ({called})'; SELECT pg_reload_conf();"
    );
    let of_standbys = if unseen > 0 {
        (
            Grade::Warns,
            "this role cannot see the state of the standbys",
            "GRANT pg_monitor TO the role of storage.url;",
        )
    } else if standbys > 0 && names.is_empty() {
        (
            Grade::Breaks,
            "a standby that lacks a commit makes a spent code valid again once it is promoted",
            name_them.as_str(),
        )
    } else if !names.is_empty() && synchronous == 0 && copies == 0 {
        (Grade::Stops, "every commit waits for a standby, and none is connected", WITHOUT_STANDBY)
    } else if copies > 0 {
        (
            Grade::Warns,
            "a running backup confirms commits in the place of a standby: an acknowledged commit may \
             be on no standby that could be promoted",
            if standbys > 0 {
                name_them.as_str()
            } else {
                "name the standbys there, and no backup"
            },
        )
    } else {
        (Grade::Good, "a failover loses no acknowledged commit", "")
    };
    let (grade, why, mend) = of_standbys;
    judge(grade == Grade::Good, grade, standbys_are, why, mend);
    let free: i64 = get(&row, "free")?;
    let holders = client.query(HOLDERS, &[]).await.map_err(unreadable)?;
    let holder = |row: &Row| -> Result<String, ReadError> {
        let who: &str = row.try_get(0).map_err(unreadable)?;
        let count: i64 = row.try_get(1).map_err(unreadable)?;
        Ok(format!("{who} has {count}"))
    };
    let holders = holders.iter().map(holder).collect::<Result<Vec<_>, _>>()?;
    judge(
        free >= CONNECTIONS,
        Grade::Warns,
        format!("{free} connections are free; {}", holders.join(", ")),
        "each server opens up to twelve",
        "ALTER SYSTEM SET max_connections = 200; and restart PostgreSQL",
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

/// Examines the store in the database, which may have none yet. A running server continues after a
/// newer one has raised the schema; this helps people who want to start one.
pub(super) async fn of_store(client: &Client) -> Result<Vec<Finding>, Error> {
    let Some(found) = migrate::step_of(client).await? else {
        let what = "the database has no schema yet".to_owned();
        return Ok(vec![finding(Grade::Good, what, "the first server that starts creates it", "")]);
    };
    let known = migrate::known();
    let grade = if found > known { Grade::Breaks } else { Grade::Good };
    let schema = finding(
        grade,
        format!("schema {found}, and this program knows {known}"),
        "a program does not start on the schema of a newer one",
        "start the newer program",
    );
    let asked =
        "SELECT number, to_char(since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC',
             clock_timestamp() - since < interval '30 days' FROM epoch";
    let row = client.query_one(asked, &[]).await?;
    let (epoch, since, lately): (i64, &str, bool) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let epoch = if epoch > 1 {
        finding(
            if lately { Grade::Warns } else { Grade::Good },
            format!("epoch {epoch} began at {since}: data was lost, or an operator began it"),
            "changes that were acknowledged shortly before may be lost: codes not spent by then are \
             void, and revocations may have been undone",
            "revoke again the servers that you had revoked shortly before (`iptunnel-server servers \
             list` shows which are revoked); this warning stays for 30 days",
        )
    } else {
        let why = "it grows when the database is found to lack acknowledged changes";
        finding(Grade::Good, format!("epoch {epoch}, since {since}"), why, "")
    };
    Ok(vec![schema, epoch])
}

/// Examines the hosts of the URL; `newest` is the highest timeline that was ever seen.
pub(super) fn of_hosts(seen: &[Seen], newest: u32) -> Vec<Finding> {
    let timeline = |seen: &Seen| match &seen.is {
        Answer::Primary(found) => Some(found.line.timeline()),
        _ => None,
    };
    let newest = seen.iter().filter_map(timeline).fold(newest, u32::max);
    let has_primary = seen.iter().any(|seen| timeline(seen) == Some(newest));
    let trouble = if has_primary { Grade::Warns } else { Grade::Stops };
    let mut findings: Vec<Finding> = seen
        .iter()
        .map(|seen| match &seen.is {
            Answer::Primary(found) if found.line.timeline() < newest => finding(
                Grade::Breaks,
                left_behind(&seen.host, found.line.timeline(), newest),
                "everything that is still written to it will be lost",
                "shut it down and make it a standby (pg_rewind, or pg_basebackup into an empty folder)",
            ),
            Answer::Primary(_) | Answer::Standby => {
                finding(Grade::Good, seen.words(), "servers use the primary of the newest timeline", "")
            }
            Answer::Silent => finding(
                trouble,
                seen.words(),
                "when it resumes it may act as the primary",
                "restart it, or shut it down",
            ),
            Answer::ReadOnly => finding(
                trouble,
                seen.words(),
                "servers skip it",
                "where it is the right one: ALTER SYSTEM RESET default_transaction_read_only; SELECT \
                 pg_reload_conf();",
            ),
            Answer::Refused(why) if why.contains("(53300)") => finding(
                trouble,
                seen.words(),
                "all of its connections are taken, and each server needs up to twelve",
                "see who has them, as a superuser, for whom some are kept: SELECT application_name, \
                 usename, client_addr, count(*) FROM pg_stat_activity GROUP BY 1, 2, 3 ORDER BY 4 \
                 DESC; and raise max_connections where it is too low",
            ),
            Answer::Unreached(_) | Answer::Refused(_) => finding(
                trouble,
                seen.words(),
                "servers cannot use it",
                "start it, or check the address, the network and pg_hba.conf",
            ),
        })
        .collect();
    if !has_primary {
        let has = |wanted: fn(&Answer) -> bool| seen.iter().any(|seen| wanted(&seen.is));
        let mend = if has(|is| matches!(is, Answer::Standby)) {
            PROMOTE
        } else if has(|is| !matches!(is, Answer::Unreached(_))) {
            "follow the advice on each host"
        } else {
            "start the database"
        };
        let what = "no host is a primary that servers may use".into();
        findings.push(finding(Grade::Stops, what, "requests are refused", mend));
    }
    findings
}

/// Says that there are several primaries.
pub(super) fn of_primaries(primaries: &[Found]) -> Option<Finding> {
    (primaries.len() > 1).then(|| {
        finding(
            Grade::Breaks,
            super::connect::several(primaries),
            "servers use that of the newest timeline; what others give to another one is lost",
            "shut off all but the right one, and make the others standbys of it",
        )
    })
}

/// Tests what only a trial can show: whether commits succeed, whether disk space is left, and
/// whether another session locks a table. It leaves the database unchanged.
pub(super) async fn of_trials(way: &Connector, found: &Found) -> Result<Vec<Finding>, Error> {
    let client = &found.client;
    let names = client.query_one("SHOW synchronous_standby_names", &[]).await?;
    let names: &str = names.try_get(0)?;
    let mut findings = Vec::new();
    findings.push(match trial::commits(way, found).await {
        Ok(()) => finding(
            Grade::Good,
            "a commit that changes nothing is confirmed".into(),
            "all other commits are confirmed as well",
            "",
        ),
        Err(why) => {
            let mend =
                if names.is_empty() { "read the log of the database" } else { WITHOUT_STANDBY };
            finding(Grade::Stops, why, "every request that must be stored is refused", mend)
        }
    });
    if client.is_closed() {
        return Ok(findings);
    }
    findings.push(match trial::room(client).await {
        Ok(()) => finding(Grade::Good, "disk space is left".into(), "commits need disk space", ""),
        Err(error) => finding(
            Grade::Stops,
            format!("no disk space is left for 2 MiB more: {}", told(&error)),
            "every request that must be stored is refused",
            "free space on the disk of the database",
        ),
    });
    if migrate::step_of(client).await?.is_some() && trial::tables_are_free(client).await.is_err() {
        for row in client.query(LOCKS, &[]).await? {
            let (table, pid, holder, seconds): (&str, i32, &str, i64) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            findings.push(finding(
                Grade::Stops,
                format!("table {table} is locked by {holder}, process {pid}, for {seconds} s"),
                "every request that must be stored waits for it and is refused",
                &format!("let it end, or end it: SELECT pg_terminate_backend({pid});"),
            ));
        }
    }
    Ok(findings)
}
