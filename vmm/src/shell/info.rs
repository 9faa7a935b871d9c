//! The answer of `vm.ft-info`.

use std::time::Instant;

use super::protection::Protection;
use super::Shell;
use crate::api::{ApiReply, ApiResult, FtInfo, FtProtection, FtRole, FtState};

impl Shell {
    pub(super) fn ft_info(&mut self) -> ApiResult {
        let mut info = FtInfo {
            moment: self.statistics.moment,
            acknowledged_moment: self.statistics.acknowledged_moment,
            lag_ms: self.statistics.lag_ms,
            log: self.statistics.traffic(Instant::now()),
            deltas: self.statistics.deltas,
            delta_pages: self.statistics.delta_pages,
            divergences: self.statistics.divergences,
            last_event: self.statistics.last_event(),
            ..FtInfo::default()
        };
        match &self.protection {
            Protection::None => {}
            Protection::Recording(_) => {
                info.state = FtState::Recording;
                info.role = Some(FtRole::Recorder);
                info.mode = FtProtection::Replay;
            }
            Protection::Replaying(_) => {
                info.state = FtState::Replaying;
                info.role = Some(FtRole::Replayer);
                info.mode = FtProtection::Replay;
            }
        }
        Ok(ApiReply::FtInfo(Box::new(info)))
    }
}
