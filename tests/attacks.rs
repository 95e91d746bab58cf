//! Clients that mean harm: each runs into a limit, which is counted, and beside it an honest client is served as before.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Mutex,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::transport::Channel;
use weft_mesh::limits;
use weft_tests::{Bed, Wire, eventually, framed, metric, probe, probe_service, resident_bytes, signal, tunnel};
use weft_wire::{Headers, Name, hpack::Encoder};

/// Who measures does so alone.
static ALONE: Mutex<()> = Mutex::const_new(());

const LIMIT: Duration = Duration::from_secs(60);

/// RFC 9113, section 7.
const ENHANCE_YOUR_CALM: u32 = 0xb;

mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A connection of someone who does as he likes.
struct Attacker {
    stream: TcpStream,
    /// The next stream.
    next: u32,
}

impl Attacker {
    async fn connect(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
        let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(kind::SETTINGS, 0, 0, &[])[..]].concat();
        stream.write_all(&hello).await.expect("it is taken");
        Self { stream, next: 1 }
    }

    fn stream(&mut self) -> u32 {
        self.next += 2;
        self.next - 2
    }

    /// Writes until it is no longer taken.
    async fn flood(&mut self, bytes: &[u8]) {
        let (mut read, mut write) = self.stream.split();
        let reading = async {
            let mut sink = vec![0; 65_536];
            // What is read last tells how it ended.
            let mut tail = Vec::new();
            while let Ok(count @ 1..) = read.read(&mut sink).await {
                tail.extend_from_slice(&sink[..count]);
                let keep = tail.len().saturating_sub(4096);
                tail.drain(..keep);
            }
            tail
        };
        let writing = async {
            let _ = write.write_all(bytes).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            tail = timeout(LIMIT, reading) => assert_calm(&tail.expect("the connection is ended")),
            () = writing => {}
        }
    }
}

/// The last frame was GOAWAY, for too much of something. Where more was sent than was read, the end may be a reset that
/// takes it away.
fn assert_calm(tail: &[u8]) {
    let goaway = tail.windows(9).rposition(|head| head[3] == kind::GOAWAY && head[5..9] == [0; 4]);
    if let Some(code) = goaway.and_then(|at| tail.get(at + 13..at + 17)) {
        assert_eq!(u32::from_be_bytes(code.try_into().expect("four bytes")), ENHANCE_YOUR_CALM);
    }
}

/// The head of a call that waits.
fn head(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut headers = Headers::new();
    headers.append(Name::METHOD, b"POST");
    headers.append(Name::SCHEME, b"http");
    headers.append(Name::PATH, b"/probe.v1.Probe/Say");
    headers.append(Name::AUTHORITY, b"probe");
    headers.append_bytes(b"content-type", b"application/grpc");
    headers.append_bytes(b"te", b"trailers");
    fields.iter().for_each(|(name, value)| headers.append_bytes(name.as_bytes(), value.as_bytes()));
    let mut block = Vec::new();
    // Fresh and without a table each time, so that a block means the same wherever it stands.
    Encoder::new(0).encode(&headers, &mut block);
    // It says that it has none, which nobody needs to know.
    assert_eq!(block.remove(0), 0x20);
    block
}

async fn reached(metrics: u16, limit: &str) -> f64 {
    metric(metrics, "weft_limit_reached_total", &format!("limit=\"{limit}\"")).await
}

/// The highest of a hundred, of so many calls one after the other while `is_over` says no.
async fn p99(channel: &Channel, least: usize, is_over: impl Fn() -> bool) -> Duration {
    let mut took = Vec::new();
    while took.len() < least || !is_over() {
        let began = Instant::now();
        probe(channel, "Say", &[]).await.expect("the honest client is answered");
        took.push(began.elapsed());
        assert!(took.len() < 1_000_000, "the attack ends");
    }
    took.sort();
    took[took.len() * 99 / 100]
}

/// The ports of a bed that are attacked.
struct Target {
    bed: Bed,
    inbound: u16,
    honest: Channel,
}

impl Target {
    async fn new() -> Self {
        let bed = Bed::start(&probe_service(1)).await;
        let inbound = tunnel(&bed, "probe").await;
        let honest = bed.channel();
        probe(&honest, "Say", &[]).await.expect("an answer");
        Self { bed, inbound, honest }
    }

    /// Both, each with the metrics of the sidecar behind it and its process.
    fn ports(&self) -> [(u16, u16, u32); 2] {
        let sidecar = |name: &str| (self.bed.ports(name).metrics, self.bed.pid(&format!("{name}·sidecar")));
        let ((keyboard, first), (probe, second)) = (sidecar("keyboard"), sidecar("probe-1"));
        [(self.bed.outbound(), keyboard, first), (self.inbound, probe, second)]
    }

