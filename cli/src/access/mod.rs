//! `weft access`: who may call what. It says what the rules of a mesh file decide and why, checks them against what is
//! expected, and suggests rules from calls that were seen.

mod expectations;
mod question;
mod suggest;

use std::{path::PathBuf, process::ExitCode};

use self::question::Rules;
use crate::{
    console::say,
    mesh_file::{MeshFile, Programs},
    terminal,
};

/// The flags of `weft access`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Say whether a service may call a method, a path or a service, and which rule decides
    Explain(Explain),
    /// Check the rules against a file of expectations, such as in CI
    Test(Test),
    /// Suggest rules from the calls that the sidecars of a running mesh have seen
    Suggest(suggest::Args),
}

#[derive(Debug, Clone, clap::Args)]
struct Explain {
    /// Who calls: NAME, NAME.NAMESPACE or a SPIFFE ID
    caller: String,
    /// What is called: PACKAGE.SERVICE/METHOD, the name of a service, or its name and a path, as web/admin/users
    called: String,
    /// The method of HTTP, for paths
    #[arg(long, default_value = "GET", value_name = "METHOD")]
    http_method: String,
    /// The mesh file
    #[arg(long, short, default_value = "mesh.yaml", value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, Clone, clap::Args)]
struct Test {
    /// The file of expectations
    #[arg(value_name = "FILE")]
    expectations: PathBuf,
    /// The mesh file
    #[arg(long, short, default_value = "mesh.yaml", value_name = "FILE")]
    file: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// The mesh file, the expectations or the question are wrong.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Explain(args) => explain(&args),
        Command::Test(args) => test(&args),
        Command::Suggest(args) => suggest::run(&args),
    }
}

fn explain(args: &Explain) -> anyhow::Result<ExitCode> {
    let mesh = MeshFile::load(&args.file, Programs::MayBeBuilt)?;
    let rules = Rules::new(&mesh);
    let caller = rules.caller(&args.caller)?;
    let called = rules.called(&args.called, &args.http_method)?;
    for answer in rules.ask(&caller, &called) {
        for line in answer.explained() {
            say(terminal::line(&line))?;
        }
    }
    if let Some(hint) = rules.unknown_caller(&caller) {
        say(terminal::line(&hint))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn test(args: &Test) -> anyhow::Result<ExitCode> {
    let mesh = MeshFile::load(&args.file, Programs::MayBeBuilt)?;
    let (checked, broken) = expectations::check(&Rules::new(&mesh), &args.expectations)?;
    for line in &broken {
        say(terminal::line(line))?;
    }
    let expectations = if checked == 1 { "expectation" } else { "expectations" };
    if broken.is_empty() {
        say(format_args!("{checked} {expectations}: all hold"))?;
        return Ok(ExitCode::SUCCESS);
    }
    say(format_args!("{checked} {expectations}: {} broken", broken.len()))?;
    Ok(ExitCode::FAILURE)
}

/// What `weft check` says of the rules of a mesh that is good otherwise: names that match nobody, and rules without effect.
pub(crate) fn remarks(mesh: &MeshFile) -> Vec<String> {
    Rules::new(mesh).remarks()
}
