//! Tests of `routes.rs`: every path, and every way a request can be wrong.

use std::collections::BTreeMap;

use super::super::{FtInfo, VmmPingResponse};
use super::*;

fn ask(method: &str, path: &str, body: &str) -> Result<ApiRequest, Response> {
    request_of(method, path, body.as_bytes())
}

/// An answer's status and body.
fn parts(response: &Response) -> (u16, String) {
    let status = std::str::from_utf8(response.status().raw()).unwrap().parse().unwrap();
    let body = response.body().map(|body| body.body).unwrap_or_default();
    (status, String::from_utf8(body).unwrap())
}

/// The status and the sentence of a refusal.
fn refusal(method: &str, path: &str, body: &str) -> (u16, String) {
    let (status, body) = parts(&ask(method, path, body).unwrap_err());
    let sentences: Vec<String> = serde_json::from_str(&body).unwrap();
    assert_eq!(sentences.len(), 1, "{sentences:?}");
    (status, sentences[0].clone())
}

#[test]
fn every_plain_path_is_its_request() {
    for (method, name, request) in [
        ("GET", "vmm.ping", ApiRequest::VmmPing),
        ("PUT", "vmm.shutdown", ApiRequest::VmmShutdown),
        ("PUT", "vm.boot", ApiRequest::VmBoot),
        ("GET", "vm.info", ApiRequest::VmInfo),
        ("GET", "vm.counters", ApiRequest::VmCounters),
        ("PUT", "vm.pause", ApiRequest::VmPause),
        ("PUT", "vm.resume", ApiRequest::VmResume),
        ("PUT", "vm.shutdown", ApiRequest::VmShutdown),
        ("PUT", "vm.reboot", ApiRequest::VmReboot),
        ("PUT", "vm.power-button", ApiRequest::VmPowerButton),
        ("PUT", "vm.delete", ApiRequest::VmDelete),
        ("PUT", "vm.ft-disable", ApiRequest::FtDisable),
        ("PUT", "vm.ft-failover", ApiRequest::FtFailover),
        ("GET", "vm.ft-info", ApiRequest::FtInfo),
        ("GET", "vm.ft-metrics", ApiRequest::FtMetrics),
    ] {
        assert_eq!(ask(method, &format!("/api/v1/{name}"), ""), Ok(request));
    }
}

