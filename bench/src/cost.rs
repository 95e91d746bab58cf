//! What a call costs in instructions and allocations, counted rather than timed: the same on a busy machine and on an
//! idle one, and from one run to the next, so that a change that makes calls dearer is seen before it lands.
//!
//! Both sidecars run under callgrind. Only their workers' threads are looked at, and only from before the first call
//! until after the last of those that count. What the kernel does for the sidecars is not counted.
//!
//! - [`callgrind`]: how it is asked, and what it says;
//! - [`steps`]: which functions belong to what;
//! - [`recorded`]: the figures to compare with.

mod callgrind;
mod recorded;
mod steps;

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

/// What makes the programs. The recorded figures hold for this profile: others put functions together in other ways.
const BUILD: &str = "cargo build --release -p weft-sidecar -p weft-control -p weft-bench --bins";
/// How long the sidecars may take until a call is answered.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long all calls may take.
const AT_MOST: Duration = Duration::from_secs(120);
/// What the worker's functions have in their names, and those of no other thread.
const WORKER: &str = "weft_wire::";
/// In the table, in the order of a way's relays.
const SIDECARS: [&str; 2] = ["out", "in"];

/// The loads: small ones, as callgrind makes the sidecars some fifty times slower.
const SCENARIOS: [Case; 2] = [
    Case {
        name: "1x1",
        title: "128 B, one call at a time",
        connections: 1,
        streams: 1,
        warm_up: 200,
        warm_up_at_most: AT_MOST,
        calls: 300,
        at_most: AT_MOST,
        ..UNARY
    },
    Case {
        name: "1x8",
        title: "128 B, eight calls at a time",
        connections: 1,
        streams: 8,
        warm_up: 200,
        warm_up_at_most: AT_MOST,
        calls: 800,
        at_most: AT_MOST,
        ..UNARY
    },
];

#[derive(Args)]
pub(crate) struct Options {
    /// Record the figures instead of comparing them with the recorded ones.
    #[arg(long)]
    record: bool,
    /// The recorded figures.
    #[arg(long, value_name = "FILE", default_value = "bench/cost.json")]
    file: PathBuf,
    /// List the functions that cost most, with all that they call.
    #[arg(long, value_name = "HOW MANY", default_value_t = 0)]
    functions: usize,
}

/// Counts, prints, and compares or records.
pub(crate) async fn run(options: &Options, weft: WeftOptions) -> Result<ExitCode> {
    if let Some(missing) = &weft.missing {
        bail!("{} is not there; `{BUILD}` makes it", missing.display());
    }
    let recorded = if options.record { None } else { Some(Costs::read(&options.file)?) };
    let mut found = Costs { compiler: compiler(&weft.sidecar())?, per_call: BTreeMap::new() };
    let dumps = TempDir::new()?;
    let dumps = dumps.path().join("callgrind");
    let weft = weft.under(callgrind::command(dumps.to_str().context("the folder for temporary files is not UTF-8")?));
    let (way, _) = bed::sidecars(bed::WEFT, &weft, &Setup::default()).await?;
    measure::probe(&UNARY, &way, PATIENCE).await?;
    let mut profiles = Vec::new();
    for case in SCENARIOS {
        eprintln!("{}: {}", case.name, case.title);
        for (sidecar, profile) in std::iter::zip(SIDECARS, count(&case, &way, &dumps).await?) {
            let cost = Cost {
                instructions: (profile.instructions() / case.calls) as f64,
                allocations: steps::allocations(&profile) as f64 / case.calls as f64,
            };
            found.per_call.entry(case.name.to_owned()).or_default().insert(sidecar.to_owned(), cost);
            profiles.push(Counted { case, sidecar, profile });
        }
    }
    way.stop().await;
    println!("Instructions per call, on the worker's thread\n\n{}", by_step(&profiles));
    for counted in profiles.iter().filter(|_| options.functions > 0) {
        println!("{}", counted.functions(options.functions));
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

/// What a program says of the compiler that it was made by.
fn compiler(program: &Path) -> Result<String> {
    const BEGIN: &[u8] = b"rustc version ";
    let code = fs::read(program)?;
    let is_version = |window: &[u8]| window.starts_with(BEGIN) && window[BEGIN.len()].is_ascii_digit();
    let at = code.windows(BEGIN.len() + 1).position(is_version).context("no compiler is named in the sidecar")?;
    let text: Vec<u8> = code[at..].iter().copied().take_while(|byte| (b' '..=b'~').contains(byte)).collect();
    Ok(String::from_utf8(text)?)
}

/// What one sidecar did for all calls of a load that count.
struct Counted {
    case: Case,
    sidecar: &'static str,
    profile: Profile,
}

/// Runs the load, and gives what each sidecar's worker did from its first call to its last.
async fn count(case: &Case, way: &Way, dumps: &Path) -> Result<[Profile; 2]> {
    let sidecars = way.relays.as_ref().context("no sidecars")?;
    let mut load = measure::start_load(case, way, None).await?;
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
    ensure!(result.calls == case.calls, "{} calls of {} were made in {AT_MOST:?}", result.calls, case.calls);
    let [out, inward] = sidecars.each_ref().map(|sidecar| {
        let name = dumps.file_name().unwrap_or_default().to_string_lossy();
        Profile::read(&dumps.with_file_name(format!("{name}.{}.", sidecar.id())), WORKER)
    });
    Ok([out?, inward?])
}

/// One column for each scenario and sidecar.
fn by_step(profiles: &[Counted]) -> Table {
    let columns: Vec<_> = profiles.iter().map(|it| format!("{} {}", it.case.name, it.sidecar)).collect();
    let headings: Vec<_> = ["step", ""].into_iter().chain(columns.iter().map(String::as_str)).collect();
    let mut table = Table::new(&headings);
    let of_steps: Vec<_> = profiles.iter().map(|it| steps::instructions(&it.profile)).collect();
    let cells = |title: &str, of: &dyn Fn(usize) -> u64| {
        let figures = profiles.iter().enumerate().map(|(index, it)| (of(index) / it.case.calls).to_string());
        [title.to_owned(), String::new()].into_iter().chain(figures).collect::<Vec<_>>()
    };
    for step in steps::STEPS {
        table.row(cells(step.title(), &|index| of_steps[index].get(&step).copied().unwrap_or(0)));
    }
    table.rule();
    table.row(cells("all", &|index| profiles[index].profile.instructions()));
    table
}

impl Counted {
    /// The functions that cost most.
    fn functions(&self, how_many: usize) -> Table {
        let title = format!("{} {}", self.case.name, self.sidecar);
        let mut table = Table::new(&[&title, "function", "calls", "own", "with all it calls"]);
        let per_call = |count: u64| count as f64 / self.case.calls as f64;
        let mut functions = self.profile.inclusive();
        functions.sort_by_key(|it| std::cmp::Reverse(it.instructions));
        for it in functions.iter().take(how_many) {
            let figures = [format!("{:.2}", per_call(it.times)), format!("{:.0}", per_call(it.own))];
            let all = format!("{:.0}", per_call(it.instructions));
            table.row([String::new(), it.name.to_owned()].into_iter().chain(figures).chain([all]));
        }
        table
    }
}

/// Prints each figure beside the recorded one; the exit status says whether all are near enough.
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
    fn a_figure_beyond_the_recorded_one_fails() {
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
