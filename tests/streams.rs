//! Streams that are long, large or slow: memory does not grow with them, messages are passed on at once, and a stream
//! that is not read holds up no other.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use h2::{RecvStream, SendStream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{client_async, tungstenite::Message};
use weft_mesh::limits::DETECT_TIMEOUT;
use weft_tests::{Bed, Wire, eventually, framed, get, pour, probe_service, resident_bytes, result};

const LIMIT: Duration = Duration::from_secs(300);

/// How much a sidecar may grow while it passes on a body of any size, in bytes.
const GROWTH: usize = 4 << 20;

/// The size of the large bodies, each way. `WEFT_TEST_BODY_MIB` changes it.
fn body_bytes() -> usize {
    let asked = std::env::var("WEFT_TEST_BODY_MIB").ok().and_then(|mib| mib.parse::<usize>().ok());
    asked.unwrap_or(1024) << 20
}

/// Watches the memory of the sidecars that carry a call.
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

    fn judge(mut self, what: &str) {
        self.look();
        let grown: Vec<_> = self.most.iter().zip(&self.before).map(|(most, before)| most - before).collect();
        result(&format!(
            "{what}: sidecars grew by {:?} KiB",
            grown.iter().map(|bytes| bytes >> 10).collect::<Vec<_>>()
        ));
        assert!(grown.iter().all(|grown| *grown <= GROWTH), "{what}: {grown:?} bytes more");
    }
}

const CHUNK: usize = 64 * 1024;

/// The memory is measured once per this many bytes.
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

/// What every sidecar keeps is allocated by first calls with bodies of this size.
const FIRST: usize = 64 << 20;

const PLAIN: &str = "  plain:\n    run: ${BIN}/weft-test-app\n    protocol: http1\n    env: { SPEAK: http1 }\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_of_any_size_takes_no_memory() {
    let bed = Bed::start(&probe_service(1)).await;
    upload(&bed, FIRST, false).await;
    timeout(LIMIT, upload(&bed, body_bytes(), true)).await.expect("it goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_of_any_size_takes_no_memory() {
    let bed = Bed::start(&probe_service(1)).await;
    download(&bed, FIRST, false).await;
    timeout(LIMIT, download(&bed, body_bytes(), true)).await.expect("it goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_any_size_over_http1_take_no_memory() {
    let bed = Bed::start(PLAIN).await;
    upload_by_http1(&bed, FIRST, false).await;
    timeout(LIMIT, upload_by_http1(&bed, body_bytes(), true)).await.expect("it goes on");
}

async fn upload(bed: &Bed, bytes: usize, is_judged: bool) {
    let mut memory = Memory::of(bed, "probe");
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
        memory.judge(&format!("upload of {} MiB", bytes >> 20));
    }
}

async fn download(bed: &Bed, bytes: usize, is_judged: bool) {
    let mut memory = Memory::of(bed, "probe");
    let mut wire = Wire::connect(bed.outbound()).await;
    let (answer, mut body) = wire.open("Chat", &[("x-do", &format!("pour:{bytes}"))]).await;
    body.send_data(Bytes::new(), true).expect("it is open");
    let mut answer = answer.await.expect("an answer");
    assert_eq!(drain(answer.body_mut(), || memory.look()).await, bytes);
    if is_judged {
        memory.judge(&format!("download of {} MiB", bytes >> 20));
    }
}

