//! A worker: a thread with its own listeners, connections and balancer, on which calls are carried. What workers share
//! is atomic or swapped whole, so that none waits for another.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::{Notify, mpsc},
    task::{JoinHandle, spawn_local},
    time::{Instant, interval, sleep, timeout_at},
};
use weft_mesh::{limits, names::ServiceName};

use crate::{
    balance::Balancer,
    call::Call,
    inbound::{self, LocalService},
    intercept,
    link::Link,
    outbound,
    pool::Pools,
    record::LogLimit,
    shared::{Phase, SHORTEST_DRAIN, Shared},
    socket::Socket,
    survey::{self, Accepts, Gauge},
    tcp,
    timer::Wheel,
    wire_limits::WireLimits,
};

/// The listening sockets of a worker, bound before it starts.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) outbound: StdListener,
    /// For redirected connections.
    pub(crate) outbound_v6: Option<StdListener>,
    /// `None` for a sidecar that fronts nothing.
    pub(crate) inbound: Option<StdListener>,
    /// Those whose connections go to one service each, as they are.
    pub(crate) forwards: Vec<(StdListener, ServiceName)>,
}

/// What comes to a worker from outside.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) listeners: Listeners,
    /// The admin port's.
    pub(crate) questions: mpsc::Receiver<survey::Question>,
}

/// What a worker's connections share.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pools: Pools,
    pub(crate) balancer: Balancer,
    pub(crate) local: Option<LocalService>,
    pub(crate) log_limit: LogLimit,
    pub(crate) deadlines: Wheel<Call>,
    pub(crate) wire_limits: WireLimits,
    now: Cell<Instant>,
    /// What is read goes in here first: one for all connections, as only one has its turn at a time.
    read_buffer: RefCell<Vec<u8>>,
    /// Emptied buffers of request bodies, for the next calls.
    spare_bodies: RefCell<Vec<Vec<u8>>>,
    /// Connections on which calls come in, with the phase in which each is drained.
    accepted: RefCell<HashMap<*const (), Drained>>,
    /// Bytes of request bodies kept for another try.
    pub(crate) replay_bytes: Gauge,
    pub(crate) calls: Gauge,
    pub(crate) connections: Gauge,
    connection_ended: Notify,
    /// The phase whose connections are drained as soon as they are there.
    ended: Cell<Option<Phase>>,
    pub(crate) outside: intercept::Outside,
}

/// A connection, and when it is drained.
type Drained = (Rc<dyn Accepting>, Phase);

/// A connection on which calls come in.
pub(crate) trait Accepting {
    /// Lets those that run end, and takes no more.
    fn drain(&self, now: Instant);
    /// Since when nothing runs on it; `None` while something does.
    fn idle_since(&self) -> Option<Instant>;
    /// Gives back what it holds for the next calls.
    fn shrink(&self);
    /// Adds what it holds now.
    fn survey(&self, to: &mut Accepts);
}

impl Accepting for Link {
    fn drain(&self, now: Instant) {
        self.drain(now);
    }

    fn idle_since(&self) -> Option<Instant> {
        self.idle_since()
    }

    fn shrink(&self) {
        self.shrink();
    }

    fn survey(&self, to: &mut Accepts) {
        to.links.push(self.usage());
        to.calls.extend(self.calls());
    }
}

impl Accepting for Socket {
    fn drain(&self, now: Instant) {
        self.drain(now);
    }

    fn idle_since(&self) -> Option<Instant> {
        self.idle_since()
    }

    fn shrink(&self) {
        self.shrink();
    }

    fn survey(&self, to: &mut Accepts) {
        to.sockets.push(self.usage());
        to.calls.extend(self.call());
    }
}

/// One of a worker's calls.
pub(crate) struct CallSlot(Rc<Worker>);

impl Drop for CallSlot {
    fn drop(&mut self) {
        self.0.calls.take(1);
        self.0.note_panic("a call");
    }
}

