//! The life of a sidecar's process: check the configuration, take the ports, start the workers and the control side,
//! run until a signal, drain, stop.

mod ports;
mod takeover;

use std::{
    fs, iter,
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpStream,
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep, timeout},
};
use weft_mesh::{
    identity::SpiffeId,
    names::ServiceName,
    telemetry::{self, Component, FlushLog, LogFilter, Origin, SpanExport, SpanSink, init_logging},
    tls::{TrustBundle, install_crypto_provider},
};

use self::{
    ports::{Ports, Source},
    takeover::{Predecessor, Successor},
};
use crate::{
    accept::listen,
    args::{AppProtocol, Args, Given, Setting},
    control::{Inputs, Tasks, channel::ControlPlane, contracts, reflection},
    endpoints::catalog::Catalog,
    shared::{Phase, Shared, Start, contracts::Contracts, survey::Surveyor},
    watchdog,
};

/// How long a new sidecar may take to get its identity, while the old one serves.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(20);
/// How often to check whether the local service has gone, and how many checks in a row must find it gone: it may just
/// be restarting.
const APP_LOOK_INTERVAL: Duration = Duration::from_millis(50);
const REFUSED_UNTIL_GONE: u32 = 2;
/// How often to check whether a worker has ended: while the sidecar stops, and while it runs.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const WORKER_LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// The name of a sidecar without a local service whose token does not say who it is.
const NAMELESS: &str = "sidecar";
/// How long workers may take past their own limit, and how long each of the last steps may take.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Runs a sidecar until SIGTERM or SIGINT. Blocks; makes its own threads and runtimes.
///
/// # Errors
/// The configuration is wrong, a port is in use, or a part of the sidecar failed so that only a new process helps.
pub(crate) fn run(Given { args, settings }: Given) -> anyhow::Result<()> {
    install_crypto_provider();
    let log = init_logging(args.log_format)?;
    let _flushes = FlushLog;
    raise_file_limit();
    let config = Config::check(&args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .context("the runtime of the control side could not be made")?;
    let result = runtime.block_on(live(args, settings, config, log));
    // Only name look-ups run on blocking threads.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// Raises the limit of open files to its maximum: each connection is an open file, and the usual limit is for programs
/// with few of them.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, ..limit };
    if let Err(e) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(?limit, error = %e, "the limit of open files can't be raised; it also limits connections");
    }
}

/// The configuration from the flags and the files that they name, checked.
struct Config {
    local_service: Option<ServiceName>,
    contracts: Contracts,
    /// The service and the replica that its spans name.
    name: String,
    instance: String,
    bundle: TrustBundle,
    plane: ControlPlane,
}

impl Config {
    fn check(args: &Args) -> anyhow::Result<Self> {
        let local_service = args.service_name().context("--service and --namespace")?;
        ensure!(
            local_service.is_some() == args.app.is_some(),
            "--service and --app go together: give both, or neither"
        );
        check_flags(args)?;
        let plane = ControlPlane::new(&args.control_plane, &args.trust_domain)?;
        let pem = read("--trust-bundle", &args.trust_bundle)?;
        let bundle =
            TrustBundle::from_pem(&pem).with_context(|| format!("--trust-bundle {}", args.trust_bundle.display()))?;
        // The token is read again for each use; a wrong path should fail now.
        let token = read("--join-token-file", &args.join_token_file)?;
        if token.trim_ascii().is_empty() {
            bail!("--join-token-file {}: the file is empty", args.join_token_file.display());
        }
        let contracts = contracts::read(args, local_service.as_ref())?;
        let name = match &local_service {
            Some(local) => local.name().to_owned(),
            None => named_in(&token).map_or_else(|| NAMELESS.to_owned(), |id| id.service().name().to_owned()),
        };
        let instance = format!("{name}-{:016x}", fastrand::u64(..));
        Ok(Self { local_service, contracts, name, instance, bundle, plane })
    }
}

