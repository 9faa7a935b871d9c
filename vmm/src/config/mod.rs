//! What a VM is made of and how it is protected, as the user says it: the types with Cloud
//! Hypervisor's JSON names, the `key=value` grammar of the command line, and the checks that turn
//! a wish that cannot be granted into a sentence.
//!
//! It owns no file, socket or device: everything here is a value, and the only thing taken from
//! outside is six random bytes for a MAC address nobody chose ([`VmConfig::complete`]).

mod arbiter;
mod device_options;
mod error;
mod ft_config;
mod ft_fields;
mod identity;
mod json;
mod mac;
mod migration;
pub mod options;
mod overrides;
mod validate;
mod vm_config;

#[cfg(test)]
mod grammar_properties;

pub use arbiter::{Arbiter, EtcdConfig, EtcdTls};
pub use error::ConfigError;
pub use ft_config::{AckMode, FtConfig, FtMethod, FtMode, FtTimings, PeerAddress};
pub use mac::MacAddress;
pub use migration::{ReceiveMigration, SendMigration};
pub use overrides::{DiskOverride, HostOverrides, NetOverride, apply_overrides};
pub use vm_config::{
    ConsoleConfig, ConsoleMode, CpusConfig, DiskConfig, MemoryConfig, NetConfig, PayloadConfig,
    RngConfig, VmConfig,
};

pub(crate) use device_options::console_from_options;