/// One of a worker's connections.
pub(crate) struct ConnectionSlot(Rc<Worker>);

impl ConnectionSlot {
    fn new(worker: &Rc<Worker>) -> Self {
        worker.connections.add(1);
        worker.shared.metrics.open_accepted.fetch_add(1, Relaxed);
        Self(Rc::clone(worker))
    }

    pub(crate) fn worker(&self) -> &Rc<Worker> {
        &self.0
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.0.connections.take(1);
        self.0.shared.metrics.open_accepted.fetch_sub(1, Relaxed);
        self.0.connection_ended.notify_one();
        self.0.note_panic("a connection");
    }
}

/// What one read takes at most, and before it the begin of a frame that has not come whole yet.
const READ_BYTES: usize = 64 * 1024 + FRAME_BYTES;
/// Enough for the calls that begin and end in one turn.
const SPARE_BODIES: usize = 256;
const SPARE_BODY_BYTES: usize = limits::REPLAY_BYTES_PER_CALL;
const IDLE_BEFORE_SHRINKING: Duration = Duration::from_secs(2);
const FRAME_BYTES: usize = limits::MAX_FRAME_BYTES as usize + 9;

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>) -> Rc<Self> {
        Rc::new_cyclic(|worker| Self {
            pools: Pools::new(worker.clone(), Arc::clone(&shared)),
            balancer: Balancer::new(shared.args.balance),
            local: LocalService::new(worker.clone(), &shared),
            log_limit: LogLimit::new(),
            deadlines: Wheel::new(),
            wire_limits: WireLimits::new(),
            now: Cell::new(Instant::now()),
            read_buffer: RefCell::default(),
            spare_bodies: RefCell::default(),
            accepted: RefCell::default(),
            replay_bytes: Gauge::default(),
            calls: Gauge::default(),
            connections: Gauge::default(),
            connection_ended: Notify::new(),
            ended: Cell::new(None),
            outside: intercept::Outside::default(),
            shared,
        })
    }

    /// The time of this turn. Reading the clock once a turn is exact enough, and much cheaper.
    pub(crate) fn now(&self) -> Instant {
        self.now.get()
    }

    /// Reads the clock: at the begin of each turn, and after each wait.
    pub(crate) fn tick(&self) {
        self.now.set(Instant::now());
    }

    /// The buffer for reading, to be given back.
    pub(crate) fn read_buffer(&self) -> Vec<u8> {
        let mut buffer = self.read_buffer.take();
        buffer.resize(READ_BYTES, 0);
        buffer
    }

    pub(crate) fn give_back(&self, buffer: Vec<u8>) {
        self.read_buffer.replace(buffer);
    }

    /// A buffer for a request's body.
    pub(crate) fn body_buffer(&self) -> Vec<u8> {
        self.spare_bodies.borrow_mut().pop().unwrap_or_default()
    }

    pub(crate) fn give_back_body(&self, mut body: Vec<u8>) {
        let mut spare = self.spare_bodies.borrow_mut();
        if spare.len() < SPARE_BODIES && body.capacity() <= SPARE_BODY_BYTES {
            body.clear();
            spare.push(body);
        }
    }

    /// Gives back what connections hold that have been idle for a while.
    fn shrink(&self, now: Instant) {
        let is_idle = |since: Option<Instant>| since.is_some_and(|since| now - since > IDLE_BEFORE_SHRINKING);
        self.accepted
            .borrow()
            .values()
            .map(|(connection, _)| connection)
            .filter(|connection| is_idle(connection.idle_since()))
            .for_each(|connection| connection.shrink());
        self.pools.shrink(|link: &Link| is_idle(link.idle_since()));
        if self.calls.get() == 0 {
            self.spare_bodies.take();
            self.read_buffer.take();
        }
    }

    /// What the connections hold on which calls come in.
    pub(crate) fn survey(&self) -> Accepts {
        let mut accepts = Accepts::default();
        self.accepted.borrow().values().for_each(|(connection, _)| connection.survey(&mut accepts));
        accepts
    }

    /// Buffers that are kept for the next who needs one.
    pub(crate) fn spare_bytes(&self) -> usize {
        let bodies: usize = self.spare_bodies.borrow().iter().map(Vec::capacity).sum();
        bodies + self.read_buffer.borrow().capacity()
    }

    /// Sees to it that a connection is drained when the sidecar's life comes to `last`.
    pub(crate) fn accepted(self: &Rc<Self>, connection: Rc<dyn Accepting>, last: Phase) -> Accepted {
        if self.ended.get().is_some_and(|ended| ended >= last) {
            connection.drain(self.now());
        }
        let address = Rc::as_ptr(&connection).cast();
        self.accepted.borrow_mut().insert(address, (connection, last));
        Accepted { worker: Rc::clone(self), address }
    }

    async fn drain_accepted(self: Rc<Self>) {
        for phase in [Phase::Draining, Phase::Stopping] {
            self.shared.reached(phase).await;
            self.drain_now(phase);
            if phase == Phase::Draining {
                // Who has not heard yet that this endpoint leaves is served all the same.
                tokio::select! {
                    () = sleep(SHORTEST_DRAIN) => {}
                    () = self.shared.reached(Phase::Stopping) => {}
                }
            }
            self.ended.set(Some(phase));
            self.drain_now(phase);
        }
    }

    /// Lets connections end whose last phase this is.
    fn drain_now(&self, phase: Phase) {
        self.tick();
        for (connection, last) in self.accepted.borrow().values() {
            if *last == phase {
                connection.drain(self.now());
            }
        }
    }
    /// A place for one more call, if there is one.
    pub(crate) fn call_slot(self: &Rc<Self>) -> Option<CallSlot> {
        if self.calls.get() >= limits::CALLS_IN_FLIGHT {
            self.shared.metrics.limit_reached("CALLS_IN_FLIGHT");
            return None;
        }
        self.calls.add(1);
        Some(CallSlot(Rc::clone(self)))
    }

    /// Logs why something was refused or closed, as long as such lines stay few.
    pub(crate) fn log(&self, line: impl FnOnce() -> String) {
        if self.log_limit.allows() {
            tracing::info!("{}", line());
        }
    }

    /// The runtime swallows a task's panic: this is where it is seen.
    fn note_panic(&self, what: &str) {
        if thread::panicking() {
            self.shared.metrics.counters.panics.fetch_add(1, Relaxed);
            tracing::error!("{what} ended in a panic: a bug of Weft's");
        }
    }
}

