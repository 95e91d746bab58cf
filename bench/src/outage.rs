//! Checks that no call notices a control plane that hangs and goes on, again and again.
//!
//! A mesh has two endpoints of one service and a steady rate of calls through a client's sidecar. The control plane
//! gets `kill -STOP` and `-CONT`. Each stop is longer than the sidecars' keep-alives, so that all streams break.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use h2::client::SendRequest;
use http::Request;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use weft_mesh::limits;

use crate::{
    bed::AUTHORITY,
    contract, http2,
    process::{Process, Role},
    report::{self, Machine},
    table::Table,
    weft::{BUILD, Setup, Weft, WeftOptions},
};

/// Calls that begin in a second.
const PER_SECOND: u32 = 500;
/// How long the control plane hangs.
const STOP: Duration = Duration::from_secs(32);
/// The pause between two stops.
const PAUSE: Duration = Duration::from_secs(10);
const STOPS: usize = 4;
/// A call without an answer after this time has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A gRPC message of 128 B with its prefix.
const MESSAGE: [u8; 128] = {
    let mut message = [b'x'; 128];
    (message[0], message[1], message[2], message[3], message[4]) = (0, 0, 0, 0, 123);
    message
};

#[derive(Args)]
pub(crate) struct Options {
    /// One stop only.
    #[arg(long)]
    quick: bool,
    /// The file for all figures.
    #[arg(long, value_name = "FILE", default_value = "target/outage.json")]
    json: PathBuf,
}

#[derive(Serialize)]
struct Outage {
    machine: Machine,
    rows: Vec<Row>,
}

/// The calls that began in one phase.
#[derive(Serialize)]
struct Row {
    what: String,
    seconds: f64,
    calls: usize,
    /// The failed calls by reason.
    failed: BTreeMap<String, usize>,
}

