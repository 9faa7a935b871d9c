//! The copies of a VM come to differ: a program in the guest asks the processor for what no log holds, a byte of the
//! backup's memory or a register of its processor is not what it should be. That is found, and the copy is made the VM
//! again: by itself, while the guest runs, its clients are served and the VM stays protected.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use common::{must_answer, must_have_kept, takeover_timeout};
use tests::client::JournalLoad;
use tests::guest::protocol::{Answer, Ask};
use tests::runner::{Cluster, Host, Options, Order, binaries};
use tests::vm::{Acknowledgement, FtInfo, Pair, PairOptions, wait_until};

/// How often a program in the guest reads the processor's time.
const READINGS: u64 = 2;
/// Where a kernel that was not moved maps its own image; its physical addresses begin at 0.
const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// What differs is found soon or not at all: a register that the guest was about to give another value, or what a delta brings
/// anew before anything comes of it.
const SOON: Duration = Duration::from_secs(6);
/// A copy is healed in far less; a bound for one that hangs.
const HEALED: Duration = Duration::from_secs(60);
const TRIES_MAX: u32 = 10;
const READINGS_MAX: u32 = 40;
/// Pages of the guest's memory.
const PAGES: u64 = (128 << 20) / 4096;

#[test]
fn copies_that_differ_are_made_equal_again_and_the_next_takeover_loses_nothing() {
    let cluster = Cluster::start(&Options::new(2).unwrap()).unwrap();
    common::conclude(&cluster, play(&cluster));
}

fn play(cluster: &Cluster) -> Result<()> {
    let mut pair = start(cluster)?;
    let load = common::client(&pair)?;
    for _ in 0..READINGS {
        read_time(&mut pair).context("the processor's time is to be read")?;
        must_heal(&mut pair, &load)?;
    }
    flip_a_time(&mut pair, cluster).context("a byte that is written often is to be flipped")?;
    must_heal(&mut pair, &load)?;
    flip_a_register(&mut pair, cluster).context("a register is to be flipped")?;
    must_heal(&mut pair, &load)?;
    flip_a_text(&mut pair, cluster, &load)
        .context("a byte that is never written is to be flipped")?;
    // What the VM put out before it was healed the other side does not know: it leaves before the VM does.
    pair.primary().ask(&["ft-failover"])?;
    pair.wait_for_takeover(takeover_timeout())?;
    pair.take_former_for_backup()?;
    pair.wait_until_protected()?;
    must_answer(&load)?;
    read_time(&mut pair).context("the processor's time is to be read on the other host")?;
    wait_for(&mut pair, HEALED, |info| info.healings > 0 && info.state == "protected")?;
    pair.kill_primary()?;
    pair.wait_for_takeover(takeover_timeout())?;
    must_answer(&load)?;
    must_have_kept(load, &pair)
}

/// With `ack=verified`: what differs is found before it is let out.
fn start(cluster: &Cluster) -> Result<Pair<'_>> {
    let options = PairOptions {
        ack: Acknowledgement::Verified,
        // Copies that differ three times are kept by checkpoints otherwise, which is another test's.
        fields: ["mode=replay", "listen=0.0.0.0:7000"].map(str::to_owned).to_vec(),
        ..common::reprotecting_options()?
    };
    common::joined(cluster, options)
}

/// Has a program in the guest read the processor's time, until that is found.
fn read_time(pair: &mut Pair<'_>) -> Result<()> {
    until_found(pair, |pair| {
        let answer = pair.guest().control()?.ask(&Ask::TimeStamp)?;
        ensure!(matches!(answer, Answer::Text(_)), "the time stamp: {answer:?}");
        Ok(())
    })
}

