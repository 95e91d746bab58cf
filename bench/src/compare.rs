//! The comparison: every load over every way, in turns.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    bed::{Absent, FLOOR, Plan, WEFT, Way, Which},
    cases::{self, Case, Kind},
    measure::{self, Sample, is_http1},
    report::{self, CaseReport, Machine, Report},
    svg,
    weft::WeftOptions,
};

/// How long a way may take until its first call is answered.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Args)]
pub(crate) struct Options {
    /// How often each load is measured over each way [default: 3, with --quick 1].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Half a second for each measurement: checks that everything still works.
    #[arg(long)]
    quick: bool,
    /// Only these loads (comma separated).
    #[arg(long, value_delimiter = ',', value_parser = cases::names())]
    only: Vec<String>,
    /// Only these ways, and the floor (comma separated).
    #[arg(long, value_delimiter = ',')]
    ways: Vec<Which>,
    /// The file for all figures.
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    json: PathBuf,
    /// The file for the picture.
    #[arg(long, value_name = "FILE", default_value = "target/bench.svg")]
    svg: PathBuf,
    /// The folder of the proxies that bench/peers/install has downloaded.
    #[arg(long, value_name = "DIR", default_value = "target/peers")]
    peers_dir: PathBuf,
    /// The share of calls that the sidecars trace, and export to the control plane.
    #[arg(long, value_name = "RATIO", default_value_t = 0.01)]
    traced: f64,
}

/// Runs the comparison.
pub(crate) async fn run(options: &Options, weft: WeftOptions) -> Result<ExitCode> {
    let plan = Plan::new(&options.ways, weft, options.traced, &options.peers_dir).await;
    let machine = Machine::read();
    machine.warn_if_busy();
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { 3 });
    let mut report = Report::new(machine, rounds, options.quick, options.traced, plan.peers());
    let outcome = run_cases(options, rounds, &plan, &mut report).await;
    // Figures from before an error are useful, too.
    print!("{}", report.text());
    report::write(&options.json, &(serde_json::to_string_pretty(&report)? + "\n"))?;
    report::write(&options.svg, &svg::draw(&report)?)?;
    println!("\nAll figures are in {}, drawn in {}.", options.json.display(), options.svg.display());
    outcome?;
    if let Some(failure) = report.first_failure() {
        bail!("calls failed, so those figures are worth nothing: {failure}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_cases(options: &Options, rounds: u32, plan: &Plan, report: &mut Report) -> Result<()> {
    for case in cases::ALL {
        if options.only.is_empty() || options.only.iter().any(|name| name == case.name) {
            let case = if options.quick { case.quick() } else { case };
            report.cases.push(run_case(case, rounds, plan).await?);
        }
    }
    Ok(())
}

/// Measures one load over every way. The processes are new, so that their memory comes from this load only.
async fn run_case(case: Case, rounds: u32, plan: &Plan) -> Result<CaseReport> {
    let (ways, mut absent) = plan.start().await?;
    let (mut able, mut unable) = (Vec::new(), Vec::new());
    for way in ways {
        match can_take(&case, &way).await {
            Ok(()) => able.push(way),
            // Without these a run is useless.
            Err(why) if [FLOOR, WEFT].contains(&way.name) => return Err(why),
            Err(why) => {
                absent.push(Absent { name: way.name, why: format!("{why:#}") });
                unable.push(way);
            }
        }
    }
    for way in unable {
        way.stop().await;
    }
    let per_second = pace(&case, &able).await?;
    let mut report = CaseReport::new(case, per_second, &able, absent)?;
    for round in 1..=rounds {
        for (way, report) in std::iter::zip(&able, &mut report.ways) {
            if report.error.is_some() {
                continue;
            }
            eprintln!("{}: round {round} of {rounds}, {}", case.name, way.name);
            match measure::measure(&case, way, per_second).await {
                // A round with failures is no measurement: failed calls may cost almost nothing.
                Ok(Sample { failed: 1.., first_failure, .. }) => report.error = first_failure,
                Ok(sample) => report.samples.push(sample),
                Err(error) => report.error = Some(format!("{error:#}")),
            }
        }
    }
    report.finish(&able);
    for way in able {
        way.stop().await;
    }
    Ok(report)
}

/// Whether the way answers calls of this kind.
async fn can_take(case: &Case, way: &Way) -> Result<()> {
    // The floor is called over HTTP/2 all the same: the others need a yardstick.
    if case.kind == Kind::Post && !is_http1(case, way) && way.name != FLOOR {
        bail!("it speaks no HTTP/1.1");
    }
    measure::probe(case, way, PATIENCE).await
}

/// The calls per second of a load with a pace: its share of the floor's capacity at this moment.
async fn pace(case: &Case, ways: &[Way]) -> Result<Option<f64>> {
    let (Some(share), Some(floor)) = (case.share_of_floor, ways.iter().find(|way| way.name == FLOOR)) else {
        return Ok(None);
    };
    eprintln!("{}: what can the floor do?", case.name);
    let mut most = 0.0_f64;
    for _ in 0..3 {
        let short = Case { at_most: case.at_most.min(Duration::from_secs(1)), ..*case };
        most = most.max(measure::measure(&short, floor, None).await?.calls_per_second);
    }
    Ok(Some(most * share))
}
