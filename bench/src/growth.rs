//! What a call costs as a mesh grows: more endpoints, methods, connections, workers.
//!
//! Each row is measured with new sidecars and a new floor, in turns. The floor knows no endpoints, methods or workers,
//! so it shows which part of a change comes from the load itself (such as different paths) or from the machine.

mod announcer;
mod text;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use crate::{
    bed::{self, Way},
    cases::{Case, UNARY},
    measure::{self, Sample},
    process,
    report::{self, Machine, Summary},
    weft::{BUILD, Setup, WeftOptions},
};

use announcer::Announcer;

/// How long a way may take until its first call is answered.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long one measurement takes.
const AT_MOST: Duration = Duration::from_millis(1_500);

#[derive(Args)]
pub(crate) struct Options {
    /// How often each row is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// One round of half a second, with only the smallest and the largest size of each dimension.
    #[arg(long)]
    quick: bool,
    /// Only these dimensions (comma separated).
    #[arg(long, value_delimiter = ',')]
    only: Vec<Dimension>,
    /// The file for all figures.
    #[arg(long, value_name = "FILE", default_value = "target/growth.json")]
    json: PathBuf,
}

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Dimension {
    /// Endpoints of the called service.
    Endpoints,
    /// Its methods, which are called equally often.
    Methods,
    /// Connections of the client. One of them carries all calls.
    Connections,
    /// Threads of each sidecar that carry calls.
    Workers,
}

const DIMENSIONS: [Dimension; 4] =
    [Dimension::Endpoints, Dimension::Methods, Dimension::Connections, Dimension::Workers];

impl Dimension {
    fn sizes(self) -> &'static [usize] {
        match self {
            Self::Endpoints => &[1, 10, 100, 1_000],
            Self::Methods => &[1, 100, 10_000],
            Self::Connections => &[1, 10, 100, 1_000, 10_000],
            Self::Workers => &[1, 2],
        }
    }

    /// The mesh and the load of that size.
    fn row(self, size: usize) -> (Setup, Case) {
        let (setup, case) = (Setup::default(), Case { at_most: AT_MOST, ..UNARY });
        match self {
            // Enough calls to give each endpoint its connection before the counted calls.
            Self::Endpoints => {
                let (warm_up, warm_up_at_most) = (10_000 + 30 * size as u64, Duration::from_secs(15));
                (Setup { is_everywhere: true, ..setup }, Case { warm_up, warm_up_at_most, ..case })
            }
            Self::Methods => (Setup { methods: size, ..setup }, Case { methods: size, ..case }),
            Self::Connections => {
                (setup, Case { connections: 1, streams: 256, idle_connections: size.saturating_sub(1), ..case })
            }
            Self::Workers => (Setup { workers: size, ..setup }, case),
        }
    }
}

/// All rows of a run.
#[derive(Serialize)]
struct Growth {
    machine: Machine,
    rounds: u32,
    rows: Vec<Row>,
}

/// One size of one dimension.
#[derive(Serialize)]
struct Row {
    dimension: Dimension,
    size: usize,
    weft: Measured,
    floor: Measured,
}

