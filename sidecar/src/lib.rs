//! The proxy beside each service: the only part of Weft on the path of every request.
//!
//! Two files show a request's path from top to bottom: `proxy/outbound.rs` for calls of the local service, and
//! `proxy/inbound.rs` for calls to it. Each of their steps is a module that knows nothing of the other steps. Workers
//! carry the calls. Each worker is a thread (`accept/listen.rs`) with its own connections. `control` runs on the main
//! thread, and passes to the workers what it learns through `shared` and `endpoints/catalog.rs`.
//!
//! Once a call is sent, the events of its two connections drive it: `call` relays between its two sides, and
//! `transport` drives the connections.
//!
//! `drain` is the command for a sidecar that runs elsewhere in this host; all else is the sidecar itself.
//!
//! Imports run one way, from the first of these to the last: `start`, `control`, `accept`, `proxy`, `call`, `transport`,
//! `thread`, `shared`, `endpoints`, `telemetry`, `policy`, `message`, `time`. All of them may use `args` and
//! `watchdog`, which use none of them.

mod accept;
mod args;
mod call;
mod control;
mod drain;
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

pub use args::{
    AppProtocol, Args, Command, Drain, Forward, Given, HealthCheck, Outside, Probes, UpgradeName, header_list_bytes,
    memory,
};

/// Does what the command line says. Blocks until that is done: for a sidecar, until it was told to stop.
///
/// # Errors
/// The configuration is wrong, a port is in use, or a part of the sidecar failed so that only a new process helps. For a
/// drain: no sidecar listens there.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(given) => start::run(*given),
        Command::Drain(asked) => drain::run(&asked),
    }
}
