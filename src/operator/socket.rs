//! The command line's way to a running server: a Unix socket beside the store.
//!
//! Its file has mode 0600, so its permissions say who may use it, and no token is needed. A browser
//! cannot reach it, and nobody else can listen at this path. The routes are those of the operators'
//! listener.

use crate::config::Config;
use crate::private_file::Beside;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The most connections that wait to be accepted. Commands come one by one.
const BACKLOG: i32 = 64;

/// The reasons why the socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another server listens.
    #[error(
        "another process listens on the socket {0}; stop it, or give each server its own storage.path or admin.socket"
    )]
    InUse(PathBuf),
    /// There is a file that is not a socket.
    #[error("{0} is not a socket, and is left as it is; move it away, or change admin.socket")]
    NotASocket(PathBuf),
    /// The operating system returned an error.
    #[error(
        "the socket {0} cannot be made: {1}; check the owner and mode of its folder, and that the path has at most 107 bytes, or change admin.socket"
    )]
    Io(PathBuf, io::Error),
}

/// Returns the path of the socket of a server with this configuration.
pub fn path_of(config: &Config) -> PathBuf {
    match config.admin.socket.as_os_str() {
        none if none.is_empty() => Beside::Socket.of(&config.storage.path),
        some => some.into(),
    }
}

/// The file of a socket. It is removed when this value is dropped, which must be before the listener is
/// closed: while that is open, no other server takes the path.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // If it stays, the next start finds that nobody listens and replaces it.
        let _ = fs::remove_file(&self.0);
    }
}

/// Listens for the command line. At the path beside the store, a file system that has no sockets is no
/// reason not to start, nor is another server on the same database that was started in the same folder:
/// then only the log says that commands need `admin.url`.
///
/// # Errors
/// As [`listen`].
pub fn of_server(config: &Config) -> Result<Option<(UnixListener, SocketFile)>, SocketError> {
    match listen(&path_of(config)) {
        Err(error @ (SocketError::Io(..) | SocketError::InUse(_)))
            if config.admin.socket.as_os_str().is_empty() =>
        {
            let error = error.to_string();
            tracing::warn!(error, "commands reach this server with --url only");
            Ok(None)
        }
        made => made.map(Some),
    }
}

/// Listens at `path`, for the server's own user alone. Replaces a socket that an earlier server has
/// left behind.
///
/// # Errors
/// Another server listens there, something else is there, or the operating system refuses.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |error| SocketError::Io(path.to_owned(), error);
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    socket.bind(&SockAddr::unix(path).map_err(failed)?).map_err(failed)?;
    let file = SocketFile(path.to_owned());
    // Nobody can connect before `listen`, so nobody has connected with a wider mode.
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    socket.listen(BACKLOG).map_err(failed)?;
    Ok((socket.into(), file))
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |error| SocketError::Io(path.to_owned(), error);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_for_its_owner_alone_and_goes_with_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let (listener, file) = listen(&path).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        drop((file, listener));
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::InUse(_))));
        drop(listener);
        assert!(path.exists());
        let (_listener, _file) = listen(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn what_is_not_a_socket_is_never_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_path_that_is_too_long_is_an_error_that_says_so() {
        let path = tempfile::tempdir().unwrap().path().join("s".repeat(120));
        let error = listen(&path).unwrap_err().to_string();
        assert!(error.contains("at most 107 bytes"), "{error}");
    }
}
