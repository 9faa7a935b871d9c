//! The outer surface of a running VMM: what can be asked of it ([`ApiRequest`]), what it answers
//! ([`ApiReply`]), and Cloud Hypervisor's REST API over a Unix socket that carries both.
//!
//! HTTP only translates. Every request goes through one bounded queue to the thread that owns the
//! VM, which alone decides; nothing here knows a machine.

pub mod client;
mod ft_info;
mod ft_metrics;
mod http;
mod queue;
pub mod remote;
mod request;
mod routes;
mod server;
mod socket;
mod vm_info;
mod watch;

pub use ft_info::{
    FtEvent, FtInfo, FtProtection, FtRole, FtState, JoinInfo, LogTraffic, OutputDelayUs,
    StandbyInfo,
};
pub use queue::{ApiQueue, ApiSubmitter, QUEUE_CAPACITY, api_queue};
pub use request::{ApiCall, ApiError, ApiReply, ApiRequest, ApiResult, ReplySender, call};
pub use routes::request_of;
pub use server::{ApiServer, ApiServerError};
pub use socket::ApiSocket;
pub use vm_info::{DeviceNode, VmCounters, VmInfo, VmState, VmmPingResponse};

#[cfg(test)]
mod server_tests;
