//! A connection ends when one of its certificates expires, and honest calls do not notice: a new connection is made
//! before. Here the certificates are short-lived. A unit test covers the exact times of the rule.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, Request, Response};
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_rustls::TlsAcceptor;
use weft_tests::{Announced, Bed, Forge, Member, framed, metric, probe, probe_service};

/// A guard that only a very slow machine reaches.
const LIMIT: Duration = Duration::from_secs(60);
const PROBE: &str = "spiffe://weft.local/ns/shop/sa/probe";
const STRANGER: &str = "spiffe://weft.local/ns/shop/sa/stranger";
/// The life of a certificate. A connection is renewed after three quarters of it, so there are seconds to make a new
/// one.
const LIFE: Duration = Duration::from_secs(24);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_end_with_their_certificates_and_calls_do_not_notice() {
    let bed = Bed::start(&probe_service(1)).await;
    let ca = Arc::new(Forge::stolen(&bed));
    tokio::join!(a_callers_connection_ends(&bed, &ca), an_endpoints_connection_is_replaced(&bed, &ca));
}

/// A caller's certificate expires: GOAWAY comes before, and calls that still run end with the certificate.
async fn a_callers_connection_ends(bed: &Bed, ca: &Forge) {
    let member = Member::new(ca, Some(ca.until(STRANGER, SystemTime::now() + LIFE)));
    let tls = member.dial(bed.ports("probe-1").inbound, PROBE).await.expect("it is accepted");
    let (mut sender, connection) = h2::client::handshake(tls).await.expect("HTTP/2 begins");
    let connection = tokio::spawn(connection);
    let request = |what: &str| {
        let request = Request::post("http://probe.shop/probe.v1.Probe/Say").header("content-type", "application/grpc");
        request.header("te", "trailers").header("x-do", what).body(()).expect("a request")
    };
    let (endless, mut body) = sender.send_request(request("sleep:600000"), false).expect("it is open");
    body.send_data(framed("hello"), true).expect("it is open");
    let endless = tokio::spawn(endless);
    // Calls are answered until the connection accepts no more.
    let calling = async {
        while let Ok(mut ready) = sender.clone().ready().await {
            // GOAWAY may come between the two.
            let Ok((answer, mut body)) = ready.send_request(request("echo"), false) else { break };
            let _ = body.send_data(framed("hello"), true);
            match answer.await {
                Ok(mut answer) => {
                    assert_eq!(answer.status(), 200);
                    // Read the body: the h2 crate ends a connection on which too much is left unread.
                    while answer.body_mut().data().await.is_some_and(|data| data.is_ok()) {}
                }
                // The call crossed the last GOAWAY, so it was not processed. A sidecar would send it over another
                // connection.
                Err(e) if e.is_go_away() => break,
                Err(e) => panic!("a processed call is answered: {e}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(LIMIT, calling).await.expect("GOAWAY comes");
    assert!(!endless.is_finished() && !connection.is_finished(), "running calls may go on for a while");
    let ended = timeout(LIMIT, endless).await.expect("it ends with the certificate").expect("no panic");
    assert!(ended.is_err(), "it was not answered: {ended:?}");
    let _ = timeout(LIMIT, connection).await.expect("its connection ends, too");
    assert!(expired(bed, "probe-1").await >= 1.0);
}

async fn expired(bed: &Bed, replica: &str) -> f64 {
    metric(bed.ports(replica).metrics, "weft_connections_expired_total", "").await
}

/// An endpoint's certificate expires. Each new connection gets a fresh one.
async fn an_endpoints_connection_is_replaced(bed: &Bed, ca: &Arc<Forge>) {
    let (met, serving, _announced) = serve(bed, ca).await;
    let channel = bed.channel();
    let call = async |what: &str| probe(&channel, "Say", &[("x-weft-service", "stranger"), ("x-do", what)]).await;
    call("answer").await.expect("it is answered");
    let (endless, before) = (bed.channel(), met.load(SeqCst));
    let endless =
        tokio::spawn(async move { probe(&endless, "Say", &[("x-weft-service", "stranger"), ("x-do", "wait")]).await });
    // Until the certificate of the first connection has expired.
    let replaced = async {
        while !endless.is_finished() {
            call("answer").await.expect("no call notices");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, replaced).await.expect("it ends with the certificate");
    assert!(met.load(SeqCst) > before, "another connection has taken its place");
    let ended = endless.await.expect("no panic").expect_err("it was not answered");
    assert!(ended.message().contains("expired"), "{ended}");
    serving.abort();
}

/// An endpoint whose certificates are short-lived, and how many connections it has taken.
async fn serve(bed: &Bed, ca: &Arc<Forge>) -> (Arc<AtomicUsize>, JoinHandle<()>, Announced) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let met = Arc::new(AtomicUsize::new(0));
    let serving = tokio::spawn({
        let (ca, met) = (Arc::clone(ca), Arc::clone(&met));
        async move {
            loop {
                let (tcp, _) = listener.accept().await.expect("it listens");
                let member = Member::new(&ca, Some(ca.until(STRANGER, SystemTime::now() + LIFE)));
                let Ok(tls) = TlsAcceptor::from(member.server()).accept(tcp).await else { continue };
                met.fetch_add(1, SeqCst);
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(tls).await.expect("HTTP/2 begins");
                    let mut waiting = Vec::new();
                    while let Some(Ok((request, answer))) = connection.accept().await {
                        waiting.extend(answer_call(request, answer));
                    }
                });
            }
        }
    });
    let announced = Member::new(ca, Some(ca.good(STRANGER))).announce(bed, "stranger.shop", STRANGER, port).await;
    (met, serving, announced.expect("it may announce itself"))
}

/// Answers a call, or returns one that must wait for ever.
fn answer_call(request: Request<RecvStream>, mut answer: SendResponse<Bytes>) -> Option<SendResponse<Bytes>> {
    if request.headers().get("x-do").is_some_and(|what| what == "wait") {
        return Some(answer);
    }
    let head = Response::builder().header("content-type", "application/grpc").body(()).expect("a head");
    let mut body = answer.send_response(head, false).ok()?;
    let _ = body.send_data(framed("hello"), false);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().expect("a value"));
    let _ = body.send_trailers(trailers);
    None
}
