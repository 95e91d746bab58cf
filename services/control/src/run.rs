//! From start to stop.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use weft_mesh::{limits, telemetry, tls, tls::Svid};

use crate::{
    Args, ReleaseArgs, StateArgs, TokenArgs,
    authority::{ca::Ca, credentials::Credentials, join_token},
    claims::{
        Claims, Contest, Saved,
        file::Listed,
        store::{ClaimsError, Store},
    },
    dashboard,
    directory::Directory,
    grpc::{self, admission::Budget},
    traces,
};

/// How soon a released claim is seen.
const RELEASES_POLL: Duration = Duration::from_secs(1);
/// The store is written no more often than that, however often claims change.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// For what does not end by itself when the runtime is taken down.
const RUNTIME_STOP: Duration = Duration::from_millis(200);

/// Runs the control plane until SIGTERM or SIGINT. Blocks: it has a runtime of its own, on this thread.
///
/// # Errors
/// The state folder is unusable, or a port is taken.
pub fn run(args: Args) -> anyhow::Result<()> {
    tls::install_crypto_provider();
    telemetry::init_logging(args.log_format)?;
    let _flushes = telemetry::FlushLog;
    let budget = Budget::of_files(raise_file_limit());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .context("no runtime could be made")?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let control_plane = ControlPlane::bind(&args, budget).await?;
        let mut serving = std::pin::pin!(control_plane.serve(stop.clone()));
        tokio::select! {
            result = &mut serving => return result,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
        serving.await
    });
    runtime.shutdown_timeout(RUNTIME_STOP);
    result
}

/// Makes a join token.
///
/// # Errors
/// There is no CA in the folder, or it is not of this trust domain.
pub fn token(args: &TokenArgs) -> anyhow::Result<String> {
    tls::install_crypto_provider();
    let id = args.spiffe_id()?;
    // A token of a CA made just now would be good for nothing, and hide a misspelt folder.
    anyhow::ensure!(
        Ca::is_in(&args.state_dir),
        "no CA in {}: start the control plane there first, or name its folder with --state-dir",
        args.state_dir.display()
    );
    anyhow::ensure!(
        args.address.len() <= limits::HOSTS_PER_TOKEN,
        "--address: found {} addresses; allowed: up to {}",
        args.address.len(),
        limits::HOSTS_PER_TOKEN
    );
    let ca = Ca::open_or_create(&args.state_dir, &args.trust_domain)?;
    Ok(join_token::issue_for(&ca, &id, &args.address, args.ttl)?)
}

/// Has a pinned claim given up, and says so.
///
/// # Errors
/// There is no CA in the folder, or the claim is not pinned.
pub fn release(args: &ReleaseArgs) -> anyhow::Result<String> {
    let owner = store(&args.of)?.release(&args.claim)?;
    Ok(format!(
        "{} is released; it was pinned to {owner}. The control plane takes it up within seconds, or when it starts.",
        args.claim
    ))
}

/// What is pinned and what is contested, a line each.
///
/// # Errors
/// There is no CA in the folder, or its claims can't be read.
pub fn claims_kept(args: &StateArgs) -> anyhow::Result<String> {
    let store = store(args)?;
    let (saved, _) = store.load()?;
    let pinned = saved.pinned.iter().map(|(claim, owner)| format!("{claim} is pinned to {}", store.id(owner)));
    let lines = pinned.chain(contested(&store, &saved));
    Ok(lines.map(|line| line + "\n").collect())
}

/// The claims that were refused when the control plane of a folder ran last, or runs now, a line each. None where no
/// control plane has run.
///
/// # Errors
/// Its claims can't be read.
pub fn contests_kept(args: &StateArgs) -> anyhow::Result<Vec<String>> {
    if !Ca::is_in(&args.state_dir) {
        return Ok(Vec::new());
    }
    let store = store(args)?;
    let (saved, _) = store.load()?;
    Ok(contested(&store, &saved).collect())
}

fn contested(store: &Store, saved: &Saved) -> impl Iterator<Item = String> {
    saved.contests.iter().map(|Contest { claim, owner, claimant }| {
        format!("{claim} is contested: it belongs to {}, and was refused to {}", store.id(owner), store.id(claimant))
    })
}

fn store(args: &StateArgs) -> anyhow::Result<Store> {
    anyhow::ensure!(
        Ca::is_in(&args.state_dir),
        "no control plane keeps its state in {}: name its folder with --state-dir",
        args.state_dir.display()
    );
    Ok(Store::open(&args.state_dir, &args.trust_domain)?)
}

/// Each connection is an open file, and the usual limit is made for programs with few: takes as many as it may. Returns
/// how many those are.
fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(?limit, %error, "open files, and so connections, are limited");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// A control plane whose ports are bound.
pub(crate) struct ControlPlane {
    ca: Arc<Ca>,
    credentials: Arc<Credentials>,
    svid: Svid,
    state_dir: PathBuf,
    directory: Arc<Directory>,
    store: Arc<Store>,
    budget: Budget,
    access: dashboard::Access,
    grpc: TcpListener,
    dashboard: TcpListener,
}

