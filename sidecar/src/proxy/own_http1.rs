//! Requests to a local service that speaks HTTP/1.1.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
};

use tokio::{net::TcpStream, sync::oneshot, task::spawn_local};
use weft_mesh::limits;
use weft_wire::{Headers, Name, http1};

use crate::{
    call::Call,
    policy::retry::{ConnectError, Miss},
    thread::{fair::Fair, loads::Load, worker::Worker},
    transport::{
        connect,
        socket::{Driver, Occasion, Socket},
    },
};

/// One worker's connections to a local service that speaks HTTP/1.1: one for each call that runs, and idle ones.
///
/// A call that finds none idle waits in a queue in which peers take turns ([`Fair`]). It takes whichever comes first, a
/// connection that becomes idle or one that is made. No connection is idle while a call waits.
pub(crate) struct Pool {
    worker: Rc<Worker>,
    address: SocketAddr,
    idle: RefCell<Vec<Rc<Socket>>>,
    waiting: RefCell<Fair<Waiting>>,
    /// Connections that are being made.
    connecting: Cell<usize>,
}

/// A call that waits. Its end of the channel is closed when it waits no more.
type Waiting = oneshot::Sender<Result<Lease, ConnectError>>;

/// A connection on its way to a call. If the call is gone when it comes, it goes to the next.
struct Lease {
    pool: Rc<Pool>,
    socket: Option<Rc<Socket>>,
}

impl Lease {
    fn take(mut self) -> Rc<Socket> {
        self.socket.take().expect("it is taken once")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            self.pool.keep(socket);
        }
    }
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// After those of its peer that wait already.
    Last,
    /// Before them: it has waited once.
    First,
}

/// Connections that a call takes and finds closed, before it gives up.
const CONNECTIONS_TAKEN: usize = 4;

impl Pool {
    pub(crate) fn new(worker: &Rc<Worker>, address: SocketAddr) -> Rc<Self> {
        let (worker, idle, waiting) = (Rc::clone(worker), RefCell::default(), RefCell::default());
        Rc::new(Self { worker, address, idle, waiting, connecting: Cell::new(0) })
    }

    /// The one that was used last, so that those too many become old.
    fn idle(&self) -> Option<Rc<Socket>> {
        let mut idle = self.idle.borrow_mut();
        std::iter::from_fn(|| idle.pop()).find(|socket| !socket.is_gone())
    }

    /// Waits for a connection. Dropping the future gives the turn to the next.
    async fn wait(self: &Rc<Self>, peer: &Rc<Load>, mut turn: Turn) -> Result<Rc<Socket>, ConnectError> {
        for _ in 0..CONNECTIONS_TAKEN {
            let socket = self.lease(peer, turn).await?.take();
            // The service may close it before its call sees it.
            if !socket.is_gone() {
                return Ok(socket);
            }
            turn = Turn::First;
        }
        Err(ConnectError::Failed("its connections go away as soon as they are made".into()))
    }

    async fn lease(self: &Rc<Self>, peer: &Rc<Load>, turn: Turn) -> Result<Lease, ConnectError> {
        let (sender, connection) = oneshot::channel();
        {
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.has_room_for(peer, limits::HTTP1_CALLS_WAITING) {
                // Most likely they are there, but some may have given up.
                waiting.retain(|other| !other.is_closed());
            }
            if !waiting.has_room_for(peer, limits::HTTP1_CALLS_WAITING) {
                self.worker.shared.metrics.limit_reached("HTTP1_CALLS_WAITING");
                return Err(ConnectError::Full);
            }
            match turn {
                Turn::Last => waiting.push(peer, sender),
                Turn::First => waiting.push_first(peer, sender),
            }
        }
        self.connect_more();
        // A sender that goes without a word was dropped with its worker.
        connection.await.unwrap_or(Err(ConnectError::Failed("the sidecar is stopping".into())))
    }

    /// The next call that still waits.
    fn next_waiting(&self) -> Option<Waiting> {
        let mut waiting = self.waiting.borrow_mut();
        std::iter::from_fn(|| waiting.pop()).find(|call| !call.is_closed())
    }

