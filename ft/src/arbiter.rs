//! The question both replicas ask when they lose each other, and the patience to ask it again.
//!
//! An arbiter is an atomic test-and-set for each generation of a virtual machine: the first who
//! claims a generation has it for ever, and asking again gives the same answer. Where the arbiter
//! lives (a file, a cluster) belongs to the driver.

/// What the arbiter said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The generation is this side's.
    Won,
    /// It is the other side's.
    Lost,
    /// Nobody knows: it could not be reached. The claim may or may not have been made.
    Unreachable,
}

/// One claim, asked until there is an answer.
#[derive(Clone, Debug)]
pub(crate) struct Contest {
    pub(crate) generation: u64,
    first_wait_ms: u64,
    wait_ms: u64,
    /// When to ask next; `None` while a question is open.
    next_ms: Option<u64>,
}

impl Contest {
    /// Starts; the caller asks for the first time now.
    pub(crate) fn new(generation: u64, retry_ms: u64) -> Self {
        Self { generation, first_wait_ms: retry_ms, wait_ms: retry_ms, next_ms: None }
    }

    /// The question stays open: ask again later, each time a little later still.
    pub(crate) fn unanswered(&mut self, now_ms: u64) {
        self.next_ms = Some(now_ms.saturating_add(self.wait_ms));
        self.wait_ms = self.wait_ms.saturating_mul(2).min(self.first_wait_ms.saturating_mul(16));
    }

    /// Whether to ask now. If so, the question is open again.
    pub(crate) fn is_due(&mut self, now_ms: u64) -> bool {
        let due = self.next_ms.is_some_and(|next_ms| now_ms >= next_ms);
        if due {
            self.next_ms = None;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arbiter_out_of_reach_is_asked_again_ever_more_slowly() {
        let mut contest = Contest::new(2, 100);
        assert!(!contest.is_due(1_000), "a question is open");
        let mut now_ms = 0;
        let mut waits = alloc::vec::Vec::new();
        for _ in 0..7 {
            contest.unanswered(now_ms);
            let asked_ms = (now_ms..).find(|at_ms| contest.is_due(*at_ms)).unwrap();
            waits.push(asked_ms - now_ms);
            now_ms = asked_ms;
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 1600, 1600]);
    }
}
