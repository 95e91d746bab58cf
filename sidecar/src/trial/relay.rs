//! Calls that are relayed between a client and a service, which both do what a script says.

use std::{
    cell::Cell,
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    sync::{Arc, LazyLock, OnceLock},
    task::{Context, Poll, Waker},
    time::Duration,
};

use clap::Parser;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex},
    sync::mpsc,
    task::{spawn_local, yield_now},
    time::{Instant, advance},
};
use weft_mesh::policy::{AccessRules, MeshAccess};
use weft_wire::{Code, Connection, Event, Headers, Limits, Name, StreamId};

use crate::{
    accept::http2::{self, Terms},
    args::Args,
    call::{Call, Side, Way},
    endpoints::catalog::{Catalog, DiscoveryQuestion},
    message::deadline::Limit,
    policy::retry::{ConnectError, Miss},
    proxy::{Proxy, inbound::Peer as Caller},
    shared::{Phase, Shared, Start, contracts::Contracts, survey::Surveyor},
    thread::{account::Counted, worker::Worker},
    transport::link::{Link, Role, driver::LinkDriver},
};

/// The client or the service: it does what the script says, and records what it sees.
struct Peer {
    core: Connection<usize>,
    /// `None` once it was cut off.
    io: Option<DuplexStream>,
    unread: Vec<u8>,
    /// Bytes that were read and not released: (stream, bytes).
    held: VecDeque<(StreamId, usize)>,
}

/// What happened to one call.
#[derive(Debug, Default)]
struct Talk {
    caller: Part,
    service: Part,
    has_arrived: bool,
    /// The mesh has answered in place of the service.
    is_meshs: bool,
    /// Somebody ended it early, so missing bytes are no fault.
    is_cut: bool,
}

/// What one of the two has sent and received.
#[derive(Debug, Default)]
struct Part {
    stream: Option<StreamId>,
    has_head: bool,
    sent: usize,
    has_ended: bool,
    heard: usize,
    has_heard_end: bool,
    was_reset: bool,
}

impl Talk {
    fn part(&mut self, is_service: bool) -> &mut Part {
        if is_service { &mut self.service } else { &mut self.caller }
    }
}

impl Part {
    /// Its stream, while something may be sent on it.
    fn open(&self) -> Option<StreamId> {
        self.stream.filter(|_| !self.has_ended && !self.was_reset)
    }
}

/// The trailers that both use.
fn trailers() -> Headers {
    let mut trailers = Headers::new();
    trailers.append_bytes(b"x-ended", b"1");
    trailers
}

/// A part of a body. Each call's body starts at another place of the same noise. The noise is copied, because
/// generating bytes one by one would take most of the time.
fn body(call: usize, from: usize, bytes: usize, is_answer: bool) -> Vec<u8> {
    static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut random = fastrand::Rng::with_seed(0);
        // A prime, so that it is not the length of any window or buffer.
        (0..65_521).map(|_| random.u8(..)).collect()
    });
    let mut body = Vec::with_capacity(bytes);
    let mut at = from + call * 331 + usize::from(is_answer) * 32_771;
    while body.len() < bytes {
        let noise = &NOISE[at % NOISE.len()..];
        let part = noise.len().min(bytes - body.len());
        body.extend_from_slice(&noise[..part]);
        at += part;
    }
    body
}

impl Peer {
    /// Writes and reads as much as possible; returns the number of bytes.
    fn pump(&mut self, talks: &mut [Talk], is_service: bool, is_reading: bool) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let now = Instant::now().into_std();
        let Some(io) = &mut self.io else { return 0 };
        let mut moved = 0;
        while !self.core.output().is_empty() {
            match Pin::new(&mut *io).poll_write(&mut cx, self.core.output()) {
                Poll::Ready(Ok(count @ 1..)) => {
                    self.core.wrote(count);
                    moved += count;
                }
                _ => break,
            }
        }
        let mut buffer = [0; 4096];
        loop {
            let mut read = ReadBuf::new(&mut buffer);
            match Pin::new(&mut *io).poll_read(&mut cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                    moved += read.filled().len();
                    self.unread.extend_from_slice(read.filled());
                }
                _ => break,
            }
        }
        let unread = std::mem::take(&mut self.unread);
        let mut input = &unread[..];
        loop {
            match self.core.receive(&mut input, now).expect("the relay keeps HTTP/2's rules") {
                None => break,
                Some(event) => {
                    if let Some((stream, call)) = see(event, talks, is_service, &mut self.held) {
                        self.core.attach(stream, call);
                    }
                }
            }
        }
        self.unread = input.to_vec();
        while self.core.next_notice().is_some() {}
        if is_reading {
            for (stream, bytes) in self.held.drain(..) {
                self.core.release(stream, bytes);
            }
        }
        moved
    }
}

