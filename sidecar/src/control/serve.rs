//! The admin and metrics ports: what they allow, and how many connections they have.

use std::{
    future::pending,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use axum::Router;
use tokio::net::TcpListener;
use weft_mesh::{
    http_server::{self, Observer, PortLimits},
    limits,
};

use super::Control;

/// How many connections each port has.
#[derive(Debug, Default)]
pub(super) struct Connections {
    pub(super) admin: AtomicUsize,
    pub(super) metrics: AtomicUsize,
}

/// Serves the port `name` for as long as it is polled. `streams` limits the streams of one HTTP/2 connection. Dropping
/// the future closes every connection.
pub(super) async fn serve(
    control: &Control,
    listener: TcpListener,
    name: &'static str,
    app: Router,
    streams: u32,
    count: &AtomicUsize,
) {
    let limits = PortLimits {
        connections: limits::ADMIN_CONNECTIONS,
        streams,
        header_bytes: limits::ADMIN_HEADER_BYTES,
        timeout: limits::ADMIN_TIMEOUT,
        idle: limits::ADMIN_IDLE,
    };
    http_server::serve(listener, name, limits, app, Counts { control, count }, pending()).await;
}

struct Counts<'a> {
    control: &'a Control,
    count: &'a AtomicUsize,
}

impl Observer for Counts<'_> {
    fn has_connections(&self, count: usize) {
        self.count.store(count, Relaxed);
    }

    fn has_panicked(&self) {
        self.control.shared.metrics.counters.panics.fetch_add(1, Relaxed);
    }
}
