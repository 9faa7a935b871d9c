//! The re-protection policy, rule by rule.

use super::*;
use crate::action::{HaltReason, LossCause, SoloReason};
use crate::error::Divergence;
use alloc::vec;
use proptest::prelude::*;

const PATIENCE: Patience = Patience { first_ms: 100, longest_ms: 1_000 };

fn standbys(addresses: &[&str]) -> Standbys {
    let mut standbys = Standbys::new(PATIENCE);
    standbys.replace(addresses.iter().copied()).unwrap();
    standbys.enable(None);
    standbys
}

fn tried(standbys: &mut Standbys, now_ms: u64) -> Option<String> {
    standbys.tick(now_ms).map(|join| join.standby)
}

fn protected() -> Happening {
    Happening::Protected { generation: 1 }
}

fn solo(why: SoloReason) -> Happening {
    Happening::Solo { generation: 2, why }
}

fn lost(standbys: &mut Standbys, now_ms: u64) {
    standbys.observe(now_ms, &Happening::PeerLost(LossCause::Closed));
    assert_eq!(standbys.tick(now_ms), None, "it is still open who goes on");
    standbys.observe(now_ms, &solo(SoloReason::Won));
}

fn diverged() -> Happening {
    Happening::Diverged(Divergence::TimeAsked { moment: 1 })
}

#[test]
fn nobody_is_tried_before_protection_is_wanted_or_after_it_was_ended() {
    let mut standbys = Standbys::new(PATIENCE);
    standbys.add("a").unwrap();
    assert_eq!(standbys.tick(0), None);
    standbys.enable(None);
    assert_eq!(tried(&mut standbys, 0).as_deref(), Some("a"));
    standbys.observe(1, &protected());
    standbys.disable();
    standbys.observe(2, &solo(SoloReason::Left));
    assert_eq!(standbys.tick(100_000), None);
    standbys.enable(None);
    assert_eq!(tried(&mut standbys, 100_000).as_deref(), Some("a"));
}

#[test]
fn a_survivor_tries_one_after_the_other_and_never_two_at_a_time() {
    let mut standbys = standbys(&["a", "b", "c"]);
    standbys.observe(0, &Happening::Live { generation: 2 });
    for expected in ["a", "b", "c"] {
        assert_eq!(tried(&mut standbys, 0).as_deref(), Some(expected));
        assert_eq!(standbys.tick(1_000_000), None, "one is being tried");
        standbys.failed(0);
    }
    assert_eq!(standbys.tick(99), None, "all of them failed just now");
    assert_eq!(tried(&mut standbys, 100).as_deref(), Some("a"));
}

#[test]
fn who_fails_again_and_again_is_tried_ever_more_rarely_but_for_ever() {
    let mut standbys = standbys(&["a"]);
    let mut now_ms = 0;
    let mut waits = vec![];
    for _ in 0..7 {
        let at_ms = (now_ms..).find(|at_ms| standbys.tick(*at_ms).is_some()).unwrap();
        waits.push(at_ms - now_ms);
        now_ms = at_ms;
        standbys.observe(now_ms, &Happening::Joining);
        standbys.observe(now_ms, &Happening::JoinFailed { why: String::from("no") });
        standbys.observe(now_ms, &solo(SoloReason::NotJoined));
    }
    assert_eq!(waits, [0, 100, 200, 400, 800, 1_000, 1_000]);
}

#[test]
fn after_a_loss_the_others_come_first() {
    let mut standbys = standbys(&["a", "b"]);
    assert_eq!(tried(&mut standbys, 0).as_deref(), Some("a"));
    standbys.observe(10, &protected());
    assert_eq!(standbys.current(), Some("a"));
    lost(&mut standbys, 50_000);
    assert_eq!(standbys.current(), None);
    assert_eq!(tried(&mut standbys, 50_000).as_deref(), Some("b"));
    standbys.failed(50_000);
    assert_eq!(standbys.tick(50_099), None);
    assert_eq!(tried(&mut standbys, 50_100).as_deref(), Some("a"));
}

#[test]
fn a_loss_before_the_backup_had_accepted_counts_as_a_failure() {
    let mut standbys = standbys(&["a"]);
    standbys.tick(0);
    standbys.observe(0, &Happening::Joining);
    lost(&mut standbys, 10);
    assert_eq!(standbys.tick(109), None);
    assert_eq!(tried(&mut standbys, 110).as_deref(), Some("a"));
}

#[test]
fn only_a_protection_that_lasted_makes_good() {
    let mut standbys = standbys(&["a"]);
    let mut now_ms = 0;
    for wait_ms in [0, 100, 200] {
        assert!(wait_ms == 0 || standbys.tick(now_ms + wait_ms - 1).is_none());
        now_ms += wait_ms;
        assert!(standbys.tick(now_ms).is_some());
        standbys.observe(now_ms, &protected());
        now_ms += 999;
        lost(&mut standbys, now_ms);
    }
    now_ms += 400;
    assert!(standbys.tick(now_ms).is_some());
    standbys.observe(now_ms, &protected());
    now_ms += 1_000;
    lost(&mut standbys, now_ms);
    assert!(standbys.tick(now_ms + 100).is_some(), "the wait is the first one again");
}

