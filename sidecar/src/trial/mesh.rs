//! The whole way of a call out of a sidecar, in memory: a client, the sidecar, and the endpoints of the service that it
//! calls. The test holds the other ends of all connections.

use std::{rc::Rc, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::{
    sync::mpsc,
    task::{LocalSet, spawn_local, yield_now},
    time::advance,
};
use weft_mesh::{names::ServiceName, policy::Idempotency};
use weft_wire::{Headers, Limits, Name, StreamId};

use crate::{
    call::Call,
    endpoints::catalog::{Asked, DiscoveryQuestion, Service},
    proxy::{
        Proxy,
        outbound::{self, Downstream},
    },
    thread::{step::Steps, worker::Worker},
    trial::{
        self,
        peer::{Calls, Peer, connected_to, post},
        service,
    },
};

/// See the module.
pub(crate) struct Mesh {
    pub(crate) worker: Rc<Worker>,
    pub(crate) proxy: Rc<Proxy>,
    pub(crate) client: Peer,
    /// The ends of the connections to the endpoints, in the order of the service's endpoints.
    pub(crate) endpoints: Vec<Peer>,
    pub(crate) service: Arc<Service>,
    /// The calls of the client, in order.
    pub(crate) calls: Vec<Rc<Call>>,
    /// What the sidecar asks discovery. The test may answer.
    pub(crate) questions: mpsc::Receiver<DiscoveryQuestion>,
    downstream: Rc<Downstream>,
    begun: Calls,
}

impl Mesh {
    /// Calls go to `probe.shop`, to whose endpoints there is one connection each.
    pub(crate) async fn new(endpoints: usize, idempotency: Idempotency) -> Self {
        Self::with_connections(endpoints, idempotency, 1, |_| {}).await
    }

    /// The same, with this many connections to each endpoint, whose ends have other limits.
    pub(crate) async fn with_connections(
        endpoints: usize,
        idempotency: Idempotency,
        connections: usize,
        limit: impl Fn(&mut Limits),
    ) -> Self {
        Self::with_service(|worker| service::replicas(worker, endpoints, idempotency), connections, limit).await
    }

    /// The same, with the service that this makes.
    pub(crate) async fn with_service(
        make: impl FnOnce(&Worker) -> Service,
        connections: usize,
        limit: impl Fn(&mut Limits),
    ) -> Self {
        let (worker, questions) = trial::worker_with_flags_and_questions(&["--namespace", "shop"]);
        service::publish(&worker, [make(&worker)]);
        let proxy = Proxy::new(Rc::clone(&worker));
        let name = ServiceName::parse("probe.shop").expect("it is one");
        let service = worker.shared.catalog.known(&Asked::Service(name)).expect("it was published");
        let mut limits = Limits::clone(&worker.wire_limits.mesh);
        limit(&mut limits);
        let mut ends = Vec::new();
        for endpoint in &service.endpoints {
            for _ in 0..connections {
                ends.push(service::connect(&worker, &proxy.pools.of(endpoint), limits.clone()).await);
            }
        }
        spawn_local({
            let worker = Rc::clone(&worker);
            async move { worker.deadlines.run().await }
        });
        let downstream = Downstream::new(&proxy);
        let (client, begun, _serving) = connected_to(&worker, &worker.local_load, Rc::clone(&downstream) as _);
        let mut mesh =
            Self { worker, proxy, client, endpoints: ends, service, calls: Vec::new(), questions, downstream, begun };
        mesh.settle().await;
        mesh
    }

    /// The next call goes to this endpoint, if that takes it.
    pub(crate) fn prefer(&self, index: usize) {
        let others = self.service.endpoints.iter().enumerate().filter(|(other, _)| *other != index);
        others.for_each(|(_, endpoint)| endpoint.shun(self.worker.moment()));
    }

    /// The client begins a call.
    pub(crate) async fn call(&mut self, head: &Headers, body: &[u8], is_whole: bool) -> StreamId {
        let stream = self.client.core.open(head, is_whole && body.is_empty(), 0).expect("there is room");
        if !body.is_empty() {
            self.client.core.send_data(stream, body, is_whole);
        }
        self.settle().await;
        stream
    }

    /// The last request that this endpoint got.
    pub(crate) fn request(&self, endpoint: usize) -> StreamId {
        self.endpoints[endpoint].requests.last().expect("it was called").0
    }

    /// The endpoint answers the last request that it got.
    pub(crate) async fn answer(&mut self, endpoint: usize, body: &[u8]) {
        let stream = self.request(endpoint);
        let core = &mut self.endpoints[endpoint].core;
        core.respond(stream, &answer(), false);
        core.send_data(stream, body, false);
        core.send_trailers(stream, &ok());
        self.settle().await;
    }

    /// Runs until nothing moves any more.
    pub(crate) async fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..20_000 {
            let before = self.moved();
            self.turn().await;
            quiet = if self.moved() == before { quiet + 1 } else { 0 };
            if quiet == 8 {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Lets time pass.
    pub(crate) async fn pass(&mut self, time: Duration) {
        const STEP: Duration = Duration::from_millis(50);
        for _ in 0..time.div_duration_f32(STEP).ceil() as u32 {
            advance(STEP).await;
            for _ in 0..4 {
                self.turn().await;
            }
        }
        self.settle().await;
    }

    fn moved(&self) -> usize {
        self.client.moved + self.endpoints.iter().map(|endpoint| endpoint.moved).sum::<usize>()
    }

    async fn turn(&mut self) {
        // A peer that was told that it broke the rules has nothing more to say.
        let _ = self.client.pump();
        for endpoint in &mut self.endpoints {
            let _ = endpoint.pump();
        }
        for call in self.begun.take() {
            let steps = outbound::carry(Rc::clone(&self.downstream), Rc::clone(&call));
            call.waits_in(Steps::new().run(steps));
            self.calls.push(call);
        }
        yield_now().await;
    }

    /// How many retries the service's method has counted.
    pub(crate) fn retries(&self) -> u64 {
        self.service.method(service::PATH).metrics.retries.load(Relaxed)
    }

    /// How many of its calls were hedged, and how many of the hedges took the first try's place.
    pub(crate) fn hedges(&self) -> (u64, u64) {
        let metrics = &self.service.method(service::PATH).metrics;
        (metrics.hedges.load(Relaxed), metrics.hedges_won.load(Relaxed))
    }

    /// Checks that all calls have ended and that nothing is held for them any more.
    pub(crate) fn holds_nothing(&mut self, what: &str) {
        let worker = &self.worker;
        for call in self.calls.drain(..) {
            assert!(call.is_over(), "{what}: a call goes on");
            assert_eq!(Rc::strong_count(&call), 1, "{what}: something still refers to the call");
        }
        assert_eq!((worker.calls.sum(), worker.replay_bytes.sum()), (0, 0), "{what}: calls, bytes for retries");
        assert_eq!((worker.accounts.held(), worker.local_load.bytes()), (0, 0), "{what}: bytes");
        for endpoint in &self.service.endpoints {
            let held: usize = self.proxy.pools.of(endpoint).usages().iter().map(|usage| usage.held_bytes).sum();
            assert_eq!(held, 0, "{what}: bytes that were received and not released");
        }
        let in_flight = self.service.endpoints.iter().map(|endpoint| endpoint.in_flight.load(Relaxed));
        assert_eq!(in_flight.sum::<u32>(), 0, "{what}: tries");
    }
}

/// The head of a request of gRPC.
pub(crate) fn grpc() -> Headers {
    let mut head = post();
    head.append(Name::CONTENT_TYPE, b"application/grpc");
    head
}

/// The head of an answer of gRPC.
pub(crate) fn answer() -> Headers {
    let mut head = Headers::new();
    head.set(Name::STATUS, b"200");
    head.append(Name::CONTENT_TYPE, b"application/grpc");
    head
}

/// The trailers of a call that went well.
pub(crate) fn ok() -> Headers {
    let mut trailers = Headers::new();
    trailers.append(Name::GRPC_STATUS, b"0");
    trailers
}

/// A body in which no part is like another.
pub(crate) fn body(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(bytes as u64);
    let mut body = vec![0; bytes];
    random.fill(&mut body);
    body
}

/// Runs a test, in virtual time.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), test);
}