    /// Gives a connection on which nothing runs to the next call, or keeps it.
    fn keep(self: &Rc<Self>, socket: Rc<Socket>) {
        if socket.is_gone() {
            return;
        }
        if let Some(next) = self.next_waiting() {
            // It comes back here when the call is gone before it has taken it.
            let _ = next.send(Ok(Lease { pool: Rc::clone(self), socket: Some(socket) }));
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() < limits::HTTP1_IDLE_CONNECTIONS {
            return idle.push(socket);
        }
        drop(idle);
        self.worker.shared.metrics.limit_reached("HTTP1_IDLE_CONNECTIONS");
        socket.close();
    }

    /// Makes as many connections as calls wait for, but not too many at once.
    fn connect_more(self: &Rc<Self>) {
        while self.connecting.get() < limits::HTTP1_CONNECTS.min(self.waiting.borrow().len()) {
            self.connecting.set(self.connecting.get() + 1);
            spawn_local(Rc::clone(self).connect());
        }
    }

    async fn connect(self: Rc<Self>) {
        let is_wanted = || self.waiting.borrow().iter().any(|call| !call.is_closed());
        let made = connect::to_local(self.address, is_wanted).await;
        self.connecting.set(self.connecting.get() - 1);
        let counters = &self.worker.shared.metrics.counters;
        match made {
            Ok(stream) => {
                counters.upstream_connections_opened.fetch_add(1, Relaxed);
                self.worker.tick();
                let socket = self.drive(stream);
                self.keep(socket);
            }
            Err(why) => {
                counters.upstream_connects_failed.fetch_add(1, Relaxed);
                if let Some(next) = self.next_waiting() {
                    // One who has just given up is no loss.
                    let _ = next.send(Err(ConnectError::Failed(why.to_string().into())));
                }
            }
        }
        self.connect_more();
    }

    /// Begins HTTP/1.1 on a connection.
    fn drive(self: &Rc<Self>, stream: TcpStream) -> Rc<Socket> {
        let socket = Socket::http1_client(&self.worker);
        let (pool, kept) = (Rc::clone(self), Rc::downgrade(&socket));
        let on = move |occasion| match occasion {
            Occasion::Free => kept.upgrade().into_iter().for_each(|socket| pool.keep(socket)),
            Occasion::Request(..) => {}
        };
        let (pool, driver) = (Rc::clone(self), Driver::new(&self.worker, &socket, stream, on));
        spawn_local(async move {
            if let Err(e) = driver.await {
                tracing::debug!("the connection to the service at {} broke: {e}", pool.address);
            }
            pool.idle.borrow_mut().retain(|socket| !socket.is_gone());
        });
        socket
    }
}

/// Sends a call to the local service.
pub(crate) async fn send(pool: &Rc<Pool>, peer: &Rc<Load>, call: &Rc<Call>) -> Result<(), Miss> {
    let socket = match pool.idle() {
        Some(socket) => socket,
        None => pool.wait(peer, Turn::Last).await.map_err(Miss::NotSent)?,
    };
    call.send_over_socket(&socket).map_err(unwritable)
}

/// A head that HTTP/2 lets through and HTTP/1.1 has no form for: the connection and the service are well.
fn unwritable(why: http1::Error) -> Miss {
    Miss::Malformed(format!("the request can't be made over HTTP/1.1: {why}"))
}

/// Sends a call once more that a connection did not take which was kept too long.
pub(crate) async fn again(pool: Rc<Pool>, call: Rc<Call>) {
    let Some(peer) = call.peer() else { return };
    // Others that are idle may be as old.
    let sent = match pool.wait(&peer, Turn::First).await {
        Ok(socket) => call.send_over_socket(&socket).map_err(unwritable),
        Err(why) => Err(Miss::NotSent(why)),
    };
    if let Err(miss) = sent {
        call.missed(miss);
    }
}

/// Says with a whole answer that the own service does not speak what a request wants.
pub(crate) fn decline(call: &Rc<Call>) {
    let mut head = Headers::new();
    head.set(Name::STATUS, b"501");
    head.append(Name::CONTENT_LENGTH, b"0");
    call.response_head(head, true);
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        pin::{Pin, pin},
        task::{Context, Poll, Waker},
    };

    use super::*;
    use crate::trial;

