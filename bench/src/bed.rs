//! The processes that are measured, started for one load and ended after it.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{
    process::{Process, Role},
    tls,
    weft::{Weft, WeftOptions},
};

/// The authority of every call; to a sidecar it names the service.
pub(crate) const AUTHORITY: &str = "echo.bench";

/// One way from the load generator to the echo server.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    /// Where the load generator connects to.
    pub(crate) address: SocketAddr,
    /// The relay beside the client and the one beside the server; the bare way has none.
    pub(crate) relays: Option<[Process; 2]>,
    /// The server of this way alone, so that its memory and its caches are nobody else's.
    pub(crate) server: Role,
    /// From each sidecar's start until it says that it is ready.
    pub(crate) ready_after: Vec<Duration>,
    /// What else must live as long.
    pub(crate) background: Vec<Process>,
    /// Where the processes' logs and certificates are.
    pub(crate) _dir: Option<TempDir>,
}

/// All ways of one load.
pub(crate) struct Bed {
    pub(crate) ways: Vec<Way>,
}

impl Bed {
    /// Starts every process of every way and waits until they are ready.
    pub(crate) async fn start(weft: &WeftOptions) -> Result<Self> {
        let mut ways = vec![bare().await?, floor().await?];
        if weft.missing.is_none() {
            ways.push(sidecars("weft", weft, None).await?);
            if let Some(ratio) = weft.traced {
                ways.push(sidecars("weft traced", weft, Some(ratio)).await?);
            }
        }
        Ok(Self { ways })
    }

    /// Ends every process.
    pub(crate) async fn stop(self) {
        for way in self.ways {
            let relays = way.relays.into_iter().flatten();
            for process in relays.chain(way.background).chain([way.server.process]) {
                process.kill().await;
            }
        }
    }
}

async fn role(args: &[&str]) -> Result<(Role, SocketAddr)> {
    let (role, ready) = Role::start(args, Duration::ZERO).await.with_context(|| format!("weft-bench {}", args[0]))?;
    let address = ready.parse().with_context(|| format!("`{ready}` is no address"))?;
    Ok((role, address))
}

async fn bare() -> Result<Way> {
    let (server, address) = role(&["echo"]).await?;
    let (relays, ready_after, background) = (None, Vec::new(), Vec::new());
    Ok(Way { name: "bare", address, relays, server, ready_after, background, _dir: None })
}

async fn floor() -> Result<Way> {
    let dir = TempDir::new()?;
    tls::write_certificates(dir.path())?;
    let path = dir.path().to_str().context("the folder for temporary files is not UTF-8")?;
    let (server, echo) = role(&["echo"]).await?;
    let (inner, inner_address) = role(&["floor-in", "--tls", path, "--to", &echo.to_string()]).await?;
    let (outer, address) = role(&["floor-out", "--tls", path, "--to", &inner_address.to_string()]).await?;
    Ok(Way {
        name: "floor",
        address,
        relays: Some([outer.process, inner.process]),
        server,
        ready_after: Vec::new(),
        background: Vec::new(),
        _dir: Some(dir),
    })
}

async fn sidecars(name: &'static str, options: &WeftOptions, traced: Option<f64>) -> Result<Way> {
    let (server, echo) = role(&["echo"]).await?;
    let weft = Weft::start(options, echo, traced).await?;
    Ok(Way {
        name,
        address: weft.outbound,
        relays: Some(weft.sidecars),
        server,
        ready_after: weft.ready_after.to_vec(),
        background: vec![weft.control],
        _dir: Some(weft.dir),
    })
}
