//! Strangers at the doors of a running VMM: its API socket, and a backup's channel and heartbeat
//! ports. The real binary, which must not mind. That a VM that runs does not mind either is
//! `tests/tests/bad_input.rs`'s to show.

#[path = "common/ports.rs"]
mod ports;
#[path = "common/program.rs"]
mod program;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use ft::prologue::LogStart;
use ft::{Assumptions, DigestMode, Link, Message, Prologue, Settings, Word};
use ports::free_port;
use program::{Place, Program, wait};

/// What takes longer than this has failed, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A VMM with an API socket, which must end well when it is told to.
struct Vmm {
    place: Place,
    child: Child,
}

impl Vmm {
    fn start(words: &[&str]) -> Self {
        let place = Place::new();
        let mut command = place.command(Program::Vmm, &[&["--api-socket", "s"], words].concat());
        let log = std::fs::File::create(place.path("log")).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let vmm = Vmm { place, child };
        let deadline = Instant::now() + PATIENCE;
        while !vmm.ask(&["ping"]).status.success() {
            assert!(Instant::now() < deadline, "it does not answer: {}", vmm.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        vmm
    }

    fn ask(&self, words: &[&str]) -> std::process::Output {
        self.place.run(Program::ChRemote, &[&["--api-socket", "s"], words].concat())
    }

    fn refuses(&self, words: &[&str], part: &str) {
        self.place.refused(Program::ChRemote, &[&["--api-socket", "s"], words].concat(), &[part]);
    }

    fn must_be(&self, state: &str) {
        let output = self.ask(&["ft-info"]);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(&format!("\"state\": \"{state}\"")), "{said}{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.place.path("log")).unwrap()
    }

    /// Sends bytes over the API socket; the answer.
    fn say(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.place.path("s")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // It may refuse before all is said.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Ends it; whatever was done to it, it ends well, without a panic, and takes its socket along.
    fn end(mut self) {
        assert!(self.ask(&["shutdown-vmm"]).status.success(), "{}", self.log());
        let status = wait(&mut self.child);
        assert!(status.is_some_and(|status| status.success()), "{status:?}: {}", self.log());
        assert!(!self.log().contains("panicked"), "{}", self.log());
        assert!(!self.place.path("s").exists(), "the socket is left");
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A backup, and where it listens.
fn backup() -> (Vmm, SocketAddr) {
    let free = SocketAddr::from(([127, 0, 0, 1], free_port()));
    (Vmm::start(&["--ft", &format!("role=backup,listen={free}")]), free)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn greeting(build: &str) -> Vec<u8> {
    let prologue = Prologue {
        assumptions: Assumptions::new(build, xxhash_rust::xxh3::xxh3_64(&[])),
        vm_id: [1; 16],
        generation: 1,
        start: LogStart::Delta,
        digest_mode: DigestMode::EveryChunk,
        settings: Settings::default(),
        arbiter: String::new(),
        machine: b"{}".to_vec(),
        cpuid: Vec::new(),
    };
    Link::primary(1).seal(&Message::Hello(Box::new(prologue))).unwrap()
}

/// A VMM that waits for a VM to move there, who waits for that, and where it listens.
fn receiver() -> (Vmm, Child, SocketAddr) {
    let vmm = Vmm::start(&[]);
    let free = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let words = ["--api-socket", "s", "receive-migration", &format!("tcp:{free}")];
    let mut command = vmm.place.command(Program::ChRemote, &words);
    let waiting = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !String::from_utf8_lossy(&vmm.ask(&["ft-info"]).stdout).contains("waiting") {
        assert!(Instant::now() < deadline, "it does not wait: {}", vmm.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    (vmm, waiting, free)
}

/// What the backup says to a primary of another build, which it can only say if it listened.
fn refusal(stream: &mut TcpStream) -> String {
    let mut link = Link::primary(1);
    let mut bytes = [0; 4096];
    loop {
        if let Some(message) = link.next_message().unwrap() {
            let Message::Word(Word::Refuse { why }) = message else { panic!("{message:?}") };
            return why;
        }
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "the backup hung up without a word");
        link.push(&bytes[..count]);
    }
}

/// Whether the other side closes the connection.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).is_ok() || rest.is_empty()
}

#[test]
fn a_backup_minds_neither_garbage_nor_silence_nor_a_crowd() {
    let (vmm, address) = backup();
    let greeting = greeting("another-build");
    let mut flipped = greeting.clone();
    flipped[20] ^= 1;
    let huge = [&greeting[..8], &[0xff; 56]].concat();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 5000], &flipped, &huge] {
        let mut stream = connect(address);
        stream.write_all(bytes).unwrap();
        assert!(is_closed(&mut stream));
    }
    // Cut in the header, cut in the body, then gone; and some that stay, and say nothing more.
    let cut: Vec<_> = [1, 40, 64, greeting.len() - 1]
        .into_iter()
        .map(|length| {
            let mut stream = connect(address);
            stream.write_all(&greeting[..length]).unwrap();
            drop(connect(address));
            stream
        })
        .collect();
    let crowd: Vec<_> = (0..200).map(|_| connect(address)).collect();
    vmm.must_be("waiting");
    // A primary is heard among them all, and learns why it is not followed.
    let mut primary = connect(address);
    primary.write_all(&greeting).unwrap();
    let why = refusal(&mut primary);
    assert!(why.contains("another-build"), "{why}");
    vmm.must_be("waiting");
    drop((cut, crowd));
    assert!(vmm.log().lines().count() < 50, "strangers fill the log: {}", vmm.log());
    vmm.end();
}

#[test]
fn a_backup_minds_no_datagram() {
    let (vmm, address) = backup();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for size in [0, 1, 63, 64, 65, 512, 9000] {
        for byte in [0, b'C', 0xff] {
            socket.send_to(&vec![byte; size], address).unwrap();
        }
    }
    vmm.must_be("waiting");
    vmm.end();
}

#[test]
fn a_description_that_is_none_is_refused_to_the_primary() {
    let (vmm, address) = backup();
    // The build's name is the backup's own secret only until somebody asks with a wrong one.
    let mut stream = connect(address);
    stream.write_all(&greeting("another-build")).unwrap();
    let why = refusal(&mut stream);
    let builds = why.split_whitespace().filter(|word| word.contains('-'));
    let mut builds = builds.map(|word| word.trim_matches([',', ';', ':']));
    let build = builds.find(|word| word.starts_with(env!("CARGO_PKG_VERSION")));
    let build = build.unwrap_or_else(|| panic!("no build is named in: {why}")).to_owned();
    let mut stream = connect(address);
    stream.write_all(&greeting(&build)).unwrap();
    let why = refusal(&mut stream);
    assert!(why.starts_with("the VM that is described cannot be built"), "{why}");
    vmm.must_be("waiting");
    vmm.end();
}

#[test]
fn a_receiver_minds_no_stranger_and_tells_its_caller_when_it_ends() {
    let (vmm, mut waiting, address) = receiver();
    connect(address).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut sender = connect(address);
    sender.write_all(&greeting("another-build")).unwrap();
    let why = refusal(&mut sender);
    assert!(why.contains("another-build"), "{why}");
    vmm.must_be("waiting");
    assert!(waiting.try_wait().unwrap().is_none(), "a refused sender is not the one");
    vmm.refuses(&["receive-migration", &format!("tcp:{address}")], "waits for a VM");
    vmm.refuses(&["info"], "There is no VM yet");
    std::fs::write(vmm.place.path("vm.json"), r#"{"payload":{"kernel":"k"}}"#).unwrap();
    vmm.refuses(&["create", "vm.json"], "waits for a VM from another host");
    vmm.end();
    let status = wait(&mut waiting).unwrap();
    assert_eq!(status.code(), Some(1));
    let mut said = String::new();
    waiting.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(
        said.contains("ended before it could answer") || said.contains("told to wait"),
        "{said}"
    );
}

#[test]
fn a_receiver_needs_an_address_and_a_port_that_are_free() {
    let vmm = Vmm::start(&[]);
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let held = holder.local_addr().unwrap();
    vmm.refuses(&["receive-migration", &format!("tcp:{held}")], "Address already in use");
    vmm.refuses(&["receive-migration", "tcp:192.0.2.1:7000"], "no primary can be awaited at");
    vmm.must_be("off");
    vmm.end();
}

#[test]
fn requests_that_are_too_large_cut_off_or_none_get_an_answer() {
    let vmm = Vmm::start(&[]);
    let put = |length: usize, body: &[u8]| {
        let head = format!(
            "PUT /api/v1/vm.create HTTP/1.1\r\nHost: l\r\nContent-Length: {length}\r\n\r\n"
        );
        [head.as_bytes(), body].concat()
    };
    let large = vec![b' '; 3 << 20];
    for (bytes, expected) in [
        (put(large.len(), &large), " 413 "),
        (put(usize::MAX, b"{"), " 413 "),
        (put(4, b"{ooo"), " 400 "),
        (put(3, b"[1]"), " 400 "),
        (put(2000, "[".repeat(2000).as_bytes()), " 400 "),
        (b"\x16\x03\x01\x02\x00 not HTTP at all\r\n\r\n".to_vec(), " 400 "),
        ([b"GET /".as_slice(), &[b'a'; 40 << 10]].concat(), " 400 "),
    ] {
        let answer = vmm.say(&bytes);
        assert!(answer.contains(expected), "{expected}: {answer}");
        assert!(answer.contains("[\""), "no sentence: {answer}");
    }
    // Cut off in the head, and in the body: there is nobody left to answer.
    vmm.say(b"PUT /api/v1/vm.create HT");
    vmm.say(&put(100, b"{\"cpus\":"));
    let slow = UnixStream::connect(vmm.place.path("s")).unwrap();
    (&slow).write_all(b"PUT /api/v1/vm.boot HTTP/1.1\r\nContent-Le").unwrap();
    assert!(vmm.ask(&["ping"]).status.success(), "{}", vmm.log());
    vmm.end();
}

#[test]
fn orders_that_make_no_sense_now_are_refused_and_change_nothing() {
    let vmm = Vmm::start(&[]);
    for order in ["boot", "info", "pause", "resume", "reboot", "shutdown", "counters", "delete"] {
        vmm.refuses(&[order], "There is no VM yet");
    }
    for order in ["ft-disable", "ft-failover", "power-button"] {
        vmm.refuses(&[order], "There is no VM yet");
    }
    vmm.refuses(&["ft-enable", "role=primary,peer=b:1,arbiter=none"], "There is no VM yet");
    vmm.refuses(&["send-migration", "tcp:127.0.0.1:1"], "There is no VM yet");
    let create = |json: &str, part: &str| {
        std::fs::write(vmm.place.path("vm.json"), json).unwrap();
        vmm.refuses(&["create", "vm.json"], part);
    };
    create("{", "not valid JSON");
    create("{}", "nothing to boot");
    create(r#"{"payload":{"kernel":"k"},"vdpa":[{"path":"x"}]}"#, "vdpa");
    create(r#"{"payload":{"kernel":"k"},"memory":{"size":-1}}"#, "not valid JSON");
    create(r#"{"payload":{"kernel":"k"},"serial":{"mode":"Socket","socket":"x"}}"#, "a socket yet");
    create(r#"{"payload":{"kernel":"k"},"ft":{"replay":"x"}}"#, "from its log");
    create(r#"{"payload":{"kernel":"k"},"ft":{"role":"primary"}}"#, "peer= is missing");
    std::fs::write(vmm.place.path("vm.json"), r#"{"payload":{"kernel":"missing"}}"#).unwrap();
    assert!(vmm.ask(&["create", "vm.json"]).status.success());
    vmm.refuses(&["create", "vm.json"], "there is a VM already");
    vmm.refuses(&["boot"], "The kernel 'missing' cannot be read");
    vmm.refuses(&["pause"], "The VM is not running; boot it first");
    vmm.refuses(&["send-migration", "tcp:127.0.0.1:1"], "The VM is not running; boot it first");
    vmm.refuses(&["receive-migration", "tcp:127.0.0.1:1"], "There is a VM already");
    assert!(vmm.ask(&["delete"]).status.success());
    vmm.end();
}
