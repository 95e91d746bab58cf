//! The load generator: a closed loop of unary gRPC calls, each answer checked, each latency kept.
//!
//! It opens its connections, warms up, prints `ready` and waits for a line, so that its parent can read the clocks of
//! all processes in between; then it measures, prints a [`LoadResult`] as one line of JSON, and waits until it is
//! killed, so that its own clocks can be read too.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use clap::Args;
use h2::client::SendRequest;
use hdrhistogram::Histogram;
use http::{HeaderMap, Request, Uri};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt,
    task::JoinSet,
    time::{error::Elapsed, timeout},
};

use crate::http2;

/// How long calls that are under way may take when a measurement's time is over.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// What to call, how often and by how many.
#[derive(Args)]
pub(crate) struct LoadArgs {
    #[arg(long)]
    pub(crate) to: SocketAddr,
    /// The authority of each call, by which a sidecar knows the service.
    #[arg(long)]
    pub(crate) authority: String,
    #[arg(long)]
    pub(crate) connections: usize,
    #[arg(long)]
    pub(crate) streams: usize,
    #[arg(long)]
    pub(crate) message_bytes: usize,
    #[arg(long)]
    pub(crate) warm_up: u64,
    #[arg(long)]
    pub(crate) calls: u64,
    #[arg(long)]
    pub(crate) at_most_millis: u64,
}

/// What a measurement has found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LoadResult {
    /// Calls that were answered as they should be.
    pub(crate) calls: u64,
    /// Calls that were not.
    pub(crate) failed: u64,
    /// What happened to the first of those.
    pub(crate) first_failure: Option<String>,
    /// From the first call's start to the last one's end.
    pub(crate) elapsed_seconds: f64,
    /// Of the calls that were answered.
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

/// The `load` child. What stops it before it is ready is told to the parent in place of `ready`.
pub(crate) async fn run(args: LoadArgs) -> Result<()> {
    let at_most = Duration::from_millis(args.at_most_millis);
    let call = Arc::new(Call::new(&args)?);
    let connections = match warm_up(&args, &call, at_most).await {
        Ok(connections) => connections,
        Err(error) => {
            println!("{error:#}");
            return Ok(());
        }
    };
    println!("ready {}", args.to);
    if told_to_go_on().await? {
        let result = phase(&connections, args.streams, &call, args.calls, at_most).await?;
        println!("{}", serde_json::to_string(&result)?);
        told_to_go_on().await?;
    }
    Ok(())
}

/// Waits for a line of the parent; false when it has gone.
async fn told_to_go_on() -> Result<bool> {
    Ok(tokio::io::stdin().read(&mut [0; 16]).await? > 0)
}

async fn warm_up(args: &LoadArgs, call: &Arc<Call>, at_most: Duration) -> Result<Vec<SendRequest<Bytes>>> {
    let mut connections = Vec::new();
    for _ in 0..args.connections {
        connections.push(http2::connect(http2::dial(args.to).await?, || ()).await?);
    }
    match phase(&connections, args.streams, call, args.warm_up, at_most).await?.first_failure {
        None => Ok(connections),
        Some(failure) => bail!("a call failed while warming up: {failure}"),
    }
}

/// `calls` calls, or as many as can begin within `at_most`.
async fn phase(
    connections: &[SendRequest<Bytes>],
    streams: usize,
    call: &Arc<Call>,
    calls: u64,
    at_most: Duration,
) -> Result<LoadResult> {
    let begun = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for connection in connections {
        for _ in 0..streams {
            let (connection, call, begun) = (connection.clone(), Arc::clone(call), Arc::clone(&begun));
            callers.spawn(async move {
                let mut latencies = Vec::new();
                while begun.fetch_add(1, Ordering::Relaxed) < calls && start.elapsed() < at_most {
                    let sent = Instant::now();
                    if let Err(error) = call.make(&connection).await {
                        return (latencies, Some(error));
                    }
                    latencies.push(sent.elapsed());
                }
                (latencies, None)
            });
        }
    }
    let outcomes = timeout(at_most + GRACE, callers.join_all())
        .await
        .map_err(|_: Elapsed| anyhow!("calls hang: no answer {GRACE:?} after the end of the measurement"))?;
    summarise(outcomes, start.elapsed())
}

