//! `scripts/runner`: runs a command on emulated hosts, and leaves nothing behind.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tests::runner::agent::NotStarted;
use tests::runner::{Cluster, Options, Order, binaries, is_own_folder};

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

    /// Run the command on each host, at once, instead of on the first one. FT_HOST is the host's index, from 0; the
    /// standard input is empty.
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
const NOT_RUNNABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
const BROKEN_PIPE: u8 = 128 + libc::SIGPIPE as u8;

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
        // Whoever reads the output has had enough of it, as of that of any command.
        Err(error) if is_broken_pipe(&error) => ExitCode::from(BROKEN_PIPE),
        Err(error) => {
            eprintln!("runner: {error:#}");
            ExitCode::from(status_of(&error))
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// What a shell would say of a command that cannot be run.
fn status_of(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<NotStarted>() {
        Some(NotStarted { missing: true, .. }) => NOT_FOUND,
        Some(NotStarted { missing: false, .. }) => NOT_RUNNABLE,
        None => FAILED,
    }
}

fn options(arguments: &Arguments) -> Result<Options> {
    let mut options = Options::new(arguments.hosts.into())?;
    options.memory_mib = arguments.memory;
    for path in &arguments.with {
        let whole = std::path::absolute(path)
            .and_then(|whole| whole.canonicalize().map(|found| (whole, found)))
            .with_context(|| format!("cannot find {}, given with --with", path.display()));
        let (whole, found) = whole?;
        ensure!(
            !is_own_folder(&found),
            "hosts have a {} of their own; say with --with what they need of it",
            found.display()
        );
        options.show(whole);
    }
    Ok(options)
}

fn run(arguments: &Arguments, mut options: Options) -> Result<i32> {
    let (events, inbox) = channel();
    watch_signals(events.clone())?;
    stay_out_of_the_terminal();
    let folder = std::env::current_dir().context("cannot tell the folder this runs in")?;
    let order = order(arguments, folder.clone())?;
    options.show(folder);
    let cluster = match Cluster::start(&options) {
        Ok(cluster) => Arc::new(cluster),
        // A Ctrl-C may have ended what was waited for just before it came here.
        Err(error) => match inbox.recv_timeout(Duration::from_millis(100)) {
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

/// Reading from a terminal in the background must not stop the runner, and with it its hosts: it is the end of the input.
fn stay_out_of_the_terminal() {
    // SAFETY: an ignored signal runs no code of ours.
    unsafe { libc::signal(libc::SIGTTIN, libc::SIG_IGN) };
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
    if !each {
        let order = order.clone().with_input().with_variable("FT_HOST", "0");
        let mut process = cluster.host(0).spawn(order)?;
        process.feed(io::stdin());
        return Ok(process.pass_on(&mut io::stdout(), &mut io::stderr())?.status());
    }
    thread::scope(|scope| {
        let running: Vec<_> = cluster
            .hosts()
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
