//! Machine time: nanoseconds since the machine's first start, stopped while it is paused.
//!
//! Owns the only place where real time enters the engine. Models see it through
//! [`Time`], which logs or replays each value they read.

use std::time::Instant;

use ft::{Input, Recorder};

use super::replaying::Replaying;
use crate::devices::Clock;

/// Machine time of a live machine.
#[derive(Clone, Debug)]
pub struct LiveClock {
    /// Machine time at `since`, or now when stopped.
    base_ns: u64,
    since: Option<Instant>,
}

impl LiveClock {
    /// A stopped clock that shows `base_ns`.
    pub fn stopped_at(base_ns: u64) -> Self {
        Self { base_ns, since: None }
    }

    /// Machine time now, in nanoseconds.
    pub fn now(&self) -> u64 {
        let passed = self.since.map_or(0, |since| since.elapsed().as_nanos() as u64);
        self.base_ns.saturating_add(passed)
    }

    /// Lets time pass. No effect on a clock that runs.
    pub fn start(&mut self) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
        }
    }

    /// Stops time.
    pub fn stop(&mut self) {
        self.base_ns = self.now();
        self.since = None;
    }
}

/// The clock that device models ask while an exit is handled.
pub(super) enum Time<'a> {
    Live(&'a LiveClock),
    Recording(&'a LiveClock, &'a mut Recorder, u64),
    Replaying(&'a mut Replaying, u64),
}

impl Clock for Time<'_> {
    fn now(&mut self) -> u64 {
        match self {
            Self::Live(clock) => clock.now(),
            Self::Recording(clock, recorder, moment) => {
                let now_ns = clock.now();
                // A time is never too large for a record.
                let _ = recorder.input(*moment, &Input::TimeRead { now_ns });
                now_ns
            }
            Self::Replaying(replaying, moment) => replaying.take_time(*moment),
        }
    }
}
