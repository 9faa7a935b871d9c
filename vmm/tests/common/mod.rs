//! A VMM without a machine: it keeps one VM's configuration and state and answers the API the way
//! the real one does. For tests of clients against the real server.

use std::collections::BTreeMap;
use std::path::PathBuf;

use vmm::api::{
    ApiCall, ApiError, ApiReply, ApiRequest, ApiResult, ApiServer, ApiSocket, FtEvent, FtInfo,
    FtProtection, FtRole, FtState, VmInfo, VmState, VmmPingResponse, api_queue,
};
use vmm::config::{FtConfig, FtMode, VmConfig};

/// The running stub; dropping it ends server and thread.
pub struct StubVmm {
    directory: tempfile::TempDir,
    _server: ApiServer,
}

impl StubVmm {
    /// Serves the API at [`StubVmm::socket`].
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (submitter, queue) = api_queue().unwrap();
        let place = ApiSocket::Path(directory.path().join("api"));
        let server = ApiServer::start(&place, move |call| submitter.submit(call)).unwrap();
        std::thread::spawn(move || {
            let mut vm = StubVm::default();
            // The tests' process ends before this matters; no clock is needed to wake up.
            loop {
                match queue.take() {
                    Some(ApiCall { request, reply }) => reply.send(vm.answer(request)),
                    None => std::thread::sleep(std::time::Duration::from_millis(1)),
                }
            }
        });
        StubVmm { directory, _server: server }
    }

    /// Where the API is.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("api")
    }
}

#[derive(Default)]
struct StubVm {
    config: Option<VmConfig>,
    state: Option<VmState>,
    ft: Option<FtConfig>,
}

impl StubVm {
    fn answer(&mut self, request: ApiRequest) -> ApiResult {
        match request {
            ApiRequest::VmmPing => Ok(ApiReply::Ping(VmmPingResponse::of_this_process())),
            ApiRequest::VmCreate(config) => self.create(*config),
            ApiRequest::VmInfo => self.info(),
            ApiRequest::VmCounters => {
                self.created()?;
                let counters = BTreeMap::from([("rx_bytes".into(), 7), ("tx_bytes".into(), 9)]);
                Ok(ApiReply::Counters(BTreeMap::from([("_net1".into(), counters)])))
            }
            ApiRequest::VmBoot => {
                self.change(&[VmState::Created, VmState::Shutdown], VmState::Running)
            }
            ApiRequest::VmPause => self.change(&[VmState::Running], VmState::Paused),
            ApiRequest::VmResume => self.change(&[VmState::Paused], VmState::Running),
            ApiRequest::VmShutdown => {
                self.change(&[VmState::Running, VmState::Paused], VmState::Shutdown)
            }
            ApiRequest::VmReboot => self.change(&[VmState::Running], VmState::Running),
            ApiRequest::VmPowerButton => self.change(&[VmState::Running], VmState::Shutdown),
            ApiRequest::VmDelete | ApiRequest::VmmShutdown => {
                *self = StubVm::default();
                Ok(ApiReply::Empty)
            }
            ApiRequest::SendMigration(_) => {
                self.created()?;
                *self = StubVm::default();
                Ok(ApiReply::Empty)
            }
            ApiRequest::ReceiveMigration(order) => match &self.config {
                Some(_) => Err(ApiError::failed("There is a VM already.")),
                None => {
                    let config = VmConfig { disks: None, ..VmConfig::default() };
                    assert!(order.overrides.disks.is_empty() && order.listen.port() > 0);
                    self.create(config)?;
                    self.change(&[VmState::Created], VmState::Running)
                }
            },
            ApiRequest::FtEnable(config) => {
                self.created()?;
                self.ft = Some(*config);
                Ok(ApiReply::Empty)
            }
            ApiRequest::FtStandbys(_) | ApiRequest::FtMoveBackup(_) => match self.ft {
                Some(_) => Ok(ApiReply::Empty),
                None => Err(ApiError::failed("The VM is not protected.")),
            },
            ApiRequest::FtDisable | ApiRequest::FtFailover => match self.ft.take() {
                Some(_) => Ok(ApiReply::Empty),
                None => Err(ApiError::failed("The VM is not protected.")),
            },
            ApiRequest::FtInfo => Ok(ApiReply::FtInfo(Box::new(self.ft_info()))),
            ApiRequest::FtMetrics => Ok(ApiReply::FtMetrics(Box::new(self.ft_info()))),
        }
    }

    fn created(&self) -> Result<&VmConfig, ApiError> {
        self.config.as_ref().ok_or_else(|| ApiError::not_found("No VM has been created."))
    }

    fn create(&mut self, mut config: VmConfig) -> ApiResult {
        if self.config.is_some() {
            return Err(ApiError::failed("There is a VM already; delete it first."));
        }
        config.complete().unwrap();
        (self.config, self.state) = (Some(config), Some(VmState::Created));
        Ok(ApiReply::Empty)
    }

    fn info(&self) -> ApiResult {
        let config = self.created()?.clone();
        Ok(ApiReply::VmInfo(Box::new(VmInfo {
            memory_actual_size: config.memory.size,
            config,
            state: self.state.unwrap(),
            device_tree: None,
        })))
    }

    fn change(&mut self, from: &[VmState], to: VmState) -> ApiResult {
        self.created()?;
        match self.state.filter(|state| from.contains(state)) {
            Some(_) => {
                self.state = Some(to);
                Ok(ApiReply::Empty)
            }
            None => Err(ApiError::failed(format!("The VM is {:?}.", self.state.unwrap()))),
        }
    }

    fn ft_info(&self) -> FtInfo {
        let Some(ft) = &self.ft else { return FtInfo::default() };
        let what = "A backup joined.".to_owned();
        let event = FtEvent { what, when_unix_ms: 1_000, ago_ms: 2_000, moment: Some(5) };
        let FtMode::Primary { peer, .. } = &ft.mode else { return FtInfo::default() };
        FtInfo {
            state: FtState::Protected,
            role: Some(FtRole::Primary),
            generation: 1,
            mode: FtProtection::Replay,
            ack: ft.ack,
            peer: Some(peer.to_string()),
            last_event: Some(event.clone()),
            events: vec![event],
            ..Default::default()
        }
    }
}
