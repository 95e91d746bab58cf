//! The life of the control plane.

#[cfg(feature = "kubernetes")]
mod health;
mod keeping;
mod platform;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use weft_mesh::{limits, telemetry, tls, tls::Svid};

use self::{
    keeping::{keep_claims, kept},
    platform::{Platform, Started, WORK_OF_WEBHOOK},
};
use crate::{
    Args,
    authority::{ca::Ca, credentials::Credentials},
    claims::{
        Claims,
        file::Listed,
        store::{Backup, Store},
    },
    dashboard,
    directory::Directory,
    grpc::{self, admission::Budget},
    kubernetes::cluster::Cluster,
    rules::Rules,
    traces,
};

/// The time for tasks to end when the runtime shuts down.
const RUNTIME_STOP: Duration = Duration::from_millis(200);
/// The shortest time between two looks at what the cluster's Services say of their contracts, however often they change.
const CONTRACTS_PAUSE: Duration = Duration::from_secs(1);
/// What members can have done at the same time on other threads: each piece of it takes one of these limits' turns.
const WORK_OF_MEMBERS: usize = limits::DESCRIPTORS_READ + limits::OTLP_READ;
/// What the control plane does there for itself: it reads the file of rules, keeps the claims, and flushes the log.
const OWN_WORK: usize = 3;

/// Runs the control plane until SIGTERM or SIGINT. Blocks, with a runtime of its own on this thread.
///
/// # Errors
/// The state folder is unusable, or a port is taken.
pub fn run(args: Args) -> anyhow::Result<()> {
    tls::install_crypto_provider();
    telemetry::init_logging(args.log_format)?;
    let _flushes = telemetry::FlushLog;
    let budget = Budget::of_files(raise_file_limit());
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let told = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let stopping = CancellationToken::new();
        live(ControlPlane::bind(&args, budget, stopping.clone()), told, stopping).await
    });
    runtime.shutdown_timeout(RUNTIME_STOP);
    result
}

/// Binds and serves, until it is told to stop. `stopping` ends what runs, also before everything is bound.
async fn live(
    bind: impl Future<Output = anyhow::Result<ControlPlane>>,
    told: impl Future<Output = ()>,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    let (mut bind, mut told) = (std::pin::pin!(bind), std::pin::pin!(told));
    let control_plane = tokio::select! {
        bound = &mut bind => bound?,
        // It waits for the API server of its cluster, or stands by. What it serves already ends first.
        () = &mut told => {
            stopping.cancel();
            let _ = bind.await;
            return Ok(());
        }
    };
    let stop = CancellationToken::new();
    let mut serving = std::pin::pin!(control_plane.serve(stop.clone()));
    tokio::select! {
        result = &mut serving => return result,
        () = told => {}
    }
    stop.cancel();
    serving.await
}

/// One thread that serves, and threads for slow work: enough that the control plane's own work never waits for that of
/// members or of the webhook, nor one of these for the other.
fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(WORK_OF_MEMBERS + WORK_OF_WEBHOOK + OWN_WORK)
        .build()
        .context("no runtime could be made")
}

/// Raises the limit of open files as far as allowed, as each connection is one and the usual limit is low. Returns the
/// limit.
fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(?limit, %error, "the limit of open files can't be raised, so there may be few connections");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

async fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("can't listen on {address} ({flag})"))
}

/// A control plane whose ports are bound, and that knows what it runs on.
pub(crate) struct ControlPlane {
    ca: Arc<Ca>,
    credentials: Arc<Credentials>,
    svid: Svid,
    state_dir: PathBuf,
    directory: Arc<Directory>,
    rules: Arc<Rules>,
    on_platform: Started,
    /// Cancelled when what runs is to end.
    stopping: CancellationToken,
    store: Arc<Store>,
    /// Where the claims are kept as well.
    backup: Option<Arc<dyn Backup>>,
    budget: Budget,
    access: dashboard::Access,
    grpc: TcpListener,
    dashboard: TcpListener,
}

impl ControlPlane {
    /// On a cluster it waits until that is known, for as long as the API server is away.
    ///
    /// # Errors
    /// The state folder is unusable, a port is taken, or `stopping` was cancelled meanwhile.
    pub(crate) async fn bind(args: &Args, budget: Budget, stopping: CancellationToken) -> anyhow::Result<Self> {
        let platform = tokio::select! {
            found = Platform::find(args) => found?,
            () = stopping.cancelled() => bail!("it was told to stop"),
        };
        Self::on(platform, args, budget, stopping).await
    }

