//! From samples to figures: medians over the rounds, ratios to the floor, one table, one JSON file.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    bed::{Bed, Way},
    cases::Case,
    measure::Sample,
    process::Process,
    table::Table,
};

/// Everything a run has found.
#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    rounds: u32,
    quick: bool,
    pub(crate) cases: Vec<CaseReport>,
}

/// Where it was measured.
#[derive(Serialize)]
pub(crate) struct Machine {
    cpus: usize,
    cpu_model: String,
    kernel: String,
    /// Of the minute before the run.
    pub(crate) load_average: f64,
}

/// One load over every way.
#[derive(Serialize)]
pub(crate) struct CaseReport {
    #[serde(flatten)]
    case: Case,
    pub(crate) ways: Vec<WayReport>,
}

/// One load over one way.
#[derive(Serialize)]
pub(crate) struct WayReport {
    name: &'static str,
    pub(crate) samples: Vec<Sample>,
    memory: Vec<Memory>,
    sidecar_ready_millis: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<Summary>,
}

/// Resident memory of one process.
#[derive(Serialize)]
struct Memory {
    process: &'static str,
    /// After one call, before the load.
    idle_bytes: u64,
    /// The most, at the end of all rounds.
    peak_bytes: u64,
}

/// Median and extremes over the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

/// The figures of a [`WayReport`]; CPU times and latencies in microseconds.
#[derive(Serialize)]
struct Summary {
    calls_per_second: Spread,
    client_cpu: Spread,
    server_cpu: Spread,
    relays: Option<RelaySummary>,
    latency: LatencySummary,
}

/// CPU time of the relays: each, their mean, and that of the same round's floor as 1.
#[derive(Serialize)]
struct RelaySummary {
    out_cpu: Spread,
    in_cpu: Spread,
    mean_cpu: Spread,
    out_to_floor: Spread,
    in_to_floor: Spread,
    mean_to_floor: Spread,
}

#[derive(Serialize)]
struct LatencySummary {
    mean: Spread,
    p50: Spread,
    p90: Spread,
    p99: Spread,
    p99_9: Spread,
}

impl Machine {
    /// As the kernel tells it; what it does not tell is left empty.
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
}

impl CaseReport {
    /// Takes the idle memory of the processes in `bed`.
    pub(crate) fn new(case: Case, bed: &Bed) -> Result<Self> {
        let way = |way: &Way| {
            let memory =
                processes(way).map(|(process, of)| Ok(Memory { process, idle_bytes: of.rss_bytes()?, peak_bytes: 0 }));
            Ok(WayReport {
                name: way.name,
                samples: Vec::new(),
                memory: memory.collect::<Result<_>>()?,
                sidecar_ready_millis: way.ready_after.iter().map(|after| after.as_secs_f64() * 1e3).collect(),
                summary: None,
            })
        };
        Ok(Self { case, ways: bed.ways.iter().map(way).collect::<Result<_>>()? })
    }

    /// Takes the peaks of memory and works out the figures, when all rounds are over.
    pub(crate) fn finish(&mut self, bed: &Bed) -> Result<()> {
        for (report, way) in std::iter::zip(&mut self.ways, &bed.ways) {
            for (memory, (_, process)) in std::iter::zip(&mut report.memory, processes(way)) {
                memory.peak_bytes = process.peak_rss_bytes()?;
            }
        }
        let floor: Vec<[f64; 2]> = self.ways.iter().find(|way| way.name == "floor").map_or(Vec::new(), relay_cpu);
        for way in &mut self.ways {
            way.summary = Some(Summary::of(way, &floor).with_context(|| format!("no samples of {}", way.name))?);
        }
        Ok(())
    }
}

fn processes(way: &Way) -> impl Iterator<Item = (&'static str, &Process)> {
    let relays = way.relays.iter().flat_map(|[out, inward]| [("out", out), ("in", inward)]);
    std::iter::once(("server", &way.server.process)).chain(relays)
}

fn relay_cpu(way: &WayReport) -> Vec<[f64; 2]> {
    way.samples.iter().filter_map(|sample| sample.cpu_micros.relays).collect()
}

impl Summary {
    fn of(way: &WayReport, floor: &[[f64; 2]]) -> Option<Self> {
        let spread = |of: fn(&Sample) -> f64| Spread::of(way.samples.iter().map(of));
        Some(Self {
            calls_per_second: spread(|sample| sample.calls_per_second)?,
            client_cpu: spread(|sample| sample.cpu_micros.client)?,
            server_cpu: spread(|sample| sample.cpu_micros.server)?,
            relays: RelaySummary::of(&relay_cpu(way), floor),
            latency: LatencySummary {
                mean: spread(|sample| sample.latency_micros.mean)?,
                p50: spread(|sample| sample.latency_micros.p50)?,
                p90: spread(|sample| sample.latency_micros.p90)?,
                p99: spread(|sample| sample.latency_micros.p99)?,
                p99_9: spread(|sample| sample.latency_micros.p99_9)?,
            },
        })
    }
}

