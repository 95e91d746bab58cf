//! A call between a caller and a service, in virtual time, to see what its breakers are told.

use std::{rc::Rc, sync::Arc, time::Duration};

use tokio::task::{LocalSet, spawn_local};
use weft_contracts::weft::discovery::v1::Health;
use weft_mesh::policy::BreakerPolicy;
use weft_wire::{Headers, Name, StreamId};

use super::Call;
use crate::{
    call::record::{AttemptRecord, CallRecord},
    endpoints::catalog::Endpoint,
    message::deadline::Limit,
    policy::breaker::{Breaker, Permit, Statistics},
    telemetry::metrics::{CallLabels, Direction},
    thread::{account::Counted, worker::Worker},
    transport::link::Link,
    trial::{
        self,
        peer::{Peer, connected},
    },
};

pub(super) const TIMEOUT: Duration = Duration::from_secs(20);

/// A caller, its call, and the breakers of the service that it calls and of the endpoint.
pub(super) struct Play {
    pub(super) worker: Rc<Worker>,
    pub(super) peer: Peer,
    pub(super) call: Rc<Call>,
    breaker: Arc<Breaker>,
    pub(super) endpoint: Arc<Endpoint>,
}

/// A call that ends after [`TIMEOUT`]. Its head and `bytes` bytes of its body were sent to a service whose breakers have
/// this policy.
pub(super) async fn call(head: &Headers, bytes: usize, policy: BreakerPolicy, limit: Limit) -> (Play, StreamId) {
    let worker = trial::worker();
    let (mut peer, calls, _) = connected(&worker, &Rc::clone(&worker.local_load), true);
    spawn_local({
        let worker = Rc::clone(&worker);
        async move { worker.deadlines.run().await }
    });
    let stream = peer.call(head, bytes);
    peer.pass(0).await.expect("it is read");
    while calls.borrow().is_empty() {
        peer.pass(1).await.expect("it is read");
    }
    let call = Rc::clone(&calls.borrow()[0]);
    let breaker = Arc::new(Breaker::new(policy.clone()));
    let labels = CallLabels {
        direction: Direction::Outbound,
        service: "probe.shop".into(),
        method: "probe.v1.Probe/Say".into(),
        peer: "keyboard.shop".into(),
    };
    let mut record = CallRecord::begin(&worker, &worker.shared.metrics.calls(labels), call.started, None);
    record.admitted(&breaker, Permit::Call);
    call.record(record);
    call.end_by(call.started.checked_add(TIMEOUT), limit);
    let endpoint = endpoint(policy);
    let play = Play { worker, peer, call, breaker, endpoint };
    play.try_at(&play.endpoint, limit);
    (play, stream)
}

/// An endpoint whose breaker has this policy.
pub(super) fn endpoint(policy: BreakerPolicy) -> Arc<Endpoint> {
    let id = "spiffe://weft.local/ns/shop/sa/probe".parse().unwrap();
    Arc::new(Endpoint::new("1".into(), "127.0.0.1:1".parse().unwrap(), id, Health::Up, Breaker::new(policy)))
}

impl Play {
    /// Sends the call to an endpoint.
    pub(super) fn try_at(&self, endpoint: &Arc<Endpoint>, limit: Limit) {
        self.worker.tick();
        self.call.attempt(AttemptRecord::begin(&self.worker, endpoint, Permit::Call, limit, None));
        // The service has sent no settings yet, so HTTP/2's default windows apply.
        let counted = Counted::new(&self.worker.accounts.outbound, &Rc::default());
        let upstream = Link::client(&self.worker, &self.worker.wire_limits.mesh_made, &Rc::default(), counted);
        self.call.send_over(&upstream, |_, _, _| {}).expect("there is room");
    }

    pub(super) async fn pass(&mut self, seconds: u64) {
        self.peer.pass(seconds).await.expect("the connection goes on");
    }

    /// What the service's breaker has counted. The call must be over.
    pub(super) fn statistics(&self) -> Statistics {
        assert!(self.call.is_over());
        self.breaker.statistics(self.worker.moment())
    }

    /// How many failures the service is charged with. The call must be over.
    pub(super) fn failures(&self) -> u32 {
        self.statistics().failures
    }

    /// How many failures the endpoint is charged with. The call must be over.
    pub(super) fn failures_of_endpoint(&self) -> u32 {
        assert!(self.call.is_over());
        self.endpoint.breaker.statistics(self.worker.moment()).failures
    }

    /// The head of an answer, and `bytes` bytes of its body.
    pub(super) fn answer(&self, bytes: usize) {
        let mut head = Headers::new();
        head.set(Name::STATUS, b"200");
        // A connection's turn does the same before it handles an answer.
        self.worker.tick();
        self.call.response_head(head, false);
        self.call.response_data(&vec![0; bytes], false);
    }
}

/// Runs a test whose time is virtual.
pub(super) async fn run(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}
