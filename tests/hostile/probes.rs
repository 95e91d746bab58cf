//! Strangers on the ports of probes and pages, which are open to everyone who can reach them.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use weft_mesh::limits;
use weft_tests::{Bed, get, probe_service};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn many_connections_block_no_probe() {
    let bed = Bed::start(&probe_service(1)).await;
    let metrics = bed.ports("probe-1").metrics;
    let dashboard = (bed.dashboard(), "/metrics", limits::DASHBOARD_CONNECTIONS);
    for (port, page, seats) in [(metrics, "/readyz", limits::ADMIN_CONNECTIONS), dashboard] {
        let mut held = Vec::new();
        for number in 0..seats + 20 {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
            // Some send nothing, some start HTTP/2 and request nothing.
            if number % 2 == 0 {
                stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("it is open");
            }
            held.push(stream);
            if number % 10 == 0 {
                assert_eq!(get(port, page).await.0, 200, "{page} with {number} others");
            }
        }
        assert_eq!(get(port, page).await.0, 200);
        // The number of connections is limited: the first have made room.
        let first = timeout(SOON, held[0].read(&mut [0])).await;
        assert!(matches!(first, Ok(Ok(_) | Err(_))), "it is closed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn another_site_cannot_read_the_dashboard() {
    let bed = Bed::start(&probe_service(1)).await;
    let page = |host: &'static str| {
        let port = bed.dashboard();
        async move {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
            let request = format!("GET /api/traces HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("it is open");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("text");
            answer
        }
    };
    assert!(page("localhost").await.starts_with("HTTP/1.1 200"));
    let refused = page("rebound.example").await;
    assert!(refused.starts_with("HTTP/1.1 421") && !refused.contains("trace_id"), "{refused}");
}

/// A client that reads nothing has one page of metrics on a connection, not one for each stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_second_request_on_a_connection_is_refused() {
    let bed = Bed::start(&probe_service(1)).await;
    let port = bed.ports("probe-1").metrics;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    // SETTINGS_INITIAL_WINDOW_SIZE = 0, and GET of /metrics as HPACK's static table has it (RFC 7541, appendix A).
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0".to_vec();
    for number in [1, 3] {
        bytes.extend(b"\0\0\x0f\x01\x05\0\0\0");
        bytes.push(number);
        bytes.extend(b"\x82\x86\x04\x08/metrics\x41\x01a");
    }
    stream.write_all(&bytes).await.expect("it is open");
    let refused = async {
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.expect("a frame");
            let mut rest = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            stream.read_exact(&mut rest).await.expect("the rest of it");
            // RST_STREAM of stream 3, with REFUSED_STREAM (RFC 9113, section 7).
            if (head[3], head[8]) == (3, 3) {
                return rest == [0, 0, 0, 7];
            }
        }
    };
    assert!(timeout(SOON, refused).await.expect("in time"));
}
