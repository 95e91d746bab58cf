//! Parts of the mesh restart one after the other, and no call notices.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::{Request, Status, transport::Channel};
use tonic_prost::ProstCodec;
use weft_control::{ca::Ca, join_token};
use weft_mesh::identity::SpiffeId;
use weft_tests::{Bed, ReplicaPorts, Text, binary, eventually, get, is_alive, probe, probe_service, signal};

/// A guard that only a very slow machine reaches. A restart waits for the calls under way.
const LIMIT: Duration = Duration::from_secs(180);

/// The pause between two calls of a caller.
const PACE: Duration = Duration::from_millis(32);

/// Callers, each with one call at a time: together 500 calls a second, or fewer on a slow machine. A fixed rate would
/// pile up calls there, and test only how fast the machine is.
const CALLERS: usize = 16;

/// Connections that the calls are spread over.
const CHANNELS: usize = 8;

/// The number in an environment variable; `few` without it.
fn times(variable: &str, few: usize) -> usize {
    std::env::var(variable).ok().and_then(|times| times.parse().ok()).unwrap_or(few)
}

/// Calls at a steady pace, beside open streams.
struct Traffic {
    is_over: Arc<AtomicBool>,
    calls: tokio::task::JoinHandle<(usize, Vec<String>)>,
    streams: tokio::task::JoinHandle<(usize, Vec<String>)>,
}

impl Traffic {
    fn start(bed: &Bed) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let channels: Vec<Channel> = (0..CHANNELS).map(|_| bed.channel()).collect();
        let calls = tokio::spawn(steady(channels.clone(), Arc::clone(&is_over)));
        let streams = tokio::spawn(conversations(channels, Arc::clone(&is_over)));
        Self { is_over, calls, streams }
    }

    /// The number of calls, the number of streams, and the reasons of those that failed.
    async fn stop(self) -> (usize, usize, Vec<String>) {
        self.is_over.store(true, Relaxed);
        let (calls, mut failed) = self.calls.await.expect("no panic");
        let (streams, failed_streams) = self.streams.await.expect("no panic");
        failed.extend(failed_streams);
        (calls, streams, failed)
    }
}

/// Repeats a call that the sidecar has never seen, as gRPC's own clients do (gRFC A6, transparent retries). tonic does
/// not.
async fn unsent_again<F>(channel: &Channel, call: impl Fn(Channel) -> F) -> Result<(), Status>
where
    F: Future<Output = Result<(), Status>>,
{
    let mut result = call(channel.clone()).await;
    while let Err(status) = &result
        && is_unsent(status)
    {
        result = call(channel.clone()).await;
    }
    result
}

async fn say(channel: Channel) -> Result<(), Status> {
    probe(&channel, "Say", &[]).await.map(drop)
}

/// hyper fails calls that it has queued for a connection that is going away: as cancelled, or with h2's error if GOAWAY
/// comes while hyper is about to send. h2 gives this error to no stream that the server has processed: if such a stream
/// loses its connection, it ends with an I/O error.
fn is_unsent(status: &Status) -> bool {
    causes(status).any(|cause| {
        let is_cancelled = cause.downcast_ref().is_some_and(hyper::Error::is_canceled);
        let is_going =
            |error: &h2::Error| error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
        is_cancelled || cause.downcast_ref().is_some_and(is_going)
    })
}

/// The causes of a status, the nearest first.
fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |cause| cause.source())
}

async fn steady(channels: Vec<Channel>, is_over: Arc<AtomicBool>) -> (usize, Vec<String>) {
    let mut running = JoinSet::new();
    let begun = Instant::now();
    for caller in 0..CALLERS {
        let (channel, is_over) = (channels[caller % CHANNELS].clone(), Arc::clone(&is_over));
        running.spawn(async move {
            let (mut count, mut failed) = (0, Vec::new());
            while !is_over.load(Relaxed) {
                let at = begun.elapsed();
                if let Err(status) = unsent_again(&channel, say).await {
                    failed.push(failure(at, &status));
                }
                count += 1;
                sleep(PACE).await;
            }
            (count, failed)
        });
    }
    let outcomes = running.join_all().await;
    let count = outcomes.iter().map(|(count, _)| count).sum();
    (count, outcomes.into_iter().flat_map(|(_, failed)| failed).collect())
}

fn failure(at: Duration, status: &Status) -> String {
    let reason = status.metadata().get("x-weft-error").and_then(|reason| reason.to_str().ok()).unwrap_or("-");
    let causes: String = causes(status).map(|cause| format!(": {cause}")).collect();
    format!("{at:.2?} {:?} ({reason}): {}{causes}", status.code(), status.message())
}

