//! Services of a mesh that is not there.

use std::sync::Arc;

use tokio::time::Instant;
use weft_contracts::weft::discovery::v1::{Health, Protocol, Version};
use weft_mesh::{
    names::ServiceName,
    policy::{BreakerPolicy, Fallback as Policy, Idempotency, ServicePolicy},
};

use crate::{
    endpoints::catalog::{Endpoint, Method, Service, View},
    policy::{breaker::Breaker, fallback::Fallback},
    telemetry::metrics::{CallLabels, Direction},
    thread::worker::Worker,
};

/// The path of the one method of its contract.
pub(crate) const PATH: &str = "/probe.v1.Probe/Say";

/// The service `NAME.shop` with one endpoint, to which no connection can be made. Its one method has this fallback.
pub(crate) fn service(worker: &Worker, name: &str, fallback: Option<Policy>) -> Service {
    let breaker = || Breaker::new(BreakerPolicy::default());
    let id = format!("spiffe://weft.local/ns/shop/sa/{name}").parse().unwrap();
    let endpoint = Endpoint::new("1".into(), "127.0.0.1:1".parse().unwrap(), id, Health::Up, breaker());
    let full_name = ServiceName::parse(&format!("{name}.shop")).unwrap();
    let method = |method: &str, fallback| {
        let metrics = worker.shared.metrics.calls(CallLabels {
            direction: Direction::Outbound,
            service: full_name.to_string(),
            method: method.into(),
            peer: "test.shop".into(),
        });
        let (name, idempotency) = (method.into(), Idempotency::Unknown);
        Arc::new(Method { name, timeout: None, idempotency, fallback, metrics })
    };
    let fallback = fallback.map(|policy| Box::new(Fallback::new(&policy, &full_name)));
    let methods = [(PATH.into(), method(&PATH[1..], fallback))].into();
    Service {
        protocol: Protocol::Http2,
        version: Version::default(),
        policy: Arc::new(ServicePolicy { stands_in_for: vec!["probe".into(), "other".into()], ..Default::default() }),
        endpoints: vec![Arc::new(endpoint)],
        addresses: Vec::new(),
        breaker: Arc::new(breaker()),
        methods: Arc::new(methods),
        other: method("_other", None),
        last_used: Arc::default(),
        heard: Instant::now(),
        is_complete: true,
        starts_since: None,
        name: full_name,
    }
}

/// Has the worker know these services, by their names only.
pub(crate) fn publish(worker: &Worker, services: impl IntoIterator<Item = Service>) {
    let by_name = |service: Service| (service.name.clone(), Arc::new(service));
    let services = services.into_iter().map(by_name).collect();
    worker.shared.catalog.publish(View { services, ..View::default() });
}