/// Records an event; returns the stream and the call to attach to it, if any.
fn see(
    event: Event<'_, usize>,
    talks: &mut [Talk],
    is_service: bool,
    held: &mut VecDeque<(StreamId, usize)>,
) -> Option<(StreamId, usize)> {
    match event {
        Event::Request { stream, headers, is_end } => {
            let number = headers.get(NUMBER).expect("every head has it");
            let call: usize = std::str::from_utf8(number).expect("digits").parse().expect("digits");
            let talk = &mut talks[call];
            assert!(!talk.has_arrived, "call {call} arrives twice");
            talk.has_arrived = true;
            talk.service.stream = Some(stream);
            talk.service.has_heard_end = is_end;
            return Some((stream, call));
        }
        Event::Response { call, headers, is_end, .. } => {
            assert!(!talks[call].caller.has_head, "call {call} is answered twice");
            talks[call].caller.has_head = true;
            talks[call].caller.has_heard_end |= is_end;
            // An answer that the mesh makes itself is not the service's.
            talks[call].is_meshs = headers.get(ANSWERED).is_none();
            talks[call].is_cut |= talks[call].is_meshs;
        }
        Event::Data { stream, call, data, is_end } => {
            let talk = &mut talks[call];
            let is_compared = is_service || !talk.is_meshs;
            let part = talk.part(is_service);
            assert!(!part.has_heard_end, "call {call}: data comes after its end");
            part.has_heard_end = is_end;
            if is_compared {
                let expected = body(call, part.heard, data.len(), !is_service);
                assert_eq!(data, expected, "call {call}: after {} bytes", part.heard);
                part.heard += data.len();
            }
            held.push_back((stream, data.len()));
        }
        Event::Trailers { call, headers, .. } => {
            let talk = &mut talks[call];
            talk.is_cut |= headers.get(ENDED).is_none();
            talk.part(is_service).has_heard_end = true;
        }
        Event::RequestTooLarge { .. } => panic!("no head is that large"),
        Event::Reset { call, .. } => talks[call].part(is_service).was_reset = true,
        Event::Settings | Event::GoAway { .. } => {}
    }
    None
}

const NUMBER: Name = Name::other("x-number");
/// Headers that only the service itself sends, in its heads and trailers.
const ANSWERED: Name = Name::other("x-answered");
const ENDED: Name = Name::other("x-ended");

/// Relays calls between a client and a service that do what `script` says. Checks that each receives what the other
/// sent, that every call ends on both sides, and that nothing is left of them.
pub fn relay(script: &[u8]) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build_local(Default::default()).expect("a runtime");
    runtime.block_on(play(script));
}

/// A sidecar's flags.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    args: Args,
}

/// A worker of a sidecar that has no local service and knows no other.
pub(crate) fn worker() -> Rc<Worker> {
    static SHARED: OnceLock<Arc<Shared>> = OnceLock::new();
    Worker::new(0, Arc::clone(SHARED.get_or_init(|| shared(&[]).0)))
}

/// The [`Way`] of a peer's inbound calls. There is no local service to answer them.
pub(crate) fn inbound(worker: &Rc<Worker>) -> Rc<dyn Way> {
    let id = "spiffe://weft.local/ns/shop/sa/peer".parse().expect("it is one");
    let from = ([127, 0, 0, 1], 40_000).into();
    Caller::new(&Proxy::new(Rc::clone(worker)), id, from, &Rc::default(), Vec::new())
}

/// A worker of a sidecar with these flags.
#[cfg(test)]
pub(crate) fn worker_with_flags(flags: &[&str]) -> Rc<Worker> {
    Worker::new(0, shared(flags).0)
}

