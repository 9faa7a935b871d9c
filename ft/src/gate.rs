//! Output commit: outputs wait here until the log that leads to them is acknowledged.
//!
//! The gate keeps order, bounds and times. Who may open it, and when, belongs to the replica
//! protocol; carrying an output out belongs to the shell.

use alloc::{collections::VecDeque, vec::Vec};

use crate::recorder::Noted;

/// How much of a gate's bound an item takes.
pub trait Weight {
    /// Bytes.
    fn weight_bytes(&self) -> usize;
}

impl Weight for crate::event::Output {
    fn weight_bytes(&self) -> usize {
        self.payload_length()
    }
}

#[derive(Clone, Debug)]
struct Held<T> {
    item: T,
    /// The chunk that has to be acknowledged.
    chunk: u64,
    since_us: u64,
}

/// A queue of outputs, each waiting for a chunk of the log.
#[derive(Clone, Debug)]
pub struct Gate<T> {
    held: VecDeque<Held<T>>,
    held_bytes: usize,
    limit_bytes: usize,
    /// Everything up to this chunk may pass.
    released: u64,
    delays: Delays,
}

/// Bytes an item costs besides its payload.
const ITEM_BYTES: usize = 64;

impl<T: Weight> Gate<T> {
    /// A closed gate that reports to be over its limit once it holds more than `limit_bytes`.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            held: VecDeque::new(),
            held_bytes: 0,
            limit_bytes,
            released: 0,
            delays: Delays::default(),
        }
    }

    /// Adds an output that waits for `chunk`. Gives it back at once if it need not wait: it is not
    /// `gated`, or the chunk is acknowledged and nothing waits before it.
    pub fn push(&mut self, item: T, gated: bool, chunk: u64, now_us: u64) -> Option<T> {
        if !gated {
            return Some(item);
        }
        if chunk <= self.released && self.held.is_empty() {
            self.delays.add(0);
            return Some(item);
        }
        self.held_bytes += item.weight_bytes() + ITEM_BYTES;
        self.held.push_back(Held { item, chunk, since_us: now_us });
        None
    }

    /// What waits for a chunk still to come ([`Noted::CHUNK_TO_COME`]) waits for this one.
    ///
    /// [`Noted::CHUNK_TO_COME`]: crate::recorder::Noted::CHUNK_TO_COME
    pub fn assign(&mut self, chunk: u64) {
        let to_come = |held: &&mut Held<T>| held.chunk == Noted::CHUNK_TO_COME;
        for held in self.held.iter_mut().rev().take_while(to_come) {
            held.chunk = chunk;
        }
    }

    /// Everything that waits for chunks up to `chunk` may leave: returns it in order. What is pushed
    /// later for such a chunk passes.
    pub fn release(&mut self, chunk: u64, now_us: u64) -> Vec<T> {
        self.released = self.released.max(chunk);
        let mut out = Vec::new();
        while let Some(first) = self.held.pop_front_if(|first| first.chunk <= self.released) {
            self.held_bytes -= first.item.weight_bytes() + ITEM_BYTES;
            self.delays.add(now_us.saturating_sub(first.since_us));
            out.push(first.item);
        }
        out
    }

    /// A new log begins: chunk numbers start again. The gate closes; it must be empty.
    ///
    /// # Panics
    ///
    /// If outputs of the old log still wait: they would be released by chunks of the new one.
    pub fn restart(&mut self) {
        assert!(self.held.is_empty(), "outputs of the old log still wait");
        self.released = 0;
    }

    /// Outputs held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether no output is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Bytes held, with a little for each output itself.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether the machine should stop until some outputs have left.
    #[must_use]
    pub fn is_over_limit(&self) -> bool {
        self.held_bytes > self.limit_bytes
    }

    /// Microseconds that the oldest output has waited.
    #[must_use]
    pub fn oldest_wait_us(&self, now_us: u64) -> Option<u64> {
        self.held.front().map(|first| now_us.saturating_sub(first.since_us))
    }

    /// How long outputs had to wait.
    #[must_use]
    pub fn delays(&self) -> &Delays {
        &self.delays
    }
}

/// A histogram of delays: eight buckets to each doubling, so a quantile is exact to an eighth.
#[derive(Clone, Debug)]
pub struct Delays {
    buckets: [u64; Self::BUCKETS],
    count: u64,
}

impl Default for Delays {
    fn default() -> Self {
        Self { buckets: [0; Self::BUCKETS], count: 0 }
    }
}

