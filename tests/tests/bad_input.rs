//! Bad input meets a VM that runs: whatever strangers, misconfigured backups, full disks and second primaries do, whoever
//! asked for it gets a sentence, and the VM answers over the connection that its client has had all along.

mod common;
mod liar;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use common::{conclude, small_vm, takeover_timeout};
use ft::{Ack, Chunk, Divergence, Message, Trail, Word};
use liar::{follow_and_talk, talk};
use tests::client::{JournalLoad, Pace};
use tests::guest::protocol::Ask;
use tests::runner::network::CLIENT_ADDRESS;
use tests::runner::{Cluster, Ended, Host, Options, Order, binaries};
use tests::stranger::{pester_channel, pester_heartbeats};
use tests::vm::{Acknowledgement, Pair, VmmProcess, wait_until};

const SOON: Duration = Duration::from_secs(60);
/// The backup's channel port in a pair of the tests.
const CHANNEL: u16 = 7000;
/// In the hosts' network, and nobody's.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 99);

/// The VM, and a client that never lets go of its connection.
struct Subject<'a> {
    cluster: &'a Cluster,
    pair: Pair<'a>,
    load: JournalLoad,
}

#[test]
fn a_vm_runs_on_and_stays_protected_whatever_anybody_tries() {
    let cluster = Cluster::start(&Options::new(2).unwrap()).unwrap();
    conclude(&cluster, play(&cluster));
}

fn play(cluster: &Cluster) -> Result<()> {
    let pair = small_vm(cluster, Acknowledgement::Received)?;
    let pace = Pace { client: 1, payload_size: 100, interval: Duration::from_millis(10) };
    let load = pair.guest().journal(pace, Instant::now())?;
    let mut subject = Subject { cluster, pair, load };
    subject.try_all(
        "off",
        &[
            ("vm: pests at the API", pests_at_the_api),
            ("vm: orders that make no sense", senseless_orders),
            ("vm: a log that cannot be made", logs_that_cannot_be_made),
            ("vm: a full disk under the log", full_disk_under_the_log),
        ],
    )?;
    subject.try_all(
        "solo",
        &[
            ("vm: backups that are none", backups_that_are_none),
            ("vm: backups that talk nonsense", backups_that_talk_nonsense),
            ("vm: backups that lie about their copy", backups_that_lie_about_their_copy),
            ("vm: a backup of another build", backup_of_another_build),
            ("vm: backups that do not fit", backups_that_do_not_fit),
            ("vm: a second VM on its disk, its tap, its socket", second_vm_on_the_same_things),
        ],
    )?;
    subject.pair.reprotect()?;
    subject.try_all(
        "protected",
        &[
            ("pair: pests at the channel", pests_at_the_channel),
            ("pair: pests at the APIs", pests_at_the_api),
            ("pair: a second primary, a second backup", second_primary_and_second_backup),
            ("pair: orders that make no sense", orders_for_a_pair),
        ],
    )?;
    subject.ends_well()
}

type Trial = fn(&mut Subject) -> Result<()>;