async fn upload_by_http1(bed: &Bed, bytes: usize, is_judged: bool) {
    let mut memory = Memory::of(bed, "plain");
    let mut stream = TcpStream::connect(("127.0.0.1", bed.outbound())).await.expect("it listens");
    let head = format!("POST /mirror HTTP/1.1\r\nhost: plain\r\ncontent-length: {bytes}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("the bytes are sent");
    // The service sends the body back while it comes: both ways at once.
    let (mut read, mut write) = stream.split();
    let writing = async {
        let chunk = vec![b'x'; CHUNK];
        for _ in 0..bytes / CHUNK {
            write.write_all(&chunk).await.expect("the bytes are sent");
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
        memory.judge(&format!("{} MiB both ways by HTTP/1.1", bytes >> 20));
    }
}

/// Streams on one connection.
const STREAMS: usize = 100;
/// Messages on each.
const ROUNDS: usize = 40;
/// The window of a stream whose client asks for none in particular (RFC 9113, section 6.9.2).
const WINDOW: usize = 65_535;

/// Whether the other streams go on. `weft-bench neighbours` measures how fast they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_not_read_holds_up_no_other() {
    let bed = Bed::start(&probe_service(1)).await;
    let mut wire = Wire::connect(bed.outbound()).await;
    let mut streams = Vec::new();
    for _ in 1..STREAMS {
        let (answer, body) = wire.open("Chat", &[]).await;
        streams.push((answer.await.expect("an answer").into_body(), body));
    }
    converse_on_all(&mut streams).await;
    let mut memory = Memory::of(&bed, "probe");
    let endless = 1_000_000_000;
    let (answer, says) = wire.open("Chat", &[("x-do", &format!("pour:{endless}"))]).await;
    let mut unread = answer.await.expect("an answer").into_body();
    // As much is under way as may be: the stream's window is full, and the service has more to send.
    eventually("its window is full", LIMIT, async || unread.flow_control().used_capacity() >= WINDOW).await;
    for _ in 0..3 {
        converse_on_all(&mut streams).await;
        memory.look();
    }
    memory.judge("one of a hundred streams that is not read");
    assert_eq!(unread.flow_control().used_capacity(), WINDOW, "no more comes than the window allows");
    // Nothing is lost: the stream goes on as soon as it is read.
    let mut read = 0;
    while read < 8 << 20 {
        let part = timeout(LIMIT, unread.data()).await.expect("it goes on").expect("it is open").expect("it is whole");
        unread.flow_control().release_capacity(part.len()).expect("as much as has come");
        read += part.len();
    }
    drop((unread, says));
    converse_on_all(&mut streams).await;
}

/// Sends messages on all streams at once. On each, a message has to be echoed before the next is sent.
async fn converse_on_all(streams: &mut Vec<(RecvStream, SendStream<Bytes>)>) {
    let conversations = streams.drain(..).enumerate().map(|(stream, (mut answers, mut requests))| {
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                let message = framed(&format!("message {round} of stream {stream}"));
                requests.send_data(message.clone(), false).expect("it is open");
                let mut echo = Vec::new();
                while echo.len() < message.len() {
                    let part = answers.data().await.expect("it goes on").expect("it is whole");
                    answers.flow_control().release_capacity(part.len()).expect("as much as has come");
                    echo.extend_from_slice(&part);
                }
                assert_eq!(echo, message);
            }
            (answers, requests)
        })
    });
    for conversation in conversations.collect::<Vec<_>>() {
        streams.push(timeout(LIMIT, conversation).await.expect("it is answered").expect("no panic"));
    }
}

#[tokio::test]
async fn a_websocket_works_through_the_mesh() {
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
    // Longer than a client may take for its request: that limit does not end a running WebSocket.
    tokio::time::sleep(DETECT_TIMEOUT + Duration::from_secs(2)).await;
    socket.send(Message::text("still here")).await.expect("it is open");
    assert_eq!(socket.next().await.expect("an echo").expect("it is whole"), Message::text("still here"));
    socket.close(None).await.expect("it is open");
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))), "the other side closes, too");
    assert!(socket.next().await.is_none(), "then the connection has ended");
}

#[tokio::test]
async fn server_sent_events_arrive_one_by_one() {
    let bed = Bed::start(PLAIN).await;
    let mut stream = TcpStream::connect(("127.0.0.1", bed.outbound())).await.expect("it listens");
    stream
        .write_all(b"GET /events HTTP/1.1\r\nhost: plain\r\naccept: text/event-stream\r\n\r\n")
        .await
        .expect("the bytes are sent");
    let mut heard = String::new();
    let mut until = async |part: &str| {
        while !heard.contains(part) {
            let mut buffer = [0; 4096];
            let count = timeout(LIMIT, stream.read(&mut buffer)).await.expect("it goes on").expect("it is whole");
            assert!(count > 0, "it ends early: {heard}");
            heard += std::str::from_utf8(&buffer[..count]).expect("it is text");
        }
    };
    // The next one is sent only when this one has come.
    for event in 1..=20 {
        assert_eq!(get(bed.outbound(), "/plain/next").await.0, 200);
        until(&format!("data: {event}\n\n\r\n")).await;
    }
    until("\r\n0\r\n\r\n").await;
    assert!(heard.contains("content-type: text/event-stream"), "{heard}");
    assert_eq!(heard.matches("data: ").count(), 20, "{heard}");
}