/// Flags that need each other, or that have only some values.
fn check_flags(args: &Args) -> anyhow::Result<()> {
    ensure!((0.0..=1.0).contains(&args.sample_ratio), "--sample-ratio is {}; allowed is 0 to 1", args.sample_ratio);
    ensure!(
        args.app.is_some() || args.descriptors.is_none(),
        "--descriptors is for a sidecar with a local service: give --service and --app too"
    );
    ensure!(
        !args.ask_contracts || args.protocol == AppProtocol::Grpc,
        "--ask-contracts is for a service that speaks gRPC: leave out --protocol"
    );
    ensure!(
        !args.connect || args.protocol == AppProtocol::Http1,
        "--connect is for a service that speaks HTTP/1.1: give --protocol http1 too"
    );
    ensure!(
        args.upgrade.is_empty() || args.protocol != AppProtocol::Tcp,
        "--upgrade is for a service that speaks HTTP: give --protocol http1 or grpc"
    );
    if let Some(advertise) = args.advertise {
        ensure!(
            !advertise.ip().is_unspecified() && advertise.port() != 0,
            "--advertise is {advertise}: nobody can connect to that; give the address of this host"
        );
    }
    Ok(())
}

/// The identity in a join token (a JWT). Not verified, so it is used only for the name in traces: the control plane
/// alone decides who this sidecar is.
fn named_in(token: &[u8]) -> Option<SpiffeId> {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let payload = str::from_utf8(token).ok()?.trim().split('.').nth(1)?;
    let claims: serde_json::Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    claims.get("sub")?.as_str()?.parse().ok()
}

fn read(flag: &str, file: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("{flag} {}: the file can't be read", file.display()))
}

async fn live(mut args: Args, settings: Vec<Setting>, config: Config, log: LogFilter) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let mut source = match args.takeover.as_deref().map(Predecessor::find).transpose()?.flatten() {
        Some(predecessor) => Source::Predecessor(predecessor),
        None => Source::Kernel,
    };
    let ports = Ports::open(&args, &mut source)?;
    // From here on, the arguments have the ports that the kernel picked.
    ports.write_to(&mut args);
    let copies = args.takeover.is_some().then(|| ports.copies()).transpose()?;
    let has_predecessor = matches!(source, Source::Predecessor(_));
    let mut sidecar = Sidecar::start(args, settings, config, log, ports, has_predecessor).await?;
    if let Source::Predecessor(predecessor) = source {
        tokio::select! {
            result = sidecar.replace(predecessor) => result?,
            // Stopped before it has replaced the old sidecar, which goes on.
            () = signals.next() => return Ok(()),
        }
    }
    let successor = match (&sidecar.shared.args.takeover, copies) {
        (Some(path), Some(copies)) => Some(Successor::at(path, copies)?),
        _ => None,
    };
    let result = sidecar.run(&mut signals, successor).await;
    sidecar.end(&mut signals, result.is_ok()).await;
    result
}

/// The parts of a sidecar that runs.
struct Sidecar {
    shared: Arc<Shared>,
    tasks: Tasks,
    workers: Workers,
    span_export: Option<SpanExport>,
}

