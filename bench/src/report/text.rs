//! The printed table and notes.

use super::{CaseReport, LatencySummary, Machine, Report, Summary, WayReport, goals};
use crate::table::Table;

const HEADINGS: [&str; 15] = [
    "load",
    "way",
    "calls/s",
    "client",
    "server",
    "out",
    "in",
    "out+in /2",
    "x floor",
    "mean",
    "x floor",
    "p50",
    "p99",
    "RSS out",
    "RSS in",
];

impl Report {
    /// The table with all medians, and the goals.
    pub(crate) fn text(&self) -> String {
        let mut table = Table::new(&HEADINGS);
        for case in &self.cases {
            for (index, way) in case.ways.iter().enumerate() {
                let name = if index == 0 { case.case.name } else { "" };
                table.row([name.to_owned(), way.title(&case.case)].into_iter().chain(cells(way)));
            }
            for absent in &case.absent {
                let cells = [String::new(), absent.name.to_owned()].into_iter().chain(none());
                table.row(cells);
            }
            table.rule();
        }
        let Machine { cpus, cpu_model, kernel, load_average } = &self.machine;
        let rounds = self.rounds;
        let peers: String = self.peers.iter().map(|peer| format!("{}: {}\n", peer.name(), peer.version())).collect();
        let notes: String = self.cases.iter().flat_map(notes).collect();
        let goals: String = goals::lines(self).into_iter().map(|line| line + "\n").collect();
        format!(
            "{cpus} CPUs {cpu_model}, kernel {kernel}, load average before {load_average}\n{peers}\
             Medians (min-max) of {rounds} rounds. client … in: CPU µs per call of each process; x floor: ratio to the \
             floor of the same round;\nmean, p50, p99: latency in µs; RSS: MiB idle > at peak.\n\n{table}\n{notes}\n\
             {goals}"
        )
    }
}

fn notes(case: &CaseReport) -> Vec<String> {
    let name = case.case.name;
    let pace = case.per_second.map(|rate| format!("{name}: {rate:.0} calls fall due in a second.\n"));
    let absent = case.absent.iter().map(|absent| format!("{name}: {}: {}\n", absent.name, absent.why));
    let broken = case.ways.iter().filter_map(|way| Some(format!("{name}: {}: {}\n", way.name, way.error.as_ref()?)));
    pace.into_iter().chain(absent).chain(broken).collect()
}

/// The cells of a way that was not measured.
fn none() -> Vec<String> {
    vec!["-".to_owned(); HEADINGS.len() - 2]
}

/// The cells of the table after load and way.
fn cells(way: &WayReport) -> Vec<String> {
    let Some(Summary { calls_per_second, client_cpu, server_cpu, relays, latency }) = &way.summary else {
        return none();
    };
    let mut cells = vec![calls_per_second.cell(0), client_cpu.cell(1), server_cpu.cell(1)];
    match relays {
        Some(relays) => cells.extend([
            relays.out_cpu.cell(1),
            relays.in_cpu.cell(1),
            relays.mean_cpu.cell(1),
            relays.mean_to_floor.wide_cell(2),
        ]),
        None => cells.extend(std::iter::repeat_n(String::new(), 4)),
    }
    let LatencySummary { mean, p50, p99, mean_to_floor, .. } = latency;
    cells.extend([mean.cell(0), mean_to_floor.wide_cell(2), p50.cell(0), p99.cell(0)]);
    let relays = way.memory.iter().filter(|memory| memory.process != "server");
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    cells.extend(
        relays.map(|memory| format!("{:.1} > {:.1}", mebibytes(memory.idle_bytes), mebibytes(memory.peak_bytes))),
    );
    cells
}
