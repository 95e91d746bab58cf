//! What counts against a breaker and what does not: the table of `docs/breakers.md`, row by row, through real sidecars.
//!
//! The probe's contract opens its breaker after three failures in a row.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic::Code;
use weft_mesh::{errors::Reason, policy::BreakerPolicy};
use weft_tests::{Bed, Wire, eventually, framed, metric, probe, probe_service, root};

const LIMIT: Duration = Duration::from_secs(60);

/// More failures than the breaker needs to open.
const OFTEN: usize = 10;

/// The value of `x-weft-error`, or an empty string.
fn reason(status: &tonic::Status) -> String {
    let value = status.metadata().get("x-weft-error");
    value.map(|value| value.to_str().expect("text").to_owned()).unwrap_or_default()
}

/// Whether the breaker refuses calls. It makes one call to find out.
async fn is_open(bed: &Bed) -> bool {
    match probe(&bed.channel(), "Say", &[]).await {
        Ok(_) => false,
        Err(status) => {
            assert_eq!(reason(&status), "breaker-open", "{status:?}");
            true
        }
    }
}

/// Sends a request over HTTP/2, and returns the whole answer.
async fn ask(bed: &Bed, path: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
    let stream = TcpStream::connect(("127.0.0.1", bed.outbound())).await.expect("it listens");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("HTTP/2 begins");
    tokio::spawn(connection);
    let mut request = Request::post(format!("http://127.0.0.1:{}{path}", bed.outbound()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Full::new(framed("hello"))).expect("a request")).await;
    let (head, body) = response.expect("an answer").into_parts();
    Response::from_parts(head, body.collect().await.expect("a whole answer").to_bytes())
}

#[tokio::test]
async fn outcomes_that_do_not_count_open_no_breaker() {
    let bed = Bed::start(&probe_service(1)).await;
    assert!(!is_open(&bed).await);

    let mut wire = Wire::connect(bed.outbound()).await;
    for _ in 0..OFTEN {
        let status = wire.call("Say", &[("x-do", "sleep:20000"), ("grpc-timeout", "3m")]).await;
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    }
    assert!(!is_open(&bed).await, "the caller's own deadline");

    for code in (1..=16).filter(|code| ![4, 13, 14, 15].contains(code)) {
        for _ in 0..OFTEN {
            let status =
                probe(&bed.channel(), "Say", &[("x-do", &format!("status:{code}"))]).await.expect_err("a status");
            assert_eq!((status.code() as i32, reason(&status)), (code, String::new()), "{status:?}");
        }
        assert!(!is_open(&bed).await, "gRPC {code}");
    }
    for _ in 0..OFTEN {
        let status = probe(&bed.channel(), "Say", &[("x-do", "status:4")]).await.expect_err("a status");
        assert_eq!(reason(&status), "", "{status:?}");
    }
    assert!(!is_open(&bed).await, "DEADLINE_EXCEEDED without a contract that says so");

    for status in [400, 404, 429, 501, 505] {
        for _ in 0..OFTEN {
            let answer =
                ask(&bed, "/probe.v1.Probe/Say", &[("x-weft-service", "probe"), ("x-do", &format!("http:{status}"))])
                    .await;
            assert_eq!(answer.status().as_u16(), status);
        }
        assert!(!is_open(&bed).await, "HTTP {status}");
    }

    // CANCEL, ENHANCE_YOUR_CALM
    for code in [8, 11] {
        for _ in 0..OFTEN {
            probe(&bed.channel(), "Say", &[("x-do", &format!("reset:{code}"))]).await.expect_err("no answer");
        }
        assert!(!is_open(&bed).await, "a reset with {code}");
    }
}

/// Repeats an outcome, as `x-do` names it, until the breaker has opened.
async fn opens_the_breaker(what: &str) {
    let bed = Bed::start(&probe_service(1)).await;
    assert!(!is_open(&bed).await);
    let content_type = match what.split(':').next() {
        Some("http" | "forge") => "text/plain",
        Some("web") => "application/grpc-web+proto",
        _ => "application/grpc",
    };
    eventually(&format!("{what} opens the breaker"), LIMIT, async || {
        if what.starts_with("reset") || what.starts_with("status") {
            let _ = probe(&bed.channel(), "Say", &[("x-do", what)]).await;
        } else {
            let headers = [("x-weft-service", "probe"), ("x-do", what), ("content-type", content_type)];
            ask(&bed, "/probe.v1.Probe/Say", &headers).await;
        }
        bed.json(bed.ports("keyboard").admin, "/state").await["services"][0]["breaker"]["timesOpened"]
            .as_str()
            .is_some_and(|times| times != "0")
    })
    .await;
    // And a user sees it, without the admin page.
    eventually("the sidecar says so", LIMIT, async || bed.log().contains("the breaker of probe.shop has opened for "))
        .await;
    let labels = r#"service="probe.shop",kind="service""#;
    assert!(metric(bed.ports("keyboard").metrics, "weft_breaker_openings_total", labels).await >= 1.0);
}