/// Does what makes the copies differ, until they are found to differ once more.
fn until_found(
    pair: &mut Pair<'_>,
    mut spoil: impl FnMut(&mut Pair<'_>) -> Result<()>,
) -> Result<()> {
    let before = pair.ft_info()?.divergences;
    for _ in 0..TRIES_MAX {
        spoil(pair)?;
        match wait_for(pair, SOON, |info| info.divergences > before) {
            Ok(_) => return Ok(()),
            Err(error) => println!("    not found: {}", error.root_cause()),
        }
    }
    bail!("tried {TRIES_MAX} times, and nothing was found\n{}", pair.describe())
}

fn wait_for(
    pair: &mut Pair<'_>,
    patience: Duration,
    wanted: impl Fn(&FtInfo) -> bool,
) -> Result<FtInfo> {
    let waited = wait_until("the divergence", patience, Duration::from_millis(200), || {
        Ok(Some(pair.ft_info()?).filter(|info| wanted(info)))
    });
    waited.with_context(|| pair.describe())
}

/// All copies that were found to differ are equal again, and the protection is still the first.
fn must_heal(pair: &mut Pair<'_>, load: &JournalLoad) -> Result<()> {
    let begun = Instant::now();
    let healed = |info: &FtInfo| info.state == "protected" && info.healings == info.divergences;
    let info = wait_for(pair, HEALED, healed)?;
    println!(
        "divergence {}: healed after {} ms at most, by {} pages",
        info.divergences,
        begun.elapsed().as_millis(),
        info.healing_pages
    );
    ensure!(info.generation == 1, "the protection did not go on: {info:?}");
    ensure!(info.healing_pages < PAGES / 4, "a quarter of the memory was sent: {info:?}");
    must_answer(load)
}

/// Changes the backup's idea of what time it is in the guest, behind everybody's back, until it is found. Both sides write that
/// page all the time.
fn flip_a_time(pair: &mut Pair<'_>, cluster: &Cluster) -> Result<()> {
    let place = symbol(pair, "jiffies_64")? + 2;
    until_found(pair, |pair| backup_memory(pair, cluster)?.write(place, b'U'))
}

/// Changes a text of the kernel's: a page that nobody ever writes. What was written of late does not heal that, which shows when
/// the text is read again (unless a delta brings what came of it); then all of the memory is compared.
fn flip_a_text(pair: &mut Pair<'_>, cluster: &Cluster, load: &JournalLoad) -> Result<()> {
    let place = symbol(pair, "linux_proc_banner")? + 4;
    let memory = backup_memory(pair, cluster)?;
    ensure!(memory.read(place)? == b'e', "the kernel's version is told by another text");
    memory.write(place, b'E')?;
    for _ in 0..READINGS_MAX {
        let ask = Ask::Read { path: "/proc/version".to_owned() };
        let answer = pair.guest().control()?.ask(&ask)?;
        let right = |text: &String| text.contains(" version ");
        ensure!(matches!(&answer, Answer::Text(text) if right(text)), "let out: {answer:?}");
        must_heal(pair, load)?;
        if memory.read(place)? == b'e' {
            return Ok(());
        }
    }
    bail!("the text was never healed\n{}", pair.describe())
}

/// Where a symbol of the guest's kernel is in its physical memory.
fn symbol(pair: &mut Pair<'_>, name: &str) -> Result<u64> {
    let ask = Ask::Symbol { name: name.to_owned() };
    let Answer::Text(address) = pair.guest().control()?.ask(&ask)? else { bail!("no symbol") };
    let place = u64::from_str_radix(&address, 16)?.checked_sub(KERNEL_BASE);
    place.context("the kernel is not where it was loaded")
}

/// The guest's memory in the backup's process, as nobody is meant to see it.
struct BackupMemory<'a> {
    host: &'a Host,
    pid: i32,
    start: u64,
}

fn backup_memory<'a>(pair: &mut Pair<'_>, cluster: &'a Cluster) -> Result<BackupMemory<'a>> {
    let backup = pair.backup().context("there is no backup")?;
    let (host, pid) = (cluster.host(backup.host_index()), backup.pid());
    // The guest's memory is by far the largest mapping, and begins with its address 0.
    let largest = format!(
        "sed -E 's/^([0-9a-f]+)-([0-9a-f]+) .*/\\1 \\2/' /proc/{pid}/maps | while read -r from to; do \
         echo $((0x$to - 0x$from)) $((0x$from)); done | sort -n | tail -n 1"
    );
    let largest = host.shell(&largest)?;
    let start = largest.split_whitespace().nth(1).context("no mapping")?.parse::<u64>()?;
    Ok(BackupMemory { host, pid, start })
}

impl BackupMemory<'_> {
    fn write(&self, place: u64, byte: u8) -> Result<()> {
        let Self { pid, start, .. } = self;
        self.host.shell(&format!(
            "printf '\\{byte:03o}' | dd of=/proc/{pid}/mem bs=1 seek={} conv=notrunc status=none",
            start + place
        ))?;
        Ok(())
    }

    fn read(&self, place: u64) -> Result<u8> {
        let Self { pid, start, .. } = self;
        let order =
            format!("dd if=/proc/{pid}/mem bs=1 skip={} count=1 status=none", start + place);
        let said = self.host.shell(&order)?;
        said.bytes().next().context("no byte")
    }
}

/// Changes a register of the backup's processor behind everybody's back, until it is found.
fn flip_a_register(pair: &mut Pair<'_>, cluster: &Cluster) -> Result<()> {
    let program = binaries()?.join("flip-register").display().to_string();
    until_found(pair, |pair| {
        let backup = pair.backup().context("there is no backup")?;
        let order = Order::new([program.clone(), backup.pid().to_string()]);
        let output = cluster.host(backup.host_index()).run(order)?;
        // What is found late is thrown away just while it is to be flipped again: that is no failure.
        println!("    {}{}", output.stdout.trim(), output.stderr.trim());
        Ok(())
    })
}
