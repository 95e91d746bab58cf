//! The measured processes, started for one load and ended after it.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;
use tempfile::TempDir;

use crate::{
    peers::{self, Found},
    process::{Process, Role},
    tls,
    weft::{BUILD, Setup, Weft, WeftOptions},
};

/// The authority of every call, by which a sidecar finds the service.
pub(crate) const AUTHORITY: &str = "echo.bench";

/// The ways from the load generator to the echo server, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Which {
    Bare,
    Floor,
    Weft,
    WeftNoTraces,
    Nghttpx,
    Haproxy,
    Envoy,
}

impl Which {
    /// Its name in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Floor => FLOOR,
            Self::Weft => WEFT,
            Self::WeftNoTraces => "weft, no traces",
            Self::Nghttpx => "nghttpx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
        }
    }
}

/// The name of the way that all others are compared with.
pub(crate) const FLOOR: &str = "floor";
/// The name of the way through the sidecars with everything on.
pub(crate) const WEFT: &str = "weft";

/// One way from the load generator to the echo server.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    /// The address that the load generator connects to.
    pub(crate) address: SocketAddr,
    /// Whether it accepts HTTP/1.1, too.
    pub(crate) takes_http1: bool,
    /// The relay beside the client and the one beside the server; the bare way has none.
    pub(crate) relays: Option<[Process; 2]>,
    /// The server of this way only: no other way uses its memory and its caches.
    pub(crate) server: Role,
    /// The time from each sidecar's start until it is ready.
    pub(crate) ready_after: Vec<Duration>,
    /// Other processes that must run as long.
    pub(crate) background: Vec<Process>,
    /// The folder of the processes' logs and certificates.
    pub(crate) _dir: Option<TempDir>,
}

impl Way {
    /// Ends its processes.
    pub(crate) async fn stop(self) {
        let relays = self.relays.into_iter().flatten();
        for process in relays.chain(self.background).chain([self.server.process]) {
            process.kill().await;
        }
    }
}

/// A way that could not be measured.
#[derive(Serialize)]
pub(crate) struct Absent {
    pub(crate) name: &'static str,
    pub(crate) why: String,
}

/// What a run measures.
pub(crate) struct Plan {
    ways: Vec<Which>,
    weft: WeftOptions,
    /// The share of calls that the sidecars trace, except in [`Which::WeftNoTraces`].
    traced: f64,
    peers: Vec<Found>,
}

impl Plan {
    /// The `wanted` ways (all if it is empty) whose programs exist. Prints why the others are left out.
    pub(crate) async fn new(wanted: &[Which], weft: WeftOptions, traced: f64, peers_dir: &Path) -> Self {
        let mut ways = Vec::new();
        let mut peers = Vec::new();
        for &which in Which::value_variants() {
            // Every result is a ratio to the floor.
            if !wanted.is_empty() && !wanted.contains(&which) && which != Which::Floor {
                continue;
            }
            let there = match which {
                Which::Bare | Which::Floor => Ok(()),
                Which::Weft | Which::WeftNoTraces => weft.check(BUILD),
                Which::Nghttpx | Which::Haproxy | Which::Envoy => find(which, peers_dir).await.map(|it| peers.push(it)),
            };
            match there {
                Ok(()) => ways.push(which),
                Err(why) => eprintln!("No rows for {}: {why:#}.", which.name()),
            }
        }
        Self { ways, weft, traced, peers }
    }

    /// The peers that take part.
    pub(crate) fn peers(&self) -> &[Found] {
        &self.peers
    }

