//! A hostile network: between two hosts, bytes are delayed, held, cut, changed, swapped, repeated, dropped and added. A
//! call through it may fail or be late, but it never gets a wrong answer, and other calls do not notice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::sleep,
};
use tonic::transport::Channel;
use weft_tests::{Net, channel, eventually, probe, skip, until};

const LIMIT: Duration = Duration::from_secs(60);

/// The port of the host in the middle to which the connections of the service's sidecar are diverted.
const MIDDLE: u16 = 9_999;
/// The inbound port of both services' sidecars. The connections of the second are not diverted.
const INBOUND: u16 = 15_006;

const CLIENT: usize = 1;
const SERVER: usize = 2;
const OTHER: usize = 3;

/// What the network does to the bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
enum Harm {
    None,
    /// Each piece comes 100 ms late.
    Delay,
    /// Connections are closed as soon as bytes come.
    Cut,
    /// Bytes are acknowledged, but not passed on: neither side learns that the other is gone.
    Swallow,
    /// One bit in each piece is flipped.
    Flip,
    /// Each piece is sent twice.
    Repeat,
    /// Each piece comes after the one that followed it.
    Swap,
    /// Half of each piece is missing.
    Shorten,
    /// Something else comes before each piece.
    Add,
    /// Each piece is replaced by an HTTP answer in plain text.
    Answer,
}

const HARMS: [Harm; 9] = [
    Harm::Delay,
    Harm::Cut,
    Harm::Flip,
    Harm::Repeat,
    Harm::Swap,
    Harm::Shorten,
    Harm::Add,
    Harm::Answer,
    Harm::Swallow,
];

impl Harm {
    fn of(number: u8) -> Self {
        HARMS.into_iter().find(|harm| *harm as u8 == number).unwrap_or(Self::None)
    }
}

#[test]
fn a_hostile_network_can_only_delay() {
    if let Err(why) = Net::is_possible() {
        return skip(&why);
    }
    let net = Net::of(4);
    net.start_control();
    net.start_service(&net.host(SERVER), 0, "probe", 9_000, "grpc", &[]);
    net.start_service(&net.host(OTHER), 0, "other", 9_000, "grpc", &[]);
    let client = net.host(CLIENT);
    net.start_sidecar(&client, "client", &[]);
    until("both services are up", || net.log().matches("HEALTH_UP").count() >= 2);

    let harm = Arc::new(AtomicU8::new(Harm::None as u8));
    let middle = Arc::clone(&harm);
    net.host(0).beside(move || carry(middle));
    for rule in [
        "add table ip hostile",
        "add chain ip hostile out { type nat hook output priority -100 ; }",
        &format!("add rule ip hostile out ip daddr 10.77.0.{SERVER} tcp dport {INBOUND} dnat to 10.77.0.254:{MIDDLE}"),
    ] {
        client.output("nft", &[rule]);
    }
    client.within(move || suffer(harm));
}

/// Makes calls through each kind of harm, beside calls to a service that is reached directly.
async fn suffer(harm: Arc<AtomicU8>) {
    let channel = channel(15_001);
    recovers(&channel).await;
    for kind in HARMS {
        harm.store(kind as u8, Relaxed);
        // A call whose bytes do not arrive takes its whole deadline.
        let calls = if matches!(kind, Harm::Swallow | Harm::Swap | Harm::Shorten) { 3 } else { 10 };
        for _ in 0..calls {
            match call(&channel, "probe").await {
                Ok(text) => assert_eq!(text, "hello", "{kind:?}"),
                Err(_) => assert_ne!(kind, Harm::Delay, "a delay is no failure"),
            }
            let other = call(&channel, "other").await;
            assert_eq!(other.as_deref(), Ok("hello"), "beside {kind:?}");
        }
        harm.store(Harm::None as u8, Relaxed);
        recovers(&channel).await;
    }
}

async fn recovers(channel: &Channel) {
    eventually("calls are answered", LIMIT, async || {
        for service in ["probe", "other"] {
            if call(channel, service).await.as_deref() != Ok("hello") {
                return false;
            }
        }
        true
    })
    .await;
}

async fn call(channel: &Channel, service: &str) -> Result<String, String> {
    let answer = probe(channel, "Say", &[("x-weft-service", service), ("grpc-timeout", "3S")]).await;
    answer.map(|answer| answer.into_inner().text).map_err(|status| format!("{status:?}"))
}

/// Passes connections on to the service's sidecar, and harms them.
async fn carry(harm: Arc<AtomicU8>) {
    let listener = TcpListener::bind(("10.77.0.254", MIDDLE)).await.expect("the port is free");
    loop {
        let Ok((from, _)) = listener.accept().await else { continue };
        let Ok(to) = TcpStream::connect((format!("10.77.0.{SERVER}"), INBOUND)).await else { continue };
        let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
        tokio::spawn(harmed(from_read, to_write, Arc::clone(&harm)));
        tokio::spawn(harmed(to_read, from_write, Arc::clone(&harm)));
    }
}

/// One direction of a connection.
async fn harmed(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, harm: Arc<AtomicU8>) -> std::io::Result<()> {
    let mut held: Vec<u8> = Vec::new();
    loop {
        let mut piece = vec![0; 16 * 1024];
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        piece.truncate(length);
        match Harm::of(harm.load(Relaxed)) {
            Harm::None => {}
            Harm::Delay => sleep(Duration::from_millis(100)).await,
            Harm::Cut => return Ok(()),
            Harm::Swallow => continue,
            Harm::Flip => piece[length / 2] ^= 1,
            Harm::Repeat => piece.extend_from_within(..),
            Harm::Swap if held.is_empty() => {
                held = piece;
                continue;
            }
            Harm::Swap => piece.append(&mut held),
            Harm::Shorten => piece.truncate(length.div_ceil(2)),
            Harm::Add => drop(piece.splice(..0, *b"\x17\x03\x03\x00\x01\x00")),
            Harm::Answer => piece = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec(),
        }
        to.write_all(&piece).await?;
    }
}
