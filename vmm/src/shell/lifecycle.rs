//! A VM's life as the API and the command line order it: create, boot, pause, resume, reboot,
//! shut down, delete.
//!
//! Owns which order is possible in which state, and the words of the refusal.

use std::collections::BTreeMap;

use ft::Input;
use serde_json::json;

use super::protection::Protection;
use super::reprotection::Succession;
use super::vm::Running;
use super::{Awaits, Outcome, Shell};
use crate::api::{
    ApiCall, ApiError, ApiReply, ApiRequest, ApiResult, DeviceNode, ReplySender, VmCounters,
    VmInfo, VmState, VmmPingResponse,
};
use crate::build::{Slot, slots};
use crate::config::{FtMode, VmConfig};
use crate::description::Unreplayable;
use crate::engine::Message;
use crate::error::Error;

impl Shell {
    /// Does what the command line asks for.
    pub(super) fn begin(&mut self) -> Result<(), Error> {
        let ft = self.invocation.ft.clone();
        if let Some(ft) = &ft
            && !ft.is_source()
        {
            return self.begin_following(ft);
        }
        if let Some(config) = self.invocation.vm.clone() {
            self.create(config)?;
            self.boot()?;
        }
        Ok(())
    }

    /// Carries out an API call, or keeps it until what it asks for has happened.
    pub(super) fn on_call(&mut self, call: ApiCall) {
        let ApiCall { request, reply } = call;
        let (awaits, started) = match request {
            ApiRequest::VmPause => (Awaits::Paused, self.pause()),
            ApiRequest::VmResume => (Awaits::Resumed, self.resume()),
            ApiRequest::FtEnable(config) => (Awaits::Protected, self.ft_enable(&config)),
            ApiRequest::FtMoveBackup(peer) => (Awaits::Protected, self.ft_move_backup(&peer)),
            // Nobody has to agree where nobody was found yet.
            ApiRequest::FtDisable if self.end_search() => return reply.send(Ok(ApiReply::Empty)),
            ApiRequest::FtDisable => match self.ft_disable() {
                // A join that is cancelled is over at once.
                Ok(()) if self.is_unprotected() => return reply.send(Ok(ApiReply::Empty)),
                started => (Awaits::Unprotected, started),
            },
            ApiRequest::FtFailover => (Awaits::HandedOver, self.ft_failover()),
            ApiRequest::SendMigration(order) => (Awaits::Moved, self.send_migration(&order)),
            ApiRequest::ReceiveMigration(order) => {
                (Awaits::Received, self.receive_migration(&order))
            }
            other => return reply.send(self.answer_now(other)),
        };
        self.wait_or_refuse(awaits, started, reply);
    }

    fn wait_or_refuse(
        &mut self,
        awaits: Awaits,
        started: Result<(), ApiError>,
        reply: ReplySender,
    ) {
        match started {
            Ok(()) => self.calls.push((awaits, reply)),
            Err(error) => reply.send(Err(error)),
        }
    }

    fn answer_now(&mut self, request: ApiRequest) -> ApiResult {
        match request {
            ApiRequest::VmmPing => return Ok(ApiReply::Ping(VmmPingResponse::of_this_process())),
            ApiRequest::VmInfo => return self.vm_info(),
            ApiRequest::VmCounters => return self.vm_counters(),
            ApiRequest::FtInfo => return Ok(ApiReply::FtInfo(self.ft_info().into())),
            ApiRequest::FtMetrics => return Ok(ApiReply::FtMetrics(self.ft_info().into())),
            ApiRequest::VmmShutdown => self.outcome = Some(Outcome::Well),
            ApiRequest::VmCreate(config) => {
                self.create(*config).map_err(|error| ApiError::failed(error.to_string()))?;
            }
            ApiRequest::VmBoot => {
                if self.config.is_none() {
                    return Err(no_vm());
                }
                self.boot().map_err(|error| ApiError::failed(error.to_string()))?;
            }
            ApiRequest::VmShutdown => self.shut_down()?,
            ApiRequest::VmReboot => self.input(Input::Reset)?,
            ApiRequest::VmPowerButton => self.input(Input::PowerButton)?,
            ApiRequest::VmDelete => self.delete()?,
            ApiRequest::FtStandbys(list) => self.ft_standbys(&list)?,
            // `on_call` answers these later.
            ApiRequest::VmPause
            | ApiRequest::VmResume
            | ApiRequest::FtEnable(_)
            | ApiRequest::FtDisable
            | ApiRequest::FtMoveBackup(_)
            | ApiRequest::SendMigration(_)
            | ApiRequest::ReceiveMigration(_)
            | ApiRequest::FtFailover => {}
        }
        Ok(ApiReply::Empty)
    }

    fn create(&mut self, mut config: VmConfig) -> Result<(), Error> {
        if self.config.is_some() {
            return Err(Error::Refused(
                "there is a VM already; delete it first (vm.delete) or start another VMM".into(),
            ));
        }
        if matches!(self.protection, Protection::Backup(_)) {
            return Err(Error::Refused(
                "this VMM waits for a VM from another host, and cannot make one of its own".into(),
            ));
        }
        config.validate()?;
        config.complete().map_err(|error| {
            Error::Refused(format!("no MAC address can be drawn from the random source: {error}"))
        })?;
        self.booted = false;
        self.config = Some(config);
        // What was known of another VM's protection is not this one's.
        self.succession = Succession::default();
        self.events.report("vm", "created", &json!({}));
        Ok(())
    }

