//! Strangers: connections to a sidecar's inbound port that never present a certificate, from several hosts at once.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::ClientConfig;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tonic::Code;
use weft_mesh::{identity::SpiffeId, limits, tls::server_name};
use weft_tests::{Forge, Member, Net, Wire, eventually, metric, skip, until};

const LIMIT: Duration = Duration::from_secs(60);

const CLIENT: usize = 1;
const SERVER: usize = 2;
const STRANGERS: [usize; 2] = [3, 4];
/// The inbound address of the service's sidecar.
const INBOUND: &str = "10.77.0.2:15006";
const METRICS: u16 = 15_200;

const SERVICE: &str = "spiffe://weft.local/ns/shop/sa/probe";
const CALLER: &str = "spiffe://weft.local/ns/shop/sa/caller";

#[test]
fn strangers_on_two_hosts_block_no_new_caller() {
    if let Err(why) = Net::is_possible() {
        return skip(&why);
    }
    // Each connection is an open file of this process, too.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the hard limit");
    let net = Net::of(5);
    net.start_control();
    net.start_service(&net.host(SERVER), 0, "probe", 9_000, "grpc", &[]);
    until("the service is up", || net.log().contains("HEALTH_UP"));

    let is_over = Arc::new(AtomicBool::new(false));
    let hoards = STRANGERS.map(|host| {
        let is_over = Arc::clone(&is_over);
        net.host(host).beside(move || hoard(is_over))
    });
    wait_for_strangers(&net, 1.0);
    let forge = Forge::of(&net.state_dir());
    let member = Member::new(&forge, Some(forge.good(CALLER))).client(SERVICE);
    net.host(CLIENT).within(move || call_by_new_connections(member));
    // The strangers went on all the time.
    wait_for_strangers(&net, reached(&net) + 1.0);
    is_over.store(true, Relaxed);
    for hoard in hoards {
        hoard.join().expect("strangers do not panic");
    }
}

/// Holds twice as many connections as all strangers together may have, and makes new ones all the time.
async fn hoard(is_over: Arc<AtomicBool>) {
    let mut held = VecDeque::new();
    while !is_over.load(Relaxed) {
        for _ in 0..100 {
            // The sidecar may close it at once.
            held.extend(TcpStream::connect(INBOUND).await.ok());
        }
        while held.len() > 2 * limits::HANDSHAKES {
            held.pop_front();
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// How often a stranger had to make room.
fn reached(net: &Net) -> f64 {
    net.host(SERVER).within(|| metric(METRICS, "weft_limit_reached_total", "limit=\"HANDSHAKES\""))
}

fn wait_for_strangers(net: &Net, times: f64) {
    net.host(SERVER).within(move || async move {
        eventually("strangers make room for others", LIMIT, async || {
            metric(METRICS, "weft_limit_reached_total", "limit=\"HANDSHAKES\"").await >= times
        })
        .await;
    });
}

/// Makes each call on a new connection, so that each has to get past the strangers.
async fn call_by_new_connections(member: Arc<ClientConfig>) {
    for number in 0..50 {
        let call = async {
            let tcp = TcpStream::connect(INBOUND).await.expect("it listens");
            let name = server_name(&SERVICE.parse::<SpiffeId>().expect("a SPIFFE ID"));
            let tls = TlsConnector::from(Arc::clone(&member)).connect(name, tcp).await.expect("it is accepted");
            Wire::over(tls).await.call("Say", &[]).await
        };
        let status = timeout(LIMIT, call).await.expect("in time");
        assert_eq!(status.code(), Code::Ok, "call {number}: {status}");
    }
}
