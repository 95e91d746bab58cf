//! The life of a sidecar's process: check what it was told, take the ports, start the workers and the control side,
//! run until a signal, drain, stop.

mod ports;

use std::{
    fs,
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep},
};
use weft_mesh::{
    names::ServiceName,
    policy::ServicePolicy,
    telemetry::{self, Telemetry},
    tls::{TrustBundle, install_crypto_provider},
};

use self::ports::Ports;
use crate::{
    args::Args,
    catalog::Catalog,
    control::{Inputs, Tasks, channel::ControlPlane, reflection},
    shared::{Phase, Shared, Start},
    worker,
};

/// How long callers are given to learn that this endpoint leaves, before it stops taking calls.
const SHORTEST_DRAIN: Duration = Duration::from_millis(200);
/// How often it is looked whether the last call has ended, or a worker has.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const WORKER_LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// What workers may take past their own limit, and what each of the last steps may take.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Runs a sidecar until SIGTERM or SIGINT. Blocks; makes its own threads and runtimes.
///
/// # Errors
/// What it was told makes no sense, a port is in use, or a part of it failed so that only a fresh process helps.
pub fn run(args: Args) -> anyhow::Result<()> {
    install_crypto_provider();
    telemetry::init_logging(args.log_format);
    let told = Told::check(&args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .context("the runtime of the control side could not be made")?;
    let result = runtime.block_on(live(args, told));
    // A blocking thread can only be in a name look-up.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// What the flags and the files that they name say, checked.
struct Told {
    own: Option<ServiceName>,
    own_policy: ServicePolicy,
    descriptors: Option<Bytes>,
    bundle: TrustBundle,
    plane: ControlPlane,
}

impl Told {
    fn check(args: &Args) -> anyhow::Result<Self> {
        let own = args.service_name().context("--service and --namespace")?;
        ensure!(own.is_some() == args.app.is_some(), "--service and --app go together: give both, or neither");
        ensure!(
            (0.0..=1.0).contains(&args.sample_ratio),
            "--sample-ratio is {}; allowed is 0 to 1",
            args.sample_ratio
        );
        ensure!(
            own.is_some() || args.descriptors.is_none(),
            "--descriptors are those of a service: give --service and --app too"
        );
        if let Some(advertise) = args.advertise {
            ensure!(
                !advertise.ip().is_unspecified() && advertise.port() != 0,
                "--advertise is {advertise}: nobody can connect to that; give the address of this host"
            );
        }
        let plane = ControlPlane::new(&args.control_plane, &args.trust_domain)?;
        let pem = read("--trust-bundle", &args.trust_bundle)?;
        let bundle =
            TrustBundle::from_pem(&pem).with_context(|| format!("--trust-bundle {}", args.trust_bundle.display()))?;
        // It is read again for each use; a wrong path is better known now.
        let token = read("--join-token-file", &args.join_token_file)?;
        if token.trim_ascii().is_empty() {
            bail!("--join-token-file {}: the file is empty", args.join_token_file.display());
        }
        let descriptors = args.descriptors.as_deref().map(|file| read("--descriptors", file)).transpose()?;
        let own_policy = match (&descriptors, &args.descriptors) {
            (Some(bytes), Some(file)) => ServicePolicy::from_descriptors(bytes, None)
                .with_context(|| format!("--descriptors {}", file.display()))?,
            _ => ServicePolicy::default(),
        };
        Ok(Self { own, own_policy, descriptors: descriptors.map(Bytes::from), bundle, plane })
    }
}

fn read(flag: &str, file: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("{flag} {}: the file can't be read", file.display()))
}

async fn live(mut args: Args, told: Told) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let ports = Ports::bind(&args)?;
    // From here on a port that the kernel picked is the port.
    ports.write_to(&mut args);
    let telemetry = None::<Telemetry>;
    let (catalog, questions) = Catalog::new();
    let shared = Arc::new(Shared::from(Start {
        own: told.own,
        own_policy: told.own_policy,
        catalog,
        spans: telemetry.as_ref().map(Telemetry::sink),
        reflection: reflection::routes(told.plane.clone()),
        args,
    }));
    let Ports { admin, metrics, worker_listeners } = ports;
    let mut workers = Workers::start(&shared, worker_listeners)?;
    let mut tasks = Tasks::start(Inputs {
        shared: Arc::clone(&shared),
        plane: told.plane,
        bundle: told.bundle,
        questions,
        descriptors: told.descriptors,
        admin: tokio::net::TcpListener::from_std(admin)?,
        metrics: tokio::net::TcpListener::from_std(metrics)?,
    });
    tracing::info!(
        service = shared.own.as_ref().map(tracing::field::display),
        outbound = %shared.args.outbound,
        inbound = shared.own.is_some().then(|| tracing::field::display(shared.args.inbound)),
        admin = %shared.args.admin,
        metrics = %shared.args.metrics,
        "the sidecar runs"
    );

    let result = tokio::select! {
        () = signals.next() => Ok(()),
        error = tasks.failure() => Err(error),
        error = workers.failure() => Err(error),
    };
    if result.is_ok() {
        tokio::select! {
            () = drain(&shared) => {}
            () = signals.next() => exit_at_once(),
        }
    }
    tokio::select! {
        () = stop(&shared, workers, tasks, telemetry) => {}
        () = signals.next() => exit_at_once(),
    }
    result
}

fn exit_at_once() {
    tracing::warn!("a second signal: stops without waiting for calls to end");
    std::process::exit(1);
}

/// Leaves discovery, and lets what runs in the own service end.
async fn drain(shared: &Shared) {
    tracing::info!(calls = shared.inbound_in_flight.load(Relaxed), "drains");
    shared.advance_to(Phase::Draining);
    if shared.own.is_none() {
        return;
    }
    let started = Instant::now();
    let limit = Duration::from_secs(shared.args.drain_seconds);
    sleep(SHORTEST_DRAIN.min(limit)).await;
    while shared.inbound_in_flight.load(Relaxed) > 0 {
        if started.elapsed() >= limit {
            tracing::warn!(calls = shared.inbound_in_flight.load(Relaxed), "calls still run at the end of the drain");
            return;
        }
        sleep(LOOK_INTERVAL).await;
    }
}

async fn stop(shared: &Shared, workers: Workers, mut tasks: Tasks, telemetry: Option<Telemetry>) {
    shared.advance_to(Phase::Stopping);
    workers.join(Duration::from_secs(shared.args.drain_seconds) + STOP_GRACE).await;
    if let Err(error) = tasks.stop(STOP_GRACE).await {
        tracing::warn!(%error, "the control side did not stop cleanly");
    }
    if let Some(telemetry) = telemetry {
        telemetry.shutdown(STOP_GRACE);
    }
    tracing::info!("has stopped");
}

/// Both ways by which a process is asked to stop.
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
    fn start(shared: &Arc<Shared>, listeners: Vec<worker::Listeners>) -> anyhow::Result<Self> {
        let spawn = |(index, listeners)| worker::spawn(index, Arc::clone(shared), listeners);
        let threads: std::io::Result<Vec<_>> = (0..).zip(listeners).map(spawn).collect();
        Ok(Self(threads.context("a worker's thread could not be started")?))
    }

    /// A worker that ended while it should not have.
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
