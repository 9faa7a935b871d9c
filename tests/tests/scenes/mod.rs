//! What every scene has: the pair, a client that never lets go of its connection, and a witness.

pub mod arbitration;
pub mod planned;
pub mod sides;
pub mod slow;
pub mod stalls;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::client::{History, JournalLoad, Pace, check};
use tests::runner::{Cluster, Ended, Witness};
use tests::vm::{Acknowledgement, Pair, PairOptions, VmmProcess, wait_until};

use crate::SOON;
use crate::common::{small_options, takeover_timeout, timeout};

/// Longer than the timeout by so much that the other side must have acted.
pub fn too_long() -> Duration {
    3 * timeout()
}

pub struct Stage<'a> {
    pub cluster: &'a Cluster,
    pub pair: Pair<'a>,
    pub witness: Witness,
    load: Option<JournalLoad>,
    clients: u32,
    start: Instant,
    histories: Vec<History>,
}

/// Who goes on after both sides asked the arbiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivor {
    Primary,
    Backup,
}

impl<'a> Stage<'a> {
    /// A pair that is protected, with a client.
    pub fn set(cluster: &'a Cluster, ack: Acknowledgement) -> Result<Self> {
        Self::set_with(cluster, small_options(ack)?)
    }

    /// The same, with a pair that is made of this. The guest boots before it is protected: only one host has the work of
    /// that.
    pub fn set_with(cluster: &'a Cluster, options: PairOptions) -> Result<Self> {
        let mut pair = Pair::start_unprotected(cluster, options)?;
        pair.reprotect()?;
        let witness = Witness::start(cluster, pair.mac())?;
        let (start, histories) = (Instant::now(), Vec::new());
        let mut stage = Self { cluster, pair, witness, load: None, clients: 0, start, histories };
        stage.connect()?;
        Ok(stage)
    }

    /// A client begins, over a connection of its own.
    pub fn connect(&mut self) -> Result<()> {
        self.clients += 1;
        let interval = Duration::from_millis(10);
        let pace = Pace { client: self.clients, payload_size: 100, interval };
        self.load = Some(self.pair.guest().journal(pace, self.start)?);
        self.must_answer()
    }

    /// The client ends; what it was told is remembered.
    pub fn disconnect(&mut self) -> Result<()> {
        if let Some(load) = self.load.take() {
            self.histories.push(load.stop()?);
        }
        Ok(())
    }

    pub fn answers(&self) -> usize {
        self.load.as_ref().map_or(0, JournalLoad::acknowledged)
    }

    /// The guest answers, over the connection it has had all along.
    pub fn must_answer(&self) -> Result<()> {
        let goal = self.answers() + 20;
        wait_until("answers", SOON, Duration::from_millis(10), || {
            if let Some(broken) =
                self.load.as_ref().and_then(|load| load.look(|history| history.broken.clone()))
            {
                bail!("the connection broke: {broken}");
            }
            Ok((self.answers() >= goal).then_some(()))
        })
    }

    /// Nothing at all is heard of the guest for this long.
    pub fn must_be_silent(&self, duration: Duration) -> Result<()> {
        let (frames, answers) = (self.witness.frames(), self.answers());
        tests::vm::pause(duration)?;
        let (spoken, answered) = (self.witness.frames() - frames, self.answers() - answers);
        ensure!(
            spoken == 0 && answered == 0,
            "{spoken} frames and {answered} answers came while nobody may speak: {:?}",
            self.witness.heard()
        );
        Ok(())
    }

    /// The hosts that spoke for the guest since the last [`Witness::forget`] are these, in this order.
    pub fn must_have_heard(&self, hosts: &[usize]) -> Result<()> {
        ensure!(
            self.witness.speakers() == hosts,
            "hosts {hosts:?} should have spoken for the guest, one after the other: {:?}",
            self.witness.heard()
        );
        Ok(())
    }

    /// The promises so far are kept, as the guest itself has them on the disk.
    pub fn must_be_sound(&mut self) -> Result<()> {
        let mut histories = self.histories.clone();
        let Some(load) = &self.load else { return Ok(()) };
        histories.push(load.look(History::clone));
        let mut records = self.pair.guest().durable_history()?;
        // Requests that were made while the history was read are not looked at.
        let known: std::collections::BTreeSet<u64> =
            histories.iter().flat_map(|history| &history.exchanges).map(|one| one.id).collect();
        records.truncate(
            records
                .iter()
                .rposition(|record| known.contains(&record.id))
                .map_or(0, |last| last + 1),
        );
        let verdict = check(&histories, &records);
        ensure!(verdict.is_clean(), "promises were broken: {verdict:?}");
        Ok(())
    }

    /// Waits until the primary says that this is its state.
    pub fn wait_for_state(&mut self, state: &str) -> Result<()> {
        wait_for_state(self.pair.primary(), state)
    }

    /// Waits until the backup runs the VM.
    pub fn wait_for_takeover(&mut self) -> Result<()> {
        let takeover = self.pair.wait_for_takeover(takeover_timeout())?;
        println!(
            "    live on host {} after {} ms",
            takeover.host_index,
            takeover.waited.as_millis()
        );
        Ok(())
    }

    /// The primary that was replaced has ended, and says that it did not do so well.
    pub fn former_must_have_halted(&mut self) -> Result<()> {
        let former = self.pair.former().context("nobody was replaced")?;
        let ended = former.wait(SOON)?;
        ensure!(
            matches!(ended, Ended::Exited(status) if status != 0),
            "who lost to the other side must halt: {ended:?}\n{}",
            former.describe()
        );
        Ok(())
    }

    /// Waits until exactly one side runs the VM, after both may have asked for it.
    pub fn wait_for_survivor(&mut self) -> Result<Survivor> {
        let pair = &mut self.pair;
        let survivor = wait_until("one side to go on", SOON, Duration::from_millis(200), || {
            let live =
                |vmm: &mut VmmProcess| vmm.events().iter().any(|event| event.event == "live");
            if pair.backup().is_some_and(live) {
                return Ok(Some(Survivor::Backup));
            }
            // A primary that loses ends, perhaps just while it is asked.
            let solo = pair.ft_info().is_ok_and(|info| info.state == "solo");
            Ok(solo.then_some(Survivor::Primary))
        })?;
        if survivor == Survivor::Backup {
            self.wait_for_takeover()?;
        }
        println!("    {survivor:?} goes on");
        Ok(survivor)
    }

    pub fn describe(&self) -> String {
        format!("heard: {:?}\n{}", self.witness.heard(), self.pair.describe())
    }

    /// The end: the guest is switched off if it still runs, and the disk holds what the clients were told.
    pub fn strike(mut self) -> Result<()> {
        self.disconnect()?;
        if self.pair.primary().ended()?.is_none() {
            planned::power_off(&mut self)?;
        }
        let disk = self.pair.disk()?;
        let disk = disk.recovered(&self.cluster.shared_dir().join("copy"))?;
        let verdict = check(&self.histories, &disk.journal()?);
        ensure!(verdict.is_clean(), "the disk broke promises: {verdict:?}");
        println!("{} requests acknowledged, all stored once", verdict.acknowledged);
        Ok(())
    }
}

/// Waits until a VMM says that this is its state.
pub fn wait_for_state(vmm: &mut VmmProcess, state: &str) -> Result<()> {
    let mut last = String::new();
    let waited = wait_until(state, SOON, Duration::from_millis(200), || {
        vmm.must_run()?;
        last = vmm.ft_info()?.state;
        Ok((last == state).then_some(()))
    });
    waited.with_context(|| format!("the state is {last}\n{}", vmm.describe()))
}
