//! Conversations that are long, large or slow: memory does not grow with them, nothing waits until a part is full, and
//! one that is not read holds up no other.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use h2::{RecvStream, SendStream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{client_async, tungstenite::Message};
use weft_tests::{Bed, Wire, framed, pour, probe_service, resident_bytes, result};

const LIMIT: Duration = Duration::from_secs(300);

/// By how much a sidecar may grow while it passes on a body of any size.
const GROWTH: usize = 4 << 20;

/// What goes each way of the large bodies. `WEFT_TEST_BODY_MIB` takes its place.
fn body_bytes() -> usize {
    let asked = std::env::var("WEFT_TEST_BODY_MIB").ok().and_then(|mib| mib.parse::<usize>().ok());
    asked.unwrap_or(1024) << 20
}

/// Watches the memory of the sidecars on a call's way.
struct Memory {
    pids: Vec<u32>,
    before: Vec<usize>,
    most: Vec<usize>,
}

impl Memory {
    fn of(bed: &Bed, service: &str) -> Self {
        let pids = vec![bed.pid("keyboard·sidecar"), bed.pid(&format!("{service}-1·sidecar"))];
        let before: Vec<_> = pids.iter().map(|pid| resident_bytes(*pid)).collect();
        Self { pids, most: before.clone(), before }
    }

    fn look(&mut self) {
        for (most, pid) in self.most.iter_mut().zip(&self.pids) {
            *most = resident_bytes(*pid).max(*most);
        }
    }

    fn judge(mut self, what: &str, bytes: usize, took: Duration) {
        self.look();
        let grown: Vec<_> = self.most.iter().zip(&self.before).map(|(most, before)| most - before).collect();
        result(&format!(
            "{what}: {} MiB in {took:.1?}, sidecars grew by {:?} KiB",
            bytes >> 20,
            grown.iter().map(|bytes| bytes >> 10).collect::<Vec<_>>()
        ));
        assert!(grown.iter().all(|grown| *grown <= GROWTH), "{what}: {grown:?} bytes more");
    }
}

const CHUNK: usize = 64 * 1024;

/// Looks at the memory once in so many bytes.
const LOOK: usize = 16 << 20;

