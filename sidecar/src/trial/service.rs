//! Services of a mesh that is not there.

use std::{rc::Rc, sync::Arc, time::Duration};

use tokio::{
    io::duplex,
    task::{spawn_local, yield_now},
    time::Instant,
};
use weft_contracts::weft::discovery::v1::{Health, Protocol, Version};
use weft_mesh::{
    names::ServiceName,
    policy::{BreakerPolicy, ContractPolicy, Fallback as Policy, Idempotency, ServicePolicy},
};
use weft_wire::Limits;

use crate::{
    endpoints::catalog::{Endpoint, Method, Service, View},
    policy::{breaker::Breaker, fallback::Fallback},
    telemetry::metrics::{CallLabels, Direction},
    thread::worker::Worker,
    transport::pool::Pool,
    trial::peer::Peer,
};

/// The path of the one method of its contract.
pub(crate) const PATH: &str = "/probe.v1.Probe/Say";

/// The service `NAME.shop` with one endpoint, to which no connection can be made. Its one method has this fallback.
pub(crate) fn service(worker: &Worker, name: &str, fallback: Option<Policy>) -> Service {
    let full_name = ServiceName::parse(&format!("{name}.shop")).unwrap();
    let method = |method: &str, fallback| {
        let metrics = worker.shared.metrics.calls(CallLabels {
            direction: Direction::Outbound,
            service: full_name.to_string(),
            method: method.into(),
            peer: "test.shop".into(),
        });
        let (name, idempotency) = (method.into(), Idempotency::Unknown);
        Arc::new(Method { name, timeout: None, idempotency, fallback, hedge_after: None, metrics })
    };
    let fallback = fallback.map(|policy| Box::new(Fallback::new(&policy, &full_name)));
    let methods = [(PATH.into(), method(&PATH[1..], fallback))].into();
    Service {
        protocol: Protocol::Http2,
        version: Version::default(),
        policy: Arc::new(ServicePolicy {
            contracts: vec![ContractPolicy {
                name: "probe.v1.Probe".into(),
                methods: Vec::new(),
                stands_in_for: vec!["probe".into(), "other".into()],
            }],
            ..Default::default()
        }),
        endpoints: vec![endpoint(name)],
        addresses: Vec::new(),
        breaker: Arc::new(Breaker::new(BreakerPolicy::default())),
        methods: Arc::new(methods),
        other: method("_other", None),
        last_used: Arc::default(),
        heard: Instant::now(),
        is_complete: true,
        starts_since: None,
        name: full_name,
    }
}

/// An endpoint of the service `NAME.shop`, to which no connection can be made.
fn endpoint(name: &str) -> Arc<Endpoint> {
    let id = format!("spiffe://weft.local/ns/shop/sa/{name}").parse().unwrap();
    let breaker = Breaker::new(BreakerPolicy::default());
    Arc::new(Endpoint::new("1".into(), "127.0.0.1:1".parse().unwrap(), id, Health::Up, breaker))
}

/// The service `probe.shop` with this many endpoints. This says whether its one method may be repeated.
pub(crate) fn replicas(worker: &Worker, count: usize, idempotency: Idempotency) -> Service {
    let mut service = service(worker, "probe", None);
    service.endpoints = (0..count).map(|_| endpoint("probe")).collect();
    let methods = Arc::get_mut(&mut service.methods).expect("it was just made");
    let method = methods.get_mut(PATH).and_then(Arc::get_mut).expect("it has one");
    method.idempotency = idempotency;
    service
}

/// The same, whose method may be repeated and is hedged after this time.
pub(crate) fn hedged(worker: &Worker, count: usize, after: Duration) -> Service {
    let mut service = replicas(worker, count, Idempotency::NoSideEffects);
    let methods = Arc::get_mut(&mut service.methods).expect("it was just made");
    let method = methods.get_mut(PATH).and_then(Arc::get_mut).expect("it has one");
    method.hedge_after = Some(after);
    service
}

/// Adds an in-memory connection to a pool. Gives the other end of it, which has these limits.
pub(crate) async fn connect(worker: &Worker, pool: &Rc<Pool>, limits: Limits) -> Peer {
    let (far, near) = duplex(1 << 20);
    let mut service = Peer::service(worker, &Arc::new(limits), far);
    let driven = Rc::clone(pool);
    let made = spawn_local(async move { driven.drive(near, None).await });
    while !made.is_finished() {
        service.pump().expect("the sidecar speaks HTTP/2");
        yield_now().await;
    }
    made.await.expect("it does not panic").expect("HTTP/2 has begun");
    service
}

/// Has the worker know these services, by their names only.
pub(crate) fn publish(worker: &Worker, services: impl IntoIterator<Item = Service>) {
    let by_name = |service: Service| (service.name.clone(), Arc::new(service));
    let services = services.into_iter().map(by_name).collect();
    worker.shared.catalog.publish(View { services, ..View::default() });
}
