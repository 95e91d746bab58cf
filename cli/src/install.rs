//! `weft install`, `weft upgrade` and `weft uninstall`: the manifests of the control plane on Kubernetes. They print, and
//! change no cluster. The last two look at one first.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use weft_control::kubernetes::{
    install::{self, Values},
    names::LABEL_INJECT,
};

use crate::{
    cluster::{self, Installed, Reach},
    console::{note, say},
    project_file, terminal,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The most pods that are named.
const SHOWN: usize = 10;

const AFTER_HELP: &str = "\
Examples:
  weft install | kubectl apply -f -
  weft install --values weft.yaml | kubectl apply --server-side -f -
  weft install --crds | kubectl apply --server-side -f -
  weft install --set trust_domain=prod.example --set sidecar.image=registry.example/weft/sidecar:0.1.0

The keys are in docs/kubernetes.md. Equal values give equal manifests, and no secret is in them. To change a setting, apply
the new ones over the old ones.";

/// The flags of `weft install`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    chosen: Chosen,
    /// Print only the definitions of the custom resources, which `weft install` prints first
    #[arg(long, conflicts_with_all = ["values", "set", "ha"])]
    crds: bool,
}

/// What can be chosen.
#[derive(Debug, Clone, clap::Args)]
struct Chosen {
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

const AFTER_UPGRADE: &str = "\
Examples:
  weft upgrade --values weft.yaml | kubectl apply --server-side -f -

It prints what `weft install` prints, if an upgrade to it is possible: the installed version is this one or the one before, and
the trust domain stays. Give it the values of the installation; standard error says what sidecars get from now on that they
did not get before. Then restart the pods with a sidecar: `weft cluster check` lists those with an old one.";

/// The flags of `weft upgrade`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_UPGRADE)]
pub(crate) struct UpgradeArgs {
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    reach: Reach,
}

const AFTER_UNINSTALL: &str = "\
Examples:
  weft uninstall | kubectl delete --ignore-not-found -f -

It prints nothing, and its exit status is 1, if pods of the cluster have a sidecar. Such pods keep it and go on, but its
certificate is not renewed: take the label weft.dev/inject away and restart them first. If the cluster can't be reached, it
prints all the same and says so on standard error. The CA goes with the namespace, so an installation after this one is a new
mesh.";

/// The flags of `weft uninstall`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_UNINSTALL)]
pub(crate) struct UninstallArgs {
    /// Look at no cluster, and print even if pods have a sidecar
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    reach: Reach,
}

/// Prints the manifests.
///
/// # Errors
/// A file can't be read, or a value is not allowed.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.crds {
        say(install::crds().trim_end())?;
    } else {
        say(install::manifests(&args.chosen.read()?).trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Chosen {
    fn read(&self) -> anyhow::Result<Values> {
        let mut files = Vec::with_capacity(self.values.len() + 1);
        if self.ha {
            files.push(("--ha".to_owned(), Values::HIGHLY_AVAILABLE.to_owned()));
        }
        for path in &self.values {
            let file = path.display().to_string();
            let text = project_file::read_text(path).with_context(|| format!("{file} can't be read"))?;
            files.push((file, text));
        }
        Ok(Values::read(&files, &self.set)?)
    }
}

/// Prints the manifests, if the installed mesh can be upgraded to them.
///
/// # Errors
/// As for [`run`], or it can't be upgraded, or the cluster can't be looked at.
pub(crate) fn upgrade(args: &UpgradeArgs) -> anyhow::Result<ExitCode> {
    let values = args.chosen.read()?;
    let installed = cluster::installed(&args.reach)
        .context("the installed mesh can't be looked at; `weft install` prints the same without that")?;
    check_upgrade(&installed, VERSION, values.trust_domain())?;
    for line in changes(&installed.inject, &values.inject_yaml()) {
        note(terminal::line(&format!("weft: inject.yaml: {line}")));
    }
    say(install::manifests(&values).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// The installed mesh can't be upgraded to this version and trust domain.
fn check_upgrade(installed: &Installed, version: &str, trust_domain: &str) -> anyhow::Result<()> {
    let Installed { version: found, trust_domain: old, .. } = installed;
    let parts = |text: &str| {
        let mut numbers = text.split(['.', '-', '+']).map(|part| part.parse::<u32>().ok());
        Some((numbers.next()??, numbers.next()??, numbers.next()??))
    };
    let Some((from, to)) = parts(found).zip(parts(version)) else {
        bail!("the installed version is `{found}`, which is no version of Weft");
    };
    if from > to {
        bail!("the installed version {found} is newer than this `weft`, which is {version}: use one that is as new");
    }
    if from.0 != to.0 || to.1 - from.1 > 1 {
        bail!(
            "the installed version is {found}, and {version} works with sidecars of its own and of the version before \
             only: upgrade to each version between them first"
        );
    }
    if old != trust_domain {
        bail!(
            "trust_domain: found {trust_domain}; allowed: {old}, that of the installed mesh. It can't be changed, as all \
             identities are in it: give the values of the installation (--values, --set)"
        );
    }
    Ok(())
}

/// The lines that differ.
fn changes(old: &str, new: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let gone = old.iter().filter(|line| !new.contains(line)).map(|line| format!("- {line}"));
    gone.chain(new.iter().filter(|line| !old.contains(line)).map(|line| format!("+ {line}"))).collect()
}

/// Prints what names the objects, the webhook first. If pods have a sidecar, it says so and prints nothing.
///
/// # Errors
/// It can't be printed.
pub(crate) fn uninstall(args: &UninstallArgs) -> anyhow::Result<ExitCode> {
    if !args.force {
        match cluster::pods_with_sidecar(&args.reach) {
            Ok(pods) if pods.is_empty() => {}
            Ok(pods) => {
                for pod in pods.iter().take(SHOWN) {
                    note(terminal::line(pod));
                }
                if pods.len() > SHOWN {
                    note(format_args!("and {} more", pods.len() - SHOWN));
                }
                bail!(
                    "these pods have a sidecar, whose certificate would not be renewed: take the label {LABEL_INJECT} from \
                     their namespaces and from them, and restart them; or use --force"
                );
            }
            Err(error) => note(terminal::line(&format!(
                "weft: the cluster can't be looked at, so nobody knows whether pods still have a sidecar: {error:#}"
            ))),
        }
    }
    say(install::removal().trim_end())?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_goes_one_version_ahead_in_the_same_trust_domain() {
        let from = |version: &str, to: &str| {
            let installed =
                Installed { version: version.to_owned(), trust_domain: "weft.local".to_owned(), inject: String::new() };
            check_upgrade(&installed, to, "weft.local").map_err(|error| error.to_string())
        };
        for (version, to) in [("0.1.0", "0.1.0"), ("0.1.0", "0.1.7"), ("0.1.3", "0.2.0"), ("0.2.0-rc.1", "0.2.0")] {
            assert_eq!(from(version, to), Ok(()), "{version} {to}");
        }
        for (version, to, said) in [
            ("0.2.0", "0.1.9", "newer"),
            ("0.1.1", "0.1.0", "newer"),
            ("0.1.0", "0.3.0", "each version between"),
            ("0.9.0", "1.0.0", "each version between"),
            ("latest", "0.1.0", "no version"),
        ] {
            assert!(from(version, to).is_err_and(|error| error.contains(said)), "{version} {to}");
        }
        let installed =
            Installed { version: "0.1.0".to_owned(), trust_domain: "prod.example".to_owned(), inject: String::new() };
        let error = check_upgrade(&installed, "0.1.0", "weft.local").unwrap_err().to_string();
        assert!(error.starts_with("trust_domain: found weft.local; allowed: prod.example"), "{error}");
    }

    #[test]
    fn lines_that_differ_are_said() {
        assert_eq!(changes("a: 1\nb: 2\n", "a: 1\nb: 3\n"), ["- b: 2", "+ b: 3"]);
        assert!(changes("a: 1\n", "a: 1").is_empty());
    }
}
