//! The way from the client to the services inside a VM.
//!
//! Owns the address and the connections' making. Which host the VM is on makes no difference here: that is the point.

use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::client::{
    Bulk, Control, JournalLoad, Pace, SinkLoad, SourceLoad, connect, durable_history,
};
use crate::guest::protocol::{
    Answer, Ask, CONTROL_PORT, HISTORY_PORT, JOURNAL_PORT, Record, SINK_PORT, SOURCE_PORT,
    Statistics,
};
use crate::runner::{Cluster, Namespace};

/// A VM, seen from the client.
#[derive(Clone, Copy)]
pub struct GuestClient<'a> {
    namespace: &'a Namespace,
    address: Ipv4Addr,
}

/// A guest that is up answers within this time, even on a busy machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

impl<'a> GuestClient<'a> {
    /// The VM with this address.
    pub fn new(cluster: &'a Cluster, address: Ipv4Addr) -> Self {
        Self { namespace: cluster.client_namespace(), address }
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A connection to a service.
    pub fn connect(&self, port: u16) -> Result<TcpStream> {
        connect(self.namespace, self.address, port, CONNECT_TIMEOUT)
    }

    /// A connection to a service, if there is an answer within this time.
    pub fn connect_within(&self, port: u16, timeout: Duration) -> Result<TcpStream> {
        connect(self.namespace, self.address, port, timeout)
    }

    /// The service that does what it is asked.
    pub fn control(&self) -> Result<Control> {
        Ok(Control::new(self.connect(CONTROL_PORT)?))
    }

    /// How the guest is, over a connection of its own.
    pub fn statistics(&self) -> Result<Statistics> {
        match self.control()?.ask(&Ask::Statistics)? {
            Answer::Statistics(statistics) => Ok(statistics),
            other => bail!("the guest answered out of turn: {other:?}"),
        }
    }

    /// Has the guest switch itself off. It may be gone before its answer is.
    pub fn power_off(&self) -> Result<()> {
        let _ = self.control()?.ask(&Ask::PowerOff);
        Ok(())
    }

    /// Starts a client of the journal over a new connection.
    pub fn journal(&self, pace: Pace, start: Instant) -> Result<JournalLoad> {
        Ok(JournalLoad::start(self.connect(JOURNAL_PORT)?, pace, start))
    }

    /// Starts receiving in bulk.
    pub fn source(&self) -> Result<Bulk> {
        Ok(SourceLoad::start(self.connect(SOURCE_PORT)?))
    }

    /// Starts sending in bulk.
    pub fn sink(&self) -> Result<Bulk> {
        Ok(SinkLoad::start(self.connect(SINK_PORT)?))
    }

    /// What the journal has on the disk.
    pub fn durable_history(&self) -> Result<Vec<Record>> {
        durable_history(self.connect(HISTORY_PORT)?)
    }
}
