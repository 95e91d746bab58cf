//! Ports for programs that can't be told to let the kernel pick.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};

/// Ports that were free a moment ago: all are taken before the first is given back, so they differ.
pub(crate) fn free_ports<const N: usize>() -> Result<[SocketAddr; N]> {
    let listeners = (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<std::io::Result<Vec<_>>>()?;
    addresses.try_into().ok().context("as many addresses as listeners")
}
