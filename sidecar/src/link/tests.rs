//! A connection that is not read for a while, in virtual time.

use std::time::Duration;

use tokio::{
    io::{DuplexStream, duplex},
    task::{LocalSet, spawn_local, yield_now},
    time::advance,
};
use weft_mesh::limits;
use weft_wire::{Connection, Name};

use super::*;
use crate::{
    call::{Call, Side, Way},
    http2,
    inbound::Running,
    shared::Phase,
    trial,
};

/// The sidecar on the other end.
struct Peer {
    core: Connection<usize>,
    io: DuplexStream,
    unread: Vec<u8>,
    is_reading: bool,
}

impl Peer {
    fn new(worker: &Worker, io: DuplexStream) -> Self {
        let core = Connection::client(&worker.wire_limits.mesh_made, worker.now().into_std());
        Self { core, io, unread: Vec::new(), is_reading: true }
    }

    /// Opens a call with some bytes of its body.
    fn call(&mut self, bytes: usize) -> StreamId {
        let mut head = Headers::new();
        for (name, value) in [
            (Name::METHOD, &b"POST"[..]),
            (Name::SCHEME, b"http"),
            (Name::AUTHORITY, b"probe"),
            (Name::PATH, b"/probe.v1.Probe/Say"),
        ] {
            head.set(name, value);
        }
        let stream = self.core.open(&head, false, 0).expect("there is room");
        assert_eq!(self.core.send_data(stream, &vec![0; bytes], false), 0, "it is within the window");
        stream
    }

    /// Writes and reads what goes, and lets its time pass.
    fn pump(&mut self) -> Result<(), ConnectionError> {
        let mut cx = Context::from_waker(Waker::noop());
        let now = Instant::now().into_std();
        while !self.core.output().is_empty() {
            match Pin::new(&mut self.io).poll_write(&mut cx, self.core.output()) {
                Poll::Ready(Ok(count @ 1..)) => self.core.wrote(count),
                _ => break,
            }
        }
        let mut buffer = [0; 4096];
        while self.is_reading {
            let mut read = ReadBuf::new(&mut buffer);
            match Pin::new(&mut self.io).poll_read(&mut cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => self.unread.extend_from_slice(read.filled()),
                _ => break,
            }
        }
        let unread = std::mem::take(&mut self.unread);
        let mut input = &unread[..];
        while self.core.receive(&mut input, now)?.is_some() {}
        self.unread = input.to_vec();
        if self.core.next_timeout().is_some_and(|due| due <= now) { self.core.on_timeout(now) } else { Ok(()) }
    }

    /// Lets so many seconds pass.
    async fn pass(&mut self, seconds: u64) -> Result<(), ConnectionError> {
        for _ in 0..10 * seconds {
            advance(Duration::from_millis(100)).await;
            for _ in 0..5 {
                yield_now().await;
            }
            self.pump()?;
        }
        Ok(())
    }
}

/// A peer, whose calls wait for ever, and what has become of its connection.
fn connected(worker: &Rc<Worker>, load: &Rc<Load>) -> (Peer, Rc<RefCell<Vec<Rc<Call>>>>, tokio::task::JoinHandle<()>) {
    let (peer, io) = duplex(1 << 16);
    let calls: Rc<RefCell<Vec<Rc<Call>>>> = Rc::default();
    let (worker, load, begun) = (Rc::clone(worker), Rc::clone(load), Rc::clone(&calls));
    let peer = Peer::new(&worker, peer);
    let serving = spawn_local(async move {
        let begin = |link: &Rc<Link>, stream, head: Headers, is_whole| {
            let slot = worker.inbound_slot(&load)?;
            let way = Way::Inbound(Running::new(&worker.shared));
            Some(Call::begin(&worker, way, Side::Stream(Rc::clone(link), stream), head, is_whole, slot))
        };
        let carry = |call| begun.borrow_mut().push(call);
        http2::serve(&worker, io, &load, Phase::Draining, None, &"a connection", begin, carry).await;
    });
    (peer, calls, serving)
}

const MINUTES: u64 = 120;

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_not_read_for_lack_of_memory_is_not_given_up() {
    LocalSet::new()
        .run_until(async {
            let (worker, _questions) = trial::worker_with_questions();
            let attending = spawn_local({
                let worker = Rc::clone(&worker);
                async move { worker.accounts.attend().await }
            });
            let load: Rc<Load> = Rc::default();
            let (mut peer, calls, serving) = connected(&worker, &load);
            peer.call(1_000);
            peer.pass(1).await.expect("it is read");
            assert_eq!((calls.borrow().len(), load.bytes()), (1, 1_000));

            let others = Counted::new(&worker.accounts.inbound, &load);
            others.set(limits::MEMORY_BYTES / 2);
            peer.call(1_000);
            peer.pass(MINUTES).await.expect("it hears of the sidecar");
            assert!(!serving.is_finished(), "and is not judged by what nobody reads");
            assert_eq!(calls.borrow().len(), 1, "nothing was read");
            others.set(0);
            peer.pass(1).await.expect("it is read");
            assert!(!serving.is_finished());
            assert_eq!(load.bytes(), 2_000, "it is read again");

            // One that is gone is noticed as soon as it is read.
            peer.is_reading = false;
            for _ in 0..10 * MINUTES {
                advance(Duration::from_millis(100)).await;
                yield_now().await;
            }
            assert!(serving.is_finished(), "it has not answered");
            attending.abort();
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_slowly_is_not_given_up_and_one_that_does_not_read_is() {
    LocalSet::new()
        .run_until(async {
            let (worker, _questions) = trial::worker_with_questions();
            let (mut peer, calls, serving) = connected(&worker, &Rc::default());
            let stream = peer.call(10);
            peer.pass(1).await.expect("it is read");
            // Many answers: as much as windows allow waits to be written, and nothing more is read.
            let call = Rc::clone(&calls.borrow()[0]);
            let mut head = Headers::new();
            head.set(Name::STATUS, b"200");
            call.response_head(head, false);
            call.response_data(&vec![0; limits::SEND_BUFFER_BYTES * 2], false);
            peer.is_reading = false;
            for _ in 0..MINUTES / 2 {
                peer.pass(1).await.expect("no time is up for it");
                // A few bytes a second.
                let mut some = [0; 100];
                let mut read = ReadBuf::new(&mut some);
                let mut cx = Context::from_waker(Waker::noop());
                assert!(Pin::new(&mut peer.io).poll_read(&mut cx, &mut read).is_ready());
                let now = Instant::now().into_std();
                peer.unread.extend_from_slice(read.filled());
                let unread = std::mem::take(&mut peer.unread);
                let mut input = &unread[..];
                while peer.core.receive(&mut input, now).expect("it keeps the rules").is_some() {}
                peer.unread = input.to_vec();
            }
            assert!(!serving.is_finished(), "it takes what it is sent");
            for _ in 0..10 * MINUTES {
                advance(Duration::from_millis(100)).await;
                yield_now().await;
            }
            assert!(serving.is_finished(), "it takes nothing any more");
            let _ = stream;
        })
        .await;
}
