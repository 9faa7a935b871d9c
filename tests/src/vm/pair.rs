//! A VM that exists twice.
//!
//! Owns which VMM plays which part on which host, from pair to pair: after a takeover the survivor can be given a new
//! backup where the old primary was, again and again, and the guest never boots anew.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::prepare::{Prepared, VmDisk, arbiter_folder, prepare};
use super::single::{BOOT_TIMEOUT, SHUTDOWN_TIMEOUT};
use super::wait::wait_until;
use super::{Arbiter, FtInfo, GuestClient, PairOptions, Share, VmmProcess};
use crate::guest::disk::DiskImage;
use crate::runner::network::guest_address;
use crate::runner::{Cluster, Ended};

/// A primary and, most of the time, its backup.
pub struct Pair<'a> {
    cluster: &'a Cluster,
    options: PairOptions,
    arbiter: PathBuf,
    disk: Option<VmDisk>,
    guest: GuestClient<'a>,
    primary: VmmProcess<'a>,
    backup: Option<VmmProcess<'a>>,
    /// The last primary that was replaced; kept for what its log says.
    former: Option<VmmProcess<'a>>,
    dead_hosts: Vec<usize>,
}

/// What a takeover was.
#[derive(Clone, Copy, Debug)]
pub struct Takeover {
    /// The host on which the VM is now.
    pub host_index: usize,
    /// From when the waiting began to when the survivor was seen to run the VM.
    pub waited: Duration,
}

/// Joining copies the VM's memory from host to host.
const JOIN_TIMEOUT: Duration = Duration::from_secs(120);
/// How often a VMM is asked for `ft-info` while something is waited for: each time costs an emulated host 100 ms.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

impl<'a> Pair<'a> {
    /// Starts a backup on host 1, then the VM on host 0 with that backup from its first moment, and waits until it is
    /// protected and its services are up.
    pub fn start(cluster: &'a Cluster, options: PairOptions) -> Result<Self> {
        let mut pair = Self::launch(cluster, options, true)?;
        pair.wait_for_guest()?;
        pair.wait_until_protected()?;
        Ok(pair)
    }

    /// Starts the VM on host 0, without protection, and waits until its services are up.
    pub fn start_unprotected(cluster: &'a Cluster, options: PairOptions) -> Result<Self> {
        let mut pair = Self::launch(cluster, options, false)?;
        pair.wait_for_guest()?;
        Ok(pair)
    }

    /// Starts the VMMs; does not wait for the guest.
    pub fn launch(cluster: &'a Cluster, options: PairOptions, protected: bool) -> Result<Self> {
        let Prepared { mut words, disk } = prepare(cluster, &options.vm)?;
        let arbiter = match options.arbiter {
            Arbiter::NfsFolder => arbiter_folder(cluster, Share::Nfs)?,
            Arbiter::SharedFolder | Arbiter::Etcd | Arbiter::None => {
                arbiter_folder(cluster, Share::Folder)?
            }
        };
        let mut backup = None;
        if protected {
            backup = Some(start_backup(cluster, &options, 1)?);
            let peer = cluster.host(1).address().to_string();
            words.extend(["--ft".to_owned(), options.primary_fields(&peer, &arbiter)]);
        }
        let primary = VmmProcess::start(cluster, 0, "primary", &words)?;
        let guest = GuestClient::new(cluster, guest_address(options.vm.address_index));
        let dead_hosts = Vec::new();
        Ok(Self {
            cluster,
            options,
            arbiter,
            disk,
            guest,
            primary,
            backup,
            former: None,
            dead_hosts,
        })
    }

    fn wait_for_guest(&mut self) -> Result<()> {
        let waited = self.primary.wait_for_guest(1, BOOT_TIMEOUT);
        waited.with_context(|| self.describe())
    }