    fn boot(&mut self) -> Result<(), Error> {
        if self.running.is_some() {
            return Err(Error::Refused("the VM runs already".into()));
        }
        let Some(config) = self.config.clone() else {
            return Err(Error::Refused("there is no VM to boot; create one first".into()));
        };
        self.events.report("vm", "booting", &json!({}));
        // A VM that is to be logged stands still until its log begins.
        let logged = config.ft.clone();
        let undo = self.invocation.debug_undo.clone();
        let running = Running::boot(&config, &undo, logged.is_some(), &self.poller)?;
        self.succession.unreplayable = Unreplayable::of(running.treated, &undo);
        if let Some(Unreplayable { why, .. }) = &self.succession.unreplayable {
            log::warn!("the VM can be protected by checkpoints only: {why}");
        }
        self.running = Some(running);
        self.booted = true;
        if let Some(ft) = logged {
            if let Err(error) = self.begin_logging(&ft) {
                self.end_vm();
                return Err(error);
            }
            if matches!(ft.mode, FtMode::Record { .. }) {
                self.started = true;
                self.send(Message::Resume);
            }
        } else {
            self.started = true;
        }
        self.events.report("vm", "booted", &json!({}));
        Ok(())
    }

    /// Sends to the engine, if there is one.
    pub(super) fn send(&self, message: Message) {
        if let Some(running) = &self.running {
            running.engine.send(message);
        }
    }

    fn pause(&mut self) -> Result<(), ApiError> {
        self.must_run()?;
        if self.paused {
            return Err(ApiError::failed("The VM is paused already."));
        }
        self.must_stay()?;
        self.send(Message::Pause);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), ApiError> {
        self.must_run()?;
        if !self.paused {
            return Err(ApiError::failed("The VM is not paused, so it cannot be resumed."));
        }
        if self.is_undecided() {
            return self.reclaim();
        }
        self.send(Message::Resume);
        Ok(())
    }

    fn input(&mut self, input: Input) -> Result<(), ApiError> {
        self.must_run()?;
        self.must_be_ours()?;
        self.send(Message::Input(input));
        Ok(())
    }

    fn shut_down(&mut self) -> Result<(), ApiError> {
        self.must_run()?;
        self.end_protection();
        self.end_vm();
        self.events.report("vm", "shutdown", &json!({}));
        Ok(())
    }

    fn delete(&mut self) -> Result<(), ApiError> {
        if self.config.is_none() {
            return Err(no_vm());
        }
        self.end_protection();
        self.end_vm();
        self.config = None;
        self.booted = false;
        self.events.report("vm", "deleted", &json!({}));
        Ok(())
    }

    /// Refuses what needs a VM that runs.
    pub(super) fn must_run(&self) -> Result<(), ApiError> {
        if self.config.is_none() && self.running.is_none() {
            return Err(no_vm());
        }
        if self.running.is_none() {
            return Err(ApiError::failed("The VM is not running; boot it first (vm.boot)."));
        }
        Ok(())
    }

    fn vm_state(&self) -> VmState {
        match (&self.running, self.paused) {
            // A VM that moves here is not here before it is.
            (Some(_), _) if self.receives() && !self.started => VmState::Created,
            (Some(_), true) => VmState::Paused,
            (Some(_), false) => VmState::Running,
            (None, _) if self.booted => VmState::Shutdown,
            (None, _) => VmState::Created,
        }
    }

    fn vm_info(&self) -> ApiResult {
        let Some(config) = &self.config else { return Err(no_vm()) };
        Ok(ApiReply::VmInfo(Box::new(VmInfo {
            config: config.clone(),
            state: self.vm_state(),
            memory_actual_size: config.memory.size,
            device_tree: Some(device_tree(config)),
        })))
    }

    fn vm_counters(&self) -> ApiResult {
        self.must_run()?;
        let Some(config) = &self.config else { return Err(no_vm()) };
        let counters: VmCounters = self
            .running
            .as_ref()
            .and_then(|running| running.world.as_ref())
            .map(|world| world.counters(config))
            .unwrap_or_default();
        Ok(ApiReply::Counters(counters))
    }
}

fn no_vm() -> ApiError {
    ApiError::not_found("There is no VM yet; create one first (vm.create).")
}

/// Devices by name, with their places on the bus.
fn device_tree(config: &VmConfig) -> BTreeMap<String, DeviceNode> {
    slots(config)
        .into_iter()
        .enumerate()
        .map(|(index, slot)| {
            let id = slot_name(config, slot);
            let node = DeviceNode {
                id: id.clone(),
                children: Vec::new(),
                pci_bdf: Some(format!("0000:00:{:02x}.0", index + 1)),
            };
            (id, node)
        })
        .collect()
}

/// A device's name for users.
pub(super) fn slot_name(config: &VmConfig, slot: Slot) -> String {
    let id = match slot {
        Slot::Console => Some("_console".to_owned()),
        Slot::Rng => Some("_rng".to_owned()),
        Slot::Disk(place) => config.disks().get(place).and_then(|disk| disk.id.clone()),
        Slot::Net(place) => config.nets().get(place).and_then(|net| net.id.clone()),
    };
    id.unwrap_or_default()
}
