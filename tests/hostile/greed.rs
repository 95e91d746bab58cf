//! Peers that take all they can get: enough is left for the others to go on.

use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tonic::{Code, Status};
use weft_mesh::limits;
use weft_tests::{
    Bed, Wire, channel, eventually, framed, get, metric, pour, probe, probe_service, resident_bytes, signal, tunnel,
};

const LIMIT: Duration = Duration::from_secs(60);

/// A member opens calls that never end, until the service accepts no more of them.
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
    eventually("it has as many connections as one peer may have", LIMIT, async || {
        let made = metric(callee, "weft_upstream_connections_opened_total", "").await;
        made as usize >= limits::CONNECTIONS_PER_ENDPOINT
    })
    .await;
    for _ in 0..3 {
        probe(&bed.channel(), "Say", &[]).await.expect("another peer's calls have connections of their own");
    }

    // Its own next call waits for a stream, and fails in the end.
    let status = greedy.call("Say", &[]).await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(status.metadata().get("x-weft-error").expect("made by the mesh"), "service-full", "{status}");
    drop(held);
    eventually("there is room again", LIMIT, async || greedy.call("Say", &[]).await.code() == Code::Ok).await;
}

/// A member uploads to a handler that does not read: as much as the service's window for a whole connection. An honest
/// client with a slow server does the same, so other calls of the same caller must go on, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_request_that_the_service_does_not_read_holds_up_no_other_call() {
    let bed = Bed::start(&probe_service(1)).await;
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    let mut greedy = Wire::connect(tunnel(&bed, "probe").await).await;
    let (_answer, mut body) = greedy.open("Say", &[("x-do", "sleep:6000000")]).await;
    // More than HTTP/2's initial window, and as much as the sidecar accepts for one call.
    pour(&mut body, limits::STREAM_WINDOW_BYTES as usize, |_| {}).await.expect("the upload is accepted");
    for _ in 0..10 {
        timeout(LIMIT, probe(&bed.channel(), "Say", &[])).await.expect("other calls do not wait").expect("an answer");
        let status = timeout(LIMIT, greedy.call("Say", &[])).await.expect("a call of the same caller does not wait");
        assert_eq!(status.code(), Code::Ok, "{status}");
    }
}

/// A call that its service never answers.
async fn endless(wire: &mut Wire) -> h2::client::ResponseFuture {
    let (answer, mut body) = wire.open("Say", &[("x-do", "sleep:6000000")]).await;
    body.send_data(framed("hello"), true).expect("the connection is whole");
    answer
}

/// More silent connections to the inbound port than are allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn silent_strangers_make_room_for_members() {
    // Each is an open file of this process, too.
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
    assert_eq!(member.call("Say", &[]).await.code(), Code::Ok, "a client with a certificate is accepted");
    probe(&bed.channel(), "Say", &[]).await.expect("earlier connections go on");
}

/// An application uploads to a service that does not read: 100 connections with 16 calls each, every call a full
/// window. That is 400 MB.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_memory_of_all_calls_together_is_bounded() {
    const CONNECTIONS: usize = 100;
    const CALLS: usize = 16;
    let memory = (16 << 20).to_string();
    let hog = "  hog:\n    run: ${BIN}/weft-test-app\n    health: tcp\n";
    let bed = Bed::start_with(&format!("{}{hog}", probe_service(1)), &["--memory", &memory]).await;
    let own = bed.channel();
    for service in ["hog", "probe"] {
        probe(&bed.channel(), "Say", &[("x-weft-service", service)]).await.expect("an answer");
    }
    let (port, pid) = (bed.outbound(), bed.pid("keyboard·sidecar"));
    let before = resident_bytes(pid);
    signal("-STOP", bed.pid("hog-1"));
    let mut uploads = JoinSet::new();
    for _ in 0..CONNECTIONS {
        uploads.spawn(async move {
            let mut wire = Wire::connect(port).await;
            let mut calls = JoinSet::new();
            for _ in 0..CALLS {
                let (answer, mut body) = wire.open("Say", &[("x-do", "swallow"), ("x-weft-service", "hog")]).await;
                calls.spawn(async move {
                    // It may be refused, or wait.
                    let _ = pour(&mut body, limits::STREAM_WINDOW_BYTES as usize, |_| {}).await;
                    let _ = body.send_data(Bytes::new(), true);
                    let _ = answer.await;
                });
            }
            calls.join_all().await;
        });
    }
    let refused = async || probe(&own, "Say", &[("x-weft-service", "hog")]).await.err();
    // Until the caller's own sidecar has as much as it may, that of the service may refuse them for its sake.
    let is_for_memory =
        |why: Status| why.code() == Code::ResourceExhausted && why.message().contains("--memory 16777216");
    eventually("new calls to it are refused for lack of memory", LIMIT, async || {
        refused().await.is_some_and(is_for_memory)
    })
    .await;
    let reached = metric(bed.ports("keyboard").metrics, "weft_limit_reached_total", "limit=\"MEMORY_BYTES\"").await;
    assert!(reached >= 1.0);
    for _ in 0..10 {
        assert!(refused().await.is_some(), "refused as long as the uploads do not go on");
        probe(&own, "Say", &[]).await.expect("calls of another service go on");
        let grown = resident_bytes(pid).saturating_sub(before);
        assert!(grown < 200 << 20, "{grown} bytes more");
    }
    // Once the service reads, the waiting uploads go on, and new calls are accepted.
    signal("-CONT", bed.pid("hog-1"));
    eventually("calls are accepted again", LIMIT, async || refused().await.is_none()).await;
    uploads.abort_all();
}