#[test]
fn a_divergence_is_healed_by_the_same_standby_at_once_but_not_for_ever() {
    for reports in [
        vec![diverged(), solo(SoloReason::Diverged)],
        vec![diverged(), solo(SoloReason::Left)],
        vec![diverged(), Happening::PeerLost(LossCause::Closed), solo(SoloReason::Won)],
    ] {
        let mut standbys = standbys(&["a", "b"]);
        standbys.tick(0);
        standbys.observe(0, &protected());
        reports.iter().for_each(|report| standbys.observe(10, report));
        assert_eq!(tried(&mut standbys, 10).as_deref(), Some("a"));
        standbys.observe(10, &protected());
        reports.iter().for_each(|report| standbys.observe(20, report));
        assert_eq!(tried(&mut standbys, 20).as_deref(), Some("b"), "that one is no good");
    }
}

#[test]
fn a_divergence_that_was_healed_is_not_held_against_a_standby_that_is_lost_later() {
    for (healed, next) in [(true, "b"), (false, "a")] {
        let mut standbys = standbys(&["a", "b"]);
        standbys.tick(0);
        standbys.observe(0, &protected());
        standbys.observe(10, &diverged());
        assert_eq!(standbys.current(), Some("a"), "it protects, or will again");
        if healed {
            standbys.observe(20, &Happening::Healed);
        }
        lost(&mut standbys, 30);
        assert_eq!(tried(&mut standbys, 30).as_deref(), Some(next), "healed: {healed}");
    }
}

#[test]
fn who_is_forgiven_is_tried_at_once() {
    let mut standbys = standbys(&["a"]);
    for at in [0, 10] {
        standbys.tick(at);
        standbys.observe(at, &protected());
        standbys.observe(at, &diverged());
        standbys.observe(at, &solo(SoloReason::Diverged));
    }
    assert_eq!(tried(&mut standbys, 20), None);
    standbys.forgive();
    assert_eq!(tried(&mut standbys, 20).as_deref(), Some("a"));
}

#[test]
fn a_machine_that_is_paused_or_gone_joins_nobody() {
    let mut standbys = standbys(&["a"]);
    standbys.suspend(true);
    assert_eq!(standbys.tick(0), None);
    standbys.suspend(false);
    assert!(standbys.tick(0).is_some());
    standbys.observe(0, &protected());
    standbys.observe(0, &Happening::PeerLost(LossCause::Closed));
    standbys.observe(0, &Happening::Halted(HaltReason::Lost { generation: 2 }));
    standbys.observe(0, &Happening::Live { generation: 2 });
    assert_eq!(standbys.tick(1_000_000), None);
}

#[test]
fn the_list_changes_at_run_time() {
    let mut standbys = standbys(&["a", "b"]);
    assert_eq!(standbys.add("a"), Err(StandbyError::Twice { address: "a".into() }));
    assert_eq!(standbys.remove("x"), Err(StandbyError::Unknown { address: "x".into() }));
    assert!(standbys.replace(["c", "c"]).is_err());
    assert_eq!(standbys.list().len(), 2, "what was wrong changed nothing");
    let many: Vec<String> = (0..=STANDBYS_MAX).map(|at| at.to_string()).collect();
    let error = standbys.replace(many.iter().map(String::as_str)).unwrap_err();
    assert_eq!(error.to_string(), "17 standbys are more than the 16 that a machine may have");

    assert_eq!(tried(&mut standbys, 0).as_deref(), Some("a"));
    standbys.remove("a").unwrap();
    standbys.failed(0);
    assert_eq!(tried(&mut standbys, 0).as_deref(), Some("b"), "a is not tried any more");
    standbys.failed(0);
    standbys.replace(["b", "d"]).unwrap();
    assert_eq!(tried(&mut standbys, 0).as_deref(), Some("d"), "b's back-off goes on");
    standbys.failed(0);
    standbys.add("e").unwrap();
    assert_eq!(tried(&mut standbys, 0).as_deref(), Some("e"));
    standbys.failed(0);
    standbys.enable(Some("d"));
    assert_eq!(tried(&mut standbys, 0).as_deref(), Some("d"), "the user asked for it");
}

#[test]
fn a_join_that_somebody_else_began_is_waited_for_and_blames_nobody() {
    let mut standbys = standbys(&["a"]);
    standbys.tick(0);
    standbys.observe(0, &protected());
    lost(&mut standbys, 5_000);
    standbys.observe(5_000, &Happening::Joining);
    assert_eq!(standbys.tick(9_000), None);
    standbys.failed(9_000);
    assert_eq!(standbys.list()[0].failures, 1, "the loss is all there is against it");
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        Just(Happening::Joining),
        Just(Happening::JoinFailed { why: String::from("no") }),
        Just(protected()),
        Just(Happening::PeerLost(LossCause::Closed)),
        Just(solo(SoloReason::Won)),
        Just(solo(SoloReason::Left)),
        Just(diverged()),
        Just(Happening::Healed),
        Just(Happening::Live { generation: 3 }),
    ]
}

proptest! {
    #[test]
    fn whatever_is_reported_one_is_tried_soon_after_the_machine_is_exposed(
        reports in prop::collection::vec((0u64..2_000, happening(), any::<bool>()), 0..60),
    ) {
        let mut standbys = standbys(&["a", "b", "c"]);
        let mut now_ms = 0;
        for (wait_ms, report, ticks) in reports {
            now_ms += wait_ms;
            standbys.observe(now_ms, &report);
            if ticks && standbys.tick(now_ms).is_some() {
                prop_assert_eq!(standbys.tick(now_ms + 1_000_000), None);
            }
        }
        standbys.observe(now_ms, &solo(SoloReason::Won));
        prop_assert!(standbys.tick(now_ms + PATIENCE.longest_ms).is_some());
    }
}
