//! Calls through a pair of sidecars, good and bad.

use std::time::Duration;

use weft_tests::{Bed, probe, probe_service};

#[tokio::test]
async fn a_call_by_contract_crosses_two_sidecars_and_comes_back() {
    let bed = Bed::start(&probe_service(1)).await;
    let answer = probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    assert_eq!(answer.into_inner().text, "hello");

    // What the service sees: who called, and how much time is left.
    let answer = probe(&bed.channel(), "Quick", &[("x-do", "headers")]).await.expect("an answer");
    let headers = answer.into_inner().text;
    assert!(headers.contains("URI=spiffe://weft.local/ns/shop/sa/keyboard"), "{headers}");
    let timeout = headers.lines().find_map(|line| line.strip_prefix("grpc-timeout: ")).expect("the contract's timeout");
    let micros: u64 = timeout.trim_end_matches('u').parse().expect("microseconds");
    assert!((1..300_000).contains(&micros), "less than the contract's 300 ms is left: {timeout}");
}

#[tokio::test]
async fn a_contract_s_timeout_ends_a_call() {
    let bed = Bed::start(&probe_service(1)).await;
    let began = std::time::Instant::now();
    let status = probe(&bed.channel(), "Quick", &[("x-do", "sleep:10000")]).await.expect_err("too late");
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status}");
    assert_eq!(status.metadata().get("x-weft-error").expect("made by the mesh"), "deadline-exceeded");
    assert!(began.elapsed() < Duration::from_secs(5));
}
