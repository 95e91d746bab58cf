//! Whatever a client and a service of HTTP/1.1 may do on a direct connection works through a pair of sidecars, too.

use std::time::Duration;

use tokio::{io::AsyncWriteExt, task::JoinSet};
use weft_mesh::limits;
use weft_tests::{Bed, Client, assert_no_panics, eventually, metric};

const PLAIN: &str =
    "  plain:\n    run: ${BIN}/weft-test-app\n    protocol: http1\n    connect: true\n    env: { SPEAK: http1 }\n";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: plain\r\n\r\n")
}

async fn still_works(client: &mut Client) {
    client.send(&get("/next")).await;
    assert!(client.answer().await.1.starts_with("GET /next HTTP/1.1\r\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_early_answer_does_not_spoil_the_next_request() {
    let bed = &Bed::start(PLAIN).await;
    let mut client = Client::connect(bed.outbound()).await;
    for size in [10, 100_000, 2_000_000] {
        for is_chunked in [false, true] {
            let (framing, body) = match is_chunked {
                false => (format!("Content-Length: {size}"), "x".repeat(size)),
                true => ("Transfer-Encoding: chunked".into(), format!("{size:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(size))),
            };
            client.send(&format!("POST /refuse HTTP/1.1\r\nHost: plain\r\n{framing}\r\n\r\n")).await;
            let (head, text) = client.answer().await;
            assert!(head.starts_with("HTTP/1.1 403 ") && text == "no" && !head.contains("connection"), "{head}{text}");
            client.send(&body).await;
            still_works(&mut client).await;
        }
    }
    // If more is left than the sidecar reads and discards, the answer says that the connection closes.
    let length = limits::LINGER_BYTES + 1;
    client.send(&format!("POST /refuse HTTP/1.1\r\nHost: plain\r\nContent-Length: {length}\r\n\r\n")).await;
    assert!(client.answer().await.0.contains("\r\nconnection: close\r\n"));
    client.closes().await;
    // A client that waits for 100 may leave out the body, and then the next bytes are ambiguous.
    let mut client = Client::connect(bed.outbound()).await;
    let expects = "POST /refuse HTTP/1.1\r\nHost: plain\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    client.send(expects).await;
    assert!(client.answer().await.0.contains("\r\nconnection: close\r\n"));
    client.closes().await;
    assert_no_panics(bed, "plain-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_of_the_mesh_does_not_spoil_the_next_request() {
    let bed = &Bed::start(PLAIN).await;
    let mut client = Client::connect(bed.outbound()).await;
    client.send("POST / HTTP/1.1\r\nHost: nobody\r\nContent-Length: 2000000\r\n\r\n").await;
    let (head, _) = client.answer().await;
    assert!(head.contains("x-weft-error: ") && !head.contains("connection: close"), "{head}");
    client.send(&"x".repeat(2_000_000)).await;
    still_works(&mut client).await;
    let unheard = "POST / HTTP/1.1\r\nHost: plain\r\nExpect: the moon\r\nContent-Length: 2000000\r\n\r\n";
    client.send(unheard).await;
    let (head, _) = client.answer().await;
    assert!(head.starts_with("HTTP/1.1 417 ") && head.contains("connection: close"), "{head}");
    client.send(&"x".repeat(2_000_000)).await;
    client.closes().await;
    assert_no_panics(bed, "plain-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_ends_its_side_gets_its_answers() {
    let bed = &Bed::start(PLAIN).await;
    let mut client = Client::connect(bed.outbound()).await;
    client.send(&get("/later")).await;
    client.stream.shutdown().await.expect("one side ends");
    assert!(client.answer().await.1.starts_with("GET /later "));
    client.closes().await;

    // Requests that came before the end are answered in turn, and then the connection closes.
    let mut client = Client::connect(bed.outbound()).await;
    let body = "x".repeat(30_000);
    let post = format!("POST /2 HTTP/1.1\r\nHost: plain\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    client.send(&[get("/later"), post, get("/3"), get("/4")].concat()).await;
    client.stream.shutdown().await.expect("one side ends");
    for start in ["GET /later ", "POST /2 ", "GET /3 ", "GET /4 "] {
        assert!(client.answer().await.1.starts_with(start), "{start}");
    }
    client.closes().await;

    // A request that is cut off is refused.
    let mut client = Client::connect(bed.outbound()).await;
    client.send(&[get("/later"), "GET /cut HTTP/1.1\r\nHo".into()].concat()).await;
    client.stream.shutdown().await.expect("one side ends");
    assert!(client.answer().await.1.starts_with("GET /later "));
    assert!(client.answer().await.0.starts_with("HTTP/1.1 400 "));
    client.closes().await;
    assert_no_panics(bed, "plain-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn empty_lines_before_a_request_are_skipped() {
    let bed = &Bed::start(PLAIN).await;
    for lines in ["\r\n", "\r\n\r\n\r\n"] {
        let mut client = Client::connect(bed.outbound()).await;
        client.send(&format!("{lines}{}", get("/a"))).await;
        assert!(client.answer().await.1.starts_with("GET /a "));
        client.send(&format!("{lines}{}", get("/b"))).await;
        assert!(client.answer().await.1.starts_with("GET /b "));
    }
    assert_no_panics(bed, "plain-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_head_may_have_a_thousand_fields() {
    let bed = &Bed::start(PLAIN).await;
    let fields: String = (0..1_000).map(|number| format!("x-{number}: a\r\n")).collect();
    let mut client = Client::connect(bed.outbound()).await;
    client.send(&format!("GET / HTTP/1.1\r\nHost: plain\r\n{fields}\r\n")).await;
    let (head, echo) = client.answer().await;
    assert!(head.starts_with("HTTP/1.1 200 ") && echo.contains("\r\nx-999: a\r\n"), "{head}");
    client.send(&get("/fields")).await;
    assert!(client.answer().await.0.contains("\r\nx-999: a\r\n"));
    // A list that is longer than the limit for HTTP/2 is refused.
    let fields: String = (0..2_000).map(|number| format!("x-{number}: a\r\n")).collect();
    client.send(&format!("GET / HTTP/1.1\r\nHost: plain\r\n{fields}\r\n")).await;
    assert!(client.answer().await.0.starts_with("HTTP/1.1 431 "));
    client.closes().await;
    assert_no_panics(bed, "plain-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_service_has_its_own_answer_to_connect() {
    let bed = &Bed::start(PLAIN).await;
    let connect = |host| format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\nX-Weft-Service: plain\r\n\r\n");
    let mut client = Client::connect(bed.outbound()).await;
    // Bytes right behind either head are part of the tunnel.
    client.send(&(connect("example.org") + "early ")).await;
    let head = client.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 Connection established\r\n"), "{head}");
    client.until("welcome early ").await;
    client.send("GET / is no request here").await;
    client.until("is no request here").await;
    client.stream.shutdown().await.expect("one side ends");
    client.until("goodbye").await;
    client.closes().await;

    let mut client = Client::connect(bed.outbound()).await;
    client.send(&connect("refused")).await;
    let (head, text) = client.answer().await;
    assert!(head.starts_with("HTTP/1.1 407 Proxy Authentication Required\r\n") && text == "not to it", "{head}{text}");
    still_works(&mut client).await;
    // A header that only sidecars may send is ignored if a client sends it.
    let claim = connect("refused").replace("\r\n\r\n", "\r\nX-Weft-Tunnel: 1\r\n\r\n");
    client.send(&claim).await;
    assert!(client.answer().await.0.starts_with("HTTP/1.1 407 "));
    still_works(&mut client).await;
    assert_no_panics(bed, "plain-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reason_phrases_arrive() {
    let bed = &Bed::start(PLAIN).await;
    let mut client = Client::connect(bed.outbound()).await;
    client.send(&get("/phrase")).await;
    let (head, _) = client.answer().await;
    assert!(head.starts_with("HTTP/1.1 299 All Is Fine\r\n") && !head.contains("x-weft"), "{head}");
    client.send(&get("/lie")).await;
    let (head, _) = client.answer().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && !head.contains("x-weft"), "{head}");
    // HTTP/2 has no reason phrases, and its clients do not see the header that carries them.
    let connection = tokio::net::TcpStream::connect(("127.0.0.1", bed.outbound())).await.expect("it listens");
    let (mut sender, connection) = h2::client::handshake(connection).await.expect("HTTP/2 begins");
    tokio::spawn(connection);
    let request = http::Request::get("http://plain/phrase").body(()).expect("a request");
    let (answer, _) = sender.send_request(request, true).expect("the call opens");
    let answer = answer.await.expect("an answer");
    assert!(
        answer.status() == 299 && answer.headers().keys().all(|name| !name.as_str().starts_with("x-weft")),
        "{answer:?}"
    );
    assert_no_panics(bed, "plain-1").await;
}

/// A guard that only a very slow machine reaches.
const LIMIT: Duration = Duration::from_secs(60);

/// How long the clients are silent: well within `DETECT_TIMEOUT`, which is 60 s.
const SILENCE: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_silent_client_is_not_disconnected() {
    let bed = &Bed::start(PLAIN).await;
    let mut silent = Client::connect(bed.outbound()).await;
    let mut slow = Client::connect(bed.outbound()).await;
    slow.send("GET /slow HTTP/1.1\r\nHo").await;
    tokio::time::sleep(SILENCE).await;
    silent.send(&get("/silent")).await;
    assert!(silent.answer().await.1.starts_with("GET /silent "));
    slow.send("st: plain\r\n\r\n").await;
    assert!(slow.answer().await.1.starts_with("GET /slow "));
    assert_no_panics(bed, "plain-1").await;
}

/// All at the same time, as each takes as long as its limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_stops_half_way_is_disconnected() {
    let bed = &Bed::start(PLAIN).await;
    let half_a_head = async {
        let mut client = Client::connect(bed.outbound()).await;
        client.send("GET / HTTP/1.1\r\nHost: pl").await;
        assert!(client.until("\r\n\r\n").await.starts_with("HTTP/1.1 408 "));
    };
    let half_a_refused_request = async {
        let mut client = Client::connect(bed.outbound()).await;
        client.send("POST /refuse HTTP/1.1\r\nHost: plain\r\nContent-Length: 1000\r\n\r\nthe first part").await;
        client.answer().await;
        client.closes().await;
    };
    // It ends its side, and its answer never comes: no other request comes to `/gather`.
    let gone = async {
        let mut client = Client::connect(bed.outbound()).await;
        client.send(&get("/gather/1000000")).await;
        client.stream.shutdown().await.expect("one side ends");
        client.closes().await;
    };
    tokio::join!(half_a_head, half_a_refused_request, gone);
    for limit in ["DETECT_TIMEOUT", "LINGER_TIME", "HALF_CLOSED_TIME"] {
        let label = format!("\"{limit}\"");
        // It is counted when the connection has ended, which is after its last answer.
        let is_counted = async || metric(bed.ports("keyboard").metrics, "weft_limit_reached", &label).await >= 1.0;
        eventually(&format!("{limit} is counted"), LIMIT, is_counted).await;
    }
    assert_no_panics(bed, "plain-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_service_that_accepts_slowly_is_waited_for() {
    let narrow =
        "  narrow:\n    run: ${BIN}/weft-test-app\n    protocol: http1\n    env: { SPEAK: http1, ONE_AT_A_TIME: 1 }\n";
    let bed = Bed::start(narrow).await;
    let mut clients = JoinSet::new();
    for _ in 0..64 {
        let port = bed.outbound();
        clients.spawn(async move {
            let mut client = Client::connect(port).await;
            for _ in 0..5 {
                client.send("GET / HTTP/1.1\r\nHost: narrow\r\n\r\n").await;
                let (head, text) = client.answer().await;
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}{text}");
            }
        });
    }
    clients.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_are_kept_for_as_many_requests_as_run_at_once() {
    const CLIENTS: usize = 200;
    const ROUNDS: usize = 5;
    let bed = Bed::start(PLAIN).await;
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let port = bed.outbound();
        clients.spawn(async move {
            let mut client = Client::connect(port).await;
            for _ in 0..ROUNDS {
                // Answered when all have asked: this many connections are busy at the same time.
                client.send(&get(&format!("/gather/{CLIENTS}"))).await;
                assert!(client.answer().await.0.starts_with("HTTP/1.1 200 "));
            }
        });
    }
    clients.join_all().await;
    let opened = metric(bed.ports("plain-1").metrics, "weft_upstream_connections_opened_total", "").await;
    // Some more are fine: the machine may stall for longer than idle connections are kept.
    assert!(opened < (2 * CLIENTS) as f64, "{opened} connections were opened for {CLIENTS} at once");
}
