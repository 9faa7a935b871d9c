//! How the copying of a running machine shares its thread with the guest, and when it is done.
//!
//! Owns the arithmetic only: time and counts are handed in. The thread that runs the guest also
//! reads its pages, so what the copy takes the guest does not have: a larger share slows the guest
//! down, and with it the rate at which it writes pages again. That makes every copy converge.

/// Shares of the time, in percent, that the copy may take. The next one is tried when a round
/// leaves the guest with nearly as many pages to copy as the round before.
const SHARES: [u64; 5] = [25, 50, 75, 90, 98];
/// Where a copy begins that is to be over soon: an index into [`SHARES`].
const URGENT_LEVEL: usize = 2;
/// From this share on the guest waits for the copy's turn even while the network is the bottleneck.
const THROTTLES_FROM: u64 = 50;
/// A round has to leave at most this part of the pages of the one before, percent.
const SHRINKS_TO: u64 = 70;
/// The machine may stand still this long for the last pages, ns.
const PAUSE_MOST_NS: u64 = 20_000_000;
/// So few pages are always the last ones.
const LAST_PAGES: u64 = 64;
/// After so many rounds the machine stands still for whatever is left.
const ROUNDS_MOST: u32 = 40;

/// What to do with the pages that were written during a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Copy them while the guest runs.
    Round,
    /// Copy them while it stands still: they are the last ones.
    Finish,
}

/// The state of a copy.
#[derive(Clone, Debug, Default)]
pub(super) struct CopyPace {
    level: usize,
    round: u32,
    /// Pages that the round under way began with.
    round_pages: u64,
    /// Pages copied, and the time that took, in all.
    pages: u64,
    copying_ns: u64,
    /// The guest has its turn until then, monotonic ns.
    guest_until_ns: u64,
}

impl CopyPace {
    /// A copy that begins with `pages` pages.
    pub(super) fn new(pages: u64) -> Self {
        Self { round: 1, round_pages: pages, ..Self::default() }
    }

    /// The same for a standby that was the backup a moment ago and holds most pages still: they are
    /// only compared, which is soon over, and until it is the machine has lost its protection.
    pub(super) fn urgent(pages: u64) -> Self {
        Self { level: URGENT_LEVEL, ..Self::new(pages) }
    }

    /// The share of the time that the copy takes, percent.
    pub(super) fn share_percent(&self) -> u64 {
        SHARES[self.level]
    }

    /// Rounds begun.
    pub(super) fn round(&self) -> u32 {
        self.round
    }

    /// Whether it is the copy's turn.
    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.guest_until_ns
    }

    /// When it is the copy's turn, monotonic ns.
    pub(super) fn due_ns(&self) -> u64 {
        self.guest_until_ns
    }

    /// Whether the guest has to wait until the copy has had its turn.
    pub(super) fn guest_waits(&self, now_ns: u64) -> bool {
        self.is_due(now_ns) && self.share_percent() >= THROTTLES_FROM
    }

    /// The copy has had a turn, from `begun_ns` to `now_ns`, in which it read `pages` pages.
    pub(super) fn took(&mut self, begun_ns: u64, now_ns: u64, pages: u64) {
        let took_ns = now_ns.saturating_sub(begun_ns);
        self.pages += pages;
        self.copying_ns += took_ns;
        let share = self.share_percent();
        self.guest_until_ns = now_ns.saturating_add(took_ns * (100 - share) / share);
    }

    /// A round is over; meanwhile the guest wrote `dirty` pages.
    pub(super) fn next_round(&mut self, dirty: u64) -> Next {
        let page_ns = self.copying_ns / self.pages.max(1);
        let pause_ns = dirty.saturating_mul(page_ns);
        let done = dirty <= LAST_PAGES || pause_ns <= PAUSE_MOST_NS;
        if done || self.round >= ROUNDS_MOST {
            return Next::Finish;
        }
        if dirty * 100 > self.round_pages * SHRINKS_TO && self.level + 1 < SHARES.len() {
            self.level += 1;
        }
        self.round += 1;
        self.round_pages = dirty;
        Next::Round
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_NS: u64 = 2_000;

    /// Copies `memory` pages of which the guest writes `hot` again and again, one every
    /// `write_ns` of its own time. Returns the rounds, the pause in pages and the last share.
    fn copy(memory: u64, hot: u64, write_ns: u64) -> (u32, u64, u64) {
        let mut pace = CopyPace::new(memory);
        let mut now = 0;
        let mut left = memory;
        loop {
            let mut guest_ns = 0;
            while left > 0 {
                let pages = left.min(256);
                pace.took(now, now + pages * PAGE_NS, pages);
                now += pages * PAGE_NS;
                guest_ns += pace.due_ns() - now;
                now = pace.due_ns();
                left -= pages;
            }
            let dirty = (guest_ns / write_ns).min(hot);
            if pace.next_round(dirty) == Next::Finish {
                return (pace.round(), dirty, pace.share_percent());
            }
            left = dirty;
        }
    }

    #[test]
    fn a_quiet_guest_is_copied_in_one_round_and_never_throttled() {
        let (rounds, last, share) = copy(100_000, 50, 1_000);
        assert_eq!((rounds, last, share), (1, 50, SHARES[0]));
    }

    #[test]
    fn a_guest_that_writes_faster_than_it_is_copied_is_slowed_down_until_it_converges() {
        let (rounds, last, share) = copy(262_144, 65_536, 300);
        assert!(rounds < 20, "{rounds} rounds");
        assert!(last * PAGE_NS <= PAUSE_MOST_NS, "{last} pages in the pause");
        assert!(share >= THROTTLES_FROM);
    }

    #[test]
    fn a_guest_that_writes_slowly_converges_at_the_first_share() {
        let (_, last, share) = copy(262_144, 65_536, 50_000);
        assert!(last * PAGE_NS <= PAUSE_MOST_NS);
        assert_eq!(share, SHARES[0]);
    }

    #[test]
    fn an_urgent_copy_takes_most_of_the_time_from_the_start() {
        let (mut usual, mut urgent) = (CopyPace::new(1000), CopyPace::urgent(1000));
        usual.took(0, 3_000, 10);
        urgent.took(0, 3_000, 10);
        assert_eq!((usual.due_ns(), urgent.due_ns()), (12_000, 4_000));
        assert!(urgent.guest_waits(4_000));
    }

    #[test]
    fn a_copy_that_does_not_converge_ends_all_the_same() {
        let mut pace = CopyPace::new(1 << 20);
        pace.took(0, 1 << 40, 1);
        let rounds = (0..100).take_while(|_| pace.next_round(1 << 20) == Next::Round).count();
        assert_eq!(rounds as u32, ROUNDS_MOST - 1);
        assert_eq!(pace.share_percent(), 98);
    }

    #[test]
    fn the_guest_waits_for_the_copy_only_when_it_is_throttled() {
        let mut pace = CopyPace::new(1000);
        pace.took(0, 1_000_000, 256);
        assert!(!pace.is_due(3_999_999) && pace.is_due(4_000_000));
        assert!(!pace.guest_waits(5_000_000));
        pace.copying_ns = 1 << 40;
        assert_eq!(pace.next_round(1000), Next::Round);
        assert!(pace.guest_waits(5_000_000));
    }
}
