mod calls;

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    time::{sleep, timeout},
};
use weft_mesh::limits;
use weft_wire::Name;

use super::*;
use crate::{
    call::{Call, Side},
    trial,
};

/// Counts wake-ups.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Runs a test, in virtual time.
fn run(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build_local(Default::default());
    runtime.expect("a runtime").block_on(async { timeout(Duration::from_secs(60), test).await.expect("in time") });
}

/// The sidecar's end of a connection in memory.
struct Memory {
    io: DuplexStream,
    /// The sidecar has ended it with a reset.
    is_broken_off: Rc<Cell<bool>>,
    /// The peer has ended it with a reset: seen at the next read.
    is_reset: Rc<Cell<bool>>,
}

impl AsyncRead for Memory {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_reset.get() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Memory {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Stream for Memory {
    fn break_off(&self) {
        self.is_broken_off.set(true);
    }
}

/// The peer's end of a connection, and the sidecar's.
fn connection() -> (DuplexStream, Memory) {
    let (peer, io) = duplex(256 << 10);
    (peer, Memory { io, is_broken_off: Rc::default(), is_reset: Rc::default() })
}

/// Starts a call that goes nowhere for each request.
fn serve(
    worker: &Rc<Worker>,
    socket: &Rc<Socket>,
    io: Memory,
) -> SocketDriver<Memory, impl FnMut(Occasion) + Unpin + use<>> {
    let (begin, on) = (Rc::clone(worker), Rc::clone(socket));
    SocketDriver::new(worker, socket, io, move |occasion| {
        let Occasion::Request(head, is_whole) = occasion else { return };
        let slot = begin.call_slot().expect("there is room");
        let way = trial::inbound(&begin);
        drop(Call::begin(&begin, way, Side::Socket(Rc::clone(&on)), head, is_whole, slot));
    })
}

/// Polls a connection once. It must not end.
fn turn(driver: &mut Pin<&mut impl Future>, waker: &Waker) {
    assert!(driver.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
}

/// Polls a connection until a condition holds.
async fn turns(driver: &mut Pin<&mut impl Future>, waker: &Waker, is_so: impl Fn() -> bool) {
    while !is_so() {
        turn(driver, waker);
        sleep(Duration::from_millis(1)).await;
    }
}

/// Whether a turn with nothing to do wakes its connection again.
fn wakes_itself(driver: &mut Pin<&mut impl Future>, wakes: &Arc<Wakes>) -> bool {
    let before = wakes.0.load(SeqCst);
    turn(driver, &Waker::from(Arc::clone(wakes)));
    wakes.0.load(SeqCst) != before
}

#[test]
fn bytes_that_cannot_be_handled_yet_do_not_wake_their_connection() {
    for bytes in [
        // A partial chunk line, bytes before the answer to an upgrade, and a partial pipelined request.
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: chatter\r\n\r\nearly",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHo",
    ] {
        run(async {
            let (worker, (mut client, io)) = (trial::worker(), connection());
            let socket = Socket::http1_server(&worker);
            let mut driver = pin!(serve(&worker, &socket, io));
            let wakes = Arc::new(Wakes::default());
            let waker = Waker::from(Arc::clone(&wakes));
            client.write_all(bytes.as_bytes()).await.expect("it is taken");
            turns(&mut driver, &waker, || socket.call().is_some()).await;
            // Reads what has come meanwhile.
            sleep(Duration::from_millis(20)).await;
            turn(&mut driver, &waker);
            assert!(!wakes_itself(&mut driver, &wakes), "it waits for the client: {bytes}");
        });
    }
}

#[test]
fn the_rest_of_an_answered_request_is_discarded() {
    run(async {
        let (worker, (mut client, io)) = (trial::worker(), connection());
        let socket = Socket::http1_server(&worker);
        let driver = tokio::task::spawn_local(serve(&worker, &socket, io));
        const LENGTH: usize = 1_000_000;
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n");
        client.write_all(head.as_bytes()).await.expect("it is taken");
        client.write_all(&vec![0; 100_000]).await.expect("it is taken");
        // Reads as much as one call may hold, and no more.
        while socket.usage().held_bytes < limits::SOCKET_BUFFER_BYTES {
            sleep(Duration::from_millis(1)).await;
        }
        let call = socket.call().expect("the request has come");
        let mut answer = Headers::new();
        answer.set(Name::STATUS, b"403");
        answer.append(Name::CONTENT_LENGTH, b"0");
        call.response_head(answer, true);
        assert!(socket.call().is_none() && socket.idle_since().is_none());
        // A client may send its whole request before it reads the answer.
        client.write_all(&vec![0; LENGTH - 100_000]).await.expect("it is taken");
        while socket.idle_since().is_none() {
            assert_eq!(socket.usage().held_bytes, 0);
            sleep(Duration::from_millis(1)).await;
        }
        let mut seen = [0; 17];
        client.read_exact(&mut seen).await.expect("its answer");
        assert_eq!(&seen, b"HTTP/1.1 403 Forb");
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("it is taken");
        while socket.call().is_none() {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(!socket.is_gone());
        driver.abort();
    });
}

/// A client that reads nothing of the last answer on its connection waits, and takes no CPU meanwhile.
#[test]
fn a_last_answer_that_is_not_read_does_not_wake_its_connection() {
    run(async {
        let (worker, (mut client, io)) = (trial::worker(), connection());
        let socket = Socket::http1_server(&worker);
        let mut driver = pin!(serve(&worker, &socket, io));
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n";
        client.write_all(request.as_bytes()).await.expect("it is taken");
        turns(&mut driver, &waker, || socket.call().is_some()).await;
        let call = socket.call().expect("the request has come");
        let mut answer = Headers::new();
        answer.set(Name::STATUS, b"200");
        Rc::clone(&call).response_head(answer, false);
        call.response_data(&vec![b'x'; 32 << 20], true);
        // What came after the last request is discarded.
        fill(&socket, &mut driver, &waker).await;
        assert!(!wakes_itself(&mut driver, &wakes), "it waits for the client");
    });
}

/// Writes until the connection takes no more, because the peer does not read.
async fn fill(socket: &Socket, driver: &mut Pin<&mut impl Future>, waker: &Waker) {
    let mut unsent = usize::MAX;
    while socket.usage().output_bytes < unsent {
        unsent = socket.usage().output_bytes;
        turn(driver, waker);
        sleep(Duration::from_millis(20)).await;
    }
    assert!(unsent > 0, "the connection took everything");
}

/// A half-closed upload to a service that does not read it.
#[test]
fn an_upload_that_is_not_read_does_not_wake_its_connection() {
    run(async {
        let (worker, (_service, io)) = (trial::worker(), connection());
        let socket = Socket::raw(&worker, Role::Client);
        let mut driver = pin!(SocketDriver::new(&worker, &socket, io, |_: Occasion| {}));
        let wakes = Arc::new(Wakes::default());
        socket.send_data(&vec![b'x'; 32 << 20], true);
        fill(&socket, &mut driver, &Waker::from(Arc::clone(&wakes))).await;
        assert!(!wakes_itself(&mut driver, &wakes), "it waits for the service");
    });
}

/// No call is left whose end would end the connection, and the peer reads none of the last bytes.
#[test]
fn last_bytes_that_are_not_read_abort_the_connection() {
    let half_close = |socket: &Socket| {
        socket.send_data(b"the end", true);
    };
    let ends: [fn(&Socket); 2] = [Socket::close, half_close];
    for end in ends {
        run(async {
            let (worker, (service, io)) = (trial::worker(), connection());
            let socket = Socket::raw(&worker, Role::Client);
            let driver = SocketDriver::new(&worker, &socket, io, |_: Occasion| {});
            socket.send_data(&vec![b'x'; 32 << 20], false);
            end(&socket);
            let began = Instant::now();
            let ended = timeout(2 * limits::UNREAD_TIME, driver).await;
            assert!(ended.is_ok(), "it waits for ever");
            assert!(began.elapsed() >= limits::UNREAD_TIME && socket.usage().output_bytes > 0);
            drop(service);
        });
    }
}

#[test]
fn an_empty_line_between_requests_starts_no_head() {
    run(async {
        let (worker, (mut client, io)) = (trial::worker(), connection());
        let socket = Socket::http1_server(&worker);
        let mut driver = pin!(serve(&worker, &socket, io));
        client.write_all(b"\r\n\r\n").await.expect("it is taken");
        for _ in 0..20 {
            turn(&mut driver, Waker::noop());
            sleep(Duration::from_millis(1)).await;
        }
        assert!(!driver.awaits_head(), "it would be answered 408 after a while");
        client.write_all(b"GET").await.expect("it is taken");
        while !driver.awaits_head() {
            turn(&mut driver, Waker::noop());
            sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn an_upgrades_early_bytes_reach_the_service_even_if_the_caller_has_ended_its_side() {
    run(async {
        let (worker, (mut service, io)) = (trial::worker(), connection());
        let mut head = Headers::new();
        for (name, value) in
            [(Name::METHOD, &b"CONNECT"[..]), (Name::PROTOCOL, b"chatter"), (Name::PATH, b"/"), (Name::AUTHORITY, b"a")]
        {
            head.set(name, value);
        }
        let (caller, socket) = (Socket::http1_server(&worker), Socket::http1_client(&worker));
        let (way, slot) = (trial::inbound(&worker), worker.call_slot().expect("there is room"));
        let call = Call::begin(&worker, way, Side::Socket(Rc::clone(&caller)), head, false, slot);
        call.send_over_socket(&socket).expect("it is a request");
        let driving = tokio::task::spawn_local(SocketDriver::new(&worker, &socket, io, |_: Occasion| {}));
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(service.read_u8().await.expect("it is asked"));
        }
        call.request_data(b"the end", true);
        sleep(Duration::from_millis(20)).await;
        assert!(!call.is_over(), "it waits for the service's answer");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chatter\r\n\r\n";
        service.write_all(answer).await.expect("it is taken");
        let mut received = Vec::new();
        let reading = timeout(Duration::from_secs(60), service.read_to_end(&mut received)).await;
        reading.expect("the end comes").expect("it is no reset");
        assert_eq!(received, b"the end");
        driving.abort();
    });
}

/// A sidecar whose flags allow heads of 256 KiB.
fn worker_for_long_heads() -> Rc<Worker> {
    trial::worker_with_flags(&["--header-list-bytes", "262144"])
}

#[test]
fn a_request_with_a_head_of_the_longest_allowed_length_is_accepted() {
    // In one piece, and in parts that each get their own turn.
    for part in [usize::MAX, 40_000, 7_000] {
        run(async move {
            let (worker, (mut client, io)) = (worker_for_long_heads(), connection());
            let socket = Socket::http1_server(&worker);
            let driver = tokio::task::spawn_local(serve(&worker, &socket, io));
            let long = "x".repeat(150 * 1024);
            let request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX-Long: {long}\r\n\r\nhello");
            for part in request.as_bytes().chunks(part.min(request.len())) {
                client.write_all(part).await.expect("it is taken");
                sleep(Duration::from_millis(1)).await;
            }
            while socket.usage().held_bytes < 5 {
                sleep(Duration::from_millis(1)).await;
            }
            assert!(socket.call().is_some() && !driver.is_finished());
            driver.abort();
        });
    }
}

#[test]
fn a_request_with_a_longer_head_is_refused() {
    run(async {
        let (worker, (mut client, io)) = (worker_for_long_heads(), connection());
        let socket = Socket::http1_server(&worker);
        let driver = tokio::task::spawn_local(serve(&worker, &socket, io));
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}", "x".repeat(1 << 20));
        client.write_all(request.as_bytes()).await.expect("it is taken");
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 431");
        drop(client);
        assert!(driver.await.expect("no panic").is_err());
    });
}

#[test]
fn an_answer_with_a_head_of_the_longest_allowed_length_is_forwarded() {
    run(async {
        let (worker, (mut service, io)) = (worker_for_long_heads(), connection());
        let mut head = Headers::new();
        for (name, value) in [(Name::METHOD, &b"GET"[..]), (Name::PATH, b"/"), (Name::AUTHORITY, b"a")] {
            head.set(name, value);
        }
        let (caller, socket) = (Socket::http1_server(&worker), Socket::http1_client(&worker));
        let (way, slot) = (trial::inbound(&worker), worker.call_slot().expect("there is room"));
        let call = Call::begin(&worker, way, Side::Socket(Rc::clone(&caller)), head, true, slot);
        call.send_over_socket(&socket).expect("it is a request");
        let driving = tokio::task::spawn_local(SocketDriver::new(&worker, &socket, io, |_: Occasion| {}));
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(service.read_u8().await.expect("it is asked"));
        }
        let long = "x".repeat(150 * 1024);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Long: {long}\r\n\r\nhello");
        service.write_all(answer.as_bytes()).await.expect("it is taken");
        while !call.is_over() {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(caller.usage().output_bytes > long.len(), "{}", caller.usage().output_bytes);
        driving.abort();
    });
}