    /// Starts every process of every way and waits until they are ready. Also returns the ways that did not start, with
    /// the reason.
    pub(crate) async fn start(&self) -> Result<(Vec<Way>, Vec<Absent>)> {
        let (mut ways, mut absent) = (Vec::new(), Vec::new());
        for &which in &self.ways {
            let way = match which {
                Which::Bare => bare().await?,
                Which::Floor => floor().await?,
                Which::Weft => {
                    let setup = Setup { traced: Some(self.traced), ..Setup::default() };
                    sidecars(which.name(), &self.weft, &setup).await?.0
                }
                Which::WeftNoTraces => sidecars(which.name(), &self.weft, &Setup::default()).await?.0,
                Which::Nghttpx | Which::Haproxy | Which::Envoy => match self.peer(which).await {
                    Ok(way) => way,
                    Err(why) => {
                        absent.push(Absent { name: which.name(), why: format!("{why:#}") });
                        continue;
                    }
                },
            };
            ways.push(way);
        }
        Ok((ways, absent))
    }

    async fn peer(&self, which: Which) -> Result<Way> {
        let found = self.peers.iter().find(|found| found.name() == which.name()).context("it is not installed")?;
        let (server, echo) = role(&["echo"]).await?;
        let pair = found.start(echo).await?;
        Ok(Way {
            name: which.name(),
            address: pair.outbound,
            takes_http1: true,
            relays: Some(pair.relays),
            server,
            ready_after: Vec::new(),
            background: Vec::new(),
            _dir: Some(pair.dir),
        })
    }
}

async fn find(which: Which, peers_dir: &Path) -> Result<Found> {
    let peer = peers::ALL.iter().find(|peer| peer.name == which.name()).context("no such peer")?;
    peer.find(peers_dir).await
}

async fn role(args: &[&str]) -> Result<(Role, SocketAddr)> {
    let (role, ready) = Role::start(args, Duration::ZERO).await.with_context(|| format!("weft-bench {}", args[0]))?;
    let address = ready.parse().with_context(|| format!("`{ready}` is not an address"))?;
    Ok((role, address))
}

async fn bare() -> Result<Way> {
    let (server, address) = role(&["echo"]).await?;
    let (relays, ready_after, background) = (None, Vec::new(), Vec::new());
    let name = Which::Bare.name();
    Ok(Way { name, address, takes_http1: false, relays, server, ready_after, background, _dir: None })
}

/// The yardstick: a pair of bare relays.
pub(crate) async fn floor() -> Result<Way> {
    let dir = TempDir::new()?;
    tls::write_certificates(dir.path())?;
    let path = dir.path().to_str().context("the folder for temporary files is not UTF-8")?;
    let (server, echo) = role(&["echo"]).await?;
    let (inner, inner_address) = role(&["floor-in", "--tls", path, "--to", &echo.to_string()]).await?;
    let (outer, address) = role(&["floor-out", "--tls", path, "--to", &inner_address.to_string()]).await?;
    Ok(Way {
        name: FLOOR,
        address,
        takes_http1: false,
        relays: Some([outer.process, inner.process]),
        server,
        ready_after: Vec::new(),
        background: Vec::new(),
        _dir: Some(dir),
    })
}

/// The parts of a mesh that are needed to join it.
pub(crate) struct Joinable {
    pub(crate) control: SocketAddr,
    pub(crate) inbound: SocketAddr,
    /// The roots to trust, PEM.
    pub(crate) bundle: Vec<u8>,
    /// A token of the echo service.
    pub(crate) join_token: String,
}

/// A pair of sidecars with a control plane.
pub(crate) async fn sidecars(name: &'static str, options: &WeftOptions, setup: &Setup) -> Result<(Way, Joinable)> {
    let (server, echo) = role(&["echo"]).await?;
    let weft = Weft::start(options, echo, setup).await?;
    let joinable = Joinable {
        control: weft.control_address,
        inbound: weft.inbound,
        bundle: weft.bundle()?,
        join_token: weft.join_token(options).await?,
    };
    let way = Way {
        name,
        address: weft.outbound,
        takes_http1: true,
        relays: Some(weft.sidecars),
        server,
        ready_after: weft.ready_after.to_vec(),
        background: vec![weft.control],
        _dir: Some(weft.dir),
    };
    Ok((way, joinable))
}
