//! What a process reports about itself: logs, and the spans of its calls.
//!
//! Any thread puts finished spans through a [`SpanSink`] into a bounded queue, without ever waiting. A task
//! ([`SpanExport`]) sends them in batches to every [`ExportTarget`]. A target that fails or hangs does not affect the
//! others. The sidecar makes its spans itself; a service that uses the kit makes them with `tracing`
//! ([`init_service_telemetry`]).

pub mod attribute;
mod console;
mod export;
mod log_limit;
mod logging;
mod outlet;
mod service;
mod target;

use std::fmt;

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_semantic_conventions::attribute::{SERVICE_NAME, SERVICE_VERSION};

pub use self::{
    export::{SpanExport, SpanSink},
    log_limit::{LeftOut, LogLimit, SharedLogLimit},
    logging::{BadFilter, FlushLog, LogFilter, LogFormat, exit, init_logging, log_filter, log_lines_lost, say_last},
    service::{ServiceTelemetry, TelemetryGuard, init_service_telemetry},
    target::{BadTarget, ExportTarget},
};

/// Why logs or spans can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The variable `RUST_LOG` is wrong.
    #[error("RUST_LOG is wrong: {0}; allowed are directives such as `info` or `info,weft_sidecar=debug`")]
    Filter(String),
    /// Logs were set up before in this process.
    #[error("logs were set up twice in one process")]
    AlreadySet,
    /// The thread that writes the log can't be started.
    #[error("the thread that writes the log can't be started: {0}")]
    LogThread(std::io::Error),
    /// A target for spans can't be used.
    #[error("spans can't be exported to {target}: {reason}")]
    Target {
        /// The target, as it was given.
        target: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The thread that exports spans can't be started.
    #[error("the thread that exports spans can't be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// The process that makes spans: the resource of every exported span.
#[derive(Clone, Debug)]
pub struct Origin {
    /// `service.name`: `users`
    pub service: String,
    /// `service.namespace`: `shop`
    pub namespace: String,
    /// `service.instance.id`: unique among the service's replicas.
    pub instance: String,
    /// `service.version`
    pub version: String,
    /// `weft.component`
    pub component: Component,
}

impl Origin {
    fn resource(&self) -> Resource {
        Resource::builder_empty()
            .with_attributes([
                KeyValue::new(SERVICE_NAME, self.service.clone()),
                KeyValue::new("service.namespace", self.namespace.clone()),
                KeyValue::new("service.instance.id", self.instance.clone()),
                KeyValue::new(SERVICE_VERSION, self.version.clone()),
                KeyValue::new("weft.component", self.component.to_string()),
            ])
            .build()
    }
}

/// The part of Weft that a span comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// The proxy beside a service.
    Sidecar,
    /// The service itself.
    Service,
    /// The control plane.
    Control,
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sidecar => "sidecar",
            Self::Service => "service",
            Self::Control => "control",
        })
    }
}

#[cfg(test)]
mod tests;
