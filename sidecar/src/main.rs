//! `weft-sidecar`: the proxy beside each service.

use std::process::ExitCode;

use clap::Parser;

/// The proxy beside a service of the mesh: mutual TLS, discovery, balancing, deadlines, breakers and traces
#[derive(Parser)]
#[command(name = "weft-sidecar", version)]
struct Cli {
    #[command(flatten)]
    command: weft_sidecar::Command,
}

fn main() -> ExitCode {
    match weft_sidecar::run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // On one line, with its causes but without a backtrace: most often a flag is wrong.
            weft_mesh::telemetry::say_last(&format!("weft-sidecar: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
