//! Both directions of a worker's calls: out to endpoints, and in to the local service.

pub(crate) mod attempt;
pub(crate) mod fallback;
mod hedge;
pub(crate) mod inbound;
pub(crate) mod local_http1;
pub(crate) mod local_service;
pub(crate) mod local_tcp;
mod methods;
pub(crate) mod outbound;
pub(crate) mod reflection;
pub(crate) mod route;

use std::rc::Rc;

use tokio::time::Instant;

use crate::{
    endpoints::{balance::Balancer, outside::Outside},
    proxy::local_service::LocalService,
    shared::survey::PoolSurvey,
    thread::worker::Worker,
    transport::pool::Pools,
};

/// See the module.
pub(crate) struct Proxy {
    pub(crate) worker: Rc<Worker>,
    /// Connections to endpoints.
    pub(crate) pools: Pools,
    pub(crate) balancer: Balancer,
    /// `None` if the sidecar has no local service.
    pub(crate) local: Option<LocalService>,
    pub(crate) outside: Outside,
}

impl Proxy {
    pub(crate) fn new(worker: Rc<Worker>) -> Rc<Self> {
        Rc::new(Self {
            pools: Pools::new(&worker),
            balancer: Balancer::new(worker.shared.args.balance),
            local: LocalService::new(&worker),
            outside: Outside::default(),
            worker,
        })
    }

    /// Frees the buffers that connections keep and do not use, whether or not calls run on them.
    pub(crate) fn shrink(&self, now: Instant) {
        self.worker.shrink(now);
        self.pools.shrink(now);
        self.local.iter().for_each(|local| local.shrink(now));
    }

    /// Closes connections that the sidecar has made and that have been idle for long. Call it now and then.
    pub(crate) fn close_idle(&self, now: Instant) {
        self.pools.close_idle(now);
        self.local.iter().for_each(|local| local.close_idle(now));
    }

    /// What the connections that the sidecar has made hold.
    pub(crate) fn survey(&self) -> PoolSurvey {
        let mut pools = self.pools.survey();
        if let Some(local) = &self.local {
            pools.add(local.usages());
        }
        pools
    }
}
