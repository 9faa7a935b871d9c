//! A network that fails: between a client and a server, on the loopback.
//!
//! Owns one listener and two threads a connection. What it does to the bytes is chosen at any time,
//! for connections that are open already, too.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

/// What becomes of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Weather {
    /// They arrive.
    Fair,
    /// They arrive a while later.
    Slow,
    /// They arrive nowhere, and nobody is told.
    Silent,
    /// Requests arrive, answers do not, and then the connection breaks.
    AnswersLost,
    /// Every connection breaks.
    Broken,
}

const ALL: [Weather; 5] =
    [Weather::Fair, Weather::Slow, Weather::Silent, Weather::AnswersLost, Weather::Broken];
/// How late bytes are in [`Weather::Slow`].
pub const DELAY: Duration = Duration::from_millis(300);

/// A port that leads to a server.
pub struct Proxy {
    state: Arc<State>,
    port: u16,
}

struct State {
    weather: AtomicU8,
    lost: AtomicUsize,
    ended: AtomicBool,
}

impl Proxy {
    pub fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            weather: AtomicU8::new(Weather::Fair as u8),
            lost: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if shared.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { return };
                if shared.weather() == Weather::Broken {
                    continue;
                }
                let Ok(server) = TcpStream::connect(server) else { continue };
                shared.join(&client, &server);
            }
        });
        Self { state, port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn set(&self, weather: Weather) {
        self.state.weather.store(weather as u8, Ordering::SeqCst);
    }

    /// Answers that were made and did not arrive.
    pub fn answers_lost(&self) -> usize {
        self.state.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl State {
    fn weather(&self) -> Weather {
        ALL[usize::from(self.weather.load(Ordering::SeqCst))]
    }

    fn join(self: &Arc<Self>, client: &TcpStream, server: &TcpStream) {
        for (from, to, answers) in [(client, server, false), (server, client, true)] {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let state = Arc::clone(self);
            std::thread::spawn(move || {
                state.carry(&from, &to, answers);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
    }

    fn carry(&self, mut from: &TcpStream, mut to: &TcpStream, answers: bool) {
        let mut bytes = vec![0; 16 << 10];
        loop {
            let length = match from.read(&mut bytes) {
                Ok(0) | Err(_) => return,
                Ok(length) => length,
            };
            match self.weather() {
                Weather::Fair => {}
                Weather::Slow => std::thread::sleep(DELAY),
                Weather::Silent => continue,
                Weather::AnswersLost if answers => {
                    self.lost.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                Weather::AnswersLost => {}
                Weather::Broken => return,
            }
            if to.write_all(&bytes[..length]).is_err() {
                return;
            }
        }
    }
}
