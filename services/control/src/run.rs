//! The life of the control plane, and the commands on its state folder.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use weft_mesh::{limits, names::ServiceName, telemetry, tls, tls::Svid};

use crate::{
    Args, ReleaseArgs, StateArgs, TokenArgs,
    authority::{ca::Ca, credentials::Credentials, join_token},
    claims::{
        Claims, Contest, Saved,
        file::Listed,
        is_address,
        store::{ClaimsError, Store},
    },
    dashboard,
    directory::Directory,
    grpc::{self, admission::Budget},
    rules::Rules,
    traces,
};

/// How often released and granted claims are looked for, after [`STORE_PAUSE`]. The start of `weft up` waits for grants.
const ORDERS_POLL: Duration = Duration::from_millis(100);
/// The shortest time between two writes of the store, however often claims change.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// The time for tasks to end when the runtime shuts down.
const RUNTIME_STOP: Duration = Duration::from_millis(200);
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

/// One thread that serves, and threads for slow work: enough that the control plane's own work never waits for that of
/// members.
fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(WORK_OF_MEMBERS + OWN_WORK)
        .build()
        .context("no runtime could be made")
}

/// Makes a join token.
///
/// # Errors
/// There is no CA in the folder, or it belongs to another trust domain.
pub fn token(args: &TokenArgs) -> anyhow::Result<String> {
    tls::install_crypto_provider();
    let id = args.spiffe_id()?;
    // A token of a new CA would be useless, and making one would hide a misspelt folder.
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

/// Releases a pinned claim. Returns a message for people.
///
/// # Errors
/// There is no CA in the folder, or the claim is not pinned.
pub fn release(args: &ReleaseArgs) -> anyhow::Result<String> {
    let owner = store(&args.of)?.release(&args.claim)?;
    Ok(format!(
        "{} is released; it was pinned to {owner}. The control plane sees this within seconds, or when it starts.",
        args.claim
    ))
}

/// Grants contracts to a service: the running control plane pins them to its identity, unless another has them. Then
/// [`are_pinned_to`] says so. Blocks while another process holds the lock of the state folder.
///
/// # Errors
/// A name is not that of a contract, there is no CA in the folder, or it cannot be written.
pub fn grant_contracts(args: &StateArgs, service: &ServiceName, contracts: &[String]) -> anyhow::Result<()> {
    Ok(store(args)?.grant(service, contracts)?)
}

/// Whether all these contracts are pinned to a service.
///
/// # Errors
/// There is no CA in the folder, or its claims can't be read.
pub fn are_pinned_to(args: &StateArgs, service: &ServiceName, contracts: &[String]) -> anyhow::Result<bool> {
    let (saved, _) = store(args)?.load()?;
    Ok(contracts.iter().all(|contract| saved.pinned.get(contract) == Some(service)))
}

/// Forgets which contracts are pinned, and which were granted but not pinned yet, so that the next control plane pins
/// them anew. Does nothing to addresses, or if no control plane has run. Only for while none runs: a running one would
/// pin them again.
///
/// # Errors
/// Its claims can't be read or written.
pub fn forget_contracts(args: &StateArgs) -> anyhow::Result<()> {
    let store = store(args)?;
    let (mut saved, hosts) = store.load()?;
    saved.pinned.retain(|claim, _| is_address(claim));
    store.forget_grants()?;
    Ok(store.save(&saved, &hosts)?)
}

/// The claims that are pinned and those that are contested, one line each.
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

/// The claims that were refused by the control plane of a folder, one line each: by the running one or else the last
/// one. Empty if none has run.
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

/// A control plane whose ports are bound.
pub(crate) struct ControlPlane {
    ca: Arc<Ca>,
    credentials: Arc<Credentials>,
    svid: Svid,
    state_dir: PathBuf,
    directory: Arc<Directory>,
    rules: Arc<Rules>,
    store: Arc<Store>,
    budget: Budget,
    access: dashboard::Access,
    grpc: TcpListener,
    dashboard: TcpListener,
}

impl ControlPlane {
    pub(crate) async fn bind(args: &Args, budget: Budget) -> anyhow::Result<Self> {
        let listed = args.services.as_deref().map_or_else(|| Ok(Listed::default()), Listed::read)?;
        let rules = Rules::new(args.access.as_deref())?;
        let ca = Ca::open_or_create(&args.state_dir, &args.trust_domain)?;
        let (credentials, svid) = Credentials::new(&ca)?;
        let store = Store::open(&args.state_dir, &args.trust_domain)?;
        let (saved, hosts) = store.load()?;
        let claims = Claims::new(listed.claims, listed.unlisted, saved.pinned).with_unlisted_of(listed.unlisted_of);
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
            rules: Arc::new(rules),
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

    /// Serves until `stop` is cancelled; then requests and streams have [`limits::CONTROL_STOP`] to end.
    pub(crate) async fn serve(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { ca, credentials, svid, state_dir, directory, rules, store, budget, access, grpc, dashboard } = self;
        tracing::info!(
            trust_domain = %ca.trust_domain(),
            grpc = %grpc.local_addr()?,
            dashboard = %dashboard.local_addr()?,
            "ready"
        );
        let stopping = CancellationToken::new();
        let traces = Arc::new(traces::Store::new());
        let shown = dashboard::Dashboard::new(traces, Arc::clone(&directory) as Arc<dyn dashboard::Catalog>);
        let shown = shown.with_access(access);
        let servers = async {
            let dashboard = dashboard::serve(dashboard, shown, stopping.clone().cancelled_owned());
            let dashboard = async { dashboard.await.context("the dashboard failed") };
            let (ca, credentials, directory) = (Arc::clone(&ca), Arc::clone(&credentials), Arc::clone(&directory));
            let grpc = grpc::serve(grpc, ca, credentials, directory, Arc::clone(&rules), budget, stopping.clone());
            let grpc = async { grpc.await.context("the gRPC port failed") };
            tokio::try_join!(grpc, dashboard).map(|_| ())
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
            tokio::join!(directory.tick_for_ever(), credentials.keep_fresh(&ca, svid, &state_dir), rules.keep());
        };
        // A task of its own, so that it is not dropped while it writes.
        let last = CancellationToken::new();
        let keeping = tokio::spawn(keep_claims(Arc::clone(&directory), store, last.clone()));
        let result = tokio::select! {
            result = servers => result,
            () = time_limit => Ok(()),
            () = upkeep => Ok(()),
        };
        last.cancel();
        kept(keeping).await;
        result?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Waits until the last claims are saved, for [`limits::CONTROL_STOP`] at most: a disk may hang.
async fn kept(keeping: JoinHandle<()>) {
    match timeout(limits::CONTROL_STOP, keeping).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "claims are no longer saved"),
        Err(_) => tracing::error!(
            within = ?limits::CONTROL_STOP,
            "the last claims could not be saved in time: after a restart they belong to the first claimant"
        ),
    }
}

/// Saves claims when they change, and handles releases and grants, until `last` is cancelled. Then it saves the last changes and
/// ends.
async fn keep_claims(directory: Arc<Directory>, store: Arc<Store>, last: CancellationToken) {
    while !last.is_cancelled() {
        keep(&directory, &store).await;
        handle(&directory, &store, "released", Store::to_release, Directory::release, Store::released).await;
        handle(&directory, &store, "granted", Store::to_grant, Directory::grant, Store::granted).await;
        let pause = async {
            tokio::time::sleep(STORE_PAUSE).await;
            let _ = tokio::time::timeout(ORDERS_POLL, directory.has_to_keep()).await;
        };
        tokio::select! {
            () = pause => {}
            () = last.cancelled() => {}
        }
    }
    keep(&directory, &store).await;
}

/// Reads a list of claims, and does with them what it is for. They stay on the list until the result is saved.
async fn handle<T: Send + 'static>(
    directory: &Directory,
    store: &Arc<Store>,
    list: &str,
    read: fn(&Store) -> Result<Vec<T>, ClaimsError>,
    act: fn(&Directory, &[T]),
    clear: fn(&Store) -> Result<(), ClaimsError>,
) {
    let reading = Arc::clone(store);
    match elsewhere(move || read(&reading)).await {
        Ok(claims) if !claims.is_empty() => {
            act(directory, &claims);
            let clearing = Arc::clone(store);
            if keep(directory, store).await
                && let Err(error) = elsewhere(move || clear(&clearing)).await
            {
                tracing::error!(%error, "{list} claims can't be removed from the list");
            }
        }
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "{list} claims can't be read"),
    }
}

