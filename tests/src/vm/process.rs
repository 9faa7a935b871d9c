//! One process of `cloud-hypervisor` on a host.
//!
//! Owns the process, its API socket and the files it writes: log, serial console and events. They lie in storage that
//! the tests see, too, so looking at them costs the host nothing.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::FtInfo;
use super::wait::wait_until;
use crate::guest::protocol::READY_MARK;
use crate::runner::{Cluster, Ended, Host, Order, Output, RemoteProcess, binaries, interrupted};

/// A VMM on a host.
pub struct VmmProcess<'a> {
    name: String,
    host_index: usize,
    host: &'a Host,
    process: RemoteProcess,
    ch_remote: String,
    socket: PathBuf,
    log: PathBuf,
    console: PathBuf,
    events: PathBuf,
    /// Events that belong to an earlier part that this process played.
    events_forgotten: usize,
    ended: Option<Ended>,
}

/// A line of the event monitor.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Whose it is: `vm`, `ft`, …
    pub source: String,
    /// What happened.
    pub event: String,
    /// More about it.
    pub properties: Value,
}

/// So many lines of a log are shown when something fails.
const TAIL_LINES: usize = 30;
/// How often files that a VMM writes are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

impl<'a> VmmProcess<'a> {
    /// Starts a VMM with these words on its command line, beside those for socket, log, console and events. `role` tells
    /// it from others in messages.
    pub fn start(
        cluster: &'a Cluster,
        host_index: usize,
        role: &str,
        words: &[String],
    ) -> Result<Self> {
        let console =
            |console: &Path| vec!["--serial".to_owned(), format!("file={}", console.display())];
        Self::launch(cluster, host_index, role, words, console)
    }

    /// Starts a VMM that has no VM.
    pub fn start_empty(cluster: &'a Cluster, host_index: usize, role: &str) -> Result<Self> {
        let mut vmm = Self::launch(cluster, host_index, role, &[], |_| Vec::new())?;
        vmm.wait_for_socket(Duration::from_secs(30))?;
        Ok(vmm)
    }

