//! The table of cases: which loads on which server.

use crate::{server::Server, tool::Load};

mod databases;
mod grpc;
pub(crate) mod http;

/// Loads on a server, all at once.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) server: Server,
    pub(crate) loads: Vec<Load>,
}

impl Case {
    fn new(name: impl Into<String>, server: &Server, loads: impl IntoIterator<Item = Load>) -> Self {
        Self { name: name.into(), server: server.clone(), loads: loads.into_iter().collect() }
    }

    /// The programs that it needs.
    pub(crate) fn needs(&self) -> impl Iterator<Item = &'static str> {
        self.server.needs.iter().chain(self.loads.iter().flat_map(|load| &load.needs)).copied()
    }
}

/// Cases that are known to fail, each with its reason.
pub(crate) const KNOWN: &[(&str, &str)] = &[];

/// In the order in which they run: a server is kept from one case to the next.
pub(crate) fn all() -> Vec<Case> {
    [grpc::cases(), http::cases(), databases::cases()].into_iter().flatten().collect()
}
