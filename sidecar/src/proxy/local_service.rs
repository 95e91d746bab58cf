//! The local service, as a worker reaches it.

use std::{cell::RefCell, collections::HashMap, net::SocketAddr, rc::Rc};

use tokio::time::Instant;
use weft_mesh::{identity::SpiffeId, names::ServiceName};
use weft_wire::Usage;

use crate::{
    args::AppProtocol,
    proxy::local_http1,
    thread::worker::Worker,
    transport::pool::{Destination, Pool},
};

/// A worker's view of the local service: the connections to it.
pub(crate) struct LocalService {
    pub(crate) name: ServiceName,
    pub(crate) address: SocketAddr,
    pub(crate) connections: Connections,
}

/// The connections to it, by what it speaks.
pub(crate) enum Connections {
    Http2(LocalPools),
    Http1(Rc<local_http1::Http1Pool>),
    /// A new one for each call.
    Tcp,
}

impl LocalService {
    /// `None` for a sidecar without a local service.
    pub(crate) fn new(worker: &Rc<Worker>) -> Option<Self> {
        let shared = &worker.shared;
        let (name, address) = (shared.local_service.clone()?, shared.args.app?);
        let connections = match shared.args.protocol {
            AppProtocol::Grpc => Connections::Http2(LocalPools::new(worker, address)),
            AppProtocol::Http1 => Connections::Http1(local_http1::Http1Pool::new(worker, address)),
            AppProtocol::Tcp => Connections::Tcp,
        };
        Some(Self { name, address, connections })
    }

    /// What each of its HTTP/2 connections holds now.
    pub(crate) fn usages(&self) -> Vec<Usage> {
        match &self.connections {
            Connections::Http2(pools) => pools.usages(),
            Connections::Http1(_) | Connections::Tcp => Vec::new(),
        }
    }

    /// Frees the buffers that connections keep and do not use.
    pub(crate) fn shrink(&self, now: Instant) {
        if let Connections::Http2(pools) = &self.connections {
            pools.by_caller.borrow().values().for_each(|pool| pool.shrink(now));
        }
    }

    /// Closes connections that have been idle for long.
    pub(crate) fn close_idle(&self, now: Instant) {
        if let Connections::Http2(pools) = &self.connections {
            pools.close_idle(now);
        }
    }
}

/// One worker's connections to a local service that speaks HTTP/2. Each caller has its own.
///
/// All calls on a connection share its streams, its window and what the service allows one connection. If callers
/// shared one, a caller could use up the window with one request that the service does not read, make the service close
/// the connection, or take all streams. So callers share no connection, just as without a mesh. The replicas of one
/// caller share theirs, up to [`weft_mesh::limits::CONNECTIONS_PER_ENDPOINT`].
pub(crate) struct LocalPools {
    worker: Rc<Worker>,
    address: SocketAddr,
    by_caller: RefCell<HashMap<SpiffeId, Rc<Pool>>>,
}

impl LocalPools {
    fn new(worker: &Rc<Worker>, address: SocketAddr) -> Self {
        Self { worker: Rc::clone(worker), address, by_caller: RefCell::default() }
    }

    /// The connections for a caller's calls.
    pub(crate) fn of(&self, caller: &SpiffeId) -> Rc<Pool> {
        let mut pools = self.by_caller.borrow_mut();
        if let Some(pool) = pools.get(caller) {
            return Rc::clone(pool);
        }
        let pool = Pool::new(&self.worker, Destination::Local(self.address));
        pools.insert(caller.clone(), Rc::clone(&pool));
        pool
    }

    fn usages(&self) -> Vec<Usage> {
        self.by_caller.borrow().values().flat_map(|pool| pool.usages()).collect()
    }

    fn close_idle(&self, now: Instant) {
        // A connected caller holds its pool and goes on with it.
        self.by_caller.borrow_mut().retain(|_, pool| pool.close_idle(now) || Rc::strong_count(pool) > 1);
    }
}