#[tokio::test]
async fn internal_opens_the_breaker() {
    opens_the_breaker("status:13").await;
}

#[tokio::test]
async fn unavailable_opens_the_breaker() {
    opens_the_breaker("status:14").await;
}

#[tokio::test]
async fn data_loss_opens_the_breaker() {
    opens_the_breaker("status:15").await;
}

#[tokio::test]
async fn http_500_opens_the_breaker() {
    opens_the_breaker("http:500").await;
}

#[tokio::test]
async fn http_502_opens_the_breaker() {
    opens_the_breaker("http:502").await;
}

#[tokio::test]
async fn http_503_opens_the_breaker() {
    opens_the_breaker("http:503").await;
}

#[tokio::test]
async fn http_504_opens_the_breaker() {
    opens_the_breaker("http:504").await;
}

#[tokio::test]
async fn a_reset_with_internal_error_opens_the_breaker() {
    opens_the_breaker("reset:2").await;
}

#[tokio::test]
async fn internal_by_grpc_web_opens_the_breaker() {
    opens_the_breaker("web:13").await;
}

#[tokio::test]
async fn a_503_that_pretends_to_be_the_meshs_opens_the_breaker() {
    opens_the_breaker("forge:503").await;
}

#[tokio::test]
async fn a_timeout_of_the_contract_opens_the_breaker() {
    let bed = Bed::start(&probe_service(1)).await;
    eventually("three timeouts in a row open it", LIMIT, async || {
        let status =
            probe(&bed.channel(), "Quick", &[("x-do", "sleep:20000")]).await.expect_err("the service is too slow");
        reason(&status) == "breaker-open"
    })
    .await;
}

#[tokio::test]
async fn a_contract_can_choose_which_codes_count() {
    let proto = root().join("tests/proto/probe/v1/strict.proto").display().to_string();
    let service =
        format!("  strict:\n    run: ${{BIN}}/weft-test-app\n    protos: [{proto}]\n    proto_path: ${{PROTO_PATH}}\n");
    let bed = Bed::start(&service).await;
    let say = async |what: &str| {
        let headers = [("content-type", "application/grpc"), ("te", "trailers"), ("x-do", what)];
        let answer = ask(&bed, "/probe.strict.v1.Strict/Say", &headers).await;
        answer.headers().get("x-weft-error").map(|value| value.to_str().expect("text").to_owned())
    };
    for _ in 0..OFTEN {
        assert_eq!(say("status:14").await, None, "its contract does not count UNAVAILABLE");
    }
    for _ in 0..3 {
        assert_eq!(say("status:2").await, None);
    }
    assert_eq!(say("").await.as_deref(), Some("breaker-open"), "its contract counts UNKNOWN");
}

#[tokio::test]
async fn calls_that_are_slow_open_the_breaker_if_the_contract_says_so() {
    let proto = root().join("tests/proto/probe/v1/slow.proto").display().to_string();
    let service =
        format!("  slow:\n    run: ${{BIN}}/weft-test-app\n    protos: [{proto}]\n    proto_path: ${{PROTO_PATH}}\n");
    let bed = Bed::start(&service).await;
    let say = async |what: &str| {
        let headers = [("content-type", "application/grpc"), ("te", "trailers"), ("x-do", what)];
        let answer = ask(&bed, "/probe.slow.v1.Slow/Say", &headers).await;
        answer.headers().get("x-weft-error").map(|value| value.to_str().expect("text").to_owned())
    };
    // Three times what its contract allows, but answered with OK.
    for slow in 0..3 {
        assert_eq!(say("sleep:300").await, None, "{slow} calls are too few to judge");
    }
    let breaker = &bed.json(bed.ports("keyboard").admin, "/state").await["services"][0]["breaker"];
    assert_eq!((&breaker["slowCalls"], &breaker["failures"]), (&3.into(), &0.into()), "{breaker}");
    assert_eq!(say("sleep:300").await, None);
    assert_eq!(say("").await.as_deref(), Some("breaker-open"), "all of four calls were slow");
}