    fn launch(
        cluster: &'a Cluster,
        host_index: usize,
        role: &str,
        words: &[String],
        console_words: impl Fn(&Path) -> Vec<String>,
    ) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{role}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let host = cluster.host(host_index);
        let file = |kind: &str| cluster.shared_dir().join(format!("{name}.{kind}"));
        // A socket does not work over 9p. Emulated hosts have a /run of their own.
        let folder = if host.is_emulated() { Path::new("/run") } else { cluster.folder() };
        let socket = folder.join(format!("{name}.api"));
        let (log, console, events) = (file("log"), file("console"), file("events"));
        let [cloud_hypervisor, ch_remote] = programs(host)?;
        let mut order = vec![cloud_hypervisor, "-v".to_owned()];
        order.extend(["--api-socket".to_owned(), socket.display().to_string()]);
        order.extend(console_words(&console));
        order.extend(["--event-monitor".to_owned(), format!("path={}", events.display())]);
        order.extend(words.iter().cloned());
        let order = Order::new(order).log_to(&log).with_variable("RUST_BACKTRACE", "1");
        let process = host.spawn(order).context("cannot start the VMM")?;
        let ended = None;
        Ok(Self {
            name,
            host_index,
            host,
            process,
            ch_remote,
            socket,
            log,
            console,
            events,
            events_forgotten: 0,
            ended,
        })
    }

    /// Which host it is on.
    pub fn host_index(&self) -> usize {
        self.host_index
    }

    /// Its process, as numbered on its host.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Its API socket, as its host sees it.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The program it runs, as its host sees it.
    pub fn program(&self) -> PathBuf {
        Path::new(&self.ch_remote).with_file_name("cloud-hypervisor")
    }

    /// Runs `ch-remote` with these words on its host.
    pub fn ch_remote(&self, words: &[&str]) -> Result<Output> {
        let socket = self.socket.display().to_string();
        let mut order = vec![self.ch_remote.clone(), "--api-socket".to_owned(), socket];
        order.extend(words.iter().map(|word| (*word).to_owned()));
        self.host.run(Order::new(order))
    }

    /// Starts `ch-remote` with these words on its host, for an answer that takes its time, and the file that
    /// what it says goes to.
    pub fn begin(&self, words: &[&str]) -> Result<(RemoteProcess, PathBuf)> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let said = self.log.with_extension(format!("remote-{number}.log"));
        let socket = self.socket.display().to_string();
        let mut order = vec![self.ch_remote.clone(), "--api-socket".to_owned(), socket];
        order.extend(words.iter().map(|word| (*word).to_owned()));
        Ok((self.host.spawn(Order::new(order).log_to(&said))?, said))
    }

    /// Where its guest's serial console is to go.
    pub fn console_file(&self) -> &Path {
        &self.console
    }

    /// Runs `ch-remote`, which must succeed; its answer as JSON, null if there is none.
    pub fn ask(&self, words: &[&str]) -> Result<Value> {
        let output = self.ch_remote(words)?;
        ensure!(
            output.ended.success(),
            "'ch-remote {}' failed: {}",
            words.join(" "),
            output.stderr.trim()
        );
        if output.stdout.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("'ch-remote {}' answered {}", words.join(" "), output.stdout))
    }

    /// How the protection of its VM is.
    pub fn ft_info(&self) -> Result<FtInfo> {
        Ok(serde_json::from_value(self.ask(&["ft-info"])?)?)
    }

    /// Sends it a signal, such as SIGKILL, SIGSTOP or SIGCONT.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.process.kill(signal)
    }

    /// Kills it and sees that it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(libc::SIGKILL)?;
        let ended = self.wait(Duration::from_secs(20))?;
        ensure!(ended == Ended::Killed(libc::SIGKILL), "it had ended before: {ended:?}");
        Ok(())
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<Ended>> {
        if self.ended.is_none() {
            self.ended = self.process.wait_at_most(Duration::ZERO)?;
        }
        Ok(self.ended)
    }

    /// Waits for its end.
    pub fn wait(&mut self, timeout: Duration) -> Result<Ended> {
        if self.ended.is_none() {
            self.ended = self.process.wait_at_most(timeout)?;
        }
        match self.ended {
            Some(ended) => Ok(ended),
            None => bail!(
                "{} did not end within {} s\n{}",
                self.name,
                timeout.as_secs(),
                self.describe()
            ),
        }
    }

    /// Fails if it has ended.
    pub fn must_run(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(ended) => bail!("{} has ended: {ended:?}\n{}", self.name, self.describe()),
        }
    }

    /// Waits until `ch-remote` reaches it.
    pub fn wait_for_socket(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let name = self.name.clone();
        wait_until(&format!("the API of {name}"), timeout, Duration::from_millis(100), || {
            self.must_run()?;
            let output = self.ch_remote(&["ping"])?;
            ensure!(
                output.ended.success() || Instant::now() < deadline,
                "{name} does not answer: {}\n{}",
                output.stderr.trim(),
                self.describe()
            );
            Ok(output.ended.success().then_some(()))
        })
    }

    /// Waits until the guest has said `times` times on its console that its services are up.
    pub fn wait_for_guest(&mut self, times: usize, timeout: Duration) -> Result<()> {
        self.wait_to_see("the guest's services", timeout, |vmm| {
            (vmm.console().matches(READY_MARK).count() >= times).then_some(())
        })
    }

    /// Waits until the event monitor has this event; returns the first one.
    pub fn wait_for_event(
        &mut self,
        source: &str,
        event: &str,
        timeout: Duration,
    ) -> Result<Event> {
        self.wait_to_see(&format!("the event {source}/{event}"), timeout, |vmm| {
            vmm.events().into_iter().find(|found| found.source == source && found.event == event)
        })
    }

    /// Waits for something in the files that it writes; fails at once if it ends before.
    fn wait_to_see<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        look: impl Fn(&Self) -> Option<T>,
    ) -> Result<T> {
        let waited = wait_until(what, timeout, LOOK_INTERVAL, || match look(self) {
            Some(found) => Ok(Some(found)),
            None => self.must_run().map(|()| None),
        });
        waited.with_context(|| if interrupted() { String::new() } else { self.describe() })
    }

    /// What it said, on standard output and standard error.
    pub fn log(&self) -> String {
        read(&self.log)
    }

    /// What the guest said on its serial console.
    pub fn console(&self) -> String {
        read(&self.console)
    }

    /// What has happened so far is not looked at any more: it plays another part from now on.
    pub fn forget_events(&mut self) {
        self.events_forgotten += self.events().len();
    }

    /// What the event monitor has, since the last [`VmmProcess::forget_events`].
    pub fn events(&self) -> Vec<Event> {
        let text = read(&self.events);
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let word = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
        lines
            .skip(self.events_forgotten)
            .map(|line| Event {
                source: word(&line, "source"),
                event: word(&line, "event"),
                properties: line["properties"].clone(),
            })
            .collect()
    }

    /// Its name and the ends of its log and console, for messages.
    pub fn describe(&self) -> String {
        let mut text = format!("--- {} on host {}, its log:\n", self.name, self.host_index);
        text.push_str(&tail(&self.log()));
        text.push_str(&format!("--- {}, its console:\n", self.name));
        text.push_str(&tail(&self.console()));
        text
    }
}

impl Drop for VmmProcess<'_> {
    fn drop(&mut self) {
        // One that has ended, or whose host has, is as gone as it shall be.
        if self.ended.is_none() && self.signal(libc::SIGKILL).is_ok() {
            let _ = self.process.wait_at_most(Duration::from_secs(20));
        }
    }
}

/// The paths of `cloud-hypervisor` and `ch-remote` on a host.
fn programs(host: &Host) -> Result<[String; 2]> {
    const NAMES: [&str; 2] = ["cloud-hypervisor", "ch-remote"];
    let folder = binaries()?;
    for name in NAMES {
        let path = folder.join(name);
        ensure!(path.exists(), "{} is not built; 'cargo build --bins' builds it", path.display());
    }
    if !host.is_emulated() {
        return Ok(NAMES.map(|name| folder.join(name).display().to_string()));
    }
    // Over 9p a program is read anew, page by page, each time it is started, and its rarer parts when they are first run:
    // in a takeover, of all times. Real hosts have them at hand; so these get copies in their memory.
    host.shell(&format!(
        "cd '{}' && for name in {}; do [ -e /run/$name ] || {{ cp $name /run/$name.new && mv /run/$name.new /run/$name; }}; done",
        folder.display(),
        NAMES.join(" ")
    ))?;
    Ok(NAMES.map(|name| format!("/run/{name}")))
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// The last lines.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(TAIL_LINES);
    lines[start..].iter().map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_its_last_lines() {
        let text: String = (0..100).map(|line| format!("{line}\n")).collect();
        let tail = tail(&text);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("    99\n"));
    }
}
