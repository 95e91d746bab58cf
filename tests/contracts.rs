//! Contracts that change while the mesh runs take effect at once, without a restart, and no call is lost.

use std::{fs, path::PathBuf, time::Duration};

use bytes::Bytes;
use tempfile::TempDir;
use tonic::Code;
use weft_tests::{Bed, FREE_PORTS, Load, Wire, binary, eventually, framed, metric, probe, root, signal};

const LIMIT: Duration = Duration::from_secs(60);
/// A call that takes longer than any timeout here.
const SLOW: [(&str, &str); 1] = [("x-do", "sleep:600000")];
/// A method without a timeout, and the same with one. The load calls another.
const PLAIN: &str = "rpc Read(Message) returns (Message) {";

fn limited(timeout: &str) -> String {
    format!("{PLAIN} option (weft.options.v1.method) = {{ timeout: {{ {timeout} }} }};")
}

/// A mesh with a contract of its own, which can be edited.
struct Edited {
    bed: Bed,
    file: PathBuf,
    contract: String,
}

impl Edited {
    async fn start(replicas: usize) -> Self {
        let dir = TempDir::new().expect("a folder of its own");
        let file = dir.path().join("proto/probe/v1/probe.proto");
        fs::create_dir_all(file.parent().expect("it has one")).expect("the folder can be written");
        let contract = fs::read_to_string(root().join("tests/proto/probe/v1/probe.proto")).expect("it is there");
        assert!(contract.contains(PLAIN), "{contract}");
        fs::write(&file, &contract).expect("the folder can be written");
        let app = binary("weft-test-app");
        let app = app.display();
        let yaml = format!(
            "namespace: shop\n{FREE_PORTS}\nservices:\n  probe:\n    run: {app}\n    replicas: {replicas}\n    \
             protos: [proto/probe/v1/probe.proto]\n"
        );
        fs::write(dir.path().join("mesh.yaml"), yaml).expect("the folder can be written");
        let bed = Bed::start_at::<&str>(dir, &["--verbose"], &[], LIMIT).await;
        Self { bed, file, contract }
    }

    /// Edits the contract: `Read` is declared like this from now on.
    fn declare(&self, read: &str) {
        fs::write(&self.file, self.contract.replace(PLAIN, read)).expect("the file can be written");
    }

    async fn says(&self, text: &str) {
        eventually(text, LIMIT, async || self.bed.log().contains(text)).await;
    }

    /// Waits until a slow call ends by the contract's timeout.
    async fn is_limited(&self) {
        eventually("the contract's timeout ends a call", LIMIT, async || {
            let slow = tokio::time::timeout(Duration::from_secs(2), probe(&self.bed.channel(), "Read", &SLOW)).await;
            slow.is_ok_and(|slow| slow.is_err_and(|status| status.code() == Code::DeadlineExceeded))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_edited_contract_takes_effect_without_a_restart_and_loses_no_call() {
    let mesh = Edited::start(2).await;
    let bed = &mesh.bed;
    let before = bed.pids();
    let mut client = Wire::connect(bed.outbound()).await;
    let (answer, mut says) = client.open("Chat", &[]).await;
    says.send_data(framed("hello"), false).expect("the stream is open");
    let mut echo = answer.await.expect("an answer").into_body();
    echo.data().await.expect("an echo").expect("a part of it");
    let load = Load::start(bed.channel(), "");

    mesh.declare(&limited("nanos: 200000000"));
    mesh.says("probe has a changed contract, which takes effect now").await;
    mesh.is_limited().await;

    let outcomes = load.stop().await;
    let failed: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.answer.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {} calls failed: {failed:?}\n{}", failed.len(), outcomes.len(), bed.log());
    says.send_data(framed("world"), true).expect("the stream goes on");
    let echoed: Bytes = echo.data().await.expect("an echo").expect("a part of it");
    assert_eq!(echoed, framed("world"));
    assert_eq!(bed.pids(), before, "no process was started again");
    for replica in ["probe-1", "probe-2"] {
        assert_eq!(metric(bed.ports(replica).metrics, "weft_contracts_reloaded_total", "").await, 1.0, "{replica}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_contract_that_is_wrong_changes_nothing_and_is_named_with_its_line() {
    let mesh = Edited::start(1).await;
    mesh.declare(&limited("nanos: 200000000"));
    mesh.is_limited().await;
    mesh.declare(&limited("seconds: -1"));
    mesh.says("probe/v1/probe.proto:16").await;
    mesh.says("the contracts and rules stay as they were").await;
    mesh.is_limited().await;

    // The sidecar itself refuses a file that it can't use, and takes the next one that it can.
    let compiled = mesh.bed.state_dir().join("sidecars/probe.binpb");
    let good = fs::read(&compiled).expect("it is there");
    fs::write(&compiled, &good[..good.len() / 2]).expect("it can be written");
    mesh.says("the contracts of the local service stay as they were: --descriptors").await;
    let refused = async || metric(mesh.bed.ports("probe-1").metrics, "weft_contracts_refused_total", "").await;
    assert_eq!(refused().await, 1.0, "{}", mesh.bed.log());
    mesh.is_limited().await;
    mesh.declare(PLAIN);
    mesh.says("the contracts of the local service have changed").await;
    eventually("there is no timeout any more", LIMIT, async || {
        tokio::time::timeout(Duration::from_secs(1), probe(&mesh.bed.channel(), "Read", &SLOW)).await.is_err()
    })
    .await;
}

/// The control plane is away while a contract changes: callers learn of it when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_contract_that_changes_while_the_control_plane_is_away_is_announced_later() {
    let mesh = Edited::start(1).await;
    probe(&mesh.bed.channel(), "Say", &[]).await.expect("an answer");
    let control = mesh.bed.pid("control");
    signal("-STOP", control);
    mesh.declare(&limited("nanos: 200000000"));
    mesh.says("the contracts of the local service have changed").await;
    probe(&mesh.bed.channel(), "Say", &[]).await.expect("calls go on");
    signal("-CONT", control);
    mesh.is_limited().await;
}
