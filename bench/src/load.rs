//! The load generator: makes calls, checks each answer and keeps each latency.
//!
//! It opens its connections, warms up, prints `ready` and waits for a line, so that its parent can read the CPU times
//! of all processes in between. Then it measures, prints a [`LoadResult`] as one line of JSON, and waits until it is
//! killed, so that the parent can read its CPU time, too.
//!
//! [`call`] is one call and its connection; [`turns`] says when the next one may begin.

mod call;
mod turns;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt,
    task::JoinSet,
    time::{error::Elapsed, timeout},
};

use crate::cases::{Case, Kind};

use call::{Call, Link};
use turns::Turns;

/// How long the calls under way may still take at the end of a measurement.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// The arguments of the child: a [`Case`] over one way.
#[derive(Args, Clone)]
pub(crate) struct LoadArgs {
    #[arg(long)]
    pub(crate) to: SocketAddr,
    /// The authority of each call, by which a sidecar finds the service.
    #[arg(long)]
    pub(crate) authority: String,
    #[arg(long)]
    pub(crate) kind: Kind,
    /// Speak HTTP/1.1.
    #[arg(long)]
    pub(crate) http1: bool,
    #[arg(long)]
    pub(crate) connections: usize,
    #[arg(long)]
    pub(crate) streams: usize,
    #[arg(long)]
    pub(crate) message_bytes: usize,
    #[arg(long)]
    pub(crate) differing_headers: bool,
    /// Send a request's head and body in one piece.
    #[arg(long)]
    pub(crate) at_once: bool,
    #[arg(long)]
    pub(crate) methods: usize,
    #[arg(long)]
    pub(crate) idle_connections: usize,
    /// Calls that begin in a second; without it, as many as possible.
    #[arg(long)]
    pub(crate) per_second: Option<f64>,
    #[arg(long)]
    pub(crate) warm_up: u64,
    #[arg(long)]
    pub(crate) warm_up_at_most_millis: u128,
    #[arg(long)]
    pub(crate) calls: u64,
    #[arg(long)]
    pub(crate) at_most_millis: u128,
}

impl LoadArgs {
    /// The command line that [`run`] is started with.
    pub(crate) fn of(
        case: &Case,
        to: SocketAddr,
        authority: &str,
        http1: bool,
        per_second: Option<f64>,
    ) -> Vec<String> {
        let kind = clap::ValueEnum::to_possible_value(&case.kind).expect("no kind is hidden");
        let mut args = vec![
            "load".to_owned(),
            format!("--to={to}"),
            format!("--authority={authority}"),
            format!("--kind={}", kind.get_name()),
            format!("--connections={}", case.connections),
            format!("--streams={}", case.streams),
            format!("--message-bytes={}", case.message_bytes),
            format!("--methods={}", case.methods),
            format!("--idle-connections={}", case.idle_connections),
            format!("--warm-up={}", case.warm_up),
            format!("--warm-up-at-most-millis={}", case.warm_up_at_most.as_millis()),
            format!("--calls={}", case.calls),
            format!("--at-most-millis={}", case.at_most.as_millis()),
        ];
        args.extend(http1.then(|| "--http1".to_owned()));
        args.extend(case.has_differing_headers.then(|| "--differing-headers".to_owned()));
        args.extend(case.is_sent_at_once.then(|| "--at-once".to_owned()));
        args.extend(per_second.map(|rate| format!("--per-second={rate}")));
        args
    }

    fn warm_up_at_most(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.warm_up_at_most_millis).unwrap_or(u64::MAX))
    }

    fn at_most(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.at_most_millis).unwrap_or(u64::MAX))
    }
}

/// The result of a measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LoadResult {
    /// Calls that were answered correctly.
    pub(crate) calls: u64,
    /// Calls that were not.
    pub(crate) failed: u64,
    /// The error of the first failed call.
    pub(crate) first_failure: Option<String>,
    /// From the first call's start to the last one's end.
    pub(crate) elapsed_seconds: f64,
    /// Latency of the calls that were answered.
    pub(crate) latency: Latency,
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
    pub(crate) max: f64,
}

impl Latency {
    /// Computes the figures from the latencies of all calls.
    pub(crate) fn of(latencies: &[Duration]) -> Result<Self> {
        let mut histogram: Histogram<u64> = Histogram::new(3)?;
        for latency in latencies {
            histogram.record(u64::try_from(latency.as_nanos())?)?;
        }
        let micros = |nanos: u64| nanos as f64 / 1e3;
        Ok(Self {
            mean: histogram.mean() / 1e3,
            p50: micros(histogram.value_at_quantile(0.5)),
            p90: micros(histogram.value_at_quantile(0.9)),
            p99: micros(histogram.value_at_quantile(0.99)),
            p99_9: micros(histogram.value_at_quantile(0.999)),
            max: micros(histogram.max()),
        })
    }
}

