//! Connections to a local service that speaks HTTP/1.1, and the calls that go over them.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
};

use tokio::{net::TcpStream, sync::oneshot, task::spawn_local};
use weft_mesh::limits;
use weft_wire::{Headers, Name};

use crate::{
    call::Call,
    policy::retry::{ConnectError, Miss},
    thread::{fair::Fair, loads::Load, worker::Worker},
    transport::{
        connect,
        socket::{Occasion, Socket, SocketDriver},
    },
};

/// One worker's connections to a local service that speaks HTTP/1.1: one for each call that runs, and idle ones.
///
/// A call that finds none idle waits in a queue in which peers take turns ([`Fair`]). It takes whichever comes first, a
/// connection that becomes idle or one that is made. While a call waits, no connection is idle but those that are idle
/// for too long for it ([`limits::HTTP1_FRESH`]).
pub(crate) struct Http1Pool {
    worker: Rc<Worker>,
    address: SocketAddr,
    idle: RefCell<Vec<Rc<Socket>>>,
    waiting: RefCell<Fair<Waiting>>,
    /// Connections that are being made.
    connecting: Cell<usize>,
}

/// A call that waits for a connection. The call closes its end of the channel when it stops waiting.
type Waiting = oneshot::Sender<Result<Lease, ConnectError>>;

/// A connection on its way to a waiting call. If the call is gone by then, dropping this gives the connection to the
/// next.
struct Lease {
    pool: Rc<Http1Pool>,
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

/// Where a call joins the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// After the waiting calls of its peer.
    Last,
    /// Before them, as it has waited before.
    First,
}

/// How many connections a call takes and finds closed before it gives up.
const CONNECTIONS_TAKEN: usize = 4;

impl Http1Pool {
    pub(crate) fn new(worker: &Rc<Worker>, address: SocketAddr) -> Rc<Self> {
        let (worker, idle, waiting) = (Rc::clone(worker), RefCell::default(), RefCell::default());
        Rc::new(Self { worker, address, idle, waiting, connecting: Cell::new(0) })
    }

    /// The idle connection that was used last, so that unneeded ones stay idle until they are closed.
    ///
    /// The service may be closing it just now. If the call could then not be sent again, it is one that was used lately.
    fn idle(&self, can_be_stale: bool) -> Option<Rc<Socket>> {
        let mut idle = self.idle.borrow_mut();
        let last = std::iter::from_fn(|| idle.pop()).find(|socket| !socket.is_gone())?;
        let is_fresh =
            || last.idle_since().is_some_and(|since| self.worker.now().duration_since(since) < limits::HTTP1_FRESH);
        if can_be_stale || is_fresh() {
            return Some(last);
        }
        idle.push(last);
        None
    }

