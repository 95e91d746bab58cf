//! Callers that try to make a service look broken: its breaker is for all clients of a sidecar, and its connections are for
//! all callers.

use std::time::Duration;

use bytes::Bytes;
use h2::client;
use http::Request;
use tokio::{net::TcpStream, time::timeout};
use tonic::Code;
use weft_tests::{Bed, Wire, eventually, framed, probe, probe_service};

const LIMIT: Duration = Duration::from_secs(60);
/// More than open a breaker.
const OFTEN: usize = 12;

/// How often the breaker of the one service that a sidecar calls has opened, and how many failures it counts.
async fn failures(bed: &Bed, service: &str) -> (u64, u64) {
    let state = bed.json(bed.ports("keyboard").admin, "/state").await;
    let services = state["services"].as_array().expect("a list");
    let name = format!("{service}.shop");
    let breaker = &services.iter().find(|known| known["name"] == name.as_str()).expect("it was called")["breaker"];
    let times = breaker["timesOpened"].as_str().unwrap_or("0").parse().expect("a number");
    (times, breaker["failures"].as_u64().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn requests_that_never_end_open_no_breaker() {
    let bed = Bed::start(&probe_service(1)).await;
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    let mut wire = Wire::connect(bed.outbound()).await;
    let mut slow = Vec::new();
    for _ in 0..OFTEN {
        let (answer, mut body) = wire.open("Quick", &[]).await;
        body.send_data(framed("hello").slice(..3), false).expect("it is sent");
        slow.push((answer, body));
    }
    for (answer, _body) in slow {
        let answer = timeout(LIMIT, answer).await.expect("the contract's time ends").expect("with an answer");
        let reason = answer.headers().get("x-weft-error").expect("made by the mesh");
        assert_eq!(reason, "deadline-exceeded");
    }
    assert_eq!(failures(&bed, "probe").await, (0, 0));
    probe(&bed.channel(), "Say", &[]).await.expect("an honest call goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_header_list_that_a_service_does_not_take_does_not_reach_it() {
    let bed = Bed::start(&format!("{}    env: {{ MAX_HEADER_LIST: 8192 }}\n", probe_service(1))).await;
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    let mut wire = Wire::connect(bed.outbound()).await;
    let long = "x".repeat(12 * 1024);
    let status = wire.call("Say", &[("x-long", &long)]).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert_eq!(status.metadata().get("x-weft-error").expect("made by the mesh"), "headers-too-large", "{status}");
    assert!(status.message().contains("8192 bytes that probe.shop takes"), "{status}");
    assert_eq!(wire.call("Say", &[]).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn upgrades_that_end_at_once_open_no_breaker() {
    let plain = "  plain:\n    run: ${BIN}/weft-test-app\n    protocol: http1\n    env: { SPEAK: http1 }\n";
    let bed = Bed::start(plain).await;
    let stream = TcpStream::connect(("127.0.0.1", bed.outbound())).await.expect("it listens");
    let (sender, connection) = client::handshake(stream).await.expect("HTTP/2 begins");
    tokio::spawn(connection);
    let ask = async |request: Request<()>| {
        let mut sender = sender.clone().ready().await.expect("the connection is whole");
        let (answer, mut body) = sender.send_request(request, false).expect("it is sent");
        // It may be answered before.
        let _ = body.send_data(Bytes::new(), true);
        timeout(LIMIT, answer).await.expect("in time").expect("an answer")
    };
    let honest = || Request::get("http://plain.shop/").body(()).expect("a request");
    assert_eq!(ask(honest()).await.status(), 200);
    eventually("its settings are here", LIMIT, async || sender.is_extended_connect_protocol_enabled()).await;
    for _ in 0..OFTEN {
        let request = Request::builder().method("CONNECT").uri("http://plain.shop/upgrade");
        let request = request.extension(h2::ext::Protocol::from("chatter")).body(()).expect("a request");
        let answer = ask(request).await;
        assert_eq!(answer.headers().get("x-weft-error").expect("made by the mesh"), "malformed", "{answer:?}");
    }
    assert_eq!(failures(&bed, "plain").await, (0, 0));
    assert_eq!(ask(honest()).await.status(), 200, "an honest call goes on");
}
