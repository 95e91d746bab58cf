//! HTTP/1.1 through a pair of sidecars, by a client and a service that see every byte.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use weft_tests::{Bed, Client, Wire, assert_no_panics, eventually, metric, raw};

const LIMIT: Duration = Duration::from_secs(60);

/// A service of HTTP/1.1 that declares one upgrade.
const PLAIN: &str = "  plain:\n    run: ${BIN}/weft-test-app\n    protocol: http1\n    upgrades: [chatter]\n    \
                     env: { SPEAK: http1 }\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn requests_arrive_whole_and_the_connection_is_reused() {
    let bed = &Bed::start(PLAIN).await;
    let mut client = Client::connect(bed.outbound()).await;
    client.send("GET /a?b=%20c HTTP/1.1\r\nHost: plain\r\nX-One: 1\r\nConnection: x-hop, keep-alive\r\nX-Hop: gone\r\nTE: gzip\r\nKeep-Alive: 5\r\n\r\n").await;
    let (head, echo) = client.answer().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(echo.starts_with("GET /a?b=%20c HTTP/1.1\r\n") && echo.contains("\r\nx-one: 1\r\n"), "{echo}");
    for gone in ["x-hop", "keep-alive", "\r\nte:", "\r\nconnection:"] {
        assert!(!echo.contains(gone), "{gone} belongs to one connection: {echo}");
    }
    // With a length, in chunks, in parts, two at once, with an absolute target; all over the same connection.
    client.send("POST / HTTP/1.1\r\nHost: plain\r\nContent-Length: 5\r\n\r\nhe").await;
    client.send("llo").await;
    let (_, echo) = client.answer().await;
    assert!(echo.contains("\r\ncontent-length: 5\r\n") && echo.ends_with("\r\n\r\nhello"), "{echo}");
    client
        .send(
            "POST / HTTP/1.1\r\nHost: plain\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
        )
        .await;
    let (_, echo) = client.answer().await;
    assert!(echo.contains("\r\ntransfer-encoding: chunked\r\n") && echo.ends_with("0\r\n\r\n"), "{echo}");
    client.send("GET /1 HTTP/1.1\r\nHost: plain\r\n\r\nGET http://plain/2 HTTP/1.1\r\nHost: other\r\n\r\n").await;
    assert!(client.answer().await.1.starts_with("GET /1 HTTP/1.1\r\n"));
    let (_, echo) = client.answer().await;
    assert!(echo.starts_with("GET /2 HTTP/1.1\r\n") && echo.contains("\r\nhost: plain\r\n"), "{echo}");
    // Byte by byte.
    for byte in "GET /slow HTTP/1.1\r\nHost: plain\r\n\r\n".chars() {
        client.send(&byte.to_string()).await;
    }
    assert!(client.answer().await.1.starts_with("GET /slow HTTP/1.1\r\n"));
    client.send("GET /last HTTP/1.1\r\nHost: plain\r\nConnection: close\r\n\r\n").await;
    let (head, _) = client.answer().await;
    assert!(head.contains("connection: close"), "{head}");
    client.closes().await;

    let mut old = Client::connect(bed.outbound()).await;
    old.send("GET /old HTTP/1.0\r\nHost: plain\r\n\r\n").await;
    assert!(old.answer().await.1.starts_with("GET /old HTTP/1.1\r\n"));
    old.closes().await;
    assert_no_panics(bed, "plain-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn answers_of_every_kind_end_where_they_should() {
    let bed = &Bed::start(PLAIN).await;
    let mut client = Client::connect(bed.outbound()).await;
    client.send("HEAD /a HTTP/1.1\r\nHost: plain\r\n\r\n").await;
    assert!(client.until("\r\n\r\n").await.contains("\r\ncontent-length: "));
    client.send("GET /empty HTTP/1.1\r\nHost: plain\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 204 ") && !head.contains("transfer-encoding"), "{head}");
    client.send("GET /unchanged HTTP/1.1\r\nHost: plain\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 304 ") && head.contains("etag: \"x\""), "{head}");
    client.send("GET /chunks HTTP/1.1\r\nHost: plain\r\n\r\n").await;
    let chunks = client.until("\r\nx-sum: 5\r\n\r\n").await;
    assert!(chunks.contains("abc") && chunks.contains("\r\n0\r\n"), "{chunks}");
    client.send("GET /to-the-end HTTP/1.1\r\nHost: plain\r\n\r\n").await;
    let whole = client.until("0\r\n\r\n").await;
    assert!(whole.contains("all of it"), "{whole}");
    client.send("POST /early HTTP/1.1\r\nHost: plain\r\nContent-Length: 1000000\r\n\r\nthe first part").await;
    let (head, body) = client.answer().await;
    assert!(body == "early" && !head.contains("connection: close"), "{head}{body}");
    // The rest of the request is read all the same, and then the next request.
    client.send(&"x".repeat(1_000_000 - "the first part".len())).await;
    client.send("GET /next HTTP/1.1\r\nHost: plain\r\n\r\n").await;
    assert!(client.answer().await.1.starts_with("GET /next HTTP/1.1\r\n"));

    // An answer that is cut off is not passed on as a whole one.
    let mut client = Client::connect(bed.outbound()).await;
    client.send("GET /cut HTTP/1.1\r\nHost: plain\r\n\r\n").await;
    client.until("half of").await;
    client.closes().await;
    assert_no_panics(bed, "plain-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn interim_answers_come_before_the_final_one() {
    let bed = &Bed::start(PLAIN).await;
    let mut client = Client::connect(bed.outbound()).await;
    client.send("GET /hints HTTP/1.1\r\nHost: plain\r\n\r\n").await;
    let hints = client.until("\r\n\r\n").await;
    assert!(hints.starts_with("HTTP/1.1 103 ") && hints.contains("link: </a.css>"), "{hints}");
    assert!(client.answer().await.0.starts_with("HTTP/1.1 200 "));
    client.send("POST /continue HTTP/1.1\r\nHost: plain\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
    let interim = client.until("\r\n\r\n").await;
    assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
    client.send("hello").await;
    assert!(client.answer().await.1.ends_with("hello"));
    // A final answer in place of 100. The sidecar does not wait for the body, which was not sent.
    client.send("POST / HTTP/1.1\r\nHost: nobody\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 404 ") || head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_no_panics(bed, "plain-1").await;
}

/// Flow control does not bound interim answers, so their number is limited.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn interim_answers_are_bounded_and_nothing_follows_connection_close() {
    let bed = &Bed::start(PLAIN).await;
    let hints = b"GET /hints-without-end HTTP/1.1\r\nHost: plain\r\nConnection: close\r\n\r\n";
    let answer = String::from_utf8(raw(bed.outbound(), hints).await).expect("text");
    assert!(answer.contains("HTTP/1.1 502 ") && answer.contains("x-weft-error: connection-broke"), "{answer}");
    assert!(answer.matches("HTTP/1.1 103 ").count() <= 100);

    let pipelined =
        b"GET / HTTP/1.1\r\nHost: plain\r\nConnection: close\r\n\r\nGET /next HTTP/1.1\r\nHost: plain\r\n\r\n";
    let answer = String::from_utf8(raw(bed.outbound(), pipelined).await).expect("text");
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("/next"), "{answer}");
    assert_no_panics(bed, "plain-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn declared_upgrades_are_passed_on() {
    let bed = &Bed::start(PLAIN).await;
    let mut client = Client::connect(bed.outbound()).await;
    client.send("GET /upgrade HTTP/1.1\r\nHost: plain\r\nConnection: Upgrade\r\nUpgrade: chatter\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("\r\nupgrade: chatter\r\n"), "{head}");
    assert!(head.to_ascii_lowercase().contains("\r\nconnection: upgrade\r\n"), "{head}");
    for word in ["one", "two", "three"] {
        client.send(word).await;
        assert_eq!(client.until(word).await, word);
    }
    client.stream.shutdown().await.expect("one side ends");
    assert_eq!(client.until("goodbye").await, "goodbye");
    client.closes().await;

    // An upgrade that is not declared for the service is left out, and the request goes on.
    let mut client = Client::connect(bed.outbound()).await;
    for name in ["x-http", "h2c"] {
        client
            .send(&format!(
                "GET /stay HTTP/1.1\r\nHost: plain\r\nConnection: Upgrade\r\nUpgrade: {name}\r\nX-Weft-Upgrade: no\r\n\r\n"
            ))
            .await;
        let (head, echo) = client.answer().await;
        assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("x-weft-"), "{head}");
        assert!(echo.starts_with("GET /stay ") && !echo.to_ascii_lowercase().contains("upgrade:"), "{echo}");
    }
    eventually("the log says why", LIMIT, async || bed.log().contains("without its upgrade to `x-http`")).await;
    // A service that switches protocols unasked is cut off.
    client.send("GET /upgrade HTTP/1.1\r\nHost: plain\r\nConnection: Upgrade\r\nUpgrade: x-http\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 502 ") && head.contains("x-weft-error: connection-broke\r\n"), "{head}");

    // A service may also refuse the upgrade and stay with HTTP/1.1.
    let mut client = Client::connect(bed.outbound()).await;
    client.send("GET /stay HTTP/1.1\r\nHost: plain\r\nConnection: Upgrade\r\nUpgrade: chatter\r\n\r\n").await;
    let (head, echo) = client.answer().await;
    assert!(head.starts_with("HTTP/1.1 200 ") && echo.contains("\r\nupgrade: chatter\r\n"), "{head}{echo}");
    client.send("GET /again HTTP/1.1\r\nHost: plain\r\n\r\n").await;
    assert!(client.answer().await.1.starts_with("GET /again "));
    assert_no_panics(bed, "plain-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ambiguous_requests_are_refused() {
    let bed = &Bed::start(PLAIN).await;
    let cases = [
        (
            "both lengths",
            "POST / HTTP/1.1\r\nHost: plain\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("two lengths", "POST / HTTP/1.1\r\nHost: plain\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        ("a signed length", "POST / HTTP/1.1\r\nHost: plain\r\nContent-Length: +5\r\n\r\nhello", 400),
        (
            "an odd chunk size",
            "POST / HTTP/1.1\r\nHost: plain\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
            400,
        ),
        (
            "a chunk without its end",
            "POST / HTTP/1.1\r\nHost: plain\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n",
            400,
        ),
        (
            "chunked twice",
            "POST / HTTP/1.1\r\nHost: plain\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("an unknown coding", "POST / HTTP/1.1\r\nHost: plain\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        ("a bare LF", "GET / HTTP/1.1\nHost: plain\n\n", 400),
        ("a bare LF after one field", "GET / HTTP/1.1\r\nHost: plain\r\nX: y\nZ: w\r\n\r\n", 400),
        ("a folded field", "GET / HTTP/1.1\r\nHost: plain\r\nX: y\r\n z\r\n\r\n", 400),
        ("a space before the colon", "GET / HTTP/1.1\r\nHost : plain\r\n\r\n", 400),
        ("no host", "GET / HTTP/1.1\r\n\r\n", 400),
        ("two hosts", "GET / HTTP/1.1\r\nHost: plain\r\nHost: other\r\n\r\n", 400),
        ("another version", "GET / HTTP/2.0\r\nHost: plain\r\n\r\n", 505),
        ("a fragment", "GET /a#b HTTP/1.1\r\nHost: plain\r\n\r\n", 400),
    ];
    for (what, request, status) in cases {
        let hidden = "GET /hidden HTTP/1.1\r\nHost: plain\r\n\r\n";
        let answer =
            String::from_utf8(raw(bed.outbound(), format!("{request}{hidden}").as_bytes()).await).expect("text");
        let start = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&start) && answer.contains("x-weft-error: malformed"), "{what}: {answer}");
        assert!(!answer.contains("/hidden"), "{what}: a second request was let through: {answer}");
    }
    let malformed = async || metric(bed.ports("keyboard").metrics, "weft_connections_malformed_total", "").await;
    eventually("each is counted", LIMIT, async || malformed().await >= cases.len() as f64).await;
    assert_no_panics(bed, "plain-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_slow_client_holds_up_no_other() {
    let bed = &Bed::start(PLAIN).await;
    // One that has stopped in the middle of a head.
    let mut slow = Client::connect(bed.outbound()).await;
    slow.send("GET / HTTP/1.1\r\nHost: pl").await;
    let mut client = Client::connect(bed.outbound()).await;
    client.send("GET /quick HTTP/1.1\r\nHost: plain\r\n\r\n").await;
    assert!(client.answer().await.1.starts_with("GET /quick "));
    slow.send("ain\r\n\r\n").await;
    assert!(slow.answer().await.1.starts_with("GET / "));
    // From HTTP/2 to a service that speaks HTTP/1.1.
    let mut wire = Wire::connect(bed.outbound()).await;
    let (answer, mut body) = wire.open("Say", &[("x-weft-service", "plain")]).await;
    body.send_data("hello".into(), true).expect("the connection is whole");
    assert_eq!(answer.await.expect("an answer").status(), 200);
    assert_no_panics(bed, "plain-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn heads_may_be_as_long_as_the_flag_allows() {
    let bed = Bed::start_with(
        "  plain:\n    run: ${BIN}/weft-test-app\n    protocol: http1\n    env: { SPEAK: http1 }\n",
        &["--header-list-bytes", "262144"],
    )
    .await;
    let mut client = Client::connect(bed.outbound()).await;
    let long = "x".repeat(150 * 1024);
    client.send(&format!("GET / HTTP/1.1\r\nHost: plain\r\nX-Long: {long}\r\n\r\n")).await;
    let (head, echo) = client.answer().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{}", &head[..head.len().min(500)]);
    assert!(echo.contains(&format!("x-long: {long}\r\n")), "it arrives whole");
    client.send("GET /long HTTP/1.1\r\nHost: plain\r\n\r\n").await;
    let (head, _) = client.answer().await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.contains(&format!("x-long: {long}\r\n")),
        "the answer's arrives whole, too"
    );
}