    /// Waits for a connection. Dropping the future gives the turn to the next call.
    async fn wait(self: &Rc<Self>, peer: &Rc<Load>, mut turn: Turn) -> Result<Rc<Socket>, ConnectError> {
        for _ in 0..CONNECTIONS_TAKEN {
            let socket = self.lease(peer, turn).await?.take();
            // The service may have closed it before its call gets it.
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
                // Most of them are still waiting, but some may have given up.
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
        // A sender is dropped without an answer only together with its worker.
        connection.await.unwrap_or(Err(ConnectError::Failed("the sidecar is stopping".into())))
    }

    /// The next call that still waits.
    fn next_waiting(&self) -> Option<Waiting> {
        let mut waiting = self.waiting.borrow_mut();
        std::iter::from_fn(|| waiting.pop()).find(|call| !call.is_closed())
    }

    /// Gives a free connection to the next waiting call, or keeps it.
    fn keep(self: &Rc<Self>, socket: Rc<Socket>) {
        if socket.is_gone() {
            return;
        }
        if let Some(next) = self.next_waiting() {
            // If the call goes before it has taken the connection, the lease brings it back here.
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

    /// Starts to connect for each waiting call, but no more than `HTTP1_CONNECTS` at once.
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
                    // If that call has just given up, the error is not needed.
                    let _ = next.send(Err(ConnectError::Failed(why.to_string().into())));
                }
            }
        }
        self.connect_more();
    }

    /// Starts HTTP/1.1 on a new connection.
    fn drive(self: &Rc<Self>, stream: TcpStream) -> Rc<Socket> {
        let socket = Socket::http1_client(&self.worker);
        let (pool, kept) = (Rc::clone(self), Rc::downgrade(&socket));
        let on = move |occasion| match occasion {
            Occasion::Free => kept.upgrade().into_iter().for_each(|socket| pool.keep(socket)),
            Occasion::Request(..) => {}
        };
        let (pool, driver) = (Rc::clone(self), SocketDriver::new(&self.worker, &socket, stream, on));
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
pub(crate) async fn send(pool: &Rc<Http1Pool>, peer: &Rc<Load>, call: &Rc<Call>) -> Result<(), Miss> {
    let socket = match pool.idle(call.survives_a_stale_connection()) {
        Some(socket) => socket,
        None => pool.wait(peer, Turn::Last).await.map_err(Miss::NotSent)?,
    };
    send_over(pool, socket, call)
}

fn send_over(pool: &Rc<Http1Pool>, socket: Rc<Socket>, call: &Rc<Call>) -> Result<(), Miss> {
    call.send_over_socket(&socket).map_err(|why| {
        // The head is valid in HTTP/2 and can't be written in HTTP/1.1. Nothing of it was: the connection takes the next
        // call.
        pool.keep(socket);
        Miss::Malformed(format!("the request can't be sent over HTTP/1.1: {why}"))
    })
}

/// Sends a call again after the service had closed the idle connection that it was sent over.
pub(crate) async fn again(pool: Rc<Http1Pool>, call: Rc<Call>) {
    let Some(peer) = call.peer() else { return };
    // It skips the idle connections, as they may be closed, too.
    let sent = match pool.wait(&peer, Turn::First).await {
        Ok(socket) => send_over(&pool, socket, &call),
        Err(why) => Err(Miss::NotSent(why)),
    };
    if let Err(miss) = sent {
        call.missed(miss);
    }
}

/// Answers that the local service does not speak what a request asks for: 501.
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

    use tokio::time::sleep;

    use super::*;
    use crate::trial::{self, peer};

    /// A pool of connections to this address, and the worker that it belongs to.
    fn pool(address: SocketAddr) -> (Rc<Http1Pool>, Rc<Worker>) {
        let worker = trial::worker();
        (Http1Pool::new(&worker, address), worker)
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
    fn a_connection_goes_to_the_call_that_has_waited_longest() {
        run(async {
            let (pool, worker) = pool(NOWHERE);
            let mut first = Box::pin(pool.wait(&worker.local_load, Turn::Last));
            let (mut second, mut third) =
                (pin!(pool.wait(&worker.local_load, Turn::Last)), pin!(pool.wait(&worker.local_load, Turn::Last)));
            assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
            assert!(poll(third.as_mut()).is_pending());
            let mut hasty = pin!(pool.wait(&worker.local_load, Turn::First));
            assert!(poll(hasty.as_mut()).is_pending());
            let socket = Socket::http1_client(&worker);
            pool.keep(Rc::clone(&socket));
            assert!(matches!(poll(hasty.as_mut()), Poll::Ready(Ok(_))), "it goes first, as it has waited before");
            // The first call is given a connection, but goes before it has taken it. The next gets it.
            pool.keep(Rc::clone(&socket));
            drop(first);
            assert!(matches!(poll(second.as_mut()), Poll::Ready(Ok(_))));
            assert!(poll(third.as_mut()).is_pending());
            pool.keep(Rc::clone(&socket));
            assert!(matches!(poll(third.as_mut()), Poll::Ready(Ok(_))));
            pool.keep(Rc::clone(&socket));
            assert!(pool.idle(true).is_some_and(|idle| Rc::ptr_eq(&idle, &socket)), "no call waits");
        });
    }

    #[test]
    fn the_queue_and_the_idle_connections_are_bounded() {
        run(async {
            let (pool, worker) = pool(NOWHERE);
            // One peer alone takes half and leaves the rest to others.
            let most = limits::HTTP1_CALLS_WAITING / 2;
            let mut waiting: Vec<_> = (0..most).map(|_| Box::pin(pool.wait(&worker.local_load, Turn::Last))).collect();
            assert!(waiting.iter_mut().all(|call| poll(call.as_mut()).is_pending()));
            assert_eq!(pool.connecting.get(), limits::HTTP1_CONNECTS, "no more are made at once");
            assert!(matches!(
                poll(pin!(pool.wait(&worker.local_load, Turn::Last))),
                Poll::Ready(Err(ConnectError::Full))
            ));
            waiting.truncate(1);
            assert!(poll(pin!(pool.wait(&worker.local_load, Turn::Last))).is_pending(), "there is room again");
            waiting.clear();
            for _ in 0..=limits::HTTP1_IDLE_CONNECTIONS {
                pool.keep(Socket::http1_client(&worker));
            }
            assert_eq!(pool.idle.borrow().len(), limits::HTTP1_IDLE_CONNECTIONS);
        });
    }

    /// The service may be closing a connection that was idle for long, and a POST could not be sent again.
    #[test]
    fn only_a_call_that_can_be_sent_again_takes_a_connection_that_was_idle_for_long() {
        trial::mesh::run(async {
            let (pool, worker) = pool(NOWHERE);
            let (mut client, calls, _serving) = peer::connected(&worker, &worker.local_load, false);
            let mut get = peer::post();
            get.set(Name::METHOD, b"GET");
            client.call(&peer::post(), 0);
            let stream = client.call(&get, 0);
            client.core.send_data(stream, b"", true);
            client.pass(1).await.expect("the connection lives");
            let [post, get] = calls.take().try_into().ok().expect("two calls");
            let socket = Socket::http1_client(&worker);
            pool.keep(Rc::clone(&socket));
            assert!(pool.idle(false).is_some(), "it was used just now");
            pool.keep(Rc::clone(&socket));
            sleep(limits::HTTP1_FRESH).await;
            worker.tick();
            assert!(matches!(send(&pool, &worker.local_load, &post).await, Err(Miss::NotSent(_))), "nothing listens");
            assert!(socket.call().is_none());
            assert!(send(&pool, &worker.local_load, &get).await.is_ok());
            assert!(socket.call().is_some());
        });
    }

    /// Only the schemes `http` and `https` need a path (RFC 9113, section 8.3.1), but each request of HTTP/1.1 has one.
    #[test]
    fn a_head_that_http1_cannot_express_is_malformed_and_costs_no_connection() {
        trial::mesh::run(async {
            let (pool, worker) = pool(NOWHERE);
            let (mut client, calls, _serving) = peer::connected(&worker, &worker.local_load, false);
            let mut head = peer::post();
            head.set(Name::SCHEME, b"urn");
            head.set(Name::PATH, b"");
            client.call(&head, 0);
            client.pass(1).await.expect("the connection lives");
            let call = calls.take().remove(0);
            let socket = Socket::http1_client(&worker);
            pool.keep(Rc::clone(&socket));
            let Err(Miss::Malformed(why)) = send(&pool, &worker.local_load, &call).await else {
                panic!("there is no such request")
            };
            assert!(why.starts_with("the request can't be sent over HTTP/1.1: the request target"), "{why}");
            assert!(pool.idle(true).is_some_and(|idle| Rc::ptr_eq(&idle, &socket)), "the next call can use it");
            // The same when it is sent again, and another call waits for the connection.
            let mut other = pin!(pool.wait(&worker.local_load, Turn::Last));
            let mut sent_again = pin!(again(Rc::clone(&pool), Rc::clone(&call)));
            assert!(poll(other.as_mut()).is_pending() && poll(sent_again.as_mut()).is_pending());
            pool.keep(Rc::clone(&socket));
            assert!(poll(sent_again).is_ready());
            assert!(call.is_over(), "its caller was told");
            assert!(matches!(poll(other), Poll::Ready(Ok(_))));
        });
    }

    #[test]
    fn each_waiting_call_fails_if_the_service_does_not_listen() {
        run(async {
            let (pool, worker) = pool(NOWHERE);
            let mut calls: Vec<_> = (0..50).map(|_| Box::pin(pool.wait(&worker.local_load, Turn::Last))).collect();
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
    fn a_connect_to_a_full_backlog_is_repeated() {
        run(async {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
            let listener = socket.listen(1).expect("it listens");
            let (pool, worker) = pool(listener.local_addr().expect("it is bound"));
            // More than the backlog holds. Each is accepted only once the call before it has its connection.
            let mut calls: Vec<_> = (0..20).map(|_| Box::pin(pool.wait(&worker.local_load, Turn::Last))).collect();
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
