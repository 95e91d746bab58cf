//! The library for Rust services in the mesh.
//!
//! A service gives its name, its contracts, its dependencies and its gRPC services; the rest comes from the environment
//! ([`Settings`]) and from this crate:
//!
//! ```no_run
//! use weft_kit::{Routes, Service};
//!
//! fn main() -> std::process::ExitCode {
//!     Service::new("greeter").contracts(weft_contracts::FILE_DESCRIPTOR_SET).depends_on("users").serve(|ctx| async move {
//!         let _users = ctx.channel(); // every contract of the mesh is behind this one channel
//!         Ok(Routes::default()) // Routes::new(GreeterServer::new(Greeter { users }))
//!     })
//! }
//! ```
//!
//! A call's path through a service: [`inbound`] reads the [`call::Call`] from its headers (request id, trace,
//! deadline), opens its span, counts it, and runs the service's method with call and span as the current ones. Each
//! call that the method makes through a [`Channel`] passes them on. The method itself does nothing for that, unless it
//! spawns a task: then [`spawn`] takes them along, where `tokio::spawn` would lose them.
//!
//! Modules, from the outside in: [`service`] starts and stops a service, with its [`settings`] and its [`health`];
//! [`inbound`] and [`outbound`] are the two sides of a call, with [`call`] between them; `record` observes how a call
//! ends, for spans, [`metrics`] and logs; [`status`] makes and reads errors with details, [`ids`] makes ids for what a
//! service stores.

pub mod call;
mod deadline;
pub mod health;
pub mod ids;
pub mod inbound;
mod logs;
pub mod metrics;
pub mod outbound;
mod record;
pub mod service;
pub mod settings;
pub mod status;
mod telemetry;
mod trace;

pub use call::spawn;
pub use health::Dependency;
pub use outbound::Channel;
pub use service::{Context, Running, Service, StartError, Stopping};
pub use settings::Settings;
pub use tonic::service::Routes;