impl Subject<'_> {
    /// After each trial the VM answers, and the state is this one. Trials are chosen like scenes.
    fn try_all(&mut self, state: &str, trials: &[(&str, Trial)]) -> Result<()> {
        for (name, trial) in trials.iter().filter(|(name, _)| common::is_chosen(name)) {
            let begun = Instant::now();
            let tried = trial(self).and_then(|()| self.must_be(state));
            tried.with_context(|| format!("{name}\n{}", self.pair.describe()))?;
            println!("{name}: {} ms", begun.elapsed().as_millis());
        }
        Ok(())
    }

    fn must_be(&mut self, state: &str) -> Result<()> {
        self.must_answer()?;
        self.pair.primary().must_run()?;
        if let Some(backup) = self.pair.backup() {
            backup.must_run()?;
        }
        let info = self.pair.ft_info()?;
        ensure!(info.state == state, "it should be {state}: {info:?}");
        Ok(())
    }

    fn must_answer(&self) -> Result<()> {
        let goal = self.load.acknowledged() + 20;
        wait_until("answers", SOON, Duration::from_millis(10), || {
            if let Some(broken) = self.load.look(|history| history.broken.clone()) {
                bail!("the connection broke: {broken}");
            }
            Ok((self.load.acknowledged() >= goal).then_some(()))
        })
    }

    /// `ch-remote` is refused at the primary, with a sentence that holds this.
    fn refused(&mut self, words: &[&str], part: &str) -> Result<()> {
        let output = self.pair.primary().ch_remote(words)?;
        ensure!(!output.ended.success(), "{words:?} was carried out");
        one_sentence(&output.stderr, part).with_context(|| format!("{words:?}"))
    }

    fn refused_join(&mut self, peer: SocketAddr, more: &str, part: &str) -> Result<()> {
        let fields = format!("role=primary,peer={peer},arbiter=none,connect_timeout_ms=2000{more}");
        self.refused(&["ft-enable", &fields], part)
    }

    fn host(&self, index: usize) -> &Host {
        self.cluster.host(index)
    }

    fn address(&self, index: usize, port: u16) -> SocketAddr {
        (self.host(index).address(), port).into()
    }

    /// Starts a VMM on a host that has to end by itself, with a sentence that holds this.
    fn must_not_start(&mut self, index: usize, words: &[&str], part: &str) -> Result<()> {
        let program = self.pair.primary().program().display().to_string();
        let order = Order::new([&[program.as_str()], words].concat());
        let order = order.with_variable("RUST_BACKTRACE", "1");
        let output = self.host(index).run(order)?;
        ensure!(!output.ended.success(), "{words:?} ended well");
        one_sentence(&output.stderr, part).with_context(|| format!("{words:?}"))
    }

    /// The pair was a pair all along: the backup takes over. Then everything ends, and nothing is left.
    fn ends_well(mut self) -> Result<()> {
        self.pair.kill_primary()?;
        self.pair.wait_for_takeover(takeover_timeout())?;
        self.must_answer()?;
        self.load.stop()?;
        let _ = self.pair.guest().control()?.ask(&Ask::PowerOff);
        let ended = self.pair.primary().wait(SOON)?;
        self.pair.ensure(ended == Ended::Exited(0), &format!("the guest's end: {ended:?}"))?;
        for host in self.cluster.hosts().iter().filter(|host| host.is_emulated()) {
            let left = host.shell(
                "ls -l /proc/[0-9]*/exe 2>/dev/null | grep -E 'cloud-h|stranger|ch-rem' || true",
            )?;
            ensure!(left.trim().is_empty(), "processes are left on a host: {left}");
        }
        Ok(())
    }
}

fn one_sentence(said: &str, part: &str) -> Result<()> {
    let lines: Vec<&str> = said.trim_end().lines().collect();
    ensure!(
        lines.len() == 1 && said.contains(part) && !said.contains("panicked"),
        "one sentence with '{part}' was expected, not: {said}"
    );
    Ok(())
}

fn pests_at_the_api(subject: &mut Subject) -> Result<()> {
    let stranger = binaries()?.join("stranger").display().to_string();
    let vmms = [Some(subject.pair.primary().socket().to_owned()), {
        subject.pair.backup().map(|backup| backup.socket().to_owned())
    }];
    for (index, socket) in vmms.into_iter().enumerate() {
        let Some(socket) = socket else { continue };
        let socket = socket.display().to_string();
        let output = subject.host(index).run(Order::new([&stranger, "--api", &socket]))?;
        ensure!(output.ended.success(), "at {socket}: {}", output.stderr);
    }
    subject.must_answer()
}

fn senseless_orders(subject: &mut Subject) -> Result<()> {
    for (words, part) in [
        (&["resume"][..], "The VM is not paused"),
        (&["boot"], "the VM runs already"),
        (&["ft-disable"], "The VM is not protected, so there is nothing to disable"),
        (&["ft-failover"], "The VM has no backup that it could be handed to"),
        (&["ft-enable", "role=backup,listen=0.0.0.0:7000"], "it cannot follow"),
        (&["ft-enable", "replay=/nowhere"], "it cannot follow"),
    ] {
        subject.refused(words, part)?;
    }
    Ok(())
}

fn logs_that_cannot_be_made(subject: &mut Subject) -> Result<()> {
    let existing = subject.cluster.shared_dir().join("existing");
    std::fs::write(&existing, "dear diary")?;
    let record = format!("record={}", existing.display());
    subject.refused(&["ft-enable", &record], "an existing one is never overwritten")?;
    ensure!(std::fs::read(&existing)? == b"dear diary", "the file was overwritten");
    subject.refused(&["ft-enable", "record=/nowhere/log"], "No such file or directory")
}

/// A small file system that is gone with this.
struct SmallDisk<'a> {
    host: &'a Host,
    folder: PathBuf,
}

