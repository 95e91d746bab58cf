//! `weft access suggest`: rules that allow exactly the calls that were seen, from the metrics of the sidecars.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use weft_mesh::{
    names::{ServiceName, is_method_name},
    policy::RESERVED_CALLERS,
};

use crate::{
    console::{note, say},
    mesh_file::{MeshFile, Programs, Protocol},
    terminal,
    up::run_file::Run,
};

/// How long a sidecar may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// The longest answer: 10,000 rows with all their lines.
const ANSWER_BYTES: usize = 64 << 20;

/// The flags of `weft access suggest`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// The metrics of a sidecar, as http://10.0.0.7:15020/metrics; can be repeated. Default: those of the mesh that `weft
    /// up` runs here
    #[arg(long, value_name = "URL")]
    metrics: Vec<String>,
}

/// Who was seen to call what: callers by service and method. The method is empty for what is in no contract.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen(BTreeMap<ServiceName, BTreeMap<String, BTreeSet<ServiceName>>>);

/// Asks the sidecars, and prints rules.
///
/// # Errors
/// No mesh runs here, or a sidecar does not answer.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (sidecars, without_contract) = match &args.metrics[..] {
        [] => of_this_mesh()?,
        given => (given.iter().map(|url| (url.clone(), None)).collect(), BTreeSet::new()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut seen = Seen::default();
    for (url, service) in &sidecars {
        let text = runtime.block_on(fetch(url)).with_context(|| format!("{url} does not answer"))?;
        seen.read(&text, service.clone()).with_context(|| format!("{url} can't be believed"))?;
    }
    if seen.0.is_empty() {
        note("No calls between services were seen. Let the mesh do for a while what it has to be allowed to do.");
    }
    for line in seen.rules(&without_contract) {
        say(terminal::line(&line))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The address of a sidecar's metrics, and its service if that is known.
type Sidecar = (String, Option<ServiceName>);

/// The sidecars of the mesh that runs here, and its services that speak no gRPC: rules for them are in the mesh file.
fn of_this_mesh() -> anyhow::Result<(Vec<Sidecar>, BTreeSet<ServiceName>)> {
    let run = Run::nearest(&env::current_dir()?, |error| note(terminal::line(&error.to_string())));
    let Some(run) = run else {
        bail!("no `weft up` runs for this folder or one above it; give the sidecars' addresses with --metrics")
    };
    let services = MeshFile::load(&run.mesh_file, Programs::MayBeBuilt)?.services;
    // Replicas are numbered: `users-1`.
    let service_of = |replica: &str| {
        let (name, _) = replica.rsplit_once('-')?;
        services.iter().find(|service| service.name.name() == name).map(|service| service.name.clone())
    };
    let replicas = run.replicas.iter().filter(|(_, ports)| ports.app != 0);
    let sidecars = replicas
        .map(|(replica, ports)| (format!("http://127.0.0.1:{}/metrics", ports.metrics), service_of(replica)))
        .collect();
    let without_contract = services.iter().filter(|service| service.protocol != Protocol::Grpc);
    Ok((sidecars, without_contract.map(|service| service.name.clone()).collect()))
}

async fn fetch(url: &str) -> anyhow::Result<String> {
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let asking = async {
        let answer = client.get(url.parse()?).await?;
        if !answer.status().is_success() {
            bail!("it answers {}", answer.status());
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        Ok(String::from_utf8(body.to_vec())?)
    };
    tokio::time::timeout(ANSWER_TIME, asking).await.context("it takes too long")?
}

impl Seen {
    /// Adds the calls in that the metrics of one sidecar count. Refused ones do not count, and neither do those of methods
    /// that the service does not have. `own` is the service, if it is known.
    ///
    /// # Errors
    /// They are of another service, or of several, though a sidecar has only one.
    fn read(&mut self, metrics: &str, mut own: Option<ServiceName>) -> anyhow::Result<()> {
        for line in metrics.lines() {
            let Some(labels) = line.strip_prefix("weft_calls_total{") else { continue };
            let Some((labels, count)) = labels.rsplit_once("} ") else { continue };
            let label = |name: &str| {
                let begin = labels.find(&format!("{name}=\""))? + name.len() + 2;
                Some(&labels[begin..begin + labels[begin..].find('"')?])
            };
            let is_seen = label("direction") == Some("inbound")
                && label("code").is_some_and(|code| !matches!(code, "PERMISSION_DENIED" | "UNIMPLEMENTED"))
                && count.parse::<f64>().is_ok_and(|count| count > 0.0);
            // Whatever answers may say anything.
            let names = [label("service"), label("peer")].map(|name| ServiceName::parse(name?).ok());
            let ([Some(service), Some(caller)], Some(method)) = (names, label("method")) else { continue };
            let method = if is_method_name(method) { method } else { "" };
            if is_seen {
                let own = own.get_or_insert_with(|| service.clone());
                if *own != service {
                    bail!("it is the sidecar of {own}, and counts calls in to {service}");
                }
                self.0.entry(service).or_default().entry(method.to_owned()).or_default().insert(caller);
            }
        }
        Ok(())
    }

    /// The rules that allow what was seen, as lines for contracts and for `mesh.yaml`. A rule for a whole service takes the
    /// place of all options of its contracts, so it is suggested only for these services.
    fn rules(&self, without_contract: &BTreeSet<ServiceName>) -> Vec<String> {
        let mut lines = Vec::new();
        for (service, methods) in &self.0 {
            let callers = |callers: &BTreeSet<ServiceName>| {
                let is_short = |caller: &ServiceName| {
                    caller.namespace() == service.namespace() && !RESERVED_CALLERS.contains(&caller.name())
                };
                let written = callers.iter().map(|caller| match is_short(caller) {
                    true => format!("\"{}\"", caller.name()),
                    false => format!("\"{caller}\""),
                });
                written.collect::<Vec<_>>().join(", ")
            };
            for (method, seen) in methods.iter().filter(|(method, _)| !method.is_empty()) {
                lines.push(format!("// {service}: rpc {method}"));
                lines
                    .push(format!("option (weft.options.v1.method) = {{ access: {{ allow: [{}] }} }};", callers(seen)));
            }
            let Some(seen) = methods.get("") else { continue };
            if without_contract.contains(service) {
                lines.push(format!("# {service}, in mesh.yaml"));
                lines.push(format!("services: {{ {}: {{ access: [{}] }} }}", service.name(), callers(seen)));
            } else {
                lines.push(format!(
                    "# {service}: {} called what is in no contract, such as a path or a health check; no rule is suggested for \
                     that",
                    callers(seen)
                ));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_allow_what_was_seen_and_nothing_else() {
        let row = |direction: &str, method: &str, peer: &str, code: &str, count: u32| {
            format!(
                "weft_calls_total{{direction=\"{direction}\",service=\"users.shop\",method=\"{method}\",peer=\"{peer}\",\
                 code=\"{code}\"}} {count}\n"
            )
        };
        let mut seen = Seen::default();
        seen.read(
            &[
                "# TYPE weft_calls counter\n".to_owned(),
                row("inbound", "shop.users.v1.Users/Get", "web.shop", "OK", 3),
                row("inbound", "shop.users.v1.Users/Get", "cron.jobs", "NOT_FOUND", 1),
                row("inbound", "shop.users.v1.Users/Get", "evil.shop", "PERMISSION_DENIED", 9),
                row("inbound", "shop.users.v1.Users/Create", "web.shop", "OK", 0),
                row("outbound", "shop.users.v1.Users/Create", "users.shop", "OK", 7),
                row("inbound", "_other", "probe.shop", "OK", 1),
                row("inbound", "x\u{1b}[2J/y", "probe.shop", "OK", 1),
                row("inbound", "shop.users.v1.Users/Get", "nobody\u{1b}", "OK", 1),
                row("inbound", "shop.users.v1.Users/Get", "any.shop", "OK", 1),
                row("inbound", "shop.users.v1.Users/Wrong", "evil.shop", "UNIMPLEMENTED", 1),
                "weft_calls_total{service= } x\nweft_calls_total{\n".to_owned(),
            ]
            .concat(),
            None,
        )
        .unwrap();
        let mut of_methods = vec![
            "// users.shop: rpc shop.users.v1.Users/Get",
            "option (weft.options.v1.method) = { access: { allow: [\"any.shop\", \"cron.jobs\", \"web\"] } };",
            "# users.shop: \"probe\" called what is in no contract, such as a path or a health check; no rule is suggested for that",
        ];
        assert_eq!(seen.rules(&BTreeSet::new()), of_methods);
        of_methods.pop();
        of_methods.extend(["# users.shop, in mesh.yaml", "services: { users: { access: [\"probe\"] } }"]);
        assert_eq!(seen.rules(&[ServiceName::parse("users.shop").unwrap()].into()), of_methods);
        let two = row("inbound", "a.B/C", "web.shop", "OK", 1)
            + &row("inbound", "a.B/C", "web.shop", "OK", 1).replace("users.", "pay.");
        let why = "it is the sidecar of users.shop, and counts calls in to pay.shop";
        assert_eq!(seen.read(&two, None).unwrap_err().to_string(), why);
        let of_users = row("inbound", "a.B/C", "evil.shop", "OK", 1);
        let of_pay = Some(ServiceName::parse("pay.shop").unwrap());
        assert!(seen.read(&of_users, of_pay).is_err(), "its sidecar says that it is another's");
    }
}