/// A member makes calls over three connections. It reads no answers, and then the service reads no uploads.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_member_that_fills_the_memory_takes_only_its_share() {
    const CONNECTIONS: usize = 3;
    const CALLS: usize = 60;
    let memory = (16 << 20).to_string();
    let other = "  other:\n    run: ${BIN}/weft-test-app\n";
    let services = format!("{}    env: {{ CONNECTION_WINDOW: 67108864 }}\n{other}", probe_service(1));
    let bed = Bed::start_with(&services, &["--memory", &memory]).await;
    let callee = bed.ports("probe-1");
    let (caller, own) = (bed.channel(), channel(callee.outbound));
    let honest = async || {
        probe(&caller, "Say", &[]).await.expect("a call of an honest caller");
        probe(&own, "Say", &[("x-weft-service", "other")]).await.expect("a call of the service itself");
    };
    honest().await;
    let reached = async || metric(callee.metrics, "weft_limit_reached_total", "limit=\"MEMORY_BYTES\"").await;
    let port = tunnel(&bed, "probe").await;

    // Answers that it never reads.
    let (mut greedy, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let mut wire = Wire::connect(port).await;
        for _ in 0..CALLS {
            let (answer, mut body) = wire.open("Say", &[("x-do", "pour:1000000")]).await;
            // Calls without room are refused.
            let _ = body.send_data(Bytes::new(), true);
            answers.push(answer);
        }
        greedy.push(wire);
    }
    eventually("its share is used up", LIMIT, async || reached().await >= 1.0).await;
    for _ in 0..20 {
        honest().await;
    }
    drop(answers);
    greedy.drain(..).for_each(Wire::cut);
    let mut wire = Wire::connect(port).await;
    eventually("it may call again", LIMIT, async || wire.call("Say", &[]).await.code() == Code::Ok).await;

    // Uploads that are never read.
    let mut uploads = JoinSet::new();
    let before = reached().await;
    for _ in 0..CONNECTIONS {
        let mut wire = Wire::connect(port).await;
        for _ in 0..CALLS {
            let (answer, mut body) = wire.open("Say", &[("x-do", "sleep:6000000")]).await;
            uploads.spawn(async move {
                let _ = pour(&mut body, 2 * limits::STREAM_WINDOW_BYTES as usize, |_| {}).await;
                answer.await.is_ok()
            });
        }
        greedy.push(wire);
    }
    eventually("its share is used up", LIMIT, async || reached().await > before).await;
    for _ in 0..20 {
        honest().await;
    }
    let status = Wire::connect(port).await.call("Say", &[]).await;
    assert_eq!(status.metadata().get("x-weft-error").expect("made by the mesh"), "service-full", "{status}");
    assert!(status.message().contains("--memory 16777216"), "{status}");
    let page = get(callee.admin, "/").await.1;
    assert!(page.contains("Under way for") && page.contains("tunnel.shop"), "{page}");
    drop((greedy, uploads));
}
