//! What is known of the local service's methods on behalf of one caller: the place of each among the contracts, whether the
//! caller may call it, and the row of metrics that counts the caller's calls of it.

use std::sync::Arc;

use weft_mesh::{
    identity::SpiffeId,
    policy::{Called, Verdict},
};

use crate::{
    message::target,
    shared::contracts::{LocalTerms, Terms},
    telemetry::metrics::{CallMetrics, OTHER},
};

/// See the module.
pub(super) struct Methods {
    /// The version of `terms`.
    version: u64,
    terms: Arc<Terms>,
    /// By a method's place. The last two are for health checks and for what else is in no contract.
    rows: Vec<Option<Row>>,
    last: Last,
}

#[derive(Clone)]
struct Row {
    metrics: Arc<CallMetrics>,
    /// What is decided where no rule for paths decides. `None` if it is not known yet who may call.
    verdict: Option<Verdict>,
}

/// The last call: most calls of a connection are to the same method.
#[derive(Default)]
struct Last {
    path: Vec<u8>,
    /// The method of HTTP. Empty if it does not matter.
    http_method: Vec<u8>,
    found: Option<Found>,
}

/// What is known of a call's method.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) place: Option<usize>,
    pub(super) metrics: Arc<CallMetrics>,
    /// `None` if it is not known yet who may call.
    pub(super) verdict: Option<Verdict>,
}

/// A longer path is not remembered, as every connection would keep one.
const KEPT_PATH_BYTES: usize = 256;

impl Methods {
    pub(super) fn new(local: &LocalTerms) -> Self {
        let (version, terms) = (local.version(), local.get());
        Self { version, rows: vec![None; terms.contracts.method_count() + 2], terms, last: Last::default() }
    }

    /// What is known of the method that a request asks for. `row` makes a row from the method's name.
    pub(super) fn find(
        &mut self,
        local: &LocalTerms,
        caller: &SpiffeId,
        (http_method, path): (&[u8], &[u8]),
        row: impl FnOnce(&str) -> Arc<CallMetrics>,
    ) -> Found {
        if self.version != local.version() {
            *self = Self::new(local);
        }
        if let Some(found) = &self.last.found
            && self.last.path == path
            && (self.last.http_method.is_empty() || self.last.http_method == http_method)
        {
            return found.clone();
        }
        let contracts = &self.terms.contracts;
        let place = contracts.place(target::without_query(path));
        let path_only = target::before_query(path);
        let is_health = || matches!(Called::unlisted(path_only), Called::Health);
        let known = &mut self.rows[place.unwrap_or_else(|| contracts.method_count() + usize::from(is_health()))];
        let Row { metrics, verdict } = known.get_or_insert_with(|| Row {
            metrics: row(contracts.method(place).map_or(OTHER, |name| name)),
            verdict: self.terms.judge_called(place, path_only, caller),
        });
        let by_path = self.terms.judge_path(http_method, path_only, caller);
        let found = Found { place, metrics: Arc::clone(metrics), verdict: by_path.or(*verdict) };
        if path.len() <= KEPT_PATH_BYTES {
            self.last.path.clear();
            self.last.path.extend_from_slice(path);
            self.last.http_method.clear();
            if self.terms.look_at_paths() {
                self.last.http_method.extend_from_slice(http_method);
            }
            self.last.found = Some(found.clone());
        }
        found
    }

    /// The name of the method at a place that [`Self::find`] has just returned.
    pub(super) fn name(&self, place: Option<usize>) -> Option<&Arc<str>> {
        self.terms.contracts.method(place)
    }
}