async fn drain(body: &mut RecvStream, mut look: impl FnMut()) -> usize {
    let mut bytes = 0;
    while let Some(part) = body.data().await {
        let part = part.expect("it is whole");
        if (bytes + part.len()) / LOOK != bytes / LOOK {
            look();
        }
        bytes += part.len();
        body.flow_control().release_capacity(part.len()).expect("as much as has come");
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_any_size_take_no_memory() {
    let plain = "  plain:\n    run: ${BIN}/weft-test-app\n    protocol: http1\n    env: { SPEAK: http1 }\n";
    let bed = Bed::start(&format!("{}{plain}", probe_service(1))).await;
    let bytes = body_bytes();
    // Of the first call stays what every sidecar needs.
    upload(&bed, 64 << 20, false).await;
    download(&bed, 64 << 20, false).await;
    timeout(LIMIT, upload(&bed, bytes, true)).await.expect("it goes on");
    timeout(LIMIT, download(&bed, bytes, true)).await.expect("it goes on");
    upload_by_http1(&bed, 64 << 20, false).await;
    timeout(LIMIT, upload_by_http1(&bed, bytes, true)).await.expect("it goes on");
}

async fn upload(bed: &Bed, bytes: usize, is_judged: bool) {
    let (mut memory, began) = (Memory::of(bed, "probe"), Instant::now());
    let mut wire = Wire::connect(bed.outbound()).await;
    let (answer, mut body) = wire.open("Chat", &[("x-do", "swallow")]).await;
    let mut looked = bytes;
    pour(&mut body, bytes, |left| {
        if looked - left >= LOOK {
            looked = left;
            memory.look();
        }
    })
    .await
    .expect("it is open");
    body.send_data(Bytes::new(), true).expect("it is open");
    let mut answer = answer.await.expect("an answer");
    let told = answer.body_mut().data().await.expect("a message").expect("it is whole");
    assert_eq!(told, framed(&bytes.to_string()));
    if is_judged {
        memory.judge("upload", bytes, began.elapsed());
    }
}

async fn download(bed: &Bed, bytes: usize, is_judged: bool) {
    let (mut memory, began) = (Memory::of(bed, "probe"), Instant::now());
    let mut wire = Wire::connect(bed.outbound()).await;
    let (answer, mut body) = wire.open("Chat", &[("x-do", &format!("pour:{bytes}"))]).await;
    body.send_data(Bytes::new(), true).expect("it is open");
    let mut answer = answer.await.expect("an answer");
    assert_eq!(drain(answer.body_mut(), || memory.look()).await, bytes);
    if is_judged {
        memory.judge("download", bytes, began.elapsed());
    }
}

async fn upload_by_http1(bed: &Bed, bytes: usize, is_judged: bool) {
    let (mut memory, began) = (Memory::of(bed, "plain"), Instant::now());
    let mut stream = TcpStream::connect(("127.0.0.1", bed.outbound())).await.expect("it listens");
    let head = format!("POST /mirror HTTP/1.1\r\nhost: plain\r\ncontent-length: {bytes}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("it is taken");
    // As it comes it goes back: both ways at once.
    let (mut read, mut write) = stream.split();
    let writing = async {
        let chunk = vec![b'x'; CHUNK];
        for _ in 0..bytes / CHUNK {
            write.write_all(&chunk).await.expect("it is taken");
        }
    };
    let reading = async {
        let (mut buffer, mut count, mut head) = (vec![0; CHUNK], 0, None);
        while head.is_none_or(|head| count < head + bytes) {
            let part = read.read(&mut buffer).await.expect("it is whole");
            assert!(part > 0, "it ends after {count} bytes");
            head = head.or_else(|| Some(buffer.windows(4).position(|end| end == b"\r\n\r\n")? + 4));
            if (count + part) / LOOK != count / LOOK {
                memory.look();
            }
            count += part;
        }
    };
    tokio::join!(writing, reading);
    if is_judged {
        memory.judge("both ways by HTTP/1.1", bytes, began.elapsed());
    }
}

/// Streams on one connection.
const STREAMS: usize = 100;
const ROUNDS: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_holds_up_nobody_else() {
    let bed = Bed::start(&probe_service(1)).await;
    let mut wire = Wire::connect(bed.outbound()).await;
    let mut streams = Vec::new();
    for _ in 1..STREAMS {
        let (answer, body) = wire.open("Chat", &[]).await;
        streams.push((answer.await.expect("an answer").into_body(), body));
    }
    let ratio = async |streams: &mut Vec<_>, wire: &mut Wire| {
        let before = p99(streams).await;
        // It reads nothing, and has its service send without end.
        let (answer, body) = wire.open("Chat", &[("x-do", "pour:1000000000")]).await;
        let unread = answer.await.expect("an answer");
        tokio::time::sleep(Duration::from_millis(300)).await;
        let during = p99(streams).await;
        drop((unread, body));
        (before, during)
    };
    p99(&mut streams).await;
    let mut ratios = Vec::new();
    for _ in 0..5 {
        let (before, during) = ratio(&mut streams, &mut wire).await;
        ratios.push((during.as_secs_f64() / before.as_secs_f64(), before, during));
    }
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (median, before, during) = ratios[ratios.len() / 2];
    result(&format!(
        "one slow reader among {STREAMS}: p99 of the others {before:.1?} before and {during:.1?} beside it, {median:.2} times (median of {} rounds)",
        ratios.len()
    ));
    assert!(median <= 1.5, "{ratios:?}");
}

/// Of messages and their echoes, on all streams at once.
async fn p99(streams: &mut Vec<(RecvStream, SendStream<Bytes>)>) -> Duration {
    let message = framed("hello");
    let rounds = streams.drain(..).map(|(mut answers, mut requests)| {
        let message = message.clone();
        tokio::spawn(async move {
            let mut took = Vec::new();
            for _ in 0..ROUNDS {
                let began = Instant::now();
                requests.send_data(message.clone(), false).expect("it is open");
                let mut left = message.len();
                while left > 0 {
                    let part = answers.data().await.expect("it goes on").expect("it is whole");
                    answers.flow_control().release_capacity(part.len()).expect("as much as has come");
                    left -= part.len();
                }
                took.push(began.elapsed());
            }
            (answers, requests, took)
        })
    });
    let mut took = Vec::new();
    for round in rounds.collect::<Vec<_>>() {
        let (answers, requests, times) = timeout(LIMIT, round).await.expect("it is answered").expect("no panic");
        streams.push((answers, requests));
        took.extend(times);
    }
    took.sort();
    took[took.len() * 99 / 100]
}

#[tokio::test]
async fn a_websocket_converses() {
    let chat =
        "  chat:\n    run: ${BIN}/weft-test-app\n    protocol: http1\n    health: tcp\n    env: { SPEAK: websocket }\n";
    let bed = Bed::start(chat).await;
    let stream = TcpStream::connect(("127.0.0.1", bed.outbound())).await.expect("it listens");
    let (mut socket, answer) = client_async("ws://chat/room", stream).await.expect("it becomes a WebSocket");
    assert_eq!(answer.status(), 101);
    let large = "x".repeat(3_000_000);
    for said in ["hello", "", &large] {
        socket.send(Message::text(said)).await.expect("it is open");
        assert_eq!(socket.next().await.expect("an echo").expect("it is whole"), Message::text(said));
    }
    socket.send(Message::binary(&b"\0\x01\xff"[..])).await.expect("it is open");
    assert_eq!(socket.next().await.expect("an echo").expect("it is whole"), Message::binary(&b"\0\x01\xff"[..]));
    socket.send(Message::Ping(Bytes::from_static(b"?"))).await.expect("it is open");
    assert_eq!(socket.next().await.expect("a pong").expect("it is whole"), Message::Pong(Bytes::from_static(b"?")));
    // Longer than anything waits for a client that says nothing.
    tokio::time::sleep(Duration::from_secs(12)).await;
    socket.send(Message::text("still here")).await.expect("it is open");
    assert_eq!(socket.next().await.expect("an echo").expect("it is whole"), Message::text("still here"));
    socket.close(None).await.expect("it is open");
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))), "the other side closes, too");
    assert!(socket.next().await.is_none(), "then it is over");
}

