//! Public suites through real sidecars: h2spec on both of their ports, h2specd behind them, gRPC's interop client and
//! server with a pair of sidecars between them, and random bodies.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use http::uri::PathAndQuery;
use tempfile::TempDir;
use tokio::{process::Command, task::JoinSet, time::timeout};
use tonic::{Request, Streaming, transport::Channel};
use tonic_prost::ProstCodec;
use weft_tests::{Bed, assert_no_panics, outside, probe, probe_service, result, skip, tunnel};

#[path = "conformance/h2specd.rs"]
mod h2specd;
#[path = "conformance/lists.rs"]
mod lists;

/// For one run of one program, on a machine where others run too.
const LIMIT: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn h2spec_passes_on_both_ports() {
    let Some(h2spec) = outside("h2spec") else { return skip("h2spec is not installed") };
    let bed = Bed::start(&probe_service(1)).await;
    let inbound = tunnel(&bed, "probe").await;
    let mut faults = h2spec_faults(&h2spec, bed.outbound(), "/probe/", lists::H2SPEC_OUTBOUND).await;
    faults.extend(h2spec_faults(&h2spec, inbound, "/", lists::H2SPEC_INBOUND).await);
    assert_all_as_listed(&faults);
    for (port, listed) in [("outbound", lists::H2SPEC_OUTBOUND), ("inbound", lists::H2SPEC_INBOUND)] {
        let passed = lists::H2SPEC_CASES - listed.len();
        result(&format!("h2spec --strict, {port}: {passed} of {} cases pass{}", lists::H2SPEC_CASES, but(listed)));
    }
    probe(&bed.channel(), "Say", &[]).await.expect("both sidecars go on");
    assert_no_panics(&bed, "probe-1").await;
}

/// Runs all of h2spec. Returns a line for each case that does not end as expected: those in `listed` must not pass.
async fn h2spec_faults(h2spec: &Path, port: u16, path: &str, listed: &[(&str, &str)]) -> Vec<String> {
    let dir = TempDir::new().expect("a folder");
    let report = dir.path().join("report.xml");
    let mut command = Command::new(h2spec);
    command.args(["--strict", "--timeout", "5", "--port", &port.to_string(), "--path", path]);
    command.arg("--junit-report").arg(&report);
    let output = run(&mut command).await;
    let Ok(report) = fs::read_to_string(report) else { panic!("h2spec ended early: {}", text(&output)) };
    let cases = cases(&report);
    assert_eq!(cases.len(), lists::H2SPEC_CASES, "{}", text(&output));
    cases.iter().filter_map(|case| case.fault(path, listed)).collect()
}

/// The other side: each case of h2specd is a server that the sidecar calls as its local service.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn h2specd_passes_behind_a_sidecar() {
    let Some(program) = outside("h2specd") else { return skip("h2specd is not installed") };
    let files = TempDir::new().expect("a folder");
    let port_file = files.path().join("port");
    // Without contracts: it would be asked for them on connections that are judged as well.
    let suite = "run: ${BIN}/weft-test-app\n    health: tcp\n    protos: []";
    let bed = Bed::start(&format!("  suite:\n    {suite}\n    env: {{ FORWARD_TO: {} }}\n", port_file.display())).await;
    let inbound = tunnel(&bed, "suite").await;
    let mut server = h2specd::Server::start(&program).await;
    let mut cases = Vec::new();
    for case in server.cases().await {
        fs::write(&port_file, case.port.to_string()).expect("the folder can be written");
        cases.push(timeout(LIMIT, server.judge(inbound, &case)).await.expect("the sidecar calls the service"));
    }
    assert_eq!(cases.len(), lists::H2SPECD_CASES);
    assert_all_as_listed(&cases.iter().filter_map(|case| case.fault("", lists::H2SPECD)).collect::<Vec<_>>());
    let passed = lists::H2SPECD_CASES - lists::H2SPECD.len();
    result(&format!("h2specd: {passed} of {} cases pass{}", lists::H2SPECD_CASES, but(lists::H2SPECD)));
    assert_no_panics(&bed, "suite-1").await;
}

fn assert_all_as_listed(faults: &[String]) {
    assert!(faults.is_empty(), "{} cases do not end as expected:\n{}", faults.len(), faults.join("\n"));
}

/// The cases that do not pass, each with its reason.
fn but(listed: &[(&str, &str)]) -> String {
    listed.iter().map(|(id, why)| format!("; not {id}: {why}")).collect()
}

/// A case of a report.
struct Case {
    /// The argument of h2spec that runs only this case, such as `http2/6.5.3/1`.
    id: String,
    what: String,
    /// Why it did not pass.
    trouble: Option<String>,
}

impl Case {
    /// How the case ended other than expected, if it did: those in `listed` must not pass.
    fn fault(&self, path: &str, listed: &[(&str, &str)]) -> Option<String> {
        let is_listed = listed.iter().any(|(id, _)| *id == self.id);
        let fault = match &self.trouble {
            Some(trouble) if !is_listed => trouble,
            None if is_listed => "passes, but is listed as one that does not",
            _ => return None,
        };
        Some(format!("{path} {}: {}: {fault}", self.id, self.what))
    }
}