    /// An attack on both ports, beside an honest client's calls.
    async fn under<F: Future<Output = ()> + Send + 'static>(
        &self,
        what: &str,
        limit: Option<&str>,
        attack: impl Fn(u16) -> F,
    ) {
        for (port, metrics, pid) in self.ports() {
            let before = p99(&self.honest, 100, || true).await;
            let (memory, count) = (resident_bytes(pid), reached(metrics, limit.unwrap_or("-")).await);
            let attacking = tokio::spawn(attack(port));
            let during = p99(&self.honest, 50, || attacking.is_finished()).await;
            attacking.await.unwrap_or_else(|e| panic!("{what}: {e}"));
            let grown = resident_bytes(pid).saturating_sub(memory);
            println!("{what}: p99 {before:.1?} before, {during:.1?} under it; {} KiB more memory", grown / 1024);
            assert!(during <= (before * 20).max(Duration::from_millis(400)), "{what}: {before:?} became {during:?}");
            assert!(grown < 48 << 20, "{what}: {grown} bytes more");
            if let Some(limit) = limit {
                let is_counted = async || reached(metrics, limit).await > count;
                eventually(&format!("{what} is counted as {limit}"), LIMIT, is_counted).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_end_their_own_connection_and_slow_nobody_down() {
    let _alone = ALONE.lock().await;
    let target = Target::new().await;
    target
        .under("rapid reset", Some("CANCELS"), |port| async move {
            let (mut attacker, head) = (Attacker::connect(port).await, head(&[("x-do", "sleep:60000")]));
            let mut bytes = Vec::new();
            for _ in 0..60_000 {
                let stream = attacker.stream();
                bytes.extend(frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &head));
                bytes.extend(frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8]));
            }
            attacker.flood(&bytes).await;
        })
        .await;
    target
        .under("resets that the peer is made to send", Some("STREAM_ERRORS"), |port| async move {
            let (mut attacker, head) = (Attacker::connect(port).await, head(&[("x-do", "sleep:60000")]));
            let mut bytes = Vec::new();
            for _ in 0..5_000 {
                let stream = attacker.stream();
                bytes.extend(frame(kind::HEADERS, END_HEADERS, stream, &head));
                bytes.extend(frame(kind::WINDOW_UPDATE, 0, stream, &[0; 4]));
            }
            attacker.flood(&bytes).await;
        })
        .await;
    target
        .under("CONTINUATION without end", Some("HEADER_BLOCK_FRAMES"), |port| async move {
            let mut attacker = Attacker::connect(port).await;
            let mut bytes = frame(kind::HEADERS, 0, 1, &head(&[]));
            (0..10_000).for_each(|_| bytes.extend(frame(kind::CONTINUATION, 0, 1, &[])));
            attacker.flood(&bytes).await;
        })
        .await;
    for (what, limit, one) in [
        ("PINGs", "PINGS", frame(kind::PING, 0, 0, &[0; 8])),
        ("SETTINGS", "SETTINGS", frame(kind::SETTINGS, 0, 0, &[])),
    ] {
        target
            .under(what, Some(limit), |port| {
                let bytes = one.repeat(200_000);
                async move { Attacker::connect(port).await.flood(&bytes).await }
            })
            .await;
    }
    for (what, data) in
        [("empty DATA", frame(kind::DATA, 0, 1, &[])), ("DATA of padding", frame(kind::DATA, PADDED, 1, &[1, 0]))]
    {
        target
            .under(what, Some("EMPTY_FRAMES"), |port| {
                let bytes = [frame(kind::HEADERS, END_HEADERS, 1, &head(&[])), data.repeat(200_000)].concat();
                async move { Attacker::connect(port).await.flood(&bytes).await }
            })
            .await;
    }
    end(&target).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_costs_memory_is_bounded_and_slows_nobody_down() {
    let _alone = ALONE.lock().await;
    let target = Target::new().await;
    target
        .under("a small block that is a huge list", Some("HEADER_LIST_BYTES"), |port| async move {
            let mut attacker = Attacker::connect(port).await;
            // A field of 4,000 bytes goes into the table, and is named ten thousand times: 40 MB of fields.
            let mut block = head(&[]);
            block.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
            block.extend([b'v'; 4_000]);
            block.extend([0xbe; 10_000]);
            let bytes = frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &block);
            attacker.stream.write_all(&bytes).await.expect("it is taken");
            let mut answer = Vec::new();
            while !answer.windows(3).any(|bytes| bytes == b"431") {
                let read = timeout(LIMIT, attacker.stream.read_buf(&mut answer)).await.expect("it is answered");
                assert!(read.is_ok_and(|count| count > 0), "{}", answer.escape_ascii());
            }
        })
        .await;
    target
        .under("games with the table's size", Some("HPACK_TABLE_CHANGES"), |port| async move {
            let mut attacker = Attacker::connect(port).await;
            let mut bytes = Vec::new();
            for _ in 0..20_000 {
                let stream = attacker.stream();
                // To nothing, to all, and the field that has just been lost again.
                let block = [&[0x20, 0x3f, 0xe1, 0x1f][..], &head(&[("x-again", "and again")])].concat();
                bytes.extend(frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &block));
                if bytes.len() > 1 << 20 {
                    break;
                }
            }
            attacker.flood(&bytes).await;
        })
        .await;
    target
        .under("DATA of one byte", None, |port| async move {
            let mut attacker = Attacker::connect(port).await;
            let one = frame(kind::DATA, 0, 1, &[0]);
            let bytes = [frame(kind::HEADERS, END_HEADERS, 1, &head(&[])), one.repeat(200_000)].concat();
            let _ = timeout(Duration::from_secs(3), attacker.flood(&bytes)).await;
        })
        .await;
    target
        .under("a client that never reads", None, |port| async move {
            let mut attacker = Attacker::connect(port).await;
            let message = framed(&"x".repeat(60_000));
            let mut bytes = frame(kind::SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
            bytes.extend(frame(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]));
            for _ in 0..400 {
                let stream = attacker.stream();
                bytes.extend(frame(kind::HEADERS, END_HEADERS, stream, &head(&[])));
                for part in message.chunks(16_000) {
                    bytes.extend(frame(kind::DATA, 0, stream, part));
                }
                bytes.extend(frame(kind::DATA, END_STREAM, stream, &[]));
            }
            let _ = timeout(Duration::from_secs(3), attacker.stream.write_all(&bytes)).await;
        })
        .await;
    // The inbound port bears more of the former, and the tunnel to it takes much of the latter before that is felt there.
    let (_, keyboard, _) = target.ports()[0];
    for limit in ["SMALL_DATA", "SEND_BUFFER_BYTES"] {
        assert!(reached(keyboard, limit).await >= 1.0, "{limit} is counted");
    }
    end(&target).await;
}

