//! The service that the sidecar fronts.

use std::{collections::HashMap, net::SocketAddr, rc::Rc};

use weft_wire::Usage;

use crate::{
    args::AppProtocol,
    metrics::OTHER,
    own_http1,
    pool::{Destination, Pool},
    target,
    worker::Worker,
};

/// The way from a worker to the service that its sidecar fronts.
pub(crate) struct LocalService {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    /// Of the contracts' methods.
    pub(crate) methods: Vec<Box<str>>,
    /// Where a path's method is among them.
    places: HashMap<Box<str>, usize>,
    pub(crate) connections: Connections,
}

/// How it is reached.
pub(crate) enum Connections {
    Http2(Rc<Pool>),
    Http1(Rc<own_http1::Pool>),
    /// One for each call.
    Tcp,
}

impl LocalService {
    /// `None` for a sidecar that fronts nothing.
    pub(crate) fn new(worker: &Rc<Worker>) -> Option<Self> {
        let shared = &worker.shared;
        let (name, address) = (shared.own.as_ref()?.to_string(), shared.args.app?);
        let contracts = shared.own_policy.contracts.iter();
        let methods: Vec<Box<str>> = contracts
            .flat_map(|contract| {
                contract.methods.iter().map(move |method| format!("{}/{}", contract.name, method.name).into())
            })
            .collect();
        let places = methods.iter().enumerate().map(|(place, name)| (format!("/{name}").into(), place)).collect();
        let connections = match shared.args.protocol {
            AppProtocol::Grpc => Connections::Http2(Pool::new(worker, Destination::Local(address))),
            AppProtocol::Http1 => Connections::Http1(own_http1::Pool::new(worker, address)),
            AppProtocol::Tcp => Connections::Tcp,
        };
        Some(Self { name, address, methods, places, connections })
    }

    /// The name of the method at a place.
    pub(crate) fn method(&self, place: Option<usize>) -> &str {
        place.and_then(|place| self.methods.get(place)).map_or(OTHER, |name| name)
    }

    /// Where a path's method is among those of its contracts.
    pub(crate) fn place(&self, path: &[u8]) -> Option<usize> {
        self.places.get(target::without_query(path)).copied()
    }

    /// What each of its HTTP/2 connections holds now.
    pub(crate) fn usages(&self) -> Vec<Usage> {
        match &self.connections {
            Connections::Http2(pool) => pool.usages(),
            Connections::Http1(_) | Connections::Tcp => Vec::new(),
        }
    }
}