impl ControlPlane {
    pub(crate) async fn bind(args: &Args, budget: Budget) -> anyhow::Result<Self> {
        let listed = args.services.as_deref().map_or_else(|| Ok(Listed::default()), Listed::read)?;
        let ca = Ca::open_or_create(&args.state_dir, &args.trust_domain)?;
        let (credentials, svid) = Credentials::new(&ca)?;
        let store = Store::open(&args.state_dir, &args.trust_domain)?;
        let (saved, hosts) = store.load()?;
        let claims = Claims::new(listed.claims, listed.unlisted, saved.pinned);
        let directory = Directory::new(args.trust_domain.clone(), listed.visibility, claims, hosts);
        if let Some(mesh) = listed.mesh {
            directory.await_all(mesh);
        }
        let listen = async |address: SocketAddr, flag: &str| {
            TcpListener::bind(address).await.with_context(|| format!("can't listen on {address} ({flag})"))
        };
        Ok(Self {
            ca: Arc::new(ca),
            credentials: Arc::new(credentials),
            svid,
            state_dir: args.state_dir.clone(),
            directory,
            store: Arc::new(store),
            budget,
            access: dashboard::Access { hosts: args.dashboard_host.clone(), remote_spans: args.remote_spans },
            grpc: listen(args.listen, "--listen").await?,
            dashboard: listen(args.dashboard, "--dashboard").await?,
        })
    }

    #[cfg(test)]
    pub(crate) fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.grpc.local_addr().unwrap(), self.dashboard.local_addr().unwrap())
    }

    /// Serves until `stop` is cancelled; then what is under way may end within [`limits::CONTROL_STOP`].
    pub(crate) async fn serve(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { ca, credentials, svid, state_dir, directory, store, budget, access, grpc, dashboard } = self;
        tracing::info!(
            trust_domain = %ca.trust_domain(),
            grpc = %grpc.local_addr()?,
            dashboard = %dashboard.local_addr()?,
            "ready"
        );
        let stopping = CancellationToken::new();
        let traces = Arc::new(traces::Store::new());
        let state = dashboard::State::new(traces, Arc::clone(&directory) as Arc<dyn dashboard::Catalog>);
        let state = state.with_access(access);
        let servers = async {
            let dashboard = dashboard::serve(dashboard, state, stopping.clone().cancelled_owned());
            let dashboard = async { dashboard.await.context("the dashboard failed") };
            let (ca, credentials, directory) = (Arc::clone(&ca), Arc::clone(&credentials), Arc::clone(&directory));
            let grpc = grpc::serve(grpc, ca, credentials, directory, budget, stopping.clone());
            let grpc = async { grpc.await.context("the gRPC port failed") };
            tokio::try_join!(grpc, dashboard).map(|_| ())
        };
        let time_limit = async {
            stop.cancelled().await;
            tracing::info!("stopping");
            // First of all: what ends now ends because of us, and says nothing about the members.
            directory.freeze();
            stopping.cancel();
            tokio::time::sleep(limits::CONTROL_STOP).await;
            tracing::warn!(within = ?limits::CONTROL_STOP, "not everything ended in time");
        };
        let upkeep = async {
            tokio::join!(directory.tick_for_ever(), credentials.keep_fresh(&ca, svid, &state_dir));
        };
        // A task of its own, which is not dropped while it writes.
        let last = CancellationToken::new();
        let keeping = tokio::spawn(keep_claims(Arc::clone(&directory), store, last.clone()));
        let result = tokio::select! {
            result = servers => result,
            () = time_limit => Ok(()),
            () = upkeep => Ok(()),
        };
        last.cancel();
        if let Err(error) = keeping.await {
            tracing::error!(%error, "claims are no longer kept");
        }
        result?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Writes claims to the store as they change, and takes up those that are released there, until `last` is cancelled: then
/// it writes what came in since, and ends.
async fn keep_claims(directory: Arc<Directory>, store: Arc<Store>, last: CancellationToken) {
    while !last.is_cancelled() {
        let reading = Arc::clone(&store);
        match elsewhere(move || reading.to_release()).await {
            Ok(released) if !released.is_empty() => {
                directory.release(&released);
                let clearing = Arc::clone(&store);
                // Until what follows is kept they are told again.
                if keep(&directory, &store).await
                    && let Err(error) = elsewhere(move || clearing.released()).await
                {
                    tracing::error!(%error, "released claims can't be taken off the list");
                }
            }
            Ok(_) => drop(keep(&directory, &store).await),
            Err(error) => tracing::error!(%error, "released claims can't be read"),
        }
        let pause = async {
            tokio::time::sleep(STORE_PAUSE).await;
            let _ = tokio::time::timeout(RELEASES_POLL, directory.has_to_keep()).await;
        };
        tokio::select! {
            () = pause => {}
            () = last.cancelled() => {}
        }
    }
    keep(&directory, &store).await;
}

/// Writes what changed; false when it could not be written.
async fn keep(directory: &Directory, store: &Arc<Store>) -> bool {
    let Some((saved, hosts)) = directory.take_changes() else { return true };
    let writing = Arc::clone(store);
    let kept = elsewhere(move || writing.save(&saved, &hosts)).await;
    if let Err(error) = &kept {
        tracing::error!(%error, "claims can't be kept: after a restart they are whoever's is first");
        directory.keep_again();
    }
    kept.is_ok()
}

/// Does what waits for a disk beside what others ask for.
async fn elsewhere<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, ClaimsError> + Send + 'static,
) -> Result<T, ClaimsError> {
    match tokio::task::spawn_blocking(act).await {
        Ok(result) => result,
        // It panicked, which is logged; nothing here is half-done.
        Err(error) => Err(ClaimsError::Content { file: "the store".to_owned(), why: error.to_string() }),
    }
}
