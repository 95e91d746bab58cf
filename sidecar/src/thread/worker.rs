//! What the connections and calls of one thread share. What workers share is atomic or swapped whole, so that none waits
//! for another.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use weft_mesh::{
    limits,
    names::ServiceName,
    telemetry::{LeftOut, LogLimit, SharedLogLimit},
};

use crate::{
    shared::{
        Phase, Shared,
        survey::{Accepts, Gauge, Level},
    },
    thread::{
        account::Accounts,
        expiry::Expiries,
        loads::{Callees, Load, Peers, Share},
        strangers::Strangers,
        wire_limits::WireLimits,
    },
    time::{
        moment::Moment,
        timer::{Timed, Wheel},
    },
    watchdog::Pulse,
};

/// What a worker's connections share.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) log_limit: LogLimit,
    /// For calls that are not allowed, by their callers: one that calls in vain hides no line of another.
    denial_lines: SharedLogLimit<ServiceName>,
    pub(crate) deadlines: Wheel<dyn Timed>,
    pub(crate) wire_limits: WireLimits,
    pub(crate) expiries: Rc<Expiries>,
    /// Shows the watchdog that this worker makes progress, and what it is doing.
    pub(crate) pulse: Arc<Pulse>,
    now: Cell<Instant>,
    /// The same time as a [`Moment`], once one was asked for.
    moment: Cell<Option<Moment>>,
    /// Reads go into this buffer. One is enough for all connections, because only one has its turn at a time.
    read_buffer: RefCell<Vec<u8>>,
    /// Emptied buffers of request bodies, for the next calls.
    spare_bodies: RefCell<Vec<Vec<u8>>>,
    /// Accepted connections, with the phase in which each is drained.
    accepted: RefCell<HashMap<*const (), Drained>>,
    /// What the connections hold.
    pub(crate) accounts: Accounts,
    /// Bytes of request bodies kept for another try.
    pub(crate) replay_bytes: Sides,
    pub(crate) calls: Sides,
    /// Accepted connections of the outbound side, and those of known peers on the inbound side.
    pub(crate) connections: Sides,
    pub(crate) peers: Rc<Peers>,
    pub(crate) strangers: Rc<Strangers>,
    pub(crate) callees: Callees,
    /// The load of the local service as a client.
    pub(crate) local_load: Rc<Load>,
    /// The load of the connections to the local service. It has no limit.
    pub(crate) to_local: Rc<Load>,
    pub(crate) connection_ended: Notify,
    /// Connections of this phase or an earlier one are drained as soon as they are accepted.
    ended: Cell<Option<Phase>>,
}

/// How much of something each side has. The two are independent.
#[derive(Debug, Default)]
pub(crate) struct Sides {
    pub(crate) outbound: Gauge,
    pub(crate) inbound: Gauge,
}

impl Sides {
    /// The sum of both sides.
    pub(crate) fn sum(&self) -> usize {
        self.outbound.get() + self.inbound.get()
    }

    /// The larger of the two sides, now and at its highest.
    pub(crate) fn level(&self) -> Level {
        let (one, other) = (self.outbound.level(), self.inbound.level());
        Level { now: one.now.max(other.now), highest: one.highest.max(other.highest) }
    }
}

/// A connection, and when it is drained.
type Drained = (Rc<dyn Accepting>, Phase);

/// An accepted connection, on which calls come in.
pub(crate) trait Accepting {
    /// Lets running calls end, and takes no new ones.
    fn drain(&self, now: Instant);
    /// Frees the buffers that it keeps and does not use.
    fn shrink(&self, now: Instant);
    /// Adds what it holds now.
    fn survey(&self, to: &mut Accepts);
}

/// The most that one read takes, and room before it for a partial frame.
const READ_BYTES: usize = 64 * 1024 + FRAME_BYTES;
/// Enough for the calls that start and end in one turn.
const SPARE_BODIES: usize = 256;
const SPARE_BODY_BYTES: usize = limits::REPLAY_BYTES_PER_CALL;
const QUIET_TIME: Duration = Duration::from_secs(2);
const FRAME_BYTES: usize = limits::MAX_FRAME_BYTES as usize + 9;

/// Whether a connection that had its last turn at that time is quiet, so that its buffers are freed.
pub(crate) fn is_quiet(last_turn: Instant, now: Instant) -> bool {
    now.saturating_duration_since(last_turn) > QUIET_TIME
}

impl Worker {
    pub(crate) fn new(index: u8, shared: Arc<Shared>) -> Rc<Self> {
        Rc::new(Self {
            expiries: Rc::default(),
            pulse: shared.pulses.of_worker(index),
            log_limit: LogLimit::new(),
            denial_lines: SharedLogLimit::new(),
            deadlines: Wheel::new(),
            wire_limits: WireLimits::new(shared.args.header_list_bytes),
            now: Cell::new(Instant::now()),
            moment: Cell::new(None),
            read_buffer: RefCell::default(),
            spare_bodies: RefCell::default(),
            accepted: RefCell::default(),
            accounts: Accounts::new(&shared.budget, &shared.metrics),
            replay_bytes: Sides::default(),
            calls: Sides::default(),
            connections: Sides::default(),
            peers: Rc::default(),
            strangers: Rc::default(),
            callees: Callees::default(),
            local_load: Load::with_share(Share::WholeSide),
            to_local: Load::with_share(Share::OfNobody),
            connection_ended: Notify::new(),
            ended: Cell::new(None),
            shared,
        })
    }

