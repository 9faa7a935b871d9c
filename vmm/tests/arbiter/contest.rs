//! Two replicas that ask as the protocol has them ask, through networks that fail, until each has an
//! answer. Nobody may win twice, and nobody may be told to halt while nobody goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vmm::replica::{BoundedArbiter, EtcdArbiter, Helped, Helpers};

use crate::proxy::{Proxy, Weather};
use crate::server::{Etcd, etcd_binary};
use crate::{SOON, question, until_it_can_be_asked};

const ROUNDS: u64 = 6;

/// Numbers that look like chance and are the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Asks as the event loop of a replica does: on a thread, again a while after each *no answer*.
fn contest(arbiter: &Arc<BoundedArbiter>, generation: u64, claimant: u8) -> (ft::Answer, u32) {
    let helpers = Helpers::new().unwrap();
    let begun = Instant::now();
    let mut unanswered = 0;
    loop {
        helpers.ask_arbiter(Arc::clone(arbiter), question(generation, claimant)).unwrap();
        let answer = loop {
            match helpers.take() {
                Some(Helped::Arbiter { answer, .. }) => break answer,
                Some(Helped::Connected(_)) => unreachable!("nobody connects here"),
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        match answer {
            ft::Answer::Won | ft::Answer::Lost => return (answer, unanswered),
            ft::Answer::Unreachable => unanswered += 1,
        }
        assert!(begun.elapsed() < SOON, "generation {generation} is not decided");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Changes the weather of both ways at random until it is told to stop; then it is fair.
fn storm(proxies: &[Arc<Proxy>; 2], ended: &AtomicBool) {
    use Weather::{AnswersLost, Broken, Fair, Silent, Slow};
    let weathers = [Silent, Broken, AnswersLost, AnswersLost, Slow, Fair];
    let mut chance = Chance(1);
    while !ended.load(Ordering::SeqCst) {
        for proxy in proxies {
            let at = usize::try_from(chance.below(weathers.len() as u64)).unwrap();
            proxy.set(weathers[at]);
        }
        std::thread::sleep(Duration::from_millis(50 + chance.below(400)));
    }
    for proxy in proxies {
        proxy.set(Fair);
    }
}

#[test]
fn in_a_storm_each_generation_goes_to_one_side_and_the_other_is_told() {
    let Some(binary) = etcd_binary() else { return };
    let etcd = Etcd::start(&binary, 1, false);
    until_it_can_be_asked(&EtcdArbiter::new(&etcd.config()).unwrap());
    let proxies = [(); 2].map(|()| Arc::new(Proxy::start(etcd.address(0))));
    let arbiters = [0, 1].map(|side| {
        let config = etcd.config_by([proxies[side].port()]);
        let client = Arc::new(EtcdArbiter::new(&config).unwrap());
        Arc::new(BoundedArbiter::with_patience(client, Duration::from_millis(500)))
    });
    let mut unanswered = 0;
    for round in 0..ROUNDS {
        let ended = Arc::new(AtomicBool::new(false));
        let weather = {
            let (proxies, ended) = (proxies.clone(), Arc::clone(&ended));
            std::thread::spawn(move || storm(&proxies, &ended))
        };
        let sides = [0, 1].map(|side| {
            let arbiter = Arc::clone(&arbiters[usize::from(side)]);
            std::thread::spawn(move || contest(&arbiter, round, side))
        });
        std::thread::sleep(Duration::from_millis(1500));
        ended.store(true, Ordering::SeqCst);
        weather.join().unwrap();
        let answers = sides.map(|side| side.join().unwrap());
        let won = answers.iter().filter(|(answer, _)| *answer == ft::Answer::Won).count();
        assert_eq!(won, 1, "in generation {round}: {answers:?}");
        unanswered += answers.iter().map(|(_, unanswered)| unanswered).sum::<u32>();
    }
    let lost: usize = proxies.iter().map(|proxy| proxy.answers_lost()).sum();
    println!("{unanswered} questions without an answer, {lost} answers lost");
    assert!(unanswered > 0 && lost > 0, "that was no storm");
}
