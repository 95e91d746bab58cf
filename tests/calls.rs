//! Valid and invalid calls through a pair of sidecars.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use tokio_stream::StreamExt;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt;
use weft_mesh::policy::ServicePolicy;
use weft_tests::{
    Bed, Text, Wire, assert_no_panics, eventually, framed, get, metric, outside, probe, probe_service, raw,
};

/// A guard that only a very slow machine reaches.
const SOON: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_idempotent_methods_are_retried() {
    let bed = Bed::start(&probe_service(2)).await;
    let once = |name: &str| format!("die-once:{}", bed.dir().join(name).display());

    let answer = probe(&bed.channel(), "Read", &[("x-do", &once("read"))]).await.expect("the other replica answers");
    assert_eq!(answer.into_inner().text, "hello");
    assert!(bed.dir().join("read").exists(), "one replica has died");
    assert_eq!(metric(bed.ports("keyboard").metrics, "weft_retries_total", "Probe/Read").await, 1.0);

    let status =
        probe(&bed.channel(), "Say", &[("x-do", &once("say"))]).await.expect_err("the method is not idempotent");
    assert_made_by_mesh(&status, Code::Unavailable, "connection-broke");
    assert_eq!(metric(bed.ports("keyboard").metrics, "weft_not_retried_unsafe_total", "").await, 1.0);

    // A call that no replica has seen is sent to another one, idempotent or not.
    for _ in 0..10 {
        eventually("a replica answers", SOON, async || probe(&bed.channel(), "Say", &[]).await.is_ok()).await;
    }
}

fn assert_made_by_mesh(status: &Status, code: Code, reason: &str) {
    assert_eq!(status.code(), code, "{status}");
    assert_eq!(status.metadata().get("x-weft-error").expect("made by the mesh"), reason, "{status}");
    let info = status.get_details_error_info().expect("google.rpc.ErrorInfo");
    assert_eq!((&*info.reason, &*info.domain), (reason, "weft"));
}

async fn chat(bed: &Bed, requests: impl tokio_stream::Stream<Item = Text> + Send + 'static) -> tonic::Streaming<Text> {
    let mut client = tonic::client::Grpc::new(bed.channel());
    client.ready().await.expect("the sidecar is there");
    let path = http::uri::PathAndQuery::from_static("/probe.v1.Probe/Chat");
    let answer = client.streaming(Request::new(requests), path, ProstCodec::<Text, Text>::default()).await;
    answer.expect("the stream opens").into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_by_contract_crosses_two_sidecars_and_comes_back() {
    let bed = &Bed::start(&probe_service(1)).await;
    let answer = probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    assert_eq!(answer.into_inner().text, "hello");
    let answer = probe(&bed.channel(), "Say", &[("x-weft-service", "probe")]).await.expect("an answer by name");
    assert_eq!(answer.into_inner().text, "hello");

    // What the service sees: who calls, the trace, and how much time is left.
    let forged = ("x-forwarded-client-cert", "By=me;URI=spiffe://weft.local/ns/shop/sa/admin");
    let headers = seen_by_service(bed, "Quick", &[("x-do", "headers"), forged]).await;
    let callers: Vec<_> = headers.lines().filter(|line| line.starts_with("x-forwarded-client-cert: ")).collect();
    assert!(callers.len() == 1 && callers[0].ends_with("URI=spiffe://weft.local/ns/shop/sa/keyboard"), "{headers}");
    assert!(headers.contains("traceparent: 00-"), "{headers}");
    assert!((1..300_000).contains(&micros_left(&headers)), "less than the contract's 300 ms is left: {headers}");
}

/// A gRPC request ends with DATA, which may be empty. grpc-go's server does not see the end of a request whose head
/// ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_request_that_ends_with_empty_data_arrives_so() {
    let bed = &Bed::start(&probe_service(1)).await;
    for _ in 0..10 {
        let mut wire = Wire::connect(bed.outbound()).await;
        let (answer, mut body) = wire.open("Say", &[("x-do", "parts")]).await;
        body.send_data(Bytes::new(), true).expect("the connection is whole");
        let mut answer = answer.await.expect("an answer");
        let message = answer.body_mut().data().await.expect("a message").expect("it is whole");
        assert_eq!(message, framed("1"));
    }
}

