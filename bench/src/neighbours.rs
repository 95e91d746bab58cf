//! How a bad neighbour affects the calls of others: one stream that is not read, and clients that attack.
//!
//! Every client is a process of its own. Each figure is measured without the neighbour and then beside it, in one
//! round.
//!
//! - [`converse`]: a hundred streams on one connection, one of which is not read. [`floor`](crate::floor) shows which
//!   part of the growth comes from the load itself;
//! - [`attack`]: the child that attacks; [`tunnel`] carries its attacks to an inbound port.

pub(crate) mod attack;
pub(crate) mod converse;
mod tunnel;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    bed::{self, Way},
    cases::{Case, UNARY},
    load::Latency,
    measure,
    process::Role,
    report::{self, Machine, spread::Spread},
    table::Table,
    weft::{BUILD, Setup, WeftOptions},
};

use attack::Attack;
use converse::{Conversations, STREAMS};
use tunnel::Tunnel;

/// How long a way may take until its first call is answered.
const PATIENCE: Duration = Duration::from_secs(30);

/// The factor by which the p99 of the others may grow beside a stream that is not read.
const SLOW_READER_GOAL: f64 = 1.5;
/// The factor by which the p99 of honest calls may grow beside an attack, which itself takes CPU time.
const ATTACK_GOAL: f64 = 20.0;

#[derive(Args)]
pub(crate) struct Options {
    /// How often each figure is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// One round of half a second.
    #[arg(long)]
    quick: bool,
    /// Only these neighbours (comma separated).
    #[arg(long, value_delimiter = ',')]
    only: Vec<Neighbour>,
    /// Only these attacks (comma separated).
    #[arg(long, value_delimiter = ',')]
    attack: Vec<Attack>,
    /// The file for all figures.
    #[arg(long, value_name = "FILE", default_value = "target/neighbours.json")]
    json: PathBuf,
}

/// A bad neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Neighbour {
    /// A stream that is not read, among a hundred on one connection.
    SlowReader,
    /// Clients that attack the outbound port, and peers that attack the inbound port.
    Attacks,
}

/// Latencies of one round, in microseconds.
#[derive(Serialize)]
struct Pair {
    without: Latency,
    beside: Latency,
}

/// One neighbour of one way.
#[derive(Serialize)]
struct Row {
    neighbour: String,
    /// `weft` or `floor`; for an attack, the attacked port.
    at: String,
    rounds: Vec<Pair>,
    /// None for the floor, which is only there for comparison.
    goal: Option<f64>,
    failure: Option<String>,
}

#[derive(Serialize)]
struct Neighbours {
    machine: Machine,
    rows: Vec<Row>,
}

/// Measures all of it.
pub(crate) async fn run(options: &Options, weft: WeftOptions) -> Result<ExitCode> {
    weft.check(BUILD)?;
    let machine = Machine::read();
    machine.warn_if_busy();
    let is_wanted = |neighbour| options.only.is_empty() || options.only.contains(&neighbour);
    let (rounds, time) = if options.quick { (1, 500) } else { (options.rounds, 1_500) };
    let time = Duration::from_millis(time);
    let mut found = Neighbours { machine, rows: Vec::new() };
    if is_wanted(Neighbour::SlowReader) {
        found.rows.extend(slow_reader(&weft, rounds, time).await?);
    }
    if is_wanted(Neighbour::Attacks) {
        let is_wanted = |attack: &&Attack| options.attack.is_empty() || options.attack.contains(attack);
        for attack in Attack::value_variants().iter().filter(is_wanted) {
            found.rows.extend(attacks(*attack, &weft, rounds, time).await?);
        }
    }
    print!("{}", found.text());
    report::write(&options.json, &(serde_json::to_string_pretty(&found)? + "\n"))?;
    println!("\nAll figures are in {}.", options.json.display());
    match found.rows.iter().find_map(|row| Some((row, row.failure.as_ref()?))) {
        None => Ok(ExitCode::SUCCESS),
        Some((row, failure)) => bail!("a call failed beside {} ({}): {failure}", row.neighbour, row.at),
    }
}

/// Measures the slow reader over the sidecars and over the floor, in turns.
async fn slow_reader(weft: &WeftOptions, rounds: u32, time: Duration) -> Result<[Row; 2]> {
    let (sidecars, _) = bed::sidecars(bed::WEFT, weft, &Setup::default()).await?;
    let floor = bed::floor().await?;
    let row = |way: &Way, goal| Row {
        neighbour: format!("1 of {STREAMS} streams is not read"),
        at: way.name.to_owned(),
        rounds: Vec::new(),
        goal,
        failure: None,
    };
    let mut rows = [row(&sidecars, Some(SLOW_READER_GOAL)), row(&floor, None)];
    for way in [&sidecars, &floor] {
        measure::probe(&UNARY, way, PATIENCE).await?;
    }
    for round in 1..=rounds {
        for (way, row) in std::iter::zip([&sidecars, &floor], &mut rows) {
            eprintln!("slow reader: round {round} of {rounds}, {}", way.name);
            let Conversations { without, beside } = converse::start(way.address, time).await?;
            row.rounds.push(Pair { without, beside });
        }
    }
    sidecars.stop().await;
    floor.stop().await;
    Ok(rows)
}