/// A worker, and its questions to discovery, which the test may answer.
#[cfg(test)]
pub(crate) fn worker_with_questions() -> (Rc<Worker>, mpsc::Receiver<DiscoveryQuestion>) {
    worker_with_flags_and_questions(&[])
}

/// Both.
#[cfg(test)]
pub(crate) fn worker_with_flags_and_questions(flags: &[&str]) -> (Rc<Worker>, mpsc::Receiver<DiscoveryQuestion>) {
    let (shared, questions) = shared(flags);
    (Worker::new(0, shared), questions)
}

fn shared(more: &[&str]) -> (Arc<Shared>, mpsc::Receiver<DiscoveryQuestion>) {
    let least = ["weft-sidecar", "--trust-bundle", "/", "--join-token-file", "/"];
    let Flags { args } = Flags::try_parse_from([&least, more].concat()).expect("the least that is needed");
    let (catalog, questions) = Catalog::new();
    let local_service = args.service_name().expect("a name, if there is one");
    let shared = Shared::from(Start {
        args,
        settings: Vec::new(),
        local_service,
        local_contracts: Contracts::default(),
        catalog,
        surveyor: Surveyor::new(1).0,
        spans: None,
        reflection: tonic::service::Routes::default(),
    });
    if let Some(service) = &shared.local_service {
        shared.local_terms.set_access(AccessRules::new(service, MeshAccess::default()));
    }
    (Arc::new(shared), questions)
}

/// A relay, its client and its service.
struct Play {
    worker: Rc<Worker>,
    upstream: Rc<Link>,
    client: Peer,
    service: Peer,
    talks: Vec<Talk>,
    is_client_reading: bool,
    is_service_reading: bool,
    /// Calls for which the connection had no room at the time: the service does not read.
    refused: Rc<Cell<usize>>,
    /// One of the two is leaving or has left.
    is_leaving: bool,
}

async fn play(script: &[u8]) {
    let mut play = Play::new(script.first().copied().unwrap_or_default());
    for step in script.get(1..).unwrap_or_default().chunks(3) {
        let byte = |at: usize| usize::from(step.get(at).copied().unwrap_or_default());
        play.step(step[0], byte(1), byte(2)).await;
    }
    play.finish().await;
}

impl Play {
    fn new(kind: u8) -> Self {
        let worker = worker();
        // Small windows fill up, and small pipes split frames.
        let limits = Arc::new(Limits {
            stream_window_bytes: [1 << 16, 1 << 13, 2_000, 1 << 18][usize::from(kind & 3)],
            settings_timeout: Duration::from_secs(1_000_000),
            ..Limits::clone(&worker.wire_limits.local)
        });
        let pipe = [1 << 16, 64, 1 << 12, 1 << 20][usize::from(kind >> 2 & 3)];
        let now = Instant::now().into_std();
        let (client_io, downstream) = duplex(pipe);
        let (service_io, up) = duplex(pipe);
        let peer = |core, io| Peer { core, io: Some(io), unread: Vec::new(), held: VecDeque::new() };

        let refused: Rc<Cell<usize>> = Rc::default();
        let counted = Counted::new(&worker.accounts.inbound, &worker.to_local);
        let upstream = Link::client(&worker, &worker.wire_limits.local, &Rc::default(), counted);
        spawn_local(LinkDriver::new(&worker, &upstream, Role::Client, up, |_| {}));
        spawn_local({
            let (worker, upstream, refused) = (Rc::clone(&worker), Rc::clone(&upstream), Rc::clone(&refused));
            async move {
                let begin = |link: &Rc<Link>, stream, head: Headers, is_whole| {
                    let way = inbound(&worker);
                    let caller = Side::Stream(Rc::clone(link), stream);
                    Some(Call::begin(&worker, way, caller, head, is_whole, worker.call_slot()?))
                };
                let carry = |call: Rc<Call>| {
                    let deadline =
                        call.head().get(Name::other("x-deadline")).and_then(|_| call.started.checked_add(DEADLINE));
                    call.end_by(deadline, Limit::Callers);
                    if call.send_over(&upstream, |_, _, _| {}).is_err() {
                        refused.set(refused.get() + 1);
                        call.missed(Miss::NotSent(ConnectError::Full));
                    }
                };
                let load = Rc::default();
                let terms = Terms { load: &load, last: Phase::Stopping, expiry: None };
                http2::serve(&worker, downstream, terms, &"the client", begin, carry).await;
            }
        });
        spawn_local({
            let worker = Rc::clone(&worker);
            async move { worker.deadlines.run().await }
        });
        Self {
            upstream,
            refused,
            client: peer(Connection::client(&limits, now), client_io),
            service: peer(Connection::server(&limits, now), service_io),
            talks: Vec::new(),
            is_client_reading: kind & 16 == 0,
            is_service_reading: kind & 32 == 0,
            is_leaving: false,
            worker,
        }
    }

