//! `scripts/runner`: runs a command on emulated hosts, and leaves nothing behind.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tests::runner::{Cluster, Options, Order, binaries};

/// Runs a command on a host with a real /dev/kvm: an emulated one, or this machine if it can.
#[derive(Parser)]
#[command(name = "runner")]
struct Arguments {
    /// How many hosts there are; they reach each other at 10.77.0.11, 10.77.0.12, …
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..=9))]
    hosts: u8,

    /// A file or folder the command needs. All of this machine's files are visible at their paths, except that emulated
    /// hosts have /tmp and /run of their own: name here what you need of those.
    #[arg(long, value_name = "PATH")]
    with: Vec<PathBuf>,

    /// Run the command on each host, at once, instead of on the first one. FT_HOST is the host's index.
    #[arg(long)]
    each: bool,

    /// Memory of an emulated host, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 2048,
        value_parser = clap::value_parser!(u32).range(256..))]
    memory: u32,

    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// What ends the run.
enum Event {
    Finished(Result<i32>),
    Signal(i32),
}

const BAD_INPUT: u8 = 2;
const FAILED: u8 = 1;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = match options(&arguments) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("runner: {error:#}");
            return ExitCode::from(BAD_INPUT);
        }
    };
    match run(&arguments, options) {
        // A shell could not tell a greater status either.
        Ok(status) => ExitCode::from(u8::try_from(status & 0xff).unwrap_or(FAILED)),
        Err(error) => {
            eprintln!("runner: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn options(arguments: &Arguments) -> Result<Options> {
    let mut options = Options::new(arguments.hosts.into())?;
    options.memory_mib = arguments.memory;
    for path in &arguments.with {
        ensure!(path.exists(), "{} given with --with does not exist", path.display());
        options.show(std::path::absolute(path)?);
    }
    Ok(options)
}

fn run(arguments: &Arguments, mut options: Options) -> Result<i32> {
    let (events, inbox) = channel();
    watch_signals(events.clone())?;
    let folder = std::env::current_dir()?;
    let order = order(arguments, folder.clone())?;
    options.show(folder);
    let cluster = match Cluster::start(&options) {
        Ok(cluster) => Arc::new(cluster),
        Err(error) => match inbox.try_recv() {
            Ok(Event::Signal(signal)) => return Ok(128 + signal),
            Ok(Event::Finished(_)) | Err(_) => return Err(error),
        },
    };
    let (shared, each) = (cluster.clone(), arguments.each);
    let commands = thread::spawn(move || {
        let _ = events.send(Event::Finished(run_on(&shared, &order, each)));
    });
    let event = inbox.recv().context("the runner's threads are gone")?;
    cluster.hosts().iter().try_for_each(|host| host.end())?;
    commands.join().map_err(|_| anyhow!("a command's thread failed"))?;
    match event {
        Event::Finished(result) => result,
        Event::Signal(signal) => Ok(128 + signal),
    }
}

fn watch_signals(events: Sender<Event>) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            let _ = events.send(Event::Signal(signal));
            tests::runner::interrupt();
        }
    });
    Ok(())
}

fn order(arguments: &Arguments, folder: PathBuf) -> Result<Order> {
    let mut order = Order::new(arguments.command.clone()).in_folder(folder);
    order.environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    // The built binaries are at hand by their names.
    let path = std::env::var("PATH").unwrap_or_default();
    Ok(order.with_variable("PATH", &format!("{}:{path}", binaries()?.display())))
}

/// Runs the command; the status is that of the first host on which it failed.
fn run_on(cluster: &Cluster, order: &Order, each: bool) -> Result<i32> {
    let hosts = if each { cluster.hosts() } else { &cluster.hosts()[..1] };
    thread::scope(|scope| {
        let running: Vec<_> = hosts
            .iter()
            .enumerate()
            .map(|(index, host)| {
                let order = order.clone().with_variable("FT_HOST", &index.to_string());
                scope.spawn(move || host.run_to(order, &mut io::stdout(), &mut io::stderr()))
            })
            .collect();
        let mut status = 0;
        for command in running {
            let ended = command.join().map_err(|_| anyhow!("a command's thread failed"))??;
            status = if status == 0 { ended.status() } else { status };
        }
        Ok(status)
    })
}
