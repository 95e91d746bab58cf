//! The proxy beside each service: the one part of Weft on every request's path.
//!
//! A request's way reads top to bottom in two files: `outbound` for calls of the own service, `inbound` for calls
//! to it. Each of their steps is a module that knows nothing of the steps around it. Workers (`worker`) carry calls,
//! each on a thread with its own connections; `control` runs beside them on the main thread and hands them what it
//! learns through `shared` and `catalog`.

mod answer;
mod args;
mod attempt;
mod balance;
mod body;
mod breaker;
mod catalog;
mod classify;
mod control;
mod deadline;
mod detect;
mod http1;
mod http2;
mod inbound;
mod metrics;
mod outbound;
mod pool;
mod record;
mod shared;
mod span;
mod start;
mod target;
mod worker;

pub use args::{AppProtocol, Args, HealthCheck};
pub use start::run;