/// Streams of half a second each, four at a time.
async fn conversations(channels: Vec<Channel>, is_over: Arc<AtomicBool>) -> (usize, Vec<String>) {
    let count = Arc::new(AtomicUsize::new(0));
    let mut running = JoinSet::new();
    for channel in channels.into_iter().take(4) {
        let (is_over, count) = (Arc::clone(&is_over), Arc::clone(&count));
        running.spawn(async move {
            let mut failed = Vec::new();
            let begun = Instant::now();
            while !is_over.load(Relaxed) {
                count.fetch_add(1, Relaxed);
                let at = begun.elapsed();
                if let Err(status) = unsent_again(&channel, converse).await {
                    failed.push(format!("stream: {}", failure(at, &status)));
                }
            }
            failed
        });
    }
    let failed = running.join_all().await.into_iter().flatten().collect();
    (count.load(Relaxed), failed)
}

async fn converse(channel: Channel) -> Result<(), Status> {
    let (says, requests) = mpsc::channel(1);
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let path = http::uri::PathAndQuery::from_static("/probe.v1.Probe/Chat");
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let answer = client.streaming(Request::new(requests), path, ProstCodec::<Text, Text>::default());
    let say = async || says.send(Text { text: "word".into() }).await.map_err(|_| Status::aborted("it was cut"));
    let (answer, said) = tokio::join!(answer, say());
    said?;
    let mut answers = answer?.into_inner();
    for _ in 0..5 {
        answers.message().await?.ok_or_else(|| Status::aborted("it ended early"))?;
        sleep(Duration::from_millis(100)).await;
        say().await?;
    }
    drop(says);
    while answers.message().await?.is_some() {}
    Ok(())
}

async fn restart(bed: &Bed, args: &[&str]) {
    let weft = weft_tests::binary("weft");
    let mut command = tokio::process::Command::new(weft);
    let run = command.arg("restart").args(args).current_dir(bed.dir()).output();
    let output = timeout(LIMIT, run).await.expect("it is done in time").expect("weft starts");
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), bed.log());
}

