//! `etcd:`: an arbiter in an etcd cluster.
//!
//! Owns one key a question, `PREFIX/VM/generation-N`, whose value is the winner's name. The claim is
//! one transaction: put the key if it has never been created, else read it. etcd carries it out on a
//! majority, on disk, before it answers, so an answer is durable, and every answer is the newest. The
//! key has no lease: an answer must not expire.
//!
//! It speaks to etcd's own JSON gateway over HTTP/1.1, from whatever thread asks, and waits for at
//! most [`QUESTION_TIME_MAX`]. Does not own the patience beyond that.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::tls::TlsConfig;

use super::credentials::read_credentials;
use super::{Arbiter, Question, Verdict};
use crate::config::{EtcdConfig, PeerAddress};
use crate::error::Error;
use crate::identity::hex;

/// How long all servers together may take for one question.
pub const QUESTION_TIME_MAX: Duration = Duration::from_secs(3);
/// A server that is asked gets at least this long, if there is that much left: a majority that
/// writes to slow disks needs its time, and asking another member would not make it faster.
const SERVER_TIME_MIN: Duration = Duration::from_millis(1_400);
/// Bytes of an answer. Ours have a few hundred.
const ANSWER_LENGTH_MAX: u64 = 64 << 10;
/// Characters of a server's own words that are passed on.
const WORDS_LENGTH_MAX: usize = 200;

/// An arbiter in etcd.
#[derive(Debug)]
pub struct EtcdArbiter {
    config: EtcdConfig,
    /// What was read last, for when the files cannot be read just now.
    credentials: Mutex<Option<TlsConfig>>,
    /// The server to ask first: the one that answered last.
    first: AtomicUsize,
}

/// etcd's answer to a transaction.
#[derive(Debug, Deserialize)]
struct Answer {
    /// There in every answer of etcd's; what lacks it is something else.
    #[serde(rename = "header")]
    _header: Header,
    /// Left out by etcd if it is false.
    #[serde(default)]
    succeeded: bool,
    #[serde(default)]
    responses: Vec<Operation>,
}

#[derive(Debug, Deserialize)]
struct Header {
    #[serde(rename = "cluster_id")]
    _cluster_id: String,
}

#[derive(Debug, Deserialize)]
struct Operation {
    response_put: Option<Value>,
    response_range: Option<Range>,
}

#[derive(Debug, Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<Entry>,
}

/// A key and its value, in base64.
#[derive(Debug, Deserialize)]
struct Entry {
    key: String,
    #[serde(default)]
    value: String,
}

impl EtcdArbiter {
    /// The arbiter in the cluster that `config` describes. No server is asked yet.
    ///
    /// # Errors
    /// The files of `config` cannot be read on this host.
    pub fn new(config: &EtcdConfig) -> Result<Self, Error> {
        let credentials = config.tls.as_ref().map(read_credentials).transpose()?;
        Ok(Self {
            config: config.clone(),
            credentials: Mutex::new(credentials),
            first: AtomicUsize::new(0),
        })
    }

    fn key(&self, question: &Question) -> String {
        let Question { vm_id, generation, .. } = question;
        format!("{}/{}/generation-{generation}", self.config.prefix, hex(vm_id))
    }

    /// The newest certificates that can be read.
    fn credentials(&self) -> Option<TlsConfig> {
        let mut last = self.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        match self.config.tls.as_ref().map(read_credentials) {
            None => {}
            Some(Ok(read)) => *last = Some(read),
            Some(Err(error)) => log::warn!("{error}; what was read before is used"),
        }
        last.clone()
    }

    /// Has one server after the other carry out `transaction` until one gives an answer that `read`
    /// can make sense of.
    fn transact<T>(
        &self,
        transaction: &Value,
        read: impl Fn(Answer) -> Result<T, String>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + QUESTION_TIME_MAX;
        let credentials = self.credentials();
        let servers = &self.config.endpoints;
        let first = self.first.load(Ordering::Relaxed);
        let mut reasons = Vec::new();
        for turn in 0..servers.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(time) = share(left, servers.len() - turn) else { break };
            let index = (first + turn) % servers.len();
            let server = &servers[index];
            let answer = self.post(server, credentials.clone(), time, transaction).and_then(&read);
            match answer {
                Ok(answer) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(why) => reasons.push(format!("{server}: {why}")),
            }
        }
        // Who was not asked for want of time is asked first next time.
        self.first.store((first + reasons.len()) % servers.len(), Ordering::Relaxed);
        Err(Error::Arbiter(reasons.join("; ")))
    }

    fn post(
        &self,
        server: &PeerAddress,
        credentials: Option<TlsConfig>,
        time: Duration,
        body: &Value,
    ) -> Result<Answer, String> {
        let agent: Agent = Agent::config_builder()
            .timeout_global(Some(time))
            // Nobody may stand between a replica and its arbiter because of an environment variable.
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .tls_config(credentials.unwrap_or_else(|| TlsConfig::builder().build()))
            .build()
            .into();
        let url = format!("{}://{server}/v3/kv/txn", self.config.scheme());
        let mut answer = agent
            .post(url)
            .content_type("application/json")
            .send(body.to_string())
            .map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        let text = answer
            .body_mut()
            .with_config()
            .limit(ANSWER_LENGTH_MAX)
            .read_to_vec()
            .map_err(|error| error.to_string())?;
        if status != 200 {
            return Err(format!("status {status}, {}", own_words(&text)));
        }
        serde_json::from_slice(&text)
            .map_err(|error| format!("this is no answer of etcd's: {error}"))
    }
}

