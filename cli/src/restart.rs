//! `weft restart`: restarts a service of the running mesh, one replica at a time, or only its sidecars, in place.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    process::ExitCode,
};

use anyhow::{Context, bail};

use crate::{
    console::say,
    up::{orders, trust},
};

/// The flags of `weft restart`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// A service or one of its replicas, such as users or users-1
    name: String,
    /// Restart only the sidecars: a new one takes over from each while it runs
    #[arg(long)]
    sidecar: bool,
}

/// Sends the order to the `weft up` that runs here, and prints its progress.
///
/// # Errors
/// No `weft up` runs here, or the restart failed.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let here = env::current_dir()?;
    let mut sockets = here.ancestors().map(|dir| dir.join(".weft")).filter(|dir| orders::path_in(dir).exists());
    let state_dir = sockets.next().context("no `weft up` runs for this folder or one above it")?;
    // What comes from the socket is printed as weft's own words, so nobody else may be able to put a socket there.
    trust::check(&state_dir)?;
    let socket = orders::path_in(&state_dir);
    let mut stream = UnixStream::connect(&socket)
        .with_context(|| format!("no `weft up` listens at {}: it has ended", socket.display()))?;
    let what = if args.sidecar { "sidecars" } else { "service" };
    writeln!(stream, "{what} {}", args.name)?;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("step", text) => say(text)?,
            ("done", _) => return Ok(ExitCode::SUCCESS),
            (_, why) => bail!("{why}"),
        }
    }
    bail!("`weft up` ended before the restart was done")
}