    async fn on(platform: Platform, args: &Args, budget: Budget, stopping: CancellationToken) -> anyhow::Result<Self> {
        let listed = args.services.as_deref().map_or_else(|| Ok(Listed::default()), Listed::read)?;
        let rules = Arc::new(Rules::new(args.access.as_deref())?);
        let ca = Ca::open_or_create(&args.state_dir, &args.trust_domain)?;
        let (credentials, svid) = Credentials::new(&ca)?;
        let store = Store::open(&args.state_dir, &args.trust_domain)?;
        let (ca, credentials) = (Arc::new(ca), Arc::new(credentials));
        let backup = platform.backup();
        let on_platform = platform.start(&ca, &credentials, &rules, &store, stopping.clone()).await?;
        let (saved, hosts) = store.load()?;
        let claims = Claims::new(listed.claims, listed.unlisted, saved.pinned).with_unlisted_of(listed.unlisted_of);
        // After that: from here on, sidecars have a limited time to announce themselves.
        let directory = Directory::new(args.trust_domain.clone(), listed.visibility, claims, hosts);
        if let Some(mesh) = listed.mesh {
            directory.await_all(mesh);
        }
        directory.set_methods(&rules.methods().borrow());
        #[cfg(feature = "kubernetes")]
        {
            let directory = Arc::clone(&directory);
            rules.set_followers(move |methods| directory.reach(methods));
        }
        if let Some(cluster) = &on_platform.cluster {
            directory.own(rules.changes().borrow().contracts());
            take_contracts(cluster, &directory);
        }
        Ok(Self {
            ca,
            credentials,
            svid,
            state_dir: args.state_dir.clone(),
            directory,
            rules,
            on_platform,
            stopping,
            store: Arc::new(store),
            backup,
            budget,
            access: dashboard::Access { hosts: args.dashboard_host.clone(), remote_spans: args.remote_spans },
            grpc: listen(args.listen, "--listen").await?,
            dashboard: listen(args.dashboard, "--dashboard").await?,
        })
    }

    /// In a cluster that a test makes.
    #[cfg(test)]
    pub(crate) fn in_cluster(self, cluster: Arc<Cluster>) -> Self {
        Self { on_platform: Started { cluster: Some(cluster), ..self.on_platform }, ..self }
    }

