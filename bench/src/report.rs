//! From samples to figures: medians over the rounds, and ratios to the floor. [`text`] prints them, and [`goals`]
//! compares them with the project's goals.

pub(crate) mod goals;
pub(crate) mod spread;
mod text;

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    bed::{Absent, FLOOR, Way},
    cases::{Case, Kind},
    measure::{Sample, is_http1},
    peers::Found,
    process::Process,
};

use spread::{Spread, ratios};

/// All results of a run.
#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    rounds: u32,
    quick: bool,
    /// The share of calls that the sidecars traced.
    traced: f64,
    peers: Vec<Found>,
    pub(crate) cases: Vec<CaseReport>,
}

/// The machine of the run.
#[derive(Serialize)]
pub(crate) struct Machine {
    pub(crate) cpus: usize,
    pub(crate) cpu_model: String,
    pub(crate) kernel: String,
    /// The load average of the minute before the run.
    pub(crate) load_average: f64,
}

/// One load over every way.
#[derive(Serialize)]
pub(crate) struct CaseReport {
    #[serde(flatten)]
    pub(crate) case: Case,
    /// For a load with a pace: calls that fall due in a second.
    pub(crate) per_second: Option<f64>,
    /// Ways that could not be measured.
    pub(crate) absent: Vec<Absent>,
    pub(crate) ways: Vec<WayReport>,
}

/// One load over one way.
#[derive(Serialize)]
pub(crate) struct WayReport {
    pub(crate) name: &'static str,
    /// The protocol of the load generator.
    pub(crate) protocol: &'static str,
    pub(crate) samples: Vec<Sample>,
    /// Why there are no more samples.
    pub(crate) error: Option<String>,
    pub(crate) memory: Vec<Memory>,
    pub(crate) sidecar_ready_millis: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) summary: Option<Summary>,
}

/// Resident memory of one process.
#[derive(Serialize)]
pub(crate) struct Memory {
    pub(crate) process: &'static str,
    /// After one call, before the load.
    pub(crate) idle_bytes: u64,
    /// The most, at the end of all rounds.
    pub(crate) peak_bytes: u64,
}

/// The figures of a [`WayReport`]; CPU times and latencies in microseconds.
#[derive(Serialize)]
pub(crate) struct Summary {
    pub(crate) calls_per_second: Spread,
    pub(crate) client_cpu: Spread,
    pub(crate) server_cpu: Spread,
    pub(crate) relays: Option<RelaySummary>,
    pub(crate) latency: LatencySummary,
}

/// CPU time of the relays: each, their mean, and their ratios to the floor of the same round.
#[derive(Serialize)]
pub(crate) struct RelaySummary {
    pub(crate) out_cpu: Spread,
    pub(crate) in_cpu: Spread,
    pub(crate) mean_cpu: Spread,
    pub(crate) out_to_floor: Spread,
    pub(crate) in_to_floor: Spread,
    pub(crate) mean_to_floor: Spread,
}

#[derive(Serialize)]
pub(crate) struct LatencySummary {
    pub(crate) mean: Spread,
    pub(crate) p50: Spread,
    pub(crate) p90: Spread,
    pub(crate) p99: Spread,
    pub(crate) p99_9: Spread,
    /// The ratio to the floor of the same round.
    pub(crate) mean_to_floor: Spread,
}

impl Machine {
    /// Reads what the kernel reports. Values that it does not report are empty.
    pub(crate) fn read() -> Self {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        let cpu_info = read("/proc/cpuinfo");
        let model =
            cpu_info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
        Self {
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            cpu_model: model.unwrap_or_default().to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_average: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
        }
    }

    /// Prints a warning if others use the machine.
    pub(crate) fn warn_if_busy(&self) {
        if self.load_average > 1.0 {
            let load = self.load_average;
            eprintln!("The load average is {load}: others are using this machine, do not trust the figures.");
        }
    }
}

impl CaseReport {
    /// Starts a report with the idle memory of the processes.
    pub(crate) fn new(case: Case, per_second: Option<f64>, ways: &[Way], absent: Vec<Absent>) -> Result<Self> {
        let way = |way: &Way| {
            let memory =
                processes(way).map(|(process, of)| Ok(Memory { process, idle_bytes: of.rss_bytes()?, peak_bytes: 0 }));
            Ok(WayReport {
                name: way.name,
                protocol: if is_http1(&case, way) { "HTTP/1.1" } else { "HTTP/2" },
                samples: Vec::new(),
                error: None,
                memory: memory.collect::<Result<_>>()?,
                sidecar_ready_millis: way.ready_after.iter().map(|after| after.as_secs_f64() * 1e3).collect(),
                summary: None,
            })
        };
        Ok(Self { case, per_second, absent, ways: ways.iter().map(way).collect::<Result<_>>()? })
    }