/// The headers that the service saw of a call with `x-do: headers`. Repeats it, as its short deadline may pass on a
/// slow machine.
async fn seen_by_service(bed: &Bed, method: &str, headers: &[(&'static str, &str)]) -> String {
    let mut seen = String::new();
    eventually("it is answered in time", SOON, async || match probe(&bed.channel(), method, headers).await {
        Ok(answer) => {
            seen = answer.into_inner().text;
            true
        }
        Err(_) => false,
    })
    .await;
    seen
}

/// The time that is left according to the service's `grpc-timeout`.
fn micros_left(headers: &str) -> u64 {
    let timeout = headers.lines().find_map(|line| line.strip_prefix("grpc-timeout: ")).expect("a timeout");
    timeout.trim_end_matches('u').parse().expect("microseconds")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_sooner_of_two_deadlines_ends_a_call() {
    let bed = &Bed::start(&probe_service(1)).await;
    // The contract says 300 ms. A bare client: tonic's would end the call by itself.
    for (timeout, limit) in [("20S", 300), ("100m", 100), ("99999999H", 300), ("soon", 300)] {
        // The service would answer in ten minutes, and its call is cancelled, if it came so far before the deadline.
        let before = broken(bed).await;
        eventually("the service's call is cancelled, too", SOON, async || {
            let mut wire = Wire::connect(bed.outbound()).await;
            let status = wire.call("Quick", &[("x-do", "sleep:600000"), ("grpc-timeout", timeout)]).await;
            assert_made_by_mesh(&status, Code::DeadlineExceeded, "deadline-exceeded");
            // This makes a call that succeeds: the breaker opens at three failures in a row.
            broken(bed).await > before
        })
        .await;
        // The timeout that the service sees shows which of the two deadlines it was.
        let seen = seen_by_service(bed, "Quick", &[("x-do", "headers"), ("grpc-timeout", timeout)]).await;
        assert!((1..limit * 1_000).contains(&micros_left(&seen)), "{timeout}: {seen}");
    }
    let seen = seen_by_service(bed, "Say", &[("x-do", "headers"), ("grpc-timeout", "250m")]).await;
    assert!((1..250_000).contains(&micros_left(&seen)), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stream_of_both_sides_is_echoed_and_half_closed() {
    let bed = &Bed::start(&probe_service(1)).await;
    let (says, requests) = tokio::sync::mpsc::channel(1);
    let mut answers = chat(bed, tokio_stream::wrappers::ReceiverStream::new(requests)).await;
    for word in ["one", "two", "three"] {
        says.send(Text { text: word.into() }).await.expect("the stream is open");
        // It comes before the next is sent: nothing waits for the end of the stream.
        assert_eq!(answers.message().await.expect("an echo").expect("a message").text, word);
    }
    drop(says);
    assert_eq!(answers.message().await.expect("a good end"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_large_body_goes_both_ways() {
    let bed = &Bed::start(&probe_service(1)).await;
    let text = "0123456789abcdef".repeat(3 * 1024 * 1024 / 16);
    let mut client = tonic::client::Grpc::new(bed.channel());
    client.ready().await.expect("the sidecar is there");
    let path = http::uri::PathAndQuery::from_static("/probe.v1.Probe/Say");
    let request = Request::new(Text { text: text.clone() });
    let answer = client.unary(request, path, ProstCodec::<Text, Text>::default()).await.expect("an answer");
    assert!(answer.into_inner().text == text, "3 MB come back as they went");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_broken_answer_fails_its_call() {
    let bed = &Bed::start(&probe_service(1)).await;
    let status = probe(&bed.channel(), "Say", &[("x-do", "break")]).await.expect_err("half an answer is a failure");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    eventually("the service comes back", SOON, async || probe(&bed.channel(), "Say", &[]).await.is_ok()).await;
}

/// The list of contracts and the files of the probe's, by server reflection.
async fn reflect(bed: &Bed) -> Vec<MessageResponse> {
    let mut client = ServerReflectionClient::new(bed.channel());
    let asked =
        [MessageRequest::ListServices(String::new()), MessageRequest::FileContainingSymbol("probe.v1.Probe".into())];
    let asked = asked.map(|what| ServerReflectionRequest { host: String::new(), message_request: Some(what) });
    let answers = client.server_reflection_info(tokio_stream::iter(asked)).await.expect("reflection answers");
    let answers: Vec<_> = answers.into_inner().collect().await;
    let response = |answer: Result<ServerReflectionResponse, Status>| answer.expect("an answer").message_response;
    answers.into_iter().map(|answer| response(answer).expect("a response")).collect()
}

/// Waits until the control plane has the descriptors of the probe's contract.
async fn contract_is_known(bed: &Bed) {
    let is_known = async || matches!(reflect(bed).await[1], MessageResponse::FileDescriptorResponse(_));
    eventually("the contract's descriptors are known", SOON, is_known).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reflection_shows_every_contract_with_its_options() {
    let bed = &Bed::start(&probe_service(1)).await;
    contract_is_known(bed).await;
    let answers = reflect(bed).await;
    let [MessageResponse::ListServicesResponse(list), MessageResponse::FileDescriptorResponse(files)] = &answers[..]
    else {
        panic!("a list and files: {answers:?}")
    };
    assert!(list.service.iter().any(|service| service.name == "probe.v1.Probe"), "{list:?}");
    // Encodes a FileDescriptorSet: each file is field 1, with its length.
    let set: Vec<u8> = files
        .file_descriptor_proto
        .iter()
        .flat_map(|file| {
            let mut field = vec![0x0a];
            prost::encode_length_delimiter(file.len(), &mut field).expect("a growing buffer has room");
            field.extend(file);
            field
        })
        .collect();
    let policy = ServicePolicy::from_descriptors(&set, None).expect("the files are whole");
    let quick = policy.method("probe.v1.Probe", "Quick").expect("the method is there");
    assert_eq!(quick.timeout.expect("its option is there").value, Duration::from_millis(300));
    assert_eq!(policy.breaker.value.consecutive_failures, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn http1_finds_a_service_by_path_and_by_host() {
    let web = "  web:\n    run: ${BIN}/shop-web\n    protocol: http1\n    health: http:/health\n";
    let bed = &Bed::start(web).await;
    let port = bed.outbound();
    assert_eq!(get(port, "/web/health").await, (200, "ok\n".to_owned()));
    assert!(get(port, "/web").await.1.contains("<html"), "the path without a slash is the root");
    assert_eq!(http1(port, "web", "/health").await.0, 200);
    assert_eq!(http1(port, "web.shop:80", "/health").await.0, 200);
    // The service's own answers are passed on unchanged.
    let (status, headers, _) = http1(port, "web", "/no-such-page").await;
    assert_eq!((status, headers.get("x-weft-error")), (404, None));
    // A path that names no service is refused, with the closest name.
    let is_settled = async || http1(port, "127.0.0.1", "/wbe/health").await.0 != 503;
    eventually("the control plane has settled", weft_mesh::limits::SETTLING_TIME * 2, is_settled).await;
    let (status, headers, text) = http1(port, "127.0.0.1", "/wbe/health").await;
    assert_eq!((status, headers["x-weft-error"].to_str().expect("text")), (404, "no-such-service"), "{text}");
    assert!(text.contains("the closest is web.shop"), "{text}");
    let (status, headers, text) = http1(port, "127.0.0.1", "/").await;
    assert_eq!((status, headers["x-weft-error"].to_str().expect("text")), (404, "no-such-service"), "{text}");
}

async fn http1(port: u16, host: &str, path: &str) -> (u16, http::HeaderMap, String) {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("something listens");
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("HTTP/1.1 begins");
    tokio::spawn(connection);
    let request = http::Request::get(path).header("host", host).body(Empty::<Bytes>::new()).expect("a request");
    let (head, body) = sender.send_request(request).await.expect("an answer").into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    (head.status.as_u16(), head.headers, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn grpcurl_lists_and_calls() {
    let Some(grpcurl) = outside("grpcurl") else { return weft_tests::skip("grpcurl is not installed") };
    let bed = &Bed::start(&probe_service(1)).await;
    contract_is_known(bed).await;
    let address = format!("127.0.0.1:{}", bed.outbound());
    let run = |args: &[&str]| {
        let output = std::process::Command::new(&grpcurl).arg("-plaintext").args(args).output().expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(run(&[&address, "list"]).contains("probe.v1.Probe"));
    assert!(run(&[&address, "describe", "probe.v1.Probe.Quick"]).contains("weft.options.v1.method"));
    assert!(run(&["-d", r#"{"text":"Ada"}"#, &address, "probe.v1.Probe/Say"]).contains(r#""text": "Ada""#));
}

/// A stream beside bad input, which must not notice it.
struct Bystander {
    says: tokio::sync::mpsc::Sender<Text>,
    heard: tokio::task::JoinHandle<Vec<String>>,
}

impl Bystander {
    async fn start(bed: &Bed) -> Self {
        let (says, requests) = tokio::sync::mpsc::channel(1);
        let mut answers = chat(bed, tokio_stream::wrappers::ReceiverStream::new(requests)).await;
        says.send(Text { text: "first".into() }).await.expect("the stream is open");
        let heard = tokio::spawn(async move {
            let mut words = Vec::new();
            while let Some(message) = answers.message().await.expect("the bystander's stream is whole") {
                words.push(message.text);
            }
            words
        });
        Self { says, heard }
    }

    async fn noticed_nothing(self, bed: &Bed) {
        self.says.send(Text { text: "last".into() }).await.expect("the bystander is heard");
        drop(self.says);
        assert_eq!(self.heard.await.expect("no panic"), ["first", "last"]);
        assert_no_panics(bed, "probe-1").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_unknown_name_is_refused_with_the_closest_name() {
    let bed = &Bed::start(&probe_service(1)).await;
    let unknown = async |path: &'static str, service: Option<&str>| {
        let mut request = Request::new(Text::default());
        if let Some(service) = service {
            request.metadata_mut().insert("x-weft-service", service.parse().expect("ASCII"));
        }
        let mut client = tonic::client::Grpc::new(bed.channel());
        client.ready().await.expect("the sidecar is there");
        let path = http::uri::PathAndQuery::from_static(path);
        let status = client.unary(request, path, ProstCodec::<Text, Text>::default()).await.expect_err("unknown");
        if status.metadata().get("x-weft-error").is_some_and(|reason| reason == "control-plane-away") {
            return None;
        }
        assert_made_by_mesh(&status, Code::Unimplemented, "no-such-service");
        Some(status.message().to_owned())
    };
    // Just started, the control plane can't say yet what does not exist.
    let settled = async || unknown("/probe.v1.Prob/Say", None).await.is_some();
    eventually("the control plane has settled", weft_mesh::limits::SETTLING_TIME * 2, settled).await;
    let unknown = async |path, service| unknown(path, service).await.expect("it has settled");
    let message = unknown("/probe.v1.Prob/Say", None).await;
    assert!(message.contains("probe.v1.Prob") && message.contains("the closest is probe.v1.Probe"), "{message}");
    let message = unknown("/probe.v1.Probe/Say", Some("prode")).await;
    assert!(message.contains("prode.shop") && message.contains("the closest is probe.shop"), "{message}");
    let message = unknown("/xyz.Nothing/At", None).await;
    assert!(!message.contains("closest"), "{message}");
    unknown("/probe.v1.Probe/Say", Some("no such name")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_service_without_an_endpoint_up_is_reported() {
    let bed = &Bed::start("  sick:\n    run: ${BIN}/weft-test-app\n").await;
    let ask = async |what| probe(&bed.channel(), "Say", &[("x-weft-service", "sick"), ("x-do", what)]).await;
    ask("sicken").await.expect("it is still up");
    let refused = async || ask("").await.is_err_and(|status| status.message().contains("none of its endpoints is up"));
    eventually("its health is known", SOON, refused).await;
    let status = ask("").await.expect_err("it is sick");
    assert_made_by_mesh(&status, Code::Unavailable, "no-endpoint");
    let (http, headers, _) = http1(bed.outbound(), "sick", "/").await;
    assert_eq!((http, headers["x-weft-error"].to_str().expect("text")), (503, "no-endpoint"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn garbage_closes_only_its_own_connection() {
    let bed = &Bed::start(&probe_service(1)).await;
    let bystander = Bystander::start(bed).await;
    let (port, metrics) = (bed.outbound(), bed.ports("keyboard").metrics);
    let malformed = async || metric(metrics, "weft_connections_malformed_total", "").await;
    let tls_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client at the plain-text port";
    let bad_frame = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x01\x04\x00\x00\x00\x00\x00!";
    let cases: [(&str, &[u8]); 4] = [
        ("TLS", tls_hello),
        ("a wrong preface", b"PRI * HTTP/9.9\r\n\r\nxx\r\n\r\n"),
        ("a SETTINGS frame of a wrong length", bad_frame),
        ("no HTTP/1.1", b"HELLO\x00\x01\x02 THERE\r\n\r\n"),
    ];
    for (what, bytes) in cases {
        let before = malformed().await;
        raw(port, bytes).await;
        eventually(&format!("{what} is counted"), SOON, async || malformed().await == before + 1.0).await;
        probe(&bed.channel(), "Say", &[]).await.expect("others are answered");
    }
    eventually("the log says why", SOON, async || bed.log().contains("are neither HTTP/2 nor HTTP/1.1")).await;
    bystander.noticed_nothing(bed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_over_long_head_is_refused() {
    let bed = &Bed::start(&probe_service(1)).await;
    let bystander = Bystander::start(bed).await;
    // Over the limit of 64 KiB: the call is refused, and other calls on the connection go on.
    let mut wire = Wire::connect(bed.outbound()).await;
    let long = "x".repeat(10_000);
    let headers: Vec<_> = ["x-a", "x-b", "x-c", "x-d", "x-e", "x-f", "x-g", "x-h"].map(|name| (name, &*long)).into();
    let (other, mut other_body) = wire.open("Say", &[]).await;
    let (refused, _body) = wire.open("Say", &headers).await;
    let answer = refused.await.expect("an answer");
    let status = Status::from_header_map(answer.headers()).expect("a status of gRPC");
    assert_made_by_mesh(&status, Code::ResourceExhausted, "headers-too-large");
    other_body.send_data(framed("hello"), true).expect("the connection is whole");
    assert_eq!(other.await.expect("an answer").status(), 200);
    wire.cut();

    // Over HTTP/1.1.
    let head = format!("GET /x HTTP/1.1\r\nhost: probe\r\nx-long: {}\r\n\r\n", "x".repeat(200_000));
    let answer = raw(bed.outbound(), head.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", answer.escape_ascii());
    probe(&bed.channel(), "Say", &[]).await.expect("others are answered");
    bystander.noticed_nothing(bed).await;
}

/// The number of calls that broke off, as the service has seen it.
async fn broken(bed: &Bed) -> u64 {
    let answer = probe(&bed.channel(), "Say", &[]).await.expect("the next call is answered");
    answer.metadata().get("x-broken").expect("a count").to_str().expect("text").parse().expect("a number")
}

async fn in_flight(bed: &Bed) -> f64 {
    metric(bed.ports("probe-1").metrics, "weft_calls_in_flight", "Probe/Say").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_body_that_stops_half_way_ends_its_call() {
    let bed = &Bed::start(&probe_service(1)).await;
    let bystander = Bystander::start(bed).await;
    let half = framed("a message of which only a part is sent").slice(..20);
    for is_reset in [true, false] {
        let before = broken(bed).await;
        let mut wire = Wire::connect(bed.outbound()).await;
        let (_answer, mut body) = wire.open("Say", &[]).await;
        body.send_data(half.clone(), false).expect("the connection is whole");
        eventually("the service has the call", SOON, async || in_flight(bed).await == 1.0).await;
        if is_reset {
            body.send_reset(h2::Reason::CANCEL);
        } else {
            wire.cut();
        }
        eventually("its call ends", SOON, async || in_flight(bed).await == 0.0).await;
        eventually("the service has seen it", SOON, async || broken(bed).await == before + 1).await;
    }
    // Over HTTP/1.1: fewer bytes than its content-length says.
    let before = broken(bed).await;
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", bed.outbound())).await.expect("it listens");
    let head = "POST /probe.v1.Probe/Say HTTP/1.1\r\nhost: probe\r\ncontent-type: application/grpc\r\ncontent-length: 99\r\n\r\n\0\0";
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.expect("the bytes are sent");
    eventually("the service has the call", SOON, async || in_flight(bed).await == 1.0).await;
    drop(stream);
    eventually("its call ends", SOON, async || in_flight(bed).await == 0.0).await;
    eventually("the service has seen it", SOON, async || broken(bed).await == before + 1).await;
    bystander.noticed_nothing(bed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_goes_away_ends_its_call() {
    let bed = &Bed::start(&probe_service(1)).await;
    let bystander = Bystander::start(bed).await;
    let before = broken(bed).await;
    let mut wire = Wire::connect(bed.outbound()).await;
    let (_answer, mut body) = wire.open("Say", &[("x-do", "sleep:60000")]).await;
    body.send_data(framed("hello"), true).expect("the connection is whole");
    eventually("the service works on it", SOON, async || in_flight(bed).await == 1.0).await;
    wire.cut();
    eventually("its call ends", SOON, async || in_flight(bed).await == 0.0).await;
    eventually("the service has seen it", SOON, async || broken(bed).await == before + 1).await;

    // Over HTTP/1.1, where only the closed connection shows it.
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", bed.outbound())).await.expect("it listens");
    let head = "POST /probe.v1.Probe/Say HTTP/1.1\r\nhost: probe\r\ncontent-type: application/grpc\r\nx-do: sleep:60000\r\ncontent-length: 5\r\n\r\n\0\0\0\0\0";
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.expect("the bytes are sent");
    eventually("the service works on it", SOON, async || in_flight(bed).await == 1.0).await;
    drop(stream);
    eventually("its call ends", SOON, async || in_flight(bed).await == 0.0).await;
    eventually("the service has seen it", SOON, async || broken(bed).await == before + 2).await;
    bystander.noticed_nothing(bed).await;
}
