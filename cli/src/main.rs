//! `weft`: the command line of the mesh, with the sidecar and the control plane in the same program.

// They panic if nobody reads any more: `console` has what is used instead.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod access;
mod call;
mod cluster;
mod console;
mod contracts;
mod down;
mod init;
mod inject;
mod install;
mod mesh_file;
mod new_files;
mod project_file;
mod proto;
mod redirect;
mod restart;
mod terminal;
mod up;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use mesh_file::{MeshFile, Programs};

/// A gRPC service mesh: services defined in .proto files, mutual TLS between them, traces of their calls
#[derive(Parser)]
#[command(name = "weft", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a mesh.yaml for the programs in this folder, or a small example service
    Init(init::Args),
    /// Run the mesh of a mesh.yaml on this machine: the control plane, the services, and a sidecar beside each
    Up(up::Args),
    /// Stop everything that `weft up` started, even if `weft up` itself was killed
    Down(down::Args),
    /// Restart a service of the running mesh, one replica at a time, or replace its sidecars while they run
    Restart(restart::Args),
    /// Call a method of a service with a JSON request, or list the methods that can be called
    Call(call::Args),
    /// Check a mesh.yaml, its programs, its .proto files and their options, without starting anything
    Check(CheckArgs),
    /// Say who may call what and why, check that, or suggest rules from calls that were seen
    Access(access::Args),
    /// Add the sidecar to the Kubernetes pods of a file, as the webhook of a cluster does
    Inject(inject::Args),
    /// Export Weft's own .proto files, for protoc, buf and editors
    Proto(proto::Args),
    /// Run the control plane: identities, discovery, contracts, dashboard
    #[command(args_conflicts_with_subcommands = true)]
    Control(Box<ControlArgs>),
    /// Show or release the contracts and addresses that are pinned to identities
    Identity(IdentityArgs),
    /// Redirect this host's connections through its sidecar, with packet filter rules; the programs need no change
    Redirect(Box<redirect::Args>),
    /// Print the manifests that put the control plane on a Kubernetes cluster, for `kubectl apply -f -`
    Install(install::Args),
    /// Print the manifests again, if the installed mesh can be upgraded to them
    Upgrade(install::UpgradeArgs),
    /// Print what takes the control plane off a Kubernetes cluster again, for `kubectl delete -f -`
    Uninstall(install::UninstallArgs),
    /// Put a service's contracts onto a Kubernetes cluster
    Contracts(contracts::Args),
    /// Look at Weft on a Kubernetes cluster: check it, or list its sidecars
    Cluster(cluster::Args),
    /// Run a sidecar, the proxy beside a service
    Sidecar(weft_sidecar::Command),
}

#[derive(clap::Args)]
struct ControlArgs {
    #[command(subcommand)]
    command: Option<ControlCommand>,
    #[command(flatten)]
    args: weft_control::Args,
}

#[derive(Subcommand)]
enum ControlCommand {
    /// Print a join token, with which a sidecar gets its first identity
    Token(weft_control::TokenArgs),
    /// Release a contract or an address that is pinned to an identity, so that another identity can claim it
    Release(weft_control::ReleaseArgs),
    /// Show what is pinned to which identity, and what is contested
    Claims(weft_control::StateArgs),
}

#[derive(clap::Args)]
struct IdentityArgs {
    #[command(subcommand)]
    command: IdentityCommand,
}

#[derive(Subcommand)]
enum IdentityCommand {
    /// Release a contract or an address that is pinned to an identity, so that another identity can claim it
    Release(weft_control::ReleaseArgs),
    /// Show what is pinned to which identity, and what is contested
    List(weft_control::StateArgs),
}

