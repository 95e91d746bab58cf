//! `weft init`: a `mesh.yaml` for the programs of a folder, or a small service to begin with.
//!
//! Without `--example`, [`guess`] looks at what is in the folder and [`render`] writes it down with every key explained;
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
    mesh_file::{MeshFile, Programs},
    new_files::{NewFile, State},
};

const AFTER_HELP: &str = "\
Examples:
  weft init                               a mesh.yaml for the programs that are in this folder
  weft init --example python greeter      a service in Python, in the new folder greeter

No file is ever replaced.";

/// The flags of `weft init`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The folder; for an example it is made if it is not there
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Write a small service in this language, with its contract, that runs at once
    #[arg(long, short, value_name = "LANGUAGE")]
    example: Option<Example>,
}

/// # Errors
/// Something is there already, or cannot be written.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match args.example {
        Some(example) => example::write(example, &args.dir)?,
        None => init(&args.dir)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn init(dir: &Path) -> anyhow::Result<()> {
    if !dir.is_dir() {
        bail!("{} is not a folder; `weft init` looks at what is in one", dir.display());
    }
    let folder = dir.canonicalize().with_context(|| format!("{} can't be read", dir.display()))?;
    let guess = guess::look_into(&folder);
    let text = render::mesh_file(&guess);
    let file = NewFile { name: "mesh.yaml", text: &text };
    let path = file.path(dir);
    if file.state_in(dir)? != State::Missing {
        bail!("{} is there already and stays as it is; `weft check` says whether it is good", path.display());
    }
    file.create(dir)?;
    let shown = path.strip_prefix(".").unwrap_or(&path);
    println!("wrote {}", shown.display());
    for service in &guess.services {
        println!("  {}: {}", service.name, service.from);
    }
    if guess.services.is_empty() {
        println!(
            "Nothing was found here that weft knows how to run: put your program's command line into its `run`.\n\
             For a service to begin with: weft init --example python greeter (or go, node, java, rust)"
        );
        return Ok(());
    }
    for note in &guess.notes {
        println!("  note: {note}");
    }
    // What a first look cannot tell, such as a program that is not installed, is told now and not at the start.
    match MeshFile::load(shown, Programs::MayBeBuilt) {
        Ok(_) => println!("Next: see whether the commands in it are right, then `weft up`"),
        Err(problems) => println!("Still to be done, as `weft check` says:\n{problems}"),
    }
    Ok(())
}
