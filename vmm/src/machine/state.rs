//! The machine's state as one plain struct that names every part: leaving one out of a join, a
//! digest or a comparison does not compile.

use serde::{Deserialize, Serialize};
use virtio_devices::{VirtioPci, VirtioPciState};
use xxhash_rust::xxh3::xxh3_64;

use super::Machine;
use crate::devices::{Platform, PlatformState};
use crate::error::Error;

/// Everything in the machine but the vCPU (which `hypervisor` saves) and guest RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// The guest is halted.
    pub halted: bool,
    /// Interrupt controllers, timers, UART, power management, PCI host bridge.
    pub platform: PlatformState,
    /// Virtio functions in slot order.
    pub virtio: Vec<VirtioPciState>,
}

/// Digest of a [`MachineState`]: a hash of its canonical encoding.
pub type StateDigest = u64;

impl MachineState {
    /// The canonical encoding, the one that digests are computed over and that joins ship.
    ///
    /// # Errors
    /// Never for a state that fits in memory; the encoder's error is passed on all the same.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        postcard::to_stdvec(self).map_err(|error| Error::State(error.to_string()))
    }

    /// The opposite of [`MachineState::encode`].
    ///
    /// # Errors
    /// The bytes are not an encoded state of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        postcard::from_bytes(bytes).map_err(|error| Error::State(error.to_string()))
    }

    /// The digest of this state.
    ///
    /// # Errors
    /// As [`MachineState::encode`].
    pub fn digest(&self) -> Result<StateDigest, Error> {
        Ok(xxh3_64(&self.encode()?))
    }
}

impl MachineState {
    /// The models in this state: the platform, and the virtio functions in slot order.
    ///
    /// # Errors
    /// The state is one that no guest could have led its machine to.
    pub fn into_models(self) -> Result<(Platform, Vec<VirtioPci>), Error> {
        let virtio = self.virtio.into_iter().map(VirtioPci::restore).collect::<Result<_, _>>()?;
        let platform = Platform::restore(self.platform).map_err(|device| {
            Error::State(format!("no guest can have led {device} to the state that it is in"))
        })?;
        Ok((platform, virtio))
    }
}

impl Machine {
    /// A copy of the state of every model.
    pub fn state(&self) -> MachineState {
        MachineState {
            halted: self.halted,
            platform: self.platform.state(),
            virtio: self.virtio.iter().map(|function| function.state.clone()).collect(),
        }
    }

    /// Replaces the state of every model. No side effect: no interrupt, no output.
    ///
    /// # Errors
    /// A device's state contradicts itself.
    pub fn restore_models(&mut self, state: MachineState) -> Result<(), Error> {
        let halted = state.halted;
        (self.platform, self.virtio) = state.into_models()?;
        self.halted = halted;
        Ok(())
    }
}
