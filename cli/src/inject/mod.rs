//! `weft inject`: adds the sidecar to the pods of a file, as the webhook of a cluster does.
//!
//! [`yaml`] reads and writes the documents, [`workload`] finds the pod of each.

mod workload;
mod yaml;

use std::{fs, io::Read, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use serde_json::Value;
use weft_control::kubernetes::inject::{Config, Decision};

use self::{
    workload::{Place, Workload},
    yaml::Document,
};
use crate::{
    console::{note, say},
    terminal,
};

const AFTER_HELP: &str = "\
Examples:
  weft inject -f k8s/users.yaml | kubectl apply -f -
  kubectl get deployment users -o yaml | weft inject -f -
  weft inject -f pod.yaml --patch

Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets, Jobs and CronJobs get the sidecar; all other objects stay as they
are, and so do pods with the label weft.dev/inject: disabled. Comments of the file are lost.";

/// The flags of `weft inject`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The file with Kubernetes objects, as YAML or JSON; `-` for standard input
    #[arg(long, short, value_name = "FILE")]
    file: PathBuf,
    /// The configuration of the injector, as in the ConfigMap `weft-injector` of a cluster: `inject.yaml`. Without it,
    /// everything in it has its default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print only what is added, as a JSON patch (RFC 6902): what the webhook would answer. The file must be one Pod
    #[arg(long)]
    patch: bool,
}

/// # Errors
/// The file can't be read, or a pod of it can't have a sidecar.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = match &args.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    let (name, text) = read(args)?;
    let input = Input { config: &config, file: &name };
    match args.patch {
        true => say(input.patch(&text)?)?,
        // The lines end already.
        false => say(input.inject(&text)?.trim_end_matches('\n'))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn read(args: &Args) -> anyhow::Result<(String, String)> {
    if args.file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input can't be read")?;
        return Ok(("standard input".to_owned(), text));
    }
    let name = args.file.display().to_string();
    let text = fs::read_to_string(&args.file).with_context(|| format!("{name} can't be read"))?;
    Ok((name, text))
}

/// How a file is injected.
struct Input<'a> {
    config: &'a Config,
    /// Its name in messages.
    file: &'a str,
}

impl Input<'_> {
    /// The whole file, with sidecars.
    fn inject(&self, text: &str) -> anyhow::Result<String> {
        let mut documents = yaml::read(self.file, text)?;
        for document in &mut documents {
            let at = self.at(document);
            for pod in pods(&at, document)? {
                let operations = self.decide(&at, &document.value, &pod)?;
                apply(&mut document.value, &pod.place, operations).with_context(|| at.clone())?;
            }
        }
        yaml::write(&documents)
    }

    /// The patch of the only pod, as JSON.
    fn patch(&self, text: &str) -> anyhow::Result<String> {
        let documents = yaml::read(self.file, text)?;
        let [document] = &documents[..] else {
            bail!("{}: found {} documents; allowed with --patch: one Pod", self.file, documents.len())
        };
        let at = self.at(document);
        match &pods(&at, document)?[..] {
            [pod] if pod.place.is_document() => {
                Ok(serde_json::to_string_pretty(&self.decide(&at, &document.value, pod)?)?)
            }
            _ => bail!("{at}: found no Pod; allowed with --patch: one Pod"),
        }
    }

    /// What is added to a pod.
    fn decide(&self, at: &str, document: &Value, pod: &Workload) -> anyhow::Result<Vec<Value>> {
        let decision = weft_control::kubernetes::inject::inject(self.config, &pod.namespace, pod.place.of(document));
        match decision.map_err(|error| anyhow::anyhow!("{at}: {}", error.below(&pod.place.prefix())))? {
            Decision::Patch(operations) => Ok(operations),
            Decision::Skip(reason) => {
                note(terminal::line(&format!("{at}: left as it is: {reason}")));
                Ok(Vec::new())
            }
        }
    }

    /// Where a document is, for messages.
    fn at(&self, document: &Document) -> String {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let kind = text(document.value.get("kind")).unwrap_or_else(|| "no kind".to_owned());
        let metadata = document.value.get("metadata");
        let field = |key| metadata.and_then(|metadata| text(metadata.get(key)));
        let name = field("name").or_else(|| field("generateName")).map_or_else(String::new, |name| format!(" {name}"));
        format!("{}:{}: document {} ({kind}{name})", self.file, document.line, document.number)
    }
}

fn pods(at: &str, document: &Document) -> anyhow::Result<Vec<Workload>> {
    workload::pods(&document.value).map_err(|error| anyhow::anyhow!("{at}: {error}"))
}

fn apply(document: &mut Value, place: &Place, operations: Vec<Value>) -> anyhow::Result<()> {
    let patch: json_patch::Patch = serde_json::from_value(Value::Array(operations))?;
    Ok(json_patch::patch(place.of_mut(document), &patch)?)
}

#[cfg(test)]
mod tests;
