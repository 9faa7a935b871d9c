//! A request at the API, from its method, path and body on.
//!
//! Reading one off a socket is a library's work (and its fuzzers').

use arbitrary::{Arbitrary, Unstructured};
use vmm::api::request_of;

/// Paths that mean something, and that a fuzzer need not find.
const NAMES: &[&str] = &[
    "vmm.ping",
    "vmm.shutdown",
    "vm.create",
    "vm.boot",
    "vm.info",
    "vm.counters",
    "vm.pause",
    "vm.resume",
    "vm.shutdown",
    "vm.reboot",
    "vm.power-button",
    "vm.delete",
    "vm.ft-enable",
    "vm.ft-disable",
    "vm.ft-failover",
    "vm.ft-info",
    "vm.ft-standbys",
    "vm.ft-move-backup",
    "vm.add-disk",
];

#[derive(Arbitrary, Debug)]
struct Request<'a> {
    put: bool,
    method: Option<&'a str>,
    name: u8,
    path: Option<&'a str>,
}

pub(crate) fn run(data: &[u8]) {
    let mut source = Unstructured::new(data);
    let Ok(request) = Request::arbitrary(&mut source) else { return };
    let body = source.take_rest();
    let method = request.method.unwrap_or(if request.put { "PUT" } else { "GET" });
    let name = NAMES[usize::from(request.name) % NAMES.len()];
    let path = request.path.map_or_else(|| format!("/api/v1/{name}"), str::to_owned);
    if let Err(response) = request_of(method, &path, body) {
        let status = response.status().raw();
        assert!(matches!(status, b"400" | b"404" | b"405" | b"501"), "{status:?}");
    }
}
