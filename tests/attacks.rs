//! Clients that attack: each runs into a limit, which is counted, and costs a bounded amount of memory, while the calls
//! of honest clients are answered. `weft-bench neighbours` measures how fast they are answered.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Mutex,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tonic::transport::Channel;
use weft_mesh::limits;
use weft_tests::{Bed, Wire, eventually, framed, metric, probe, probe_service, resident_bytes, signal, tunnel};

#[path = "attacks/attacker.rs"]
mod attacker;

use attacker::{Attacker, END_HEADERS, END_STREAM, PADDED, Streams, frame, head, kind, many};

/// One attack at a time: the load of another one would hide what this one does to the memory.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A guard that only a very slow machine reaches.
const LIMIT: Duration = Duration::from_secs(60);

/// How long an attack goes on if the attacked port counts no limit for it.
const UNCOUNTED: Duration = Duration::from_secs(3);

/// The least number of honest calls beside each attack.
const CALLS: usize = 50;

async fn reached(metrics: u16, limit: &str) -> f64 {
    metric(metrics, "weft_limit_reached_total", &format!("limit=\"{limit}\"")).await
}

/// An honest call, which has to be answered.
async fn honest_call(channel: &Channel) {
    let answer = timeout(LIMIT, probe(channel, "Say", &[])).await.expect("the honest client is not kept waiting");
    answer.expect("the honest client is answered");
}

/// Makes honest calls until `is_over` returns true, and at least [`CALLS`] of them.
async fn honest_calls(channel: &Channel, mut is_over: impl AsyncFnMut() -> bool) {
    let mut calls = 0;
    while calls < CALLS || !is_over().await {
        honest_call(channel).await;
        calls += 1;
    }
}

/// A mesh whose ports are attacked.
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

    /// The outbound and the inbound port, each with the metrics port and the process of its sidecar.
    fn ports(&self) -> [(u16, u16, u32); 2] {
        let sidecar = |name: &str| (self.bed.ports(name).metrics, self.bed.pid(&format!("{name}·sidecar")));
        let ((keyboard, first), (probe, second)) = (sidecar("keyboard"), sidecar("probe-1"));
        [(self.bed.outbound(), keyboard, first), (self.inbound, probe, second)]
    }

    /// Attacks both ports, one after the other, beside an honest client's calls, until each has counted its limit: that
    /// of the outbound port comes first. Without a limit the attack goes on for [`UNCOUNTED`].
    async fn attack<F: Future<Output = ()> + Send + 'static>(
        &self,
        what: &str,
        limits: [Option<&str>; 2],
        attack: impl Fn(u16) -> F,
    ) {
        for ((port, metrics, pid), limit) in std::iter::zip(self.ports(), limits) {
            let (memory, count) = (resident_bytes(pid), reached(metrics, limit.unwrap_or("-")).await);
            let attacking = tokio::spawn(attack(port));
            let (mut most, began) = (memory, Instant::now());
            let until_counted = async {
                honest_calls(&self.honest, async || {
                    most = resident_bytes(pid).max(most);
                    match limit {
                        Some(limit) => reached(metrics, limit).await > count,
                        None => began.elapsed() >= UNCOUNTED,
                    }
                })
                .await;
            };
            let in_time = timeout(2 * LIMIT, until_counted).await;
            assert!(in_time.is_ok(), "{what} at port {port} does not run into {limit:?}");
            end_of(attacking, what).await;
            let grown = resident_bytes(pid).max(most) - memory;
            println!("{what}: {} KiB more memory", grown / 1024);
            assert!(grown < 48 << 20, "{what}: {grown} bytes more");
        }
    }
}

/// Ends an attack that still runs, and passes on its panic if there was one.
async fn end_of(attacking: JoinHandle<()>, what: &str) {
    attacking.abort();
    if let Err(e) = attacking.await
        && !e.is_cancelled()
    {
        panic!("{what}: {e}");
    }
}

/// Attacks both ports of a mesh that runs alone, as [`Target::attack`] does.
async fn attack_alone<F: Future<Output = ()> + Send + 'static>(
    what: &str,
    limits: [Option<&str>; 2],
    attack: impl Fn(u16) -> F,
) {
    let _alone = ALONE.lock().await;
    let target = Target::new().await;
    target.attack(what, limits, attack).await;
    end(&target).await;
}

