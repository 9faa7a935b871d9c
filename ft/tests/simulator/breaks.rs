//! Deliberate breaks of the rules: what a wrong driver, or wrong settings, would do. A test for each
//! shows that the simulator finds it.

macro_rules! breaks {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Break {
            $($(#[$doc])* $name),*
        }

        pub const ALL: &[Break] = &[$(Break::$name),*];
    };
}

breaks! {
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
    /// The survivor joins its next backup in the generation before.
    OldGeneration,
    /// The primary goes on, and joins the next standby, before the arbiter has spoken.
    Eager,
    /// The backup says that the machine is complete before the last delta.
    EarlyReady,
    /// Two standbys are joined at once.
    TwoJoins,
    /// A standby keeps memory and requests of a machine that it followed before.
    KeepOldState,
    /// Pages that became zero while the machine was copied are not sent.
    SkipZeroPages,
    /// Pages that a standby had before the copy are not sent, whatever was sent meanwhile.
    SkipKeptPages,
    /// A standby that has memory of the machine does not tell.
    TellNothing,
    /// A page that was written while the machine was copied is not sent again.
    LoseDirty,
    /// An answer of the arbiter is taken for the generation asked for last.
    AnyAnswer,
    /// The gate is closed only once the backup has accepted.
    LateGate,
    /// Outputs made before the gate closed are left waiting.
    LeaveBehind,
    /// A backup that promised to stay out does not.
    FalsePromise,
    /// A host's clock stands still while it is suspended.
    ClockStops,
    /// A backup believes a clock that was set on while its host was suspended.
    TrustJump,
    /// Disk writes take longer than the timeout allows for.
    SlowWrites,
    /// Who is to get a machine that moves takes it over when the sender is lost.
    TakeUnasked,
    /// A sender that has yielded and does not know what came of it goes on as if it did.
    Presume,
    /// A machine that no log can reproduce is kept by replay.
    ReplayUnreplayable,
    /// An output leaves with the checkpoint before it.
    CheckpointBefore,
    /// An output leaves once the pages of its checkpoint are there, and not the rest.
    CoveredByPages,
    /// Outputs that wait for a checkpoint do so only from `Protect` on.
    OpenUntilProtect,
    /// A page that was written between two checkpoints is left out.
    ForgetDirtied,
    /// Pages of a checkpoint are used before all of it is there.
    HalfCheckpoint,
    /// Requests that are open in a checkpoint are not done again.
    ForgetRequests,
    /// A machine is handed over while outputs wait that its last checkpoint covers.
    YieldUnsent,
    /// The primary goes on releasing outputs while the backup's copy is being healed.
    OpenWhileHealing,
    /// A backup asks to be healed, and takes over without that.
    TakeOverUnhealed,
    /// The delta that heals a copy lacks the pages that the backup has touched.
    ForgetTouched,
    /// It lacks the pages that the primary has written since its last delta.
    HealWithoutDirtied,
    /// A copy that is to be healed runs on until it is.
    RunUnhealed,
    /// What a copy put out by mistake is done again after it was healed.
    RedoMistakes,
    /// Any delta with machine state is said to heal.
    ResetHeals,
}

impl Break {
    pub fn named(name: &str) -> Option<Self> {
        ALL.iter().copied().find(|broken| format!("{broken:?}").eq_ignore_ascii_case(name))
    }
}
