//! The demonstration: a VM keeps its connections while the VMM that runs it, or the host under it, dies.
//!
//! Owns the story that is told and the numbers it ends with. Machines, VMs and the client are the harness's.

mod chart;
mod killing;
mod output;
mod picture;
mod place;
mod plan;
mod protecting;
mod report;
mod story;
mod verdict;

pub use chart::{Chart, Mark, Phase};
pub use output::Timeline;
pub use place::Place;
pub use plan::{Kill, Plan};
pub use report::{Report, Requests, RoundTrips};
pub use story::{Told, tell};