impl Sidecar {
    /// Starts the control side, then the workers. With a predecessor it gets its identity before the workers start.
    async fn start(
        args: Args,
        settings: Vec<Setting>,
        config: Config,
        log: LogFilter,
        ports: Ports,
        has_predecessor: bool,
    ) -> anyhow::Result<Self> {
        let (spans, span_export) = start_export(&args, &config)?.unzip();
        let (catalog, questions) = Catalog::new();
        let (surveyor, report_requests) = Surveyor::new(args.workers);
        let shared = Arc::new(Shared::from(Start {
            local_service: config.local_service,
            local_contracts: config.contracts,
            settings,
            catalog,
            surveyor,
            spans,
            reflection: reflection::routes(config.plane.clone()),
            args,
        }));
        let Ports { admin, metrics, worker_listeners } = ports;
        let mut tasks = Tasks::start(Inputs {
            shared: Arc::clone(&shared),
            plane: config.plane,
            bundle: config.bundle,
            log,
            questions,
            instance: config.instance,
            admin: tokio::net::TcpListener::from_std(admin)?,
            metrics: tokio::net::TcpListener::from_std(metrics)?,
        });
        if has_predecessor {
            // The old sidecar serves meanwhile.
            let has_identity = timeout(TAKEOVER_TIMEOUT, tasks.has_identity());
            tokio::select! {
                result = has_identity => result.context("got no identity in time to take over")?,
                error = tasks.failure() => return Err(error),
            }
        }
        let ends = iter::zip(worker_listeners, report_requests);
        let ends = ends.map(|(listeners, report_requests)| listen::Ends { listeners, report_requests });
        let workers = Workers::start(&shared, ends)?;
        watchdog::start(&shared.pulses, &shared.is_stalled).context("the watchdog's thread could not be started")?;
        log_start(&shared);
        Ok(Self { shared, tasks, workers, span_export })
    }

    /// Tells the predecessor that it is replaced, once the registry knows this sidecar.
    async fn replace(&mut self, predecessor: Predecessor) -> anyhow::Result<()> {
        let Self { tasks, workers, .. } = self;
        let is_announced = tasks.is_announced();
        tokio::select! {
            () = is_announced => predecessor.replaced(),
            error = tasks.failure() => return Err(error),
            error = workers.failure() => return Err(error),
        }
        Ok(())
    }

    /// Runs until a signal, until a successor has taken over, or until something fails that must run.
    async fn run(&mut self, signals: &mut Signals, successor: Option<Successor>) -> anyhow::Result<()> {
        let Self { shared, tasks, workers, .. } = self;
        tokio::select! {
            () = signals.next() => Ok(()),
            () = replaced(shared, successor) => {
                tracing::info!("another sidecar has taken over");
                shared.is_replaced.store(true, Relaxed);
                Ok(())
            }
            error = tasks.failure() => Err(error),
            error = workers.failure() => Err(error),
        }
    }

    /// Leaves the mesh if all is well and nobody has taken over, then stops. A second signal ends the process at once.
    async fn end(self, signals: &mut Signals, is_well: bool) {
        let Self { shared, tasks, workers, span_export } = self;
        if is_well && !shared.is_replaced.load(Relaxed) {
            tokio::select! {
                () = leave(&shared) => {}
                () = signals.next() => exit_at_once(),
            }
        }
        tokio::select! {
            () = stop(&shared, workers, tasks, span_export) => {}
            () = signals.next() => exit_at_once(),
        }
    }
}

fn log_start(shared: &Shared) {
    tracing::info!(
        service = shared.local_service.as_ref().map(tracing::field::display),
        outbound = %shared.args.outbound,
        inbound = shared.local_service.is_some().then(|| tracing::field::display(shared.args.inbound)),
        admin = %shared.args.admin,
        metrics = %shared.args.metrics,
        "the sidecar runs"
    );
}

/// Ready when a successor has taken over.
async fn replaced(shared: &Shared, successor: Option<Successor>) {
    if let Some(successor) = successor {
        tokio::select! {
            () = successor.replaced() => return,
            // Draining: the copies are dropped, so that new connections are refused and do not wait in them.
            () = shared.reached(Phase::Draining) => {}
        }
    }
    std::future::pending().await
}

/// Starts the export of spans if `--otlp` is given.
fn start_export(args: &Args, config: &Config) -> anyhow::Result<Option<(SpanSink, SpanExport)>> {
    if args.otlp.is_empty() {
        return Ok(None);
    }
    let origin = Origin {
        service: config.name.clone(),
        namespace: args.namespace.clone(),
        instance: config.instance.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        component: Component::Sidecar,
    };
    Ok(Some(SpanExport::start(&args.otlp, &origin)?))
}