/// What is sent to one that takes nothing stays with its senders; whoever calls another notices nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_never_reads_costs_little_and_slows_nobody_down() {
    let _alone = ALONE.lock().await;
    let hog = "  hog:\n    run: ${BIN}/weft-test-app\n    health: tcp\n";
    let bed = Bed::start(&format!("{}{hog}", probe_service(1))).await;
    let honest = bed.channel();
    for service in ["hog", "probe"] {
        probe(&honest, "Say", &[("x-weft-service", service)]).await.expect("an answer");
    }
    let before = p99(&honest, 100, || true).await;
    let sidecars = ["keyboard·sidecar", "hog-1·sidecar"].map(|name| bed.pid(name));
    let memory = sidecars.map(resident_bytes);
    signal("-STOP", bed.pid("hog-1"));
    let port = bed.outbound();
    let uploads = tokio::spawn(async move {
        let mut attacker = Attacker::connect(port).await;
        let mut bytes = Vec::new();
        // What the windows let through, of a stream and of the connection.
        for _ in 0..180 {
            let stream = attacker.stream();
            bytes.extend(frame(kind::HEADERS, END_HEADERS, stream, &head(&[("x-weft-service", "hog")])));
            for _ in 0..4 {
                bytes.extend(frame(kind::DATA, 0, stream, &[b'x'; 16_000]));
            }
        }
        attacker.stream.write_all(&bytes).await.expect("it is held back, and not ended");
        sleep(Duration::from_secs(2)).await;
    });
    let during = p99(&honest, 50, || uploads.is_finished()).await;
    uploads.await.expect("no panic");
    let grown = sidecars.map(resident_bytes).iter().zip(memory).map(|(now, then)| now.saturating_sub(then)).max();
    println!("a service that never reads: p99 {before:.1?} before, {during:.1?} under it; {grown:?} bytes more");
    assert!(during <= (before * 20).max(Duration::from_millis(400)), "{before:?} became {during:?}");
    assert!(grown.is_some_and(|grown| grown < 64 << 20), "{grown:?} bytes more");
    signal("-CONT", bed.pid("hog-1"));
    eventually("it is called again", LIMIT, async || probe(&honest, "Say", &[("x-weft-service", "hog")]).await.is_ok())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_slow_on_purpose_is_sent_away_and_slows_nobody_down() {
    let _alone = ALONE.lock().await;
    let target = Target::new().await;
    let slow_to_speak = |port: u16, bytes: &'static [u8]| async move {
        let mut waiting = JoinSet::new();
        for _ in 0..100 {
            waiting.spawn(async move {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
                stream.write_all(bytes).await.expect("it is taken");
                let mut rest = Vec::new();
                let limit = limits::DETECT_TIMEOUT + LIMIT;
                timeout(limit, stream.read_to_end(&mut rest)).await.expect("it is sent away").map(drop)
            });
        }
        waiting.join_all().await;
    };
    // All at once: each takes as long as its limit.
    let (outbound, keyboard, _) = target.ports()[0];
    let handshakes = target.bed.ports("probe-1");
    let (slow_head, fragment) =
        (&b"GET / HTTP/1.1\r\nhost: pro"[..], &b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03"[..]);
    let endless = async {
        let mut attacker = Attacker::connect(outbound).await;
        let bytes = frame(kind::HEADERS, 0, 1, &head(&[]));
        attacker.flood(&bytes).await;
    };
    let all = async {
        tokio::join!(
            slow_to_speak(outbound, slow_head),
            slow_to_speak(outbound, b"G"),
            slow_to_speak(handshakes.inbound, fragment),
            endless
        )
    };
    let before = p99(&target.honest, 100, || true).await;
    let is_over = std::cell::Cell::new(false);
    let (_, during) = tokio::join!(
        async {
            all.await;
            is_over.set(true);
        },
        async {
            let mut worst = Duration::ZERO;
            while !is_over.get() {
                worst = worst.max(p99(&target.honest, 20, || true).await);
                sleep(Duration::from_millis(20)).await;
            }
            worst
        }
    );
    println!("slow ones: p99 {before:.1?} before, {during:.1?} at worst");
    assert!(during <= (before * 20).max(Duration::from_millis(400)), "{before:?} became {during:?}");
    for (metrics, limit, least) in [
        (keyboard, "DETECT_TIMEOUT", 200.0),
        (keyboard, "HTTP2_TIMEOUT", 1.0),
        (handshakes.metrics, "HANDSHAKE_TIMEOUT", 100.0),
    ] {
        let count = reached(metrics, limit).await;
        assert!(count >= least, "{limit}: {count}");
    }
    end(&target).await;
}

