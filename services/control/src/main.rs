//! `weft-control`: the control plane as a program of its own. `weft control` is the same.

use std::process::ExitCode;

use clap::Parser;
use weft_control::{Args, ReleaseArgs, StateArgs, TokenArgs};

/// The control plane of a Weft mesh: identities, discovery, contracts, dashboard.
#[derive(Debug, Parser)]
#[command(name = "weft-control", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    args: Args,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print a join token, with which a sidecar gets its first identity.
    Token(TokenArgs),
    /// Release a contract or an address that is pinned to an identity, so that another may have it.
    Release(ReleaseArgs),
    /// Show the contracts and addresses that are pinned to identities, and those that are contested.
    Claims(StateArgs),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            weft_mesh::telemetry::say_last(&format!("weft-control: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli {
        Cli { command: Some(Command::Token(args)), .. } => {
            println!("{}", weft_control::token(&args)?);
            Ok(())
        }
        Cli { command: Some(Command::Release(args)), .. } => {
            println!("{}", weft_control::release(&args)?);
            Ok(())
        }
        Cli { command: Some(Command::Claims(args)), .. } => {
            print!("{}", weft_control::claims_kept(&args)?);
            Ok(())
        }
        Cli { command: None, args } => weft_control::run(args),
    }
}
