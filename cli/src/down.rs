//! `weft down`: stops everything that `weft up` started, even if `weft up` itself was killed.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use rustix::process::Signal;

use crate::{
    console::say,
    up::{
        leftovers::{KILL_LIMIT, end_processes, until},
        process,
        run_file::Run,
    },
};

/// How long `weft up` may take to stop everything in order.
const UP_LIMIT: Duration = Duration::from_secs(20);

/// The flags of `weft down`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The mesh file that `weft up` was started with
    #[arg(long, short, default_value = "mesh.yaml", value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// Ends the run of a mesh file.
///
/// # Errors
/// The run file cannot be read, or a process does not end.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let path = std::path::absolute(&args.file)?;
    let state_dir = path.parent().context("a file is in a folder")?.join(".weft");
    let Some(run) = Run::read(&state_dir)? else {
        say(format_args!("nothing runs for {}", args.file.display()))?;
        return Ok(ExitCode::SUCCESS);
    };
    if run.up.is_alive() {
        say(format_args!("stopping `weft up` (pid {})", run.up.pid))?;
        process::signal(run.up.pid, Signal::TERM);
        if !until(UP_LIMIT, || !run.up.is_alive()) {
            say(format_args!("it did not stop within {UP_LIMIT:?}: killing it"))?;
            process::signal(run.up.pid, Signal::KILL);
            until(KILL_LIMIT, || !run.up.is_alive());
        }
    }
    let ended = end_processes(&run)?;
    Run::remove(&state_dir);
    say(if ended == 0 {
        "stopped".to_owned()
    } else {
        format!("stopped; {ended} processes were left and were ended")
    })?;
    Ok(ExitCode::SUCCESS)
}
