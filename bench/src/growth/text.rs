//! The printed table.

use super::{DIMENSIONS, Dimension, Growth, Row};
use crate::table::Table;

const HEADINGS: [&str; 11] = [
    "what",
    "number",
    "calls/s",
    "weft",
    "x first",
    "floor",
    "x first",
    "x floor",
    "RSS out",
    "RSS in",
    "KiB/connection",
];

impl Growth {
    /// A table of all rows.
    pub(super) fn text(&self) -> String {
        let mut table = Table::new(&HEADINGS);
        for dimension in DIMENSIONS {
            let rows: Vec<_> = self.rows.iter().filter(|row| row.dimension == dimension).collect();
            let Some(first) = rows.first() else { continue };
            for (index, row) in rows.iter().enumerate() {
                let name = if index == 0 { format!("{dimension:?}").to_lowercase() } else { String::new() };
                table.row([name, row.size.to_string()].into_iter().chain(cells(row, first)));
            }
            table.rule();
        }
        let rounds = self.rounds;
        format!(
            "{} CPUs {}, kernel {}. Medians of {rounds} rounds. weft, floor: CPU µs per call and relay; x first: ratio \
             to the first\nrow of its kind; x floor: weft to floor of the same round; RSS: MiB idle > at peak, of the \
             sidecars; KiB/connection: of\nthe sidecar and the floor's relay beside the client, for each connection \
             that is idle.\n\n{table}",
            self.machine.cpus, self.machine.cpu_model, self.machine.kernel
        )
    }
}

fn cells(row: &Row, first: &Row) -> Vec<String> {
    let summary = |row: &Row| Some((mean_cpu(&row.weft)?, mean_cpu(&row.floor)?));
    let (Some(own), Some(base)) = (summary(row), summary(first)) else {
        return vec!["-".to_owned(); HEADINGS.len() - 2];
    };
    let calls = row.weft.summary.as_ref().map_or_else(String::new, |summary| summary.calls_per_second.cell(0));
    let relays = row.weft.summary.as_ref().and_then(|summary| summary.relays.as_ref());
    let to_floor = relays.map_or_else(String::new, |relays| relays.mean_to_floor.wide_cell(2));
    let mebibytes = |side: usize| {
        let bytes = |bytes: [u64; 2]| bytes[side] as f64 / f64::from(1 << 20);
        format!("{:.1} > {:.1}", bytes(row.weft.idle_rss_bytes), bytes(row.weft.peak_rss_bytes))
    };
    vec![
        calls,
        format!("{:.1}", own.0),
        format!("{:.2}", own.0 / base.0),
        format!("{:.1}", own.1),
        format!("{:.2}", own.1 / base.1),
        to_floor,
        mebibytes(0),
        mebibytes(1),
        per_connection(row, first),
    ]
}

fn mean_cpu(measured: &super::Measured) -> Option<f64> {
    Some(measured.summary.as_ref()?.relays.as_ref()?.mean_cpu.median)
}

/// Memory for each idle connection, of weft and of the floor: the growth over the row without idle connections.
fn per_connection(row: &Row, first: &Row) -> String {
    let idle = row.size.saturating_sub(first.size);
    // With fewer connections, the noise of the allocator is as large.
    if row.dimension != Dimension::Connections || idle < 500 {
        return String::new();
    }
    let kibibytes = |of: fn(&Row) -> &super::Measured| {
        let more = of(row).open_bytes()?.saturating_sub(of(first).open_bytes()?);
        Some(format!("{:.1}", more as f64 / 1024.0 / idle as f64))
    };
    let both = [kibibytes(|row| &row.weft), kibibytes(|row| &row.floor)];
    both.map(|cell| cell.unwrap_or_default()).join(", floor ")
}
