//! A member that breaks the rules of TLS after its handshake: it sends bytes after a close_notify.
//!
//! rustls accepts no more bytes then. A loop that goes on feeding it never ends, and blocks all connections of its
//! worker.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use rustls::{ConnectionCommon, SideData};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use weft_tests::{Bed, Forge, Member, Wire, probe, probe_service, tunnel};

/// A guard that only a very slow machine reaches.
const LIMIT: Duration = Duration::from_secs(60);
const PROBE: &str = "spiffe://weft.local/ns/shop/sa/probe";
const STRANGER: &str = "spiffe://weft.local/ns/shop/sa/stranger";
/// Far more than the number of workers, so that each worker gets some.
const CONNECTIONS: usize = 16;

/// A client's first bytes: the preface and SETTINGS (RFC 9113, section 3.4).
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

/// A message, a close_notify and more bytes, to be written at once.
fn close_and_go_on<S: SideData>(session: &mut ConnectionCommon<S>, message: &[u8]) -> Vec<u8> {
    io::Write::write_all(&mut session.writer(), message).expect("there is room");
    session.send_close_notify();
    let mut bytes = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut bytes).expect("memory takes it");
    }
    // rustls reads 4 KiB at a time: some of these bytes are left when it has seen the close_notify.
    bytes.extend([b'x'; 20_000]);
    bytes
}

/// Checks that each worker of both sidecars still serves.
async fn others_go_on(bed: &Bed, inbound: u16) {
    for port in [bed.outbound(), inbound] {
        for _ in 0..CONNECTIONS {
            let mut wire = Wire::connect(port).await;
            let status = timeout(LIMIT, wire.call("Say", &[("x-weft-service", "probe")])).await;
            let status = status.expect("the call is answered in time");
            assert_eq!(status.code(), tonic::Code::Ok, "{status}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_callers_bytes_after_a_close_notify_block_no_worker() {
    let bed = &Bed::start(&probe_service(1)).await;
    let ca = &Forge::stolen(bed);
    let inbound = tunnel(bed, "probe").await;
    let member = Member::new(ca, Some(ca.good(STRANGER)));
    let mut open = Vec::new();
    for message in [&b""[..], HELLO] {
        for _ in 0..CONNECTIONS {
            let tls = member.dial(bed.ports("probe-1").inbound, PROBE).await.expect("it is accepted");
            let (mut tcp, mut session) = tls.into_inner();
            tcp.write_all(&close_and_go_on(&mut session, message)).await.expect("the bytes are sent");
            open.push(tcp);
        }
    }
    others_go_on(bed, inbound).await;
    // The sidecar ends each of them.
    for mut tcp in open {
        let mut rest = Vec::new();
        // A reset is an end, too: the sidecar has not read all bytes.
        let _ = timeout(LIMIT, tcp.read_to_end(&mut rest)).await.expect("it is ended");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_endpoints_bytes_after_a_close_notify_block_no_worker() {
    let bed = &Bed::start(&probe_service(1)).await;
    let ca = &Forge::stolen(bed);
    let inbound = tunnel(bed, "probe").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let member = Member::new(ca, Some(ca.good(STRANGER)));
    let met = Arc::new(AtomicUsize::new(0));
    let serving = tokio::spawn({
        let (acceptor, met) = (TlsAcceptor::from(member.server()), Arc::clone(&met));
        async move {
            let mut open: Vec<TcpStream> = Vec::new();
            loop {
                let (tcp, _) = listener.accept().await.expect("it listens");
                let Ok(tls) = acceptor.accept(tcp).await else { continue };
                let (mut tcp, mut session) = tls.into_inner();
                let message = if met.load(SeqCst) % 2 == 0 { SETTINGS } else { b"" };
                // The sidecar may reset the connection meanwhile.
                let _ = tcp.write_all(&close_and_go_on(&mut session, message)).await;
                open.push(tcp);
                met.fetch_add(1, SeqCst);
            }
        }
    });
    let _announced = member.announce(bed, "stranger.shop", STRANGER, port).await.expect("it may announce itself");
    let end = tokio::time::Instant::now() + LIMIT;
    while met.load(SeqCst) < CONNECTIONS / 2 {
        assert!(tokio::time::Instant::now() < end, "only {} connections are made", met.load(SeqCst));
        // From new clients, so that each worker makes some.
        let mut wire = Wire::connect(bed.outbound()).await;
        let status = timeout(LIMIT, wire.call("Say", &[("x-weft-service", "stranger")])).await.expect("it is answered");
        assert_ne!(status.code(), tonic::Code::Ok, "this endpoint answers no call");
    }
    others_go_on(bed, inbound).await;
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    serving.abort();
}
