//! The dashboard's port: what it allows, and its graceful end.

use std::io;

use tokio::net::TcpListener;
use weft_mesh::{
    http_server::{self, PortLimits},
    limits,
};

use super::{Dashboard, routes};

/// Serves the dashboard until `shutdown` completes; then requests under way have [`limits::DASHBOARD_TIMEOUT`] to end.
/// Dropping the future closes every connection at once.
///
/// # Errors
/// Only if the listener has no address. A bad connection is logged and does not affect others.
pub async fn serve(
    listener: TcpListener,
    dashboard: Dashboard,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    tracing::debug!(%address, "the dashboard takes connections");
    let limits = PortLimits {
        connections: limits::DASHBOARD_CONNECTIONS,
        streams: limits::DASHBOARD_STREAMS,
        header_bytes: limits::DASHBOARD_HEADER_BYTES,
        timeout: limits::DASHBOARD_TIMEOUT,
        idle: limits::DASHBOARD_IDLE,
    };
    http_server::serve(listener, "the dashboard", limits, routes::routes(dashboard), (), shutdown).await;
    Ok(())
}
