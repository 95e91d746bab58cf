//! What a call costs in instructions and allocations, counted rather than timed. The counts are the same on a busy and
//! on an idle machine, and in each run, so that a change that makes calls more expensive is noticed before it is
//! merged.
//!
//! Both sidecars run under callgrind. Only their worker threads count, from before the first to after the last counted
//! call. The kernel's work for the sidecars does not count.
//!
//! - [`callgrind`]: controls it, and reads its profiles;
//! - [`steps`]: which functions belong to which step; [`text`]: the tables;
//! - [`recorded`]: the figures to compare with.

mod callgrind;
mod recorded;
mod steps;
mod text;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use tempfile::TempDir;

use crate::{
    bed::{self, Way},
    cases::{Case, UNARY},
    load::{GRACE, LoadResult},
    measure, report,
    table::Table,
    weft::{Setup, WeftOptions},
};

use callgrind::{Profile, Tell};
use recorded::{Cost, Costs};

/// The command that builds the programs. The recorded figures hold only for this profile and these packages: with
/// others the compiler inlines other functions.
const BUILD: &str = "cargo build --release -p weft-cli -p weft-sidecar -p weft-control -p weft-bench --bins";
/// How long the sidecars may take until a call is answered.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long all calls may take.
const AT_MOST: Duration = Duration::from_secs(120);
/// Part of the names of functions that run only on the worker thread.
const WORKER: &str = "weft_wire::";
/// The sidecars' names in the table, in the order of a way's relays.
const SIDECARS: [&str; 2] = ["out", "in"];

/// How often each load is measured. The minimum of each figure counts: sometimes a read also takes bytes that arrived
/// after the wake-up, and their own wake-up is then for nothing.
const ROUNDS: usize = 8;

/// The load before all others, repeated until no buffer grows any more. Above all, each slot of the deadlines' timer
/// wheel allocates memory for its first call. So these calls come at an even pace, about one for each slot.
const WARM_UP: Case = Case { name: "warm-up", streams: 1, warm_up: 1, calls: 1_000, ..FOUR };
const WARM_UP_PER_SECOND: f64 = 450.0;
/// How often the warm-up is repeated at most. A buffer that grows for ever must be noticed, not waited for.
const WARM_UPS: usize = 30;
/// Fewer growths per call than this count as none.
const GROWTH: f64 = 0.005;

/// The loads. They are small, as callgrind makes the sidecars about fifty times slower.
const SCENARIOS: [Case; 2] =
    [Case { name: "1x1", title: "128 B, one call at a time", streams: 1, warm_up: 50, calls: 100, ..FOUR }, FOUR];

/// Four calls at a time, as a slot of the wheel has room for four without growing again.
const FOUR: Case = Case {
    name: "1x4",
    title: "128 B, four calls at a time",
    connections: 1,
    streams: 4,
    is_sent_at_once: true,
    warm_up: 100,
    warm_up_at_most: AT_MOST,
    calls: 200,
    at_most: AT_MOST,
    ..UNARY
};

#[derive(Args)]
pub(crate) struct Options {
    /// Record the figures instead of comparing them with the recorded ones.
    #[arg(long)]
    record: bool,
    /// The recorded figures.
    #[arg(long, value_name = "FILE", default_value = "bench/cost.json")]
    file: PathBuf,
    /// List this many of the functions that cost most, including all that they call.
    #[arg(long, value_name = "HOW MANY", default_value_t = 0)]
    functions: usize,
    /// Give the contract this many methods, each with a rule for who may call it. Without: one method and no rule.
    #[arg(long, value_name = "HOW MANY")]
    rules: Option<usize>,
}