impl Arbiter for EtcdArbiter {
    fn place(&self) -> String {
        format!("etcd:{}", self.config)
    }

    fn claim(&self, question: &Question) -> Result<Verdict, Error> {
        let key = BASE64.encode(self.key(question));
        let transaction = json!({
            "compare": [
                { "key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0" }
            ],
            "success": [
                { "request_put": { "key": key, "value": BASE64.encode(question.claim_text()) } }
            ],
            "failure": [{ "request_range": { "key": key } }],
        });
        self.transact(&transaction, |answer| verdict(&answer, &key, question))
    }

    /// Has the cluster carry out a transaction that needs what a claim needs (a majority, the right
    /// to write and to read) and that never writes: no key was created before revision 0.
    fn check(&self) -> Result<(), Error> {
        let key = BASE64.encode(format!("{}/check", self.config.prefix));
        let transaction = json!({
            "compare": [
                { "key": key, "target": "CREATE", "result": "LESS", "create_revision": "0" }
            ],
            "success": [{ "request_put": { "key": key, "value": "" } }],
            "failure": [{ "request_range": { "key": key } }],
        });
        let read = |answer: Answer| match (answer.succeeded, answer.responses.as_slice()) {
            (false, [Operation { response_put: None, response_range: Some(_) }]) => Ok(()),
            _ => Err(senseless(&answer)),
        };
        self.transact(&transaction, read).map_err(|error| {
            Error::Arbiter(format!(
                "the arbiter in etcd at {} cannot be asked: {error}; are its servers up, and are \
                 these their addresses?",
                self.config
            ))
        })
    }
}

/// What of the time that is `left` a server may have while `servers` are still to be asked; `None`
/// if there is not enough left to ask another one.
fn share(left: Duration, servers: usize) -> Option<Duration> {
    let fair = left / u32::try_from(servers).unwrap_or(u32::MAX).max(1);
    let enough = left >= SERVER_TIME_MIN;
    enough.then(|| fair.max(SERVER_TIME_MIN))
}

/// Who won, by the answer to a claim of `key`.
fn verdict(answer: &Answer, key: &str, question: &Question) -> Result<Verdict, String> {
    match (answer.succeeded, answer.responses.as_slice()) {
        (true, [Operation { response_put: Some(_), response_range: None }]) => Ok(Verdict::Won),
        (false, [Operation { response_put: None, response_range: Some(Range { kvs }) }]) => {
            match kvs.as_slice() {
                [entry] if entry.key == key => {
                    let winner = BASE64
                        .decode(&entry.value)
                        .map_err(|error| format!("the key's value is not in base64: {error}"))?;
                    question.judge(&winner).map_err(|error| error.to_string())
                }
                _ => Err(senseless(answer)),
            }
        }
        _ => Err(senseless(answer)),
    }
}

fn senseless(answer: &Answer) -> String {
    format!(
        "the answer makes no sense: the transaction {} with {} responses, and none that was asked \
         for",
        if answer.succeeded { "succeeded" } else { "did not succeed" },
        answer.responses.len()
    )
}

/// What a server says of a failure: etcd's message if it is one, else the text itself.
fn own_words(text: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Failure {
        error: String,
    }
    let words = match serde_json::from_slice::<Failure>(text) {
        Ok(failure) => failure.error,
        Err(_) => String::from_utf8_lossy(text).into_owned(),
    };
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    words.chars().take(WORDS_LENGTH_MAX).map(printable).collect::<String>().trim().to_owned()
}

#[cfg(test)]
#[path = "etcd_tests.rs"]
mod tests;
