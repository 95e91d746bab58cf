//! What was tried for a call.

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
};

use crate::{endpoints::catalog::Route, message::failure::Failure};

/// How many endpoints are tried if they can't be reached. Nothing was sent to them, so such a try costs only time.
pub(crate) const CONNECTS: usize = 4;

/// See the module.
#[derive(Default)]
pub(crate) struct Tries {
    /// Set for an outbound call once it has a target.
    route: OnceCell<Rc<Route>>,
    /// Numbers of the endpoints that were picked.
    tried: Cell<[u64; CONNECTS]>,
    count: Cell<usize>,
    /// Tries that count against `limits::TRIES`. For an inbound call: how often the local service has refused it.
    pub(crate) sent: Cell<u32>,
    /// How the last try failed.
    pub(crate) last: RefCell<Option<Box<Failure>>>,
}

impl Tries {
    /// Sets where the call goes.
    pub(crate) fn set_route(&self, route: Rc<Route>) {
        // A call is routed once.
        let _ = self.route.set(route);
    }

    /// Where the call goes, if it has a target.
    pub(crate) fn route(&self) -> Option<&Rc<Route>> {
        self.route.get()
    }

    /// How many endpoints were picked.
    pub(crate) fn count(&self) -> usize {
        self.count.get()
    }

    /// The endpoints that were picked: their numbers, and how many of the array are in use.
    pub(crate) fn tried(&self) -> ([u64; CONNECTS], usize) {
        (self.tried.get(), self.count.get())
    }

    /// Notes that an endpoint was picked.
    pub(crate) fn note(&self, endpoint: u64) {
        let (mut tried, count) = self.tried();
        // No more than these are ever tried.
        if let Some(place) = tried.get_mut(count) {
            *place = endpoint;
            self.tried.set(tried);
            self.count.set(count + 1);
        }
    }
}