impl<'a> SmallDisk<'a> {
    fn mount(host: &'a Host, folder: PathBuf) -> Result<Self> {
        let path = folder.display();
        host.shell(&format!("mkdir -p {path} && mount -t tmpfs -o size=4m none {path}"))?;
        Ok(Self { host, folder })
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = self.host.shell(&format!("umount -l {}", self.folder.display()));
    }
}

/// The recording ends, and says so; the VM does not notice.
fn full_disk_under_the_log(subject: &mut Subject) -> Result<()> {
    let host = subject.cluster.host(0);
    let disk = SmallDisk::mount(host, subject.cluster.shared_dir().join("small"))?;
    let log = disk.folder.join("log");
    // Whether the order is told of it or was answered before is a matter of moments.
    let begun =
        subject.pair.primary().ch_remote(&["ft-enable", &format!("record={}", log.display())])?;
    ensure!(begun.ended.success() || begun.stderr.contains("No space left"), "{}", begun.stderr);
    let failed = subject.pair.primary().wait_for_event("ft", "recording-failed", SOON)?;
    ensure!(failed.properties["why"].as_str().is_some_and(|why| why.contains("No space left")));
    subject.must_answer()?;
    let info = subject.pair.ft_info()?;
    ensure!(info.last_event.is_some_and(|event| event.what.contains("Recording ended")));
    // What is there is a log, as far as it goes.
    let ft_log = binaries()?.join("ft-log").display().to_string();
    let log = log.display().to_string();
    let verified = host.run(Order::new([&ft_log, "verify", &log]))?;
    ensure!(verified.ended == Ended::Exited(1), "{verified:?}");
    Ok(())
}

/// Nobody there, nobody listening, and others who listen.
fn backups_that_are_none(subject: &mut Subject) -> Result<()> {
    subject.refused_join((NOBODY, CHANNEL).into(), "", "cannot be reached")?;
    subject.refused_join(subject.address(1, 7999), "", "Connection refused")?;
    let namespace = subject.cluster.client_namespace();
    for (word, part) in [
        (&b"SSH-2.0-OpenSSH_9.2\r\n"[..], "does not start with CHFT"),
        (b"", "could not be joined: nothing was heard"),
    ] {
        let listener = namespace.run(|| TcpListener::bind((CLIENT_ADDRESS, 0)))?;
        let address = listener.local_addr()?;
        let answering = std::thread::spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.write_all(word)?;
            // To the end of the primary's patience; how it hangs up is its own affair.
            let _ = stream.read_to_end(&mut Vec::new());
            Ok(())
        });
        subject.refused_join(address, ",timeout_ms=2000", part)?;
        answering.join().map_err(|_| anyhow::anyhow!("the listener's thread failed"))??;
    }
    let no_arbiter =
        format!("role=primary,peer={},arbiter=file:/nowhere", subject.address(1, 7999));
    subject.refused(&["ft-enable", &no_arbiter], "the arbiter's directory /nowhere cannot be used")
}

/// They greet as they should, and then say what has no place there.
fn backups_that_talk_nonsense(subject: &mut Subject) -> Result<()> {
    let kept = |first_frame, pages| {
        Message::Word(Word::Kept { first_frame, digests: vec![[1; 8]; pages] })
    };
    let impossible = Ack { received: 1 << 40, executed: 1 << 40, ..Ack::default() };
    let chunk = Chunk {
        number: 1,
        start_moment: 0,
        end_moment: 1,
        outputs: Trail::default(),
        records: Vec::new(),
    };
    let welcome = || Message::Word(Word::Welcome);
    for (words, part) in [
        (vec![kept(1 << 40, 1)], "a list of pages that the VM does not have"),
        (vec![kept(0, 9), kept(8, 1)], "a list of pages that the VM does not have"),
        (vec![kept(0, 0)], "a list of pages that the VM does not have"),
        (vec![welcome(), kept(0, 3)], "a list of 3 pages from frame 0 on while Copying"),
        (vec![Message::Word(Word::Live { generation: 9 })], "while Greeting"),
        (vec![welcome(), Message::Word(Word::Ack(impossible))], "an impossible acknowledgement"),
        (vec![welcome(), Message::Append(chunk)], "a log from the backup"),
    ] {
        let listener =
            subject.cluster.client_namespace().run(|| TcpListener::bind((CLIENT_ADDRESS, 0)))?;
        let address = listener.local_addr()?;
        let talking = std::thread::spawn(move || talk(&listener, &words));
        subject.refused_join(address, "", part)?;
        talking.join().map_err(|_| anyhow::anyhow!("the listener's thread failed"))??;
    }
    Ok(())
}

