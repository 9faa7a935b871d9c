//! Waiting for something that is looked at again and again.
//!
//! Owns the one loop there is for that. It ends early when this process is to end.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::runner::interrupted;

/// Looks every `interval` until there is something; fails after `timeout`, naming what was waited for.
pub fn wait_until<T>(
    what: &str,
    timeout: Duration,
    interval: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if interrupted() {
            bail!("interrupted while waiting for {what}");
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {:.1} s", timeout.as_secs_f64());
        }
        sleep(interval);
    }
}

/// Does nothing for this long, unless this process is to end.
pub fn pause(duration: Duration) -> Result<()> {
    const SLICE: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + duration;
    loop {
        if interrupted() {
            bail!("interrupted");
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        sleep(left.min(SLICE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_late_is_found_and_what_never_comes_is_named() {
        let mut looks = 0;
        let found = wait_until("three", Duration::from_secs(60), Duration::ZERO, || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(found.unwrap(), 3);
        let error =
            wait_until("the end of time", Duration::ZERO, Duration::ZERO, || Ok(None::<()>));
        assert!(error.unwrap_err().to_string().starts_with("the end of time: not within"));
    }
}
