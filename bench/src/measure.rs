//! One load over one way.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    bed::{AUTHORITY, Way},
    cases::{Case, Kind},
    load::{GRACE, Latency, LoadArgs, LoadResult},
    process::{Cpu, Process, Role},
};

/// The result of one measurement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<String>,
    pub(crate) calls_per_second: f64,
    /// CPU time of each process divided by the calls, in microseconds.
    pub(crate) cpu_micros: CpuMicros,
    pub(crate) latency_micros: Latency,
    /// Memory of the relays when all connections are open, before the counted calls.
    pub(crate) open_rss_bytes: Option<[u64; 2]>,
}

/// CPU time per call in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct CpuMicros {
    pub(crate) client: f64,
    pub(crate) server: f64,
    /// The relay beside the client and the one beside the server.
    pub(crate) relays: Option<[f64; 2]>,
}

/// Whether the way is called over HTTP/1.1.
pub(crate) fn is_http1(case: &Case, way: &Way) -> bool {
    case.kind == Kind::Post && way.takes_http1
}

/// Measures `case` over `way`: connections and warm-up first, then the counted calls. `per_second` is the pace, if the
/// load has one.
pub(crate) async fn measure(case: &Case, way: &Way, per_second: Option<f64>) -> Result<Sample> {
    let mut load = start_load(case, way, per_second).await?;
    let relays = way.relays.as_ref();
    let open_rss_bytes = match relays {
        Some([out, inward]) => Some([out.rss_bytes()?, inward.rss_bytes()?]),
        None => None,
    };
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
        cpu_micros: CpuMicros { client: micros[0], server: micros[1], relays: relays.map(|_| [micros[2], micros[3]]) },
        latency_micros: result.latency,
        open_rss_bytes,
    })
}

/// CPU time so far of the client, the server and the relays.
fn clocks(client: &Process, way: &Way) -> Result<Vec<Cpu>> {
    [client, &way.server.process].into_iter().chain(way.relays.iter().flatten()).map(Process::cpu).collect()
}

/// Tries single calls until one is answered, for at most `patience`: a mesh takes some time to learn of its members.
pub(crate) async fn probe(case: &Case, way: &Way, patience: Duration) -> Result<()> {
    let single = case.probe();
    let start = Instant::now();
    loop {
        match start_load(&single, way, None).await {
            Ok(load) => {
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

/// A load generator that has opened its connections and warmed up.
pub(crate) async fn start_load(case: &Case, way: &Way, per_second: Option<f64>) -> Result<Role> {
    let args = LoadArgs::of(case, way.address, AUTHORITY, is_http1(case, way), per_second);
    // Idle connections are opened one after the other.
    let opening = Duration::from_millis(2) * u32::try_from(case.idle_connections)?;
    let started = Role::start(args, case.warm_up_at_most + GRACE + opening).await;
    Ok(started.with_context(|| format!("load {} over {}", case.name, way.name))?.0)
}
