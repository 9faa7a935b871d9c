//! The server against clients as they are: prompt, slow, stuck, greedy, rude.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::client::{ClientError, request};
use super::http::{Client, Patience};
use super::*;

/// A VMM that knows nothing but how to answer a ping, count, and keep boots waiting.
struct Stub {
    directory: tempfile::TempDir,
    server: Option<ApiServer>,
    requests: Arc<AtomicUsize>,
    /// Boots that wait for an answer.
    boots: Receiver<ReplySender>,
}

impl Stub {
    fn start() -> Self {
        Self::start_with(Patience::default())
    }

    fn start_with(patience: Patience) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let (boot_sender, boots) = channel();
        let boot_sender = Mutex::new(boot_sender);
        let counted = requests.clone();
        let submit = move |call: ApiCall| {
            counted.fetch_add(1, Ordering::SeqCst);
            match call.request {
                ApiRequest::VmmPing => {
                    call.reply.send(Ok(ApiReply::Ping(VmmPingResponse::of_this_process())));
                }
                ApiRequest::VmBoot => boot_sender.lock().unwrap().send(call.reply).unwrap(),
                _ => call.reply.send(Ok(ApiReply::Empty)),
            }
            Ok(())
        };
        let place = ApiSocket::Path(directory.path().join("api"));
        let server = ApiServer::start_with(&place, Arc::new(submit), patience).unwrap();
        Stub { directory, server: Some(server), requests, boots }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("api")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn ping(&self) -> Result<Option<String>, ClientError> {
        request(&self.path(), "GET", "vmm.ping", None)
    }
}

/// Everything the server says until it ends the connection.
fn read_all(mut stream: UnixStream) -> String {
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    String::from_utf8(text).unwrap()
}

/// What the server says to `bytes`.
fn talk(stub: &Stub, bytes: &[u8]) -> String {
    let mut stream = stub.connect();
    let _ = stream.write_all(bytes);
    read_all(stream)
}

fn impatient() -> Patience {
    Patience { idle_max: Duration::from_millis(200), request_time_max: Duration::from_millis(200) }
}

fn start_error(path: &Path) -> String {
    let submit = |_| Ok(());
    ApiServer::start(&ApiSocket::Path(path.to_owned()), submit).unwrap_err().to_string()
}

