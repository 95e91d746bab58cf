//! What was tried for a call.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use crate::{endpoints::catalog::Route, message::failure::Failure};

/// How many endpoints are tried if they can't be reached. Nothing was sent to them, so such a try costs only time.
pub(crate) const CONNECTS: usize = 4;

/// See the module.
#[derive(Default)]
pub(crate) struct Tries {
    /// Set for an outbound call once it has a target, and anew when it goes on to another.
    route: RefCell<Option<Rc<Route>>>,
    /// Numbers of the endpoints that were picked.
    tried: Cell<[u64; CONNECTS]>,
    count: Cell<usize>,
    /// Tries that count against `limits::TRIES`. For an inbound call: how often the local service has refused it.
    pub(crate) sent: Cell<u32>,
    /// How the last try failed.
    pub(crate) last: RefCell<Option<Box<Failure>>>,
    /// How often the call went on to a fallback.
    fallbacks: Cell<u32>,
    /// Of a call that did.
    fallen_back: RefCell<Option<Box<FallenBack>>>,
}

/// What is kept of a call that went on to a fallback.
pub(crate) struct FallenBack {
    /// Why the service that its caller named could not take it.
    pub(crate) first: Failure,
    /// The value of `x-weft-fallback`.
    pub(crate) header: String,
    /// The call is still to be sent there.
    is_under_way: bool,
}

impl Tries {
    /// Sets where the call goes. What was tried for it elsewhere does not count.
    pub(crate) fn set_route(&self, route: Rc<Route>) {
        let before = self.route.replace(Some(route));
        if before.is_some() {
            self.count.set(0);
            self.sent.set(0);
            *self.last.borrow_mut() = None;
        }
    }

    /// A try was sent that counts against `limits::TRIES`, and it has failed.
    pub(crate) fn was_sent(&self) {
        self.sent.set(self.sent.get() + 1);
    }

    /// Where the call goes, if it has a target.
    pub(crate) fn route(&self) -> Option<Rc<Route>> {
        self.route.borrow().clone()
    }

    /// The call goes on to the fallback of its route, as that cannot take it. Of several failures the first is kept.
    pub(crate) fn falls_back(&self, failure: Failure, header: String) {
        self.fallbacks.set(self.fallbacks.get() + 1);
        let first = self.fallen_back.take().map_or(failure, |before| before.first);
        *self.fallen_back.borrow_mut() = Some(Box::new(FallenBack { first, header, is_under_way: true }));
    }

    /// How often the call went on to a fallback.
    #[inline]
    pub(crate) fn fallbacks(&self) -> u32 {
        self.fallbacks.get()
    }

    /// Whether the call is still to be sent to its fallback. True once for each.
    pub(crate) fn takes_fallback(&self) -> bool {
        let mut fallen_back = self.fallen_back.borrow_mut();
        fallen_back.as_mut().is_some_and(|fallen_back| std::mem::take(&mut fallen_back.is_under_way))
    }

    /// Looks at what is kept of a call that went on to a fallback.
    pub(crate) fn fallen_back<R>(&self, look: impl FnOnce(&FallenBack) -> R) -> Option<R> {
        self.fallen_back.borrow().as_deref().map(look)
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
