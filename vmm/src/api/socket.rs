//! The API's Unix socket: opened so that a live one is never stolen, only its owner may connect,
//! and its file goes when the server goes.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::ApiServerError;

/// Where the API is served: `--api-socket PATH`, `path=PATH` or `fd=N`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiSocket {
    /// A path to create the socket at.
    Path(PathBuf),
    /// A listening socket that was handed to this process.
    Fd(RawFd),
}

/// A listening socket and the file that is removed with it.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: UnixListener,
    /// The file and its inode: if somebody put another file there, it is not ours to remove.
    file: Option<(PathBuf, u64)>,
}

impl Listener {
    pub(super) fn open(place: &ApiSocket) -> Result<Self, ApiServerError> {
        match place {
            ApiSocket::Path(path) => {
                remove_dead_socket(path)?;
                let failed = |source| ApiServerError::Bind { path: path.clone(), source };
                let socket = bind_private(path).map_err(failed)?;
                let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
                Ok(Listener { socket, file: Some((path.clone(), inode)) })
            }
            ApiSocket::Fd(fd) => Ok(Listener { socket: adopt(*fd)?, file: None }),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some((path, inode)) = &self.file
            && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.ino() == *inode)
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// Clears away what a VMM that died left behind, and nothing else.
fn remove_dead_socket(path: &Path) -> Result<(), ApiServerError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ApiServerError::Bind { path: path.to_owned(), source }),
    };
    if !kind.is_socket() {
        return Err(ApiServerError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|source| ApiServerError::Bind { path: path.to_owned(), source }),
        // Somebody listens, or we may not even ask: it is not ours to remove.
        Ok(_) | Err(_) => Err(ApiServerError::InUse { path: path.to_owned() }),
    }
}

/// Binds, then closes the door to everybody but the owner. In between the usual umask guards it.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(socket)
}

fn adopt(fd: RawFd) -> Result<UnixListener, ApiServerError> {
    let broken = |source| ApiServerError::BadFd { fd, source };
    if fd <= 2 {
        return Err(broken(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    // SAFETY: F_GETFD reads a flag of a descriptor and touches no memory; any number is allowed.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(broken(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is open (checked above), and the user handed it to this process for
    // this purpose alone, so nobody else closes it.
    let socket = UnixListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    socket.local_addr().map_err(broken)?;
    Ok(socket)
}
