//! The table of cases: which loads on which server.

use crate::{server::Server, tool::Load};

mod databases;
mod grpc;
pub(crate) mod http;

/// A server and the loads on it, which all run at the same time.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) server: Server,
    pub(crate) loads: Vec<Load>,
    /// Whether it adds so little to the other cases that only long runs include it.
    pub(crate) is_extra: bool,
}

impl Case {
    fn new(name: impl Into<String>, server: &Server, loads: impl IntoIterator<Item = Load>) -> Self {
        Self { name: name.into(), server: server.clone(), loads: loads.into_iter().collect(), is_extra: false }
    }

    /// The same case; with `is_extra`, for long runs only.
    fn extra(mut self, is_extra: bool) -> Self {
        self.is_extra = is_extra;
        self
    }

    /// The programs that it needs.
    pub(crate) fn needs(&self) -> impl Iterator<Item = &'static str> {
        self.server.needs.iter().chain(self.loads.iter().flat_map(|load| &load.needs)).copied()
    }
}

/// Cases that are known to fail, each with its reason.
pub(crate) const KNOWN: &[(&str, &str)] = &[(
    "nginx by HTTP/2: h2load -c4 -m1500",
    "without the mesh h2load holds calls back until one of nginx's 128 streams is free, and measures from then on; with \
     the mesh calls wait in the sidecar, which is measured",
)];

/// All cases, in the order in which they run: a server is kept for the next case if it uses the same one.
pub(crate) fn all() -> Vec<Case> {
    [grpc::cases(), http::cases(), databases::cases()].into_iter().flatten().collect()
}

/// The cases that also run on hosts whose connections are redirected.
pub(crate) fn intercepted() -> Vec<Case> {
    let of = |cases: Vec<Case>, names: &[&str]| {
        cases.into_iter().filter(|case| names.contains(&case.name.as_str())).collect::<Vec<_>>()
    };
    let mut cases = of(
        grpc::cases(),
        &[
            "go: 1×1",
            "go: 8×1",
            "go: 8×32",
            "go: 100×1",
            "go: bidi streams, 4×4",
            "go: 1 MB, 4×1",
            "go with 10 streams: 4×50",
        ],
    );
    let http =
        ["nginx: wrk, 50", "nginx: wrk, 500", "nginx: ab, 20, a connection for each", "nginx: h2load --h1, 1000"];
    cases.extend(of(http::cases(), &http));
    cases.extend(of(databases::cases(), &["redis: redis-benchmark, 50"]));
    for case in &mut cases {
        case.name.insert_str(0, "intercepted, ");
    }
    cases
}
