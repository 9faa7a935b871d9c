//! What the behaviour tests need of an arbiter: clients of it, and ways to make it fail.
//!
//! Owns one backend for `file:` and one for `etcd:`. Knows no behaviour.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use vmm::replica::{Arbiter, EtcdArbiter, FileArbiter, Question};

use crate::proxy::{Proxy, Weather};
use crate::server::{Etcd, etcd_binary};

/// An arbiter that fails when it is told to.
pub trait Backend {
    /// A client as another host has one: it shares nothing with the others.
    fn client(&self) -> Arc<dyn Arbiter>;
    /// Claims, and has nobody hear the answer.
    fn claim_unheard(&self, question: &Question);
    /// Takes questions, this one in particular, and does not answer.
    fn freeze(&mut self, question: &Question);
    /// Answers again, also what was asked meanwhile.
    fn thaw(&mut self);
    /// Is not there any more, from one moment to the next.
    fn vanish(&mut self);
    /// Is there again, with what it knew.
    fn come_back(&mut self);
}

/// `file:` in a directory.
pub struct Files {
    _folder: tempfile::TempDir,
    directory: PathBuf,
    frozen: Option<PathBuf>,
    thawing: Option<JoinHandle<()>>,
}

impl Files {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("arbiter");
        std::fs::create_dir(&directory).unwrap();
        Self { _folder: folder, directory, frozen: None, thawing: None }
    }
}

impl Backend for Files {
    fn client(&self) -> Arc<dyn Arbiter> {
        Arc::new(FileArbiter::new(&self.directory))
    }

    fn claim_unheard(&self, question: &Question) {
        let _unheard = self.client().claim(question);
    }

    /// Storage hangs in the middle of a system call. So does opening a FIFO that nobody writes to.
    fn freeze(&mut self, question: &Question) {
        let vm: String = question.vm_id.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = self.directory.join(format!("{vm}.generation-{}", question.generation));
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        self.frozen = Some(path);
    }

    fn thaw(&mut self) {
        let path = self.frozen.take().unwrap();
        let aside = path.with_extension("thawed");
        std::fs::rename(&path, &aside).unwrap();
        // Returns once there is somebody who reads, and lets go of whoever does.
        self.thawing = Some(std::thread::spawn(move || {
            drop(std::fs::File::options().write(true).open(aside).unwrap());
        }));
    }

    fn vanish(&mut self) {
        std::fs::rename(&self.directory, self.directory.with_extension("gone")).unwrap();
    }

    fn come_back(&mut self) {
        std::fs::rename(self.directory.with_extension("gone"), &self.directory).unwrap();
    }
}

/// `etcd:` with one member, a proxy before it.
pub struct Cluster {
    pub etcd: Etcd,
    proxy: Proxy,
    encrypted: bool,
}

impl Cluster {
    /// `None` where there is no etcd; that has been said then.
    pub fn new(encrypted: bool) -> Option<Self> {
        let etcd = Etcd::start(&etcd_binary()?, 1, encrypted);
        let proxy = Proxy::start(etcd.address(0));
        let cluster = Self { etcd, proxy, encrypted };
        crate::until_it_can_be_asked(&*cluster.client());
        Some(cluster)
    }
}

impl Backend for Cluster {
    fn client(&self) -> Arc<dyn Arbiter> {
        Arc::new(EtcdArbiter::new(&self.etcd.config()).unwrap())
    }

    fn claim_unheard(&self, question: &Question) {
        if self.encrypted {
            // Nobody between the two can tell an answer from a handshake.
            let _unheard = self.client().claim(question);
            return;
        }
        let config = self.etcd.config_by([self.proxy.port()]);
        self.proxy.set(Weather::AnswersLost);
        EtcdArbiter::new(&config).unwrap().claim(question).unwrap_err();
        self.proxy.set(Weather::Fair);
        assert_eq!(self.proxy.answers_lost(), 1);
    }

    fn freeze(&mut self, _: &Question) {
        self.etcd.freeze(0);
    }

    fn thaw(&mut self) {
        self.etcd.thaw(0);
    }

    fn vanish(&mut self) {
        self.etcd.kill(0);
    }

    fn come_back(&mut self) {
        self.etcd.restart(0);
    }
}
