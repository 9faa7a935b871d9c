//! A real etcd on the loopback, and certificates for it.
//!
//! Owns the server's process and its folder: both are gone when it is dropped, also when the test's
//! thread dies before. etcd is the one that `FT_ETCD` names, else the project's cache has
//! (`scripts/lib/deps.sh` puts it there), else the system.

use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use vmm::config::{EtcdConfig, EtcdTls, PeerAddress};

use crate::ports::free_port;

const START_TIME_MAX: Duration = Duration::from_secs(60);

/// Members of a cluster of etcd servers, each of which can be killed, stopped and started.
pub struct Etcd {
    binary: PathBuf,
    folder: tempfile::TempDir,
    tls: Option<Certificates>,
    members: Vec<Member>,
}

struct Member {
    name: String,
    client: u16,
    peer: u16,
    process: Option<Child>,
}

/// Files of certificates that belong together.
#[derive(Clone)]
pub struct Certificates {
    pub ca: PathBuf,
    pub server: (PathBuf, PathBuf),
    pub client: (PathBuf, PathBuf),
}

/// Where etcd is. Without it the test has to say so and end.
pub fn etcd_binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FT_ETCD") {
        return Some(path.into());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cache = std::env::var_os("FT_CACHE").map_or_else(|| root.join(".cache"), PathBuf::from);
    let system = std::env::var_os("PATH").unwrap_or_default();
    let found = [cache.join("etcd/etcd")]
        .into_iter()
        .chain(std::env::split_paths(&system).map(|folder| folder.join("etcd")))
        .find(|path| path.is_file());
    if found.is_none() {
        // Not `eprintln!`: the test harness would keep that for itself when a test passes.
        let notice =
            "\n*** SKIPPED: there is no etcd (run scripts/lib/deps.sh, or set FT_ETCD) ***\n";
        let _ = writeln!(std::io::stderr(), "{notice}");
    }
    found
}

impl Etcd {
    /// Starts a cluster of so many members; with TLS, they ask clients for certificates.
    pub fn start(binary: &Path, members: usize, encrypted: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tls = encrypted.then(|| Certificates::make(&folder.path().join("tls"), "127.0.0.1"));
        let members = (0..members).map(|index| Member::new(&format!("m{index}"))).collect();
        let mut etcd = Self { binary: binary.to_owned(), folder, tls, members };
        for index in 0..etcd.members.len() {
            etcd.spawn(index);
        }
        for index in 0..etcd.members.len() {
            etcd.wait_until_up(index);
        }
        etcd
    }

    /// How a client reaches the whole cluster.
    pub fn config(&self) -> EtcdConfig {
        let ports = self.members.iter().map(|member| member.client);
        self.config_by(ports)
    }

    /// How a client reaches it at other ports, such as a proxy's.
    pub fn config_by(&self, ports: impl IntoIterator<Item = u16>) -> EtcdConfig {
        let address = |port| PeerAddress { host: "127.0.0.1".into(), port };
        EtcdConfig {
            endpoints: ports.into_iter().map(address).collect(),
            prefix: "/ft".into(),
            tls: self
                .tls
                .as_ref()
                .map(|files| EtcdTls { ca: files.ca.clone(), client: Some(files.client.clone()) }),
        }
    }

    /// Where a member listens for clients.
    pub fn address(&self, index: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.members[index].client))
    }

    /// The certificates it was started with.
    pub fn certificates(&self) -> &Certificates {
        self.tls.as_ref().unwrap()
    }

    /// A folder for whatever a test needs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends a member without a warning.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut process) = self.members[index].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Starts a member again, with the disk that it left behind.
    pub fn restart(&mut self, index: usize) {
        self.spawn(index);
        self.wait_until_up(index);
    }

    /// Stops a member where it is (SIGSTOP).
    pub fn freeze(&self, index: usize) {
        self.signal(index, "STOP");
    }

    /// Lets a member go on.
    pub fn thaw(&self, index: usize) {
        self.signal(index, "CONT");
    }

    fn signal(&self, index: usize, signal: &str) {
        let process = self.members[index].process.as_ref().unwrap();
        let status = Command::new("sh")
            .args(["-c", "kill -\"$0\" \"$1\"", signal, &process.id().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    fn spawn(&mut self, index: usize) {
        let cluster: Vec<_> = self
            .members
            .iter()
            .map(|member| format!("{}=http://127.0.0.1:{}", member.name, member.peer))
            .collect();
        let member = &self.members[index];
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let client = format!("{scheme}://127.0.0.1:{}", member.client);
        let peer = format!("http://127.0.0.1:{}", member.peer);
        let log = self.folder.path().join(format!("{}.log", member.name));
        let log = File::options().create(true).append(true).open(log).unwrap();
        // A test that is killed must leave no server behind.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(&self.binary)
            .args(["--name", &member.name])
            .arg("--data-dir")
            .arg(self.folder.path().join(&member.name))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(",")]);
        if let Some(files) = &self.tls {
            command
                .arg("--client-cert-auth")
                .arg("--trusted-ca-file")
                .arg(&files.ca)
                .arg("--cert-file")
                .arg(&files.server.0)
                .arg("--key-file")
                .arg(&files.server.1);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.members[index].process = Some(command.spawn().unwrap());
    }

    /// Its port is open. Whether the cluster has a leader is seen by asking it.
    fn wait_until_up(&mut self, index: usize) {
        let begun = Instant::now();
        while TcpStream::connect(self.address(index)).is_err() {
            let member = &mut self.members[index];
            let ended = member.process.as_mut().unwrap().try_wait().unwrap();
            let log = self.folder.path().join(format!("{}.log", member.name));
            assert!(
                ended.is_none() && begun.elapsed() < START_TIME_MAX,
                "etcd did not start: {}",
                std::fs::read_to_string(log).unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for index in 0..self.members.len() {
            self.kill(index);
        }
    }
}

impl Member {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), client: free_port(), peer: free_port(), process: None }
    }
}

impl Certificates {
    /// Makes an authority, and a server's and a client's certificate signed by it, in `folder`.
    pub fn make(folder: &Path, server_name: &str) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "authority of a test");
        let certificate = authority.self_signed(&key).unwrap();
        let issuer = Issuer::new(authority, key);
        let leaf = |name: &str, alternative: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![alternative.to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            // etcd's gateway is a client of the same server, with the server's certificate.
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let certificate = params.signed_by(&key, &issuer).unwrap();
            let paths =
                (folder.join(format!("{name}.pem")), folder.join(format!("{name}-key.pem")));
            std::fs::write(&paths.0, certificate.pem()).unwrap();
            std::fs::write(&paths.1, key.serialize_pem()).unwrap();
            paths
        };
        let (server, client) = (leaf("server", server_name), leaf("client", "client.test"));
        let ca = folder.join("ca.pem");
        std::fs::write(&ca, certificate.pem()).unwrap();
        Self { ca, server, client }
    }

    /// Puts what a client needs into a folder of its own.
    pub fn copy_clients_to(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        for path in [&self.ca, &self.client.0, &self.client.1] {
            std::fs::copy(path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
}