#[derive(clap::Args)]
struct CheckArgs {
    /// The mesh file
    #[arg(long, short, default_value = "mesh.yaml", value_name = "FILE")]
    file: PathBuf,
    /// If all is good, also write the contracts of each service into this folder, as SERVICE.binpb: what `weft sidecar
    /// --descriptors` needs
    #[arg(long, value_name = "DIR")]
    descriptors: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            weft_mesh::telemetry::say_last(&error_text(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Init(args) => init::run(&args),
        Command::Up(args) => up::run(args),
        Command::Down(args) => down::run(&args),
        Command::Restart(args) => restart::run(&args),
        Command::Call(args) => call::run(args),
        Command::Check(args) => check(&args),
        Command::Access(args) => access::run(args),
        Command::Inject(args) => inject::run(&args),
        Command::Proto(args) => proto::run(&args),
        Command::Control(args) => match *args {
            ControlArgs { command: Some(ControlCommand::Token(args)), .. } => {
                console::say(weft_control::token(&args)?)?;
                Ok(ExitCode::SUCCESS)
            }
            ControlArgs { command: Some(ControlCommand::Release(args)), .. } => release(&args),
            ControlArgs { command: Some(ControlCommand::Claims(args)), .. } => list_claims(&args),
            ControlArgs { command: None, args } => weft_control::run(args).map(|()| ExitCode::SUCCESS),
        },
        Command::Identity(IdentityArgs { command: IdentityCommand::Release(args) }) => release(&args),
        Command::Identity(IdentityArgs { command: IdentityCommand::List(args) }) => list_claims(&args),
        Command::Redirect(args) => redirect::run(&args),
        Command::Install(args) => install::run(&args),
        Command::Upgrade(args) => install::upgrade(&args),
        Command::Uninstall(args) => install::uninstall(&args),
        Command::Contracts(args) => contracts::run(&args),
        Command::Cluster(args) => cluster::run(&args),
        Command::Sidecar(args) => weft_sidecar::run(args).map(|()| ExitCode::SUCCESS),
    }
}

/// Problems in a file start with their place in it; any other error starts with the program's name. An error may contain
/// what a file, a service or another program says.
fn error_text(error: &anyhow::Error) -> String {
    terminal::lines(&match error.downcast_ref::<mesh_file::Problems>() {
        Some(problems) => problems.to_string(),
        None => format!("weft: {error:#}"),
    })
}

fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let mesh = MeshFile::load(&args.file, Programs::MayBeBuilt)?;
    let contracts = mesh.services.iter().filter_map(|service| service.contracts.as_ref());
    let contracts = contracts.map(|contracts| contracts.implements.len()).sum();
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    console::say(format_args!(
        "{}: good; {}, {}",
        mesh.path.display(),
        count(mesh.services.len(), "service"),
        count(contracts, "contract")
    ))?;
    for (contract, services) in mesh.shared_contracts() {
        let names: Vec<&str> = services.iter().map(|service| service.name()).collect();
        let first = names[0];
        console::say(format_args!(
            "{contract}: implemented by {}; calls that name no service go to {first}, the first in the file",
            names.join(" and ")
        ))?;
    }
    for remark in access::remarks(&mesh) {
        console::say(terminal::line(&remark))?;
    }
    let state = weft_control::StateArgs {
        state_dir: mesh.state_dir().join("control"),
        trust_domain: mesh.trust_domain.clone(),
    };
    for contest in weft_control::contests_kept(&state)? {
        let contest = terminal::line(&contest);
        console::say(format_args!("{contest}; `weft identity release` releases it"))?;
    }
    if let Some(dir) = &args.descriptors {
        write_descriptors(&mesh, dir)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write_descriptors(mesh: &MeshFile, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("{} can't be made", dir.display()))?;
    for service in &mesh.services {
        let Some(contracts) = &service.contracts else { continue };
        let file = dir.join(format!("{}.binpb", service.name.name()));
        // As a whole: sidecars may watch it.
        let new = file.with_extension("binpb.new");
        fs::write(&new, &contracts.descriptor_set)
            .and_then(|()| fs::rename(&new, &file))
            .with_context(|| format!("{} can't be written", file.display()))?;
        console::say(format_args!("wrote {}", file.display()))?;
    }
    Ok(())
}

fn release(args: &weft_control::ReleaseArgs) -> anyhow::Result<ExitCode> {
    console::say(weft_control::release(args)?)?;
    Ok(ExitCode::SUCCESS)
}

fn list_claims(args: &weft_control::StateArgs) -> anyhow::Result<ExitCode> {
    for line in weft_control::claims_kept(args)?.lines() {
        console::say(terminal::line(line))?;
    }
    Ok(ExitCode::SUCCESS)
}