/// Measures all of it.
pub(crate) async fn run(options: &Options, weft: WeftOptions) -> Result<ExitCode> {
    weft.check(BUILD)?;
    let machine = Machine::read();
    machine.warn_if_busy();
    let (server, echo) = Role::start(["echo".to_owned()], Duration::ZERO).await?;
    let echo = echo.parse().context("the server printed no address")?;
    let mesh = Weft::start(&weft, echo, &Setup::default()).await?;
    let second = mesh.start_endpoint(&weft, echo).await?;
    eprintln!("the mesh settles");
    sleep(limits::SETTLING_TIME).await;
    let caller = http2::connect(http2::dial(mesh.outbound).await?, || {}).await?;
    one(caller.clone()).await.map_err(anyhow::Error::msg).context("the first call failed")?;

    let mut rows = vec![row("before", &caller, PAUSE).await];
    let stops = if options.quick { 1 } else { STOPS };
    for number in 1..=stops {
        eprintln!("stop {number} of {stops}");
        signal(&mesh.control, Signal::STOP)?;
        rows.push(row(&format!("stop {number}"), &caller, STOP).await);
        signal(&mesh.control, Signal::CONT)?;
        rows.push(row(&format!("after stop {number}"), &caller, PAUSE).await);
    }
    let outage = Outage { machine, rows };
    print!("{}", outage.text());
    report::write(&options.json, &(serde_json::to_string_pretty(&outage)? + "\n"))?;
    println!("\nAll figures are in {}.", options.json.display());
    for process in mesh.sidecars.into_iter().chain([second, mesh.control, server.process]) {
        process.kill().await;
    }
    Ok(if outage.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn signal(process: &Process, signal: Signal) -> Result<()> {
    let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).context("the process id is out of range")?;
    kill_process(pid, signal).context("can't signal the control plane")
}

/// Makes calls at the same pace for `time`, and waits for all answers.
async fn row(what: &str, caller: &SendRequest<Bytes>, time: Duration) -> Row {
    let start = Instant::now();
    let mut ticks = interval(Duration::from_secs(1) / PER_SECOND);
    // Keeps the rate even if this process is late.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut running = JoinSet::new();
    let mut row = Row { what: what.to_owned(), seconds: 0.0, calls: 0, failed: BTreeMap::new() };
    while start.elapsed() < time {
        ticks.tick().await;
        running.spawn(one(caller.clone()));
        while let Some(ended) = running.try_join_next() {
            row.ended(ended.unwrap_or_else(|e| Err(e.to_string())));
        }
    }
    row.seconds = start.elapsed().as_secs_f64();
    for outcome in running.join_all().await {
        row.ended(outcome);
    }
    row
}

/// A call of 128 B, or why it failed.
async fn one(caller: SendRequest<Bytes>) -> Result<(), String> {
    match timeout(PATIENCE, call(caller)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

async fn call(caller: SendRequest<Bytes>) -> Result<(), String> {
    let text = |e: h2::Error| e.to_string();
    let request = Request::post(format!("http://{AUTHORITY}{}", contract::UNARY))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(|e| e.to_string())?;
    let (answer, mut body) = caller.ready().await.map_err(text)?.send_request(request, false).map_err(text)?;
    body.send_data(Bytes::from_static(&MESSAGE), true).map_err(text)?;
    let (head, mut body) = answer.await.map_err(text)?.into_parts();
    let reason = head.headers.get("x-weft-error").and_then(|reason| reason.to_str().ok());
    if let Some(reason) = reason {
        return Err(reason.to_owned());
    }
    while let Some(data) = body.data().await {
        let length = data.map_err(text)?.len();
        body.flow_control().release_capacity(length).map_err(text)?;
    }
    let trailers = body.trailers().await.map_err(text)?;
    match trailers.and_then(|trailers| trailers.get("grpc-status").cloned()) {
        Some(status) if status == "0" => Ok(()),
        Some(status) => Err(format!("grpc-status {}", status.to_str().unwrap_or("?"))),
        None => Err(format!("HTTP {} without a grpc-status", head.status)),
    }
}

impl Row {
    fn ended(&mut self, outcome: Result<(), String>) {
        self.calls += 1;
        if let Err(reason) = outcome {
            *self.failed.entry(reason).or_default() += 1;
        }
    }

    fn failed(&self) -> usize {
        self.failed.values().sum()
    }
}

impl Outage {
    fn failed(&self) -> usize {
        self.rows.iter().map(Row::failed).sum()
    }

    fn text(&self) -> String {
        let mut table = Table::new(&["control plane", "why they failed", "seconds", "calls", "failed", "goal", ""]);
        let verdict = |failed: usize| if failed == 0 { "reached" } else { "missed" }.to_owned();
        for row in &self.rows {
            let reasons: Vec<_> = row.failed.iter().map(|(reason, count)| format!("{count} × {reason}")).collect();
            let cells = [row.what.clone(), reasons.join(", "), format!("{:.1}", row.seconds), row.calls.to_string()];
            let failed = row.failed();
            table.row(cells.into_iter().chain([failed.to_string(), "0".to_owned(), verdict(failed)]));
        }
        table.rule();
        let (seconds, calls) =
            self.rows.iter().fold((0.0, 0), |(seconds, calls), row| (seconds + row.seconds, calls + row.calls));
        let cells = ["all".to_owned(), String::new(), format!("{seconds:.1}"), calls.to_string()];
        let failed = self.failed();
        table.row(cells.into_iter().chain([failed.to_string(), "0".to_owned(), verdict(failed)]));
        format!(
            "{PER_SECOND} calls a second to a service with two endpoints; the control plane is stopped for {} s at a time, with {} s \
             between.\n\n{table}",
            STOP.as_secs(),
            PAUSE.as_secs()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_failed_call_misses_the_goal() {
        let row = |failed: &[(&str, usize)]| Row {
            what: "stop 1".to_owned(),
            seconds: 32.0,
            calls: 16_000,
            failed: failed.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
        };
        let outage = |rows| Outage { machine: Machine::read(), rows };
        let good = outage(vec![row(&[]), row(&[])]);
        assert_eq!((good.failed(), good.text().contains("missed")), (0, false));
        let bad = outage(vec![row(&[]), row(&[("no-endpoint", 1), ("breaker-open", 2)])]);
        assert_eq!(bad.failed(), 3);
        let text = bad.text();
        assert!(text.contains("2 × breaker-open, 1 × no-endpoint"), "{text}");
        assert_eq!((text.matches("missed").count(), text.matches("reached").count()), (2, 1), "{text}");
    }
}
