//! Parts of the mesh die, and calls go on.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use weft_mesh::limits::ENDPOINT_EXPIRY;
use weft_tests::{Bed, Load, Outcome, Wire, eventually, is_alive, metric, probe, probe_service, signal};

/// A guard that only a very slow machine reaches.
const LIMIT: Duration = Duration::from_secs(60);

/// How many calls in a row must be answered before a death counts as over.
const CALM: usize = 40;

/// The state of the keyboard's sidecar.
async fn state(bed: &Bed) -> Value {
    bed.json(bed.ports("keyboard").admin, "/state").await
}

/// What the keyboard's sidecar knows of the only service.
async fn watched(bed: &Bed) -> Value {
    state(bed).await["services"][0].clone()
}

/// How many endpoints the keyboard's sidecar may choose from.
async fn endpoints_up(bed: &Bed) -> usize {
    let endpoints = watched(bed).await["endpoints"].as_array().cloned().unwrap_or_default();
    endpoints.iter().filter(|endpoint| endpoint["health"] == "HEALTH_UP").count()
}

/// Waits until this many replicas have answered calls.
async fn answering(bed: &Bed, replicas: usize) {
    let channel = bed.channel();
    let pids = std::cell::RefCell::new(BTreeSet::new());
    eventually("every replica answers", LIMIT, async || {
        if let Ok(answer) = probe(&channel, "Say", &[]).await {
            let pid = answer.metadata().get("x-pid").expect("every answer has it").to_str().expect("digits");
            pids.borrow_mut().insert(pid.to_owned());
        }
        pids.borrow().len() >= replicas
    })
    .await;
}

fn failed(outcomes: &[Outcome]) -> Vec<(Instant, &Status)> {
    outcomes.iter().filter_map(|outcome| Some((outcome.began, outcome.answer.as_ref().err()?))).collect()
}

fn reason(status: &Status) -> &str {
    status.metadata().get("x-weft-error").and_then(|reason| reason.to_str().ok()).unwrap_or_default()
}

/// The number of calls of `Chat` under way in the service's sidecar.
async fn chats(bed: &Bed) -> f64 {
    metric(bed.ports("probe-1").metrics, "weft_calls_in_flight", "Probe/Chat").await
}

/// How many calls the service has seen break off; 0 while it does not answer.
async fn broken(bed: &Bed) -> u64 {
    let Ok(answer) = probe(&bed.channel(), "Say", &[]).await else { return 0 };
    answer.metadata().get("x-broken").expect("a count").to_str().expect("text").parse().expect("a number")
}

#[tokio::test]
async fn calls_cancelled_before_the_service_reads_them_fail_no_other_call() {
    let bed = Bed::start(&probe_service(1)).await;
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    let load = Load::start(bed.channel(), "");
    for _ in 0..3 {
        let mut client = Wire::connect(bed.outbound()).await;
        let mut calls = Vec::new();
        // More than the number of unread cancelled requests at which servers on the h2 crate end a connection.
        signal("-STOP", bed.pid("probe-1"));
        for _ in 0..60 {
            calls.push(client.open("Chat", &[("x-do", "sleep:60000")]).await);
        }
        eventually("all are sent to the service", LIMIT, async || chats(&bed).await == 60.0).await;
        client.cut();
        eventually("all are cancelled", LIMIT, async || chats(&bed).await == 0.0).await;
        signal("-CONT", bed.pid("probe-1"));
        probe(&bed.channel(), "Say", &[]).await.expect("the service goes on");
    }
    let outcomes = load.stop().await;
    assert!(failed(&outcomes).is_empty(), "{:?}", failed(&outcomes));
}

/// Netty's servers end a connection on which more than 200 calls are cancelled within 30 s.
#[tokio::test]
async fn a_service_that_limits_cancels_ends_a_connection_only_once() {
    let bed = Bed::start(&format!("{}    env: {{ MAX_RESETS: 200 }}\n", probe_service(1))).await;
    let cancel_many = async || {
        for _ in 0..6 {
            let mut client = Wire::connect(bed.outbound()).await;
            let mut calls = Vec::new();
            let seen = broken(&bed).await;
            for _ in 0..50 {
                calls.push(client.open("Chat", &[("x-do", "sleep:60000")]).await);
            }
            eventually("all are sent to the service", LIMIT, async || chats(&bed).await == 50.0).await;
            client.cut();
            eventually("all are cancelled", LIMIT, async || chats(&bed).await == 0.0).await;
            eventually("the service has seen it", LIMIT, async || broken(&bed).await >= seen + 50).await;
        }
    };
    // The sidecar learns of the limit when it reaches it for the first time.
    cancel_many().await;
    eventually("the sidecar says so", LIMIT, async || {
        // The broken calls may have opened the breaker.
        probe(&bed.channel(), "Say", &[]).await.is_ok() && bed.log().contains("ENHANCE_YOUR_CALM")
    })
    .await;
    let load = Load::start(bed.channel(), "");
    load.calls(20).await;
    cancel_many().await;
    load.calls(20).await;
    let outcomes = load.stop().await;
    assert!(failed(&outcomes).is_empty(), "{:?}", failed(&outcomes));
    assert_eq!(bed.log().matches("ENHANCE_YOUR_CALM").count(), 1, "the limit was not reached a second time");
}

