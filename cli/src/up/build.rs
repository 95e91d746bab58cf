//! Runs the mesh file's `build`. Its output is kept in a file, and shown if the build fails.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::{
    logs::{Live, LiveLine, Look, Size},
    progress::{self, Row, Stage},
};
use crate::{
    console::note,
    mesh_file::{CommandLine, MeshFile},
};

/// How often the elapsed time is redrawn and the command is checked for its end.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);

/// Runs each command, one after the other.
///
/// # Errors
/// A command can't be started, or fails; its output was then shown.
pub(crate) fn run(file: &MeshFile, look: Look) -> anyhow::Result<()> {
    let log = file.state_dir().join("build.log");
    let rows: Vec<Row> = file.services.iter().map(|service| Row::new(service.name.name(), 1)).collect();
    for command_line in &file.build {
        if !look.is_live {
            note(format_args!("weft: building: {}", command_line.text));
        }
        let began = Instant::now();
        let status = if look.is_verbose {
            command(command_line, file).status().with_context(|| not_started(command_line))?
        } else {
            let lines = |elapsed| progress::lines(Stage::Build(&command_line.text), &rows, elapsed);
            run_one(command_line, file, &log, lines, look)?
        };
        if !status.success() {
            if !look.is_verbose {
                show(&log);
            }
            bail!("build: `{}` failed ({status}); nothing was started", command_line.text);
        }
        if !look.is_live {
            note(format_args!("weft: built after {:.1?}", began.elapsed()));
        }
    }
    Ok(())
}

fn run_one(
    command_line: &CommandLine,
    file: &MeshFile,
    log: &Path,
    lines: impl Fn(Duration) -> Vec<LiveLine>,
    look: Look,
) -> anyhow::Result<ExitStatus> {
    let output = File::create(log).with_context(|| format!("{} can't be written", log.display()))?;
    let mut command = command(command_line, file);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut child = command.spawn().with_context(|| not_started(command_line))?;
    match look.is_live {
        true => Ok(wait_and_draw(&mut child, lines, look)?),
        false => Ok(child.wait()?),
    }
}

fn wait_and_draw(child: &mut Child, lines: impl Fn(Duration) -> Vec<LiveLine>, look: Look) -> io::Result<ExitStatus> {
    let (began, mut live, mut out) = (Instant::now(), Live::new(look.has_colours), io::stdout().lock());
    loop {
        if let Some(status) = child.try_wait()? {
            live.clear(&mut out)?;
            out.flush()?;
            return Ok(status);
        }
        live.draw(&lines(began.elapsed()), Size::of_stdout(), &mut out)?;
        out.flush()?;
        std::thread::sleep(REDRAW_INTERVAL);
    }
}

fn command(command_line: &CommandLine, file: &MeshFile) -> Command {
    let mut command = Command::new(&command_line.program);
    command.args(&command_line.arguments).current_dir(&file.folder);
    // `cargo run` sets variables about the package that it runs. Another cargo that sees them would rebuild crates.
    for (name, _) in std::env::vars_os() {
        let is_about_the_caller = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(is_about_the_caller) {
            command.env_remove(name);
        }
    }
    command
}

fn not_started(command_line: &CommandLine) -> String {
    format!("build: `{}` can't be started", command_line.text)
}

/// Prints the output of a command to standard error.
fn show(log: &Path) {
    let shown = File::open(log).and_then(|mut log| io::copy(&mut log, &mut io::stderr()));
    if let Err(error) = shown {
        note(format_args!("weft: the build's output is in {}: {error}", log.display()));
    }
}
