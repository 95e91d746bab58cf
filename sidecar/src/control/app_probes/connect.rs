//! Where the application is: at the pod's address, as for the kubelet, or else on loopback.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use tokio::net::TcpStream;

use crate::transport::connect;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// The pod's address, if it is known.
    pub(super) pod: Option<IpAddr>,
}

impl Target {
    /// The host that requests name.
    pub(super) fn host(self) -> IpAddr {
        self.pod.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// Connects to a port. A program that listens on loopback only refuses connections to the pod's address.
    pub(super) async fn connect(self, port: u16) -> Result<TcpStream, String> {
        if let Some(pod) = self.pod {
            match connect(SocketAddr::new(pod, port)).await {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                other => return other.map_err(|error| format!("port {port}: {error}")),
            }
        }
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        connect(loopback).await.map_err(|error| format!("port {port}: {error}"))
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    connect::to_local(address, || true).await
}
