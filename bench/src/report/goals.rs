//! The project's goals, compared with the measured figures.

use super::{Report, spread::Spread};
use crate::bed::WEFT;

/// CPU per call and sidecar, as a ratio to the floor.
const CPU: [(&str, f64); 6] =
    [("8x32", 0.35), ("8x4", 0.5), ("headers", 0.5), ("1x1", 0.65), ("64KiB", 0.75), ("500x1", 0.45)];
/// CPU at 8x32 as a ratio to a peer's.
const TO_PEERS: [(&str, f64); 2] = [("nghttpx", 0.45), ("envoy", 1.0 / 12.0)];
/// Mean latency at 1x1 as a ratio to the floor.
const LATENCY: f64 = 0.9;
/// Resident memory of a sidecar in MB: after one call, and the most with 500 connections.
const IDLE_RSS: f64 = 10.0;
const PEAK_RSS: f64 = 20.0;
/// From a sidecar's start until it is ready, in milliseconds.
const READY: f64 = 50.0;

/// One line for each goal whose figure was measured.
pub(crate) fn lines(report: &Report) -> Vec<String> {
    let way = |load: &str, way: &str| report.cases.iter().find(|case| case.case.name == load)?.way(way);
    let weft = || report.cases.iter().filter_map(|case| case.way(WEFT));
    let cpu = |load| way(load, WEFT)?.ratio();
    let megabytes = |bytes: u64| bytes as f64 / 1e6;

    let mut rows: Vec<(String, Option<f64>, f64, &str)> = Vec::new();
    for (load, most) in CPU {
        rows.push((format!("CPU per call and sidecar at {load}"), cpu(load), most, "x floor"));
    }
    for (peer, most) in TO_PEERS {
        let to_peer = || Some(cpu("8x32")? / way("8x32", peer)?.ratio()?);
        rows.push(("CPU per call and sidecar at 8x32".to_owned(), to_peer(), most, peer));
    }
    let latency = || Some(way("1x1", WEFT)?.summary.as_ref()?.latency.mean_to_floor.median);
    rows.push(("Mean latency at 1x1".to_owned(), latency(), LATENCY, "x floor"));
    let relays = |way: &super::WayReport, of: fn(&super::Memory) -> u64| {
        way.memory.iter().filter(|memory| memory.process != "server").map(of).max()
    };
    let idle = weft().filter_map(|way| relays(way, |memory| memory.idle_bytes)).max().map(megabytes);
    rows.push(("RSS of an idle sidecar, the largest".to_owned(), idle, IDLE_RSS, "MB"));
    let peak = way("500x1", WEFT).and_then(|way| relays(way, |memory| memory.peak_bytes)).map(megabytes);
    rows.push(("RSS of a sidecar at 500x1, the most".to_owned(), peak, PEAK_RSS, "MB"));
    let ready = Spread::of(weft().flat_map(|way| way.sidecar_ready_millis.iter().copied()));
    rows.push(("Sidecar ready after its start, median".to_owned(), ready.map(|ready| ready.median), READY, "ms"));

    let line = |(what, value, wanted, unit): (String, Option<f64>, f64, &str)| {
        let value = value?;
        let verdict = if value <= wanted { "reached" } else { "missed" };
        let unit = if TO_PEERS.iter().any(|(peer, _)| *peer == unit) { format!("x {unit}") } else { unit.to_owned() };
        Some(format!("{what}: {value:.2} {unit} (wanted: at most {wanted:.2}): {verdict}"))
    };
    rows.into_iter().filter_map(line).collect()
}