#[tokio::test]
async fn no_call_fails_while_the_control_plane_is_away_and_comes_back() {
    let bed = Bed::start(&probe_service(1)).await;
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    let epoch = watched(&bed).await["version"]["epoch"].clone();
    let load = Load::start(bed.channel(), "");

    // It hangs, then dies: calls may notice neither.
    let first = bed.pid("control");
    signal("-STOP", first);
    let unknown =
        probe(&bed.channel(), "Say", &[("x-weft-service", "nobody")]).await.expect_err("there is no such service");
    assert_eq!(reason(&unknown), "control-plane-away", "whether it exists is unknown: {unknown:?}");
    bed.kill("control");
    eventually("the new control plane's snapshot is in use", LIMIT, async || {
        let (state, service) = (state(&bed).await, watched(&bed).await);
        state["controlPlaneConnected"] == true && service["version"]["epoch"] != epoch
    })
    .await;
    assert_ne!(bed.pid("control"), first);
    assert_eq!(endpoints_up(&bed).await, 1);
    load.calls(50).await;

    let outcomes = load.stop().await;
    let failed = failed(&outcomes);
    assert!(failed.is_empty(), "{} of {} calls failed: {:?}", failed.len(), outcomes.len(), failed[0].1);
    assert!(bed.log().contains("control: was ended by signal 9 (SIGKILL)"), "weft up says what died");

    // A sidecar and the control plane restart at the same time.
    let keyboard = bed.pid("keyboard·sidecar");
    bed.kill("control");
    bed.kill("keyboard·sidecar");
    let channel = bed.channel();
    eventually("calls work again", LIMIT, async || probe(&channel, "Say", &[]).await.is_ok()).await;
    assert_ne!(bed.pid("keyboard·sidecar"), keyboard);
}

/// Streams that break because the control plane hangs must not remove endpoints.
#[tokio::test]
async fn no_call_fails_when_the_control_plane_hangs_and_goes_on() {
    let bed = Bed::start(&probe_service(1)).await;
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    let control = bed.pid("control");
    let admins = [bed.ports("keyboard").admin, bed.ports("probe-1").admin];
    let load = Load::start(bed.channel(), "");
    let sidecar = bed.pid("probe-1·sidecar");
    for is_late in [false, true] {
        signal("-STOP", control);
        for admin in admins {
            eventually("the sidecars notice that it is away", LIMIT, async || {
                bed.json(admin, "/state").await["controlPlaneConnected"] == false
            })
            .await;
        }
        load.calls(10).await;
        if is_late {
            // The caller's sidecar is back before the endpoint's.
            signal("-STOP", sidecar);
        }
        signal("-CONT", control);
        for admin in if is_late { &admins[..1] } else { &admins } {
            eventually("the sidecars are back", LIMIT, async || {
                bed.json(*admin, "/state").await["controlPlaneConnected"] == true
            })
            .await;
        }
        load.calls(10).await;
        signal("-CONT", sidecar);
        eventually("it has settled again", LIMIT, async || watched(&bed).await["complete"] == true).await;
        load.calls(10).await;
    }
    assert_eq!(endpoints_up(&bed).await, 1);
    assert_eq!(bed.pid("control"), control, "it was not started again");
    let outcomes = load.stop().await;
    let failed = failed(&outcomes);
    assert!(failed.is_empty(), "{} of {} calls failed: {:?}", failed.len(), outcomes.len(), failed[0].1);
}

/// Waits until a process and its connections are gone and its callers have noticed, so that [`CALM`] calls in a row are
/// answered. No call that starts later may fail.
async fn has_died(bed: &Bed, pid: u32) -> Instant {
    eventually("the killed process has gone", LIMIT, async || !is_alive(pid)).await;
    let channel = bed.channel();
    eventually("calls are answered", LIMIT, async || {
        for _ in 0..CALM {
            if probe(&channel, "Say", &[]).await.is_err() {
                return false;
            }
        }
        true
    })
    .await;
    Instant::now()
}

/// Only calls that run in the replica may fail. They are more than the failures in a row that open a breaker, and fail at
/// once.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_calls_in_a_replica_that_dies_fail() {
    let bed = &Bed::start(&probe_service(2)).await;
    answering(bed, 2).await;
    let load = Load::start(bed.channel(), "sleep:300");
    load.calls(20).await;
    let first = bed.pid("probe-1");
    bed.kill("probe-1");
    let over = has_died(bed, first).await;
    eventually("weft up starts it again", LIMIT, async || bed.log().contains("probe-1: started again")).await;
    load.calls(100).await;
    let outcomes = load.stop().await;
    for (began, status) in failed(&outcomes) {
        assert!(began < over, "a call failed that began {:?} after the death was over: {status:?}", began - over);
        assert_eq!(reason(status), "connection-broke", "{status:?}");
    }
    assert_ne!(bed.pid("probe-1"), first);
    eventually("both replicas are known to be up again", LIMIT, async || endpoints_up(bed).await == 2).await;
    answering(bed, 2).await;
}

