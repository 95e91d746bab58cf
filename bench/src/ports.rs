//! Ports for programs that cannot let the kernel pick one.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};

/// Different ports that were free a moment ago: all are bound before the first is released.
pub(crate) fn free_ports<const N: usize>() -> Result<[SocketAddr; N]> {
    let listeners = (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<std::io::Result<Vec<_>>>()?;
    addresses.try_into().ok().context("as many addresses as listeners")
}
