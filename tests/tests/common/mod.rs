//! What the tests of the pair share.

// Each of them uses its part.
#![allow(dead_code)]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tests::client::{Control, JournalLoad, Pace, check};
use tests::guest::protocol::{Answer, Ask, CONTROL_PORT};
use tests::runner::Cluster;
use tests::vm::{Acknowledgement, Pair, PairOptions, wait_until};

/// Silence of this length is a loss. Emulated hosts stand still for up to 1.5 s when the machine below them is busy; for one
/// that is busier still, `FT_TEST_TIMEOUT_MS` says more.
pub fn timeout() -> Duration {
    const USUAL_MS: u64 = 3000;
    let chosen_ms = std::env::var("FT_TEST_TIMEOUT_MS").ok().and_then(|text| text.parse().ok());
    Duration::from_millis(chosen_ms.unwrap_or(USUAL_MS))
}

/// The number that an environment variable holds, if there is such a variable.
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is '{text}', which is no number")))
}

/// Whether a scene is to be played: for work on one, `FT_SCENES` names words of which its name must have one; a sample leaves
/// those out whose names have one of the words of `FT_SCENES_LEFT_OUT`.
pub fn is_chosen(scene: &str) -> bool {
    let has_a_word_of = |variable: &str| {
        let words = std::env::var(variable).unwrap_or_default();
        let mut words = words.split(',').filter(|word| !word.is_empty()).peekable();
        words.peek()?;
        Some(words.any(|word| scene.contains(word)))
    };
    has_a_word_of("FT_SCENES").unwrap_or(true)
        && !has_a_word_of("FT_SCENES_LEFT_OUT").unwrap_or(false)
}

/// A seed that no run had before.
pub fn seed_of_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}

/// A takeover after silence takes the timeout, twice if both sides have to see it; the rest is patience.
pub fn takeover_timeout() -> Duration {
    10 * timeout()
}

/// A pair that is small, so that it joins soon, with its guest up. The guest boots before it is protected: only one host
/// has the work of that.
pub fn small_pair(cluster: &Cluster, ack: Acknowledgement) -> Result<Pair<'_>> {
    joined(cluster, small_options(ack)?)
}

/// A pair of this, with its guest up and its first backup joined.
pub fn joined(cluster: &Cluster, options: PairOptions) -> Result<Pair<'_>> {
    let mut pair = Pair::start_unprotected(cluster, options)?;
    pair.reprotect().context("the first join")?;
    Ok(pair)
}

/// A pair that is to be: the VM alone, with its guest up.
pub fn small_vm(cluster: &Cluster, ack: Acknowledgement) -> Result<Pair<'_>> {
    Pair::start_unprotected(cluster, small_options(ack)?)
}

/// What a small pair is made of.
pub fn small_options(ack: Acknowledgement) -> Result<PairOptions> {
    let timeout_ms = u64::try_from(timeout().as_millis())?;
    let mut options = PairOptions { timeout_ms: Some(timeout_ms), ack, ..PairOptions::default() };
    options.vm.memory_mib = 192;
    Ok(options)
}

/// What a VM is made of that looks for its next backup by itself. It is smaller still: it joins again and again.
pub fn reprotecting_options() -> Result<PairOptions> {
    let mut options = small_options(Acknowledgement::Received)?;
    options.reprotect = true;
    options.vm.memory_mib = 128;
    Ok(options)
}

/// A client that begins now and asks at an even pace, over one connection.
pub fn client(pair: &Pair<'_>) -> Result<JournalLoad> {
    let pace = Pace { client: 1, payload_size: 100, interval: Duration::from_millis(10) };
    pair.guest().journal(pace, Instant::now())
}

/// The end of the only client: all that it was told is on the guest's disk, once.
pub fn must_have_kept(load: JournalLoad, pair: &Pair<'_>) -> Result<()> {
    let history = load.stop()?;
    let verdict = check(&[history], &pair.guest().durable_history()?);
    ensure!(verdict.is_clean(), "promises were broken: {verdict:?}");
    println!("{} requests acknowledged, all stored once", verdict.acknowledged);
    Ok(())
}

/// The guest answers the client, over the connection it has had all along.
pub fn must_answer(load: &JournalLoad) -> Result<()> {
    let goal = load.acknowledged() + 10;
    wait_until("answers", Duration::from_secs(90), Duration::from_millis(10), || {
        let broken = load.look(|history| history.broken.clone());
        ensure!(broken.is_none(), "the connection broke: {broken:?}");
        Ok((load.acknowledged() >= goal).then_some(()))
    })
}

/// The guest boots anew, and is protected all the while.
pub fn reboot(pair: &mut Pair<'_>) -> Result<()> {
    let guest = pair.guest();
    let before = guest.statistics()?.boot_id;
    guest.control()?.ask(&Ask::Reboot)?;
    // The old boot may still answer while it ends, or say nothing any more.
    let patience = Duration::from_secs(5);
    let now = || -> Result<Answer> {
        let stream = guest.connect_within(CONTROL_PORT, patience)?;
        stream.set_read_timeout(Some(patience))?;
        Control::new(stream).ask(&Ask::Statistics)
    };
    wait_until("another boot", Duration::from_secs(120), Duration::from_millis(500), || {
        pair.primary().must_run()?;
        Ok(match now() {
            Ok(Answer::Statistics(now)) if now.boot_id != before => Some(()),
            Ok(_) | Err(_) => None,
        })
    })?;
    let info = pair.ft_info()?;
    ensure!(info.state == "protected", "after the reboot: {info:?}");
    Ok(())
}

/// Ends a test; if it failed, what all VMMs wrote is kept, and the message says where.
pub fn conclude(cluster: &Cluster, result: Result<()>) {
    let Err(error) = result else { return };
    let kept = keep_logs(cluster);
    panic!("{:?}", error.context(format!("all logs are in {kept:?}")));
}

fn keep_logs(cluster: &Cluster) -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("ft-failed-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    for entry in fs::read_dir(cluster.shared_dir())? {
        let path = entry?.path();
        let name = path.file_name().ok_or_else(|| anyhow!("a file without a name"))?;
        let wanted = ["log", "console", "events"];
        if path.extension().is_some_and(|extension| wanted.iter().any(|kind| extension == *kind)) {
            fs::copy(&path, folder.join(name))?;
        }
    }
    for (index, host) in cluster.hosts().iter().enumerate() {
        fs::write(folder.join(format!("host-{index}.console")), host.console())?;
    }
    Ok(folder)
}
