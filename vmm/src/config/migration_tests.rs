use super::*;
use crate::config::ConsoleMode;

fn sent(json: &str) -> Result<SendMigration, String> {
    SendMigration::from_json(json.as_bytes()).map_err(|error| error.to_string())
}

fn received(json: &str) -> Result<ReceiveMigration, String> {
    ReceiveMigration::from_json(json.as_bytes()).map_err(|error| error.to_string())
}

fn to(destination: &str) -> SendMigration {
    SendMigration {
        destination: destination.parse().unwrap(),
        timeout: Duration::from_secs(3600),
        arbiter: None,
    }
}

#[test]
fn a_url_is_enough_to_send() {
    for (url, address) in
        [("tcp:10.0.0.2:7000", "10.0.0.2:7000"), ("tcp:[fd00::2]:7000", "[fd00::2]:7000")]
    {
        assert_eq!(sent(&format!(r#"{{"destination_url":"{url}"}}"#)), Ok(to(address)));
        let json = SendMigration::json_of_text(url).unwrap();
        assert_eq!(json, format!(r#"{{"destination_url":"{url}"}}"#));
        assert_eq!(SendMigration::json_of_text(&format!("destination_url={url}")).unwrap(), json);
    }
}

#[test]
fn what_asks_for_nothing_more_passes() {
    let json = r#"{"destination_url":"tcp:b:1","local":false,"downtime_ms":300,"timeout_s":3600,
        "timeout_strategy":"Cancel","connections":1,"memory_mode":"Precopy","tls_dir":null}"#;
    assert_eq!(sent(json), Ok(to("b:1")));
    let text = "destination_url=tcp:b:1,local=off,timeout_s=60,timeout_strategy=cancel";
    let json = SendMigration::json_of_text(text).unwrap();
    assert_eq!(sent(&json).unwrap().timeout, Duration::from_secs(60));
}

#[test]
fn an_arbiter_may_decide_where_the_vm_is() {
    let json = SendMigration::json_of_text("destination_url=tcp:b:1,arbiter=file:/srv/a").unwrap();
    let path = "/srv/a".into();
    assert_eq!(sent(&json).unwrap().arbiter, Some(Arbiter::File { path }));
    let none = sent(r#"{"destination_url":"tcp:b:1","arbiter":"none"}"#).unwrap();
    assert_eq!(none.arbiter, None);
}

#[test]
fn what_cannot_be_sent_is_told_why() {
    let with = |more: &str| format!(r#"{{"destination_url":"tcp:b:1",{more}}}"#);
    for (json, part) in [
        ("{".into(), "The order to move a VM is not valid JSON"),
        ("7".into(), "not valid JSON"),
        ("{}".into(), "destination_url= is missing"),
        (r#"{"destination_url":"unix:/s"}"#.into(), "cannot move through a Unix socket yet"),
        (r#"{"destination_url":"tcp:b"}"#.into(), "tcp:HOST:PORT, such as"),
        (r#"{"destination_url":"tcp:b:0"}"#.into(), "tcp:HOST:PORT, such as"),
        (r#"{"destination_url":"tcp://b:1"}"#.into(), "tcp:HOST:PORT, such as"),
        (r#"{"destination_url":"b:1"}"#.into(), "tcp:HOST:PORT is needed"),
        (r#"{"destination":"tcp:b:1"}"#.into(), "unknown field `destination`"),
        (with(r#""local":true"#), "local=true would share the VM's memory"),
        (with(r#""local":"yes""#), "not valid JSON"),
        (with(r#""timeout_s":0"#), "from 1 to 604800"),
        (with(r#""timeout_s":-1"#), "not valid JSON"),
        (with(r#""timeout_s":9999999"#), "from 1 to 604800"),
        (with(r#""timeout_strategy":"Ignore""#), "send-migration timeout_strategy is set to"),
        (with(r#""connections":4"#), "connections is set to 4"),
        (with(r#""downtime_ms":5"#), "downtime_ms=5 cannot be aimed at"),
        (with(r#""memory_mode":"Postcopy""#), "memory_mode is set to Postcopy"),
        (with(r#""tls_dir":"/t""#), "tls_dir is set to /t"),
        (with(r#""arbiter":"file:rel""#), "is not absolute"),
    ] {
        let said = sent(&json).unwrap_err();
        assert!(said.contains(part), "{json}: {said}");
    }
    let long = sent(&format!(r#"{{"destination_url":"{}"}}"#, "x".repeat(9000))).unwrap_err();
    assert!(long.len() < 300);
}

#[test]
fn a_receiver_says_what_of_its_host_stands_in() {
    let json = r#"{"receiver_url":"tcp:0.0.0.0:7000","disks":[{"id":"_disk0","path":"/d"}],
        "net":[{"id":"_net1","tap":"t"}],"rng":{"src":"/dev/random"},"serial":{"mode":"Null"}}"#;
    let read = received(json).unwrap();
    assert_eq!(read.listen, "0.0.0.0:7000".parse().unwrap());
    assert_eq!(read.overrides.disks, [DiskOverride::parse("id=_disk0,path=/d").unwrap()]);
    assert_eq!(read.overrides.net, [NetOverride::parse("id=_net1,tap=t").unwrap()]);
    assert_eq!(read.overrides.serial.as_ref().unwrap().mode, ConsoleMode::Null);
    let again = ReceiveMigration::json_of_text("tcp:0.0.0.0:7000", read.overrides.clone()).unwrap();
    assert_eq!(received(&again), Ok(read));
    let plain = ReceiveMigration::json_of_text("receiver_url=tcp:[::]:1", HostOverrides::default());
    assert_eq!(plain.unwrap(), r#"{"receiver_url":"tcp:[::]:1"}"#);
}

#[test]
fn what_cannot_be_received_is_told_why() {
    let with = |more: &str| format!(r#"{{"receiver_url":"tcp:0.0.0.0:1",{more}}}"#);
    for (json, part) in [
        ("".into(), "not valid JSON"),
        ("{}".into(), "receiver_url= is missing"),
        (r#"{"receiver_url":"unix:/s"}"#.into(), "cannot move through a Unix socket yet"),
        (r#"{"receiver_url":"tcp:host:1"}"#.into(), "tcp:ADDRESS:PORT of this host"),
        (r#"{"receiver_url":"tcp:0.0.0.0:0"}"#.into(), "tcp:ADDRESS:PORT of this host"),
        (with(r#""tls_dir":"/t""#), "receive-migration tls_dir is set to /t"),
        (with(r#""disks":[{"id":"a"}]"#), "missing field `path`"),
        (with(r#""disks":[{"id":"a","path":"/d","readonly":true}]"#), "unknown field `readonly`"),
        (
            with(r#""disks":[{"id":"a","path":"/d"},{"id":"a","path":"/e"}]"#),
            "\"a\" is given twice",
        ),
        (with(r#""net":[{"id":"n","tap":"a-name-far-too-long"}]"#), "name of an interface"),
        (with(r#""serial":{"mode":"Socket","socket":"s"}"#), "cannot be a socket yet"),
        (with(r#""serial":{"mode":"Null","iommu":true}"#), "serial.iommu is set to true"),
        (with(r#""rng":{"src":"/dev/random","x":1}"#), "rng.x is set to 1"),
    ] {
        let said = received(&json).unwrap_err();
        assert!(said.contains(part), "{json}: {said}");
    }
}