#[test]
fn create_and_enable_read_their_json() {
    let create = ask("PUT", "/api/v1/vm.create", r#"{"payload":{"kernel":"/k"}}"#).unwrap();
    assert!(matches!(create, ApiRequest::VmCreate(config) if config.payload.kernel.is_some()));
    let text = "role=primary,peer=b:7000,arbiter=none";
    let enable = ask(
        "PUT",
        "/api/v1/vm.ft-enable",
        r#"{"role":"primary","peer":"b:7000","arbiter":"none"}"#,
    );
    assert_eq!(enable, Ok(ApiRequest::FtEnable(Box::new(FtConfig::parse(text).unwrap()))));
}

#[test]
fn wrong_json_is_a_bad_request_in_a_sentence() {
    let create = |body| refusal("PUT", "/api/v1/vm.create", body);
    assert_eq!(
        create(""),
        (400, "The request has no body; the VM's configuration is needed, as JSON.".into())
    );
    let (status, sentence) = create("{");
    assert_eq!(status, 400);
    assert!(sentence.starts_with("The VM configuration is not valid JSON for it: EOF"));
    let (status, sentence) = create(r#"{"cpus":{"boot_vcpus":4,"max_vcpus":4}}"#);
    assert_eq!(status, 400);
    assert!(sentence.starts_with("4 vCPUs are asked for"), "{sentence}");
    let (_, sentence) = create(r#"{"vsock":{"cid":3}}"#);
    assert!(sentence.starts_with("vsock is set to"), "{sentence}");
}

#[test]
fn a_wrong_protection_is_told_in_the_command_lines_words() {
    let enable = |body| refusal("PUT", "/api/v1/vm.ft-enable", body);
    assert_eq!(
        enable(r#"{"role":"primary","arbiter":"none"}"#),
        (
            400,
            "--ft: peer= is missing. A primary needs peer=HOST:PORT, where its backup listens."
                .into()
        )
    );
    assert!(enable("").1.starts_with("The request has no body; the protection's configuration"));
    assert!(enable("7").1.starts_with("The protection's configuration is not valid JSON for it"));
    assert!(enable(r#"{"peeer":"b:1"}"#).1.contains("unknown field `peeer`"));
}

#[test]
fn an_unknown_path_is_not_found() {
    assert_eq!(
        refusal("GET", "/api/v1/vm.unknown", ""),
        (404, "There is no /api/v1/vm.unknown; the API's paths begin with /api/v1/.".into())
    );
    for path in ["/", "", "/api/v2/vmm.ping", "vmm.ping", "/api/v1/", "/api/v1/vmm.ping/"] {
        assert_eq!(refusal("GET", path, "").0, 404, "{path}");
    }
    assert!(refusal("GET", &"/x".repeat(9000), "").1.len() < 200);
}

#[test]
fn a_wrong_method_is_told_the_right_one() {
    let response = ask("GET", "/api/v1/vm.boot", "").unwrap_err();
    assert_eq!((parts(&response).0, response.allow()), (405, vec![Method::Put]));
    assert_eq!(
        refusal("DELETE", "/api/v1/vm.info", "").1,
        "vm.info is asked with GET, not DELETE."
    );
}

#[test]
fn what_is_not_there_yet_says_so_whatever_the_method_and_body() {
    for name in ["vm.add-disk", "vm.snapshot", "vm.resize", "vm.coredump", "vm.restore"] {
        assert_eq!(
            refusal("PUT", &format!("/api/v1/{name}"), "{\"a\":1}"),
            (
                501,
                format!("{name} is part of Cloud Hypervisor's API but not there yet in this VMM.")
            )
        );
    }
}

#[test]
fn a_body_where_none_belongs_is_refused() {
    assert_eq!(
        refusal("PUT", "/api/v1/vm.boot", r#"{"now":true}"#),
        (400, "This request takes no body; send it without one.".into())
    );
    for nothing in ["", " ", "null", "{}"] {
        assert_eq!(ask("PUT", "/api/v1/vm.boot", nothing), Ok(ApiRequest::VmBoot));
    }
}

#[test]
fn host_and_query_are_no_part_of_the_path() {
    let text = b"GET http://x/api/v1/vmm.ping?a=b HTTP/1.1\r\nHost: x\r\n\r\n";
    let request = Request::try_from(text, None).unwrap();
    assert_eq!(read_request(&request), Ok(ApiRequest::VmmPing));
}

#[test]
fn answers_become_statuses() {
    assert_eq!(parts(&write_response(Ok(ApiReply::Empty))), (204, String::new()));
    let ping = write_response(Ok(ApiReply::Ping(VmmPingResponse::of_this_process())));
    let (status, body) = parts(&ping);
    assert_eq!(status, 200);
    let said: VmmPingResponse = serde_json::from_str(&body).unwrap();
    assert_eq!(said.pid, i64::from(std::process::id()));
    let counters = BTreeMap::from([("_net1".into(), BTreeMap::from([("rx_bytes".into(), 7)]))]);
    let (_, body) = parts(&write_response(Ok(ApiReply::Counters(counters))));
    assert_eq!(body, r#"{"_net1":{"rx_bytes":7}}"#);
    let (_, body) = parts(&write_response(Ok(ApiReply::FtInfo(Box::default()))));
    assert_eq!(serde_json::from_str::<FtInfo>(&body).unwrap(), FtInfo::default());
    let metrics = write_response(Ok(ApiReply::FtMetrics(Box::default())));
    assert_eq!(metrics.content_type(), dbs_uhttp::MediaType::PlainText);
    assert!(parts(&metrics).1.contains("\nvmm_ft_state{state=\"off\"} 1\n"));
}

#[test]
fn errors_become_an_array_of_sentences() {
    for (error, status) in [
        (ApiError::bad_request("no"), 400),
        (ApiError::not_found("no"), 404),
        (ApiError::failed("no"), 500),
        (ApiError::not_implemented("no"), 501),
        (ApiError::unavailable("no"), 503),
        (ApiError { status: 7, message: "no".into() }, 500),
    ] {
        assert_eq!(parts(&write_response(Err(error))), (status, "[\"no\"]".into()));
    }
}

#[test]
fn standbys_are_addresses_or_a_sentence() {
    let standbys = |body: &str| ask("PUT", "/api/v1/vm.ft-standbys", body);
    let list = ["b:1", "[::1]:2"].map(|text| text.parse().unwrap()).to_vec();
    let asked = standbys(r#"{"standbys":["b:1","[::1]:2"]}"#);
    assert_eq!(asked, Ok(ApiRequest::FtStandbys(list)));
    for wrong in [r#"{"standbys":["b"]}"#, r#"{"standbys":"b:1"}"#, r#"{}"#, ""] {
        assert_eq!(refusal("PUT", "/api/v1/vm.ft-standbys", wrong).0, 400, "{wrong}");
    }
    let moved = ask("PUT", "/api/v1/vm.ft-move-backup", r#"{"peer":"c:7000"}"#);
    assert_eq!(moved, Ok(ApiRequest::FtMoveBackup("c:7000".parse().unwrap())));
}

/// `docs/api/openapi.yaml`.
const OPENAPI: &str = include_str!("../../../docs/api/openapi.yaml");

#[test]
fn the_openapi_file_lists_the_paths_there_are() {
    let mut documented = Vec::new();
    let mut lines = OPENAPI.lines().peekable();
    while let Some(line) = lines.next() {
        let name = line.strip_prefix("  /").and_then(|rest| rest.strip_suffix(':'));
        if let Some((name, next)) = name.zip(lines.peek()) {
            documented.push((name, next.trim().trim_end_matches(':').to_uppercase()));
        }
    }
    let served: Vec<_> =
        ROUTES.iter().map(|route| (route.name, route.method.to_str().to_owned())).collect();
    assert_eq!(documented, served);
    for name in NOT_YET {
        assert!(OPENAPI.contains(name), "{name}");
    }
}

#[test]
fn the_openapi_file_knows_every_field() {
    let full = VmConfig::from_json(
        br#"{"payload":{"kernel":"/k","cmdline":"c","initramfs":"/i"},
            "disks":[{"path":"/a","id":"a","serial":"s"}],
            "net":[{"tap":"t","ip":"1.2.3.4","mask":"255.0.0.0","mtu":1500,"id":"n",
                    "mac":"02:00:00:00:00:01"}],
            "serial":{"mode":"File","file":"/f"},"console":{"mode":"Socket","socket":"/s"},
            "ft":{"role":"primary","peer":"b:1","arbiter":"none","udp_port":1,"standby":"c:1",
                  "listen":"0.0.0.0:1","join_bandwidth":"1M"}}"#,
    )
    .unwrap();
    let info = FtInfo {
        last_event: Some(super::super::FtEvent::default()),
        events: vec![super::super::FtEvent::default()],
        log: super::super::LogTraffic::default(),
        join: Some(super::super::JoinInfo::default()),
        standbys: vec![super::super::StandbyInfo::default()],
        ..FtInfo::default()
    };
    let values = [
        serde_json::to_value(full).unwrap(),
        serde_json::to_value(info).unwrap(),
        serde_json::to_value(VmmPingResponse::of_this_process()).unwrap(),
    ];
    for value in &values {
        each_key(value, &mut |key| {
            assert!(
                OPENAPI.contains(&format!(" {key}: ")) || OPENAPI.contains(&format!(" {key}:\n")),
                "{key}"
            );
        });
    }
}

fn each_key(value: &serde_json::Value, visit: &mut dyn FnMut(&str)) {
    match value {
        serde_json::Value::Object(fields) => fields.iter().for_each(|(key, inner)| {
            visit(key);
            each_key(inner, visit);
        }),
        serde_json::Value::Array(items) => items.iter().for_each(|item| each_key(item, visit)),
        _ => {}
    }
}
