//! The command line of `cloud-hypervisor`, and each option's own grammar.

use vmm::cli::{Parsed, parse};
use vmm::config::options::Options;
use vmm::config::{
    CpusConfig, DiskConfig, DiskOverride, FtConfig, MemoryConfig, NetConfig, NetOverride, RngConfig,
};

/// Words that a fuzzer would take long to find.
const OPTIONS: &[&str] = &[
    "--kernel",
    "--initramfs",
    "--cmdline",
    "--cpus",
    "--memory",
    "--disk",
    "--net",
    "--rng",
    "--serial",
    "--console",
    "--ft",
    "--api-socket",
    "--event-monitor",
    "--log-file",
    "-v",
    "--seccomp",
    "--no-shutdown",
    "--debug-console",
    "--firmware",
];

pub(crate) fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    // A command line has several words; to make its grammar is most of the work of reading it.
    if text.contains('\n') {
        command_line(&text);
    } else {
        each_grammar(&text);
    }
}

/// What is read is printed as something that is read as the same.
fn each_grammar(text: &str) {
    macro_rules! comes_back {
        ($kind:ty) => {
            if let Ok(value) = <$kind>::parse(text) {
                let printed = value.to_options();
                assert_eq!(<$kind>::parse(&printed).as_ref(), Ok(&value), "{printed}");
            }
        };
    }
    comes_back!(CpusConfig);
    comes_back!(MemoryConfig);
    comes_back!(DiskConfig);
    comes_back!(NetConfig);
    comes_back!(RngConfig);
    comes_back!(FtConfig);
    let _ = DiskOverride::parse(text);
    let _ = NetOverride::parse(text);
    let _ = Options::parse("--x", text);
}

/// One word a line; a line that begins with a small byte has an option in its stead.
fn command_line(text: &str) {
    let words = text.split('\n').map(|line| match line.bytes().next() {
        Some(byte) if line.len() == 1 && usize::from(byte) < OPTIONS.len() => {
            OPTIONS[usize::from(byte)]
        }
        Some(_) | None => line,
    });
    match parse(std::iter::once("cloud-hypervisor").chain(words)) {
        Ok(Parsed::Run(invocation)) => {
            if let Some(vm) = &invocation.vm {
                assert_eq!(vm.validate(), Ok(()));
            }
        }
        Ok(Parsed::Print(text)) => assert!(!text.is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
