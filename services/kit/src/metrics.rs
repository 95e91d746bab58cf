//! Metrics for Prometheus, served at `GET /metrics` on the service's own port.

use std::{
    collections::HashSet,
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use prost::Message;
use tonic::Code;
use weft_mesh::errors::GRPC_CODES;

/// The label of a method that is in none of the service's contracts, so that callers can't add rows.
pub(crate) const OTHER: &str = "_other";

/// Upper bounds of the latency histogram, in seconds.
const LATENCY_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A service's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    methods: Arc<HashSet<String>>,
    /// Calls that the service answers.
    pub(crate) server: Calls,
    /// Calls that it makes.
    pub(crate) client: Calls,
    dependencies: Family<DependencyLabels, Gauge>,
}

/// How the calls of one side went.
#[derive(Clone)]
pub(crate) struct Calls {
    requests: Family<CallLabels, Counter>,
    duration: Family<MethodLabels, Histogram>,
    pub(crate) in_flight: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: String,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    method: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DependencyLabels {
    dependency: String,
}

impl Metrics {
    /// Metrics of a service. The names of methods come from a serialized descriptor set.
    ///
    /// # Errors
    /// The bytes are not a descriptor set.
    pub fn new(service: &str, descriptors: &[u8]) -> Result<Self, prost::DecodeError> {
        let mut registry = Registry::with_labels([("service".into(), service.to_owned().into())].into_iter());
        let server = Calls::register(&mut registry, "rpc_server", "that the service answers");
        let client = Calls::register(&mut registry, "rpc_client", "that the service makes");
        let dependencies = Family::default();
        registry.register("dependency_up", "1 while the dependency's check succeeds", dependencies.clone());
        Ok(Self {
            registry: Arc::new(Mutex::new(registry)),
            methods: Arc::new(method_names(descriptors)?),
            server,
            client,
            dependencies,
        })
    }

    /// Adds a service's own metrics.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The label for a method: its full name, `shop.users.v1.Users/Create`, if the contracts have it; else [`OTHER`].
    pub(crate) fn label(&self, method: &str) -> String {
        if self.methods.contains(method) { method.to_owned() } else { OTHER.to_owned() }
    }

    pub(crate) fn dependency(&self, name: &str) -> Gauge {
        self.dependencies.get_or_create_owned(&DependencyLabels { dependency: name.to_owned() })
    }

    /// All of it in the text format of OpenMetrics.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = encode(&mut text, &registry) {
            // Writing to a String can't fail; only a metric of the service's own can.
            let _ = write!(text, "# {error}");
        }
        text
    }
}

impl Calls {
    fn register(registry: &mut Registry, prefix: &str, what: &str) -> Self {
        let calls = Self {
            requests: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS)),
            in_flight: Gauge::default(),
        };
        registry.register(format!("{prefix}_requests"), format!("Calls {what}"), calls.requests.clone());
        registry.register(
            format!("{prefix}_duration_seconds"),
            format!("Duration of calls {what}, to the end of a stream"),
            calls.duration.clone(),
        );
        registry.register(format!("{prefix}_in_flight"), format!("Running calls {what}"), calls.in_flight.clone());
        calls
    }

    pub(crate) fn record(&self, method: &str, code: Code, took: Duration) {
        self.requests.get_or_create(&CallLabels { method: method.to_owned(), code: code_name(code) }).inc();
        self.duration.get_or_create(&MethodLabels { method: method.to_owned() }).observe(took.as_secs_f64());
    }
}

fn method_names(descriptors: &[u8]) -> Result<HashSet<String>, prost::DecodeError> {
    let set = prost_types::FileDescriptorSet::decode(descriptors)?;
    Ok(set
        .file
        .iter()
        .flat_map(|file| file.service.iter().map(move |service| (file.package(), service)))
        .flat_map(|(package, service)| {
            let full =
                if package.is_empty() { service.name().to_owned() } else { format!("{package}.{}", service.name()) };
            service.method.iter().map(move |method| format!("{full}/{}", method.name()))
        })
        .collect())
}

/// A code as the gRPC specification writes it.
pub(crate) fn code_name(code: Code) -> &'static str {
    GRPC_CODES[code as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_labelled_by_the_contracts_only() {
        let metrics = Metrics::new("users", weft_contracts::FILE_DESCRIPTOR_SET).unwrap();
        assert_eq!(metrics.label("shop.users.v1.Users/Create"), "shop.users.v1.Users/Create");
        assert_eq!(metrics.label("shop.users.v1.Users/Made up"), OTHER);
        metrics.server.record(&metrics.label("shop.users.v1.Users/Create"), Code::NotFound, Duration::from_millis(2));
        let text = metrics.text();
        assert!(
            text.contains(
                r#"rpc_server_requests_total{service="users",method="shop.users.v1.Users/Create",code="NOT_FOUND"} 1"#
            ),
            "{text}"
        );
    }
}
