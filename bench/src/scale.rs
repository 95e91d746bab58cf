//! How the control plane handles a large mesh: how soon the watchers of a service learn that one of its endpoints has
//! changed, and how much memory that takes; first alone, then while strangers hold silent connections.
//!
//! The control plane starts with the usual soft limit of open files ([`FILES`]) and is pinned to one CPU. The sidecars
//! are simulated, all in this process: each has a connection, an address and the identity of its service, announces one
//! endpoint and watches some services.
//!
//! - [`fleet`]: the sidecars; [`strangers`]: the silent connections.

mod fleet;
mod strangers;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};
use weft_mesh::limits;

use crate::{
    process::Process,
    report::{self, Machine},
    table::Table,
    weft::{BUILD, Control, WeftOptions},
};

use fleet::{Fleet, Size};
use strangers::Strangers;

/// The soft limit of open files that most shells and service managers give.
const FILES: usize = 1_024;
/// The pause between two changes.
const PAUSE: Duration = Duration::from_millis(50);
/// How long all sidecars together may take to join.
const JOIN: Duration = Duration::from_secs(180);
/// The time between the arrival of sidecars or strangers and the measurement.
const CALM: Duration = Duration::from_secs(2);

/// When the watchers of a service know of a change: the 99th percentile, in milliseconds.
const SEEN_GOAL: f64 = 1_000.0;
/// Resident memory of the control plane, the most, in MB.
const MEMORY_GOAL: f64 = 300.0;

#[derive(Args)]
pub(crate) struct Options {
    /// How many sidecars there are.
    #[arg(long, default_value_t = 5_000)]
    sidecars: usize,
    /// How many services they share.
    #[arg(long, default_value_t = 500)]
    services: usize,
    /// How many services each watches.
    #[arg(long, default_value_t = 10)]
    watched: usize,
    /// How many changes are measured, alone and beside strangers.
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// How many strangers hold connections.
    #[arg(long, default_value_t = 5_000)]
    strangers: usize,
    /// The file for all figures.
    #[arg(long, value_name = "FILE", default_value = "target/scale.json")]
    json: PathBuf,
}

#[derive(Serialize)]
struct Scale {
    machine: Machine,
    sidecars: usize,
    services: usize,
    watched: usize,
    /// From the first connection until all sidecars know all services that they watch.
    joined_seconds: f64,
    rows: Vec<Row>,
}

/// The measurements alone or beside strangers.
#[derive(Serialize)]
struct Row {
    what: String,
    /// How many changes watchers have learned of, over all changes and watchers.
    seen: usize,
    /// How many they have not learned of within [`fleet::PATIENCE`].
    missed: usize,
    p50_millis: f64,
    p99_millis: f64,
    max_millis: f64,
    rss_bytes: u64,
    peak_rss_bytes: u64,
}

/// Measures all of it.
pub(crate) async fn run(options: &Options, weft: WeftOptions) -> Result<ExitCode> {
    weft.check(BUILD)?;
    let size = Size { sidecars: options.sidecars, services: options.services, watched: options.watched };
    ensure!(
        size.watched <= size.services && size.services <= size.sidecars,
        "--watched may not exceed --services, nor --services --sidecars"
    );
    ensure!(size.sidecars <= fleet::MOST, "at most {} sidecars", fleet::MOST);
    let machine = Machine::read();
    machine.warn_if_busy();
    let control = Control::start(&weft, Some(FILES)).await?;
    control.process.keep_to_cpu(0).context("can't pin the control plane to one CPU")?;
    eprintln!("{} sidecars of {} services join", size.sidecars, size.services);
    let start = Instant::now();
    let joining = timeout(JOIN, Fleet::join(&control, &weft, size)).await;
    let mut fleet = joining.with_context(|| format!("the sidecars have not joined within {JOIN:?}"))??;
    let joined_seconds = start.elapsed().as_secs_f64();
    sleep(limits::SETTLING_TIME.saturating_sub(start.elapsed()) + CALM).await;

    let mut rows = vec![row("alone", &mut fleet, &control.process, options.changes).await?];
    let strangers = Strangers::start(control.address, options.strangers);
    eprintln!("{} strangers connect", options.strangers);
    strangers.are_there().await?;
    sleep(CALM).await;
    let what = format!("beside {} strangers", options.strangers);
    rows.push(row(&what, &mut fleet, &control.process, options.changes).await?);
    let scale = Scale {
        machine,
        sidecars: size.sidecars,
        services: size.services,
        watched: size.watched,
        joined_seconds,
        rows,
    };
    print!("{}", scale.text());
    report::write(&options.json, &(serde_json::to_string_pretty(&scale)? + "\n"))?;
    println!("\nAll figures are in {}.", options.json.display());
    fleet.check()?;
    control.process.kill().await;
    Ok(ExitCode::SUCCESS)
}

async fn row(what: &str, fleet: &mut Fleet, control: &Process, changes: usize) -> Result<Row> {
    let mut seen = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?;
    let mut missed = 0;
    for number in 0..changes {
        let (times, not_told) = fleet.change(number).await?;
        missed += not_told;
        for time in times {
            seen.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1));
        }
        sleep(PAUSE).await;
    }
    let millis = |micros: u64| micros as f64 / 1_000.0;
    Ok(Row {
        what: what.to_owned(),
        seen: usize::try_from(seen.len())?,
        missed,
        p50_millis: millis(seen.value_at_quantile(0.5)),
        p99_millis: millis(seen.value_at_quantile(0.99)),
        max_millis: millis(seen.max()),
        rss_bytes: control.rss_bytes()?,
        peak_rss_bytes: control.peak_rss_bytes()?,
    })
}

impl Scale {
    fn text(&self) -> String {
        let headings = ["", "", "told", "not told", "p50 ms", "p99 ms", "max ms", "RSS MB", "most RSS MB"];
        let mut table = Table::new(&headings);
        let megabytes = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
        for row in &self.rows {
            let is_reached =
                row.missed == 0 && row.p99_millis <= SEEN_GOAL && row.peak_rss_bytes as f64 <= MEMORY_GOAL * 1e6;
            table.row([
                row.what.clone(),
                if is_reached { "reached" } else { "missed" }.to_owned(),
                row.seen.to_string(),
                row.missed.to_string(),
                format!("{:.1}", row.p50_millis),
                format!("{:.1}", row.p99_millis),
                format!("{:.1}", row.max_millis),
                megabytes(row.rss_bytes),
                megabytes(row.peak_rss_bytes),
            ]);
        }
        format!(
            "{} sidecars, each announcing an endpoint of one of {} services and watching {}; all there after {:.1} s. Goals: \
             told within {SEEN_GOAL} ms (p99), {MEMORY_GOAL} MB.\n\n{table}",
            self.sidecars, self.services, self.watched, self.joined_seconds
        )
    }
}