fn exit_at_once() {
    tracing::warn!("a second signal: stopping without waiting for calls to end");
    telemetry::exit(1);
}

/// Leaves in two steps: waits until inbound calls have ended, then until the local service has gone, whose own calls
/// may go on until then.
async fn leave(shared: &Shared) {
    tracing::info!(calls = shared.inbound_in_flight.load(Relaxed), "draining");
    shared.advance_to(Phase::Draining);
    let Some(app) = shared.args.app else { return };
    let limit = Duration::from_secs(shared.args.drain_seconds);
    if timeout(limit, shared.drained()).await.is_err() {
        tracing::warn!(calls = shared.inbound_in_flight.load(Relaxed), "calls still run at the end of the drain");
    }
    let limit = Duration::from_secs(shared.args.outlive_seconds);
    if timeout(limit, has_gone(app)).await.is_err() {
        tracing::warn!("the service still runs {limit:?} after the drain; its calls end now");
    }
}

/// Ready when nothing listens there any more.
async fn has_gone(app: SocketAddr) {
    let mut refused = 0;
    while refused < REFUSED_UNTIL_GONE {
        // A service that does not answer in time is slow, but not gone.
        let outcome = timeout(APP_LOOK_INTERVAL, TcpStream::connect(app)).await;
        refused = if matches!(outcome, Ok(Err(_))) { refused + 1 } else { 0 };
        sleep(APP_LOOK_INTERVAL).await;
    }
}

async fn stop(shared: &Shared, workers: Workers, mut tasks: Tasks, spans: Option<SpanExport>) {
    shared.advance_to(Phase::Stopping);
    workers.join(Duration::from_secs(shared.args.drain_seconds) + STOP_GRACE).await;
    if let Err(error) = tasks.stop(STOP_GRACE).await {
        tracing::warn!(%error, "the control side did not stop cleanly");
    }
    if let Some(spans) = spans {
        spans.shutdown().await;
    }
    tracing::info!("has stopped");
}

/// The two signals that ask a process to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("signals can't be handled");
        Ok(Self { terminate: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The threads that carry calls.
struct Workers(Vec<JoinHandle<()>>);

impl Workers {
    fn start(shared: &Arc<Shared>, ends: impl Iterator<Item = listen::Ends>) -> anyhow::Result<Self> {
        let spawn = |(index, ends)| listen::spawn(index, Arc::clone(shared), ends);
        let threads: std::io::Result<Vec<_>> = (0..).zip(ends).map(spawn).collect();
        Ok(Self(threads.context("a worker's thread could not be started")?))
    }

    /// Ready when a worker has ended although it should run.
    async fn failure(&mut self) -> anyhow::Error {
        loop {
            if let Some(index) = self.0.iter().position(JoinHandle::is_finished) {
                return match self.0.swap_remove(index).join() {
                    Ok(()) => anyhow::anyhow!("a worker ended early"),
                    Err(_) => anyhow::anyhow!("a worker panicked"),
                };
            }
            sleep(WORKER_LOOK_INTERVAL).await;
        }
    }

    async fn join(self, limit: Duration) {
        let until = Instant::now() + limit;
        while !self.0.iter().all(JoinHandle::is_finished) {
            if Instant::now() >= until {
                tracing::warn!("workers did not end in time");
                return;
            }
            sleep(LOOK_INTERVAL).await;
        }
        for worker in self.0 {
            if worker.join().is_err() {
                tracing::error!("a worker panicked while it stopped");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_says_who_it_is_for() {
        use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
        let claims = BASE64_URL_SAFE_NO_PAD.encode(r#"{"sub":"spiffe://weft.local/ns/shop/sa/keyboard","exp":1}"#);
        let id = named_in(format!("e30.{claims}.c2ln\n").as_bytes()).unwrap();
        assert_eq!(id.service().name(), "keyboard");
        for other in ["", "x", "a.b.c", "e30.e30.e30"] {
            assert_eq!(named_in(other.as_bytes()), None, "{other}");
        }
    }
}