/// gRPC-Web has its trailers in the body. An answer without others is not a failure.
#[tokio::test]
async fn grpc_web_and_connect_get_answers_and_errors_in_their_own_form() {
    let bed = Bed::start(&probe_service(1)).await;
    let web = [("content-type", "application/grpc-web+proto"), ("x-do", "web:0")];
    for _ in 0..3 * OFTEN {
        let answer = ask(&bed, "/probe.v1.Probe/Say", &web).await;
        assert_eq!((answer.status().as_u16(), answer.headers().get("x-weft-error")), (200, None));
        assert!(answer.body().ends_with(b"grpc-status:0\r\n"), "{:?}", answer.body());
    }
    // A control plane that has just started cannot say yet that there is no such service.
    let missing = async || ask(&bed, "/no.such.Service/Do", &web).await;
    eventually("the control plane knows all services", LIMIT, async || {
        missing().await.headers().get("x-weft-error").is_some_and(|reason| reason == "no-such-service")
    })
    .await;
    let answer = missing().await;
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().expect("text"));
    assert_eq!(header("content-type"), Some("application/grpc-web"));
    assert_eq!(header("grpc-status"), Some("12"));

    let connect = [("content-type", "application/json"), ("connect-protocol-version", "1")];
    let answer = ask(&bed, "/no.such.Service/Do", &connect).await;
    assert_eq!(answer.status().as_u16(), 501);
    let error: serde_json::Value = serde_json::from_slice(answer.body()).expect("an error of Connect");
    assert_eq!(error["code"], "unimplemented", "{error}");
}

/// An answer that is too large fails its own call, and no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_with_too_large_headers_fails_only_its_own_call() {
    let bed = Bed::start(&probe_service(1)).await;
    let channel = bed.channel();
    probe(&channel, "Say", &[]).await.expect("an answer");
    let others: Vec<_> = (0..40)
        .map(|_| {
            let channel = channel.clone();
            tokio::spawn(async move { probe(&channel, "Say", &[("x-do", "sleep:2000")]).await })
        })
        .collect();
    // A bare client: tonic's refuses a trailer of that size itself.
    let mut wire = Wire::connect(bed.outbound()).await;
    for _ in 0..OFTEN {
        for what in ["large-head:70000", "large-trailer:70000", "large-trailer:300000", "large-trailer:3000000"] {
            let status = wire.call("Say", &[("x-do", what)]).await;
            assert_eq!(reason(&status), "answer-headers-too-large", "{what}: {status:?}");
            assert_eq!(status.code(), Code::ResourceExhausted);
            assert!(status.message().contains("over 65536 bytes"), "{status:?}");
        }
    }
    for other in others {
        other.await.expect("no panic").expect("it is answered");
    }
    assert!(!is_open(&bed).await);
}

#[tokio::test]
async fn a_request_with_too_large_headers_is_refused() {
    let bed = Bed::start(&probe_service(1)).await;
    let large = "x".repeat(70_000);
    let mut wire = Wire::connect(bed.outbound()).await;
    let headers: &[(&'static str, &str)] = &[("x-large", &large)];
    let status = wire.call("Say", headers).await;
    assert_eq!((status.code(), reason(&status)), (Code::ResourceExhausted, "headers-too-large".into()), "{status:?}");
    assert_eq!(wire.call("Say", &[]).await.code(), Code::Ok, "the connection goes on");
    let answer = ask(&bed, "/probe/", &[("x-large", &large)]).await;
    assert_eq!(answer.status().as_u16(), 431);
    // A list just within the limit passes both sidecars.
    let fits = "x".repeat(65_000);
    assert_eq!(wire.call("Say", &[("x-large", &fits)]).await.code(), Code::Ok);
}

#[tokio::test]
async fn a_flag_raises_the_limit_on_headers() {
    let bed = Bed::start_with(&probe_service(1), &["--header-list-bytes", "1000000"]).await;
    let mut wire = Wire::connect(bed.outbound()).await;
    let large = "x".repeat(500_000);
    assert_eq!(wire.call("Say", &[("x-do", "swallow"), ("x-large", &large)]).await.code(), Code::Ok);
    assert_eq!(wire.call("Say", &[("x-do", "large-trailer:500000")]).await.code(), Code::Ok);
}

/// The table of the page for users matches the table in the code.
#[test]
fn the_page_on_breakers_matches_the_code() {
    let page = std::fs::read_to_string(root().join("docs/breakers.md")).expect("there is such a page");
    for reason in Reason::ALL {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{}` |", reason.as_str())));
        let row = row.unwrap_or_else(|| panic!("a row for {}", reason.as_str()));
        assert!(row.contains(&format!("| {:?} |", reason.blame())), "{row}");
    }
    let default = BreakerPolicy::default().failure_codes;
    let names: Vec<_> = default.iter().map(|code| weft_mesh::errors::GRPC_CODES[usize::from(code)]).collect();
    assert!(page.contains(&format!("Default: {}.", names.join(", "))), "{names:?}");
}
