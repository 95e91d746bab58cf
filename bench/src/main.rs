//! `weft-bench`: what a call costs through a pair of sidecars, against the least that a relay pair can cost.
//!
//! One run measures three ways from the same load generator to the same echo server, in turns, so that a machine that
//! grows slower in between slows all of them: `bare` (no relay), `floor` (a relay pair on the h2 crate and rustls that
//! does nothing but relay) and `weft` (two real sidecars with a real control plane). Every part is a process of its
//! own, so that its CPU time and its memory can be read from the kernel.
//!
//! - [`cases`]: the loads;
//! - [`bed`]: starts the processes of the three ways; [`weft`] those of the third; [`process`] is one child and what
//!   the kernel says of it;
//! - [`measure`]: one load over one way, with CPU time and latencies;
//! - [`report`]: medians over the rounds, ratios to the floor, the JSON file and what is printed, as a [`table`];
//! - [`echo`], [`floor`] and [`load`] are the children's side: this executable, called again. [`http2`] and [`tls`]
//!   are what they share.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    bed::Bed,
    cases::Case,
    report::{CaseReport, Machine, Report},
    weft::WeftOptions,
};

mod bed;
mod cases;
mod echo;
mod floor;
mod http2;
mod load;
mod measure;
mod process;
mod report;
mod table;
mod tls;
mod weft;

/// Measures calls over a bare connection, a bare relay pair (the floor) and a pair of Weft sidecars, in one run.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Args)]
struct Options {
    /// How often each load is measured over each way.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// A tenth of the calls and one second at most for each measurement.
    #[arg(long)]
    quick: bool,
    /// Only these loads (comma separated).
    #[arg(long, value_delimiter = ',', value_parser = cases::names())]
    only: Vec<String>,
    /// Where all figures are written to.
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    json: PathBuf,
    /// The folder of `weft-sidecar` and `weft-control` [default: that of this program].
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Measure a second pair of sidecars too, which exports this share of its calls as traces to the control plane.
    #[arg(long, value_name = "RATIO")]
    traced: Option<f64>,
    /// A further argument for every sidecar, such as --sidecar-arg=--workers=2 (repeatable).
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    sidecar_arg: Vec<String>,
}

/// What a child of the benchmark does.
#[derive(Subcommand)]
enum Role {
    /// The server: answers each call with its own body.
    #[command(hide = true)]
    Echo,
    /// The floor's relay on the server's side.
    #[command(hide = true)]
    FloorIn {
        #[arg(long)]
        tls: PathBuf,
        #[arg(long)]
        to: SocketAddr,
    },
    /// The floor's relay on the client's side.
    #[command(hide = true)]
    FloorOut {
        #[arg(long)]
        tls: PathBuf,
        #[arg(long)]
        to: SocketAddr,
    },
    /// The client.
    #[command(hide = true)]
    Load(load::LoadArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime could be made")
        .and_then(|runtime| runtime.block_on(dispatch(cli)));
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.role {
        None => until_signal(cli.options).await,
        Some(Role::Load(args)) => load::run(args).await.map(|()| ExitCode::SUCCESS),
        Some(role) => {
            process::exit_with_parent();
            match role {
                Role::Echo => echo::run().await,
                Role::FloorIn { tls, to } => floor::run_in(&tls, to).await,
                Role::FloorOut { tls, to } => floor::run_out(&tls, to).await,
                Role::Load(_) => unreachable!("taken by the arm above"),
            }?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Runs the benchmark; a signal ends it, and dropping it kills the children.
async fn until_signal(options: Options) -> Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        outcome = bench(options) => outcome,
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
        _ = terminate.recv() => Ok(ExitCode::from(143)),
    }
}

async fn bench(options: Options) -> Result<ExitCode> {
    let weft = WeftOptions::find(options.bin_dir.clone(), options.traced, options.sidecar_arg.clone())?;
    if let Some(missing) = &weft.missing {
        eprintln!(
            "No rows for weft: {} is not there. `cargo build --release --workspace` builds it.",
            missing.display()
        );
    }
    let machine = Machine::read();
    if machine.load_average > 1.0 {
        eprintln!(
            "The load average is {}: others are using this machine, do not trust the figures.",
            machine.load_average
        );
    }
    let mut report = Report::new(machine, options.rounds, options.quick);
    let outcome = run_cases(&options, &weft, &mut report).await;
    // What was measured before an error is worth having.
    print!("{}", report.text());
    report.write(&options.json)?;
    println!("\nAll figures are in {}.", options.json.display());
    outcome?;
    if let Some(failure) = report.first_failure() {
        bail!("calls failed, so the figures are worth nothing: {failure}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_cases(options: &Options, weft: &WeftOptions, report: &mut Report) -> Result<()> {
    for case in cases::all() {
        if options.only.is_empty() || options.only.iter().any(|name| name == case.name) {
            let case = if options.quick { case.quick() } else { case };
            report.cases.push(run_case(case, options.rounds, weft).await?);
        }
    }
    Ok(())
}

/// One load over every way, with fresh processes, so that their memory tells of this load alone.
async fn run_case(case: Case, rounds: u32, weft: &WeftOptions) -> Result<CaseReport> {
    let bed = Bed::start(weft).await?;
    for way in &bed.ways {
        measure::probe(way, Duration::from_secs(30)).await?;
    }
    let mut report = CaseReport::new(case, &bed)?;
    for round in 1..=rounds {
        for (index, way) in bed.ways.iter().enumerate() {
            eprintln!("{}: round {round} of {rounds}, {}", case.name, way.name);
            report.ways[index].samples.push(measure::measure(&case, way).await?);
        }
    }
    report.finish(&bed)?;
    bed.stop().await;
    Ok(report)
}
