//! Nobody can call as another: only its own sidecar tells a service who calls, whatever a caller sends and by whatever
//! path.

use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{HeaderMap, HeaderValue, Request};
use tokio::{net::TcpStream, time::timeout};
use weft_tests::{Bed, Client, eventually, framed, probe, probe_service, tunnel};

const LIMIT: Duration = Duration::from_secs(60);

/// The header value with which an attacker claims to be `admin`.
const FORGED: &str = "By=me;URI=spiffe://weft.local/ns/shop/sa/admin";

/// Names that a server may treat as the header with the caller.
const NAMES: [&str; 4] =
    ["x-forwarded-client-cert", "x_forwarded_client_cert", "x-forwarded_client-cert", "x.forwarded.client.cert"];

/// A service of gRPC, and two of HTTP/1.1 whose programs accept CONNECT. It is declared only for `proxy`.
fn services() -> String {
    let http1 = |name, more| {
        format!("  {name}:\n    run: ${{BIN}}/weft-test-app\n    protocol: http1\n{more}    env: {{ SPEAK: http1 }}\n")
    };
    [probe_service(1), http1("plain", ""), http1("proxy", "    connect: true\n")].concat()
}

/// Checks that the head names the caller once, and that it is `who`.
fn assert_caller(head: &str, who: &str) {
    let said: Vec<_> = head.lines().filter(|line| line.contains("spiffe://")).collect();
    let is_so = |line: &str| line.starts_with("x-forwarded-client-cert: ") && line.ends_with(&format!("/sa/{who}"));
    assert!(said.len() == 1 && is_so(said[0]), "{head}");
}

/// As `curl -p -x http://127.0.0.1:15001 http://probe.shop:80/` starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_application_opens_no_tunnel_to_a_service_of_http() {
    let bed = &Bed::start(&services()).await;
    for service in ["probe", "plain"] {
        let mut client = Client::connect(bed.outbound()).await;
        client.send(&format!("CONNECT {service}.shop:80 HTTP/1.1\r\nHost: {service}.shop:80\r\n\r\n")).await;
        let (head, text) = client.answer().await;
        assert!(head.starts_with("HTTP/1.1 403 ") && head.contains("x-weft-error: permission-denied\r\n"), "{head}");
        assert!(text.starts_with(&format!("{service}.shop speaks HTTP, so no tunnel leads to it")), "{text}");
        // The connection stays HTTP, and the sidecar reads each head on it.
        client.send(&format!("GET / HTTP/1.1\r\nHost: plain\r\nX-Forwarded-Client-Cert: {FORGED}\r\n\r\n")).await;
        assert_caller(&client.answer().await.1, "keyboard");
    }
    let mut client = Client::connect(bed.outbound()).await;
    client.send("CONNECT proxy.shop:80 HTTP/1.1\r\nHost: proxy.shop:80\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "its CONNECT is declared: {head}");
    client.until("welcome ").await;
    probe(&bed.channel(), "Say", &[]).await.expect("the mesh goes on");
}

/// A member's direct connection to a sidecar's inbound port.
async fn member(bed: &Bed, service: &str) -> SendRequest<Bytes> {
    let port = tunnel(bed, service).await;
    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    let (sender, connection) = client::handshake(stream).await.expect("HTTP/2 begins");
    tokio::spawn(connection);
    // Extended CONNECT may be used once the other side's SETTINGS have come (RFC 8441, section 3).
    eventually("its settings are here", LIMIT, async || sender.is_extended_connect_protocol_enabled()).await;
    sender
}

