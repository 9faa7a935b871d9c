//! `scripts/demo`: a VM keeps its connections while what it runs on is killed.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::{ExitCode, exit};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tests::demo::{Place, Plan, Timeline, Told, tell};
use tests::runner::{Cluster, Options};
use tests::vm::initramfs;

/// What ends the run.
enum Event {
    Finished(Box<Result<Told>>),
    Signal(i32),
}

const FAILED: u8 = 1;
const BAD_INPUT: u8 = 2;
/// Once the hosts have ended, whoever waits for them notices within this time.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let plan = Plan::parse();
    let files = open(plan.json.as_deref()).and_then(|json| Ok((json, open(plan.svg.as_deref())?)));
    let (json, svg) = match files {
        Ok(files) => files,
        Err(error) => {
            eprintln!("demo: {error:#}");
            return ExitCode::from(BAD_INPUT);
        }
    };
    match run(&plan).and_then(|told| Ok((told.report.survived, write(&told, json, svg)?))) {
        Ok((true, ())) => ExitCode::SUCCESS,
        Ok((false, ())) => ExitCode::from(FAILED),
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// Opens a file for the results before anything is started: a wrong path is noticed at once.
fn open(path: Option<&Path>) -> Result<Option<File>> {
    let file = path.map(|path| {
        File::create(path).with_context(|| format!("{} cannot be written", path.display()))
    });
    file.transpose()
}

fn write(told: &Told, json: Option<File>, svg: Option<File>) -> Result<()> {
    if let Some(mut json) = json {
        let mut text = serde_json::to_string_pretty(&told.report)?;
        text.push('\n');
        json.write_all(text.as_bytes()).context("the numbers cannot be written")?;
    }
    if let Some(mut svg) = svg {
        svg.write_all(told.chart.to_svg().as_bytes()).context("the picture cannot be written")?;
    }
    Ok(())
}

fn run(plan: &Plan) -> Result<Told> {
    let (events, inbox) = channel();
    watch_signals(events.clone())?;
    let timeline = Timeline::start();
    timeline.print("A virtual machine that outlives its host\n\n");
    let options = Options::new(2)?;
    let cluster = match start(&options, &timeline) {
        Ok(cluster) => cluster,
        Err(error) => match inbox.try_recv() {
            Ok(Event::Signal(signal)) => exit(128 + signal),
            Ok(Event::Finished(_)) | Err(_) => return Err(error),
        },
    };
    let (cluster, plan) = (Arc::new(cluster), plan.clone());
    let shared = cluster.clone();
    let story = thread::spawn(move || {
        let place = Place::look(options.kind, shared.cache());
        let told = tell(&shared, place, &plan, &timeline);
        if let Ok(told) = &told {
            timeline.print(&told.report.in_words());
        }
        // The hosts end here, unless they are still wanted by whoever ends the story early.
        drop(shared);
        let _ = events.send(Event::Finished(Box::new(told)));
    });
    match inbox.recv().context("the demonstration's threads are gone")? {
        Event::Finished(told) => {
            // It has said its last word.
            let _ = story.join();
            *told
        }
        Event::Signal(signal) => leave(&cluster, &inbox, signal),
    }
}

fn start(options: &Options, timeline: &Timeline) -> Result<Cluster> {
    timeline.say("Two hosts boot.");
    let cluster = Cluster::start(options)?;
    let place = Place::look(options.kind, cluster.cache());
    timeline.say(&format!("They are up. Each is {}.", place.host_in_words()));
    timeline.progress("what runs in the VM is built");
    initramfs(&cluster)?;
    Ok(cluster)
}

fn watch_signals(events: Sender<Event>) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            tests::runner::interrupt();
            let _ = events.send(Event::Signal(signal));
        }
    });
    Ok(())
}

/// Ends everything that was started, and this process.
fn leave(cluster: &Cluster, inbox: &std::sync::mpsc::Receiver<Event>, signal: i32) -> ! {
    for host in cluster.hosts() {
        // One that is dead already is no trouble.
        let _ = host.end();
    }
    // A second signal does not come quicker to the end.
    while !matches!(
        inbox.recv_timeout(LAST_WORDS_TIMEOUT),
        Ok(Event::Finished(_)) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)
    ) {}
    let _ =
        writeln!(io::stderr(), "\ndemo: interrupted; the hosts and all that ran on them are gone");
    // This process ends without unwinding, so the folder of the run is removed by hand.
    let _ = std::fs::remove_dir_all(cluster.folder());
    exit(128 + signal)
}