    /// A pool whose service accepts nothing by itself, and the worker that it belongs to.
    fn pool(address: SocketAddr) -> (Rc<Pool>, Rc<Worker>) {
        let worker = trial::worker();
        (Pool::new(&worker, address), worker)
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
        runtime.expect("a runtime").block_on(test);
    }

    const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_connection_goes_to_who_has_waited_longest_and_still_waits() {
        run(async {
            let (pool, worker) = pool(NOWHERE);
            let mut first = Box::pin(pool.wait(&worker.own, Turn::Last));
            let (mut second, mut third) =
                (pin!(pool.wait(&worker.own, Turn::Last)), pin!(pool.wait(&worker.own, Turn::Last)));
            assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
            assert!(poll(third.as_mut()).is_pending());
            let mut hasty = pin!(pool.wait(&worker.own, Turn::First));
            assert!(poll(hasty.as_mut()).is_pending());
            let socket = Socket::http1_client(&worker);
            pool.keep(Rc::clone(&socket));
            assert!(matches!(poll(hasty.as_mut()), Poll::Ready(Ok(_))), "one that has waited before");
            // The first is given a connection, and goes before it has taken it: the next has it.
            pool.keep(Rc::clone(&socket));
            drop(first);
            assert!(matches!(poll(second.as_mut()), Poll::Ready(Ok(_))));
            assert!(poll(third.as_mut()).is_pending());
            pool.keep(Rc::clone(&socket));
            assert!(matches!(poll(third.as_mut()), Poll::Ready(Ok(_))));
            pool.keep(Rc::clone(&socket));
            assert!(pool.idle().is_some_and(|idle| Rc::ptr_eq(&idle, &socket)), "nobody waits");
        });
    }

    #[test]
    fn the_queue_and_what_is_kept_idle_are_bounded() {
        run(async {
            let (pool, worker) = pool(NOWHERE);
            // One peer alone leaves as much to the others.
            let most = limits::HTTP1_CALLS_WAITING / 2;
            let mut waiting: Vec<_> = (0..most).map(|_| Box::pin(pool.wait(&worker.own, Turn::Last))).collect();
            assert!(waiting.iter_mut().all(|call| poll(call.as_mut()).is_pending()));
            assert_eq!(pool.connecting.get(), limits::HTTP1_CONNECTS, "and no more at once");
            assert!(matches!(poll(pin!(pool.wait(&worker.own, Turn::Last))), Poll::Ready(Err(ConnectError::Full))));
            waiting.truncate(1);
            assert!(poll(pin!(pool.wait(&worker.own, Turn::Last))).is_pending(), "there is room again");
            waiting.clear();
            for _ in 0..=limits::HTTP1_IDLE_CONNECTIONS {
                pool.keep(Socket::http1_client(&worker));
            }
            assert_eq!(pool.idle.borrow().len(), limits::HTTP1_IDLE_CONNECTIONS);
        });
    }

    #[test]
    fn each_call_that_waits_is_told_that_nobody_listens() {
        run(async {
            let (pool, worker) = pool(NOWHERE);
            let mut calls: Vec<_> = (0..50).map(|_| Box::pin(pool.wait(&worker.own, Turn::Last))).collect();
            for call in &mut calls {
                assert!(poll(call.as_mut()).is_pending());
            }
            for call in calls {
                assert!(matches!(call.await, Err(ConnectError::Failed(_))));
            }
            assert_eq!(pool.connecting.get(), 0);
        });
    }

    #[test]
    fn a_listener_with_a_full_backlog_is_asked_again() {
        run(async {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
            let listener = socket.listen(1).expect("it listens");
            let (pool, worker) = pool(listener.local_addr().expect("it is bound"));
            // More than the backlog holds; each is taken only when the one before has its connection.
            let mut calls: Vec<_> = (0..20).map(|_| Box::pin(pool.wait(&worker.own, Turn::Last))).collect();
            let mut accepted = Vec::new();
            for call in &mut calls {
                let connected = poll_fn(|cx| {
                    if let Poll::Ready(stream) = listener.poll_accept(cx) {
                        accepted.push(stream);
                    }
                    call.as_mut().poll(cx)
                });
                assert!(connected.await.is_ok());
            }
        });
    }
}
