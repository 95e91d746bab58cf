//! `weft restart`: starts a service of the running mesh again, one replica after the other, or its sidecars in place.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    process::ExitCode,
};

use anyhow::{Context, bail};

use crate::up::{orders, trust};

/// The flags of `weft restart`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// A service, or one replica of it, as users or users-1
    name: String,
    /// Only the sidecars: new ones take their places while they run
    #[arg(long)]
    sidecar: bool,
}

/// Asks the `weft up` that runs here, and tells what it does.
///
/// # Errors
/// None runs, or it could not be done.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let here = env::current_dir()?;
    let mut sockets = here.ancestors().map(|dir| dir.join(".weft")).filter(|dir| orders::path_in(dir).exists());
    let state_dir = sockets.next().context("no `weft up` runs for this folder, or one above it")?;
    // What it says is shown as the mesh's own. Within the folder nobody else can put a socket.
    trust::check(&state_dir)?;
    let socket = orders::path_in(&state_dir);
    let mut stream = UnixStream::connect(&socket)
        .with_context(|| format!("no `weft up` listens at {}: it has ended", socket.display()))?;
    let what = if args.sidecar { "sidecars" } else { "service" };
    writeln!(stream, "{what} {}", args.name)?;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("step", text) => println!("{text}"),
            ("done", _) => return Ok(ExitCode::SUCCESS),
            (_, why) => bail!("{why}"),
        }
    }
    bail!("`weft up` has ended meanwhile")
}
