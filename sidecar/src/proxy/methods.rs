//! What is known of the local service's methods on behalf of one caller: the place of each among the contracts, and the
//! row of metrics that counts the caller's calls of it.

use std::sync::Arc;

use crate::{
    message::target,
    shared::contracts::{Contracts, LocalContracts},
    telemetry::metrics::{CallMetrics, OTHER},
};

/// See the module.
pub(super) struct Methods {
    /// The version of `contracts`.
    version: u64,
    contracts: Arc<Contracts>,
    /// By a method's place. The last is for methods that are in no contract.
    rows: Vec<Option<Arc<CallMetrics>>>,
    last: Last,
}

/// The method of the last call: most calls of a connection are to the same one.
#[derive(Default)]
struct Last {
    path: Vec<u8>,
    place: Option<usize>,
    row: Option<Arc<CallMetrics>>,
}

/// A longer path is not remembered, as every connection would keep one.
const KEPT_PATH_BYTES: usize = 256;

impl Methods {
    pub(super) fn new(local: &LocalContracts) -> Self {
        let (version, contracts) = (local.version(), local.get());
        Self { version, rows: vec![None; contracts.method_count() + 1], contracts, last: Last::default() }
    }

    /// The place of a path's method, and its row, which `row` makes from the method's name.
    pub(super) fn find(
        &mut self,
        local: &LocalContracts,
        path: &[u8],
        row: impl FnOnce(&str) -> Arc<CallMetrics>,
    ) -> (Option<usize>, Arc<CallMetrics>) {
        if self.version != local.version() {
            *self = Self::new(local);
        }
        if let Some(row) = &self.last.row
            && self.last.path == path
        {
            return (self.last.place, Arc::clone(row));
        }
        let place = self.contracts.place(target::without_query(path));
        let known = &mut self.rows[place.unwrap_or(self.contracts.method_count())];
        let row = Arc::clone(known.get_or_insert_with(|| row(self.contracts.method(place).map_or(OTHER, |name| name))));
        if path.len() <= KEPT_PATH_BYTES {
            self.last.path.clear();
            self.last.path.extend_from_slice(path);
            (self.last.place, self.last.row) = (place, Some(Arc::clone(&row)));
        }
        (place, row)
    }

    /// The name of the method at a place that [`Self::find`] has just returned.
    pub(super) fn name(&self, place: Option<usize>) -> Option<&Arc<str>> {
        self.contracts.method(place)
    }
}