/// Floods with the same bytes, over a connection with an open call if `has_call`.
async fn flood_alone(what: &str, limits: [Option<&str>; 2], has_call: bool, bytes: Vec<u8>) {
    attack_alone(what, limits, |port| {
        let bytes = bytes.clone();
        async move {
            let attacker = if has_call { Attacker::with_call(port).await } else { Attacker::connect(port).await };
            attacker.flood(|_| bytes.clone()).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset_fails_no_honest_call() {
    // A busy machine may be too slow to exceed the limit, CANCELS. Unit tests of `wire` exceed it in virtual time.
    attack_alone("rapid reset", [None, None], |port| async move {
        let head = head(&[("x-do", "sleep:60000")]);
        let attacker = Attacker::connect(port).await;
        let cancel = |streams: &mut Streams| {
            let stream = streams.open();
            let call = frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &head);
            [call, frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        };
        attacker.flood(|streams| many(1_000, || cancel(streams))).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_that_the_peer_is_made_to_send_are_limited() {
    attack_alone("resets that the peer is made to send", [Some("STREAM_ERRORS"); 2], |port| async move {
        let head = head(&[("x-do", "sleep:60000")]);
        let attacker = Attacker::connect(port).await;
        let err = |streams: &mut Streams| {
            let stream = streams.open();
            let call = frame(kind::HEADERS, END_HEADERS, stream, &head);
            [call, frame(kind::WINDOW_UPDATE, 0, stream, &[0; 4])].concat()
        };
        attacker.flood(|streams| many(100, || err(streams))).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn continuation_without_end_is_limited() {
    attack_alone("CONTINUATION without end", [Some("HEADER_BLOCK_FRAMES"); 2], |port| async move {
        let mut attacker = Attacker::connect(port).await;
        let begin = frame(kind::HEADERS, 0, 1, &head(&[]));
        attacker.stream.write_all(&begin).await.expect("the bytes are sent");
        attacker.flood(|_| frame(kind::CONTINUATION, 0, 1, &[]).repeat(1_000)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_are_limited() {
    // The outbound port allows ten times as many PINGs: a busy machine may be too slow to exceed that.
    flood_alone("PINGs", [None, Some("PINGS")], false, frame(kind::PING, 0, 0, &[0; 8]).repeat(1_000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_limited() {
    flood_alone("SETTINGS", [Some("SETTINGS"); 2], false, frame(kind::SETTINGS, 0, 0, &[]).repeat(1_000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_data_is_limited() {
    flood_alone("empty DATA", [None, Some("EMPTY_FRAMES")], true, frame(kind::DATA, 0, 1, &[]).repeat(1_000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_of_padding_is_limited() {
    let padding = frame(kind::DATA, PADDED, 1, &[1, 0]);
    flood_alone("DATA of padding", [None, Some("EMPTY_FRAMES")], true, padding.repeat(1_000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_of_one_byte_fails_no_honest_call() {
    // A busy machine may be too slow to exceed SMALL_DATA.
    flood_alone("DATA of one byte", [None, None], true, frame(kind::DATA, 0, 1, &[0]).repeat(10_000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_block_that_is_a_huge_list_is_refused() {
    attack_alone("a small block that is a huge list", [Some("HEADER_LIST_BYTES"); 2], huge_list).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_the_tables_size_are_limited() {
    attack_alone("changes of the table's size", [Some("HPACK_TABLE_CHANGES"); 2], |port| async move {
        // Sets the table's size to 0 and back to 4096, and sends again the field that was just evicted.
        let block = [&[0x20, 0x3f, 0xe1, 0x1f][..], &head(&[("x-again", "and again")])].concat();
        let attacker = Attacker::connect(port).await;
        let game = |streams: &mut Streams| frame(kind::HEADERS, END_HEADERS | END_STREAM, streams.open(), &block);
        attacker.flood(|streams| many(100, || game(streams))).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_is_limited() {
    // The tunnel to the inbound port buffers much before the sidecar notices.
    attack_alone("a client that never reads", [Some("SEND_BUFFER_BYTES"), None], reads_nothing).await;
}

/// Puts a field of 4,000 bytes into the table and names it 10,000 times: 40 MB of fields.
async fn huge_list(port: u16) {
    let mut attacker = Attacker::connect(port).await;
    let mut block = head(&[]);
    block.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    block.extend([b'v'; 4_000]);
    block.extend([0xbe; 10_000]);
    let bytes = frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &block);
    attacker.stream.write_all(&bytes).await.expect("the bytes are sent");
    let mut answer = Vec::new();
    while !answer.windows(3).any(|bytes| bytes == b"431") {
        let read = timeout(LIMIT, attacker.stream.read_buf(&mut answer)).await.expect("it is answered");
        assert!(read.is_ok_and(|count| count > 0), "{}", answer.escape_ascii());
    }
}

/// Sends 400 messages of 60 kB, and never reads their echoes.
async fn reads_nothing(port: u16) {
    let mut attacker = Attacker::connect(port).await;
    let message = framed(&"x".repeat(60_000));
    let mut bytes = frame(kind::SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    bytes.extend(frame(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]));
    for _ in 0..400 {
        let stream = attacker.streams.open();
        bytes.extend(frame(kind::HEADERS, END_HEADERS, stream, &head(&[])));
        for part in message.chunks(16_000) {
            bytes.extend(frame(kind::DATA, 0, stream, part));
        }
        bytes.extend(frame(kind::DATA, END_STREAM, stream, &[]));
    }
    // The sidecar may end the connection, so an error is fine.
    let _ = attacker.stream.write_all(&bytes).await;
    std::future::pending::<()>().await;
}

/// Requests to a service that reads nothing stay with their senders. Calls of other services notice nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_never_reads_costs_little_and_fails_no_other_call() {
    let _alone = ALONE.lock().await;
    let hog = "  hog:\n    run: ${BIN}/weft-test-app\n    health: tcp\n";
    let bed = Bed::start(&format!("{}{hog}", probe_service(1))).await;
    let honest = bed.channel();
    for service in ["hog", "probe"] {
        probe(&honest, "Say", &[("x-weft-service", service)]).await.expect("an answer");
    }
    let sidecars = ["keyboard·sidecar", "hog-1·sidecar"].map(|name| bed.pid(name));
    let memory = sidecars.map(resident_bytes);
    signal("-STOP", bed.pid("hog-1"));
    let port = bed.outbound();
    let uploads = tokio::spawn(async move {
        let mut attacker = Attacker::connect(port).await;
        let mut bytes = Vec::new();
        // As much as the windows of the streams and of the connection allow.
        for _ in 0..180 {
            let stream = attacker.streams.open();
            bytes.extend(frame(kind::HEADERS, END_HEADERS, stream, &head(&[("x-weft-service", "hog")])));
            for _ in 0..4 {
                bytes.extend(frame(kind::DATA, 0, stream, &[b'x'; 16_000]));
            }
        }
        attacker.stream.write_all(&bytes).await.expect("the sidecar holds it back, and does not end it");
        attacker
    });
    honest_calls(&honest, async || uploads.is_finished()).await;
    let attacker = uploads.await.expect("no panic");
    // Once more, now that all of the upload waits somewhere.
    honest_calls(&honest, async || true).await;
    let grown = std::iter::zip(sidecars, memory).map(|(pid, before)| resident_bytes(pid).saturating_sub(before));
    let grown = grown.max().expect("two sidecars");
    println!("a service that never reads: {grown} bytes more");
    assert!(grown < 64 << 20, "{grown} bytes more");
    drop(attacker);
    signal("-CONT", bed.pid("hog-1"));
    eventually("the service is called again", LIMIT, async || {
        probe(&honest, "Say", &[("x-weft-service", "hog")]).await.is_ok()
    })
    .await;
}

/// Opens 100 connections that send these bytes and no more, and waits until the other side has closed each.
async fn slow_to_speak(port: u16, bytes: &'static [u8], limit: Duration) {
    let mut waiting = JoinSet::new();
    for _ in 0..100 {
        waiting.spawn(async move {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
            stream.write_all(bytes).await.expect("the bytes are sent");
            let mut rest = Vec::new();
            timeout(limit + LIMIT, stream.read_to_end(&mut rest)).await.expect("it is closed").map(drop)
        });
    }
    waiting.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliberately_slow_clients_are_disconnected_and_fail_no_honest_call() {
    let _alone = ALONE.lock().await;
    let target = Target::new().await;
    // All at the same time: each takes as long as its limit.
    let (outbound, keyboard, _) = target.ports()[0];
    let handshakes = target.bed.ports("probe-1");
    let (slow_head, fragment) =
        (&b"GET / HTTP/1.1\r\nhost: pro"[..], &b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03"[..]);
    let endless = async {
        let mut attacker = Attacker::connect(outbound).await;
        let begin = frame(kind::HEADERS, 0, 1, &head(&[]));
        attacker.stream.write_all(&begin).await.expect("the bytes are sent");
        let mut rest = Vec::new();
        let closed = timeout(limits::HTTP2_TIMEOUT + LIMIT, attacker.stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "a head that never ends is waited for without a limit");
    };
    let is_over = std::cell::Cell::new(false);
    let all = async {
        tokio::join!(
            slow_to_speak(outbound, slow_head, limits::DETECT_TIMEOUT),
            slow_to_speak(outbound, b"G", limits::DETECT_TIMEOUT),
            slow_to_speak(handshakes.inbound, fragment, limits::HANDSHAKE_TIMEOUT),
            endless
        );
        is_over.set(true);
    };
    tokio::join!(all, honest_calls(&target.honest, async || is_over.get()));
    for (metrics, limit, least) in [
        (keyboard, "DETECT_TIMEOUT", 200.0),
        (keyboard, "HTTP2_TIMEOUT", 1.0),
        (handshakes.metrics, "HANDSHAKE_TIMEOUT", 100.0),
    ] {
        eventually(&format!("{least} are counted as {limit}"), LIMIT, async || reached(metrics, limit).await >= least)
            .await;
    }
    end(&target).await;
}

/// Cancels that are no attack: a client that makes many calls and needs few of the answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_legal_cancels_break_nothing() {
    let _alone = ALONE.lock().await;
    let target = Target::new().await;
    let mut client = Wire::connect(target.bed.outbound()).await;
    let pid = target.bed.pid("probe-1·sidecar");
    let memory = resident_bytes(pid);
    let service = target.bed.pid("probe-1");
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
        // Other calls on the same connection, and over the same connection to the service.
        assert_eq!(client.call("Say", &[]).await.code(), tonic::Code::Ok);
        probe(&target.honest, "Say", &[]).await.expect("others are answered");
    }
    let grown = resident_bytes(pid).saturating_sub(memory);
    println!("{cancelled} cancels; {} KiB more memory", grown / 1024);
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
