//! Opens all ports before anything else, so that nothing is half-started if one is in use.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
};

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};

use super::takeover::Predecessor;
use crate::{accept::listen, args::Args};

/// How many connections the kernel queues until they are accepted.
const BACKLOG: i32 = 1024;

/// The sockets, bound, listening and non-blocking.
pub(super) struct Ports {
    pub(super) admin: TcpListener,
    pub(super) metrics: TcpListener,
    /// One for each worker.
    pub(super) worker_listeners: Vec<listen::Listeners>,
}

/// Where sockets come from.
pub(super) enum Source {
    Kernel,
    /// The sidecar that this one replaces.
    Predecessor(Predecessor),
}

impl Source {
    /// `count` listeners on one address.
    fn listeners(&mut self, flag: &str, address: SocketAddr, count: usize) -> anyhow::Result<Vec<TcpListener>> {
        match self {
            Self::Kernel => bind_for(flag, address, count),
            Self::Predecessor(predecessor) => predecessor.take(flag, address, count),
        }
    }
}

impl Ports {
    pub(super) fn open(args: &Args, from: &mut Source) -> anyhow::Result<Self> {
        let workers = usize::from(args.workers);
        let outbound = from.listeners("--outbound", args.outbound, workers)?;
        let inbound = match args.service {
            Some(_) => from.listeners("--inbound", args.inbound, workers)?.into_iter().map(Some).collect(),
            None => Vec::from_iter((0..workers).map(|_| None)),
        };
        let admin = from.listeners("--admin", args.admin, 1)?.remove(0);
        let metrics = from.listeners("--metrics", args.metrics, 1)?.remove(0);
        let worker_listeners = outbound
            .into_iter()
            .zip(inbound)
            .map(|(outbound, inbound)| listen::Listeners { outbound, outbound_v6: None, inbound, forwards: Vec::new() })
            .collect();
        let mut ports = Self { admin, metrics, worker_listeners };
        ports.open_forwards(args, from)?;
        if args.intercept {
            ports.open_v6(args, from)?;
        }
        Ok(ports)
    }

    /// Copies of all sockets, for a sidecar that replaces this one.
    pub(super) fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        let of_workers = self.worker_listeners.iter().flat_map(|listeners| {
            let forwards = listeners.forwards.iter().map(|(listener, _)| listener);
            let others = listeners.outbound_v6.iter().chain(&listeners.inbound);
            std::iter::once(&listeners.outbound).chain(others).chain(forwards)
        });
        [&self.admin, &self.metrics]
            .into_iter()
            .chain(of_workers)
            .map(|socket| Ok(socket.try_clone()?.into()))
            .collect()
    }

    /// Opens the outbound port on IPv6 loopback too: redirected connections come to the loopback address of their own
    /// family.
    fn open_v6(&mut self, args: &Args, from: &mut Source) -> anyhow::Result<()> {
        let Some(first) = self.worker_listeners.first() else { return Ok(()) };
        if args.outbound.ip() != Ipv4Addr::LOCALHOST {
            return Ok(());
        }
        let port = first.outbound.local_addr()?.port();
        let address = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        if !has_ipv6() {
            return Ok(());
        }
        let listeners = from.listeners("--outbound, for IPv6", address, self.worker_listeners.len())?;
        for (worker, listener) in self.worker_listeners.iter_mut().zip(listeners) {
            worker.outbound_v6 = Some(listener);
        }
        Ok(())
    }

    fn open_forwards(&mut self, args: &Args, from: &mut Source) -> anyhow::Result<()> {
        for (forward, service) in args.forward.iter().zip(args.forwarded().context("--forward")?) {
            let listeners = from.listeners("--forward", forward.listen, self.worker_listeners.len())?;
            for (worker, listener) in self.worker_listeners.iter_mut().zip(listeners) {
                worker.forwards.push((listener, service.clone()));
            }
        }
        Ok(())
    }

    /// Replaces port 0 in the arguments by the port that the kernel picked.
    pub(super) fn write_to(&self, args: &mut Args) {
        let set = |at: &mut SocketAddr, listener: &TcpListener| {
            if let Ok(address) = listener.local_addr() {
                *at = address;
            }
        };
        set(&mut args.admin, &self.admin);
        set(&mut args.metrics, &self.metrics);
        if let Some(first) = self.worker_listeners.first() {
            set(&mut args.outbound, &first.outbound);
            if let Some(inbound) = &first.inbound {
                set(&mut args.inbound, inbound);
            }
            for (forward, (listener, _)) in args.forward.iter_mut().zip(&first.forwards) {
                set(&mut forward.listen, listener);
            }
        }
    }
}

/// Whether the host has IPv6. Without it there are no redirected IPv6 connections either.
fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// `count` listeners on one address.
///
/// A single listener takes the address exclusively. Several share it through `SO_REUSEPORT`, which would also let in a
/// second sidecar of the same user. So the address is first taken exclusively, which fails if any other process has it.
fn bind_for(flag: &str, address: SocketAddr, count: usize) -> anyhow::Result<Vec<TcpListener>> {
    let bound = || {
        let first = listen(address, false)?;
        if count == 1 {
            return Ok(vec![first]);
        }
        let address = first.local_addr()?;
        drop(first);
        (0..count).map(|_| listen(address, true)).collect()
    };
    bound().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!("{flag} {address}: the port is in use by another process"),
        io::ErrorKind::AddrNotAvailable => anyhow::anyhow!("{flag} {address}: this host has no such address"),
        _ => anyhow::Error::new(error).context(format!("{flag} {address}: can't listen there")),
    })
}

fn listen(address: SocketAddr, shares_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Otherwise an earlier process's connections in TIME_WAIT would keep the port in use.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shares_port)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_sidecar_on_the_same_port_fails_with_the_flag_and_the_address() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        for count in [1, 3] {
            let first = bind_for("--outbound", any, count).unwrap();
            assert_eq!(first.len(), count);
            let address = first[0].local_addr().unwrap();
            assert!(first.iter().all(|listener| listener.local_addr().unwrap() == address));
            for other_count in [1, 3] {
                let error = bind_for("--outbound", address, other_count).unwrap_err().to_string();
                assert!(error.contains("--outbound") && error.contains(&address.to_string()), "{error}");
            }
        }
    }
}