/// They protect the VM, and then say of their copy what cannot be: they count as lost, and the VM goes on.
fn backups_that_lie_about_their_copy(subject: &mut Subject) -> Result<()> {
    let word = |word: Word| Message::Word(word);
    let differs = || word(Word::Differs(Divergence::TimeAsked { moment: 1 }));
    let touched = |frame| word(Word::Touched { frames: vec![frame] });
    let kept = || word(Word::Kept { first_frame: 1 << 40, digests: vec![[1; 8]] });
    for (words, part) in [
        (vec![differs(), kept()], "a list of pages that the VM does not have"),
        (vec![differs(), touched(1 << 40)], "that the VM does not have, or of too many"),
        (vec![differs(), touched(1), word(Word::Told), word(Word::Told)], "Told while Protected"),
    ] {
        let listener =
            subject.cluster.client_namespace().run(|| TcpListener::bind((CLIENT_ADDRESS, 0)))?;
        let peer = listener.local_addr()?;
        let lying = std::thread::spawn(move || follow_and_talk(&listener, &words));
        // A copy that differs again and again would be kept by checkpoints, which nobody asks to be healed.
        let more = "arbiter=none,reprotect=off,mode=replay,timeout_ms=3000";
        let fields = format!("role=primary,peer={peer},{more}");
        let output = subject.pair.primary().ch_remote(&["ft-enable", &fields])?;
        ensure!(output.ended.success(), "nobody was believed: {}", output.stderr);
        lying.join().map_err(|_| anyhow::anyhow!("the liar's thread failed"))??;
        wait_until(part, SOON, Duration::from_millis(100), || {
            let events = subject.pair.primary().events();
            let told = events.iter().any(|event| event.properties.to_string().contains(part));
            Ok(told.then_some(()))
        })?;
        wait_until("the VM on its own", SOON, Duration::from_millis(100), || {
            Ok((subject.pair.ft_info()?.state == "solo").then_some(()))
        })?;
    }
    Ok(())
}

/// One byte more, and it is not the same program.
fn backup_of_another_build(subject: &mut Subject) -> Result<()> {
    const PORT: u16 = 7001;
    let other = subject.cluster.shared_dir().join("other-build");
    std::fs::copy(binaries()?.join("cloud-hypervisor"), &other)?;
    std::fs::File::options().append(true).open(&other)?.write_all(b"!")?;
    let other = other.display().to_string();
    let listen = format!("role=backup,listen=0.0.0.0:{PORT}");
    let mut backup = subject.host(1).spawn(Order::new([other.as_str(), "--ft", &listen]))?;
    wait_until_it_listens(subject, PORT)?;
    subject.refused_join(subject.address(1, PORT), "", "both must be the same")?;
    backup.kill(libc::SIGTERM)?;
    let ended = backup.wait_at_most(SOON)?;
    ensure!(ended == Some(Ended::Exited(0)), "the other build's end: {ended:?}");
    Ok(())
}

fn wait_until_it_listens(subject: &Subject, port: u16) -> Result<()> {
    let namespace = subject.cluster.client_namespace();
    let address = subject.address(1, port);
    wait_until("the backup's port", SOON, Duration::from_millis(100), || {
        Ok(namespace.run(|| std::net::TcpStream::connect(address)).is_ok().then_some(()))
    })
}

/// Each has something that its host would need to take over, and lacks.
fn backups_that_do_not_fit(subject: &mut Subject) -> Result<()> {
    let small = subject.cluster.shared_dir().join("small.img");
    std::fs::File::create(&small)?.set_len(1 << 20)?;
    let small = format!("id=_disk0,path={}", small.display());
    for (number, (words, part)) in [
        (["--disk", &small], "the disk _disk0 has 1048576 bytes on the backup's host"),
        (["--disk", "id=_disk0,path=/nowhere"], "can't open the disk image /nowhere"),
        (["--disk", "id=_disk7,path=/nowhere"], "The VM has no disk with the id \"_disk7\""),
        (["--net", "id=_net1,tap=nowhere"], "the tap nowhere is not there on the backup's host"),
        (["--console", "null"], "The VM has no console, and this host asks for one"),
        (["--rng", "src=/nowhere"], "The source of entropy (--rng src=) cannot be opened"),
    ]
    .into_iter()
    .enumerate()
    {
        let port = 7010 + u16::try_from(number)?;
        let listen = format!("role=backup,listen=0.0.0.0:{port}");
        let all: Vec<String> =
            ["--ft", &listen].into_iter().chain(words).map(str::to_owned).collect();
        let mut backup = VmmProcess::start(subject.cluster, 1, "misfit", &all)?;
        backup.wait_for_socket(SOON)?;
        subject.refused_join(subject.address(1, port), "", part)?;
        // It waits for a better one.
        let info = backup.ft_info()?;
        ensure!(info.state == "waiting", "{words:?}: {info:?}\n{}", backup.describe());
        backup.signal(libc::SIGTERM)?;
        let ended = backup.wait(SOON)?;
        ensure!(ended == Ended::Exited(0), "{words:?}: {ended:?}\n{}", backup.describe());
    }
    Ok(())
}

