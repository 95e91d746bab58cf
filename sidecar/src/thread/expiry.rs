//! Connections end with the certificates that they were made with.
//!
//! TLS checks a certificate once, in the handshake, but a connection may live for months. So each worker keeps a list
//! of its connections to other sidecars, ordered by when the first of the two certificates expires. Some time before
//! that, a connection is renewed: new calls go over a new one, and running calls end on the old one. When the
//! certificate expires, the old connection ends with everything that still runs on it: calls, tunnels, upgraded
//! connections.
//!
//! Certificates follow the wall clock, which may be set. So the list is checked against that clock, once in
//! [`weft_mesh::limits::EXPIRY_LOOK`], and nothing sleeps until a moment that was computed in advance.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, SystemTime},
};

/// A connection with an expiry.
pub(crate) trait Expiring {
    /// Its certificate expires soon: new calls take another connection, running calls end on this one.
    fn renew(&self);
    /// Its certificate has expired: it ends now.
    fn expire(&self);
}

/// The connections of one worker, by the time at which something is due.
#[derive(Default)]
pub(crate) struct Expiries {
    due: RefCell<BTreeMap<Due, Entry>>,
    next: Cell<u64>,
}

/// When, and the number of the connection, so that two may be due at the same time.
type Due = (SystemTime, u64);

struct Entry {
    connection: Rc<dyn Expiring>,
    end: SystemTime,
    is_renewed: bool,
}

/// A connection is used for this share of its certificate's remaining life. The share is random for each, so that
/// connections that were made together are not renewed together. Certificates are renewed after two thirds of their
/// life, so by then both sides have new ones. If they have not, because the control plane is away, each new connection
/// gets the same share of what is left, so only a few connections follow until the end.
const SHARE: std::ops::Range<f64> = 0.75..0.85;

impl Expiries {
    /// Lists a connection, to renew it and end it in time, until the guard is dropped.
    pub(crate) fn add(self: &Rc<Self>, connection: Rc<dyn Expiring>, now: SystemTime, end: SystemTime) -> Listed {
        let number = self.next.replace(self.next.get() + 1);
        let renewal = renewal_time(now, end, fastrand::f64());
        self.due.borrow_mut().insert((renewal, number), Entry { connection, end, is_renewed: false });
        Listed { list: Rc::clone(self), number, renewal, end }
    }

    /// Does what is due by `now`.
    pub(crate) fn look(&self, now: SystemTime) {
        // Each round takes an entry out, or moves it to a time after `now`.
        while let Some(action) = self.next_action(now) {
            match action {
                Action::Renew(connection) => connection.renew(),
                Action::Expire(connection) => connection.expire(),
            }
        }
    }

    fn next_action(&self, now: SystemTime) -> Option<Action> {
        let mut due = self.due.borrow_mut();
        let first = due.first_entry().filter(|first| first.key().0 <= now)?;
        let ((_, number), entry) = first.remove_entry();
        if entry.is_renewed || entry.end <= now {
            return Some(Action::Expire(entry.connection));
        }
        let connection = Rc::clone(&entry.connection);
        due.insert((entry.end, number), Entry { is_renewed: true, ..entry });
        Some(Action::Renew(connection))
    }
}

/// What to do with a connection that is due.
enum Action {
    Renew(Rc<dyn Expiring>),
    Expire(Rc<dyn Expiring>),
}

/// A connection's place in the list, given up when this is dropped.
pub(crate) struct Listed {
    list: Rc<Expiries>,
    number: u64,
    renewal: SystemTime,
    end: SystemTime,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut due = self.list.due.borrow_mut();
        if due.remove(&(self.renewal, self.number)).is_none() {
            due.remove(&(self.end, self.number));
        }
    }
}

/// `chance` is between 0 and 1.
fn renewal_time(now: SystemTime, end: SystemTime, chance: f64) -> SystemTime {
    let left = end.duration_since(now).unwrap_or(Duration::ZERO);
    now + left.mul_f64(SHARE.start + (SHARE.end - SHARE.start) * chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts its renewals and expiries.
    #[derive(Default)]
    struct Connection {
        renewed: Cell<u32>,
        expired: Cell<u32>,
    }

    impl Expiring for Connection {
        fn renew(&self) {
            self.renewed.set(self.renewed.get() + 1);
        }

        fn expire(&self) {
            self.expired.set(self.expired.get() + 1);
        }
    }

    impl Connection {
        fn done(&self) -> (u32, u32) {
            (self.renewed.get(), self.expired.get())
        }
    }

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn hours(hours: u64) -> SystemTime {
        START + Duration::from_secs(hours * 3600)
    }

    #[test]
    fn a_connection_is_renewed_before_its_certificate_expires_and_ends_when_it_does() {
        let (list, connection) = (Rc::new(Expiries::default()), Rc::new(Connection::default()));
        let listed = list.add(Rc::clone(&connection) as _, START, hours(24));
        list.look(hours(17));
        assert_eq!(connection.done(), (0, 0), "both have renewed their certificates by 16");
        list.look(hours(21));
        list.look(hours(23));
        assert_eq!(connection.done(), (1, 0), "it is renewed once");
        list.look(hours(24));
        list.look(hours(48));
        assert_eq!(connection.done(), (1, 1), "it ends once");
        drop(listed);
    }

    #[test]
    fn a_clock_that_jumps_past_the_expiry_ends_the_connection_at_once() {
        let (list, connection) = (Rc::new(Expiries::default()), Rc::new(Connection::default()));
        let _listed = list.add(Rc::clone(&connection) as _, START, hours(24));
        list.look(hours(48));
        assert_eq!(connection.done(), (0, 1));
    }

    #[test]
    fn a_connection_that_is_gone_is_forgotten() {
        let (list, connection) = (Rc::new(Expiries::default()), Rc::new(Connection::default()));
        let [first, second] = [(); 2].map(|()| list.add(Rc::clone(&connection) as _, START, hours(24)));
        drop(first);
        list.look(hours(23));
        assert_eq!(connection.done(), (1, 0));
        drop(second);
        assert!(list.due.borrow().is_empty());
        list.look(hours(25));
        assert_eq!(connection.done(), (1, 0));
    }

    /// While the control plane is away there is no fresher certificate, and a new connection has the same end.
    #[test]
    fn few_connections_are_made_before_an_expiry_that_cannot_be_extended() {
        let (mut now, end, mut connections) = (hours(16), hours(24), 0);
        while end.duration_since(now).expect("before it") > Duration::from_secs(1) {
            now = renewal_time(now, end, 0.0);
            connections += 1;
        }
        assert!(connections <= 8, "{connections}");
    }
}