/// Saves the changes. False if that failed.
async fn keep(directory: &Directory, store: &Arc<Store>) -> bool {
    let Some((saved, hosts)) = directory.take_changes() else { return true };
    let writing = Arc::clone(store);
    let kept = elsewhere(move || writing.save(&saved, &hosts)).await;
    if let Err(error) = &kept {
        tracing::error!(%error, "claims can't be saved: after a restart they belong to the first claimant");
        directory.keep_again();
    }
    kept.is_ok()
}

/// Runs disk operations on another thread, while this one serves requests.
async fn elsewhere<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, ClaimsError> + Send + 'static,
) -> Result<T, ClaimsError> {
    match tokio::task::spawn_blocking(act).await {
        Ok(result) => result,
        // It panicked, which is logged. The files are whole: each is replaced at once.
        Err(error) => Err(ClaimsError::Content { file: "the store".to_owned(), why: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Otherwise the mesh's owner can no longer change who may call, while members have the control plane read what they send.
    #[test]
    fn work_of_members_does_not_hold_up_the_control_planes_own() {
        let runtime = runtime().unwrap();
        let mut gates = Vec::new();
        for _ in 0..WORK_OF_MEMBERS {
            let (gate, opened) = mpsc::channel::<()>();
            gates.push(gate);
            runtime.spawn_blocking(move || opened.recv());
        }
        let own = async { timeout(Duration::from_secs(60), elsewhere(|| Ok(()))).await };
        let done = runtime.block_on(own);
        drop(gates);
        done.expect("all threads are busy with members' work").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_does_not_stop_the_stop() {
        timeout(2 * limits::CONTROL_STOP, kept(tokio::spawn(std::future::pending()))).await.unwrap();
    }
}
