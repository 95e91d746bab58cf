//! A worker's thread: its listening sockets and its periodic tasks.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, SystemTime},
};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::mpsc,
    task::{JoinHandle, spawn_local},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout_at},
};
use weft_mesh::{limits, names::ServiceName};

use crate::{
    accept::{clients, forward, members, report},
    proxy::Proxy,
    shared::{Phase, Shared, survey},
    thread::{slots::ConnectionSlot, worker::Worker},
    time::moment::Moment,
    watchdog,
};

/// The listening sockets of a worker, bound before it starts.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) outbound: StdListener,
    /// For redirected connections over IPv6.
    pub(crate) outbound_v6: Option<StdListener>,
    /// `None` for a sidecar without a local service.
    pub(crate) inbound: Option<StdListener>,
    /// Ports that lead to one service each.
    pub(crate) forwards: Vec<(StdListener, ServiceName)>,
}

/// What a worker receives from: sockets and a channel.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) listeners: Listeners,
    /// Requests of the admin port.
    pub(crate) report_requests: mpsc::Receiver<survey::ReportRequest>,
}

/// Starts a worker's thread. The thread ends after the sidecar stops: once its connections have ended, or their grace
/// time has passed.
pub(crate) fn spawn(index: u8, shared: Arc<Shared>, ends: Ends) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        // A local runtime stays on the thread that made it.
        let runtime = runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
        match runtime {
            Ok(runtime) => runtime.block_on(run(index, shared, ends)),
            Err(e) => tracing::error!("worker {index} can't start: its runtime can't be made: {e}"),
        }
    })
}

async fn run(index: u8, shared: Arc<Shared>, Ends { listeners, report_requests }: Ends) {
    let proxy = Proxy::new(Worker::new(index, shared));
    let worker = &proxy.worker;
    let mut tasks = vec![
        spawn_local(listen(Rc::clone(&proxy), listeners.outbound, ListenerKind::Outbound)),
        spawn_local(keep_house(Rc::clone(&proxy))),
        spawn_local(keep_warm(Rc::clone(&proxy))),
        spawn_local(keep_accounts(Rc::clone(worker))),
        spawn_local(end_expired(Rc::clone(worker))),
        spawn_local(watchdog::beat(Arc::clone(&worker.pulse))),
        spawn_local(Rc::clone(worker).drain_accepted()),
        spawn_local(keep_deadlines(Rc::clone(worker))),
        spawn_local(Rc::clone(worker).judge_again()),
        spawn_local(report::answer(Rc::clone(&proxy), report_requests)),
    ];
    tasks.extend(
        listeners.inbound.map(|inbound| spawn_local(listen(Rc::clone(&proxy), inbound, ListenerKind::Inbound))),
    );
    tasks.extend(
        listeners.outbound_v6.map(|other| spawn_local(listen(Rc::clone(&proxy), other, ListenerKind::Outbound))),
    );
    let forward =
        |(listener, service)| spawn_local(listen(Rc::clone(&proxy), listener, ListenerKind::Forward(service)));
    tasks.extend(listeners.forwards.into_iter().map(forward));
    worker.shared.reached(Phase::Stopping).await;
    // A sidecar that was replaced has drained nothing before.
    let is_replaced = worker.shared.is_replaced.load(Relaxed);
    let most = if is_replaced { u64::MAX } else { MOST_GRACE_SECONDS };
    let grace = Duration::from_secs(worker.shared.args.drain_seconds.min(most));
    let end = Instant::now() + grace;
    while worker.accepted_connections() > 0 && timeout_at(end, worker.connection_ended.notified()).await.is_ok() {}
    tasks.iter().for_each(JoinHandle::abort);
}

/// After draining, only idle connections and outbound calls are left. They get no more than this.
const MOST_GRACE_SECONDS: u64 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
enum ListenerKind {
    Outbound,
    Inbound,
    /// Outbound, to this service.
    Forward(ServiceName),
}

/// Accepts connections until the sidecar's phase ends it.
async fn listen(proxy: Rc<Proxy>, listener: StdListener, kind: ListenerKind) {
    let listener = match listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)) {
        Ok(listener) => listener,
        Err(e) => return tracing::error!("the {kind:?} listener can't be used: {e}"),
    };
    let worker = &proxy.worker;
    let end = match kind {
        ListenerKind::Outbound | ListenerKind::Forward(_) => Phase::Stopping,
        ListenerKind::Inbound => Phase::Draining,
    };
    let accept_all = async {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => take(&proxy, stream, from, &kind),
                Err(e) => {
                    worker.log(|| format!("accept failed: {e}"));
                    // Most likely out of file descriptors: other connections must end before one more can be accepted.
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = worker.shared.closed(end) => {}
        () = accept_all => {}
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

fn take(proxy: &Rc<Proxy>, stream: TcpStream, from: SocketAddr, kind: &ListenerKind) {
    let worker = &proxy.worker;
    let counters = &worker.shared.metrics.counters;
    let slot = match kind {
        ListenerKind::Inbound => Some(ConnectionSlot::inbound(worker, from)),
        ListenerKind::Outbound | ListenerKind::Forward(_) => ConnectionSlot::outbound(worker),
    };
    let Some(slot) = slot else {
        counters.connections_refused.fetch_add(1, Relaxed);
        return worker
            .log(|| format!("connection from {from} closed: {} connections are open", limits::CONNECTIONS_PER_SIDE));
    };
    counters.connections_accepted.fetch_add(1, Relaxed);
    // Without it small answers wait for acknowledgements. A socket that refuses it works all the same.
    let _ = stream.set_nodelay(true);
    // Each kind is a task of its own size, so that local connections need no room for a handshake.
    match kind {
        ListenerKind::Outbound => spawn_local(clients::serve(Rc::clone(proxy), slot, stream, from)),
        ListenerKind::Inbound => spawn_local(members::serve(Rc::clone(proxy), slot, stream, from)),
        ListenerKind::Forward(service) => {
            spawn_local(forward::serve(Rc::clone(proxy), slot, stream, from, service.clone()))
        }
    };
}

async fn keep_accounts(worker: Rc<Worker>) {
    worker.accounts.attend().await;
}

async fn keep_deadlines(worker: Rc<Worker>) {
    worker.deadlines.run().await;
}

async fn keep_warm(proxy: Rc<Proxy>) {
    let shared = &proxy.worker.shared;
    let mut changes = shared.catalog.changes();
    while changes.changed().await.is_ok() {
        // Without an identity no endpoint would accept a connection.
        if shared.identity.load().is_some() {
            proxy.pools.warm(Moment::now());
        }
    }
}

async fn end_expired(worker: Rc<Worker>) {
    let mut look = interval(limits::EXPIRY_LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        worker.tick();
        worker.expiries.look(SystemTime::now());
    }
}

async fn keep_house(proxy: Rc<Proxy>) {
    let mut tick = interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        let now = Instant::now();
        proxy.shrink(now);
        proxy.close_idle(now);
    }
}
