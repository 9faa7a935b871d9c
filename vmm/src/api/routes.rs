//! The table of paths and methods, and the translation between HTTP and [`ApiRequest`].

use serde::de::DeserializeOwned;

use super::http::{HttpRequest, HttpResponse};
use super::{ApiError, ApiReply, ApiRequest, ApiResult};
use crate::config::{FtConfig, VmConfig};

const ROOT: &str = "/api/v1/";

/// What makes an [`ApiRequest`] of a request's body.
type Read = fn(&[u8]) -> Result<ApiRequest, ApiError>;

struct Route {
    name: &'static str,
    method: &'static str,
    read: Read,
}

const ROUTES: &[Route] = &[
    Route { name: "vmm.ping", method: "GET", read: |_| Ok(ApiRequest::VmmPing) },
    Route { name: "vmm.shutdown", method: "PUT", read: |b| plain(b, ApiRequest::VmmShutdown) },
    Route { name: "vm.create", method: "PUT", read: read_create },
    Route { name: "vm.boot", method: "PUT", read: |b| plain(b, ApiRequest::VmBoot) },
    Route { name: "vm.info", method: "GET", read: |_| Ok(ApiRequest::VmInfo) },
    Route { name: "vm.counters", method: "GET", read: |_| Ok(ApiRequest::VmCounters) },
    Route { name: "vm.pause", method: "PUT", read: |b| plain(b, ApiRequest::VmPause) },
    Route { name: "vm.resume", method: "PUT", read: |b| plain(b, ApiRequest::VmResume) },
    Route { name: "vm.shutdown", method: "PUT", read: |b| plain(b, ApiRequest::VmShutdown) },
    Route { name: "vm.reboot", method: "PUT", read: |b| plain(b, ApiRequest::VmReboot) },
    Route { name: "vm.power-button", method: "PUT", read: |b| plain(b, ApiRequest::VmPowerButton) },
    Route { name: "vm.delete", method: "PUT", read: |b| plain(b, ApiRequest::VmDelete) },
    Route { name: "vm.ft-enable", method: "PUT", read: read_ft_enable },
    Route { name: "vm.ft-disable", method: "PUT", read: |b| plain(b, ApiRequest::FtDisable) },
    Route { name: "vm.ft-failover", method: "PUT", read: |b| plain(b, ApiRequest::FtFailover) },
    Route { name: "vm.ft-info", method: "GET", read: |_| Ok(ApiRequest::FtInfo) },
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
    "vm.receive-migration",
    "vm.remove-device",
    "vm.resize",
    "vm.resize-disk",
    "vm.resize-zone",
    "vm.restore",
    "vm.send-migration",
    "vm.snapshot",
    "vmm.nmi",
];

/// What a request asks of the VMM, or the answer if that can be said at once.
pub(super) fn read_request(request: &HttpRequest) -> Result<ApiRequest, HttpResponse> {
    let unknown = || {
        HttpResponse::error(
            404,
            &format!("There is no {}; the API's paths begin with {ROOT}.", shown(&request.path)),
        )
    };
    let name = request.path.strip_prefix(ROOT).ok_or_else(unknown)?;
    let Some(route) = ROUTES.iter().find(|route| route.name == name) else {
        if NOT_YET.contains(&name) {
            return Err(HttpResponse::error(
                501,
                &format!("{name} is part of Cloud Hypervisor's API but not there yet in this VMM."),
            ));
        }
        return Err(unknown());
    };
    if route.method != request.method {
        let mut response = HttpResponse::error(
            405,
            &format!("{name} is asked with {}, not {}.", route.method, shown(&request.method)),
        );
        response.allow = Some(route.method);
        return Err(response);
    }
    (route.read)(&request.body).map_err(|error| error_response(&error))
}

/// What a request in parts asks of the VMM, or the status it is answered with at once: the whole of
/// the API's reading but for the socket.
///
/// # Errors
///
/// The HTTP status of the answer.
pub fn request_of(method: &str, path: &str, body: &[u8]) -> Result<ApiRequest, u16> {
    let (method, path, body) = (method.to_owned(), path.to_owned(), body.to_vec());
    let request = HttpRequest { method, path, body, close: false };
    read_request(&request).map_err(|response| response.status)
}

/// The VMM's answer as HTTP.
pub(super) fn write_response(result: ApiResult) -> HttpResponse {
    match result {
        Ok(ApiReply::Empty) => HttpResponse { status: 204, body: None, allow: None },
        Ok(reply) => match serde_json::to_string(&reply) {
            Ok(body) => HttpResponse { status: 200, body: Some(body), allow: None },
            Err(error) => HttpResponse::error(500, &format!("The answer is no JSON: {error}.")),
        },
        Err(error) => error_response(&error),
    }
}

fn error_response(error: &ApiError) -> HttpResponse {
    // A status that is none would leave the client waiting for a real one.
    let status = if (400..600).contains(&error.status) { error.status } else { 500 };
    HttpResponse::error(status, &error.message)
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

fn read_ft_enable(body: &[u8]) -> Result<ApiRequest, ApiError> {
    need_body(body, "the protection's configuration")?;
    let config: FtConfig = read_json(body, "protection's configuration")?;
    Ok(ApiRequest::FtEnable(Box::new(config)))
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