/// The `load` child. If it fails before it is ready, it prints the error in place of `ready`.
pub(crate) async fn run(args: LoadArgs) -> Result<()> {
    let call = Arc::new(Call::new(&args)?);
    let (links, _idle) = match prepare(&args, &call).await {
        Ok(ready) => ready,
        Err(error) => {
            println!("{error:#}");
            return Ok(());
        }
    };
    println!("ready {}", args.to);
    if told_to_go_on().await? {
        let turns = Turns::new(args.calls, args.at_most(), args.per_second);
        let (_links, result) = phase(links, &call, turns, args.at_most()).await?;
        println!("{}", serde_json::to_string(&result)?);
        told_to_go_on().await?;
    }
    Ok(())
}

/// Waits for a line from the parent; false if the parent has gone.
async fn told_to_go_on() -> Result<bool> {
    Ok(tokio::io::stdin().read(&mut [0; 16]).await? > 0)
}

/// Opens the connections for calls and the idle ones, and makes the uncounted calls.
async fn prepare(args: &LoadArgs, call: &Arc<Call>) -> Result<(Vec<Link>, Vec<Link>)> {
    let mut idle = Vec::new();
    for _ in 0..args.idle_connections {
        let mut links = Link::open(args, 1).await?;
        call.make(&mut links[0]).await.context("the first call failed on an idle connection")?;
        idle.append(&mut links);
    }
    let mut links = Vec::new();
    for _ in 0..args.connections {
        links.append(&mut Link::open(args, args.streams).await?);
    }
    let turns = Turns::new(args.warm_up, args.warm_up_at_most(), None);
    let (links, result) = phase(links, call, turns, args.warm_up_at_most()).await?;
    match result.first_failure {
        None => Ok((links, idle)),
        Some(failure) => bail!("a call failed while warming up: {failure}"),
    }
}

/// The outcome of one caller.
struct Outcome {
    link: Link,
    latencies: Vec<Duration>,
    failure: Option<anyhow::Error>,
}

/// Calls over each link as long as there are turns, which end after `at_most`.
async fn phase(links: Vec<Link>, call: &Arc<Call>, turns: Turns, at_most: Duration) -> Result<(Vec<Link>, LoadResult)> {
    let turns = Arc::new(turns);
    let start = turns.begin();
    let mut callers = JoinSet::new();
    for mut link in links {
        let (call, turns) = (Arc::clone(call), Arc::clone(&turns));
        callers.spawn(async move {
            let mut latencies = Vec::new();
            while let Some(due) = turns.next().await {
                if let Err(error) = call.make(&mut link).await {
                    return Outcome { link, latencies, failure: Some(error) };
                }
                latencies.push(due.elapsed());
            }
            Outcome { link, latencies, failure: None }
        });
    }
    let outcomes = timeout(at_most + GRACE, callers.join_all())
        .await
        .map_err(|_: Elapsed| anyhow!("calls hang: no answer {GRACE:?} after the end of the measurement"))?;
    let result = summarise(&outcomes, start.elapsed())?;
    Ok((outcomes.into_iter().map(|outcome| outcome.link).collect(), result))
}

fn summarise(outcomes: &[Outcome], elapsed: Duration) -> Result<LoadResult> {
    let failures: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.failure.as_ref()).collect();
    let latencies: Vec<_> = outcomes.iter().flat_map(|outcome| outcome.latencies.iter().copied()).collect();
    let latency = Latency::of(&latencies)?;
    Ok(LoadResult {
        calls: u64::try_from(latencies.len())?,
        failed: u64::try_from(failures.len())?,
        first_failure: failures.first().map(|failure| format!("{failure:#}")),
        elapsed_seconds: elapsed.as_secs_f64(),
        latency,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cases;

    #[derive(Parser)]
    struct Child {
        #[command(flatten)]
        args: LoadArgs,
    }

    #[test]
    fn a_child_reads_the_arguments_of_its_parent() {
        for case in cases::ALL {
            let argv = LoadArgs::of(&case, "127.0.0.1:80".parse().unwrap(), "echo", true, Some(0.5));
            let args = Child::try_parse_from(argv).unwrap_or_else(|e| panic!("{}: {e}", case.name)).args;
            assert_eq!((args.kind, args.connections, args.streams), (case.kind, case.connections, case.streams));
            assert_eq!((args.at_most(), args.warm_up_at_most()), (case.at_most, case.warm_up_at_most));
            assert_eq!((args.http1, args.per_second), (true, Some(0.5)));
            assert_eq!(args.differing_headers, case.has_differing_headers);
        }
    }

    #[test]
    fn failures_do_not_count_as_calls() {
        let millis = Duration::from_millis;
        let link = || Link::New("127.0.0.1:80".parse().unwrap());
        let outcomes = [
            Outcome { link: link(), latencies: vec![millis(1), millis(3)], failure: None },
            Outcome { link: link(), latencies: vec![millis(2)], failure: Some(anyhow!("gone")) },
        ];
        let result = summarise(&outcomes, millis(5)).unwrap();
        assert_eq!((result.calls, result.failed, result.first_failure.as_deref()), (3, 1, Some("gone")));
        assert!((result.latency.p50 - 2000.0).abs() < 5.0, "{:?}", result.latency);
    }
}
