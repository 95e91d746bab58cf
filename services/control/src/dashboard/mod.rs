//! The dashboard: the mesh and its traces as pages for people and as JSON for programs, and the door through which
//! spans come in, all on one port.
//!
//! [`serve()`] takes connections, HTTP/1.1 and HTTP/2; the routes are in this file; `pages` makes the HTML, which
//! works without a script, and `json` the JSON. There is no log-in: it listens on loopback unless told otherwise, and
//! `access` says who may ask what.
//! What is shown comes from spans, so from anyone who can send one: maud escapes every text, and the pages' content
//! security policy lets nothing run or load but the two files in `assets/`.

mod access;
mod catalog;
mod format;
mod json;
mod metrics;
mod pages;
mod routes;
mod serve;
#[cfg(test)]
mod tests;
mod words;

use std::sync::Arc;

use crate::traces::Store;

pub use self::{
    access::Access,
    catalog::{Catalog, Contest, Figures},
    serve::serve,
};

/// What the dashboard is made of.
#[derive(Clone)]
pub struct State {
    store: Arc<Store>,
    catalog: Arc<dyn Catalog>,
    access: Arc<Access>,
}

impl State {
    /// A dashboard on this store and this catalog.
    pub fn new(store: Arc<Store>, catalog: Arc<dyn Catalog>) -> Self {
        Self { store, catalog, access: Arc::default() }
    }

    /// The same, for whoever is allowed besides the usual.
    pub fn with_access(self, access: Access) -> Self {
        Self { access: Arc::new(access), ..self }
    }
}

/// Traces that a list shows when nobody says how many, and at most.
const LIST_DEFAULT: usize = 50;
const LIST_MAX: usize = 500;
/// Traces on the overview.
const LIST_LATEST: usize = 8;