#[derive(Serialize)]
struct Measured {
    samples: Vec<Sample>,
    /// Memory of the relays before any load. `peak_rss_bytes` is the most.
    idle_rss_bytes: [u64; 2],
    peak_rss_bytes: [u64; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<Summary>,
}

/// Measures all rows.
pub(crate) async fn run(options: &Options, weft: WeftOptions) -> Result<ExitCode> {
    weft.check(BUILD)?;
    let machine = Machine::read();
    machine.warn_if_busy();
    let rounds = if options.quick { 1 } else { options.rounds };
    let mut growth = Growth { machine, rounds, rows: Vec::new() };
    let outcome = run_rows(options, &weft, &mut growth).await;
    print!("{}", growth.text());
    report::write(&options.json, &(serde_json::to_string_pretty(&growth)? + "\n"))?;
    println!("\nAll figures are in {}.", options.json.display());
    outcome?;
    if let Some(failure) = growth.first_failure() {
        bail!("calls failed, so those figures are worth nothing: {failure}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_rows(options: &Options, weft: &WeftOptions, growth: &mut Growth) -> Result<()> {
    for dimension in DIMENSIONS {
        if !options.only.is_empty() && !options.only.contains(&dimension) {
            continue;
        }
        let sizes = dimension.sizes();
        for (index, &size) in sizes.iter().enumerate() {
            if options.quick && index != 0 && index != sizes.len() - 1 {
                continue;
            }
            // A relay has a file for each connection, and some more.
            if dimension == Dimension::Connections && size as u64 + 1_000 > process::file_limit() {
                eprintln!("No row for {size} connections: a process may have {} files open.", process::file_limit());
                continue;
            }
            growth.rows.push(run_row(dimension, size, growth.rounds, options.quick, weft).await?);
        }
    }
    Ok(())
}

async fn run_row(dimension: Dimension, size: usize, rounds: u32, quick: bool, weft: &WeftOptions) -> Result<Row> {
    let (setup, case) = dimension.row(size);
    let case = if quick { Case { at_most: case.quick().at_most, ..case } } else { case };
    let (weft, joinable) = bed::sidecars(bed::WEFT, weft, &setup).await?;
    let _announcer = match dimension {
        Dimension::Endpoints => Some(Announcer::start(&joinable, size - 1).await?),
        _ => None,
    };
    let floor = bed::floor().await?;
    for way in [&weft, &floor] {
        measure::probe(&case, way, PATIENCE).await?;
    }
    let mut row = Row { dimension, size, weft: Measured::of(&weft)?, floor: Measured::of(&floor)? };
    for round in 1..=rounds {
        for (way, measured) in [(&floor, &mut row.floor), (&weft, &mut row.weft)] {
            eprintln!("{dimension:?} {size}: round {round} of {rounds}, {}", way.name);
            measured.samples.push(measure::measure(&case, way, None).await?);
        }
    }
    row.floor.finish(&floor, &[])?;
    row.weft.finish(&weft, &row.floor.samples)?;
    // The floor's ratio to itself is always 1, but its other figures are needed.
    row.floor.summary = Summary::of(&row.floor.samples, &row.floor.samples);
    weft.stop().await;
    floor.stop().await;
    Ok(row)
}

impl Measured {
    fn of(way: &Way) -> Result<Self> {
        let idle_rss_bytes = memory(way, process::Process::rss_bytes)?;
        Ok(Self { samples: Vec::new(), idle_rss_bytes, peak_rss_bytes: [0; 2], summary: None })
    }

    fn finish(&mut self, way: &Way, floor: &[Sample]) -> Result<()> {
        self.peak_rss_bytes = memory(way, process::Process::peak_rss_bytes)?;
        self.summary = Summary::of(&self.samples, floor);
        Ok(())
    }

    /// Memory that the relay beside the client took for its connections, before the counted calls.
    fn open_bytes(&self) -> Option<u64> {
        let [out, _] = self.samples.first()?.open_rss_bytes?;
        Some(out.saturating_sub(self.idle_rss_bytes[0]))
    }
}

fn memory(way: &Way, of: fn(&process::Process) -> Result<u64>) -> Result<[u64; 2]> {
    match &way.relays {
        Some([out, inward]) => Ok([of(out)?, of(inward)?]),
        None => bail!("{} has no relays", way.name),
    }
}

impl Growth {
    fn first_failure(&self) -> Option<String> {
        self.rows.iter().find_map(|row| {
            let samples = row.weft.samples.iter().chain(&row.floor.samples);
            let failure = samples.filter_map(|sample| sample.first_failure.as_ref()).next()?;
            Some(format!("{:?} {}: {failure}", row.dimension, row.size))
        })
    }
}