/// The cases in a JUnit report of h2spec. h2spec escapes no text, so the report may be invalid XML.
fn cases(report: &str) -> Vec<Case> {
    let attribute = |part: &str, name: &str| {
        let (_, rest) = part.split_once(&format!(" {name}=\"")).expect("h2spec writes it");
        rest.split_once('"').expect("it ends").0.replace("&#34;", "\"").replace("&#39;", "'")
    };
    let mut cases = Vec::new();
    for suite in report.split("<testsuite ").skip(1) {
        for (place, part) in suite.split("<testcase").skip(1).enumerate() {
            let (_, body) = part.split_once('>').expect("a tag ends");
            let body = body.split("</testcase>").next().unwrap_or_default().trim();
            let trouble = (!body.is_empty()).then(|| body.split_whitespace().collect::<Vec<_>>().join(" "));
            let id = format!("{}/{}", attribute(part, "package"), place + 1);
            cases.push(Case { id, what: attribute(part, "classname"), trouble });
        }
    }
    cases
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn grpc_interop_cases_pass() {
    let (Some(client), Some(server)) = (outside("grpc-interop-client"), outside("grpc-interop-server")) else {
        return skip("gRPC's interop client and server are not installed");
    };
    every_case_is_in_a_list(&client).await;
    let bed = Bed::start(&format!("  interop:\n    run: {} --port ${{PORT}}\n", server.display())).await;
    let mut failed = Vec::new();
    for (case, args) in lists::INTEROP {
        let mut command = Command::new(&client);
        command.args(["--server_host", "127.0.0.1", "--server_port", &bed.outbound().to_string()]);
        command.args(["--additional_metadata", "x-weft-service:interop", "--test_case", case]).args(*args);
        let output = run(&mut command).await;
        if !output.status.success() {
            failed.push(format!("{case}: {}", text(&output)));
        }
    }
    assert!(failed.is_empty(), "{} cases fail:\n{}", failed.len(), failed.join("\n"));
    let left_out = but(lists::INTEROP_LEFT_OUT);
    result(&format!("grpc interop: {} of {0} cases pass{left_out}", lists::INTEROP.len()));
    assert_no_panics(&bed, "interop-1").await;
}

/// Each case of the client is either run here or listed as left out.
async fn every_case_is_in_a_list(client: &Path) {
    let help = text(&run(Command::new(client).arg("--help")).await);
    let (_, cases) = help.split_once("Valid options are:").expect("the client lists its cases");
    let cases: BTreeSet<&str> = cases
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .filter(|case| !case.is_empty() && case.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
        .collect();
    assert!(cases.len() > 20, "{cases:?}");
    for case in cases {
        let is_run = lists::INTEROP.iter().any(|(name, _)| *name == case);
        let is_left_out = lists::INTEROP_LEFT_OUT.iter().any(|(name, _)| *name == case);
        assert!(is_run != is_left_out, "{case} is in neither list, or in both");
    }
}

/// A message of any bytes, which the probe echoes unchanged.
#[derive(Clone, PartialEq, prost::Message)]
struct Blob {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
}

/// The bytes that go each way in one call.
const BODY_BYTES: usize = 3 * 1024 * 1024;
const MESSAGE_BYTES: usize = 64 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bodies_come_back_unchanged() {
    let bed = Bed::start(&probe_service(1)).await;
    // All on one connection. One stream is not read until the others have ended, and holds none of them up.
    let channel = bed.channel();
    let late = Conversation::begin(&channel, 100).await;
    let mut calls = JoinSet::new();
    for seed in 0..4 {
        calls.spawn(whole(channel.clone(), seed));
        let channel = channel.clone();
        calls.spawn(async move { Conversation::begin(&channel, 10 + seed).await.finish().await });
    }
    timeout(LIMIT, calls.join_all()).await.expect("nothing waits for the stream that is not read");
    timeout(LIMIT, late.finish()).await.expect("nothing of it is lost");
    assert_no_panics(&bed, "probe-1").await;
}

/// One message of the whole size, there and back.
async fn whole(channel: Channel, seed: u64) {
    let sent = Blob { bytes: Noise(seed).bytes(BODY_BYTES) };
    let path = PathAndQuery::from_static("/probe.v1.Probe/Say");
    let answer =
        grpc(&channel).await.unary(Request::new(sent.clone()), path, ProstCodec::<Blob, Blob>::default()).await;
    assert!(answer.expect("an answer").into_inner() == sent, "body {seed} has changed");
}

/// A stream of messages of any sizes, echoed while it is sent.
struct Conversation {
    seed: u64,
    sent: Vec<Blob>,
    answers: Streaming<Blob>,
}

impl Conversation {
    async fn begin(channel: &Channel, seed: u64) -> Self {
        let (mut noise, mut sent, mut left) = (Noise(seed), Vec::new(), BODY_BYTES);
        while left > 0 {
            let size = left.min(noise.next() as usize % MESSAGE_BYTES);
            sent.push(Blob { bytes: noise.bytes(size) });
            left -= size;
        }
        let requests = Request::new(tokio_stream::iter(sent.clone()));
        let path = PathAndQuery::from_static("/probe.v1.Probe/Chat");
        let answer = grpc(channel).await.streaming(requests, path, ProstCodec::<Blob, Blob>::default()).await;
        Self { seed, sent, answers: answer.expect("the stream opens").into_inner() }
    }

    async fn finish(mut self) {
        for (place, sent) in self.sent.iter().enumerate() {
            let heard = self.answers.message().await.expect("the stream is whole").expect("every message comes back");
            assert!(heard == *sent, "message {place} of stream {} has changed", self.seed);
        }
        assert_eq!(self.answers.message().await.expect("a good end"), None);
    }
}

async fn grpc(channel: &Channel) -> tonic::client::Grpc<Channel> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("the sidecar is there");
    client
}

/// Bytes that no compression makes shorter, the same in each run: splitmix64.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(count).collect()
    }
}

/// Runs a program to its end.
async fn run(command: &mut Command) -> Output {
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    timeout(LIMIT, running).await.expect("it ends in time").expect("it starts")
}

/// All that a program printed.
fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
