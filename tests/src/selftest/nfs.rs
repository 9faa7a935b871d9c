//! The storage that hosts share over NFS, with nothing of a VM.

use std::time::{Duration, Instant};

use crate::runner::{Cluster, Cut, Host, Options, Order, Party, Storage, Traffic, can_cut};

/// What hangs has not come back after this time.
const A_WHILE: Duration = Duration::from_secs(4);
/// TCP tries again after a time that grows with that of the cut.
const LONG: Duration = Duration::from_secs(60);

/// A host without the way to 9p between it and its tools: they are in its memory.
fn prepare(cluster: &Cluster, host: &Host) {
    let busybox = cluster.cache().busybox();
    host.shell(&format!("cp '{}' /run/busybox", busybox.display())).unwrap();
    host.mount_nfs().unwrap();
}

#[test]
#[ignore = "takes a minute, and pairs on NFS are always tried in tests/tests/partitions.rs"]
fn hosts_share_an_nfs_export_on_which_one_link_wins_and_a_cut_host_waits() {
    if !can_cut().unwrap() {
        return;
    }
    let start = Instant::now();
    let cluster = Cluster::start(&Options::new(3).unwrap().with_nfs()).unwrap();
    println!("three hosts and the storage are up after {} ms", start.elapsed().as_millis());
    cluster.hosts().iter().for_each(|host| prepare(&cluster, host));
    println!("mounted after {} ms", start.elapsed().as_millis());
    for (index, writer) in cluster.hosts().iter().enumerate() {
        let file = Storage::mounted(&format!("file-{index}"));
        writer.shell(&format!("echo from {index} >{}", file.display())).unwrap();
        for reader in cluster.hosts() {
            let read = reader.shell(&format!("cat {}", file.display())).unwrap();
            assert_eq!(read, format!("from {index}\n"));
        }
    }
    println!("files were seen after {} ms", start.elapsed().as_millis());
    one_link_wins(&cluster);
    println!("links were made after {} ms", start.elapsed().as_millis());
    a_lock_holds_on_all_hosts(&cluster);
    files_come_and_go(&cluster);
    println!("files were copied after {} ms", start.elapsed().as_millis());
    a_cut_host_hangs_and_comes_back(&cluster);
    println!("all done after {} ms", start.elapsed().as_millis());
}

fn one_link_wins(cluster: &Cluster) {
    const ROUNDS: usize = 20;
    for index in 0..2 {
        cluster.host(index).shell(&format!("touch /run/nfs/mine-{index}")).unwrap();
    }
    let mut won = [0, 0];
    for round in 0..ROUNDS {
        let link = |index: usize| {
            let own = format!("/run/nfs/mine-{index}");
            let order =
                Order::new(["/run/busybox", "ln", &own, &format!("/run/nfs/claim-{round}")]);
            cluster.host(index).run(order).unwrap().ended.success()
        };
        let linked = std::thread::scope(|scope| {
            let other = scope.spawn(|| link(1));
            [link(0), other.join().unwrap()]
        });
        assert!(linked[0] != linked[1], "round {round}: {linked:?}");
        won[usize::from(linked[1])] += 1;
    }
    println!("of {ROUNDS} links {} and {} were won", won[0], won[1]);
}

fn a_lock_holds_on_all_hosts(cluster: &Cluster) {
    let line =
        "touch /run/nfs/locked; exec 9<>/run/nfs/locked; flock -n 9 && echo held && sleep 1000";
    let holder =
        cluster.host(0).spawn(Order::new(["sh", "-c", line]).log_to("/run/holder")).unwrap();
    let start = Instant::now();
    while !cluster.host(0).shell("cat /run/holder").unwrap().contains("held") {
        assert!(start.elapsed() < LONG, "the lock is not had");
    }
    let try_it = "flock -n /run/nfs/locked true";
    assert!(cluster.host(1).shell(try_it).is_err(), "a lock was had twice");
    // The whole group: the lock is its sleep's, too.
    cluster.host(0).shell(&format!("kill -9 -{}", holder.pid())).unwrap();
    let start = Instant::now();
    while cluster.host(1).shell(try_it).is_err() {
        assert!(start.elapsed() < LONG, "the lock outlives its holder");
    }
}

fn files_come_and_go(cluster: &Cluster) {
    let storage = cluster.storage().unwrap();
    let (there, back) = (cluster.shared_dir().join("there"), cluster.shared_dir().join("back"));
    std::fs::write(&there, "from outside").unwrap();
    storage.make_folder("folder").unwrap();
    storage.put(&there, "folder/file").unwrap();
    let file = Storage::mounted("folder/file");
    assert_eq!(cluster.host(2).shell(&format!("cat {}", file.display())).unwrap(), "from outside");
    let line = format!("printf 'from a host' | dd of={} oflag=direct conv=fsync", file.display());
    cluster.host(1).shell(&line).unwrap();
    storage.get("folder/file", &back).unwrap();
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "from a host");
}

fn a_cut_host_hangs_and_comes_back(cluster: &Cluster) {
    let write = |index: usize| {
        let line = format!("date +%s%N >/run/nfs/written-{index} && echo written");
        cluster.host(index).spawn(Order::new(["sh", "-c", &line])).unwrap()
    };
    let cuts = Cut::both_ways(Party::Host(0), Party::Storage, Traffic::Everything);
    let cuts = cluster.network().cut(&cuts).unwrap();
    let mut hangs = write(0);
    assert!(write(1).wait_at_most(LONG).unwrap().unwrap().success());
    assert_eq!(hangs.wait_at_most(A_WHILE).unwrap(), None, "a cut host reaches the storage");
    cuts.mend().unwrap();
    let start = Instant::now();
    let ended = hangs.wait_at_most(LONG).unwrap().expect("it never came back");
    println!("a cut host came back after {} ms", start.elapsed().as_millis());
    assert!(ended.success());
    // The same from the other side: the server is gone for all.
    let server = cluster.storage().unwrap().host();
    server.pause().unwrap();
    let mut hangs = write(1);
    assert_eq!(hangs.wait_at_most(A_WHILE).unwrap(), None);
    server.resume().unwrap();
    assert!(hangs.wait_at_most(LONG).unwrap().expect("it never came back").success());
}
