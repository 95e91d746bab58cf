//! `weft contracts push`: writes a service's contracts into a ConfigMap, from which the sidecars of its pods read them.
//!
//! - `input`: the descriptor set, from `.proto` files or from one that is compiled already.
//! - `config_map`: the object, and how large it may be.

mod config_map;
mod input;

use std::{env, path::Path, process::ExitCode};

use anyhow::Context as _;
use clap::Subcommand;
use weft_control::kubernetes::names::{DESCRIPTORS, OBJECT_NAMES, annotation, is_object_name};
use weft_mesh::names::is_label;

use self::input::Input;
use crate::{
    cluster::{self, Reach},
    console::say,
};

/// The flags of `weft contracts`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Write a service's contracts into a ConfigMap, for pods whose application has no server reflection
    Push(PushArgs),
}

const AFTER_HELP: &str = "\
Examples:
  weft contracts push users-contracts -n shop proto/shop/users/v1/users.proto
  weft contracts push users-contracts users.binpb
  weft contracts push users-contracts -n shop --print proto/users.proto > k8s/users-contracts.yaml

Pods take it with the annotation weft.dev/contracts: users-contracts. The files are checked as `weft check` does it. Pods that
run follow a change within about a minute.";

/// The flags of `weft contracts push`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_HELP)]
struct PushArgs {
    /// The ConfigMap
    #[arg(value_name = "NAME", value_parser = object_name)]
    name: String,
    /// The .proto files that define what the service implements; or one compiled google.protobuf.FileDescriptorSet with all
    /// its imports
    #[arg(value_name = "FILE", required = true)]
    files: Vec<String>,
    /// The namespace of the ConfigMap and of the pods [default: that of the kubeconfig's context]
    #[arg(long, short, value_name = "NAMESPACE", value_parser = namespace)]
    namespace: Option<String>,
    /// A folder in which .proto files and their imports are looked up; may be given several times [default: the folder
    /// `proto` if there is one, else the current folder]
    #[arg(long, short = 'I', value_name = "DIR")]
    proto_path: Vec<String>,
    /// The contracts that the service implements [default: all that the .proto files define; all in a compiled set but for
    /// google.*, grpc.* and weft.*]
    #[arg(long, value_name = "CONTRACT", value_delimiter = ',')]
    contracts: Vec<String>,
    /// Print the ConfigMap as YAML and call no cluster
    #[arg(long, conflicts_with_all = ["force", "context"])]
    print: bool,
    /// Also write if another program has written the ConfigMap, such as kubectl
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    reach: Reach,
}

fn object_name(text: &str) -> Result<String, String> {
    if is_object_name(text) { Ok(text.to_owned()) } else { Err(format!("allowed: {OBJECT_NAMES}")) }
}

fn namespace(text: &str) -> Result<String, String> {
    let allowed = "allowed: 1 to 63 of a-z, 0-9 and -, no - at either end";
    if is_label(text) { Ok(text.to_owned()) } else { Err(allowed.to_owned()) }
}

/// # Errors
/// The files can't be used, or the ConfigMap can't be written.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Push(args) => push(args, &env::current_dir().context("the current folder can't be found")?),
    }
}

fn push(args: &PushArgs, folder: &Path) -> anyhow::Result<ExitCode> {
    let input = Input::read(folder, &args.files, &args.proto_path, &args.contracts)?;
    let object = config_map::object(&args.name, args.namespace.as_deref(), &input)?;
    if args.print {
        say(config_map::yaml(&object).trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let namespace = cluster::apply_config_map(&args.reach, object, args.force)?;
    let (name, count) = (&args.name, input.contracts.len());
    say(format_args!(
        "wrote {} contract{} into the ConfigMap {namespace}/{name}: {} bytes of {DESCRIPTORS}. Pods take it with the \
         annotation {}: {name}",
        count,
        if count == 1 { "" } else { "s" },
        input.descriptor_set.len(),
        annotation::CONTRACTS
    ))?;
    Ok(ExitCode::SUCCESS)
}
