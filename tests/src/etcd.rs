//! An etcd server beside the hosts, for pairs whose arbiter it is.
//!
//! Owns its process and its data, in the run's folder. Does not own what is asked of it.

use std::fs::File;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::runner::Cluster;
use crate::runner::network::CLIENT_ADDRESS;
use crate::vm::wait_until;

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

/// The one server of a cluster of one. It ends when this is dropped.
pub struct EtcdServer {
    process: Child,
}

impl EtcdServer {
    /// What `arbiter=` has to say for it.
    pub fn arbiter() -> String {
        format!("etcd:http://{CLIENT_ADDRESS}:{CLIENT_PORT}")
    }

    /// Starts it where the client is, and waits until its port is open.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let (client, peer) = (url(CLIENT_PORT), url(PEER_PORT));
        let log_path = cluster.shared_dir().join("etcd.log");
        let log = File::create(&log_path)?;
        let mut command = Command::new(cluster.cache().etcd());
        command
            .args(["--name", "arbiter", "--data-dir"])
            .arg(cluster.folder().join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("arbiter={peer}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let process = cluster.client_namespace().spawn(command).context("cannot start etcd")?;
        let mut server = Self { process };
        wait_until("etcd", Duration::from_secs(60), Duration::from_millis(50), || {
            if let Some(status) = server.process.try_wait()? {
                bail!("etcd ended with {status}: {}", std::fs::read_to_string(&log_path)?);
            }
            let connect = || TcpStream::connect((CLIENT_ADDRESS, CLIENT_PORT));
            Ok(cluster.client_namespace().run(connect).ok())
        })?;
        Ok(server)
    }

    /// Stops it where it is: it takes what is sent to it, and answers nothing.
    pub fn freeze(&self) -> Result<()> {
        self.signal("STOP")
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let process = self.process.id().to_string();
        let status =
            Command::new("sh").args(["-c", "kill -\"$0\" \"$1\"", signal, &process]).status()?;
        ensure!(status.success(), "etcd cannot be sent SIG{signal}");
        Ok(())
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn url(port: u16) -> String {
    format!("http://{CLIENT_ADDRESS}:{port}")
}
