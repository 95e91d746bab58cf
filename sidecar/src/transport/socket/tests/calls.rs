//! Calls between two connections in memory: a client's and a service's.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::{AbortHandle, spawn_local, yield_now},
};

use super::*;
use crate::{
    call::Way,
    message::failure::{Failure, Hop},
    policy::{
        outcome::Outcome,
        retry::{Miss, Next},
    },
    trial::mesh::body,
};

/// A way on which a failed try ends the call, and a call that is sent again is only counted.
#[derive(Default)]
struct Counting {
    again: Cell<usize>,
    missed: Cell<usize>,
}

impl Way for Counting {
    fn hop(&self) -> Hop {
        Hop::Outbound
    }

    fn missed(&self, _: &Call, _: Miss) -> Next {
        self.missed.set(self.missed.get() + 1);
        Next::Fail(Failure::deadline_passed())
    }

    fn answered(&self, _: Outcome) -> Option<Miss> {
        None
    }

    fn again(self: Rc<Self>, _: Rc<Call>) -> AbortHandle {
        self.again.set(self.again.get() + 1);
        spawn_local(async {}).abort_handle()
    }

    fn deadline_passed(&self, _: &Call) -> Failure {
        Failure::deadline_passed()
    }

    fn over_budget(&self, _: &Call) -> Failure {
        Failure::deadline_passed()
    }
}

/// What a test sees of one end of a call.
struct End {
    io: DuplexStream,
    socket: Rc<Socket>,
    is_broken_off: Rc<Cell<bool>>,
    is_reset: Rc<Cell<bool>>,
    /// It was free for another call.
    was_free: Rc<Cell<bool>>,
}

impl End {
    fn drive(worker: &Rc<Worker>, socket: Rc<Socket>) -> Self {
        let (peer, io) = connection();
        let (is_broken_off, is_reset) = (Rc::clone(&io.is_broken_off), Rc::clone(&io.is_reset));
        let was_free = Rc::<Cell<bool>>::default();
        let free = Rc::clone(&was_free);
        let on = move |occasion| free.set(free.get() || matches!(occasion, Occasion::Free));
        spawn_local(SocketDriver::new(worker, &socket, io, on));
        Self { io: peer, socket, is_broken_off, is_reset, was_free }
    }
}

/// A call whose request is sent to a service of HTTP/1.1.
fn post(worker: &Rc<Worker>, service: &Rc<Socket>, is_whole: bool) -> Rc<Call> {
    let mut head = Headers::new();
    for (name, value) in [(Name::METHOD, &b"POST"[..]), (Name::PATH, b"/"), (Name::AUTHORITY, b"a")] {
        head.set(name, value);
    }
    let caller = Side::Socket(Socket::http1_server(worker));
    let slot = worker.call_slot().expect("there is room");
    let call = Call::begin(worker, Rc::<Counting>::default(), caller, head, is_whole, slot);
    call.send_over_socket(service).expect("it is a request");
    call
}

async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

/// A tunnel from a client to a service, of which neither speaks HTTP.
fn tunnel() -> (Rc<Call>, End, End) {
    let worker = trial::worker();
    let [client, service] = [Role::Server, Role::Client].map(|role| End::drive(&worker, Socket::raw(&worker, role)));
    let mut head = Headers::new();
    head.set(Name::METHOD, b"CONNECT");
    head.set(Name::AUTHORITY, b"probe.shop:80");
    let slot = worker.call_slot().expect("there is room");
    let caller = Side::Socket(Rc::clone(&client.socket));
    let call = Call::begin(&worker, Rc::<Counting>::default(), caller, head, false, slot);
    call.send_raw(&service.socket);
    let mut head = Headers::new();
    head.set(Name::STATUS, b"200");
    Rc::clone(&call).response_head(head, false);
    (call, client, service)
}

async fn say(from: &mut End, to: &mut End, text: &str) {
    from.io.write_all(text.as_bytes()).await.expect("it is taken");
    let mut heard = vec![0; text.len()];
    to.io.read_exact(&mut heard).await.expect("it arrives");
    assert_eq!(heard, text.as_bytes());
}

