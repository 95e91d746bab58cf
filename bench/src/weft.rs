//! A small mesh: a control plane, the sidecar of the echo server, and one without a service, for the load generator.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};

use crate::{contract, ports::free_ports, process::Process};

const CONTROL: &str = "weft-control";
const SIDECAR: &str = "weft-sidecar";

/// The command that builds the programs as they are shipped and measured.
pub(crate) const BUILD: &str = "cargo build --profile dist -p weft-sidecar -p weft-control -p weft-bench --bins";

/// The trust domain of every mesh here.
pub(crate) const TRUST_DOMAIN: &str = "weft.local";
pub(crate) const NAMESPACE: &str = "bench";
/// The service that is called.
pub(crate) const SERVICE: &str = "echo";
/// The account of the load generator.
const CLIENT: &str = "load";

/// The mesh's programs, and how to run the sidecars.
pub(crate) struct WeftOptions {
    /// Copies of the programs, so that a build in the middle of a run changes nothing.
    programs: TempDir,
    /// A program that is missing, if any.
    missing: Option<PathBuf>,
    sidecar_args: Vec<String>,
    /// The program that runs the sidecars, such as valgrind, with its arguments.
    under: Vec<String>,
}

impl WeftOptions {
    /// Copies the programs in `bin_dir`, or beside this one.
    pub(crate) fn find(bin_dir: Option<&Path>, sidecar_args: Vec<String>) -> Result<Self> {
        let dir = match bin_dir {
            Some(dir) => dir.to_owned(),
            None => std::env::current_exe()?.parent().context("this program has no folder")?.to_owned(),
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
        Ok(Self { programs, missing, sidecar_args, under: Vec::new() })
    }

    /// Fails if a program is missing. The error names the command that builds it.
    pub(crate) fn check(&self, build: &str) -> Result<()> {
        match &self.missing {
            None => Ok(()),
            Some(file) => bail!("{} is not there; `{build}` makes it", file.display()),
        }
    }

    /// Runs the sidecars under another program, given with its arguments. It must become the sidecar, not start it.
    pub(crate) fn under(self, command: Vec<String>) -> Self {
        Self { under: command, ..self }
    }

    /// The sidecar's executable.
    pub(crate) fn sidecar(&self) -> PathBuf {
        self.program(SIDECAR)
    }

    fn program(&self, name: &str) -> PathBuf {
        self.programs.path().join(name)
    }
}

/// The settings of one mesh.
pub(crate) struct Setup {
    /// The share of calls whose traces go to the control plane; without it, traces are not exported.
    pub(crate) traced: Option<f64>,
    /// The methods of the echo server's contract.
    pub(crate) methods: usize,
    /// Whether each method has a rule that allows the client to call.
    pub(crate) has_rules: bool,
    /// Whether the server's sidecar listens on every address, so that it can be announced many times.
    pub(crate) is_everywhere: bool,
    /// Worker threads of each sidecar.
    pub(crate) workers: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self { traced: None, methods: 1, has_rules: false, is_everywhere: false, workers: 1 }
    }
}

/// A running control plane.
pub(crate) struct Control {
    pub(crate) process: Process,
    /// The address for calls.
    pub(crate) address: SocketAddr,
    dashboard: SocketAddr,
    dir: TempDir,
}

impl Control {
    /// Starts a control plane, with `files` as its soft limit of open files if it is given.
    pub(crate) async fn start(options: &WeftOptions, files: Option<usize>) -> Result<Self> {
        let dir = TempDir::new()?;
        let [address, dashboard] = free_ports()?;
        let program = options.program(CONTROL);
        let args = [
            format!("--state-dir={}", dir.path().join("control").display()),
            format!("--listen={address}"),
            format!("--dashboard={dashboard}"),
            format!("--trust-domain={TRUST_DOMAIN}"),
        ];
        let log = dir.path().join("control.log");
        let mut process = match files {
            None => Process::start(&program, args, &log)?,
            Some(files) => {
                let script = format!("ulimit -S -n {files} && exec \"$0\" \"$@\"");
                let shell = ["-c".to_owned(), script, program.display().to_string()];
                Process::start(Path::new("/bin/sh"), shell.into_iter().chain(args), &log)?
            }
        };
        until_ready(&mut process, dashboard).await.context("the control plane")?;
        Ok(Self { process, address, dashboard, dir })
    }

    /// The roots of this mesh, PEM.
    pub(crate) fn bundle(&self) -> Result<Vec<u8>> {
        bundle(self.dir.path())
    }

    /// A token with which a sidecar of a service joins.
    pub(crate) async fn join_token(&self, options: &WeftOptions, service: &str) -> Result<String> {
        join_token(options, self.dir.path(), service).await
    }
}

fn bundle(dir: &Path) -> Result<Vec<u8>> {
    Ok(fs::read(dir.join("control/bundle.pem"))?)
}

/// A running mesh.
pub(crate) struct Weft {
    pub(crate) control: Process,
    /// The control plane's address for calls.
    pub(crate) control_address: SocketAddr,
    dashboard: SocketAddr,
    /// The client's sidecar and the server's.
    pub(crate) sidecars: [Process; 2],
    /// From the start of each sidecar until it was ready.
    pub(crate) ready_after: [Duration; 2],
    /// The outbound address of the client's sidecar.
    pub(crate) outbound: SocketAddr,
    /// The inbound address of the server's sidecar.
    pub(crate) inbound: SocketAddr,
    pub(crate) dir: TempDir,
}

