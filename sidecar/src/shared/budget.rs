//! The memory budget of the process (`--memory`): one half for inbound, one for outbound. [`crate::thread::account`]
//! says what counts against it, and for whom.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The budget of a process.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: usize,
    pub(crate) outbound: Arc<Part>,
    pub(crate) inbound: Arc<Part>,
}

/// One side's half of the budget.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) bytes: usize,
    /// As the workers have reported.
    pub(crate) used: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        let part = || Arc::new(Part { bytes: bytes / 2, used: AtomicUsize::new(0) });
        Self { bytes, outbound: part(), inbound: part() }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that the fuller side uses, and how many it may use.
    pub(crate) fn fuller(&self) -> (usize, usize) {
        let fuller = if self.outbound.used() > self.inbound.used() { &self.outbound } else { &self.inbound };
        (fuller.used(), fuller.bytes)
    }
}

impl Part {
    #[inline]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}