    /// The VMM that runs the VM for the world, or did until it was killed.
    pub fn primary(&mut self) -> &mut VmmProcess<'a> {
        &mut self.primary
    }

    /// The VMM that follows, if there is one.
    pub fn backup(&mut self) -> Option<&mut VmmProcess<'a>> {
        self.backup.as_mut()
    }

    /// The last primary that was replaced.
    pub fn former(&mut self) -> Option<&mut VmmProcess<'a>> {
        self.former.as_mut()
    }

    /// The port on which its processes talk, over TCP and UDP.
    pub fn port(&self) -> u16 {
        self.options.port
    }

    /// The MAC address of the VM.
    pub fn mac(&self) -> [u8; 6] {
        self.options.vm.mac()
    }

    /// The way to the services in the VM.
    pub fn guest(&self) -> GuestClient<'a> {
        self.guest
    }

    /// The disk's image as it is now: for a look from outside, not to be written.
    pub fn disk(&self) -> Result<DiskImage> {
        self.disk.as_ref().context("the VM has no disk")?.look(self.cluster)
    }

    /// The arbiter's folder, which both hosts see.
    pub fn arbiter(&self) -> &PathBuf {
        &self.arbiter
    }

    /// Who decides from the next join on.
    pub fn choose_arbiter(&mut self, arbiter: Arbiter) {
        self.options.arbiter = arbiter;
    }

    /// What else the primary is told from the next join on, as `key=value`.
    pub fn choose_fields(&mut self, fields: &[&str]) {
        self.options.fields = fields.iter().map(|&field| field.to_owned()).collect();
    }

    /// Starts a backup on another host that lives.
    pub fn add_backup(&mut self) -> Result<()> {
        let host_index = (0..self.cluster.hosts().len())
            .find(|index| *index != self.primary.host_index() && !self.dead_hosts.contains(index))
            .ok_or_else(|| anyhow!("no other host lives on which a backup could run"))?;
        self.backup = None;
        self.backup = Some(start_backup(self.cluster, &self.options, host_index)?);
        Ok(())
    }

    /// Starts a backup on this host beside the pair's own: one that waits for its time.
    pub fn add_standby(&self, host_index: usize) -> Result<VmmProcess<'a>> {
        start_backup(self.cluster, &self.options, host_index)
    }

    /// Another process is the pair's backup now; the one that was before, if it is still there.
    pub fn replace_backup(&mut self, backup: VmmProcess<'a>) -> Option<VmmProcess<'a>> {
        self.backup.replace(backup)
    }

    /// The address on which a backup on this host is joined.
    pub fn peer(&self, host_index: usize) -> String {
        format!("{}:{}", self.cluster.host(host_index).address(), self.options.port)
    }

    /// What the primary is told to join the backup that was added.
    pub fn enable_fields(&self) -> Result<String> {
        let backup = self.backup.as_ref().ok_or_else(|| anyhow!("there is no backup to join"))?;
        let peer = self.cluster.host(backup.host_index()).address().to_string();
        Ok(self.options.primary_fields(&peer, &self.arbiter))
    }

    /// Has the VM that runs join the backup that was added.
    pub fn enable(&mut self) -> Result<()> {
        let fields = self.enable_fields()?;
        let enabled = self.primary.ask(&["ft-enable", &fields]);
        // A VM that was protected before may have found the backup by itself meanwhile.
        if enabled.is_err() && self.primary.ft_info()?.state != "protected" {
            enabled.with_context(|| self.describe())?;
        }
        self.wait_until_protected()
    }

    /// Puts a backup where the VM will look for one, and waits until it has found it.
    pub fn wait_until_protected_again(&mut self) -> Result<()> {
        self.add_backup()?;
        self.wait_until_protected()
    }

    /// Takes the process that the VM was handed over from, which waits now, for the backup.
    pub fn take_former_for_backup(&mut self) -> Result<()> {
        let mut former = self.former.take().ok_or_else(|| anyhow!("nobody was replaced"))?;
        former.forget_events();
        self.backup = Some(former);
        Ok(())
    }

    /// Gives a VM that runs alone a backup: one that was never protected, or one that took over.
    pub fn reprotect(&mut self) -> Result<()> {
        self.add_backup()?;
        self.enable()
    }

    /// Starts to give a VM that runs alone a backup, and does not wait for it.
    pub fn begin_reprotection(&mut self) -> Result<()> {
        self.add_backup()?;
        let fields = self.enable_fields()?;
        self.primary.ask(&["ft-enable", &fields]).with_context(|| self.describe())?;
        Ok(())
    }

    /// Waits until the primary says that it is protected.
    pub fn wait_until_protected(&mut self) -> Result<()> {
        let waited = wait_until("protection", JOIN_TIMEOUT, ASK_INTERVAL, || {
            self.primary.must_run()?;
            if let Some(backup) = &mut self.backup {
                backup.must_run()?;
            }
            // Before its API is up there is no answer.
            match self.primary.ft_info() {
                Err(_) => Ok(None),
                Ok(info) => match info.state.as_str() {
                    "protected" => Ok(Some(())),
                    "joining" | "solo" | "live" => Ok(None),
                    state => bail!("the primary is {state} and not joining: {}", last_event(&info)),
                },
            }
        });
        waited.with_context(|| self.describe())
    }

    /// How the protection is, as the primary says.
    pub fn ft_info(&self) -> Result<FtInfo> {
        self.primary.ft_info().with_context(|| self.describe())
    }

    /// Kills the primary with SIGKILL. Returns when that was.
    pub fn kill_primary(&mut self) -> Result<Instant> {
        self.primary.must_run()?;
        let at = Instant::now();
        self.primary.kill()?;
        Ok(at)
    }

    /// Ends the primary's whole host. Returns when that was.
    pub fn end_primary_host(&mut self) -> Result<Instant> {
        self.primary.must_run()?;
        let host_index = self.primary.host_index();
        let at = Instant::now();
        self.cluster.host(host_index).end()?;
        self.dead_hosts.push(host_index);
        Ok(at)
    }

    /// Waits until the backup says that it runs the VM now; from then on it is the primary.
    pub fn wait_for_takeover(&mut self, timeout: Duration) -> Result<Takeover> {
        let start = Instant::now();
        let Some(mut backup) = self.backup.take() else { bail!("there is no backup to take over") };
        // The event is seen from outside: asking would cost the host time just when it has none.
        let waited = backup.wait_for_event("ft", "live", timeout).and_then(|_| {
            let info = backup.ft_info()?;
            ensure!(runs_the_vm(&info), "a takeover was reported, but {info:?}");
            Ok(())
        });
        if let Err(error) = waited {
            self.backup = Some(backup);
            return Err(error.context(self.describe()));
        }
        let host_index = backup.host_index();
        self.former = Some(std::mem::replace(&mut self.primary, backup));
        Ok(Takeover { host_index, waited: start.elapsed() })
    }

    /// Has the guest switch itself off; how the primary and the backup, if there is one, ended.
    pub fn shutdown(&mut self) -> Result<(Ended, Option<Ended>)> {
        self.guest.power_off().with_context(|| self.describe())?;
        let primary = self.primary.wait(SHUTDOWN_TIMEOUT)?;
        let backup = match &mut self.backup {
            Some(backup) => Some(backup.wait(SHUTDOWN_TIMEOUT)?),
            None => None,
        };
        Ok((primary, backup))
    }

    /// Fails, with all logs, unless this holds.
    pub fn ensure(&self, holds: bool, what: &str) -> Result<()> {
        ensure!(holds, "{what}\n{}", self.describe());
        Ok(())
    }

    /// What the VMMs' logs and consoles end with, for messages.
    pub fn describe(&self) -> String {
        let vmms = [self.former.as_ref(), Some(&self.primary), self.backup.as_ref()];
        vmms.into_iter().flatten().map(VmmProcess::describe).collect()
    }
}

fn last_event(info: &FtInfo) -> &str {
    info.last_event.as_ref().map_or("", |event| &event.what)
}

/// Whether whoever says this runs the VM for the world.
fn runs_the_vm(info: &FtInfo) -> bool {
    matches!(info.state.as_str(), "live" | "solo" | "protected")
}

fn start_backup<'a>(
    cluster: &'a Cluster,
    options: &PairOptions,
    host_index: usize,
) -> Result<VmmProcess<'a>> {
    let mut words = vec!["--ft".to_owned(), options.backup_fields()];
    words.extend(options.backup_arguments.iter().cloned());
    let mut backup = VmmProcess::start(cluster, host_index, "backup", &words)?;
    backup.wait_for_socket(Duration::from_secs(30))?;
    Ok(backup)
}