impl Weft {
    /// Starts the parts one after the other.
    pub(crate) async fn start(options: &WeftOptions, echo: SocketAddr, setup: &Setup) -> Result<Self> {
        let Control { process: control, address: listen, dashboard, dir } = Control::start(options, None).await?;
        let descriptors = dir.path().join("echo.binpb");
        fs::write(&descriptors, contract::descriptors(setup.methods, setup.has_rules.then_some(CLIENT)))?;
        let mesh = Mesh { options, dir: dir.path(), control: listen, dashboard, setup };
        let inner = mesh.sidecar(SERVICE, SERVICE, &fronting(echo, &descriptors)).await;
        let inner = inner.context("the server's sidecar")?;
        let outer = mesh.sidecar(CLIENT, CLIENT, &[]).await.context("the client's sidecar")?;
        Ok(Self {
            control,
            control_address: listen,
            dashboard,
            sidecars: [outer.process, inner.process],
            ready_after: [outer.ready_after, inner.ready_after],
            outbound: outer.outbound,
            inbound: inner.inbound,
            dir,
        })
    }

    /// The roots of this mesh, PEM.
    pub(crate) fn bundle(&self) -> Result<Vec<u8>> {
        bundle(self.dir.path())
    }

    /// Starts one more sidecar of the service, which is another endpoint of it.
    pub(crate) async fn start_endpoint(&self, options: &WeftOptions, echo: SocketAddr) -> Result<Process> {
        let (dir, setup) = (self.dir.path(), &Setup::default());
        let mesh = Mesh { options, dir, control: self.control_address, dashboard: self.dashboard, setup };
        let flags = fronting(echo, &dir.join("echo.binpb"));
        let sidecar = mesh.sidecar("another", SERVICE, &flags).await.context("the server's other sidecar")?;
        Ok(sidecar.process)
    }

    /// A token with which one more endpoint of the service joins.
    pub(crate) async fn join_token(&self, options: &WeftOptions) -> Result<String> {
        join_token(options, self.dir.path(), SERVICE).await
    }
}

/// What makes a sidecar one of the service.
fn fronting(echo: SocketAddr, descriptors: &Path) -> [String; 6] {
    [
        format!("--service={SERVICE}"),
        format!("--namespace={NAMESPACE}"),
        format!("--app={echo}"),
        format!("--descriptors={}", descriptors.display()),
        "--protocol=grpc".to_owned(),
        "--health=tcp".to_owned(),
    ]
}

/// What a sidecar must know to join.
struct Mesh<'a> {
    options: &'a WeftOptions,
    dir: &'a Path,
    control: SocketAddr,
    dashboard: SocketAddr,
    setup: &'a Setup,
}

struct Sidecar {
    process: Process,
    ready_after: Duration,
    outbound: SocketAddr,
    inbound: SocketAddr,
}

impl Mesh<'_> {
    /// Starts a sidecar. `name` is the prefix of its files.
    async fn sidecar(&self, name: &str, account: &str, more: &[String]) -> Result<Sidecar> {
        let [outbound, inbound, admin, metrics] = free_ports()?;
        let token = self.dir.join(format!("{name}.token"));
        fs::write(&token, join_token(self.options, self.dir, account).await?)?;
        let log = self.dir.join(format!("{name}.log"));
        let bundle = self.dir.join("control/bundle.pem");
        let inbound_ip = if self.setup.is_everywhere { "0.0.0.0" } else { "127.0.0.1" };
        let mut args = vec![
            format!("--trust-domain={TRUST_DOMAIN}"),
            format!("--control-plane=https://{}", self.control),
            format!("--trust-bundle={}", bundle.display()),
            format!("--join-token-file={}", token.display()),
            format!("--state-dir={}", self.dir.join(name).display()),
            format!("--outbound={outbound}"),
            format!("--inbound={inbound_ip}:{}", inbound.port()),
            format!("--admin={admin}"),
            format!("--metrics={metrics}"),
            format!("--workers={}", self.setup.workers),
        ];
        if let Some(ratio) = self.setup.traced {
            args.extend([format!("--otlp=http://{}", self.dashboard), format!("--sample-ratio={ratio}")]);
        }
        args.extend_from_slice(more);
        args.extend_from_slice(&self.options.sidecar_args);

        let start = Instant::now();
        let mut command = self.options.under.clone();
        command.push(self.options.sidecar().display().to_string());
        command.append(&mut args);
        let mut process = Process::start(Path::new(&command[0]), &command[1..], &log)?;
        until_ready(&mut process, metrics).await?;
        Ok(Sidecar { process, ready_after: start.elapsed(), outbound, inbound })
    }
}

async fn join_token(options: &WeftOptions, dir: &Path, account: &str) -> Result<String> {
    let identity = format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{account}");
    let output = Command::new(options.program(CONTROL))
        .args(["token", "--identity", &identity, "--ttl", "24h", "--state-dir"])
        .arg(dir.join("control"))
        .kill_on_drop(true)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "no join token for {identity}: {said}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Polls `/readyz` until the answer is 200.
async fn until_ready(process: &mut Process, probe: SocketAddr) -> Result<()> {
    process.until_ready(async || is_ready(probe).await).await
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