/// Cancels that are no attack: a client that asks many things and needs few of the answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn legal_cancels_in_great_number_break_nothing() {
    let _alone = ALONE.lock().await;
    let target = Target::new().await;
    let mut client = Wire::connect(target.bed.outbound()).await;
    let pid = target.bed.pid("probe-1·sidecar");
    let memory = resident_bytes(pid);
    let service = target.bed.pid("probe-1");
    let began = Instant::now();
    let mut cancelled = 0;
    while cancelled < 20_000 {
        let mut calls = Vec::new();
        for _ in 0..500 {
            let (answer, mut body) = client.open("Say", &[("x-do", "sleep:60000")]).await;
            body.send_data(framed("hello"), true).expect("the connection is whole");
            calls.push((answer, body));
        }
        cancelled += calls.len();
        // Dropping both cancels the call.
        drop(calls);
        // Others on the same connection, and over the same connection of the service.
        assert_eq!(client.call("Say", &[]).await.code(), tonic::Code::Ok);
        probe(&target.honest, "Say", &[]).await.expect("others are answered");
    }
    let rate = f64::from(cancelled as u32) / began.elapsed().as_secs_f64();
    let grown = resident_bytes(pid).saturating_sub(memory);
    println!("{cancelled} cancels, {rate:.0} a second; {} KiB more memory", grown / 1024);
    assert!(grown < 32 << 20, "{grown} bytes more");
    assert_eq!(target.bed.pid("probe-1"), service);
    for (_, metrics, _) in target.ports() {
        assert_eq!(reached(metrics, "CANCELS").await, 0.0, "it is no attack");
    }
    end(&target).await;
}

async fn end(target: &Target) {
    probe(&target.honest, "Say", &[]).await.expect("the mesh is whole");
    for (_, metrics, _) in target.ports() {
        assert_eq!(metric(metrics, "weft_panics_total", "").await, 0.0);
    }
}
