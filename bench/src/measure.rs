//! One load over one way.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    bed::{AUTHORITY, Way},
    cases::Case,
    load::{GRACE, Latency, LoadResult},
    process::{Cpu, Process, Role},
};

/// What one measurement has found.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<String>,
    pub(crate) calls_per_second: f64,
    /// CPU time of each process divided by the calls, in microseconds.
    pub(crate) cpu_micros: CpuMicros,
    pub(crate) latency_micros: Latency,
}

/// CPU time per call in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct CpuMicros {
    pub(crate) client: f64,
    pub(crate) server: f64,
    /// The relay beside the client and the one beside the server.
    pub(crate) relays: Option<[f64; 2]>,
}

/// Measures `case` over `way`: connections and warm-up first, then the calls that count.
pub(crate) async fn measure(case: &Case, way: &Way) -> Result<Sample> {
    let (mut load, _) = start_load(case, way, case.warm_up(), case.calls).await?;
    let before = clocks(&load.process, way)?;
    load.go().await?;
    let line = load.line(case.at_most + GRACE).await?;
    let after = clocks(&load.process, way)?;
    load.process.kill().await;

    let result: LoadResult = serde_json::from_str(&line).with_context(|| format!("unexpected: {line}"))?;
    let micros: Vec<f64> = std::iter::zip(&after, &before)
        .map(|(after, before)| after.since(before).as_secs_f64() * 1e6 / result.calls.max(1) as f64)
        .collect();
    Ok(Sample {
        calls: result.calls,
        failed: result.failed,
        first_failure: result.first_failure,
        calls_per_second: result.calls as f64 / result.elapsed_seconds,
        cpu_micros: CpuMicros {
            client: micros[0],
            server: micros[1],
            relays: way.relays.as_ref().map(|_| [micros[2], micros[3]]),
        },
        latency_micros: result.latency,
    })
}

/// CPU time so far of the client, the server and the relays.
fn clocks(client: &Process, way: &Way) -> Result<Vec<Cpu>> {
    [client, &way.server.process].into_iter().chain(way.relays.iter().flatten()).map(Process::cpu).collect()
}

/// Tries single calls until one is answered, for at most `patience`: a mesh learns of its members in its own time.
pub(crate) async fn probe(way: &Way, patience: Duration) -> Result<()> {
    let single = Case {
        name: "probe",
        connections: 1,
        streams: 1,
        message_bytes: 128,
        calls: 1,
        at_most: Duration::from_secs(5),
    };
    let start = Instant::now();
    loop {
        match start_load(&single, way, 1, 0).await {
            Ok((load, _)) => {
                load.process.kill().await;
                return Ok(());
            }
            Err(error) if start.elapsed() > patience => {
                return Err(error.context(format!("no call was answered over {} in {patience:?}", way.name)));
            }
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn start_load(case: &Case, way: &Way, warm_up: u64, calls: u64) -> Result<(Role, String)> {
    let args = [
        "load".to_owned(),
        format!("--to={}", way.address),
        format!("--authority={AUTHORITY}"),
        format!("--connections={}", case.connections),
        format!("--streams={}", case.streams),
        format!("--message-bytes={}", case.message_bytes),
        format!("--warm-up={warm_up}"),
        format!("--calls={calls}"),
        format!("--at-most-millis={}", case.at_most.as_millis()),
    ];
    Role::start(args, case.at_most).await.with_context(|| format!("load {} over {}", case.name, way.name))
}