/// Counts, prints, and compares or records.
pub(crate) async fn run(options: &Options, weft: WeftOptions) -> Result<ExitCode> {
    weft.check(BUILD)?;
    let recorded = if options.record { None } else { Some(Costs::read(&options.file)?) };
    let mut found = Costs { compiler: compiler(&weft.sidecar())?, per_call: BTreeMap::new() };
    let setup = Setup { methods: options.rules.unwrap_or(1), has_rules: options.rules.is_some(), ..Setup::default() };
    let dumps = TempDir::new()?;
    let dumps = dumps.path().join("callgrind");
    let weft = weft.under(callgrind::command(dumps.to_str().context("the folder for temporary files is not UTF-8")?));
    let (way, _) = bed::sidecars(bed::WEFT, &weft, &setup).await?;
    measure::probe(&UNARY, &way, PATIENCE).await?;
    warm_up(&way, &dumps).await?;
    let mut profiles = Vec::new();
    for case in SCENARIOS {
        for (sidecar, rounds) in std::iter::zip(SIDECARS, count(&case, &way, &dumps).await?) {
            let counted = Counted::new(case, sidecar, rounds)?;
            found.per_call.entry(case.name.to_owned()).or_default().insert(sidecar.to_owned(), counted.cost);
            profiles.push(counted);
        }
    }
    way.stop().await;
    println!("Per call, on the worker's thread of each sidecar\n\n{}", text::by_step(&profiles));
    for counted in profiles.iter().filter(|_| options.functions > 0) {
        println!("{}", text::functions(counted, options.functions));
    }
    match recorded {
        Some(recorded) => Ok(compare(&found, &recorded)),
        None => {
            report::write(&options.file, &(serde_json::to_string_pretty(&found)? + "\n"))?;
            println!("Recorded in {}.", options.file.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The compiler that built a program, as the program's file names it.
fn compiler(program: &Path) -> Result<String> {
    const BEGIN: &[u8] = b"rustc version ";
    let code = fs::read(program)?;
    let is_version = |window: &[u8]| window.starts_with(BEGIN) && window[BEGIN.len()].is_ascii_digit();
    let at = code.windows(BEGIN.len() + 1).position(is_version).context("the sidecar's file names no compiler")?;
    let text: Vec<u8> = code[at..].iter().copied().take_while(|byte| (b' '..=b'~').contains(byte)).collect();
    Ok(String::from_utf8(text)?)
}

/// The counts of one sidecar for all counted calls of a load.
struct Counted {
    case: Case,
    sidecar: &'static str,
    /// The profile of the round with the fewest instructions.
    profile: Profile,
    cost: Cost,
}

impl Counted {
    fn new(case: Case, sidecar: &'static str, rounds: Vec<Profile>) -> Result<Self> {
        let per_call = |count: u64| count as f64 / case.calls as f64;
        let allocations = rounds.iter().map(steps::allocations).min().map_or(0.0, per_call);
        let profile = rounds.into_iter().min_by_key(Profile::instructions).context("no round")?;
        let cost = Cost { instructions: per_call(profile.instructions()).round(), allocations };
        Ok(Self { case, sidecar, profile, cost })
    }
}

async fn warm_up(way: &Way, dumps: &Path) -> Result<()> {
    eprintln!("warming up");
    for _ in 0..WARM_UPS {
        let profiles = round(&WARM_UP, way, Some(WARM_UP_PER_SECOND), dumps).await?;
        if profiles.iter().all(|profile| (steps::growths(profile) as f64) < GROWTH * WARM_UP.calls as f64) {
            break;
        }
    }
    Ok(())
}

/// Runs the load in rounds. Returns the profiles of each sidecar's worker.
async fn count(case: &Case, way: &Way, dumps: &Path) -> Result<[Vec<Profile>; 2]> {
    eprintln!("{}: {}", case.name, case.title);
    let mut profiles = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let found = round(case, way, None, dumps).await?;
        std::iter::zip(&mut profiles, found).for_each(|(profiles, profile)| profiles.push(profile));
    }
    Ok(profiles)
}

/// Runs the load once. Returns the profile of each sidecar's worker, from the first call to the last.
async fn round(case: &Case, way: &Way, per_second: Option<f64>, dumps: &Path) -> Result<[Profile; 2]> {
    let sidecars = way.relays.as_ref().context("no sidecars")?;
    let mut load = measure::start_load(case, way, per_second).await?;
    for sidecar in sidecars {
        callgrind::tell(sidecar.id(), Tell::Zero).await?;
    }
    load.go().await?;
    let line = load.line(case.at_most + GRACE).await?;
    for sidecar in sidecars {
        callgrind::tell(sidecar.id(), Tell::Dump).await?;
    }
    load.process.kill().await;
    let result: LoadResult = serde_json::from_str(&line).with_context(|| format!("unexpected: {line}"))?;
    if let Some(failure) = result.first_failure {
        bail!("a call failed: {failure}");
    }
    // With a pace, the time may end before the last calls.
    let are_all = per_second.is_some() || result.calls == case.calls;
    ensure!(are_all, "{} calls of {} were made in {AT_MOST:?}", result.calls, case.calls);
    let [out, inward] = sidecars.each_ref().map(|sidecar| {
        let name = dumps.file_name().unwrap_or_default().to_string_lossy();
        Profile::read(&dumps.with_file_name(format!("{name}.{}.", sidecar.id())), WORKER)
    });
    Ok([out?, inward?])
}

/// Prints each figure beside the recorded one. The exit status says whether all are close enough.
fn compare(found: &Costs, recorded: &Costs) -> ExitCode {
    let mut table = Table::new(&["scenario", "sidecar", "per call", "now", "recorded", "difference"]);
    let mut is_near = true;
    for (scenario, sidecars) in &found.per_call {
        for sidecar in SIDECARS {
            let Some(cost) = sidecars.get(sidecar) else { continue };
            for (what, now, recorded, slack) in cost.beside(recorded.get(scenario, sidecar)) {
                let (recorded, difference) = match recorded {
                    None => {
                        is_near = false;
                        ("none".to_owned(), "!".to_owned())
                    }
                    Some(recorded) => {
                        let (share, is_too_much) = recorded::difference(now, recorded, slack);
                        is_near &= !is_too_much;
                        let mark = if is_too_much { " !" } else { "" };
                        (figure(recorded), format!("{:+.1} %{mark}", share * 100.0))
                    }
                };
                table.row([scenario.clone(), sidecar.to_owned(), what.to_owned(), figure(now), recorded, difference]);
            }
        }
    }
    println!("{table}");
    if is_near {
        return ExitCode::SUCCESS;
    }
    println!(
        "Calls cost more or less than what was recorded. If that is meant, `weft-bench cost --record` writes the new\n\
         figures down: commit them with the change that they come from. If not, `--functions 40` tells where it goes."
    );
    if found.compiler != recorded.compiler {
        println!("The sidecar comes from {}, the recorded figures from {}.", found.compiler, recorded.compiler);
    }
    ExitCode::FAILURE
}

fn figure(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_names_its_compiler() {
        let compiler = compiler(&std::env::current_exe().unwrap()).unwrap();
        assert!(compiler.starts_with("rustc version 1."), "{compiler}");
    }

    #[test]
    fn a_figure_too_far_from_the_recorded_one_fails() {
        let costs = |instructions| Costs {
            compiler: "rustc version 1".into(),
            per_call: [("1x1".into(), [("out".into(), Cost { instructions, allocations: 2.0 })].into())].into(),
        };
        let code = |found, recorded| format!("{:?}", compare(&costs(found), &costs(recorded)));
        let (success, failure) = (format!("{:?}", ExitCode::SUCCESS), format!("{:?}", ExitCode::FAILURE));
        assert_eq!(code(10_200.0, 10_000.0), success);
        assert_eq!(code(10_400.0, 10_000.0), failure);
        assert_eq!(code(9_600.0, 10_000.0), failure);
    }
}
