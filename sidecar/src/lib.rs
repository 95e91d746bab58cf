//! The proxy beside each service: the one part of Weft on every request's path.
//!
//! A request's path reads top to bottom in two files: `proxy/outbound.rs` for calls that the local service makes,
//! `proxy/inbound.rs` for calls to it. Each of their steps is a module that knows nothing of the steps around it.
//! Workers carry calls, each on a thread (`accept/listen.rs`) with its own connections; `control` runs beside them on
//! the main thread and hands them what it learns through `shared` and `endpoints/catalog.rs`.
//!
//! Once a call is sent, the events of its two connections move it: `call` says how each side of a call affects the
//! other, and `transport` drives the connections.
//!
//! Imports run one way, from the first of these to the last: `start`, `control`, `accept`, `proxy`, `call`,
//! `transport`, `thread`, `shared`, `endpoints`, `telemetry`, `policy`, `message`, `time`. All of them use `args` and
//! `watchdog`, which use none of them.

mod accept;
mod args;
mod call;
mod control;
mod endpoints;
mod message;
mod policy;
mod proxy;
mod shared;
mod start;
mod telemetry;
mod thread;
mod time;
mod transport;
#[cfg(any(test, fuzzing))]
pub mod trial;
mod watchdog;

pub use args::{AppProtocol, Args, Forward, Given, HealthCheck, Outside, UpgradeName, header_list_bytes, memory};
pub use start::run;
