//! Runs a case: its server in a mesh, its loads directly, then through the sidecars.

use std::{env, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};
use weft_tests::Bed;

use crate::{
    cases::{Case, KNOWN},
    outcome::Outcome,
    server::{Protocol, Server},
    table::Row,
    tool::Target,
};

/// For how much longer than it was told to run a load may take, before it counts as hanging.
const GUARD: Duration = Duration::from_secs(120);

/// For how long the load of a case goes on.
pub(crate) fn seconds() -> u64 {
    let text = env::var("WEFT_HONEST_SECONDS").unwrap_or_else(|_| "2".to_owned());
    text.parse().unwrap_or_else(|_| panic!("WEFT_HONEST_SECONDS={text} is not a number"))
}

/// Keeps a server and its mesh for the next case of the same server, as long as nothing has failed there.
#[derive(Default)]
pub(crate) struct Runner {
    kept: Option<(&'static str, Bed)>,
}

impl Runner {
    pub(crate) async fn run(&mut self, case: &'static Case) -> Row {
        eprintln!("{} ...", case.name);
        let bed = match self.kept.take() {
            Some((name, bed)) if name == case.server.name => bed,
            _ => start(case.server).await,
        };
        let replica = format!("{}-1", case.server.name);
        let through = match case.server.protocol {
            Protocol::Tcp => bed.forward(case.server.name),
            _ => bed.outbound(),
        };
        let direct = loads(case, bed.ports(&replica).app).await;
        let mesh = loads(case, through).await;
        let row =
            Row { case, direct, mesh, known: KNOWN.iter().find(|known| known.0 == case.name).map(|known| known.1) };
        eprintln!("{}", row.line());
        if !row.is_worse() {
            self.kept = Some((case.server.name, bed));
        }
        row
    }
}

/// A mesh of this one server, in which the way to it is known.
async fn start(server: &Server) -> Bed {
    Bed::start(&server.yaml()).await
}

/// All loads of a case at once.
async fn loads(case: &Case, port: u16) -> Outcome {
    let target = Target { port, service: case.server.name, seconds: seconds() };
    let running: Vec<_> = case
        .loads
        .iter()
        .map(|load| {
            let mut command = Command::from(load.command(&target));
            command.stdin(Stdio::null()).kill_on_drop(true);
            async move {
                let limit = GUARD + Duration::from_secs(target.seconds);
                match timeout(limit, command.output()).await {
                    Err(_) => Outcome::failed(format!("it hangs: {:?}", command.as_std())),
                    Ok(output) => {
                        let output = output.unwrap_or_else(|e| panic!("{:?}: {e}", command.as_std()));
                        load.tool.outcome(&output).without(load.asks_for)
                    }
                }
            }
        })
        .collect();
    futures_util::future::join_all(running).await.into_iter().fold(Outcome::default(), Outcome::and)
}
