//! The table of paths and methods, and the translation between HTTP and [`ApiRequest`].

use dbs_uhttp::Method::{self, Get, Put};
use dbs_uhttp::{Request, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::ft_metrics::exposition;
use super::http::{empty_response, error_response, json_response, text_response};
use super::{ApiError, ApiReply, ApiRequest, ApiResult};
use crate::config::{FtConfig, PeerAddress, ReceiveMigration, SendMigration, VmConfig};

const ROOT: &str = "/api/v1/";

/// What makes an [`ApiRequest`] of a request's body.
type Read = fn(&[u8]) -> Result<ApiRequest, ApiError>;

struct Route {
    name: &'static str,
    method: Method,
    read: Read,
}

const ROUTES: &[Route] = &[
    Route { name: "vmm.ping", method: Get, read: |_| Ok(ApiRequest::VmmPing) },
    Route { name: "vmm.shutdown", method: Put, read: |b| plain(b, ApiRequest::VmmShutdown) },
    Route { name: "vm.create", method: Put, read: read_create },
    Route { name: "vm.boot", method: Put, read: |b| plain(b, ApiRequest::VmBoot) },
    Route { name: "vm.info", method: Get, read: |_| Ok(ApiRequest::VmInfo) },
    Route { name: "vm.counters", method: Get, read: |_| Ok(ApiRequest::VmCounters) },
    Route { name: "vm.pause", method: Put, read: |b| plain(b, ApiRequest::VmPause) },
    Route { name: "vm.resume", method: Put, read: |b| plain(b, ApiRequest::VmResume) },
    Route { name: "vm.shutdown", method: Put, read: |b| plain(b, ApiRequest::VmShutdown) },
    Route { name: "vm.reboot", method: Put, read: |b| plain(b, ApiRequest::VmReboot) },
    Route { name: "vm.power-button", method: Put, read: |b| plain(b, ApiRequest::VmPowerButton) },
    Route { name: "vm.delete", method: Put, read: |b| plain(b, ApiRequest::VmDelete) },
    Route { name: "vm.send-migration", method: Put, read: read_send_migration },
    Route { name: "vm.receive-migration", method: Put, read: read_receive_migration },
    Route { name: "vm.ft-enable", method: Put, read: read_ft_enable },
    Route { name: "vm.ft-disable", method: Put, read: |b| plain(b, ApiRequest::FtDisable) },
    Route { name: "vm.ft-failover", method: Put, read: |b| plain(b, ApiRequest::FtFailover) },
    Route { name: "vm.ft-info", method: Get, read: |_| Ok(ApiRequest::FtInfo) },
    Route { name: "vm.ft-metrics", method: Get, read: |_| Ok(ApiRequest::FtMetrics) },
    Route { name: "vm.ft-standbys", method: Put, read: read_ft_standbys },
    Route { name: "vm.ft-move-backup", method: Put, read: read_ft_move_backup },
];

/// Cloud Hypervisor's paths that we answer with "not there yet".
const NOT_YET: &[&str] = &[
    "vm.add-device",
    "vm.add-disk",
    "vm.add-fs",
    "vm.add-generic-vhost-user",
    "vm.add-net",
    "vm.add-pmem",
    "vm.add-user-device",
    "vm.add-vdpa",
    "vm.add-vsock",
    "vm.balloon-statistics",
    "vm.coredump",
    "vm.nmi",
    "vm.remove-device",
    "vm.resize",
    "vm.resize-disk",
    "vm.resize-zone",
    "vm.restore",
    "vm.snapshot",
    "vmm.nmi",
];

/// What a request asks of the VMM, or the answer if that can be said at once.
pub(super) fn read_request(request: &Request) -> Result<ApiRequest, Response> {
    let body = request.body.as_ref().map_or(&[][..], |body| body.raw());
    request_of(request.method().to_str(), path_of(request), body)
}

/// The same for a request in parts: the whole of the API's reading but for the socket.
///
/// # Errors
/// The answer, where it can be said at once.
pub fn request_of(method: &str, path: &str, body: &[u8]) -> Result<ApiRequest, Response> {
    let unknown = || {
        let sentence = format!("There is no {}; the API's paths begin with {ROOT}.", shown(path));
        error_response(StatusCode::NotFound, &sentence)
    };
    let name = path.strip_prefix(ROOT).ok_or_else(unknown)?;
    let Some(route) = ROUTES.iter().find(|route| route.name == name) else {
        if NOT_YET.contains(&name) {
            let sentence =
                format!("{name} is part of Cloud Hypervisor's API but not there yet in this VMM.");
            return Err(error_response(StatusCode::NotImplemented, &sentence));
        }
        return Err(unknown());
    };
    if route.method.to_str() != method {
        let sentence =
            format!("{name} is asked with {}, not {}.", route.method.to_str(), shown(method));
        let mut response = error_response(StatusCode::MethodNotAllowed, &sentence);
        response.allow_method(route.method);
        return Err(response);
    }
    (route.read)(body).map_err(|error| refusal(&error))
}

/// The path without its query.
pub(super) fn path_of(request: &Request) -> &str {
    request.uri().get_abs_path().split('?').next().unwrap_or_default()
}

/// The VMM's answer as HTTP.
pub(super) fn write_response(result: ApiResult) -> Response {
    match result {
        Ok(ApiReply::Empty) => empty_response(StatusCode::NoContent),
        Ok(ApiReply::FtMetrics(info)) => text_response(StatusCode::OK, exposition(&info)),
        Ok(reply) => match serde_json::to_string(&reply) {
            Ok(body) => json_response(StatusCode::OK, body),
            Err(error) => {
                let sentence = format!("The answer is no JSON: {error}.");
                error_response(StatusCode::InternalServerError, &sentence)
            }
        },
        Err(error) => refusal(&error),
    }
}

fn refusal(error: &ApiError) -> Response {
    let status = match error.status {
        400 => StatusCode::BadRequest,
        404 => StatusCode::NotFound,
        501 => StatusCode::NotImplemented,
        503 => StatusCode::ServiceUnavailable,
        _ => StatusCode::InternalServerError,
    };
    error_response(status, &error.message)
}

fn plain(body: &[u8], request: ApiRequest) -> Result<ApiRequest, ApiError> {
    // Some clients send `null` or `{}` where nothing is expected.
    match body.trim_ascii() {
        b"" | b"null" | b"{}" => Ok(request),
        _ => Err(ApiError::bad_request("This request takes no body; send it without one.")),
    }
}

fn read_create(body: &[u8]) -> Result<ApiRequest, ApiError> {
    need_body(body, "the VM's configuration")?;
    let config = VmConfig::from_json(body)?;
    config.validate()?;
    Ok(ApiRequest::VmCreate(Box::new(config)))
}

fn read_send_migration(body: &[u8]) -> Result<ApiRequest, ApiError> {
    need_body(body, "the VM's destination")?;
    Ok(ApiRequest::SendMigration(Box::new(SendMigration::from_json(body)?)))
}

fn read_receive_migration(body: &[u8]) -> Result<ApiRequest, ApiError> {
    need_body(body, "where to wait for the VM")?;
    Ok(ApiRequest::ReceiveMigration(Box::new(ReceiveMigration::from_json(body)?)))
}

fn read_ft_enable(body: &[u8]) -> Result<ApiRequest, ApiError> {
    need_body(body, "the protection's configuration")?;
    let config: FtConfig = read_json(body, "protection's configuration")?;
    Ok(ApiRequest::FtEnable(Box::new(config)))
}

/// The body of `vm.ft-standbys`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StandbysBody {
    standbys: Vec<String>,
}

