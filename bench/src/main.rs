//! `weft-bench`: what a call costs through a pair of sidecars, against the least that a relay pair can cost, and
//! against other proxies.
//!
//! One run measures every way (path) from the same load generator to the same echo server: `bare` (no relay), `floor`
//! (a relay pair on the h2 crate and rustls that does nothing but relay), `weft` (two real sidecars with a real control
//! plane) and the peers. The ways take turns, so that a machine that slows down affects all of them. Every part is a
//! process of its own, so that the kernel reports its CPU time and its memory.
//!
//! - [`compare`]: the comparison; [`growth`]: what a call costs as a mesh grows;
//! - [`neighbours`]: how a slow reader and attackers affect the calls of others;
//! - [`scale`]: how soon thousands of sidecars learn of a change, and the control plane's memory;
//! - [`outage`]: how a control plane that hangs affects calls;
//! - [`cost`]: the instructions and allocations of a call, counted and compared with the recorded ones;
//! - [`cases`]: the loads; [`contract`]: the contract of the echo server;
//! - [`bed`]: starts the processes of each way; [`weft`] those of a mesh, [`peers`] the other proxies; [`process`] is
//!   one child, with its CPU time and memory; [`identity`] joins a mesh;
//! - [`measure`]: one load over one way, with CPU time and latencies;
//! - [`report`]: medians over the rounds, ratios to the floor, the JSON file and the printed text, with a [`table`];
//!   [`svg`]: the picture;
//! - [`echo`], [`floor`] and [`load`] are the children's side: this executable, called again. They share [`http2`] and
//!   [`tls`].

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::weft::WeftOptions;

mod bed;
mod cases;
mod compare;
mod contract;
mod cost;
mod echo;
mod floor;
mod growth;
mod http2;
mod identity;
mod load;
mod measure;
mod neighbours;
mod outage;
mod peers;
mod ports;
mod process;
mod report;
mod scale;
mod svg;
mod table;
mod tls;
mod weft;

/// Measures calls over a bare connection, a bare relay pair (the floor), a pair of Weft sidecars and pairs of other
/// proxies, in one run.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    compare: compare::Options,
    #[command(flatten)]
    sidecars: SidecarOptions,
    #[command(subcommand)]
    role: Option<Role>,
}

/// Which sidecars are measured, and how they are started.
#[derive(Args)]
struct SidecarOptions {
    /// The folder of `weft-sidecar` and `weft-control` [default: that of this program].
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// A further argument for every sidecar, such as --sidecar-arg=--balance=random (repeatable).
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    sidecar_arg: Vec<String>,
}

impl SidecarOptions {
    fn find(&self) -> Result<WeftOptions> {
        WeftOptions::find(self.bin_dir.as_deref(), self.sidecar_arg.clone())
    }
}

/// The other benchmarks, and the roles of the benchmark's children.
#[derive(Subcommand)]
enum Role {
    /// What a call costs as endpoints, methods, connections and workers grow in number.
    Growth {
        #[command(flatten)]
        options: growth::Options,
        #[command(flatten)]
        sidecars: SidecarOptions,
    },
    /// What a call costs in instructions and allocations, counted by valgrind and compared with the recorded figures.
    Cost {
        #[command(flatten)]
        options: cost::Options,
        #[command(flatten)]
        sidecars: SidecarOptions,
    },
    /// How a stream that is not read, and clients that attack, affect the calls of others.
    Neighbours {
        #[command(flatten)]
        options: neighbours::Options,
        #[command(flatten)]
        sidecars: SidecarOptions,
    },
    /// How soon the watchers of a large mesh learn of a change, and how much memory the control plane takes.
    Scale {
        #[command(flatten)]
        options: scale::Options,
        #[command(flatten)]
        sidecars: SidecarOptions,
    },
    /// How many calls fail while the control plane hangs for half a minute and goes on, four times.
    Outage {
        #[command(flatten)]
        options: outage::Options,
        #[command(flatten)]
        sidecars: SidecarOptions,
    },
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
    /// A hundred streams, one of which is not read.
    #[command(hide = true)]
    Converse(neighbours::converse::ConverseArgs),
    /// A client that attacks.
    #[command(hide = true)]
    Attack(neighbours::attack::AttackArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the async runtime")
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
        None => until_signal(compare::run(&cli.compare, cli.sidecars.find()?)).await,
        Some(Role::Growth { options, sidecars }) => until_signal(growth::run(&options, sidecars.find()?)).await,
        Some(Role::Cost { options, sidecars }) => until_signal(cost::run(&options, sidecars.find()?)).await,
        Some(Role::Neighbours { options, sidecars }) => until_signal(neighbours::run(&options, sidecars.find()?)).await,
        Some(Role::Scale { options, sidecars }) => until_signal(scale::run(&options, sidecars.find()?)).await,
        Some(Role::Outage { options, sidecars }) => until_signal(outage::run(&options, sidecars.find()?)).await,
        Some(Role::Load(args)) => load::run(args).await.map(|()| ExitCode::SUCCESS),
        Some(role) => {
            process::exit_with_parent();
            match role {
                Role::Echo => echo::run().await,
                Role::FloorIn { tls, to } => floor::run_in(&tls, to).await,
                Role::FloorOut { tls, to } => floor::run_out(&tls, to).await,
                Role::Converse(args) => neighbours::converse::run(args).await,
                Role::Attack(args) => neighbours::attack::run(args).await,
                Role::Growth { .. }
                | Role::Cost { .. }
                | Role::Neighbours { .. }
                | Role::Scale { .. }
                | Role::Outage { .. }
                | Role::Load(_) => unreachable!("taken by the arms above"),
            }?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Measures until it is done or a signal comes. Dropping `measuring` kills the children.
async fn until_signal(measuring: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    process::raise_file_limit()?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        outcome = measuring => outcome,
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
        _ = terminate.recv() => Ok(ExitCode::from(143)),
    }
}
