//! Tests of `etcd.rs` against servers that are not etcd, and answers that etcd would not give. What
//! a real one does is tested in `vmm/tests/arbiter.rs`.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use super::*;

const QUESTION: Question = Question { vm_id: [1; 16], generation: 2, claimant: [0xab; 16] };
const HEADER: &str = r#""header":{"cluster_id":"1","revision":"2"}"#;

/// A server that gives each request the same answer, and passes the requests on.
fn server(status: &str, body: &str) -> (PeerAddress, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = sender.send(whole_request(&mut stream));
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (PeerAddress { host: "127.0.0.1".into(), port }, requests)
}

/// Head and body, which may come in pieces.
fn whole_request(stream: &mut impl Read) -> String {
    let mut request = String::new();
    let mut piece = [0; 4096];
    loop {
        let length = stream.read(&mut piece).unwrap();
        request.push_str(std::str::from_utf8(&piece[..length]).unwrap());
        let Some((head, body)) = request.split_once("\r\n\r\n") else { continue };
        let wanted = head.to_lowercase();
        let wanted = wanted.lines().find_map(|line| line.strip_prefix("content-length: "));
        if length == 0 || body.len() >= wanted.map_or(0, |wanted| wanted.parse().unwrap()) {
            return request;
        }
    }
}

fn arbiter(endpoints: Vec<PeerAddress>) -> EtcdArbiter {
    EtcdArbiter::new(&EtcdConfig { endpoints, prefix: "/ft".into(), tls: None }).unwrap()
}

