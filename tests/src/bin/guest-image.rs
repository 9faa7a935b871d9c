//! Writes what a guest of the tests boots from, for use by hand and in scripts.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use tests::guest::disk::DiskImage;
use tests::guest::image::write_initramfs;
use tests::runner::Cache;

/// Writes the guest's initial RAM file system, and a disk for it; prints where its kernel is.
#[derive(Parser)]
struct Arguments {
    /// Where to write the initial RAM file system.
    #[arg(long, value_name = "PATH")]
    initramfs: PathBuf,

    /// Where to write a raw disk image with an empty ext4 file system; what is there is overwritten.
    #[arg(long, value_name = "PATH")]
    disk: Option<PathBuf>,

    /// Size of the disk, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(16..))]
    disk_size: u32,
}

fn main() -> ExitCode {
    match write(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn write(arguments: &Arguments) -> Result<()> {
    let cache = Cache::open()?;
    write_initramfs(&cache, &arguments.initramfs)?;
    if let Some(disk) = &arguments.disk {
        DiskImage::create(disk, arguments.disk_size)?;
    }
    println!("{}", cache.vmlinux().display());
    Ok(())
}
