//! Callers that try to make a service look broken: all clients of a sidecar share its breaker, and all callers share
//! its connections.

use std::time::Duration;

use tokio::time::timeout;
use tonic::Code;
use weft_tests::{Bed, Wire, framed, probe, probe_service};

const LIMIT: Duration = Duration::from_secs(60);
/// More failures than a breaker needs to open.
const OFTEN: usize = 12;

/// How often the keyboard's breaker for a service has opened, and how many failures it counts.
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
        let answer = timeout(LIMIT, answer).await.expect("the contract's timeout ends it").expect("an answer");
        let reason = answer.headers().get("x-weft-error").expect("made by the mesh");
        assert_eq!(reason, "deadline-exceeded");
    }
    assert_eq!(failures(&bed, "probe").await, (0, 0));
    probe(&bed.channel(), "Say", &[]).await.expect("an honest call goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_header_list_over_the_services_limit_does_not_reach_it() {
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
