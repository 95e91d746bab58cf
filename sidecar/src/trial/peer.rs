//! Another sidecar, or a client, that calls over an in-memory connection that the test drives byte by byte.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex},
    task::{JoinHandle, spawn_local, yield_now},
    time::{Instant, advance},
};
use weft_wire::{Code, Connection, ConnectionError, Event, Headers, Limits, Name, StreamId};

use crate::{
    accept::http2::{self, Terms},
    call::{Call, Side, Way},
    message::failure::Hop,
    proxy::{Proxy, outbound::Downstream},
    shared::Phase,
    thread::{loads::Load, worker::Worker},
    transport::link::Link,
};

/// A plain HTTP request, of no RPC protocol.
pub(crate) fn post() -> Headers {
    let mut head = Headers::new();
    for (name, value) in [
        (Name::METHOD, &b"POST"[..]),
        (Name::SCHEME, b"http"),
        (Name::AUTHORITY, b"probe"),
        (Name::PATH, b"/probe.v1.Probe/Say"),
    ] {
        head.set(name, value);
    }
    head
}

/// The peer on the other end of the connection.
pub(crate) struct Peer {
    pub(crate) core: Connection<usize>,
    pub(crate) io: DuplexStream,
    pub(crate) unread: Vec<u8>,
    pub(crate) is_reading: bool,
    /// Heads and trailers of answers, in the order in which they came.
    pub(crate) heads: Vec<Headers>,
    /// The bodies of answers or requests, one after the other.
    pub(crate) body: Vec<u8>,
    /// Requests that have come: their streams and heads.
    pub(crate) requests: Vec<(StreamId, Headers)>,
    /// Streams on which the other side has sent everything.
    pub(crate) ended: Vec<StreamId>,
    /// Streams that the other side has reset.
    pub(crate) resets: Vec<(StreamId, Code)>,
    /// It takes bodies: gives the window back for what has come.
    pub(crate) takes_bodies: bool,
    /// How many bytes it has read and written.
    pub(crate) moved: usize,
    untaken: Vec<(StreamId, usize)>,
}

impl Peer {
    pub(crate) fn new(worker: &Worker, io: DuplexStream) -> Self {
        Self::of(Connection::client(&worker.wire_limits.mesh_made, worker.now().into_std()), io)
    }

    /// A service that the sidecar has connected to.
    pub(crate) fn service(worker: &Worker, limits: &Arc<Limits>, io: DuplexStream) -> Self {
        Self::of(Connection::server(limits, worker.now().into_std()), io)
    }

    fn of(core: Connection<usize>, io: DuplexStream) -> Self {
        Self {
            core,
            io,
            unread: Vec::new(),
            is_reading: true,
            heads: Vec::new(),
            body: Vec::new(),
            requests: Vec::new(),
            ended: Vec::new(),
            resets: Vec::new(),
            takes_bodies: true,
            moved: 0,
            untaken: Vec::new(),
        }
    }

    /// Is gone, and says nothing.
    pub(crate) fn vanish(&mut self) {
        self.io = duplex(1).0;
    }

    /// Opens a call with some bytes of its body.
    pub(crate) fn call(&mut self, head: &Headers, bytes: usize) -> StreamId {
        let stream = self.core.open(head, false, 0).expect("there is room");
        assert_eq!(self.core.send_data(stream, &vec![0; bytes], false), 0, "it is within the window");
        stream
    }

    /// Writes and reads as much as possible, and handles its timeouts.
    pub(crate) fn pump(&mut self) -> Result<(), ConnectionError> {
        let mut cx = Context::from_waker(Waker::noop());
        let now = Instant::now().into_std();
        while !self.core.output().is_empty() {
            match Pin::new(&mut self.io).poll_write(&mut cx, self.core.output()) {
                Poll::Ready(Ok(count @ 1..)) => {
                    self.core.wrote(count);
                    self.moved += count;
                }
                _ => break,
            }
        }
        let mut buffer = [0; 4096];
        while self.is_reading {
            let mut read = ReadBuf::new(&mut buffer);
            match Pin::new(&mut self.io).poll_read(&mut cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                    self.moved += read.filled().len();
                    self.unread.extend_from_slice(read.filled());
                }
                _ => break,
            }
        }
        let unread = std::mem::take(&mut self.unread);
        let mut input = &unread[..];
        while let Some(event) = self.core.receive(&mut input, now)? {
            match event {
                Event::Request { stream, headers, is_end } => {
                    self.core.attach(stream, 0);
                    self.requests.push((stream, headers));
                    self.ended.extend(is_end.then_some(stream));
                }
                Event::Response { stream, headers, is_end, .. } => {
                    self.heads.push(headers);
                    self.ended.extend(is_end.then_some(stream));
                }
                Event::Trailers { stream, headers, .. } => {
                    self.heads.push(headers);
                    self.ended.push(stream);
                }
                Event::Data { stream, data, is_end, .. } => {
                    self.body.extend_from_slice(data);
                    self.untaken.push((stream, data.len()));
                    self.ended.extend(is_end.then_some(stream));
                }
                Event::Reset { stream, code, .. } => self.resets.push((stream, code)),
                _ => {}
            }
        }
        if self.takes_bodies {
            self.untaken.drain(..).for_each(|(stream, bytes)| self.core.release(stream, bytes));
        }
        self.unread = input.to_vec();
        if self.core.next_timeout().is_some_and(|due| due <= now) { self.core.on_timeout(now) } else { Ok(()) }
    }

    /// Lets this many seconds pass.
    pub(crate) async fn pass(&mut self, seconds: u64) -> Result<(), ConnectionError> {
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

/// The calls that have come, in order.
pub(crate) type Calls = Rc<RefCell<Vec<Rc<Call>>>>;

/// A peer, its calls, which go nowhere, and the task that serves its connection.
pub(crate) fn connected(worker: &Rc<Worker>, load: &Rc<Load>, is_outbound: bool) -> (Peer, Calls, JoinHandle<()>) {
    let way: Rc<dyn Way> =
        if is_outbound { Downstream::new(&Proxy::new(Rc::clone(worker))) } else { super::inbound(worker) };
    connected_to(worker, load, way)
}

/// The same, with calls that go this way.
pub(crate) fn connected_to(worker: &Rc<Worker>, load: &Rc<Load>, way: Rc<dyn Way>) -> (Peer, Calls, JoinHandle<()>) {
    let (peer, io) = duplex(1 << 16);
    let calls = Calls::default();
    let (worker, load, begun) = (Rc::clone(worker), Rc::clone(load), Rc::clone(&calls));
    let peer = Peer::new(&worker, peer);
    let serving = spawn_local(async move {
        let is_outbound = matches!(way.hop(), Hop::Outbound);
        let begin = |link: &Rc<Link>, stream, head: Headers, is_whole| {
            let slot = if is_outbound { worker.call_slot()? } else { worker.inbound_slot(&load)? };
            Some(Call::begin(&worker, Rc::clone(&way), Side::Stream(Rc::clone(link), stream), head, is_whole, slot))
        };
        let carry = |call| begun.borrow_mut().push(call);
        let last = if is_outbound { Phase::Stopping } else { Phase::Draining };
        http2::serve(&worker, io, Terms { load: &load, last, expiry: None }, &"a connection", begin, carry).await;
    });
    (peer, calls, serving)
}