/// Measures one attack on both ports of a new pair of sidecars.
async fn attacks(attack: Attack, weft: &WeftOptions, rounds: u32, time: Duration) -> Result<Vec<Row>> {
    let honest = Case { connections: 1, streams: 1, warm_up: 500, calls: u64::MAX, at_most: time, ..UNARY };
    let (way, mesh) = bed::sidecars(bed::WEFT, weft, &Setup::default()).await?;
    measure::probe(&honest, &way, PATIENCE).await?;
    let tunnel = Tunnel::start(&mesh).await?;
    let name = attack.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    let mut rows = Vec::new();
    let at = [
        attack.is_outbound().then_some(("outbound", way.address)),
        attack.is_inbound().then_some(("inbound", tunnel.address)),
        // A client without a certificate gets no further than the handshake.
        (attack == Attack::HalfHandshakes).then_some(("inbound", mesh.inbound)),
    ];
    for (at, address) in at.into_iter().flatten() {
        let mut row = Row {
            neighbour: name.clone(),
            at: at.to_owned(),
            rounds: Vec::new(),
            goal: Some(ATTACK_GOAL),
            failure: None,
        };
        for round in 1..=rounds {
            eprintln!("{name} at the {at} port: round {round} of {rounds}");
            let without = measure::measure(&honest, &way, None).await?;
            let args = ["attack".to_owned(), format!("--attack={name}"), format!("--to={address}")];
            let (mut attacker, _) = Role::start(args, Duration::ZERO).await?;
            let beside = measure::measure(&honest, &way, None).await;
            ensure!(attacker.process.is_running(), "the attacker has ended early");
            attacker.process.kill().await;
            // An error before the counted calls is a failure beside the attack, too.
            let (failed, latency) = match beside {
                Ok(sample) => (sample.first_failure, Some(sample.latency_micros)),
                Err(error) => (Some(format!("{error:#}")), None),
            };
            row.failure = row.failure.or(without.first_failure).or(failed);
            row.rounds.extend(latency.map(|beside| Pair { without: without.latency_micros, beside }));
        }
        rows.push(row);
    }
    way.stop().await;
    Ok(rows)
}

impl Neighbours {
    fn text(&self) -> String {
        let headings = ["neighbour", "at", "p99 without", "p99 beside", "beside / without", "goal", ""];
        let mut table = Table::new(&headings);
        for row in &self.rows {
            table.row([row.neighbour.clone(), row.at.clone()].into_iter().chain(cells(row)));
        }
        format!(
            "{} CPUs {}, kernel {}. µs; medians over the rounds, with the least and the most; the ratio is of the same \
             round.\n\n{table}",
            self.machine.cpus, self.machine.cpu_model, self.machine.kernel
        )
    }
}

fn cells(row: &Row) -> [String; 5] {
    let spread = |of: fn(&Pair) -> f64| Spread::of(row.rounds.iter().map(of));
    let cell = |of, digits| spread(of).map_or_else(|| "-".to_owned(), |spread| spread.wide_cell(digits));
    let ratio: fn(&Pair) -> f64 = |pair| pair.beside.p99 / pair.without.p99;
    let goal = row.goal.map_or_else(String::new, |goal| format!("{goal}"));
    let verdict = match (row.goal, spread(ratio)) {
        _ if row.failure.is_some() => "a call failed",
        (Some(goal), Some(ratio)) if ratio.median <= goal => "reached",
        (Some(_), _) => "missed",
        (None, _) => "",
    };
    [cell(|pair| pair.without.p99, 0), cell(|pair| pair.beside.p99, 0), cell(ratio, 2), goal, verdict.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(p99: &[(f64, f64)], goal: Option<f64>) -> Row {
        let latency = |p99| Latency { mean: p99, p50: p99, p90: p99, p99, p99_9: p99, max: p99 };
        let pair = |&(without, beside): &(f64, f64)| Pair { without: latency(without), beside: latency(beside) };
        let rounds = p99.iter().map(pair).collect();
        Row { neighbour: "n".into(), at: "weft".into(), rounds, goal, failure: None }
    }

    #[test]
    fn a_goal_is_judged_by_the_median_of_the_rounds() {
        let verdict = |row: &Row| cells(row)[4].clone();
        assert_eq!(verdict(&row(&[(100.0, 120.0), (100.0, 900.0), (100.0, 130.0)], Some(1.5))), "reached");
        assert_eq!(verdict(&row(&[(100.0, 160.0), (100.0, 100.0), (100.0, 170.0)], Some(1.5))), "missed");
        assert_eq!(verdict(&row(&[(100.0, 160.0)], None)), "");
        assert_eq!(verdict(&row(&[], Some(1.5))), "missed");
        let failed = Row { failure: Some("gone".into()), ..row(&[(100.0, 100.0)], Some(1.5)) };
        assert_eq!(verdict(&failed), "a call failed");
    }
}