#[test]
fn either_end_of_a_tunnel_may_speak_first_and_end_first() {
    for is_client_first in [true, false] {
        run(async {
            let (call, client, service) = tunnel();
            let (mut first, mut second) = if is_client_first { (client, service) } else { (service, client) };
            say(&mut first, &mut second, "hello").await;
            first.io.shutdown().await.expect("it ends its side");
            assert_eq!(second.io.read(&mut [0; 1]).await.expect("no reset"), 0, "the end arrives");
            assert!(!call.is_over(), "only one side has ended");
            say(&mut second, &mut first, "there is more").await;
            second.io.shutdown().await.expect("it ends its side");
            assert_eq!(first.io.read(&mut [0; 1]).await.expect("no reset"), 0);
            settle().await;
            assert!(call.is_over() && !first.is_broken_off.get() && !second.is_broken_off.get());
            assert!(first.socket.is_gone() && second.socket.is_gone());
        });
    }
}

/// The other end must not take what has come for the whole.
#[test]
fn a_reset_of_either_end_of_a_tunnel_arrives_as_a_reset() {
    for is_clients in [true, false] {
        run(async {
            let (call, client, service) = tunnel();
            let (mut one, mut other) = if is_clients { (client, service) } else { (service, client) };
            say(&mut one, &mut other, "a part").await;
            one.is_reset.set(true);
            one.io.write_all(b"!").await.expect("it wakes the sidecar");
            settle().await;
            assert!(other.is_broken_off.get(), "the client's: {is_clients}");
            assert!(call.is_over() && other.socket.is_gone());
        });
    }
}

/// The connections in memory hold 256 KiB each; beyond that and its own buffers, the sidecar takes nothing.
#[test]
fn a_reader_that_stops_holds_the_writer_back() {
    for is_clients in [true, false] {
        run(async {
            let (call, client, service) = tunnel();
            let (mut writer, mut reader) = if is_clients { (client, service) } else { (service, client) };
            let whole = body(4 << 20);
            let mut sent = 0;
            // Written until nothing more is taken.
            while let Ok(count) = timeout(Duration::from_secs(1), writer.io.write(&whole[sent..])).await {
                sent += count.expect("it is taken");
                assert!(sent < whole.len(), "everything is taken");
            }
            let held = sent - 2 * (256 << 10);
            assert!(held <= 4 * limits::SOCKET_BUFFER_BYTES, "{held} bytes are held");
            let mut heard = Vec::new();
            let (written, ()) = tokio::join!(
                async {
                    writer.io.write_all(&whole[sent..]).await?;
                    writer.io.shutdown().await
                },
                async {
                    reader.io.read_to_end(&mut heard).await.expect("the end comes");
                }
            );
            written.expect("it is taken");
            assert!(heard == whole, "all of it arrives, in order");
            drop(call);
        });
    }
}

