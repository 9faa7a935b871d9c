//! The JSON of `vm.create` and of `vm.ft-enable`, and a prologue's description of a machine.

use vmm::config::{FtConfig, VmConfig};
use vmm::description::Description;

pub(crate) fn run(data: &[u8]) {
    if let Ok(config) = VmConfig::from_json(data) {
        let sound = config.validate();
        let json = serde_json::to_vec(&config).expect("paths of JSON are text");
        let again = VmConfig::from_json(&json).expect("what we print is what we read");
        assert_eq!(again, config);
        assert_eq!(again.validate(), sound);
    }
    if let Ok(config) = serde_json::from_slice::<FtConfig>(data) {
        let printed = config.to_options();
        assert_eq!(FtConfig::parse(&printed).as_ref(), Ok(&config), "{printed}");
    }
    // Two thirds are configuration and disks, the rest the processor's.
    let (machine, cpuid) = data.split_at(data.len() / 3 * 2);
    let _ = Description::decode(machine, cpuid);
    if let Ok(description) = Description::decode(data, b"[]") {
        assert_eq!(description.config.validate(), Ok(()));
    }
}
