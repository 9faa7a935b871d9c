//! What every arbiter must do, tried on each: `file:`, `etcd:` and `etcd:` over TLS, against a real
//! etcd. What only a cluster, or only TLS, can do wrong is in `cluster.rs`; a whole contest of two
//! replicas in a storm in `contest.rs`.

mod backends;
mod cluster;
mod contest;
#[path = "../common/ports.rs"]
mod ports;
mod proxy;
mod server;

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use backends::{Backend, Cluster, Files};
use vmm::replica::{Arbiter, BoundedArbiter, Question, Verdict};

/// Longer than anything here should take on a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(60);

/// Each behaviour is a function and becomes a test for each arbiter.
macro_rules! behaviours {
    ($($behaviour:ident)*) => {
        mod file {
            $(#[test] fn $behaviour() { super::$behaviour(&mut super::Files::new()); })*
        }
        mod etcd {
            $(#[test] fn $behaviour() { super::on_etcd(false, super::$behaviour); })*
        }
        mod etcd_over_tls {
            $(#[test] fn $behaviour() { super::on_etcd(true, super::$behaviour); })*
        }
    };
}

behaviours! {
    the_first_who_asks_wins_and_the_answer_stays
    generations_are_questions_of_their_own
    virtual_machines_are_questions_of_their_own
    of_many_who_ask_at_once_exactly_one_wins
    a_claim_whose_answer_was_lost_is_not_lost
    an_arbiter_that_is_gone_says_neither_yes_nor_no
    an_arbiter_that_comes_back_knows_what_it_said
    an_arbiter_that_hangs_says_neither_yes_nor_no
    an_arbiter_that_hangs_and_goes_on_decides_once
    a_check_claims_nothing
}

fn on_etcd(encrypted: bool, behaviour: fn(&mut Cluster)) {
    if let Some(mut cluster) = Cluster::new(encrypted) {
        behaviour(&mut cluster);
    }
}

/// One of a VM of the tests.
pub fn question(generation: u64, claimant: u8) -> Question {
    Question { vm_id: [7; 16], generation, claimant: [claimant; 16] }
}

/// Asks until there is an answer, as replicas do.
pub fn insist(arbiter: &dyn Arbiter, question: &Question) -> Verdict {
    let begun = Instant::now();
    loop {
        match arbiter.claim(question) {
            Ok(verdict) => return verdict,
            Err(why) => assert!(begun.elapsed() < SOON, "still no answer: {why}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until a server that has just been started has found its leader.
pub fn until_it_can_be_asked(arbiter: &dyn Arbiter) {
    let begun = Instant::now();
    while let Err(why) = arbiter.check() {
        assert!(begun.elapsed() < SOON, "it still cannot be asked: {why}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn the_first_who_asks_wins_and_the_answer_stays(backend: &mut impl Backend) {
    let (here, there) = (backend.client(), backend.client());
    assert_eq!(here.claim(&question(2, 1)).unwrap(), Verdict::Won);
    assert_eq!(there.claim(&question(2, 2)).unwrap(), Verdict::Lost);
    for _ in 0..3 {
        assert_eq!(here.claim(&question(2, 1)).unwrap(), Verdict::Won);
        assert_eq!(there.claim(&question(2, 2)).unwrap(), Verdict::Lost);
        assert_eq!(there.claim(&question(2, 3)).unwrap(), Verdict::Lost);
        // It is who asks that counts, not where.
        assert_eq!(there.claim(&question(2, 1)).unwrap(), Verdict::Won);
    }
}

fn generations_are_questions_of_their_own(backend: &mut impl Backend) {
    let (first, second) = (backend.client(), backend.client());
    for generation in 2..8 {
        // Whoever won is protected again, and loses the next time.
        let (winner, loser) = if generation % 2 == 0 { (1, 2) } else { (2, 1) };
        assert_eq!(first.claim(&question(generation, winner)).unwrap(), Verdict::Won);
        assert_eq!(second.claim(&question(generation, loser)).unwrap(), Verdict::Lost);
    }
    // An old primary that wakes up late cannot win what was decided long ago.
    for generation in 2..8 {
        assert_eq!(first.claim(&question(generation, 3)).unwrap(), Verdict::Lost);
    }
    assert_eq!(first.claim(&question(u64::MAX, 3)).unwrap(), Verdict::Won);
}

fn virtual_machines_are_questions_of_their_own(backend: &mut impl Backend) {
    let client = backend.client();
    for vm in 0..4 {
        let asked =
            |claimant| Question { vm_id: [vm; 16], generation: 2, claimant: [claimant; 16] };
        assert_eq!(client.claim(&asked(vm + 1)).unwrap(), Verdict::Won);
        assert_eq!(client.claim(&asked(vm + 2)).unwrap(), Verdict::Lost);
    }
}

fn of_many_who_ask_at_once_exactly_one_wins(backend: &mut impl Backend) {
    const ASKERS: u8 = 8;
    const ROUNDS: u64 = 10;
    let start = Arc::new(Barrier::new(ASKERS.into()));
    let threads: Vec<_> = (0..ASKERS)
        .map(|asker| {
            let (client, start) = (backend.client(), Arc::clone(&start));
            std::thread::spawn(move || {
                let ask = |round| {
                    start.wait();
                    insist(&*client, &question(round, asker))
                };
                let answers: Vec<_> = (0..ROUNDS).map(ask).collect();
                for (round, answer) in (0..).zip(&answers) {
                    assert_eq!(insist(&*client, &question(round, asker)), *answer);
                }
                answers
            })
        })
        .collect();
    let answers: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    for round in 0..ROUNDS as usize {
        let winners = answers.iter().filter(|of_one| of_one[round] == Verdict::Won).count();
        assert_eq!(winners, 1, "in generation {round}");
    }
}

fn a_claim_whose_answer_was_lost_is_not_lost(backend: &mut impl Backend) {
    backend.claim_unheard(&question(2, 1));
    let client = backend.client();
    assert_eq!(client.claim(&question(2, 2)).unwrap(), Verdict::Lost);
    assert_eq!(client.claim(&question(2, 1)).unwrap(), Verdict::Won);
}

fn an_arbiter_that_is_gone_says_neither_yes_nor_no(backend: &mut impl Backend) {
    let client = backend.client();
    assert_eq!(client.claim(&question(2, 1)).unwrap(), Verdict::Won);
    backend.vanish();
    for asked in [question(2, 1), question(2, 2), question(3, 1)] {
        let begun = Instant::now();
        let error = client.claim(&asked).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(10), "{error} after {:?}", begun.elapsed());
        assert!(!error.to_string().is_empty());
    }
    // Nobody is protected with an arbiter that cannot be asked; the reason is a sentence.
    let error = client.check().unwrap_err().to_string();
    let place = client.place();
    let (_, place) = place.split_once(':').unwrap();
    assert!(error.starts_with("the arbiter") && error.contains(place), "{error}");
}

fn an_arbiter_that_comes_back_knows_what_it_said(backend: &mut impl Backend) {
    let (here, there) = (backend.client(), backend.client());
    for generation in 2..5 {
        assert_eq!(insist(&*here, &question(generation, 1)), Verdict::Won);
        // From one moment to the next: the answer was durable before it was given.
        backend.vanish();
        here.claim(&question(generation, 1)).unwrap_err();
        there.claim(&question(generation, 2)).unwrap_err();
        backend.come_back();
        assert_eq!(insist(&*there, &question(generation, 2)), Verdict::Lost);
        assert_eq!(insist(&*here, &question(generation, 1)), Verdict::Won);
    }
}

fn an_arbiter_that_hangs_says_neither_yes_nor_no(backend: &mut impl Backend) {
    let patience = Duration::from_millis(300);
    let arbiter = BoundedArbiter::with_patience(backend.client(), patience);
    backend.freeze(&question(2, 1));
    for _ in 0..3 {
        let begun = Instant::now();
        arbiter.claim(&question(2, 1)).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(10), "it was waited for too long");
    }
    backend.thaw();
}

fn an_arbiter_that_hangs_and_goes_on_decides_once(backend: &mut impl Backend) {
    let patience = Duration::from_millis(300);
    let clients = [1, 2]
        .map(|claimant| (claimant, BoundedArbiter::with_patience(backend.client(), patience)));
    backend.freeze(&question(2, 1));
    let threads = clients.map(|(claimant, arbiter)| {
        std::thread::spawn(move || {
            let begun = Instant::now();
            let mut unanswered = 0;
            loop {
                match arbiter.claim(&question(2, claimant)) {
                    Ok(verdict) => return (verdict, unanswered),
                    Err(why) => {
                        unanswered += 1;
                        assert!(begun.elapsed() < SOON, "still no answer: {why}");
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        })
    });
    std::thread::sleep(3 * patience);
    assert!(threads.iter().all(|thread| !thread.is_finished()), "it answered while it hung");
    backend.thaw();
    let answers = threads.map(|thread| thread.join().unwrap());
    assert!(answers.iter().all(|(_, unanswered)| *unanswered >= 1), "{answers:?}");
    let won = answers.iter().filter(|(verdict, _)| *verdict == Verdict::Won).count();
    assert_eq!(won, 1, "{answers:?}");
}

fn a_check_claims_nothing(backend: &mut impl Backend) {
    let client = backend.client();
    for _ in 0..3 {
        client.check().unwrap();
    }
    assert_eq!(client.claim(&question(2, 1)).unwrap(), Verdict::Won);
    client.check().unwrap();
    assert_eq!(client.claim(&question(2, 2)).unwrap(), Verdict::Lost);
}