fn range(key: &str, value: &[u8]) -> String {
    let (key, value) = (BASE64.encode(key), BASE64.encode(value));
    let entry = format!(r#"{{"key":"{key}","create_revision":"2","value":"{value}"}}"#);
    format!(r#"{{{HEADER},"responses":[{{"response_range":{{"kvs":[{entry}],"count":"1"}}}}]}}"#)
}

fn own_key() -> String {
    format!("/ft/{}/generation-2", "01".repeat(16))
}

#[test]
fn the_key_is_the_prefix_the_vm_and_the_generation() {
    let put = format!(r#"{{{HEADER},"succeeded":true,"responses":[{{"response_put":{{}}}}]}}"#);
    let (address, requests) = server("200 OK", &put);
    assert_eq!(arbiter(vec![address]).claim(&QUESTION).unwrap(), Verdict::Won);
    let request = requests.recv().unwrap().to_lowercase();
    assert!(request.starts_with("post /v3/kv/txn http/1.1\r\n"), "{request}");
    assert!(request.contains("content-type: application/json"), "{request}");
    let key = BASE64.encode(own_key()).to_lowercase();
    assert_eq!(request.matches(&key).count(), 3, "{request}");
}

#[test]
fn whoever_stands_in_the_key_has_won() {
    for (claimant, expected) in [("ab", Verdict::Won), ("cd", Verdict::Lost)] {
        let (address, _requests) =
            server("200 OK", &range(&own_key(), claimant.repeat(16).as_bytes()));
        assert_eq!(arbiter(vec![address]).claim(&QUESTION).unwrap(), expected);
    }
}

#[test]
fn an_answer_that_makes_no_sense_is_no_answer() {
    let other = "cd".repeat(16);
    let won = r#""succeeded":true"#;
    let two =
        range(&own_key(), other.as_bytes()).replace(r#"responses":[{"#, r#"responses":[{},{"#);
    let cases = [
        ("200 OK", String::new(), "this is no answer of etcd's"),
        ("200 OK", "[]".into(), "this is no answer of etcd's"),
        ("200 OK", format!("{{{won}}}"), "missing field `header`"),
        ("200 OK", format!("{{{HEADER}}}"), "did not succeed with 0 responses"),
        ("200 OK", format!("{{{HEADER},{won}}}"), "succeeded with 0 responses"),
        (
            "200 OK",
            range(&own_key(), other.as_bytes()).replace(HEADER, &format!("{HEADER},{won}")),
            "succeeded with 1 responses",
        ),
        ("200 OK", two, "makes no sense"),
        ("200 OK", range("/ft/another", other.as_bytes()), "makes no sense"),
        ("200 OK", range(&own_key(), b"hello"), "names nobody"),
        ("200 OK", range(&own_key(), b""), "names nobody"),
        ("200 OK", "x".repeat(70_000), "larger than"),
        ("302 Found", String::new(), "status 302"),
        ("404 Not Found", "no such\npage".into(), "status 404, no such page"),
        ("503 Busy", r#"{"error":"etcdserver: no leader"}"#.into(), "503, etcdserver: no leader"),
        ("200", "HTTP/1.1".into(), "this is no answer"),
    ];
    for (status, body, expected) in cases {
        let (address, _requests) = server(status, &body);
        let error = arbiter(vec![address]).claim(&QUESTION).unwrap_err().to_string();
        assert!(error.contains(expected), "{status} {body}: {error}");
    }
}

#[test]
fn servers_are_asked_in_turn_and_the_one_that_answered_first_next_time() {
    let (bad, bad_requests) = server("503 Busy", "");
    let (good, good_requests) = server("200 OK", &range(&own_key(), b"cd".repeat(16).as_slice()));
    let arbiter = arbiter(vec![bad.clone(), bad, good]);
    for _ in 0..3 {
        assert_eq!(arbiter.claim(&QUESTION).unwrap(), Verdict::Lost);
    }
    assert_eq!(bad_requests.try_iter().count(), 2);
    assert_eq!(good_requests.try_iter().count(), 3);
}

#[test]
fn a_server_may_have_an_address_of_version_6() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return };
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let arbiter = arbiter(vec![PeerAddress { host: "::1".into(), port }]);
    let error = arbiter.claim(&QUESTION).unwrap_err().to_string();
    assert!(error.starts_with(&format!("[::1]:{port}: ")) && error.contains("refused"), "{error}");
}

#[test]
fn a_server_that_is_silent_leaves_time_for_the_next() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let (good, _requests) = server("200 OK", &range(&own_key(), b"cd".repeat(16).as_slice()));
    let arbiter = arbiter(vec![PeerAddress { host: "127.0.0.1".into(), port }, good]);
    assert_eq!(arbiter.claim(&QUESTION).unwrap(), Verdict::Lost);
}

#[test]
fn all_servers_together_take_no_longer_than_a_question_may() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let arbiter = arbiter(vec![PeerAddress { host: "127.0.0.1".into(), port }; 5]);
    let begun = Instant::now();
    let error = arbiter.claim(&QUESTION).unwrap_err().to_string();
    let taken = begun.elapsed();
    assert_eq!(error.matches("timeout").count(), 2, "{error}");
    assert!(taken < QUESTION_TIME_MAX + Duration::from_secs(1), "{taken:?}");
    // The two that were asked come last now.
    assert_eq!(arbiter.first.load(Ordering::Relaxed), 2);
}

#[test]
fn a_check_claims_nothing_and_tells_what_to_look_at() {
    let nothing = format!(r#"{{{HEADER},"responses":[{{"response_range":{{}}}}]}}"#);
    let (address, requests) = server("200 OK", &nothing);
    arbiter(vec![address]).check().unwrap();
    let request = requests.recv().unwrap();
    assert!(request.contains(r#""create_revision":"0""#), "{request}");
    assert!(request.contains(r#""result":"LESS""#), "{request}");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = PeerAddress { host: "127.0.0.1".into(), port: closed };
    let error = arbiter(vec![address]).check().unwrap_err().to_string();
    let begin = format!("the arbiter in etcd at http://127.0.0.1:{closed} cannot be asked: ");
    assert!(error.starts_with(&begin) && error.contains("refused"), "{error}");
}

#[test]
fn time_is_shared_and_nobody_is_asked_in_too_little_of_it() {
    let ms = Duration::from_millis;
    assert_eq!(share(ms(3000), 1), Some(ms(3000)));
    assert_eq!(share(ms(3000), 2), Some(ms(1500)));
    assert_eq!(share(ms(3000), 5), Some(ms(1400)));
    assert_eq!(share(ms(1600), 4), Some(ms(1400)));
    assert_eq!(share(ms(1300), 1), None);
}
