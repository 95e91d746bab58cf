//! `weft proto`: Weft's own `.proto` files, for programs that do not have them built in.

use std::{path::PathBuf, process::ExitCode};

use anyhow::bail;
use clap::Subcommand;
use weft_contracts::sources::PUBLIC;

use crate::{
    console::say,
    new_files::{FileState, NewFile},
};

/// Makes the folder a buf module, unless it is one already.
const BUF: NewFile<'static> = NewFile { name: "buf.yaml", text: include_str!("../templates/buf.yaml") };

/// The flags of `weft proto`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Write Weft's own .proto files into a folder, for protoc, buf and editors; Weft itself needs no copy
    Export(ExportArgs),
}

const AFTER_HELP: &str = "\
Examples:
  weft proto export proto                  then: protoc --proto_path=proto ..., or: buf lint proto
  weft proto export --force proto          after an update of Weft

A buf.yaml is written beside them, unless there is one already.";

/// The flags of `weft proto export`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_HELP)]
struct ExportArgs {
    /// The folder; it is created if it does not exist
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Replace existing copies that have other contents
    #[arg(long)]
    force: bool,
}

/// # Errors
/// A file exists with other contents, or cannot be written.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Export(args) => export(args),
    }
}

fn export(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    let mut files = Vec::new();
    for source in PUBLIC {
        let file = NewFile { name: source.name, text: source.text };
        files.push((file.state_in(&args.dir)?, file));
    }
    let differing = files.iter().filter(|(state, _)| *state == FileState::Differs);
    let differing: Vec<String> = differing.map(|(_, file)| file.path(&args.dir).display().to_string()).collect();
    if !differing.is_empty() && !args.force {
        bail!(
            "{} {} already, with other contents; nothing was written (--force replaces what differs)",
            differing.join(", "),
            if differing.len() == 1 { "exists" } else { "exist" }
        );
    }
    let buf = BUF.state_in(&args.dir)?;
    for (state, file) in &files {
        match state {
            FileState::Missing => file.create(&args.dir)?,
            FileState::Same => {}
            FileState::Differs => file.replace(&args.dir)?,
        }
        let done = match state {
            FileState::Missing => "wrote",
            FileState::Same => "kept",
            FileState::Differs => "replaced",
        };
        say(format_args!("{done:8} {}", file.path(&args.dir).display()))?;
    }
    let path = BUF.path(&args.dir);
    match buf {
        FileState::Missing => {
            BUF.create(&args.dir)?;
            say(format_args!("wrote    {}", path.display()))?;
        }
        FileState::Same => say(format_args!("kept     {}", path.display()))?,
        // The user's own module: the files are now part of it.
        FileState::Differs => say(format_args!("left     {} as it is", path.display()))?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn export_to(dir: &Path, force: bool) -> Result<(), String> {
        export(&ExportArgs { dir: dir.to_owned(), force }).map(|_| ()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn every_file_is_written_with_a_buf_yaml_beside_them() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("third_party/proto");
        for _ in 0..2 {
            assert_eq!(export_to(&folder, false), Ok(()), "also if all files exist");
            for source in PUBLIC {
                assert_eq!(fs::read_to_string(folder.join(source.name)).unwrap(), source.text);
            }
            assert!(fs::read_to_string(folder.join("buf.yaml")).unwrap().contains("version: v2"));
        }
    }

    #[test]
    fn without_force_a_file_that_differs_stays_and_no_other_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let options = dir.path().join("weft/options/v1/options.proto");
        fs::create_dir_all(options.parent().unwrap()).unwrap();
        fs::write(&options, "// mine\n").unwrap();
        let told = export_to(dir.path(), false).unwrap_err();
        assert_eq!(
            told,
            format!(
                "{} exists already, with other contents; nothing was written (--force replaces what differs)",
                options.display()
            )
        );
        assert_eq!(fs::read_to_string(&options).unwrap(), "// mine\n");
        assert!(!dir.path().join("buf.yaml").exists() && !dir.path().join("weft/admin").exists());
        assert_eq!(export_to(dir.path(), true), Ok(()));
        assert_eq!(fs::read_to_string(&options).unwrap(), weft_contracts::sources::OPTIONS.text);
    }

    #[test]
    fn the_user_s_own_buf_yaml_stays_even_with_force() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("buf.yaml"), "version: v2\n").unwrap();
        assert_eq!(export_to(dir.path(), true), Ok(()));
        assert_eq!(fs::read_to_string(dir.path().join("buf.yaml")).unwrap(), "version: v2\n");
    }
}