/// The status of the answer to a request for a tunnel.
async fn asks_for(sender: &SendRequest<Bytes>, request: Request<()>) -> u16 {
    let mut sender = sender.clone().ready().await.expect("the connection is whole");
    let (answer, _body) = sender.send_request(request, false).expect("it is sent");
    timeout(LIMIT, answer).await.expect("in time").expect("an answer").status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_member_opens_no_tunnel_to_a_service_of_http() {
    let bed = &Bed::start(&services()).await;
    for (service, by_request, by_sidecar) in [("probe", 403, 403), ("plain", 403, 403), ("proxy", 200, 403)] {
        let sender = member(bed, service).await;
        let connect = || Request::builder().method("CONNECT").uri(format!("{service}.shop:80"));
        let asked = connect().body(()).expect("a request");
        assert_eq!(asks_for(&sender, asked).await, by_request, "{service}");
        // As a sidecar asks for a connection that is not HTTP.
        let made = connect().header("x-weft-tunnel", "1").body(()).expect("a request");
        assert_eq!(asks_for(&sender, made).await, by_sidecar, "{service}");
    }
    eventually("the log says why", LIMIT, async || bed.log().contains("so no tunnel leads to it")).await;
    probe(&bed.channel(), "Say", &[]).await.expect("the mesh goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_member_cannot_upgrade_a_connection_to_http() {
    let bed = &Bed::start(&services()).await;
    let sender = member(bed, "plain").await;
    let protocols =
        [("h2c", 403), ("H2C", 403), ("tls", 403), ("x-http", 502), ("http-upgrade", 403), ("websocket", 200)];
    for (protocol, status) in protocols {
        let request = Request::builder()
            .method("CONNECT")
            .uri("http://plain.shop/upgrade")
            .header("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA")
            .extension(h2::ext::Protocol::from(protocol));
        assert_eq!(asks_for(&sender, request.body(()).expect("a request")).await, status, "{protocol}");
    }
    // A service that refuses the upgrade gets the request, but none of the bytes behind it.
    let request = Request::builder()
        .method("CONNECT")
        .uri("http://plain.shop/stay")
        .header("content-length", "1000")
        .extension(h2::ext::Protocol::from_static("x-http"));
    let mut sender = sender.ready().await.expect("the connection is whole");
    let (answer, mut body) = sender.send_request(request.body(()).expect("a request"), false).expect("it is sent");
    let forged = format!("GET /forged HTTP/1.1\r\nHost: plain\r\nX-Forwarded-Client-Cert: {FORGED}\r\n\r\n");
    body.send_data(forged.into(), false).expect("it is sent");
    let mut answer = timeout(LIMIT, answer).await.expect("in time").expect("an answer").into_body();
    let mut seen = Vec::new();
    while let Some(data) = timeout(LIMIT, answer.data()).await.expect("in time") {
        seen.extend_from_slice(&data.expect("the answer is whole"));
    }
    let seen = String::from_utf8_lossy(&seen).into_owned();
    assert_caller(&seen, "tunnel");
    assert!(seen.starts_with("GET /stay ") && !seen.contains("upgrade") && !seen.contains("forged"), "{seen}");
    let mut next = Client::connect(bed.outbound()).await;
    next.send("GET /next HTTP/1.1\r\nHost: plain\r\n\r\n").await;
    let (_, echo) = next.answer().await;
    assert!(echo.starts_with("GET /next "), "{echo}");
    assert_caller(&echo, "keyboard");
    probe(&bed.channel(), "Say", &[]).await.expect("the mesh goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_application_cannot_forge_the_caller() {
    let bed = &Bed::start(&services()).await;
    let lines: String = NAMES.iter().map(|name| format!("{name}: {FORGED}\r\n")).collect();
    for more in [
        "",
        // Fields that `Connection` names are for one hop only. That must not remove the mesh's own header.
        "Connection: x-forwarded-client-cert\r\n",
        "Connection: x_forwarded_client_cert, x-weft-service\r\n",
    ] {
        let mut client = Client::connect(bed.outbound()).await;
        client.send(&format!("GET / HTTP/1.1\r\nHost: plain\r\n{lines}{more}{lines}\r\n")).await;
        assert_caller(&client.answer().await.1, "keyboard");
    }
    // In trailers, which a service may merge into the head.
    let mut client = Client::connect(bed.outbound()).await;
    let head = "POST / HTTP/1.1\r\nHost: plain\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(&format!("{head}2\r\nhi\r\n0\r\n{lines}\r\n")).await;
    let (_, echo) = client.answer().await;
    assert_caller(&echo, "keyboard");
    assert!(echo.ends_with("\r\n2\r\nhi\r\n0\r\n\r\n"), "{echo}");
    // The same to a service of gRPC.
    let forged: Vec<_> = NAMES.map(|name| (name, FORGED)).into_iter().chain([("x-do", "headers")]).collect();
    let seen = probe(&bed.channel(), "Say", &forged).await.expect("an answer").into_inner().text;
    assert_caller(&seen, "keyboard");
    probe(&bed.channel(), "Say", &[]).await.expect("the mesh goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_member_cannot_forge_the_caller() {
    let bed = &Bed::start(&services()).await;
    let forged = || {
        let mut map = HeaderMap::new();
        for name in NAMES {
            map.append(name, HeaderValue::from_static(FORGED));
            map.append(name, HeaderValue::from_static(FORGED));
        }
        map
    };
    for (service, path) in [("plain", "/"), ("probe", "/probe.v1.Probe/Say")] {
        let mut sender = member(bed, service).await.ready().await.expect("the connection is whole");
        let mut request = Request::post(format!("http://{service}.shop{path}")).body(()).expect("a request");
        *request.headers_mut() = forged();
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert("x-do", HeaderValue::from_static("headers"));
        let (answer, mut body) = sender.send_request(request, false).expect("it is sent");
        body.send_data(framed("hello"), false).expect("it is sent");
        body.send_trailers(forged()).expect("they are sent");
        let mut answer = timeout(LIMIT, answer).await.expect("in time").expect("an answer").into_body();
        let mut seen = Vec::new();
        while let Some(data) = timeout(LIMIT, answer.data()).await.expect("in time") {
            seen.extend_from_slice(&data.expect("the answer is whole"));
        }
        assert_caller(&String::from_utf8_lossy(&seen), "tunnel");
    }
    probe(&bed.channel(), "Say", &[]).await.expect("the mesh goes on");
}
