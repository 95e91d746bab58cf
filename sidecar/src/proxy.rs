//! The ways that a worker's calls go: to endpoints, and to the local service.

use std::rc::Rc;

use tokio::time::Instant;

use crate::{
    balance::Balancer, outside::Outside, own_service::LocalService, pool::Pools, survey::PoolSurvey, worker::Worker,
};

/// See the module.
pub(crate) struct Proxy {
    pub(crate) worker: Rc<Worker>,
    /// Connections to endpoints.
    pub(crate) pools: Pools,
    pub(crate) balancer: Balancer,
    /// `None` where the sidecar fronts nothing.
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

    /// Gives back the buffers that connections keep and do not use, whether or not calls run on them.
    pub(crate) fn shrink(&self, now: Instant) {
        self.worker.shrink(now);
        self.pools.shrink(now);
        self.local.iter().for_each(|local| local.shrink(now));
    }

    /// Closes the connections that the sidecar has made and that have been idle for long. To be called now and then.
    pub(crate) fn close_idle(&self, now: Instant) {
        self.pools.close_idle(now);
        self.local.iter().for_each(|local| local.close_idle(now));
    }

    /// What the connections hold that the sidecar has made.
    pub(crate) fn survey(&self) -> PoolSurvey {
        let mut pools = self.pools.survey();
        if let Some(local) = &self.local {
            pools.add(local.usages());
        }
        pools
    }
}