    /// Runs until nothing moves any more.
    async fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 4 {
            let moved = self.client.pump(&mut self.talks, false, self.is_client_reading)
                + self.service.pump(&mut self.talks, true, self.is_service_reading);
            quiet = if moved == 0 { quiet + 1 } else { 0 };
            yield_now().await;
        }
    }

    async fn step(&mut self, what: u8, which: usize, size: usize) {
        let count = self.talks.len();
        let call = if count == 0 { 0 } else { which % count };
        // Sizes up to what windows and buffers hold, and beyond.
        let times = [1, 150, 1, 2_000][usize::from(what >> 4 & 1 | what >> 6 & 2)];
        match what % 16 {
            0 | 1 => self.open(which & 1 != 0, which & 2 != 0 && what & 16 != 0),
            2 | 3 if count > 0 => self.say(call, size * times, false),
            4 if count > 0 => self.say(call, size % 4 * 5, true),
            5 if count > 0 => self.end_by_trailers(call),
            6 if count > 0 => self.answer(call, what & 16 != 0),
            7 | 8 if count > 0 => self.reply(call, size * times, false),
            9 if count > 0 => self.reply(call, size % 4 * 5, what & 16 == 0),
            10 if count > 0 => {
                if let Some(stream) = self.talks[call].caller.stream {
                    self.client.core.reset(stream, Code(size as u32 % 14));
                    self.talks[call].caller.was_reset = true;
                    self.talks[call].is_cut = true;
                }
            }
            11 if count > 0 => {
                if let Some(stream) = self.talks[call].service.stream {
                    self.service.core.reset(stream, Code(size as u32 % 14));
                    self.talks[call].service.was_reset = true;
                    self.talks[call].is_cut = true;
                }
            }
            12 => {
                self.is_client_reading ^= which & 1 != 0;
                self.is_service_reading ^= which & 2 != 0;
            }
            13 if which > 200 => {
                let peer = if size & 1 == 0 { &mut self.client } else { &mut self.service };
                peer.core.drain(Instant::now().into_std());
                self.leaves();
            }
            14 if which > 230 => {
                let peer = if size & 1 == 0 { &mut self.client } else { &mut self.service };
                peer.io = None;
                self.leaves();
            }
            // A peer that is kept waiting for long is cut off, so time passes only when nothing moves.
            15 => {
                self.settle().await;
                advance(Duration::from_millis(size as u64)).await;
                self.worker.tick();
            }
            _ => {}
        }
        if what & 32 == 0 {
            self.settle().await;
        }
    }

    fn leaves(&mut self) {
        self.is_leaving = true;
        self.talks.iter_mut().for_each(|talk| talk.is_cut = true);
    }

    fn open(&mut self, is_whole: bool, has_deadline: bool) {
        let number = self.talks.len();
        let mut head = Headers::new();
        head.set(Name::METHOD, b"POST");
        head.set(Name::SCHEME, b"http");
        head.set(Name::PATH, b"/a.B/C");
        head.set(Name::AUTHORITY, b"b");
        if !number.is_multiple_of(3) {
            head.append_bytes(b"content-type", b"application/grpc");
        }
        head.append_bytes(b"x-number", number.to_string().as_bytes());
        if has_deadline {
            head.append_bytes(b"x-deadline", b"1");
        }
        if self.client.io.is_none() {
            return;
        }
        if let Ok(stream) = self.client.core.open(&head, is_whole, number) {
            let caller = Part { stream: Some(stream), has_ended: is_whole, ..Part::default() };
            let is_cut = has_deadline || self.is_leaving;
            self.talks.push(Talk { caller, is_cut, ..Talk::default() });
        }
    }

    fn say(&mut self, call: usize, bytes: usize, is_end: bool) {
        let part = &mut self.talks[call].caller;
        let Some(stream) = part.open() else { return };
        self.client.core.send_data(stream, &body(call, part.sent, bytes, false), is_end);
        part.sent += bytes;
        part.has_ended = is_end;
    }

    fn end_by_trailers(&mut self, call: usize) {
        let part = &mut self.talks[call].caller;
        let Some(stream) = part.open() else { return };
        self.client.core.send_trailers(stream, &trailers());
        part.has_ended = true;
    }

    fn answer(&mut self, call: usize, is_whole: bool) {
        let part = &mut self.talks[call].service;
        let Some(stream) = part.stream else { return };
        if part.has_head || part.was_reset {
            return;
        }
        let mut head = Headers::new();
        head.set(Name::STATUS, b"200");
        head.append_bytes(b"x-answered", b"1");
        self.service.core.respond(stream, &head, is_whole);
        part.has_head = true;
        part.has_ended = is_whole;
    }

    fn reply(&mut self, call: usize, bytes: usize, ends_by_trailers: bool) {
        self.answer(call, false);
        let part = &mut self.talks[call].service;
        let Some(stream) = part.open() else { return };
        self.service.core.send_data(stream, &body(call, part.sent, bytes, true), false);
        part.sent += bytes;
        if ends_by_trailers {
            self.service.core.send_trailers(stream, &trailers());
            part.has_ended = true;
        }
    }

    /// Brings every call to its end, and checks the result.
    async fn finish(&mut self) {
        (self.is_client_reading, self.is_service_reading) = (true, true);
        self.settle().await;
        for call in 0..self.talks.len() {
            self.say(call, 0, true);
        }
        self.settle().await;
        for (call, talk) in self.talks.iter().enumerate() {
            let is_whole = talk.service.has_heard_end && talk.service.heard == talk.caller.sent;
            let is_over = talk.is_cut || talk.service.has_ended || !talk.has_arrived;
            assert!(is_whole || is_over, "the request of {call} does not come: {talk:?}");
        }
        for call in 0..self.talks.len() {
            self.reply(call, 3, true);
        }
        self.settle().await;
        // Cancels of calls that were not processed yet are delayed for a while.
        advance(Duration::from_secs(5)).await;
        self.settle().await;
        let (has_client, has_service) = (self.client.io.is_some(), self.service.io.is_some());
        let mut unheard = 0;
        for (call, talk) in self.talks.iter().enumerate() {
            let (caller, service) = (&talk.caller, &talk.service);
            if has_client {
                assert!(caller.has_heard_end || caller.was_reset, "call {call} never ends for its caller: {talk:?}");
            }
            if has_service && talk.has_arrived {
                let is_over = service.was_reset || service.has_heard_end && service.has_ended;
                assert!(is_over, "call {call} never ends for its service: {talk:?}");
            }
            assert!(service.heard <= caller.sent && caller.heard <= service.sent, "call {call}: {talk:?}");
            if !talk.is_cut && !talk.has_arrived {
                unheard += 1;
            } else if !talk.is_cut {
                assert!(caller.has_heard_end && caller.heard == service.sent, "the answer of {call} is cut: {talk:?}");
                let is_asked = service.has_heard_end && service.heard == caller.sent;
                assert!(is_asked || service.was_reset, "the request of {call} is cut: {talk:?}");
            }
        }
        assert!(unheard <= self.refused.get(), "{unheard} calls have not arrived");
        let left = (self.worker.calls.sum(), self.worker.replay_bytes.sum());
        assert_eq!(left, (0, 0), "nothing is left of calls that have ended");
        if has_service {
            assert_eq!(self.upstream.usage().streams, 0, "no stream is left");
        }
    }
}

const DEADLINE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_relayed_whatever_the_client_and_the_service_do() {
        let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(400);
        for seed in 0..seeds {
            let mut random = fastrand::Rng::with_seed(seed);
            let script: Vec<u8> = (0..random.usize(..300)).map(|_| random.u8(..)).collect();
            let played = std::panic::catch_unwind(|| relay(&script));
            assert!(played.is_ok(), "seed {seed}");
        }
    }

    #[test]
    fn time_may_pass_while_a_request_is_in_flight() {
        let mut script = vec![0, 32, 1, 0];
        script.extend([15 | 32, 0, 255].repeat(60));
        relay(&script);
    }
}
