//! Runs a case: its server in a mesh, and its loads directly and through the sidecars.

use std::{env, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};
use weft_tests::Bed;

use crate::{
    cases::Case,
    outcome::Outcome,
    server::{Protocol, Server},
    table::Row,
    tool::{Load, Target},
};

/// How much longer than `seconds` a load may take before it counts as hanging.
const GUARD: Duration = Duration::from_secs(120);

/// How long a load runs by default.
pub(crate) const SECONDS: u64 = 2;

/// The seconds in `WEFT_HONEST_SECONDS`, if it is set.
pub(crate) fn asked_seconds() -> Option<u64> {
    env::var("WEFT_HONEST_SECONDS").ok().map(|text| text.parse().expect("WEFT_HONEST_SECONDS is a number"))
}

/// Keeps a server and its mesh for the next case with the same server, unless a case has failed there.
#[derive(Default)]
pub(crate) struct Runner {
    kept: Option<(String, Bed)>,
}

impl Runner {
    /// Runs the loads through the mesh and directly. Without `WEFT_HONEST_SECONDS`, the direct run is left out if
    /// nothing fails through the mesh.
    pub(crate) async fn run(&mut self, case: &Case) -> Row {
        let asked = asked_seconds();
        let seconds = asked.unwrap_or(SECONDS);
        let server = &case.server;
        let bed = match self.kept.take() {
            Some((name, bed)) if name == server.name => bed,
            // The previous mesh ends first.
            kept => {
                drop(kept);
                start(server).await
            }
        };
        let app = bed.ports(&format!("{}-1", server.name)).app;
        let through = if server.protocol == Protocol::Tcp { bed.forward(&server.name) } else { bed.outbound() };
        let row = rows(case, app, through, seconds, asked.is_some()).await;
        eprintln!("{}", row.line());
        if !row.is_worse() {
            self.kept = Some((server.name.clone(), bed));
        }
        row
    }
}

/// Runs a case through the mesh and directly, as often as it takes to be sure.
async fn rows(case: &Case, app: u16, through: u16, seconds: u64, is_long: bool) -> Row {
    for tries in 1.. {
        let mut direct = None;
        if is_long {
            direct = Some(loads(case, app, seconds).await);
        }
        let mesh = loads(case, through, seconds).await;
        if direct.is_none() && mesh.failed_calls() > 0 {
            direct = Some(loads(case, app, seconds).await);
        }
        let row = Row::new(case, direct, mesh);
        if row.is_sure(tries) {
            return row;
        }
    }
    unreachable!("the last try is sure")
}

/// A mesh of this one server.
async fn start(server: &Server) -> Bed {
    // Sampled like a mesh under load, not like a developer's mesh.
    Bed::start(&format!("{}traces: {{ sample: 0.01 }}\n", server.yaml())).await
}

/// On a busy machine, a server may answer nothing in a short run. Then the load runs again for this many seconds.
const PATIENCE: u64 = 30;

/// The outcome of a case's loads.
async fn loads(case: &Case, port: u16, seconds: u64) -> Outcome {
    let outcome = at_once(case, port, seconds).await;
    if outcome.calls == 0 { at_once(case, port, seconds.max(PATIENCE)).await } else { outcome }
}

/// All loads of a case at once.
async fn at_once(case: &Case, port: u16, seconds: u64) -> Outcome {
    let target = Target { port, service: &case.server.name, seconds };
    let running = case.loads.iter().map(|load| one(load, load.command(&target), seconds));
    futures_util::future::join_all(running).await.into_iter().fold(Outcome::default(), Outcome::and)
}

async fn one(load: &Load, command: std::process::Command, seconds: u64) -> Outcome {
    let mut command = Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    match timeout(GUARD + Duration::from_secs(seconds), command.output()).await {
        Err(_) => Outcome::failed(format!("it hangs: {:?}", command.as_std())),
        Ok(output) => {
            let output = output.unwrap_or_else(|e| panic!("{:?}: {e}", command.as_std()));
            load.tool.outcome(&output).without(load.asks_for)
        }
    }
}
