//! A malicious application floods its own sidecar. It may harm itself, but the sidecar survives, and calls from others
//! arrive all the time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::Code;
use weft_tests::{Bed, Wire, channel_to, eventually, metric, probe, probe_service, tunnel};

const LIMIT: Duration = Duration::from_secs(60);

/// The pause between two attempts of an attack, which leaves some CPU time to other processes.
const REST: Duration = Duration::from_millis(2);
/// Honest calls beside each attack, and the new connections among them.
const CALLS: usize = 40;
const CONNECTIONS: usize = 5;

const IDLE: usize = 3_000;
const STREAMS: usize = 3_000;
const STREAMS_EACH: usize = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_application_that_floods_its_own_sidecar_blocks_no_caller() {
    // Each connection is an open file of this process, too.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the hard limit");
    let other = "  other:\n    run: ${BIN}/weft-test-app\n    health: tcp\n";
    let bed = Bed::start(&format!("{}{other}", probe_service(1))).await;
    probe(&bed.channel(), "Say", &[]).await.expect("an answer");
    let (ports, sidecar) = (bed.ports("probe-1"), bed.pid("probe-1·sidecar"));
    let honest = Honest { bed: &bed, inbound: tunnel(&bed, "probe").await };
    honest.beside("garbage", |is_over| again(is_over, move || write(ports.outbound, vec![0xfe; 20_000]))).await;
    let endless = |start: &str, line: &str| [start.as_bytes(), line.repeat(20_000).as_bytes()].concat();
    let headers = endless("GET / HTTP/1.1\r\nHost: probe\r\n", "x-more: and more of it\r\n");
    honest.beside("headers", |is_over| again(is_over, move || write(ports.outbound, headers.clone()))).await;
    let chunked = "POST / HTTP/1.1\r\nHost: probe\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n";
    let trailers = endless(chunked, "x-more: and more of it\r\n");
    honest.beside("trailers", |is_over| again(is_over, move || write(ports.outbound, trailers.clone()))).await;
    let connect = endless("CONNECT probe:80 HTTP/1.1\r\nHost: probe:80\r\n\r\n", "\0\u{7f}garbage");
    honest.beside("CONNECT", |is_over| again(is_over, move || write(ports.outbound, connect.clone()))).await;
    let asks = b"GET /state HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(50);
    honest.beside("the admin port", |is_over| again(is_over, move || write(ports.admin, asks.clone()))).await;
    honest.beside("idle connections", |is_over| idle(is_over, ports.outbound)).await;
    honest.beside("streams", |is_over| streams(is_over, ports.outbound)).await;

    // Once it is over, an honest program of the same service can call again, too.
    let own = channel_to(&format!("http://127.0.0.1:{}", ports.outbound));
    let answers = async || probe(&own, "Say", &[("x-weft-service", "other")]).await.is_ok();
    eventually("the service's own calls are answered", LIMIT, answers).await;
    assert_eq!(bed.pid("probe-1·sidecar"), sidecar, "it has not restarted");
    assert_eq!(metric(ports.metrics, "weft_panics_total", "").await, 0.0);
}

/// An honest caller of the service.
struct Honest<'b> {
    bed: &'b Bed,
    inbound: u16,
}

impl Honest<'_> {
    /// Calls beside an attack, over an open connection and over new ones.
    async fn beside<F: Future<Output = usize> + Send + 'static>(
        &self,
        what: &str,
        attack: impl FnOnce(Arc<AtomicBool>) -> F,
    ) {
        let is_over = Arc::new(AtomicBool::new(false));
        let attacking = tokio::spawn(attack(Arc::clone(&is_over)));
        let channel = self.bed.channel();
        for number in 0..CALLS {
            let answer = timeout(LIMIT, probe(&channel, "Say", &[("x-weft-service", "probe")])).await;
            answer.unwrap_or_else(|_| panic!("{what}: no answer")).unwrap_or_else(|e| panic!("{what}, {number}: {e}"));
            if number % (CALLS / CONNECTIONS) == 0 {
                let mut wire = Wire::connect(self.inbound).await;
                let status = timeout(LIMIT, wire.call("Say", &[])).await.expect("in time");
                assert_eq!(status.code(), Code::Ok, "{what}: {status}");
            }
            sleep(REST).await;
        }
        is_over.store(true, Relaxed);
        let times = timeout(LIMIT, attacking).await.expect("the attack ends").expect("it does not panic");
        assert!(times > 0, "{what}: nothing was attacked");
    }
}

/// Repeats `act` until the attack is over, and returns how often.
async fn again<F: Future<Output = ()>>(is_over: Arc<AtomicBool>, mut act: impl FnMut() -> F) -> usize {
    let mut times = 0;
    while !is_over.load(Relaxed) {
        act().await;
        times += 1;
        sleep(REST).await;
    }
    times
}

/// Writes the bytes to a new connection, or as many as the peer takes.
async fn write(port: u16, bytes: Vec<u8>) {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (mut read, mut write) = stream.split();
    let mut answer = vec![0; 64 * 1024];
    // Neither a failed write nor the answer matters.
    let _ = timeout(Duration::from_millis(200), async {
        tokio::join!(write.write_all(&bytes), async {
            while read.read(&mut answer).await.is_ok_and(|count| count > 0) {}
        })
    })
    .await;
}

/// Holds connections that say nothing.
async fn idle(is_over: Arc<AtomicBool>, port: u16) -> usize {
    let mut held = Vec::new();
    while !is_over.load(Relaxed) {
        if held.len() < IDLE {
            held.extend(TcpStream::connect(("127.0.0.1", port)).await.ok());
        } else {
            sleep(REST).await;
        }
    }
    held.len()
}

/// Holds calls that are never answered.
async fn streams(is_over: Arc<AtomicBool>, port: u16) -> usize {
    let mut connections = JoinSet::new();
    for _ in 0..STREAMS / STREAMS_EACH {
        let is_over = Arc::clone(&is_over);
        connections.spawn(async move {
            let mut wire = Wire::connect(port).await;
            let mut held = Vec::new();
            while !is_over.load(Relaxed) {
                if held.len() < STREAMS_EACH {
                    held.push(wire.open("Say", &[("x-weft-service", "other"), ("x-do", "sleep:6000000")]).await);
                } else {
                    sleep(REST).await;
                }
            }
            wire.cut();
            held.len()
        });
    }
    connections.join_all().await.into_iter().sum()
}