/// The words of a VM that gets as far as its devices.
fn vm_words(subject: &Subject) -> Vec<String> {
    let kernel = subject.cluster.cache().vmlinux().display().to_string();
    ["--kernel", &kernel, "--memory", "size=192M", "--console", "off"].map(str::to_owned).to_vec()
}

fn second_vm_on_the_same_things(subject: &mut Subject) -> Result<()> {
    let disk = subject.pair.disk().context("the VM has no disk")?.path().display().to_string();
    let socket = subject.pair.primary().socket().display().to_string();
    let words = vm_words(subject);
    for (more, part) in [
        (["--disk", &format!("path={disk}")], "is in use by another process"),
        (["--net", "tap=guest0"], "the tap guest0 is in use by another process"),
        (["--net", "tap=br0"], "br0 exists but is not a single-queue tap"),
        (["--serial", "file=/"], "The console's file cannot be opened"),
        (["--rng", "src=/"], "The source of entropy (--rng src=) cannot be opened"),
        (["--api-socket", &socket], "is in use by another process"),
        (["--memory", "size=512G"], "this host has"),
    ] {
        // An option said twice is refused; the last one is the one that counts here.
        let words = words.iter().map(String::as_str);
        let kept: Vec<&str> = match more[0] {
            "--memory" => words.filter(|word| !["--memory", "size=192M"].contains(word)).collect(),
            _ => words.collect(),
        };
        subject.must_not_start(0, &[kept, more.to_vec()].concat(), part)?;
    }
    Ok(())
}

fn pests_at_the_channel(subject: &mut Subject) -> Result<()> {
    let address = subject.address(1, CHANNEL);
    let namespace = subject.cluster.client_namespace();
    let open = namespace.run(|| pester_channel(address))?;
    namespace.run(|| pester_heartbeats(address))?;
    subject.must_be("protected")?;
    // From the primary's own host, too, which the backup listens to.
    let stranger = binaries()?.join("stranger").display().to_string();
    let address = address.to_string();
    let order = Order::new([&stranger, "--channel", &address, "--heartbeats", &address]);
    let output = subject.host(0).run(order)?;
    ensure!(output.ended.success(), "{}", output.stderr);
    subject.must_be("protected")?;
    drop(open);
    Ok(())
}

fn second_primary_and_second_backup(subject: &mut Subject) -> Result<()> {
    let ft = format!("role=primary,peer={},arbiter=none", subject.address(1, CHANNEL));
    let words = vm_words(subject);
    let words: Vec<&str> = words.iter().map(String::as_str).chain(["--ft", ft.as_str()]).collect();
    subject.must_not_start(0, &words, "follows a primary already")?;
    subject.must_be("protected")?;
    let listen = format!("role=backup,listen=0.0.0.0:{CHANNEL}");
    subject.must_not_start(1, &["--ft", &listen], "Address already in use")
}

fn orders_for_a_pair(subject: &mut Subject) -> Result<()> {
    let peer = subject.address(1, CHANNEL);
    subject.refused_join(peer, "", "The VM is protected, joining or recorded already")?;
    subject.refused(&["ft-enable", "record=/run/log"], "protected, joining or recorded already")?;
    subject.refused(&["boot"], "the VM runs already")?;
    let backup = subject.pair.backup().context("there is no backup")?;
    for (order, part) in [
        ("ft-failover", "a planned failover is ordered at the primary"),
        ("ft-disable", "protection is ended at the primary"),
        ("reboot", "This VM follows a log"),
        ("power-button", "This VM follows a log"),
    ] {
        let output = backup.ch_remote(&[order])?;
        ensure!(!output.ended.success(), "{order} was carried out at the backup");
        one_sentence(&output.stderr, part)?;
    }
    Ok(())
}
