//! Shared code of the end-to-end tests: the binaries, built once; a mesh of real processes in a folder of its own; and
//! clients of it.
//!
//! The kernel picks every port, so that tests can run in parallel and beside other work.

mod bed;
mod forge;
mod http1;
mod load;
mod member;
mod netns;
mod programs;
mod tunnel;
mod wire;

use std::{env, io::Write, time::Duration};

pub use bed::{Bed, FREE_PORTS, ReplicaPorts, channel, channel_to, get, is_alive, resident_bytes, signal};
pub use forge::{Forge, Shown};
pub use http1::Client;
pub use load::{Load, Outcome};
pub use member::{Announced, Member};
pub use netns::{Host, Net, until};
pub use programs::{binary, outside, root};
use tonic::{Request, Response, Status, transport::Channel};
use tonic_prost::ProstCodec;
pub use tunnel::tunnel;
pub use wire::{Wire, assert_no_panics, framed, metric, pour, raw};

/// `probe.v1.Message`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Text {
    /// The message's text.
    #[prost(string, tag = "1")]
    pub text: String,
}

/// The entry of a service `probe` in `mesh.yaml`: `weft-test-app` with `tests/proto/probe/v1/probe.proto`.
pub fn probe_service(replicas: usize) -> String {
    format!(
        "  probe:\n    run: ${{BIN}}/weft-test-app\n    protos: [{}/probe/v1/probe.proto]\n    proto_path: ${{PROTO_PATH}}\n    \
         replicas: {replicas}\n",
        root().join("tests/proto").display()
    )
}

/// Calls a unary method of `probe.v1.Probe` with headers.
///
/// # Errors
/// The status that the call ended with.
pub async fn probe(
    channel: &Channel,
    method: &str,
    headers: &[(&'static str, &str)],
) -> Result<Response<Text>, Status> {
    unary(channel, &format!("/probe.v1.Probe/{method}"), headers).await
}

/// Like [`probe`], for any path.
///
/// # Errors
/// The status that the call ended with.
pub async fn unary(channel: &Channel, path: &str, headers: &[(&'static str, &str)]) -> Result<Response<Text>, Status> {
    let mut request = Request::new(Text { text: "hello".into() });
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().expect("an ASCII value"));
    }
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    client.unary(request, path.parse().expect("a path"), ProstCodec::<Text, Text>::default()).await
}

/// Polls a condition until it holds.
///
/// # Panics
/// It does not hold within `limit`. The message contains `what`.
pub async fn eventually(what: &str, limit: Duration, mut is_so: impl AsyncFnMut() -> bool) {
    let end = tokio::time::Instant::now() + limit;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < end, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Prints the result of a suite, even if the test passes.
pub fn result(line: &str) {
    // The test runner hides what `println!` prints in a test that passes.
    let _ = writeln!(std::io::stdout(), "result: {line}");
}

/// Reports that a test is skipped, or fails where no test may be skipped.
///
/// # Panics
/// In CI, and with `WEFT_TEST_ALL`.
pub fn skip(why: &str) {
    let must_run = env::var_os("CI").is_some() || env::var_os("WEFT_TEST_ALL").is_some();
    assert!(!must_run, "this test may not be skipped here: {why}");
    eprintln!("skipped: {why}");
}