    /// Adds the memory peaks and computes the figures, after all rounds.
    pub(crate) fn finish(&mut self, ways: &[Way]) {
        for (report, way) in std::iter::zip(&mut self.ways, ways) {
            for (memory, (_, process)) in std::iter::zip(&mut report.memory, processes(way)) {
                // A process that has ended has no figures. The error of the samples says why.
                memory.peak_bytes = process.peak_rss_bytes().unwrap_or_default();
            }
        }
        let floor = self.way(FLOOR).map_or(Vec::new(), |floor| floor.samples.clone());
        for way in &mut self.ways {
            way.summary = Summary::of(&way.samples, &floor);
        }
    }

    /// One of its ways.
    pub(crate) fn way(&self, name: &str) -> Option<&WayReport> {
        self.ways.iter().find(|way| way.name == name)
    }
}

fn processes(way: &Way) -> impl Iterator<Item = (&'static str, &Process)> {
    let relays = way.relays.iter().flat_map(|[out, inward]| [("out", out), ("in", inward)]);
    std::iter::once(("server", &way.server.process)).chain(relays)
}

impl WayReport {
    /// Its name, and its protocol where the load would have another.
    pub(crate) fn title(&self, case: &Case) -> String {
        match (case.kind, self.protocol) {
            (Kind::Post, "HTTP/2") => format!("{} (HTTP/2)", self.name),
            _ => self.name.to_owned(),
        }
    }

    /// CPU per call of a relay as a ratio to the floor.
    pub(crate) fn ratio(&self) -> Option<f64> {
        Some(self.summary.as_ref()?.relays.as_ref()?.mean_to_floor.median)
    }
}

impl Summary {
    /// `None` without samples.
    pub(crate) fn of(samples: &[Sample], floor: &[Sample]) -> Option<Self> {
        let spread = |of: fn(&Sample) -> f64| Spread::of(samples.iter().map(of));
        let relays =
            |samples: &[Sample]| samples.iter().filter_map(|sample| sample.cpu_micros.relays).collect::<Vec<_>>();
        Some(Self {
            calls_per_second: spread(|sample| sample.calls_per_second)?,
            client_cpu: spread(|sample| sample.cpu_micros.client)?,
            server_cpu: spread(|sample| sample.cpu_micros.server)?,
            relays: RelaySummary::of(&relays(samples), &relays(floor)),
            latency: LatencySummary {
                mean: spread(|sample| sample.latency_micros.mean)?,
                p50: spread(|sample| sample.latency_micros.p50)?,
                p90: spread(|sample| sample.latency_micros.p90)?,
                p99: spread(|sample| sample.latency_micros.p99)?,
                p99_9: spread(|sample| sample.latency_micros.p99_9)?,
                mean_to_floor: ratios(samples, floor, |sample| sample.latency_micros.mean)?,
            },
        })
    }
}

impl RelaySummary {
    fn of(relays: &[[f64; 2]], floor: &[[f64; 2]]) -> Option<Self> {
        let mean = |[out, inward]: &[f64; 2]| (out + inward) / 2.0;
        Some(Self {
            out_cpu: Spread::of(relays.iter().map(|[out, _]| *out))?,
            in_cpu: Spread::of(relays.iter().map(|[_, inward]| *inward))?,
            mean_cpu: Spread::of(relays.iter().map(mean))?,
            out_to_floor: ratios(relays, floor, |[out, _]| *out)?,
            in_to_floor: ratios(relays, floor, |[_, inward]| *inward)?,
            mean_to_floor: ratios(relays, floor, mean)?,
        })
    }
}

impl Report {
    /// An empty report.
    pub(crate) fn new(machine: Machine, rounds: u32, quick: bool, traced: f64, peers: &[Found]) -> Self {
        Self { machine, rounds, quick, traced, peers: peers.to_vec(), cases: Vec::new() }
    }

    /// The first failure of all loads and ways.
    pub(crate) fn first_failure(&self) -> Option<String> {
        self.cases.iter().find_map(|case| {
            case.ways.iter().find_map(|way| {
                let failure = way.error.as_ref()?;
                Some(format!("{} over {}: {failure}", case.case.name, way.name))
            })
        })
    }
}

/// Writes a file, and makes its folder if needed.
pub(crate) fn write(file: &Path, text: &str) -> Result<()> {
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The machine was half as fast in the second round: no ratio changes.
        let floor = [[4.0, 6.0], [8.0, 12.0]];
        let weft = [[8.0, 6.0], [16.0, 12.0]];
        let summary = RelaySummary::of(&weft, &floor).unwrap();
        let exactly = |ratio| Spread { median: ratio, min: ratio, max: ratio };
        assert_eq!(summary.mean_to_floor, exactly(1.4));
        assert_eq!((summary.out_to_floor, summary.in_to_floor), (exactly(2.0), exactly(1.0)));
        assert_eq!(summary.mean_cpu, Spread { median: 10.5, min: 7.0, max: 14.0 });
    }
}