#[tokio::test]
async fn server_sent_events_come_as_they_are_sent() {
    let plain = "  plain:\n    run: ${BIN}/weft-test-app\n    protocol: http1\n    env: { SPEAK: http1 }\n";
    let bed = Bed::start(plain).await;
    let mut stream = TcpStream::connect(("127.0.0.1", bed.outbound())).await.expect("it listens");
    stream
        .write_all(b"GET /events HTTP/1.1\r\nhost: plain\r\naccept: text/event-stream\r\n\r\n")
        .await
        .expect("it is taken");
    let (mut heard, mut late) = (String::new(), Vec::new());
    while !heard.ends_with("0\r\n\r\n") {
        let before = heard.len();
        let mut buffer = [0; 4096];
        let count = timeout(LIMIT, stream.read(&mut buffer)).await.expect("it goes on").expect("it is whole");
        assert!(count > 0, "it ends early: {heard}");
        heard += std::str::from_utf8(&buffer[..count]).expect("it is text");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("later");
        for event in heard[before..].lines().filter_map(|line| line.strip_prefix("data: ")) {
            late.push(now.saturating_sub(Duration::from_micros(event.parse().expect("microseconds"))));
        }
    }
    assert!(heard.contains("content-type: text/event-stream"), "{heard}");
    assert_eq!(late.len(), 20, "{heard}");
    late.sort();
    // Each is sent 50 ms after the one before.
    assert!(late[late.len() / 2] < Duration::from_millis(40), "{late:?}");
}
