//! A limited number of connections, where none can keep the others out.
//!
//! [`Seats`] is a plain state machine: when all seats are taken, the host with the most connections gives up its oldest
//! one, so a host with many makes room for a host with one. In IPv6 a network of 64 bits counts as one host
//! ([`network`]). [`Traffic`] tells when a connection has had no request for too long.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::networks::network;

/// Connections in the order in which they came, each with a handle that can end it.
#[derive(Debug)]
pub(super) struct Seats<T> {
    limit: usize,
    entered: u64,
    taken: BTreeMap<u64, (IpAddr, T)>,
    by_host: HashMap<IpAddr, usize>,
}

/// The number of a connection's seat.
pub(super) type Seat = u64;

impl<T> Seats<T> {
    /// Room for `limit` connections, at least one.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), entered: 0, taken: BTreeMap::new(), by_host: HashMap::new() }
    }

    /// How many seats are taken.
    pub(super) fn len(&self) -> usize {
        self.taken.len()
    }

    /// A connection from a host takes a seat. `handle` gets the number of the seat and returns the handle that can end
    /// the connection. Returns the handle of the connection that has to make room, if one has to.
    pub(super) fn enter(&mut self, host: IpAddr, handle: impl FnOnce(Seat) -> T) -> Option<T> {
        let host = network(host);
        let leaving = if self.taken.len() < self.limit { None } else { self.oldest_of_the_most() };
        let left = leaving.and_then(|seat| self.leave(seat));
        self.entered += 1;
        *self.by_host.entry(host).or_default() += 1;
        self.taken.insert(self.entered, (host, handle(self.entered)));
        left
    }

    /// A connection has ended.
    pub(super) fn leave(&mut self, seat: Seat) -> Option<T> {
        let (host, handle) = self.taken.remove(&seat)?;
        if let Some(count) = self.by_host.get_mut(&host) {
            *count -= 1;
            if *count == 0 {
                self.by_host.remove(&host);
            }
        }
        Some(handle)
    }

    fn oldest_of_the_most(&self) -> Option<Seat> {
        let most = self.by_host.values().max()?;
        // Of hosts with equally many, the one with the oldest connection.
        let has_most = |host: &IpAddr| self.by_host.get(host) == Some(most);
        self.taken.iter().find(|(_, (host, _))| has_most(host)).map(|(seat, _)| *seat)
    }
}

/// The requests of a connection.
#[derive(Debug)]
pub(super) struct Traffic {
    running: AtomicUsize,
    idle_since: Mutex<Instant>,
}

/// A running request. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Running(Arc<Traffic>);

impl Traffic {
    /// A connection without a request so far.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { running: AtomicUsize::new(0), idle_since: Mutex::new(Instant::now()) })
    }

    /// Starts a request.
    pub(super) fn begin(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Relaxed);
        Running(Arc::clone(self))
    }

    /// Waits until no request has run for this long. Dropping the future changes nothing.
    pub(super) async fn idle_for(&self, time: Duration) {
        loop {
            let now = Instant::now();
            let since = match self.running.load(Relaxed) {
                0 => *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner),
                _ => now,
            };
            if since + time <= now {
                return;
            }
            sleep_until(since + time).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.running.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_when_no_request_has_run_for_a_while() {
        let (traffic, time) = (Traffic::new(), Duration::from_secs(30));
        let began = Instant::now();
        traffic.idle_for(time).await;
        assert_eq!(began.elapsed(), time);
        let running = traffic.begin();
        let long = tokio::time::timeout(Duration::from_secs(3_600), traffic.idle_for(time)).await;
        assert!(long.is_err(), "a request runs");
        drop(running);
        let ended = Instant::now();
        traffic.idle_for(time).await;
        assert_eq!(ended.elapsed(), time);
    }

    #[test]
    fn a_host_with_many_makes_room_for_a_host_with_one() {
        let (many, one): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let mut seats = Seats::new(3);
        assert_eq!(seats.enter(one, |seat| seat), None);
        assert_eq!(seats.enter(many, |seat| seat), None);
        assert_eq!(seats.enter(many, |seat| seat), None);
        for oldest in [2, 3, 4] {
            assert_eq!(seats.enter(many, |seat| seat), Some(oldest), "its own connection, and not the other host's");
        }
        assert_eq!(seats.len(), 3);
        assert_eq!(seats.leave(1), Some(1));
        assert_eq!(seats.leave(1), None);
        assert_eq!(seats.enter(one, |seat| seat), None);
        // Equally many for each host: the oldest connection makes room.
        let mut seats = Seats::new(2);
        assert_eq!((seats.enter(one, |seat| seat), seats.enter(many, |seat| seat)), (None, None));
        assert_eq!(seats.enter(many, |seat| seat), Some(1));
    }

    #[test]
    fn all_ipv6_addresses_of_a_host_count_as_one() {
        let of_one_host = |last: u16| -> IpAddr { [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into() };
        let mut seats = Seats::new(3);
        assert_eq!(seats.enter([10, 0, 0, 1].into(), |seat| seat), None);
        assert_eq!((seats.enter(of_one_host(1), |s| s), seats.enter(of_one_host(2), |s| s)), (None, None));
        assert_eq!(seats.enter(of_one_host(3), |seat| seat), Some(2), "its own connection, and not the other host's");
    }
}
