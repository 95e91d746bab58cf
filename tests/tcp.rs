//! Protocols that the mesh does not know, through a pair of sidecars: bytes pass unchanged.

use std::{fs, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use weft_tests::{Bed, eventually, get, metric, probe, probe_service, raw};

const LIMIT: Duration = Duration::from_secs(60);

fn service() -> String {
    let db = "  db:\n    run: ${BIN}/weft-test-app\n    protocol: tcp\n    env: { SPEAK: tcp }\n";
    format!("{db}{}", probe_service(1))
}

/// A connection on which the server's greeting has come and `command` is sent.
async fn open(bed: &Bed, command: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", bed.forward("db"))).await.expect("the forward listens");
    let mut greeting = [0; 11];
    timeout(LIMIT, stream.read_exact(&mut greeting)).await.expect("it speaks first").expect("it is there");
    assert_eq!(&greeting, b"220 ready\r\n");
    stream.write_all(format!("{command}\n").as_bytes()).await.expect("the bytes are sent");
    stream
}

/// Sends bytes, ends this side, and checks that they come back. Returns what comes after them.
async fn echo(bed: &Bed, count: u32) -> Vec<u8> {
    let mut stream = open(bed, "echo").await;
    let sent: Vec<u8> = (0..count).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut read, mut write) = stream.split();
    let mut heard = Vec::new();
    let (writing, reading) = tokio::join!(
        async {
            write.write_all(&sent).await?;
            write.shutdown().await
        },
        timeout(LIMIT, read.read_to_end(&mut heard))
    );
    writing.expect("everything is sent");
    reading.expect("it comes to its end").expect("nothing breaks");
    let end = heard.split_off(sent.len());
    assert!(heard == sent, "every byte comes back");
    end
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_server_may_speak_first_and_either_side_may_end_first() {
    let bed = &Bed::start(&service()).await;
    let end = echo(bed, 3_000_000).await;
    assert_eq!(end, b"3000000 bytes\r\n", "what the server sends after the client's end arrives");

    let file = bed.dir().join("deaf");
    let mut stream = open(bed, &format!("deaf {}", file.display())).await;
    assert_eq!(timeout(LIMIT, stream.read(&mut [0])).await.expect("in time").expect("its end is no error"), 0);
    for _ in 0..10 {
        stream.write_all(&[7; 50_000]).await.expect("it still listens");
    }
    drop(stream);
    eventually("all has arrived", LIMIT, async || fs::read(&file).is_ok_and(|count| count == b"500000")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reset_arrives_as_a_reset() {
    let bed = &Bed::start(&service()).await;
    let mut stream = open(bed, "reset").await;
    let error = timeout(LIMIT, stream.read(&mut [0])).await.expect("in time").expect_err("it was broken off");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reader_that_stops_slows_the_writer() {
    let bed = &Bed::start(&service()).await;
    let mut stream = open(bed, "hog").await;
    let mut taken = 0;
    while let Ok(written) = timeout(Duration::from_secs(1), stream.write(&[0; 65_536])).await {
        taken += written.expect("the connection is whole");
        assert!(taken < 64 << 20, "nobody reads, and {taken} bytes were taken");
    }
}

async fn in_flight(bed: &Bed) -> f64 {
    metric(bed.ports("keyboard").metrics, "weft_calls_in_flight", "db.shop").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_and_bytes_are_counted() {
    let bed = &Bed::start(&service()).await;
    echo(bed, 1_000_000).await;
    eventually("an ended connection is no longer in flight", LIMIT, async || in_flight(bed).await == 0.0).await;
    for (port, name) in [(bed.ports("keyboard").metrics, "the caller's"), (bed.ports("db-1").metrics, "the service's")]
    {
        let sent = async || metric(port, "weft_tunnel_sent_bytes_total", "db.shop").await;
        let received = async || metric(port, "weft_tunnel_received_bytes_total", "db.shop").await;
        let all = async || sent().await >= 1_000_000.0 && received().await >= 1_000_000.0;
        eventually(&format!("{name} sidecar has counted all bytes"), LIMIT, all).await;
    }
    let stream = open(bed, "echo").await;
    assert_eq!(in_flight(bed).await, 1.0);
    drop(stream);
    eventually("a client that goes away ends it", LIMIT, async || in_flight(bed).await == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn http_to_a_service_of_tcp_is_refused() {
    let bed = &Bed::start(&service()).await;
    let (status, text) = get(bed.outbound(), "/db/").await;
    assert_eq!(status, 400);
    assert!(text.contains("db.shop does not speak HTTP"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_of_proxies_opens_a_tunnel_with_connect() {
    let bed = &Bed::start(&service()).await;
    let mut stream = TcpStream::connect(("127.0.0.1", bed.outbound())).await.expect("it listens");
    stream.write_all(b"CONNECT db:5432 HTTP/1.1\r\nhost: db:5432\r\n\r\n").await.expect("the bytes are sent");
    let mut heard = Vec::new();
    while !heard.ends_with(b"220 ready\r\n") {
        let mut more = [0; 256];
        let count = timeout(LIMIT, stream.read(&mut more)).await.expect("in time").expect("it is there");
        assert!(count > 0, "{}", heard.escape_ascii());
        heard.extend_from_slice(&more[..count]);
    }
    assert!(heard.starts_with(b"HTTP/1.1 200 "), "{}", heard.escape_ascii());
    stream.write_all(b"echo\nhello\n").await.expect("the bytes are sent");
    stream.shutdown().await.expect("one side ends");
    let mut rest = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut rest)).await.expect("in time").expect("it is whole");
    assert_eq!(rest, b"hello\n6 bytes\r\n");
    let refused =
        raw(bed.outbound(), b"CONNECT nobody:1 HTTP/1.1\r\nhost: nobody:1\r\nconnection: close\r\n\r\n").await;
    assert!(
        refused.starts_with(b"HTTP/1.1 404 ") || refused.starts_with(b"HTTP/1.1 503 "),
        "{}",
        refused.escape_ascii()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_killed_service_ends_its_connections_at_once() {
    let bed = &Bed::start(&service()).await;
    let mut stream = open(bed, "idle").await;
    bed.kill("db-1");
    // The operating system closes the dead process's connection, without an error. `weft up` restarts the service.
    let ended = timeout(LIMIT, stream.read(&mut [0])).await.expect("in time");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    eventually("it is back", LIMIT, async || {
        let mut stream = TcpStream::connect(("127.0.0.1", bed.forward("db"))).await.expect("the forward listens");
        let mut greeting = [0; 11];
        sleep(Duration::from_millis(20)).await;
        matches!(timeout(LIMIT, stream.read_exact(&mut greeting)).await, Ok(Ok(_)))
    })
    .await;
    probe(&bed.channel(), "Say", &[]).await.expect("other services go on");
}
