//! `weft install` and `weft uninstall`: the manifests of the control plane on Kubernetes. They print, and call no cluster.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use weft_control::kubernetes::install::{self, Values};

use crate::{console::say, project_file};

const AFTER_HELP: &str = "\
Examples:
  weft install | kubectl apply -f -
  weft install --values weft.yaml | kubectl apply --server-side -f -
  weft install --set trust_domain=prod.example --set sidecar.image=registry.example/weft/sidecar:0.1.0

The keys are in docs/kubernetes.md. Equal values give equal manifests, and no secret is in them. To change a setting, apply
the new ones over the old ones.";

/// The flags of `weft install`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// A YAML file of values; may be given several times, and a later one wins
    #[arg(long, short = 'f', value_name = "FILE")]
    values: Vec<PathBuf>,
    /// One value, which wins over those in files: sidecar.cpu_limit=500m; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// With a second control plane that stands by: control.replicas=2, unless a file or --set says otherwise
    #[arg(long)]
    ha: bool,
}

const AFTER_UNINSTALL: &str = "\
Examples:
  kubectl get pods -A -o jsonpath='{range .items[?(@.metadata.annotations.weft\\.dev/injected)]}{.metadata.namespace}/{.metadata.name}{\"\\n\"}{end}'
  weft uninstall | kubectl delete --ignore-not-found -f -

It calls no cluster, so it can't see which pods still have a sidecar; the first line lists them. Such pods keep their
sidecar and go on, but its certificate is not renewed: take the label weft.dev/inject away and restart them first. The CA
goes with the namespace, so an installation after this one is a new mesh.";

/// The flags of `weft uninstall`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_UNINSTALL)]
pub(crate) struct UninstallArgs {}

/// Prints the manifests.
///
/// # Errors
/// A file can't be read, or a value is not allowed.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut files = Vec::with_capacity(args.values.len() + 1);
    if args.ha {
        files.push(("--ha".to_owned(), Values::HIGHLY_AVAILABLE.to_owned()));
    }
    for path in &args.values {
        let file = path.display().to_string();
        let text = project_file::read_text(path).with_context(|| format!("{file} can't be read"))?;
        files.push((file, text));
    }
    let values = Values::read(&files, &args.set)?;
    say(install::manifests(&values).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Prints what names the objects, the webhook first.
///
/// # Errors
/// It can't be printed.
pub(crate) fn uninstall(_: &UninstallArgs) -> anyhow::Result<ExitCode> {
    say(install::removal().trim_end())?;
    Ok(ExitCode::SUCCESS)
}
