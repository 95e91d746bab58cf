//! The breakers that are open now. They are counted when the page is made: services and endpoints come and go, and what
//! still refers to one that has gone must not keep its breaker in the metrics.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use crate::{
    endpoints::catalog::{Service, View},
    policy::breaker::Breaker,
};

/// See the module.
#[derive(Debug)]
pub(super) struct OpenBreakers(Vec<OpenOfService>);

/// How many are open or half-open.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct OpenOfService {
    service: String,
    itself: i64,
    endpoints: i64,
}

impl OpenBreakers {
    /// Those of all known services.
    pub(super) fn of(view: &View) -> Self {
        let is_open = |breaker: &Breaker| i64::from(!breaker.is_closed());
        let of_service = |service: &Service| OpenOfService {
            service: service.name.to_string(),
            itself: is_open(&service.breaker),
            endpoints: service.endpoints.iter().map(|endpoint| is_open(&endpoint.breaker)).sum(),
        };
        let mut rows: Vec<_> = view.services.values().map(|service| of_service(service)).collect();
        rows.sort();
        Self(rows)
    }
}

impl Collector for OpenBreakers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Breakers that are open, or half-open";
        let mut open = encoder.encode_descriptor("weft_breakers_open", help, None, MetricType::Gauge)?;
        for OpenOfService { service, itself, endpoints } in &self.0 {
            for (kind, count) in [("service", itself), ("endpoint", endpoints)] {
                let labels = [("service", service.as_str()), ("kind", kind)];
                ConstGauge::new(*count).encode(open.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text, registry::Registry};
    use weft_mesh::policy::Idempotency;

    use super::*;
    use crate::{
        policy::breaker::{Permit, Verdict},
        trial::{
            self,
            service::{publish, replicas},
        },
    };

    #[tokio::test(start_paused = true)]
    async fn breakers_of_known_services_and_endpoints_are_counted() {
        let worker = trial::worker();
        let service = replicas(&worker, 3, Idempotency::Unknown);
        for endpoint in &service.endpoints[1..] {
            for _ in 0..5 {
                endpoint.breaker.settle(Permit::Call, Verdict::Failure, worker.moment());
            }
        }
        publish(&worker, [service]);
        let page = || {
            let mut registry = Registry::default();
            registry.register_collector(Box::new(OpenBreakers::of(&worker.shared.catalog.view())));
            let mut page = String::new();
            text::encode(&mut page, &registry).expect("it has room");
            page
        };
        let row = |kind, count| format!("weft_breakers_open{{service=\"probe.shop\",kind=\"{kind}\"}} {count}\n");
        assert!(page().contains(&(row("service", 0) + &row("endpoint", 2))), "{}", page());
        publish(&worker, []);
        assert!(!page().contains("probe.shop"), "{}", page());
    }
}
