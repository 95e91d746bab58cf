//! Ports: those that the mesh file names are checked, all others are chosen from the free ones.

use std::{
    collections::HashSet,
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::Range,
    sync::Mutex,
};

use super::{port_blocks::Blocks, process};
use crate::mesh_file::{MeshFile, Port, Problem, Service};

/// Hands out ports that nobody listens on, none of them twice.
///
/// From the choice of a port to the moment when its owner listens on it, nothing holds the port. So it is chosen from a
/// block that no other `weft up` of this user chooses from ([`Blocks`]), and outside the range that the kernel uses for
/// outgoing connections: such a connection would keep the owner from listening.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    given: Mutex<HashSet<u16>>,
    blocks: Mutex<Blocks>,
}

/// How many ports are tried.
const TRIES: usize = 1_000;
/// The lowest port that is chosen: well-known services are below.
const LOWEST: u16 = 16_384;
/// The kernel's file with the first and the last port of outgoing connections (`ip(7)`).
const OUTGOING: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Fewer ports than this are too few to choose from.
const ENOUGH: u16 = 4_096;

impl Ports {
    /// A free port. The listener that found it is closed again, so its owner should listen on it soon.
    ///
    /// # Errors
    /// None was found that is free.
    pub(crate) fn pick(&self) -> io::Result<u16> {
        let own = not_outgoing();
        for _ in 0..TRIES {
            // 0: any port that the kernel gives.
            let wanted = own.as_ref().map_or(0, |own| self.next(own));
            let Ok(listener) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, wanted)) else { continue };
            let port = listener.local_addr()?.port();
            if self.reserve(port) {
                return Ok(port);
            }
        }
        Err(io::Error::other(format!("no free port found in {TRIES} tries")))
    }

    fn next(&self, own: &Range<u16>) -> u16 {
        let mut blocks = self.blocks.lock().unwrap_or_else(|broken| broken.into_inner());
        blocks.next(own).unwrap_or_else(|| fastrand::u16(own.clone()))
    }

    /// Keeps a port from being handed out; false if it was already.
    pub(crate) fn reserve(&self, port: u16) -> bool {
        self.given.lock().unwrap_or_else(|broken| broken.into_inner()).insert(port)
    }
}

/// Ports that the kernel gives to no outgoing connection; `None` if these are too few.
fn not_outgoing() -> Option<Range<u16>> {
    let range = fs::read_to_string(OUTGOING).ok()?;
    let first: u16 = range.split_whitespace().next()?.parse().ok()?;
    (first >= LOWEST + ENOUGH).then_some(LOWEST..first)
}

/// Whether the port can be listened on now.
pub(crate) fn is_free(port: u16) -> bool {
    matches!(bind(port), Ok(()))
}

fn bind(port: u16) -> io::Result<()> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(|_| ())
}

/// An address on loopback.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The problems with the ports that a mesh file names, or that it leaves at their defaults.
pub(crate) fn check_named(mesh: &MeshFile) -> Vec<Problem> {
    let ports = &mesh.ports;
    let named =
        [("ports.outbound", ports.outbound), ("ports.dashboard", ports.dashboard), ("ports.control", ports.control)];
    let of_services = mesh.services.iter().flat_map(Service::named_ports);
    named
        .map(|(field, port)| (field.to_owned(), port))
        .into_iter()
        .chain(of_services)
        .filter(|(_, port)| port.number != 0)
        .filter_map(|(field, port)| {
            let error = bind(port.number).err()?;
            Some(problem(&mesh.path.display().to_string(), &field, port, &error))
        })
        .collect()
}

fn problem(file: &str, field: &str, port: Port, error: &io::Error) -> Problem {
    let number = port.number;
    let is_mesh_port = field.starts_with("ports.");
    let what = match error.kind() {
        io::ErrorKind::AddrInUse => match process::listener_on(number) {
            Some(owner) => format!("port {number} is in use by {owner}"),
            None => format!("port {number} is in use"),
        },
        _ => format!("port {number} can't be listened on: {error}"),
    };
    let allowed = if is_mesh_port { "a free port, or 0 for any" } else { "a free port, or leave this key out" };
    match port.line {
        Some(line) => Problem::new(file, line, field, format!("{what}; allowed: {allowed}")),
        None => Problem::new(file, 0, field, format!("{what}, which is the default; allowed: {allowed}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_handed_out_twice() {
        let ports = Ports::default();
        let picked: Vec<u16> = (0..200).map(|_| ports.pick().unwrap()).collect();
        let distinct: HashSet<_> = picked.iter().collect();
        assert_eq!(distinct.len(), picked.len());
        assert!(!ports.reserve(picked[0]));
        // An outgoing connection can't be given one of them before its owner listens.
        if let Some(own) = not_outgoing() {
            assert!(picked.iter().all(|port| own.contains(port)), "{picked:?}");
        }
    }

    #[test]
    fn a_port_in_use_is_reported_with_its_line_and_its_owner() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let number = taken.local_addr().unwrap().port();
        assert!(!is_free(number));
        let error = bind(number).unwrap_err();
        let told = problem("mesh.yaml", "ports.outbound", Port { number, line: Some(3) }, &error).to_string();
        assert!(told.starts_with(&format!("mesh.yaml:3: ports.outbound: port {number} is in use by ")), "{told}");
        assert!(told.contains(&format!("(pid {})", std::process::id())), "{told}");
        assert!(told.ends_with("; allowed: a free port, or 0 for any"), "{told}");
        let told = problem("mesh.yaml", "ports.control", Port { number, line: None }, &error).to_string();
        assert!(told.starts_with("mesh.yaml: ports.control: port "), "{told}");
        assert!(told.contains(", which is the default; "), "{told}");
    }
}
