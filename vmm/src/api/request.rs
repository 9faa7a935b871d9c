//! The whole interface of the VMM in one enum, and the envelope in which a request travels to the
//! thread that owns the VM and its answer back.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use serde::Serialize;
use thiserror::Error;

use super::{FtInfo, VmCounters, VmInfo, VmmPingResponse};
use crate::config::{
    ConfigError, FtConfig, PeerAddress, ReceiveMigration, SendMigration, VmConfig,
};

/// Everything that can be asked of a VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiRequest {
    /// Who are you?
    VmmPing,
    /// End the VM, then the VMM.
    VmmShutdown,
    /// Take a VM's configuration, checked already; nothing runs yet.
    VmCreate(Box<VmConfig>),
    /// Boot the VM that was created.
    VmBoot,
    /// The VM's configuration and state.
    VmInfo,
    /// What the VM's devices counted.
    VmCounters,
    /// Stop the VM where it is.
    VmPause,
    /// Let a paused VM go on.
    VmResume,
    /// End the VM and keep its configuration.
    VmShutdown,
    /// Reset the VM.
    VmReboot,
    /// Press the VM's power button.
    VmPowerButton,
    /// End the VM and forget its configuration.
    VmDelete,
    /// Move the VM to another VMM and end here.
    SendMigration(Box<SendMigration>),
    /// Wait for a VM that moves here.
    ReceiveMigration(Box<ReceiveMigration>),
    /// Protect the VM that runs.
    FtEnable(Box<FtConfig>),
    /// Let the VM run on without its backup.
    FtDisable,
    /// Hand the VM over to its backup and end here.
    FtFailover,
    /// How the protection is.
    FtInfo,
    /// The same for Prometheus.
    FtMetrics,
    /// These hosts, and no others, are joined when there is no backup.
    FtStandbys(Vec<PeerAddress>),
    /// Let the backup go and join this standby instead.
    FtMoveBackup(PeerAddress),
}

/// What the VMM answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ApiReply {
    /// It is done; there is nothing to tell (HTTP 204).
    Empty,
    /// To [`ApiRequest::VmmPing`].
    Ping(VmmPingResponse),
    /// To [`ApiRequest::VmInfo`].
    VmInfo(Box<VmInfo>),
    /// To [`ApiRequest::VmCounters`].
    Counters(VmCounters),
    /// To [`ApiRequest::FtInfo`].
    FtInfo(Box<FtInfo>),
    /// To [`ApiRequest::FtMetrics`]: what they are made of.
    FtMetrics(Box<FtInfo>),
}

/// Why a request was not carried out: an HTTP status and a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status, 400 to 599.
    pub status: u16,
    /// What was wrong and what to do.
    pub message: String,
}

/// A request's outcome.
pub type ApiResult = Result<ApiReply, ApiError>;

impl ApiError {
    /// The request itself is wrong (400).
    pub fn bad_request(message: impl Into<String>) -> Self {
        ApiError { status: 400, message: message.into() }
    }

    /// There is no such VM or path (404): Cloud Hypervisor's answer when no VM was created.
    pub fn not_found(message: impl Into<String>) -> Self {
        ApiError { status: 404, message: message.into() }
    }

    /// The VM is not in a state for that, or the attempt failed (500): Cloud Hypervisor's answer
    /// to every failed action.
    pub fn failed(message: impl Into<String>) -> Self {
        ApiError { status: 500, message: message.into() }
    }

    /// It is not there yet (501).
    pub fn not_implemented(message: impl Into<String>) -> Self {
        ApiError { status: 501, message: message.into() }
    }

    /// Too much at once; later it may work (503).
    pub fn unavailable(message: impl Into<String>) -> Self {
        ApiError { status: 503, message: message.into() }
    }
}

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        ApiError::bad_request(error.to_string())
    }
}

/// A request on its way to the VMM's main thread, and the way back for the answer.
#[derive(Debug)]
pub struct ApiCall {
    /// What is asked.
    pub request: ApiRequest,
    /// Where the answer goes.
    pub reply: ReplySender,
}

/// Takes one answer. Dropping it unanswered tells the client so.
#[derive(Debug)]
pub struct ReplySender(SyncSender<ApiResult>);

impl ReplySender {
    /// A sender and the receiver at its other end.
    pub fn channel() -> (Self, Receiver<ApiResult>) {
        let (sender, receiver) = sync_channel(1);
        (ReplySender(sender), receiver)
    }

    /// Sends the answer. A client that has gone away is no error.
    pub fn send(self, result: ApiResult) {
        let _ = self.0.send(result);
    }
}

/// Sends `request` through `submit` and waits for the answer. The wait has no limit of its own:
/// booting or joining takes what it takes, and who does it answers or drops the sender.
///
/// # Errors
/// The VMM's own answer, 503 if the queue is full, 500 if the call was dropped unanswered.
pub fn call<S>(submit: &S, request: ApiRequest) -> ApiResult
where
    S: Fn(ApiCall) -> Result<(), Box<ApiCall>> + ?Sized,
{
    let (reply, answer) = ReplySender::channel();
    if submit(ApiCall { request, reply }).is_err() {
        return Err(ApiError::unavailable(
            "The VMM has too many requests waiting; try again in a moment.",
        ));
    }
    answer.recv().unwrap_or_else(|_| {
        Err(ApiError::failed("The VMM ended before it could answer this request."))
    })
}