fn assert_none_failed(what: &str, (calls, streams, failed): (usize, usize, Vec<String>), bed: &Bed) {
    println!("{what}: {calls} calls and {streams} streams, {} failed", failed.len());
    let mut kinds = BTreeMap::<&str, usize>::new();
    failed.iter().for_each(|why| *kinds.entry(why.split_once(' ').map_or(why, |(_, rest)| rest)).or_default() += 1);
    assert!(
        failed.is_empty(),
        "{what}: of {calls} calls and {streams} streams {} failed:\n{}\n{kinds:#?}\n{}",
        failed.len(),
        failed[..failed.len().min(10)].join("\n"),
        bed.log()
    );
    assert!(calls > 100 && streams > 3, "there was too little load");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rolling_restarts_fail_no_call() {
    let bed = Bed::start(&probe_service(2)).await;
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    let before = bed.pid("probe-1");
    let traffic = Traffic::start(&bed);
    sleep(Duration::from_millis(300)).await;
    let times = times("WEFT_TEST_ROLLOUTS", 3);
    for _ in 0..times {
        restart(&bed, &["probe"]).await;
    }
    assert_none_failed(&format!("{times} rolling restarts"), traffic.stop().await, &bed);
    assert_ne!(bed.pid("probe-1"), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn replacing_sidecars_in_place_fails_no_call() {
    let bed = Bed::start(&probe_service(1)).await;
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    let (app, sidecar, ports) = (bed.pid("probe-1"), bed.pid("probe-1·sidecar"), bed.ports("probe-1"));
    let traffic = Traffic::start(&bed);
    sleep(Duration::from_millis(300)).await;
    let times = times("WEFT_TEST_REPLACEMENTS", 3);
    for _ in 0..times {
        // The service's only sidecar, and the one that carries all calls.
        restart(&bed, &["probe", "--sidecar"]).await;
        restart(&bed, &["keyboard", "--sidecar"]).await;
    }
    assert_none_failed(&format!("{times} replacements of both sidecars"), traffic.stop().await, &bed);
    assert_eq!(
        (bed.pid("probe-1"), bed.ports("probe-1").inbound),
        (app, ports.inbound),
        "the service has not restarted"
    );
    assert!(bed.pid("probe-1·sidecar") != sidecar && !is_alive(sidecar));
    let unknown = bed.weft(&["restart", "prob"]);
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no `prob`"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_draining_sidecar_carries_its_services_calls_until_the_service_ends() {
    let other = "  other:\n    run: ${BIN}/weft-test-app\n";
    let bed = Bed::start(&format!("{}{other}", probe_service(1))).await;
    // The sidecar of `other` is told to stop: it accepts no more inbound calls, but still carries those of its service.
    let outbound = weft_tests::channel(bed.ports("other-1").outbound);
    probe(&outbound, "Say", &[]).await.expect("an answer");
    let (sidecar, metrics) = (bed.pid("other-1·sidecar"), bed.ports("other-1").metrics);
    assert_eq!(weft_tests::get(metrics, "/drainz").await.0, 503);
    signal("-TERM", sidecar);
    eventually("it has drained", LIMIT, async || weft_tests::get(metrics, "/drainz").await.0 == 200).await;
    let refused = async || probe(&bed.channel(), "Say", &[("x-weft-service", "other")]).await.is_err();
    eventually("it takes no calls in", LIMIT, refused).await;
    for _ in 0..10 {
        probe(&outbound, "Say", &[]).await.expect("its service still calls");
        sleep(Duration::from_millis(50)).await;
    }
    signal("-KILL", bed.pid("other-1"));
    eventually("then it stops", LIMIT, async || !is_alive(sidecar)).await;
}

/// Runs `weft-sidecar drain` for the sidecar of a replica.
fn drain(ports: ReplicaPorts, wait: &str) -> Output {
    let [admin, metrics] = [ports.admin, ports.metrics].map(|port| format!("127.0.0.1:{port}"));
    let mut command = Command::new(binary("weft-sidecar"));
    // As in a container: there is nothing but the program.
    command.env_clear().args(["drain", "--admin", &admin, "--metrics", &metrics, "--wait", wait]);
    command.output().expect("it starts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_sidecar_that_was_drained_by_a_command_still_stops_on_a_signal() {
    let other = "  other:\n    run: ${BIN}/weft-test-app\n";
    let bed = Bed::start(&format!("{}{other}", probe_service(1))).await;
    let (sidecar, ports) = (bed.pid("other-1·sidecar"), bed.ports("other-1"));
    let metrics = ports.metrics;
    let channel = bed.channel();
    let long = [("x-weft-service", "other"), ("x-do", "sleep:600000")];
    let call = tokio::spawn(async move { probe(&channel, "Say", &long).await.map(drop) });
    let runs = async || weft_tests::metric(metrics, "weft_calls_in_flight", "direction=\"inbound\"").await > 0.0;
    eventually("the call runs", LIMIT, runs).await;

    let told = drain(ports, "1");
    let why = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.success() && why == "weft-sidecar drain: calls still run after 1s\n", "{told:?}");
    assert_eq!(get(metrics, "/drainz").await, (503, "calls still run\n".into()));
    assert!(!call.is_finished(), "the time of the command is not that of the calls");
    call.abort();
    let told = drain(ports, "100");
    assert!(told.status.success() && told.stderr.is_empty() && told.stdout.is_empty(), "{told:?}");
    assert_eq!(get(metrics, "/drainz").await.0, 200);
    assert_eq!(get(metrics, "/readyz").await, (503, "draining\n".into()));
    assert_eq!(get(metrics, "/startz").await.0, 200);
    let outbound = weft_tests::channel(ports.outbound);
    probe(&outbound, "Say", &[]).await.expect("its service still calls");

    signal("-TERM", sidecar);
    signal("-KILL", bed.pid("other-1"));
    eventually("it stops", LIMIT, async || !is_alive(sidecar)).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a free port");
    let told = drain(ReplicaPorts { admin: closed.port(), ..ports }, "100");
    let why = String::from_utf8_lossy(&told.stderr).into_owned();
    assert_eq!(told.status.code(), Some(1));
    assert!(why.starts_with("weft-sidecar: no sidecar can be told to drain at 127.0.0.1:"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_sidecar_has_started_when_it_has_its_identity_and_before_its_service_is_up() {
    let bed = Bed::start(&probe_service(1)).await;
    let (control, file) = (bed.state_dir().join("control"), bed.dir().join("token"));
    std::fs::write(&file, "no token").expect("the folder can be written");
    let mut command = tokio::process::Command::new(binary("weft-sidecar"));
    let any = "127.0.0.1:0";
    command.args(["--outbound", any, "--inbound", any, "--admin", any, "--metrics", any]);
    // Nothing listens on port 1.
    command.args(["--service", "late", "--namespace", "shop", "--app", "127.0.0.1:1"]);
    command.args(["--control-plane", &format!("https://127.0.0.1:{}", bed.control())]);
    command.arg("--trust-bundle").arg(control.join("bundle.pem")).arg("--join-token-file").arg(&file);
    let mut process = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().expect("the sidecar starts");
    let stderr = process.stderr.take().expect("piped").into_owned_fd().expect("it is open");
    let mut lines = BufReader::new(std::fs::File::from(stderr)).lines();
    let line = lines.find_map(|line| line.ok().filter(|line| line.contains("the sidecar runs"))).expect("it runs");
    // Its later lines are dropped: a full pipe must not stop it.
    std::thread::spawn(move || lines.for_each(drop));
    let (_, rest) = line.split_once("metrics=127.0.0.1:").expect("it says where it listens");
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().expect("a part");
    let metrics = digits.parse().expect("a port");

    assert_eq!(get(metrics, "/startz").await, (503, "no identity from the control plane yet\n".into()));
    let ca = Ca::open_or_create(&control, &"weft.local".parse().expect("a trust domain")).expect("the mesh has a CA");
    let id: SpiffeId = "spiffe://weft.local/ns/shop/sa/late".parse().expect("an id");
    std::fs::write(&file, join_token::issue(&ca, &id, LIMIT * 60).expect("a token")).expect("it can be replaced");
    eventually("it has started", LIMIT, async || get(metrics, "/startz").await == (200, "started\n".into())).await;
    eventually("it waits for its service", LIMIT, async || {
        get(metrics, "/readyz").await == (503, "the local service is not up\n".into())
    })
    .await;
}
