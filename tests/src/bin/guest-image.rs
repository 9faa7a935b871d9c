//! Writes what the guest of the tests and the demo boots from: `guest-image INITRAMFS [DISK MIB]`.

use std::path::Path;
use std::process::ExitCode;

use tests::guest::disk::DiskImage;
use tests::guest::image::write_initramfs;
use tests::runner::Cache;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match write(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-image: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn write(arguments: &[String]) -> anyhow::Result<()> {
    match arguments {
        [initramfs] => write_initramfs(&Cache::open()?, Path::new(initramfs)),
        [initramfs, disk, mib] => {
            write_initramfs(&Cache::open()?, Path::new(initramfs))?;
            DiskImage::create(Path::new(disk), mib.parse()?).map(drop)
        }
        _ => anyhow::bail!("usage: guest-image INITRAMFS [DISK MIB]"),
    }
}
