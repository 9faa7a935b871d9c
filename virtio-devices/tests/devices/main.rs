//! The devices as a guest driver and the machine meet them: through PCI registers, virtqueues and
//! inputs.

mod arbitrary;
mod block;
mod console;
mod driver;
mod files;
mod net;
mod rng;
mod transport;