fn summarise(outcomes: Vec<(Vec<Duration>, Option<anyhow::Error>)>, elapsed: Duration) -> Result<LoadResult> {
    let mut histogram: Histogram<u64> = Histogram::new(3)?;
    let (mut failed, mut first_failure) = (0, None);
    for (latencies, failure) in outcomes {
        for latency in latencies {
            histogram.record(u64::try_from(latency.as_nanos())?)?;
        }
        if let Some(failure) = failure {
            failed += 1;
            first_failure.get_or_insert(format!("{failure:#}"));
        }
    }
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let latency = Latency {
        mean: histogram.mean() / 1e3,
        p50: micros(histogram.value_at_quantile(0.5)),
        p90: micros(histogram.value_at_quantile(0.9)),
        p99: micros(histogram.value_at_quantile(0.99)),
        p99_9: micros(histogram.value_at_quantile(0.999)),
        max: micros(histogram.max()),
    };
    Ok(LoadResult { calls: histogram.len(), failed, first_failure, elapsed_seconds: elapsed.as_secs_f64(), latency })
}

/// The call that is made again and again.
struct Call {
    uri: Uri,
    /// gRPC's frame: no compression, length, message.
    body: Bytes,
}

impl Call {
    fn new(args: &LoadArgs) -> Result<Self> {
        let mut body = vec![0];
        body.extend(u32::try_from(args.message_bytes)?.to_be_bytes());
        body.extend(std::iter::repeat_with(|| fastrand::u8(..)).take(args.message_bytes));
        let uri = format!("http://{}/weft.bench.v1.Echo/Unary", args.authority).parse()?;
        Ok(Self { uri, body: body.into() })
    }

    /// One call, checked: HTTP 200, the message of the request, `grpc-status: 0`.
    async fn make(&self, connection: &SendRequest<Bytes>) -> Result<()> {
        let request = Request::post(self.uri.clone())
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .header("user-agent", "weft-bench")
            .body(())?;
        let (answer, mut sending) = connection.clone().ready().await?.send_request(request, false)?;
        http2::send(&mut sending, self.body.clone(), true).await?;
        let (head, mut body) = answer.await?.into_parts();
        ensure!(head.status == 200, "the answer is {}", head.status);
        let mut received = 0;
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            let is_echo = self.body.get(received..received + data.len()) == Some(&data[..]);
            ensure!(is_echo, "the answer is not what was sent, within {} bytes at {received}", data.len());
            received += data.len();
        }
        // An answer that is trailers only has its status in the head.
        let trailers = body.trailers().await?.unwrap_or(head.headers);
        check_status(&trailers)?;
        ensure!(received == self.body.len(), "the answer has {received} bytes");
        Ok(())
    }
}

fn check_status(trailers: &HeaderMap) -> Result<()> {
    let status = trailers.get("grpc-status").context("the answer has no grpc-status")?;
    if status == "0" {
        return Ok(());
    }
    let text = |name| trailers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes())).unwrap_or_default();
    bail!("grpc-status {}: {} {}", text("grpc-status"), text("grpc-message"), text("x-weft-error"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trailers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn an_error_of_grpc_is_a_failure_though_http_says_200() {
        assert!(check_status(&trailers(&[("grpc-status", "0")])).is_ok());
        assert!(check_status(&trailers(&[])).is_err());
        let error = check_status(&trailers(&[("grpc-status", "14"), ("x-weft-error", "no_endpoint")])).unwrap_err();
        assert!(error.to_string().contains("14") && error.to_string().contains("no_endpoint"), "{error}");
    }

    #[test]
    fn failures_do_not_count_as_calls() {
        let millis = Duration::from_millis;
        let outcomes = vec![(vec![millis(1), millis(3)], None), (vec![millis(2)], Some(anyhow!("gone")))];
        let result = summarise(outcomes, millis(5)).unwrap();
        assert_eq!((result.calls, result.failed, result.first_failure.as_deref()), (3, 1, Some("gone")));
        assert!((result.latency.p50 - 2000.0).abs() < 5.0, "{:?}", result.latency);
    }
}
