//! The limit of open files, which is also a limit of connections.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Files that are open beside the connections of both listeners: the store, the log, connections to a
/// database.
const OTHERS: u64 = 256;

/// Raises the soft limit of open files to what so many connections need. Logs a warning where the hard
/// limit does not allow it.
pub fn provide(connections: usize) {
    let needed = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(OTHERS);
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = needed.min(hard);
        if soft < wanted {
            setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
        }
        Ok(soft.max(wanted))
    });
    match raised {
        Ok(limit) if limit >= needed => {}
        Ok(limit) => tracing::warn!(
            limit,
            needed,
            "the process may not open as many files as it needs for server.max_connections; raise the \
             hard limit of open files (LimitNOFILE in systemd, --ulimit nofile in Docker), or lower \
             server.max_connections"
        ),
        Err(error) => tracing::warn!(
            %error,
            needed,
            "the limit of open files cannot be read or raised; the server may refuse connections before \
             server.max_connections is reached"
        ),
    }
}