/// A connection that is known to be there.
pub(crate) struct Accepted {
    worker: Rc<Worker>,
    address: *const (),
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.worker.accepted.borrow_mut().remove(&self.address);
    }
}

/// Starts a worker's thread. It returns when the sidecar stops and its connections have ended, or their time is up.
pub(crate) fn spawn(index: u8, shared: Arc<Shared>, ends: Ends) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        // A local runtime stays on the thread that made it.
        let runtime = runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
        match runtime {
            Ok(runtime) => runtime.block_on(run(shared, ends)),
            Err(e) => tracing::error!("worker {index} has no runtime: {e}"),
        }
    })
}

async fn run(shared: Arc<Shared>, Ends { listeners, questions }: Ends) {
    let worker = Worker::new(shared);
    let mut tasks = vec![
        spawn_local(listen(Rc::clone(&worker), listeners.outbound, Side::Outbound)),
        spawn_local(keep_house(Rc::clone(&worker))),
        spawn_local(keep_warm(Rc::clone(&worker))),
        spawn_local(Rc::clone(&worker).drain_accepted()),
        spawn_local(keep_deadlines(Rc::clone(&worker))),
        spawn_local(survey::answer(Rc::clone(&worker), questions)),
    ];
    tasks.extend(listeners.inbound.map(|inbound| spawn_local(listen(Rc::clone(&worker), inbound, Side::Inbound))));
    tasks.extend(listeners.outbound_v6.map(|other| spawn_local(listen(Rc::clone(&worker), other, Side::Outbound))));
    let forward = |(listener, service)| spawn_local(listen(Rc::clone(&worker), listener, Side::Forward(service)));
    tasks.extend(listeners.forwards.into_iter().map(forward));
    worker.shared.reached(Phase::Stopping).await;
    // Of one that was replaced nothing was drained before.
    let is_replaced = worker.shared.is_replaced.load(Relaxed);
    let most = if is_replaced { u64::MAX } else { MOST_GRACE_SECONDS };
    let grace = Duration::from_secs(worker.shared.args.drain_seconds.min(most));
    let end = Instant::now() + grace;
    while worker.connections.get() > 0 && timeout_at(end, worker.connection_ended.notified()).await.is_ok() {}
    tasks.iter().for_each(JoinHandle::abort);
}