/// A service of HTTP/1.1 may close a connection that it thinks idle just when a request comes. It has most likely not
/// seen the request, so that is sent again if twice does no harm; on a new connection such an end is a failure.
#[test]
fn a_request_on_a_connection_that_was_kept_too_long_is_sent_again_if_it_may_be() {
    // (method, was the connection used before, has an answer begun, is it sent again)
    for (method, was_used, is_answered, is_again) in [
        (&b"GET"[..], true, false, true),
        (b"PUT", true, false, true),
        (b"POST", true, false, false),
        (b"GET", false, false, false),
        (b"GET", true, true, false),
    ] {
        run(async {
            let worker = trial::worker();
            let mut service = End::drive(&worker, Socket::http1_client(&worker));
            let way = Rc::<Counting>::default();
            let mut callers = Vec::new();
            let mut send = |method: &[u8]| {
                let mut head = Headers::new();
                for (name, value) in [(Name::METHOD, method), (Name::PATH, b"/"), (Name::AUTHORITY, b"a")] {
                    head.set(name, value);
                }
                let caller = Socket::http1_server(&worker);
                callers.push(Rc::clone(&caller));
                let slot = worker.call_slot().expect("there is room");
                let call = Call::begin(&worker, Rc::clone(&way) as _, Side::Socket(caller), head, true, slot);
                call.send_over_socket(&service.socket).expect("it is a request");
                call
            };
            if was_used {
                let first = send(b"GET");
                settle().await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                service.io.write_all(answer).await.expect("it is taken");
                settle().await;
                assert!(first.is_over());
            }
            let call = send(method);
            settle().await;
            if is_answered {
                service.io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no").await.expect("it is taken");
                settle().await;
            }
            drop(service.io);
            settle().await;
            let what = String::from_utf8_lossy(method);
            assert!(service.socket.is_gone());
            assert_eq!(way.again.get(), usize::from(is_again), "{what}, {was_used}, {is_answered}");
            assert_eq!(way.missed.get(), usize::from(!is_again && !is_answered), "{what}, {was_used}, {is_answered}");
            assert_eq!(call.is_over(), !is_again, "{what}, {was_used}, {is_answered}");
            call.reset(Code::CANCEL);
        });
    }
}

/// The next call, which may be of another caller, would take it for its answer.
#[test]
fn a_service_that_sends_more_than_its_answer_gets_no_other_call_on_the_connection() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    // (what the service sends, in pieces, whether the connection is free for another call)
    for (pieces, is_free) in [
        (&[ANSWER][..], true),
        (&["HTTP/1.1 204 No Content\r\n\r\n"], true),
        (&["HTTP/1.1 204 No Content\r\n\r\nsurplus"], false),
        (&[ANSWER, "surplus"], false),
        (&["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"], false),
        (&[ANSWER, ANSWER], false),
        (&[ANSWER, "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n"], false),
    ] {
        for is_ended in [false, true] {
            run(async {
                let worker = trial::worker();
                let mut service = End::drive(&worker, Socket::http1_client(&worker));
                let call = post(&worker, &service.socket, true);
                settle().await;
                for piece in pieces {
                    service.io.write_all(piece.as_bytes()).await.expect("it is taken");
                    settle().await;
                }
                if is_ended {
                    service.io.shutdown().await.expect("it ends");
                }
                assert!(call.is_over(), "the first answer is the call's");
                assert_eq!(service.was_free.get(), is_free || pieces.len() > 1, "{pieces:?}");
                let closed = timeout(Duration::from_secs(1), service.io.read_to_end(&mut Vec::new())).await;
                assert_eq!(closed.is_ok(), !is_free || is_ended, "{pieces:?}, ended: {is_ended}");
            });
        }
    }
}

/// The answer may be complete before the request is.
#[test]
fn what_follows_an_early_answer_is_not_taken_for_another_one() {
    run(async {
        let worker = trial::worker();
        let mut service = End::drive(&worker, Socket::http1_client(&worker));
        let call = post(&worker, &service.socket, false);
        settle().await;
        let answers = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
        service.io.write_all(answers).await.expect("it is taken");
        settle().await;
        call.request_data(b"", true);
        settle().await;
        assert!(call.is_over() && !service.was_free.get());
        timeout(Duration::from_secs(1), service.io.read_to_end(&mut Vec::new()))
            .await
            .expect("closed")
            .expect("the end");
    });
}

/// Bytes may come between two calls, when the next one has the connection already but has not written anything.
#[test]
fn what_came_before_a_request_is_not_its_answer() {
    run(async {
        let worker = trial::worker();
        let mut service = End::drive(&worker, Socket::http1_client(&worker));
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let first = post(&worker, &service.socket, true);
        settle().await;
        service.io.write_all(answer).await.expect("it is taken");
        settle().await;
        assert!(first.is_over() && service.was_free.get());
        service.io.write_all(answer).await.expect("it is taken");
        let second = post(&worker, &service.socket, true);
        settle().await;
        assert!(!second.is_over(), "it is sent again over another connection");
        assert!(service.socket.is_gone());
        second.reset(Code::CANCEL);
    });
}
