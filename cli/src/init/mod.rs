//! `weft init`: a `mesh.yaml` for the programs in a folder, or a small example service.
//!
//! Without `--example`, [`guess`] searches the folder and [`render`] makes a file in which every key is explained;
//! nothing is asked and nothing is run. With it, [`example`] writes a service whose files are part of this program.

mod example;
mod guess;
mod render;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};

use self::example::Example;
use crate::{
    console::say,
    mesh_file::{MeshFile, Programs},
    new_files::{FileState, NewFile},
};

const AFTER_HELP: &str = "\
Examples:
  weft init                               a mesh.yaml for the programs in this folder
  weft init --example python greeter      a service in Python, in the new folder greeter

No file is ever replaced.";

/// The flags of `weft init`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The folder; for an example, it is created if it does not exist
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Write a small example service in this language, with its contract, ready to run
    #[arg(long, short, value_name = "LANGUAGE")]
    example: Option<Example>,
}

/// # Errors
/// A file exists already, or cannot be written.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match args.example {
        Some(example) => example::write(example, &args.dir)?,
        None => init(&args.dir)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn init(dir: &Path) -> anyhow::Result<()> {
    if !dir.is_dir() {
        bail!("{} is not a folder; `weft init` needs the folder with your programs", dir.display());
    }
    let folder = dir.canonicalize().with_context(|| format!("{} can't be read", dir.display()))?;
    let guess = guess::look_into(&folder);
    let text = render::mesh_file(&guess);
    let file = NewFile { name: "mesh.yaml", text: &text };
    let path = file.path(dir);
    if file.state_in(dir)? != FileState::Missing {
        bail!("{} is there already and stays as it is; `weft check` says whether it is valid", path.display());
    }
    file.create(dir)?;
    let shown = path.strip_prefix(".").unwrap_or(&path);
    say(format_args!("wrote {}", shown.display()))?;
    for service in &guess.services {
        say(format_args!("  {}: {}", service.name, service.from))?;
    }
    if guess.services.is_empty() {
        say("No program was found here that weft knows how to run: put your program's command line into `run`.\n\
             For an example service: weft init --example python greeter (or go, node, java, rust)")?;
        return Ok(());
    }
    for note in &guess.notes {
        say(format_args!("  note: {note}"))?;
    }
    // Problems that the search does not see, such as a missing program, are reported now, not at the start.
    match MeshFile::load(shown, Programs::MayBeBuilt) {
        Ok(_) => say("Next: check that the commands in it are right, then run `weft up`")?,
        Err(problems) => say(format_args!("Still to be fixed (`weft check` shows it again):\n{problems}"))?,
    }
    Ok(())
}