    /// The time of this turn. To read the clock once a turn is exact enough, and much cheaper.
    pub(crate) fn now(&self) -> Instant {
        self.now.get()
    }

    /// Reads the clock. Call it at the start of each turn and after each wait.
    pub(crate) fn tick(&self) {
        self.now.set(Instant::now());
        self.moment.set(None);
    }

    /// As [`now`](Self::now), in a form that is cheap to calculate with.
    #[inline]
    pub(crate) fn moment(&self) -> Moment {
        match self.moment.get() {
            Some(moment) => moment,
            None => self.set_moment(),
        }
    }

    fn set_moment(&self) -> Moment {
        let moment = Moment::of(self.now.get());
        self.moment.set(Some(moment));
        moment
    }

    /// The buffer for reading. Return it with [`give_back`](Self::give_back).
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

    /// Frees the buffers that accepted connections keep and do not use, whether or not calls run on them.
    pub(crate) fn shrink(&self, now: Instant) {
        self.accepted.borrow().values().for_each(|(connection, _)| connection.shrink(now));
        if self.calls.sum() == 0 {
            self.spare_bodies.take();
            self.read_buffer.take();
        }
    }

    /// What the accepted connections hold.
    pub(crate) fn survey(&self) -> Accepts {
        let mut accepts = Accepts::default();
        self.accepted.borrow().values().for_each(|(connection, _)| connection.survey(&mut accepts));
        accepts
    }

    /// Looks at the running calls again whenever the terms have changed on which the local service is called.
    pub(crate) async fn judge_again(self: Rc<Self>) {
        let mut changes = self.shared.local_terms.changes();
        while changes.changed().await.is_ok() {
            self.tick();
            let Accepts { calls, .. } = self.survey();
            calls.iter().for_each(|call| call.judge_again());
        }
    }

    /// Bytes in buffers that are kept for reuse.
    pub(crate) fn spare_bytes(&self) -> usize {
        let bodies: usize = self.spare_bodies.borrow().iter().map(Vec::capacity).sum();
        bodies + self.read_buffer.borrow().capacity()
    }

    /// Registers a connection, which is drained when the sidecar's life reaches the phase `last`.
    pub(crate) fn accepted(self: &Rc<Self>, connection: Rc<dyn Accepting>, last: Phase) -> Accepted {
        if self.ended.get().is_some_and(|ended| ended >= last) {
            connection.drain(self.now());
        }
        let address = Rc::as_ptr(&connection).cast();
        self.accepted.borrow_mut().insert(address, (connection, last));
        Accepted { worker: Rc::clone(self), address }
    }

    pub(crate) async fn drain_accepted(self: Rc<Self>) {
        for phase in [Phase::Draining, Phase::Stopping] {
            self.shared.reached(phase).await;
            self.drain_now(phase);
            self.shared.closed(phase).await;
            self.ended.set(Some(phase));
            self.drain_now(phase);
        }
    }

    /// Drains the connections whose last phase this is.
    fn drain_now(&self, phase: Phase) {
        self.tick();
        for (connection, last) in self.accepted.borrow().values() {
            if *last == phase {
                connection.drain(self.now());
            }
        }
    }

    /// All accepted connections.
    pub(crate) fn accepted_connections(&self) -> usize {
        self.connections.sum() + self.strangers.count()
    }

    /// Logs why something was refused or closed; the rate of such lines is limited.
    pub(crate) fn log(&self, line: impl FnOnce() -> String) {
        if self.log_limit.take().is_some() {
            tracing::info!("{}", line());
        }
    }

    /// Logs what an operator should see; the rate of such lines is limited together with those of [`log`](Self::log).
    pub(crate) fn warn(&self, line: impl FnOnce() -> String) {
        if self.log_limit.take().is_some() {
            tracing::warn!("{}", line());
        }
    }

    /// Logs that a call of this caller is not allowed. False if there were too many such lines.
    pub(crate) fn log_denial(&self, caller: &ServiceName, line: impl FnOnce() -> String) -> bool {
        let Some(left_out) = self.denial_lines.take(caller) else { return false };
        if let Some(LeftOut { lines, last }) = left_out {
            tracing::warn!("{lines} lines about calls that are not allowed were left out, the last one of {last}");
        }
        tracing::warn!("{}", line());
        true
    }

    /// Counts and logs a task's panic, which the runtime would swallow.
    pub(crate) fn note_panic(&self, what: &str) {
        if thread::panicking() {
            self.shared.metrics.counters.panics.fetch_add(1, Relaxed);
            tracing::error!("{what} ended in a panic, which is a bug in Weft");
        }
    }
}

/// Keeps an accepted connection registered until it is dropped.
pub(crate) struct Accepted {
    worker: Rc<Worker>,
    address: *const (),
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.worker.accepted.borrow_mut().remove(&self.address);
    }
}
