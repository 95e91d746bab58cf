//! The proxy beside each service: the one part of Weft on every request's path.
//!
//! A request's way reads top to bottom in two files: `outbound` for calls of the own service, `inbound` for calls
//! to it. Each of their steps is a module that knows nothing of the steps around it. Workers carry calls, each on a thread
//! (`listen`) with its own connections (`worker`); `control` runs beside them on the main thread and hands them what it
//! learns through `shared` and `catalog`.
//!
//! Once it is sent, a call is moved by the events of its two connections: `call` holds what both sides of it do to one
//! another, `link` drives a connection over the HTTP/2 core, `socket` one that carries a single call at a time (HTTP/1.1,
//! opaque TCP), and `pipe` stands in for a service within the sidecar.

mod answer;
mod args;
mod attempt;
mod balance;
mod breaker;
mod budget;
mod call;
mod catalog;
mod classify;
mod clients;
mod code;
mod connect;
mod control;
mod deadline;
mod detect;
mod exchange;
mod expiry;
mod fair;
mod give_way;
mod headers;
mod http;
mod http1;
mod http2;
mod inbound;
mod intercept;
mod link;
mod listen;
mod local;
mod members;
mod metrics;
mod moment;
mod outbound;
mod outside;
mod own_http1;
mod own_service;
mod own_tcp;
mod peers;
mod pipe;
mod pool;
mod proxy;
mod record;
mod report;
mod retry;
mod room;
mod rpc;
mod shared;
mod slots;
mod socket;
mod span;
mod start;
mod step;
mod strangers;
mod survey;
mod target;
mod tcp;
mod timer;
mod tls_stream;
#[cfg(any(test, fuzzing))]
pub mod trial;
mod tunnel;
mod watchdog;
mod websocket;
mod wire_limits;
mod worker;

pub use args::{AppProtocol, Args, Forward, Given, HealthCheck, Outside, UpgradeName, header_list_bytes, memory};
pub use start::run;
