//! What the shell keeps for a VM that follows a primary, or waits for one.
//!
//! Owns the plain data and its small questions. What is done with it is `backup`'s.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use ft::{Action, Backup, BackupState, Divergence, EndReason, Ledger};

use super::Poller;
use super::primary_side::{BUSY_TICK_MS, now_ms};
use super::reception::Reception;
use super::remains::{Remains, Telling};
use super::visitors::Visitors;
use crate::api::FtProtection;
use crate::config::{AckMode, Arbiter, FtConfig, FtMode, PeerAddress};
use crate::replica::{BoundedArbiter, Channel, Heartbeats, Helpers};

/// What the shell keeps for a VM that follows a primary.
pub(super) struct BackupSide {
    pub backup: Backup,
    pub config: FtConfig,
    pub listen: SocketAddr,
    pub listener: TcpListener,
    pub claimant: [u8; 16],
    pub helpers: Helpers,
    pub visitors: Visitors,
    pub channel: Option<Channel>,
    pub heartbeats: Heartbeats,
    pub arbiter: Option<Arc<BoundedArbiter>>,
    pub ack: AckMode,
    /// How the VM is kept twice.
    pub method: FtProtection,
    pub ledger: Ledger,
    /// What is left of the VM that was followed last.
    pub remains: Option<Remains>,
    /// The machine's memory, while the primary is told what is left in it.
    pub telling: Option<Telling>,
    /// Pages written here since an earlier delta, as told with the last divergence.
    pub touched: Vec<u64>,
    /// The machine has its first whole state.
    pub has_state: bool,
    pub log_end: Option<EndReason>,
    /// How the primary protects the VM, and where it waits itself once it does not have it any more.
    pub inheritance: Option<(FtConfig, Option<PeerAddress>)>,
    pub identity: ([u8; 16], u64),
    /// From one heartbeat to the next.
    pub heartbeat_ms: u64,
    /// If a VM is to move here for good.
    pub reception: Option<Reception>,
}

impl BackupSide {
    /// Whether the VM is this side's.
    pub(super) fn is_live(&self) -> bool {
        self.backup.state() == BackupState::Live
    }

    /// The VM's name and generation.
    pub(super) fn identity(&self) -> ([u8; 16], u64) {
        self.identity
    }

    /// The VM's name, if there is a VM.
    pub(super) fn vm_id(&self) -> Option<[u8; 16]> {
        let (vm_id, generation) = self.identity;
        (generation > 0 && self.backup.state() != BackupState::Waiting).then_some(vm_id)
    }

    /// Who decides if the primary is lost.
    pub(super) fn arbiter(&self) -> Option<&BoundedArbiter> {
        self.arbiter.as_deref()
    }

    /// The primary was told all of this side's memory, or that cannot be read.
    pub(super) fn told(&mut self, result: Result<(), String>) -> Vec<Action> {
        match (self.backup.state(), result) {
            (BackupState::Following, Ok(())) => self.backup.told(now_ms()),
            (BackupState::Following, Err(why)) => {
                let divergence = Divergence::Log { moment: 0, why };
                self.backup.diverged(now_ms(), divergence, false)
            }
            (_, result) => self.backup.prepared(now_ms(), result),
        }
    }

    /// How long the event loop may sleep, ms.
    pub(super) fn tick_ms(&self) -> Option<u64> {
        match self.backup.state() {
            BackupState::Live => self.reception.as_ref().map(|_| BUSY_TICK_MS),
            BackupState::Waiting | BackupState::Halted => None,
            BackupState::Following if self.telling.is_none() => {
                Some((self.heartbeat_ms / 2).max(1))
            }
            BackupState::Preparing
            | BackupState::Joining
            | BackupState::Following
            | BackupState::Draining
            | BackupState::Asking
            | BackupState::Won => Some(BUSY_TICK_MS),
        }
    }

    /// Whether there is no channel to a primary.
    pub(super) fn has_hung_up(&self) -> bool {
        self.channel.is_none()
    }

    pub(super) fn ack(&self) -> AckMode {
        self.ack
    }

    /// How the VM is kept twice.
    pub(super) fn method(&self) -> FtProtection {
        self.method
    }

    /// The primary's address, or where one is awaited.
    pub(super) fn peer(&self) -> String {
        match self.channel.as_ref().and_then(Channel::peer) {
            Some(peer) => peer.to_string(),
            None => format!("awaited at {}", self.listen),
        }
    }

    pub(super) fn outputs_held(&self) -> u64 {
        self.ledger.len() as u64
    }

    pub(super) fn close(mut self, poller: &Poller) {
        self.close_channel(poller);
        self.visitors.dismiss(poller);
        for fd in [self.listener.as_raw_fd(), self.heartbeats.as_raw_fd(), self.helpers.as_raw_fd()]
        {
            poller.forget(fd);
        }
    }

    /// Tells a second primary why it is not followed.
    pub(super) fn turn_away(&mut self, mut channel: Channel, poller: &Poller) {
        let from = channel.peer().map_or_else(String::new, |from| from.to_string());
        self.visitors.say(&format!("{from} was turned away: a primary is followed already"));
        let why = format!(
            "the backup at {} follows a primary already, or runs its VM: name another one, on a \
             port of its own",
            self.listen
        );
        if let Err(error) = channel.send(&ft::Message::Word(ft::Word::Refuse { why })) {
            log::debug!("{error}");
        }
        poller.forget(channel.as_raw_fd());
    }

    pub(super) fn close_channel(&mut self, poller: &Poller) {
        if let Some(mut channel) = self.channel.take() {
            channel.flush();
            poller.forget(channel.as_raw_fd());
        }
    }
}

/// How this side protects the VM once it has it: as the primary did, with this host's own arbiter.
pub(super) fn inheritance(
    ft: FtConfig,
    arbiter: Option<Arbiter>,
    listen: SocketAddr,
    primary_ip: Option<std::net::IpAddr>,
) -> (FtConfig, Option<PeerAddress>) {
    let primary_address = match (&ft.mode, primary_ip) {
        (FtMode::Primary { listen: Some(listen), .. }, Some(ip)) => {
            Some(PeerAddress { host: ip.to_string(), port: listen.port() })
        }
        _ => None,
    };
    let mode = match ft.mode {
        FtMode::Primary { peer, .. } => FtMode::Primary { peer, listen: Some(listen) },
        mode @ (FtMode::Backup { .. } | FtMode::Record { .. } | FtMode::Replay { .. }) => mode,
    };
    (FtConfig { mode, arbiter, ..ft }, primary_address)
}