/// After draining what is left are idle connections and outbound calls: they get this much and no more.
const MOST_GRACE_SECONDS: u64 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Side {
    Outbound,
    Inbound,
    /// Outbound, to this service.
    Forward(ServiceName),
}

/// Takes connections until the sidecar's life says otherwise.
async fn listen(worker: Rc<Worker>, listener: StdListener, side: Side) {
    let listener = match listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)) {
        Ok(listener) => listener,
        Err(e) => return tracing::error!("the {side:?} listener can't be used: {e}"),
    };
    let end = match side {
        Side::Outbound | Side::Forward(_) => Phase::Stopping,
        Side::Inbound => Phase::Draining,
    };
    let accept_all = async {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => take(&worker, stream, from, &side),
                Err(e) => {
                    worker.log(|| format!("accept failed: {e}"));
                    // Out of descriptors, most likely: others must end before one more can begin.
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    let ended = async {
        worker.shared.reached(end).await;
        if end == Phase::Draining {
            tokio::select! {
                () = sleep(SHORTEST_DRAIN) => {}
                () = worker.shared.reached(Phase::Stopping) => {}
            }
        }
    };
    tokio::select! {
        () = ended => {}
        () = accept_all => {}
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

fn take(worker: &Rc<Worker>, stream: TcpStream, from: SocketAddr, side: &Side) {
    let counters = &worker.shared.metrics.counters;
    if worker.connections.get() >= limits::CONNECTIONS_PER_LISTENER {
        counters.connections_refused.fetch_add(1, Relaxed);
        worker.shared.metrics.limit_reached("CONNECTIONS_PER_LISTENER");
        return worker.log(|| format!("connection from {from} closed: {} are open", limits::CONNECTIONS_PER_LISTENER));
    }
    counters.connections_accepted.fetch_add(1, Relaxed);
    let slot = ConnectionSlot::new(worker);
    // Without it small answers wait for acknowledgements; a socket that refuses it works all the same.
    let _ = stream.set_nodelay(true);
    // Each a task of its own size: what a handshake needs is no concern of a thousand local connections.
    match side {
        Side::Outbound => spawn_local(outbound::serve(slot, stream, from)),
        Side::Inbound => spawn_local(inbound::serve(slot, stream, from)),
        Side::Forward(service) => spawn_local(tcp::forward(slot, stream, from, service.clone())),
    };
}

async fn keep_deadlines(worker: Rc<Worker>) {
    worker.deadlines.run().await;
}

async fn keep_warm(worker: Rc<Worker>) {
    let mut changes = worker.shared.catalog.changes();
    while changes.changed().await.is_ok() {
        // Before it has an identity nobody would let it in.
        if worker.shared.identity.load().is_some() {
            worker.pools.warm(Instant::now());
        }
    }
}

async fn keep_house(worker: Rc<Worker>) {
    let mut tick = interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        let now = Instant::now();
        worker.shrink(now);
        worker.pools.close_idle(now);
    }
}
