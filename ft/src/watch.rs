//! When the peer was last heard, and whether this process itself was looking all the time.

use crate::action::LossCause;
use crate::settings::Settings;

#[derive(Clone, Debug)]
pub(crate) struct Watch {
    /// Anything from the peer, stream or datagram.
    heard_ms: u64,
    /// Anything on the stream.
    stream_ms: u64,
    /// The last time anybody asked us anything.
    attended_ms: u64,
}

/// The time since this process last looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    /// When that was.
    pub(crate) since_ms: u64,
    /// Milliseconds that count for nothing.
    pub(crate) missed_ms: u64,
    /// Its length, if it is worth telling.
    pub(crate) paused_ms: Option<u64>,
}

impl Watch {
    pub(crate) fn new(now_ms: u64) -> Self {
        Self { heard_ms: now_ms, stream_ms: now_ms, attended_ms: now_ms }
    }

    /// To be called before anything else at every step.
    ///
    /// Of the time since the last step only a heartbeat's worth counts: this process may have been
    /// stopped, its host suspended and the clock set on by more than really passed. After a long
    /// gap the peer's silence is counted afresh, as its words may lie unread. All that only ever
    /// delays a takeover.
    pub(crate) fn attend(&mut self, now_ms: u64, settings: &Settings) -> Gap {
        let gap_ms = now_ms.saturating_sub(self.attended_ms);
        let since_ms = core::mem::replace(&mut self.attended_ms, now_ms);
        let missed_ms = gap_ms.saturating_sub(settings.heartbeat_ms);
        self.heard_ms += missed_ms;
        self.stream_ms += missed_ms;
        let paused_ms = (gap_ms > settings.timeout_ms / 2).then_some(gap_ms);
        if paused_ms.is_some() {
            self.heard_ms = now_ms;
            self.stream_ms = now_ms;
        }
        Gap { since_ms, missed_ms, paused_ms }
    }

    pub(crate) fn heard_datagram(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
    }

    pub(crate) fn heard_stream(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
        self.stream_ms = now_ms;
    }

    pub(crate) fn heard_ms(&self) -> u64 {
        self.heard_ms
    }

    /// Whether the peer is lost by silence.
    pub(crate) fn silence(&self, now_ms: u64, settings: &Settings) -> Option<LossCause> {
        let silent_ms = now_ms.saturating_sub(self.heard_ms);
        if silent_ms >= settings.timeout_ms {
            return Some(LossCause::Silent { silent_ms });
        }
        let silent_ms = now_ms.saturating_sub(self.stream_ms);
        (silent_ms >= settings.silence_ms).then_some(LossCause::StreamSilent { silent_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_a_loss_and_heartbeats_alone_do_not_help_for_long() {
        let settings = Settings::default();
        let mut watch = Watch::new(0);
        assert_eq!(watch.silence(499, &settings), None);
        assert_eq!(watch.silence(500, &settings), Some(LossCause::Silent { silent_ms: 500 }));
        for now_ms in (0..2000).step_by(100) {
            watch.heard_datagram(now_ms);
            assert_eq!(watch.silence(now_ms, &settings), None);
        }
        watch.heard_datagram(2000);
        let cause = LossCause::StreamSilent { silent_ms: 2000 };
        assert_eq!(watch.silence(2000, &settings), Some(cause));
    }

    #[test]
    fn a_process_that_was_stopped_listens_again_before_it_judges() {
        let settings = Settings::default();
        let mut watch = Watch::new(0);
        assert_eq!(watch.attend(200, &settings).paused_ms, None);
        assert_eq!(watch.attend(10_000, &settings).paused_ms, Some(9_800));
        assert_eq!(watch.silence(10_000, &settings), None);
    }

    #[test]
    fn time_that_nobody_watched_is_not_the_peers_silence() {
        let settings = Settings::default();
        let mut watch = Watch::new(0);
        let gap = watch.attend(250, &settings);
        assert_eq!(gap, Gap { since_ms: 0, missed_ms: 200, paused_ms: None });
        assert_eq!(watch.silence(699, &settings), None);
        assert!(watch.silence(700, &settings).is_some());
    }
}
