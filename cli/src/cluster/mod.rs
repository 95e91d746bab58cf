//! `weft cluster`: looks at Weft on a Kubernetes cluster, through the API server. It changes nothing there. Only `weft contracts
//! push` writes.
//!
//! - `api`: the API server, with limits for each answer; `objects`: what is read of its objects.
//! - `control_plane`: what the control plane knows, through the API server's proxy of Services.
//! - `pods`: the pods with their sidecars.
//! - `finding`: what is found, and how it is printed; `check` and `status`: the commands.
//! - `before`: what `weft uninstall` and `weft upgrade` look at first; `write`: what `weft contracts push` writes.

#[cfg(feature = "kubernetes")]
mod api;
#[cfg(feature = "kubernetes")]
mod before;
#[cfg(feature = "kubernetes")]
mod check;
#[cfg(feature = "kubernetes")]
mod control_plane;
#[cfg(feature = "kubernetes")]
mod date;
#[cfg(feature = "kubernetes")]
mod finding;
#[cfg(feature = "kubernetes")]
mod objects;
#[cfg(feature = "kubernetes")]
mod pods;
#[cfg(feature = "kubernetes")]
mod status;
#[cfg(all(test, feature = "kubernetes"))]
mod tests;
#[cfg(feature = "kubernetes")]
mod write;

use std::{process::ExitCode, time::Duration};

use clap::Subcommand;

#[cfg(not(feature = "kubernetes"))]
const WITHOUT: &str = "this weft was built without support for clusters: build it with the cargo feature `kubernetes` \
                       (cargo install --locked --path cli --features kubernetes)";

/// The flags of `weft cluster`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Check Weft on a cluster, before and after the installation: versions, rights, certificates, pods, contracts
    Check(CheckArgs),
    /// List the sidecars of a cluster: their version, whether they are connected and in sync, and their endpoints
    Status(StatusArgs),
}

/// How a cluster is reached.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Reach {
    /// The context of the kubeconfig [default: its current one; in a pod without a kubeconfig, the pod's service account]
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// How long an answer of the API server may take: 300ms, 2s, 1m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = crate::call::parse_duration)]
    pub(crate) timeout: Duration,
}

const AFTER_CHECK: &str = "\
Each finding says what to do. The exit status is 1 if one of them is an error. KUBECONFIG says which cluster; nothing is
changed there.";

#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_CHECK)]
struct CheckArgs {
    #[command(flatten)]
    reach: Reach,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, clap::Args)]
struct StatusArgs {
    #[command(flatten)]
    reach: Reach,
    /// Only pods of this namespace
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

/// # Errors
/// The cluster can't be reached, or this program has no support for clusters.
#[cfg(not(feature = "kubernetes"))]
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Check(CheckArgs { reach, json: _ }) | Command::Status(StatusArgs { reach, namespace: _, json: _ }) => {
            without(reach)
        }
    }
}

/// # Errors
/// The list can't be read, or the result can't be printed. What `check` can't read is a finding.
#[cfg(feature = "kubernetes")]
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Check(CheckArgs { reach, json }) => {
            let findings = ask(reach, check::run)?;
            findings.print(*json)?;
            Ok(if findings.has_errors() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Command::Status(StatusArgs { reach, namespace, json }) => {
            let namespace = namespace.clone();
            let table = ask(reach, async |api| status::read(&api?, namespace.as_deref()).await)??;
            table.print(*json)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What is installed on a cluster.
#[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "nothing can be looked at"))]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Installed {
    /// By the label of the control plane's Deployment.
    pub(crate) version: String,
    pub(crate) trust_domain: String,
    /// The text of `inject.yaml`.
    pub(crate) inject: String,
}

/// The pods that have a sidecar, as NAMESPACE/NAME.
///
/// # Errors
/// The cluster can't be looked at.
pub(crate) fn pods_with_sidecar(reach: &Reach) -> anyhow::Result<Vec<String>> {
    #[cfg(feature = "kubernetes")]
    return ask(reach, async |api| before::pods_with_sidecar(&api?).await)?;
    #[cfg(not(feature = "kubernetes"))]
    without(reach)
}

/// What is installed.
///
/// # Errors
/// The cluster can't be looked at, or Weft is not installed on it.
pub(crate) fn installed(reach: &Reach) -> anyhow::Result<Installed> {
    #[cfg(feature = "kubernetes")]
    return ask(reach, async |api| before::installed(&api?).await)?;
    #[cfg(not(feature = "kubernetes"))]
    without(reach)
}

/// Writes a ConfigMap by server-side apply, into the namespace of the kubeconfig's context if it names none. Returns the
/// namespace.
///
/// # Errors
/// It can't be written.
pub(crate) fn apply_config_map(reach: &Reach, object: serde_json::Value, is_forced: bool) -> anyhow::Result<String> {
    #[cfg(feature = "kubernetes")]
    return ask(reach, async |api| write::config_map(&api?, object, is_forced).await)?;
    #[cfg(not(feature = "kubernetes"))]
    {
        let _ = (object, is_forced);
        without(reach)
    }
}

#[cfg(not(feature = "kubernetes"))]
fn without<T>(Reach { context: _, timeout: _ }: &Reach) -> anyhow::Result<T> {
    anyhow::bail!(WITHOUT)
}

/// Asks a cluster, on a runtime of its own. What is still running after that, such as a program of the kubeconfig that
/// hangs, is left behind.
#[cfg(feature = "kubernetes")]
fn ask<T>(reach: &Reach, questions: impl AsyncFnOnce(anyhow::Result<api::Api>) -> T) -> anyhow::Result<T> {
    weft_mesh::tls::install_crypto_provider();
    // Of two workers one can wait for a program of the kubeconfig while the other keeps the time.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let answer = runtime.block_on(async { questions(api::Api::connect(reach).await).await });
    runtime.shutdown_background();
    Ok(answer)
}
