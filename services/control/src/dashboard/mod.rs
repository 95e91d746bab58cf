//! The dashboard: the mesh and its traces, as pages for people and as JSON for programs. The same port takes spans.
//!
//! [`serve()`] takes HTTP/1.1 and HTTP/2 connections, `routes` has the routes, `pages` makes the HTML, which works
//! without a script, and `json` the JSON. `catalog` connects it to the directory. There is no log-in: by default it
//! listens on loopback, and `access` decides what a client may ask. The texts that it shows come from spans, so from
//! anyone who can send one: maud escapes all of them, and the content security policy of the pages allows no script,
//! style or image other than the files in `assets/`.

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
    catalog::{Catalog, Contest, Figures, NotAllowed, Sidecar, SidecarEndpoint, Sidecars},
    serve::serve,
};

/// The parts that the dashboard shows.
#[derive(Clone)]
pub struct Dashboard {
    store: Arc<Store>,
    catalog: Arc<dyn Catalog>,
    access: Arc<Access>,
}

impl Dashboard {
    /// A dashboard for this store and this catalog.
    pub fn new(store: Arc<Store>, catalog: Arc<dyn Catalog>) -> Self {
        Self { store, catalog, access: Arc::default() }
    }

    /// The same dashboard with more clients allowed.
    pub fn with_access(self, access: Access) -> Self {
        Self { access: Arc::new(access), ..self }
    }
}

/// How many traces a list shows by default, and at most.
const LIST_DEFAULT: usize = 50;
const LIST_MAX: usize = 500;
/// Traces on the overview.
const LIST_LATEST: usize = 8;
