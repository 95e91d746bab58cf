//! What the end-to-end tests stand on: the binaries, built once; a mesh of real processes in a folder of its own; and
//! clients of it.
//!
//! Every port is picked by the kernel, so that tests run at once and beside other work.

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
pub use wire::{Wire, framed, metric, pour, raw};

/// `probe.v1.Message`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Text {
    /// What is said.
    #[prost(string, tag = "1")]
    pub text: String,
}

/// One service of the name `probe`: `weft-test-app` with `tests/proto/probe/v1/probe.proto`, in so many replicas.
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
    let mut request = Request::new(Text { text: "hello".into() });
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().expect("an ASCII value"));
    }
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let path = http::uri::PathAndQuery::try_from(format!("/probe.v1.Probe/{method}")).expect("a path");
    client.unary(request, path, ProstCodec::<Text, Text>::default()).await
}

/// Asks again and again until the answer is yes.
///
/// # Panics
/// When it is still no after `limit`: with what was waited for.
pub async fn eventually(what: &str, limit: Duration, mut is_so: impl AsyncFnMut() -> bool) {
    let end = tokio::time::Instant::now() + limit;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < end, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Says what a suite has come to, which is shown even where the test passes.
pub fn result(line: &str) {
    // What `println!` prints is kept back of a test that passes.
    let _ = writeln!(std::io::stdout(), "result: {line}");
}

/// Says that a test is skipped, or fails where none may be.
///
/// # Panics
/// In CI, and with `WEFT_TEST_ALL`.
pub fn skip(why: &str) {
    let must_run = env::var_os("CI").is_some() || env::var_os("WEFT_TEST_ALL").is_some();
    assert!(!must_run, "this test may not be skipped here: {why}");
    eprintln!("skipped: {why}");
}