/// The body of `vm.ft-move-backup`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MoveBackupBody {
    peer: String,
}

fn read_ft_standbys(body: &[u8]) -> Result<ApiRequest, ApiError> {
    need_body(body, "the list of standbys")?;
    let StandbysBody { standbys } = read_json(body, "list of standbys")?;
    let standbys = standbys.iter().map(|text| read_address(text)).collect::<Result<_, _>>()?;
    Ok(ApiRequest::FtStandbys(standbys))
}

fn read_ft_move_backup(body: &[u8]) -> Result<ApiRequest, ApiError> {
    need_body(body, "the standby's address")?;
    let MoveBackupBody { peer } = read_json(body, "standby's address")?;
    read_address(&peer).map(ApiRequest::FtMoveBackup)
}

fn read_address(text: &str) -> Result<PeerAddress, ApiError> {
    text.parse().map_err(|expected| {
        ApiError::bad_request(format!(
            "\"{}\" is no standby's address: {expected} is needed.",
            shown(text)
        ))
    })
}

fn need_body(body: &[u8], what: &str) -> Result<(), ApiError> {
    if body.trim_ascii().is_empty() {
        return Err(ApiError::bad_request(format!(
            "The request has no body; {what} is needed, as JSON."
        )));
    }
    Ok(())
}

fn read_json<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let text = error.to_string();
        // What a check of ours says is a sentence already; only the parser's words need one.
        if error.is_data() && text.starts_with("--ft") {
            let sentence = text.split(" at line ").next().unwrap_or_default();
            return ApiError::bad_request(sentence);
        }
        ApiError::bad_request(format!("The {what} is not valid JSON for it: {text}."))
    })
}

/// Text from a client, short enough for a message.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
