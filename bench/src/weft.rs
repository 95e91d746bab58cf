//! A small mesh: a control plane, the sidecar of the echo server, and one that fronts nothing, for the load generator.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::sleep,
};

use crate::process::Process;

const CONTROL: &str = "weft-control";
const SIDECAR: &str = "weft-sidecar";

const TRUST_DOMAIN: &str = "weft.local";
const NAMESPACE: &str = "bench";
const SERVICE: &str = "echo";
/// The account of the load generator.
const CLIENT: &str = "load";

/// How long a part of the mesh may take to say that it is ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// The mesh's programs, and how the sidecars are to be run.
pub(crate) struct WeftOptions {
    /// Copies of the programs, so that a build in the middle of a run changes nothing.
    programs: TempDir,
    /// The program that is not there, if any.
    pub(crate) missing: Option<PathBuf>,
    /// Measure a way with this share of traced calls too.
    pub(crate) traced: Option<f64>,
    sidecar_args: Vec<String>,
}

impl WeftOptions {
    /// Takes the programs in `bin_dir`, or beside this one.
    pub(crate) fn find(bin_dir: Option<PathBuf>, traced: Option<f64>, sidecar_args: Vec<String>) -> Result<Self> {
        let dir = match bin_dir {
            Some(dir) => dir,
            None => std::env::current_exe()?.parent().context("this program is in no folder")?.to_owned(),
        };
        let programs = TempDir::new()?;
        let mut missing = None;
        for program in [CONTROL, SIDECAR] {
            let file = dir.join(program);
            if file.is_file() {
                fs::copy(&file, programs.path().join(program))?;
            } else {
                missing = Some(file);
            }
        }
        Ok(Self { programs, missing, traced, sidecar_args })
    }

    fn program(&self, name: &str) -> PathBuf {
        self.programs.path().join(name)
    }
}

/// A running mesh.
pub(crate) struct Weft {
    pub(crate) control: Process,
    /// The client's and the server's.
    pub(crate) sidecars: [Process; 2],
    /// From the start of each sidecar until it was ready.
    pub(crate) ready_after: [Duration; 2],
    /// Where the client's sidecar takes calls.
    pub(crate) outbound: SocketAddr,
    pub(crate) dir: TempDir,
}

impl Weft {
    /// Starts the parts one after the other. `traced` is the share of calls whose traces go to the control plane.
    pub(crate) async fn start(options: &WeftOptions, echo: SocketAddr, traced: Option<f64>) -> Result<Self> {
        let dir = TempDir::new()?;
        let [listen, dashboard] = free_ports()?;
        let state = dir.path().join("control");
        let log = dir.path().join("control.log");
        let args = [
            format!("--state-dir={}", state.display()),
            format!("--listen={listen}"),
            format!("--dashboard={dashboard}"),
            format!("--trust-domain={TRUST_DOMAIN}"),
        ];
        let mut control = Process::start(&options.program(CONTROL), args, &log)?;
        until_ready(&mut control, dashboard, &log).await.context("the control plane")?;

        let mesh = Mesh { options, dir: dir.path(), control: listen, dashboard, traced };
        let fronted = [
            format!("--service={SERVICE}"),
            format!("--namespace={NAMESPACE}"),
            format!("--app={echo}"),
            "--protocol=grpc".to_owned(),
            "--health=tcp".to_owned(),
        ];
        let inner = mesh.sidecar(SERVICE, &fronted).await.context("the server's sidecar")?;
        let outer = mesh.sidecar(CLIENT, &[]).await.context("the client's sidecar")?;
        Ok(Self {
            control,
            sidecars: [outer.process, inner.process],
            ready_after: [outer.ready_after, inner.ready_after],
            outbound: outer.outbound,
            dir,
        })
    }
}

/// What a sidecar must know to join.
struct Mesh<'a> {
    options: &'a WeftOptions,
    dir: &'a Path,
    control: SocketAddr,
    dashboard: SocketAddr,
    traced: Option<f64>,
}

struct Sidecar {
    process: Process,
    ready_after: Duration,
    outbound: SocketAddr,
}

impl Mesh<'_> {
    async fn sidecar(&self, account: &str, more: &[String]) -> Result<Sidecar> {
        let [outbound, inbound, admin, metrics] = free_ports()?;
        let token = self.dir.join(format!("{account}.token"));
        fs::write(&token, self.join_token(account).await?)?;
        let log = self.dir.join(format!("{account}.log"));
        let bundle = self.dir.join("control/bundle.pem");
        let mut args = vec![
            format!("--trust-domain={TRUST_DOMAIN}"),
            format!("--control-plane=https://{}", self.control),
            format!("--trust-bundle={}", bundle.display()),
            format!("--join-token-file={}", token.display()),
            format!("--state-dir={}", self.dir.join(account).display()),
            format!("--outbound={outbound}"),
            format!("--inbound={inbound}"),
            format!("--admin={admin}"),
            format!("--metrics={metrics}"),
        ];
        if let Some(ratio) = self.traced {
            args.extend([format!("--otlp=http://{}", self.dashboard), format!("--sample-ratio={ratio}")]);
        }
        args.extend_from_slice(more);
        args.extend_from_slice(&self.options.sidecar_args);

        let start = Instant::now();
        let mut process = Process::start(&self.options.program(SIDECAR), args, &log)?;
        until_ready(&mut process, metrics, &log).await?;
        Ok(Sidecar { process, ready_after: start.elapsed(), outbound })
    }

    async fn join_token(&self, account: &str) -> Result<String> {
        let identity = format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{account}");
        let output = Command::new(self.options.program(CONTROL))
            .args(["token", "--identity", &identity, "--ttl", "24h", "--state-dir"])
            .arg(self.dir.join("control"))
            .kill_on_drop(true)
            .output()
            .await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "no join token for {identity}: {said}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

/// Asks `/readyz` until the answer is 200.
async fn until_ready(process: &mut Process, probe: SocketAddr, log: &Path) -> Result<()> {
    let start = Instant::now();
    while !is_ready(probe).await {
        let alive = process.check_alive();
        if alive.is_err() || start.elapsed() > PATIENCE {
            let said = fs::read_to_string(log).unwrap_or_default();
            let mut last: Vec<_> = said.lines().rev().take(10).collect();
            last.reverse();
            alive.with_context(|| last.join("\n"))?;
            bail!("not ready after {PATIENCE:?}; it said last:\n{}", last.join("\n"));
        }
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

async fn is_ready(probe: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(probe).await?;
        stream
            .write_all(format!("GET /readyz HTTP/1.1\r\nhost: {probe}\r\nconnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        std::io::Result::Ok(&status == b"HTTP/1.1 200")
    };
    matches!(tokio::time::timeout(Duration::from_secs(1), ask).await, Ok(Ok(true)))
}

/// Ports that were free a moment ago: all are taken before the first is given back, so they differ.
fn free_ports<const N: usize>() -> Result<[SocketAddr; N]> {
    let listeners = (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<std::io::Result<Vec<_>>>()?;
    addresses.try_into().ok().context("as many addresses as listeners")
}