#[test]
fn one_connection_carries_many_requests() {
    let stub = Stub::start();
    let mut stream = stub.connect();
    for _ in 0..3 {
        stream.write_all(b"PUT /api/v1/vm.pause HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut buffer = [0; 512];
        let count = stream.read(&mut buffer).unwrap();
        assert_eq!(
            std::str::from_utf8(&buffer[..count]).unwrap(),
            "HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n"
        );
    }
    // Two at once, and the last one says goodbye.
    stream
        .write_all(
            b"PUT /api/v1/vm.pause HTTP/1.1\r\n\r\n\
              PUT /api/v1/vm.resume HTTP/1.1\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
    let answers = read_all(stream);
    assert_eq!(answers.matches("HTTP/1.1 204").count(), 2);
    assert!(answers.ends_with("\r\nConnection: close\r\n\r\n"), "{answers}");
    assert_eq!(stub.requests.load(Ordering::SeqCst), 5);
}

#[test]
fn a_request_in_crumbs_is_understood() {
    let stub = Stub::start();
    let mut stream = stub.connect();
    for byte in b"GET http://x/api/v1/vmm.ping?a=b HTTP/1.0\r\ncontent-LENGTH: 0\r\n\r\n" {
        stream.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    let answer = read_all(stream);
    assert!(answer.starts_with("HTTP/1.1 200 \r\n"), "{answer}");
    assert!(answer.contains("\"build_version\""), "{answer}");
}

#[test]
fn a_client_that_expects_to_be_asked_is_asked() {
    let stub = Stub::start();
    let mut stream = stub.connect();
    stream
        .write_all(
            b"PUT /api/v1/vm.pause HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\
              Connection: close\r\n\r\n",
        )
        .unwrap();
    let mut buffer = [0; 512];
    let count = stream.read(&mut buffer).unwrap();
    let asked = std::str::from_utf8(&buffer[..count]).unwrap();
    assert!(asked.starts_with("HTTP/1.1 100 ") && asked.ends_with("\r\n\r\n"), "{asked}");
    stream.write_all(b"{}").unwrap();
    assert!(read_all(stream).starts_with("HTTP/1.1 204"));
}

#[test]
fn what_is_not_http_is_told_so() {
    let stub = Stub::start_with(impatient());
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\r\n"[..],
        b"hello\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno header\r\n\r\n",
        b"OPTIONS / HTTP/1.1\r\n\r\n",
        &[b'x'; 1024],
    ] {
        let answer = talk(&stub, garbage);
        assert!(answer.starts_with("HTTP/1.1 400 \r\n"), "{garbage:?}: {answer}");
        assert!(answer.contains("[\"This is not an HTTP/1.1 request: "), "{answer}");
    }
    let answer = talk(&stub, b"\0\0\0");
    assert!(answer.contains("[\"The request did not arrive in time"), "{answer}");
    stub.ping().unwrap();
}

#[test]
fn a_body_that_comes_after_its_head_is_waited_for() {
    let stub = Stub::start();
    let mut stream = stub.connect();
    let body = format!(r#"{{"payload":{{"kernel":"/k"}}{}}}"#, " ".repeat(9_000));
    let head = format!("PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: {}\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    stream.write_all(b"Connection: close\r\n\r\n").unwrap();
    for piece in body.as_bytes().chunks(1_000) {
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(piece).unwrap();
    }
    assert!(read_all(stream).starts_with("HTTP/1.1 204 "));
    assert_eq!(stub.requests.load(Ordering::SeqCst), 1);
}

#[test]
fn what_came_before_garbage_is_answered_first() {
    let stub = Stub::start();
    let answers = talk(&stub, b"PUT /api/v1/vm.pause HTTP/1.1\r\n\r\ngarbage\r\n\r\n");
    let (first, second) = answers.split_once("\r\n\r\n").unwrap();
    assert!(first.starts_with("HTTP/1.1 204 "), "{answers}");
    assert!(second.starts_with("HTTP/1.1 400 "), "{answers}");
    assert_eq!(stub.requests.load(Ordering::SeqCst), 1);
}

#[test]
fn oversized_bodies_are_refused_before_they_are_read_and_the_vmm_goes_on() {
    let stub = Stub::start();
    let body = "x".repeat(3 << 20);
    let error = request(&stub.path(), "PUT", "vm.create", Some(&body)).unwrap_err();
    assert!(matches!(error, ClientError::Refused { status: 413, .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "The request's body has 3145728 bytes; at most 1048576 are accepted."
    );
    let answer = talk(
        &stub,
        b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(stub.requests.load(Ordering::SeqCst), 0);
    stub.ping().unwrap();
}

#[test]
fn a_body_within_the_limit_arrives_whole() {
    let stub = Stub::start();
    let cmdline = "x".repeat(900_000);
    let body = format!(r#"{{"payload":{{"kernel":"/k","cmdline":"{cmdline}"}}}}"#);
    let error = request(&stub.path(), "PUT", "vm.create", Some(&body)).unwrap_err();
    assert!(error.to_string().starts_with("The kernel command line has 900000 bytes"), "{error}");
}

#[test]
fn oversized_heads_are_refused() {
    let stub = Stub::start();
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(40_000));
    assert!(talk(&stub, long.as_bytes()).starts_with("HTTP/1.1 400 "));
    let wide = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(40_000));
    let answer = talk(&stub, wide.as_bytes());
    assert!(
        answer.contains("[\"A header of the request is longer than 1024 bytes.\"]"),
        "{answer}"
    );
    let endless = format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(3 << 20));
    let answer = talk(&stub, endless.as_bytes());
    assert!(answer.contains("[\"The request came in too many pieces"), "{answer}");
    stub.ping().unwrap();
}

#[test]
fn bodies_of_unknown_length_are_refused() {
    let stub = Stub::start();
    let answer = talk(
        &stub,
        b"PUT /api/v1/vm.create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
          1e\r\nPUT /api/v1/vm.pause HTTP/1.1\r\n\r\n\r\n0\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("chunked bodies are not accepted"), "{answer}");
    for length in ["-1", "1x", ""] {
        let answer =
            talk(&stub, format!("PUT / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n").as_bytes());
        assert!(answer.contains("Content-Length of the request is not a number"), "{answer}");
    }
    assert_eq!(stub.requests.load(Ordering::SeqCst), 0);
}

#[test]
fn a_wrong_method_hears_the_right_one_in_the_allow_header() {
    let stub = Stub::start();
    let answer = talk(&stub, b"POST /api/v1/vm.boot HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 405 \r\n"), "{answer}");
    assert!(answer.contains("\r\nAllow: PUT\r\n"), "{answer}");
}

#[test]
fn stuck_clients_hold_up_nobody() {
    let stub = Stub::start();
    let mut stuck: Vec<_> = (0..30).map(|_| stub.connect()).collect();
    for (index, stream) in stuck.iter_mut().enumerate() {
        let piece: &[u8] = if index % 2 == 0 { b"PUT /api/v1/vm.cr" } else { b"" };
        stream.write_all(piece).unwrap();
    }
    let begun = Instant::now();
    for _ in 0..20 {
        stub.ping().unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[test]
fn a_slow_vmm_holds_up_only_who_waits_for_it() {
    let stub = Stub::start();
    let path = stub.path();
    let booting = std::thread::spawn(move || request(&path, "PUT", "vm.boot", None));
    let reply = stub.boots.recv().unwrap();
    stub.ping().unwrap();
    assert!(!booting.is_finished());
    reply.send(Err(ApiError::failed("The kernel /k is not there.")));
    let error = booting.join().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "The kernel /k is not there.");
}

#[test]
fn a_vmm_that_forgets_a_request_is_told_on() {
    let stub = Stub::start();
    let path = stub.path();
    let booting = std::thread::spawn(move || request(&path, "PUT", "vm.boot", None));
    drop(stub.boots.recv().unwrap());
    let error = booting.join().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "The VMM ended before it could answer this request.");
}

#[test]
fn a_client_too_slow_with_its_request_is_told_and_dropped() {
    let stub = Stub::start_with(impatient());
    let answer = talk(&stub, b"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 10\r\n\r\n{");
    assert!(answer.starts_with("HTTP/1.1 400 \r\n"), "{answer}");
    assert!(answer.contains("The request did not arrive in time"), "{answer}");
    assert_eq!(read_all(stub.connect()), "", "a silent client is dropped without a word");
}

#[test]
fn too_many_clients_are_told_and_places_become_free_again() {
    let stub = Stub::start_with(Patience {
        idle_max: Duration::from_secs(3),
        request_time_max: Duration::from_secs(3),
    });
    let crowd: Vec<_> = (0..64).map(|_| stub.connect()).collect();
    let answer = read_all(stub.connect());
    assert!(answer.starts_with("HTTP/1.1 503 \r\n"), "{answer}");
    assert!(answer.contains("[\"Too many clients are connected; try again later.\"]"), "{answer}");
    let begun = Instant::now();
    while stub.ping().is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "no place ever became free");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(crowd);
}

#[test]
fn a_client_that_leaves_at_once_harms_nobody() {
    let stub = Stub::start();
    for _ in 0..50 {
        let mut stream = stub.connect();
        let _ = stream.write_all(b"PUT /api/v1/vm.pause HTTP/1.1\r\n\r\n");
    }
    stub.ping().unwrap();
}

#[test]
fn stopping_lets_an_answer_leave_and_removes_the_socket() {
    let mut stub = Stub::start();
    let (path, idle) = (stub.path(), stub.connect());
    let booting = std::thread::spawn(move || request(&path, "PUT", "vm.boot", None));
    let reply = stub.boots.recv().unwrap();
    let server = stub.server.take().unwrap();
    let stopping = std::thread::spawn(move || server.stop());
    std::thread::sleep(Duration::from_millis(50));
    reply.send(Ok(ApiReply::Empty));
    stopping.join().unwrap();
    assert!(booting.join().unwrap().is_ok());
    assert_eq!(read_all(idle), "");
    assert!(!stub.path().exists());
    let error = stub.ping().unwrap_err().to_string();
    assert!(error.starts_with("No VMM can be reached at "), "{error}");
    assert!(error.ends_with("Is it running with --api-socket?"), "{error}");
}

#[test]
fn stopping_waits_no_longer_than_it_may_for_a_vmm_that_hangs() {
    let mut stub = Stub::start();
    let path = stub.path();
    let booting = std::thread::spawn(move || request(&path, "PUT", "vm.boot", None));
    let reply = stub.boots.recv().unwrap();
    let begun = Instant::now();
    stub.server.take().unwrap().stop();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let error = booting.join().unwrap().unwrap_err().to_string();
    assert!(error.starts_with("The connection to the VMM broke before it answered"), "{error}");
    drop(reply);
}

#[test]
fn only_the_owner_may_connect() {
    let stub = Stub::start();
    let mode = std::fs::metadata(stub.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_live_socket_is_not_stolen_and_a_dead_one_is_replaced() {
    let stub = Stub::start();
    assert_eq!(
        start_error(&stub.path()),
        format!(
            "The API socket {} is in use by another process; choose another path or end that \
             process.",
            stub.path().display()
        )
    );
    stub.ping().unwrap();
    let dead = stub.directory.path().join("dead");
    drop(UnixListener::bind(&dead).unwrap());
    let server = ApiServer::start(&ApiSocket::Path(dead.clone()), |_| Ok(())).unwrap();
    drop(server);
    assert!(!dead.exists());
}

#[test]
fn a_file_in_the_way_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("precious");
    std::fs::write(&file, "data").unwrap();
    assert_eq!(
        start_error(&file),
        format!(
            "The API socket {} exists already and is not a socket; choose another path or remove \
             it.",
            file.display()
        )
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "data");
    let nowhere = directory.path().join("missing/api");
    assert!(start_error(&nowhere).contains("cannot be created: No such file or directory"));
    let long = directory.path().join("x".repeat(200));
    assert!(start_error(&long).contains("cannot be created"), "{}", start_error(&long));
}

#[test]
fn a_socket_that_was_handed_over_is_served() {
    use std::os::fd::IntoRawFd;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handed");
    let fd = UnixListener::bind(&path).unwrap().into_raw_fd();
    let submit = |call: ApiCall| {
        call.reply.send(Ok(ApiReply::Empty));
        Ok(())
    };
    let server = ApiServer::start(&ApiSocket::Fd(fd), submit).unwrap();
    request(&path, "PUT", "vm.pause", None).unwrap();
    drop(server);
    assert!(path.exists(), "the file belongs to who made it");
}

#[test]
fn a_descriptor_that_is_no_socket_is_refused() {
    let error = |fd| ApiServer::start(&ApiSocket::Fd(fd), |_| Ok(())).unwrap_err().to_string();
    assert!(error(1).starts_with("The API socket fd=1 is not a listening Unix socket:"));
    assert!(error(987_654).contains("fd=987654 is not a listening Unix socket: Bad file"));
}

/// Requests, well formed and not, and bytes that are none, in pieces of any size.
fn anything() -> impl Strategy<Value = (Vec<u8>, usize)> {
    let line = prop_oneof![
        Just("PUT /api/v1/vm.pause HTTP/1.1\r\n".to_owned()),
        Just("GET http://x HTTP/1.0\r\n".to_owned()),
        Just("\r\n".to_owned()),
        Just("Expect: 100-continue\r\n".to_owned()),
        Just("Transfer-Encoding: chunked\r\n".to_owned()),
        (0..40_u32).prop_map(|length| format!("Content-Length: {length}\r\n")),
        (0..1100_usize).prop_map(|length| "a:".repeat(length / 2) + "\r\n"),
        "[ -~]{0,40}",
    ];
    let text = prop::collection::vec(line, 0..12).prop_map(|lines| lines.concat().into_bytes());
    let bytes = prop::collection::vec(any::<u8>(), 0..40);
    let joined = (text, bytes).prop_map(|(text, bytes)| [text, bytes].concat());
    (joined, 1..1500_usize)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_harm_the_server((bytes, piece) in anything()) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours, impatient()).unwrap();
        let reading = std::thread::spawn(move || {
            let mut served = 0;
            while client.next().is_ok() {
                served += 1;
            }
            served
        });
        for piece in bytes.chunks(piece) {
            let _ = theirs.write_all(piece);
        }
        drop(theirs);
        let served = reading.join().expect("no bytes may end the thread");
        prop_assert!(served <= bytes.len());
    }
}
