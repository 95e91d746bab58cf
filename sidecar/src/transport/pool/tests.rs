//! Which connections a pool gives to calls and which it closes, in virtual time.

use std::net::Ipv4Addr;

use tokio::time::advance;
use weft_wire::Limits;

use super::*;
use crate::trial::{
    self,
    mesh::run,
    peer::{Peer, post},
    service,
    unheard::Unheard,
};

/// The smallest that HTTP/2 allows for a connection.
const WINDOW_BYTES: u32 = 65_535;

/// A pool of connections to the local service. Each is made by [`connect`].
fn pool() -> Rc<Pool> {
    Pool::new(&trial::worker(), Destination::Local((Ipv4Addr::LOCALHOST, 1).into()))
}

/// Adds a connection to the pool. Gives the service's end of it.
async fn connect(pool: &Rc<Pool>) -> Peer {
    let limits = Limits { connection_window_bytes: WINDOW_BYTES, ..Limits::clone(&pool.worker.wire_limits.mesh) };
    service::connect(&pool.worker, pool, limits).await
}

/// Sends a request of this size on a connection, which goes on.
fn send(link: &Link, bytes: usize) -> weft_wire::StreamId {
    let stream = link.open(&post(), false, Unheard::exchange()).expect("there is room");
    assert_eq!(link.send_data(stream, &vec![0; bytes], false), 0, "it is within the window");
    stream
}

async fn pass(pool: &Pool, time: Duration) {
    advance(time).await;
    pool.worker.tick();
}

#[test]
fn a_connection_without_calls_is_idle_although_its_peer_sends_pings() {
    run(async {
        let pool = pool();
        let mut service = connect(&pool).await;
        let link = pool.ready().expect("it has room");
        let stream = send(&link, 10);
        let idle = limits::IDLE_CONNECTION.as_secs() + 1;
        service.pass(idle).await.expect("it is answered");
        pool.close_idle(Instant::now());
        assert!(pool.ready().is_some(), "a call runs on it");

        link.reset(stream, weft_wire::Code::CANCEL);
        service.pass(idle / 2).await.expect("it is answered");
        pool.close_idle(Instant::now());
        assert!(pool.ready().is_some(), "the call has just ended");
        // The peer's PINGs and their answers are no use of it.
        for _ in 0..idle {
            // Its end is an end of the stream.
            let _ = service.pass(1).await;
            pool.close_idle(Instant::now());
        }
        assert!(link.is_gone() && !pool.close_idle(Instant::now()), "it is closed");
    });
}

#[test]
fn calls_pass_by_a_connection_whose_window_a_request_holds() {
    run(async {
        let pool = pool();
        let mut services = vec![connect(&pool).await];
        let first = pool.ready().expect("it has room");
        send(&first, WINDOW_BYTES as usize * 2 / 3);
        assert!(pool.ready().is_none(), "of a single one it is not known that it moves on");
        services.push(connect(&pool).await);
        let second = pool.ready().expect("the other has a window");
        assert!(!Rc::ptr_eq(&first, &second));
        send(&second, WINDOW_BYTES as usize * 2 / 3);
        assert!(pool.ready().is_some(), "a service that reads opens the window soon");
        pass(&pool, BLOCKED_TIME_AT_LEAST).await;
        assert!(pool.ready().is_none(), "both are blocked");

        // The first service reads.
        services[0].pass(1).await.expect("it reads");
        assert!(pool.ready().is_some_and(|link| Rc::ptr_eq(&link, &first)));
    });
}

/// More than the time after which a window that does not open is blocked.
const BLOCKED_TIME_AT_LEAST: Duration = Duration::from_millis(100);

#[test]
fn connections_that_are_blocked_leave_room_for_others_and_are_bounded() {
    run(async {
        let pool = pool();
        let mut services = Vec::new();
        while pool.has_place_for_connection() {
            services.push(connect(&pool).await);
        }
        assert_eq!(services.len(), limits::CONNECTIONS_PER_ENDPOINT);
        for link in pool.links.borrow().iter() {
            send(link, WINDOW_BYTES as usize * 2 / 3);
        }
        assert!(!pool.has_place_for_connection(), "the service has had no time to read");
        pass(&pool, BLOCKED_TIME_AT_LEAST).await;
        while pool.has_place_for_connection() {
            services.push(connect(&pool).await);
            let link = pool.links.borrow().last().cloned().expect("it is there");
            send(&link, WINDOW_BYTES as usize * 2 / 3);
            pass(&pool, BLOCKED_TIME_AT_LEAST).await;
        }
        assert_eq!(services.len(), limits::CONNECTIONS_PER_ENDPOINT + limits::BLOCKED_CONNECTIONS);
        assert!(pool.ready().is_none());
        // In need, a call takes one of them rather than none.
        assert!(pool.worn().is_some());
    });
}