    #[cfg(test)]
    pub(crate) fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.grpc.local_addr().unwrap(), self.dashboard.local_addr().unwrap())
    }

    /// Serves until `stop` is cancelled; then requests and streams have [`limits::CONTROL_STOP`] to end.
    pub(crate) async fn serve(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self {
            ca,
            credentials,
            svid,
            state_dir,
            directory,
            rules,
            on_platform: Started { cluster, beside, at_last },
            stopping,
            store,
            backup,
            budget,
            access,
            grpc,
            dashboard,
        } = self;
        tracing::info!(
            trust_domain = %ca.trust_domain(),
            grpc = %grpc.local_addr()?,
            dashboard = %dashboard.local_addr()?,
            "ready"
        );
        let traces = Arc::new(traces::Store::new());
        let shown = dashboard::Dashboard::new(traces, Arc::clone(&directory) as Arc<dyn dashboard::Catalog>);
        let shown = shown.with_access(access);
        let parts = grpc::Parts {
            ca: Arc::clone(&ca),
            credentials: Arc::clone(&credentials),
            directory: Arc::clone(&directory),
            rules: Arc::clone(&rules),
            cluster: cluster.clone(),
        };
        let servers = async {
            let dashboard = dashboard::serve(dashboard, shown, stopping.clone().cancelled_owned());
            let dashboard = async { dashboard.await.context("the dashboard failed") };
            let grpc = grpc::serve(grpc, parts, budget, stopping.clone());
            let grpc = async { grpc.await.context("the gRPC port failed") };
            tokio::try_join!(grpc, dashboard, beside).map(|_| ())
        };
        let time_limit = async {
            stop.cancelled().await;
            tracing::info!("stopping");
            // First of all: streams that end now end because of the stop, and not because of their members.
            directory.freeze();
            stopping.cancel();
            tokio::time::sleep(limits::CONTROL_STOP).await;
            tracing::warn!(within = ?limits::CONTROL_STOP, "not all connections ended in time");
        };
        let upkeep = async {
            tokio::join!(
                directory.tick_for_ever(),
                credentials.keep_fresh(&ca, svid, &state_dir),
                rules.keep(),
                follow_methods(&rules, &directory),
                forget_services(&cluster, &directory),
                keep_contracts(&cluster, &rules, &directory),
            );
        };
        // A task of its own, so that it is not dropped while it writes.
        let last = CancellationToken::new();
        let keeping = tokio::spawn(keep_claims(Arc::clone(&directory), store, backup, last.clone()));
        let result = tokio::select! {
            result = servers => result,
            () = time_limit => Ok(()),
            () = upkeep => Ok(()),
        };
        last.cancel();
        kept(keeping).await;
        at_last.await;
        result?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// The directory takes what MethodPolicies say whenever it changes. Never ends.
async fn follow_methods(rules: &Rules, directory: &Directory) {
    let mut methods = rules.methods();
    methods.mark_changed();
    while methods.changed().await.is_ok() {
        let now = Arc::clone(&methods.borrow_and_update());
        directory.set_methods(&now);
    }
}

/// What belongs to a Service of the cluster is released when that is gone. Never ends.
async fn forget_services(cluster: &Option<Arc<Cluster>>, directory: &Directory) {
    let Some(cluster) = cluster else { return std::future::pending().await };
    loop {
        // Nothing is given to a Service that is gone because of its annotation.
        take_contracts(cluster, directory);
        directory.release_all_of(|service| !cluster.workloads.has_service(service));
        cluster.workloads.services_are_gone().await;
    }
}

/// What the owners of the mesh and of namespaces say of contracts holds. Whoever changes it all the time is listened to now
/// and then. Never ends.
async fn keep_contracts(cluster: &Option<Arc<Cluster>>, rules: &Rules, directory: &Directory) {
    let Some(cluster) = cluster else { return std::future::pending().await };
    let mut changes = rules.changes();
    loop {
        let current = Arc::clone(&changes.borrow_and_update());
        directory.own(current.contracts());
        take_contracts(cluster, directory);
        let changed = async {
            tokio::select! {
                () = cluster.workloads.contracts_have_changed() => {}
                // It lives as long as the control plane.
                _ = changes.changed() => {}
            }
        };
        tokio::join!(changed, tokio::time::sleep(CONTRACTS_PAUSE));
    }
}

fn take_contracts(cluster: &Cluster, directory: &Directory) {
    for (namespace, chosen) in cluster.workloads.take_contracts() {
        directory.choose(&namespace, chosen);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use clap::Parser;
    use tokio::time::timeout;

    use super::{keeping::elsewhere, *};

    #[derive(Parser)]
    struct OfTest {
        #[command(flatten)]
        args: Args,
    }

    /// Otherwise the mesh's owner can no longer change who may call, while members have the control plane read what they send.
    #[test]
    fn work_of_members_does_not_hold_up_the_control_planes_own() {
        let runtime = runtime().unwrap();
        let mut gates = Vec::new();
        for _ in 0..WORK_OF_MEMBERS + WORK_OF_WEBHOOK {
            let (gate, opened) = mpsc::channel::<()>();
            gates.push(gate);
            runtime.spawn_blocking(move || opened.recv());
        }
        let own = async { timeout(Duration::from_secs(60), elsewhere(|| Ok(()))).await };
        let done = runtime.block_on(own);
        drop(gates);
        done.expect("all threads are busy with others' work").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_does_not_stop_the_stop() {
        timeout(2 * limits::CONTROL_STOP, kept(tokio::spawn(std::future::pending()))).await.unwrap();
    }
    /// Otherwise a control plane whose API server is away is killed when its pod ends.
    #[tokio::test(start_paused = true)]
    async fn it_stops_when_told_while_it_waits_for_its_cluster() {
        tls::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().to_str().unwrap();
        let flags = ["control", "--state-dir", state, "--listen", "127.0.0.1:0", "--dashboard", "127.0.0.1:0"];
        let args = OfTest::parse_from(flags).args;
        let never = Platform::Made(Box::pin(std::future::pending()));
        let told = tokio::time::sleep(Duration::from_secs(1));
        let stopping = CancellationToken::new();
        let bind = ControlPlane::on(never, &args, Budget::of_files(1 << 20), stopping.clone());
        let living = live(bind, told, stopping);
        timeout(Duration::from_secs(2), living).await.expect("it waits on").unwrap();
        // It has bound nothing yet: its time in which sidecars announce themselves has not begun.
        let known = Platform::Made(Box::pin(tokio::time::sleep(Duration::from_secs(3600))));
        let before = tokio::time::Instant::now();
        let bound = ControlPlane::on(known, &args, Budget::of_files(1 << 20), CancellationToken::new()).await.unwrap();
        assert!(before.elapsed() >= Duration::from_secs(3600));
        let stop = CancellationToken::new();
        stop.cancel();
        bound.serve(stop).await.unwrap();
    }
}