impl RelaySummary {
    fn of(relays: &[[f64; 2]], floor: &[[f64; 2]]) -> Option<Self> {
        let mean = |[out, inward]: [f64; 2]| (out + inward) / 2.0;
        let spread = |of: &dyn Fn([f64; 2]) -> f64| Spread::of(relays.iter().copied().map(of));
        let to_floor = |of: &dyn Fn([f64; 2]) -> f64| {
            Spread::of(std::iter::zip(relays, floor).map(|(relays, floor)| of(*relays) / of(*floor)))
        };
        Some(Self {
            out_cpu: spread(&|[out, _]| out)?,
            in_cpu: spread(&|[_, inward]| inward)?,
            mean_cpu: spread(&mean)?,
            out_to_floor: to_floor(&|[out, _]| out)?,
            in_to_floor: to_floor(&|[_, inward]| inward)?,
            mean_to_floor: to_floor(&mean)?,
        })
    }
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let upper = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[upper] } else { (values[upper - 1] + values[upper]) / 2.0 };
        Some(Self { median, min, max })
    }

    fn cell(&self, digits: usize) -> String {
        format!("{:.digits$}", self.median)
    }

    fn wide_cell(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$}-{:.digits$})", self.median, self.min, self.max)
    }
}

impl Report {
    /// An empty one.
    pub(crate) fn new(machine: Machine, rounds: u32, quick: bool) -> Self {
        Self { machine, rounds, quick, cases: Vec::new() }
    }

    /// Writes everything, samples included.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir)?;
        }
        let json = serde_json::to_string_pretty(self)? + "\n";
        fs::write(file, json).with_context(|| format!("can't write {}", file.display()))
    }

    /// The first call that failed anywhere.
    pub(crate) fn first_failure(&self) -> Option<String> {
        self.cases.iter().find_map(|case| {
            case.ways.iter().find_map(|way| {
                let failure = way.samples.iter().find_map(|sample| sample.first_failure.as_ref())?;
                Some(format!("{} over {}: {failure}", case.case.name, way.name))
            })
        })
    }

    /// What is printed.
    pub(crate) fn text(&self) -> String {
        let mut table = Table::new(&[
            "load",
            "way",
            "calls/s",
            "client",
            "server",
            "out",
            "in",
            "out+in /2",
            "x floor",
            "out x",
            "in x",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "mean",
            "RSS out",
            "RSS in",
        ]);
        for case in &self.cases {
            for (index, way) in case.ways.iter().enumerate() {
                let name = if index == 0 { case.case.name } else { "" };
                table.row([name.to_owned(), way.name.to_owned()].into_iter().chain(way.cells()));
            }
            table.rule();
        }
        let Machine { cpus, cpu_model, kernel, load_average } = &self.machine;
        let rounds = self.rounds;
        format!(
            "{cpus} CPUs {cpu_model}, kernel {kernel}, load average before {load_average}\n\
             Medians (min-max) of {rounds} rounds. client … in: CPU µs per call of each process; x floor: ratio to the \
             floor of the same round;\np50 … mean: latency in µs; RSS: MiB idle > at peak.\n\n{table}\n{}",
            self.figures()
        )
    }

    /// The figures that the project wants to reach, and what was measured.
    fn figures(&self) -> String {
        let weft = |name: &str| {
            let case = self.cases.iter().find(|case| case.case.name == name)?;
            case.ways.iter().find(|way| way.name == "weft")
        };
        let ratio = |name| Some(weft(name)?.summary.as_ref()?.relays.as_ref()?.mean_to_floor.median);
        let ways = || self.cases.iter().flat_map(|case| &case.ways).filter(|way| way.name == "weft");
        let idle = ways().flat_map(|way| &way.memory).filter(|memory| memory.process != "server");
        let idle = Spread::of(idle.map(|memory| memory.idle_bytes as f64 / 1e6));
        let ready = Spread::of(ways().flat_map(|way| way.sidecar_ready_millis.iter().copied()));
        let rows = [
            ("CPU per call and sidecar at 8x32", ratio("8x32"), 2.0, "x floor"),
            ("CPU per call and sidecar at 1x1", ratio("1x1"), 1.3, "x floor"),
            ("RSS of an idle sidecar, the largest", idle.map(|idle| idle.max), 15.0, "MB"),
            ("Sidecar ready after its start, median", ready.map(|ready| ready.median), 100.0, "ms"),
        ];
        let line = |(what, value, wanted, unit): (&str, Option<f64>, f64, &str)| {
            let value = value?;
            let verdict = if value <= wanted { "reached" } else { "missed" };
            Some(format!("{what}: {value:.2} {unit} (wanted: at most {wanted}): {verdict}\n"))
        };
        rows.into_iter().filter_map(line).collect()
    }
}

impl WayReport {
    /// The cells of the table after load and way.
    fn cells(&self) -> Vec<String> {
        let Some(Summary { calls_per_second, client_cpu, server_cpu, relays, latency }) = &self.summary else {
            return Vec::new();
        };
        let mut cells = vec![calls_per_second.cell(0), client_cpu.cell(1), server_cpu.cell(1)];
        match relays {
            Some(relays) => cells.extend([
                relays.out_cpu.cell(1),
                relays.in_cpu.cell(1),
                relays.mean_cpu.wide_cell(1),
                relays.mean_to_floor.wide_cell(2),
                relays.out_to_floor.cell(2),
                relays.in_to_floor.cell(2),
            ]),
            None => cells.extend(vec![String::new(); 6]),
        }
        let LatencySummary { mean, p50, p90, p99, p99_9 } = latency;
        cells.extend([p50, p90, p99, p99_9, mean].map(|spread| spread.cell(0)));
        let relays = self.memory.iter().filter(|memory| memory.process != "server");
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        cells.extend(
            relays.map(|memory| format!("{:.1} > {:.1}", mebibytes(memory.idle_bytes), mebibytes(memory.peak_bytes))),
        );
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(Spread::of([3.0, 1.0].into_iter()), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([5.0, 1.0, 2.0].into_iter()).map(|spread| spread.median), Some(2.0));
        assert_eq!(Spread::of(std::iter::empty()), None);
    }

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
