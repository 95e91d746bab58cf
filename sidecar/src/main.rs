//! `weft-sidecar`: the proxy beside each service.

use clap::Parser;

/// The proxy beside a service of the mesh: mutual TLS, discovery, balancing, deadlines, breakers and traces
#[derive(Parser)]
#[command(name = "weft-sidecar", version)]
struct Cli {
    #[command(flatten)]
    args: weft_sidecar::Args,
}

fn main() -> anyhow::Result<()> {
    weft_sidecar::run(Cli::parse().args)
}