/// Its endpoint disappears for others at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_sidecar_that_dies_gets_no_more_calls_and_comes_back() {
    let bed = &Bed::start(&probe_service(2)).await;
    answering(bed, 2).await;
    let load = Load::start(bed.channel(), "sleep:30");
    load.calls(20).await;
    let (old, sidecar) = (bed.ports("probe-1").inbound, bed.pid("probe-1·sidecar"));
    bed.kill("probe-1·sidecar");
    let over = has_died(bed, sidecar).await;
    let gets_calls = async || {
        let service = watched(bed).await;
        let mut endpoints = service["endpoints"].as_array().expect("a list").iter();
        endpoints.any(|e| e["address"] == format!("127.0.0.1:{old}") && e["health"] == "HEALTH_UP")
    };
    // The broken stream removes it: this does not wait until a silent endpoint expires.
    const { assert!(LIMIT.as_secs() < ENDPOINT_EXPIRY.as_secs()) };
    eventually("its endpoint is gone", LIMIT, async || !gets_calls().await).await;
    eventually("both replicas are known to be up again", LIMIT, async || endpoints_up(bed).await == 2).await;
    load.calls(100).await;
    for (began, status) in failed(&load.stop().await) {
        assert!(began < over, "a call failed that began {:?} after the death was over: {status:?}", began - over);
    }
    answering(bed, 2).await;
}

/// A process that hangs keeps its connections, and answers nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_sidecar_that_hangs_gets_no_more_calls_until_it_goes_on() {
    let bed = &Bed::start(&probe_service(2)).await;
    answering(bed, 2).await;
    let hung = bed.pid("probe-2·sidecar");
    signal("-STOP", hung);
    eventually("the half-dead sidecar gets no more calls", LIMIT, async || endpoints_up(bed).await == 1).await;
    let (channel, alive) = (bed.channel(), bed.pid("probe-1").to_string());
    for _ in 0..20 {
        let answer = probe(&channel, "Say", &[]).await.expect("the other replica answers");
        assert_eq!(answer.metadata().get("x-pid").expect("every answer has it"), alive.as_str());
    }
    signal("-CONT", hung);
    eventually("both replicas are known to be up again", LIMIT, async || endpoints_up(bed).await == 2).await;
    answering(bed, 2).await;
}

#[tokio::test]
async fn a_breaker_opens_says_when_to_retry_and_closes_after_a_probe() {
    let bed = Bed::start(&probe_service(1)).await;
    let channel = bed.channel();
    probe(&channel, "Say", &[]).await.expect("an answer");

    let mut calls_failed = 0;
    let refused = loop {
        let status = probe(&channel, "Say", &[("x-do", "status:14")]).await.expect_err("no answer");
        match reason(&status) {
            "" => calls_failed += 1,
            "breaker-open" => break status,
            other => panic!("{other}: {status:?}"),
        }
        assert!(calls_failed < 50, "the breaker does not open");
    };
    // The contract says three. If the machine stalls for a second, a probe may come in between.
    assert!(calls_failed >= 3, "{calls_failed}");
    assert_eq!(refused.code(), Code::Unavailable);
    let details = refused.get_error_details();
    let info = details.error_info().expect("google.rpc.ErrorInfo");
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("breaker-open", "weft"));
    let again_in = details.retry_info().and_then(|info| info.retry_delay).expect("google.rpc.RetryInfo");
    assert!(!again_in.is_zero() && again_in <= Duration::from_secs(1), "{again_in:?}");
    let pushback = refused.metadata().get("grpc-retry-pushback-ms").expect("gRFC A6").to_str().expect("digits");
    assert_eq!(u128::from(pushback.parse::<u64>().expect("milliseconds")), again_in.as_millis());

    eventually("the admin port shows it open", LIMIT, async || {
        let _ = probe(&channel, "Say", &[("x-do", "status:14")]).await;
        watched(&bed).await["breaker"]["state"] == "STATE_OPEN"
    })
    .await;
    let admin = bed.ports("keyboard").admin;
    eventually("the admin page shows it open", LIMIT, async || {
        let _ = probe(&channel, "Say", &[("x-do", "status:14")]).await;
        weft_tests::get(admin, "/").await.1.contains(r#"<span class="bad">open</span>"#)
    })
    .await;

    eventually("a probe closes it", LIMIT, async || probe(&channel, "Say", &[]).await.is_ok()).await;
    eventually("the admin port shows it closed", LIMIT, async || {
        let shown = watched(&bed).await;
        shown["breaker"]["state"] == "STATE_CLOSED" && shown["endpoints"][0]["breaker"]["state"] == "STATE_CLOSED"
    })
    .await;
    let shown = watched(&bed).await;
    let count = |name: &str| shown["breaker"][name].as_str().expect("a 64-bit number").parse::<u64>().expect("digits");
    assert!(count("timesOpened") >= 1 && count("callsRefused") >= 1, "{shown}");
    probe(&channel, "Say", &[]).await.expect("an answer");
}
