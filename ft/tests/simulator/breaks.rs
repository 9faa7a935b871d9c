//! Deliberate breaks of the rules: what a wrong driver, or wrong settings, would do. A test for each
//! shows that the simulator finds it.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// Outputs leave without waiting for the backup.
    EarlyRelease,
    /// The arbiter says yes to everybody.
    NoArbiter,
    /// The backup goes live with log left to replay.
    LiveBeforeEnd,
    /// The primary carries outputs out whatever its lease says.
    IgnoreLease,
    /// The backup acknowledges chunks that it may still lose.
    AckBeforeHolding,
    /// Disk requests and packets that nobody confirmed are not done again.
    ForgetRedo,
    /// The pages of a delta that never came are used.
    HalfDelta,
    /// The backup takes a closed stream for proof that the primary is dead.
    TrustClosedStream,
    /// The backup runs intervals of which it does not know the end.
    RunAhead,
    /// The primary says that nothing is under way while disk writes are.
    QuietTooSoon,
    /// The primary stays up after the arbiter decided against it.
    StayAfterHalt,
    /// The machine's clock starts again at takeover.
    ForgetTime,
    /// The backup believes outputs to have left when they are merely allowed to.
    ConfirmTooSoon,
    /// The backup's timeout is shorter than the primary's lease.
    Impatient,
}

pub const ALL: [Break; 14] = [
    Break::EarlyRelease,
    Break::NoArbiter,
    Break::LiveBeforeEnd,
    Break::IgnoreLease,
    Break::AckBeforeHolding,
    Break::ForgetRedo,
    Break::HalfDelta,
    Break::TrustClosedStream,
    Break::RunAhead,
    Break::QuietTooSoon,
    Break::StayAfterHalt,
    Break::ForgetTime,
    Break::ConfirmTooSoon,
    Break::Impatient,
];

impl Break {
    pub fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|broken| format!("{broken:?}").eq_ignore_ascii_case(name))
    }
}
