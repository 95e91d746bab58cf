//! What was tried for a call.

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
};

use crate::{endpoints::catalog::Route, message::failure::Failure};

/// How often endpoints are tried that then turn out not to be reached: nothing was sent, so it costs only time.
pub(crate) const CONNECTS: usize = 4;

/// See the module.
#[derive(Default)]
pub(crate) struct Tries {
    /// Of an outbound call, once it has a target.
    route: OnceCell<Rc<Route>>,
    /// Numbers of the endpoints.
    tried: Cell<[u64; CONNECTS]>,
    count: Cell<usize>,
    /// Tries that may not be had again; of an inbound call, how often the local service has refused it.
    pub(crate) sent: Cell<u32>,
    /// How the last one failed.
    pub(crate) last: RefCell<Option<Box<Failure>>>,
}

impl Tries {
    /// Says where the call goes.
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

    /// The endpoints that were picked: the first so many numbers.
    pub(crate) fn tried(&self) -> ([u64; CONNECTS], usize) {
        (self.tried.get(), self.count.get())
    }

    /// Notes that an endpoint was picked.
    pub(crate) fn note(&self, endpoint: u64) {
        let (mut tried, count) = self.tried();
        // More than these are never tried, and a breaker that closes in between is no try.
        if let Some(place) = tried.get_mut(count) {
            *place = endpoint;
            self.tried.set(tried);
            self.count.set(count + 1);
        }
    }
}
