//! Those who take all that they can get: what is left for the others is enough to go on.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;
use tonic::Code;
use weft_mesh::limits;
use weft_tests::{Bed, Wire, eventually, framed, metric, probe, probe_service, tunnel};

const LIMIT: Duration = Duration::from_secs(60);

/// A member opens calls that never end, until the service takes no more of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_member_that_takes_every_stream_leaves_some_to_others() {
    let bed = Bed::start(&format!("{}    env: {{ MAX_STREAMS: 1 }}\n", probe_service(1))).await;
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    let mut greedy = Wire::connect(tunnel(&bed, "probe").await).await;
    let mut held = Vec::new();
    for _ in 0..limits::CONNECTIONS_PER_ENDPOINT + 20 {
        held.push(endless(&mut greedy).await);
    }
    let callee = bed.ports("probe-1").metrics;
    eventually("it has all connections that one peer may have", LIMIT, async || {
        let made = metric(callee, "weft_upstream_connections_opened_total", "").await;
        made as usize >= limits::CONNECTIONS_PER_ENDPOINT
    })
    .await;
    for _ in 0..3 {
        probe(&bed.channel(), "Say", &[]).await.expect("there is room for another peer's calls");
    }

    // Who comes when the last one is taken waits for it, and is told in the end that there is none.
    let mut honest = Wire::connect(bed.outbound()).await;
    held.push(endless(&mut honest).await);
    let in_flight = async || metric(callee, "weft_calls_in_flight", "peer=\"keyboard.shop\"").await;
    eventually("it runs", LIMIT, async || in_flight().await == 1.0).await;
    let status = honest.call("Say", &[]).await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(status.metadata().get("x-weft-error").expect("made by the mesh"), "service-full", "{status}");
    greedy.cut();
    eventually("there is room again", LIMIT, async || honest.call("Say", &[]).await.code() == Code::Ok).await;
}

/// A call that its service never answers.
async fn endless(wire: &mut Wire) -> h2::client::ResponseFuture {
    let (answer, mut body) = wire.open("Say", &[("x-do", "sleep:6000000")]).await;
    body.send_data(framed("hello"), true).expect("the connection is whole");
    answer
}

/// Connections to the inbound port that say nothing, more of them than there may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn strangers_make_room_for_who_goes_on() {
    // Each is a file here, too.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the hard limit");
    let bed = Bed::start(&probe_service(1)).await;
    let callee = bed.ports("probe-1");
    let reached = async || metric(callee.metrics, "weft_limit_reached_total", "limit=\"HANDSHAKES\"").await;
    let mut silent = Vec::new();
    eventually("some make room for others", LIMIT, async || {
        for _ in 0..limits::HANDSHAKES / 4 {
            silent.push(TcpStream::connect(("127.0.0.1", callee.inbound)).await.expect("it listens"));
        }
        reached().await >= 1.0
    })
    .await;
    let mut member = Wire::connect(tunnel(&bed, "probe").await).await;
    assert_eq!(member.call("Say", &[]).await.code(), Code::Ok, "who shows a certificate is let in");
    probe(&bed.channel(), "Say", &[]).await.expect("and those who were in go on");
}
