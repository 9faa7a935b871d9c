//! Hosts and the network between them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::runner::network::CLIENT_ADDRESS;
use crate::runner::{
    Cache, Cluster, Cut, Ended, Host, Kind, Options, Order, Party, Place, Traffic, can_cut,
};

const SOON: Duration = Duration::from_secs(20);

/// Everything a test does with hosts, in one boot of two.
fn do_everything(kind: Kind) {
    let start = Instant::now();
    let options = Options { kind, ..Options::new(2).unwrap() };
    let cluster = Cluster::start(&options).unwrap();
    println!("two hosts are up after {} ms", start.elapsed().as_millis());
    let (first, second) = (cluster.host(0), cluster.host(1));
    commands_run_as_they_do_here(first);
    processes_can_be_signalled(first);
    storage_is_shared(&cluster);
    assert!(reaches(first, second) && reaches(second, first));

    cluster.network().unplug(Place::Host(1)).unwrap();
    assert!(!reaches(first, second));
    second.ping().unwrap();
    cluster.network().plug_in(Place::Host(1)).unwrap();
    assert!(reaches(first, second));

    if can_cut().unwrap() {
        let everything = Cut::both_ways(Party::Host(0), Party::Host(1), Traffic::Everything);
        let cuts = cluster.network().cut(&everything).unwrap();
        assert!(!reaches(first, second) && reaches_client(&cluster, first));
        cuts.mend().unwrap();
        assert!(reaches(first, second));
    }

    let mut sleeper = second.spawn(Order::new(["sleep", "1000"])).unwrap();
    second.pause().unwrap();
    second.resume().unwrap();
    second.ping().unwrap();
    second.end().unwrap();
    assert!(second.ping().is_err());
    assert_ne!(sleeper.wait().ok(), Some(Ended::Exited(0)));
    first.ping().unwrap();
}

fn commands_run_as_they_do_here(host: &Host) {
    let order = Order::new(["sh", "-c", "echo $A; pwd; echo oops >&2; exit 7"]);
    let output = host.run(order.with_variable("A", "b c").in_folder("/usr")).unwrap();
    assert_eq!(output.stdout, "b c\n/usr\n");
    assert_eq!((output.stderr.as_str(), output.ended), ("oops\n", Ended::Exited(7)));
    assert!(host.run(Order::new(["/does/not/exist"])).is_err());
    host.shell("test -c /dev/kvm && test -c /dev/net/tun").unwrap();
    let many = host.shell("head -c 3000000 /dev/zero | tr '\\0' x").unwrap();
    assert_eq!(many.len(), 3_000_000);
}

fn processes_can_be_signalled(host: &Host) {
    let mut process = host.spawn(Order::new(["sleep", "1000"])).unwrap();
    assert_eq!(process.wait_at_most(Duration::from_millis(50)).unwrap(), None);
    process.kill(libc::SIGTERM).unwrap();
    assert_eq!(process.wait_at_most(SOON).unwrap(), Some(Ended::Killed(libc::SIGTERM)));
    assert!(process.kill(libc::SIGTERM).is_err());
}

fn storage_is_shared(cluster: &Cluster) {
    let file = cluster.shared_dir().join("file");
    let log = cluster.shared_dir().join("log");
    std::fs::write(&file, "from the client").unwrap();
    let order = Order::new(["cat".to_owned(), file.display().to_string()]).log_to(&log);
    assert!(cluster.host(0).run(order).unwrap().ended.success());
    let read = cluster.host(1).shell(&format!("cat {}", log.display())).unwrap();
    assert_eq!(read, "from the client");
}

fn busybox() -> String {
    Cache::open().unwrap().busybox().display().to_string()
}

/// Whether a connection from one host to the other comes about and carries something.
fn reaches(from: &Host, to: &Host) -> bool {
    let busybox = busybox();
    let server = to.spawn(Order::new([&busybox, "nc", "-l", "-p", "5000"])).unwrap();
    let line = format!(
        "for i in 1 2 3; do echo hello | timeout 2 {busybox} nc {} 5000 && exit 0; sleep 0.2; done; exit 1",
        to.address()
    );
    let reached = from.shell(&line).is_ok();
    let _ = server.kill(libc::SIGKILL);
    reached
}

fn reaches_client(cluster: &Cluster, host: &Host) -> bool {
    let listener =
        cluster.client_namespace().run(|| TcpListener::bind((CLIENT_ADDRESS, 5001))).unwrap();
    let order = format!("echo hello | timeout 5 {} nc {CLIENT_ADDRESS} 5001", busybox());
    let mut client = host.spawn(Order::new(["sh", "-c", &order])).unwrap();
    let (mut stream, _): (TcpStream, _) = listener.accept().unwrap();
    let mut heard = [0; 6];
    stream.read_exact(&mut heard).unwrap();
    stream.write_all(b"bye").unwrap();
    drop(stream);
    client.wait_at_most(SOON).unwrap();
    &heard == b"hello\n"
}

#[test]
fn emulated_hosts_do_all_that_tests_ask_of_them() {
    do_everything(Kind::Virtual);
}

#[test]
fn namespaces_do_all_that_tests_ask_of_them() {
    do_everything(Kind::Direct);
}