impl Delays {
    /// Up to 2^32 µs, over an hour; what is longer counts as that.
    const BUCKETS: usize = 8 * 30;

    /// Counts one delay, in microseconds.
    pub fn add(&mut self, delay_us: u64) {
        let bucket = Self::bucket(delay_us).min(Self::BUCKETS - 1);
        if let Some(count) = self.buckets.get_mut(bucket) {
            *count += 1;
        }
        self.count += 1;
    }

    /// Delays counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The delay in microseconds that `per_mille` of 1000 delays do not exceed; `None` before the
    /// first. 500 is the median.
    #[must_use]
    pub fn quantile_us(&self, per_mille: u64) -> Option<u64> {
        let rank = (self.count.saturating_mul(per_mille)).div_ceil(1000).max(1);
        let mut seen = 0;
        self.buckets.iter().enumerate().find_map(|(bucket, count)| {
            seen += count;
            (self.count > 0 && seen >= rank).then(|| Self::upper_us(bucket))
        })
    }

    /// Values below 8 have a bucket each; above, the top four bits choose it.
    fn bucket(value: u64) -> usize {
        match value.checked_ilog2() {
            Some(log) if log >= 3 => {
                let top = (value >> (log - 3)) as usize & 7;
                8 * (log as usize - 2) + top
            }
            Some(_) | None => value as usize,
        }
    }

    fn upper_us(bucket: usize) -> u64 {
        if bucket < 8 {
            return bucket as u64;
        }
        let shift = bucket / 8 - 1;
        ((8 + bucket as u64 % 8 + 1) << shift) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    impl Weight for u32 {
        fn weight_bytes(&self) -> usize {
            4
        }
    }

    #[test]
    fn outputs_leave_in_order_and_not_before_their_chunk_is_acknowledged() {
        let mut gate = Gate::new(1000);
        assert_eq!(gate.push(1, true, 1, 0), None);
        assert_eq!(gate.push(2, true, 1, 0), None);
        assert_eq!(gate.push(3, true, 2, 5), None);
        assert_eq!(gate.push(9, false, 2, 5), Some(9), "what is not gated passes");
        assert_eq!(gate.release(0, 10), vec![]);
        assert_eq!(gate.release(1, 10), vec![1, 2]);
        assert_eq!(gate.push(4, true, 1, 11), None, "an acknowledged output waits behind others");
        assert_eq!(gate.release(2, 15), vec![3, 4]);
        assert_eq!(gate.push(5, true, 2, 16), Some(5));
        assert_eq!(gate.delays().count(), 5);
        assert_eq!(gate.held_bytes(), 0);
    }

    #[test]
    fn outputs_since_a_checkpoint_wait_for_the_one_after_them() {
        let mut gate = Gate::new(1000);
        let to_come = Noted::CHUNK_TO_COME;
        assert_eq!(gate.push(1, true, to_come, 0), None);
        assert_eq!(gate.push(2, true, to_come, 0), None);
        assert_eq!(gate.release(7, 1), vec![], "no checkpoint covers them yet");
        gate.assign(9);
        assert_eq!(gate.push(3, true, to_come, 2), None);
        assert_eq!(gate.release(8, 3), vec![]);
        assert_eq!(gate.release(9, 4), vec![1, 2]);
        gate.assign(12);
        assert_eq!(gate.release(12, 5), vec![3]);
    }

    #[test]
    fn a_full_gate_says_so_until_outputs_leave() {
        let mut gate = Gate::new(100);
        gate.push(1, true, 1, 0);
        assert!(!gate.is_over_limit());
        gate.push(2, true, 1, 0);
        assert!(gate.is_over_limit());
        assert_eq!(gate.oldest_wait_us(7), Some(7));
        gate.release(1, 0);
        assert!(!gate.is_over_limit());
    }

    #[test]
    fn quantiles_are_exact_to_an_eighth() {
        let mut delays = Delays::default();
        assert_eq!(delays.quantile_us(500), None);
        for delay in 1..=1000 {
            delays.add(delay);
        }
        for (per_mille, exact) in [(1, 1), (500, 500), (990, 990), (1000, 1000)] {
            let found = delays.quantile_us(per_mille).unwrap();
            assert!(found >= exact && found <= exact + exact / 8, "{per_mille}: {found}");
        }
        delays.add(u64::MAX);
        assert!(delays.quantile_us(1000).unwrap() >= 1 << 31);
    }
}
