//! Descriptors that the user hands to this process by number (`fd=N`).
//!
//! Owns the check that such a number means something: one that was not open when the process
//! started will soon be one of our own files, which then would be taken for the user's.

use std::os::fd::RawFd;
use std::path::PathBuf;

use crate::api::ApiSocket;
use crate::cli::{EventMonitor, Invocation};
use crate::error::Error;

/// Checks the descriptors an invocation names. To be called before anything is opened.
///
/// # Errors
/// A descriptor is not open, or is named twice.
pub fn check(invocation: &Invocation) -> Result<(), Error> {
    let api = match &invocation.api_socket {
        Some(ApiSocket::Fd(fd)) => Some(("--api-socket", *fd)),
        Some(ApiSocket::Path(_)) | None => None,
    };
    let events = match &invocation.event_monitor {
        Some(EventMonitor::Fd(fd)) => Some(("--event-monitor", *fd)),
        Some(EventMonitor::Path(_)) | None => None,
    };
    for (option, fd) in [api, events].into_iter().flatten() {
        if !is_open(fd) {
            return Err(Error::Refused(format!(
                "{option} fd={fd}: this process was started without an open descriptor of that \
                 number; hand it over, or give a path"
            )));
        }
    }
    match (api, events) {
        (Some((_, api)), Some((_, events))) if api == events => Err(Error::Refused(format!(
            "--api-socket and --event-monitor both name fd={api}: each needs a descriptor of its \
             own"
        ))),
        _ => Ok(()),
    }
}

/// Looked up by name, so that no descriptor is touched that may be somebody's.
fn is_open(fd: RawFd) -> bool {
    PathBuf::from(format!("/proc/self/fd/{fd}")).symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn sentence(api: RawFd, events: RawFd) -> Option<String> {
        let invocation = Invocation {
            api_socket: Some(ApiSocket::Fd(api)),
            event_monitor: Some(EventMonitor::Fd(events)),
            ..Invocation::default()
        };
        check(&invocation).err().map(|error| error.to_string())
    }

    #[test]
    fn a_descriptor_must_be_open_and_serve_one_purpose() {
        let (one, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let (one, other) = (one.as_raw_fd(), other.as_raw_fd());
        assert_eq!(sentence(one, other), None);
        assert!(sentence(one, one).unwrap().contains("each needs a descriptor of its own"));
        let closed = sentence(one, 4000).unwrap();
        assert!(
            closed.starts_with("--event-monitor fd=4000: this process was started"),
            "{closed}"
        );
    }
}
