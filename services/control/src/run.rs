//! From start to stop.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use weft_mesh::{limits, telemetry, tls, tls::Svid};

use crate::{
    Args, TokenArgs, ca::Ca, credentials::Credentials, dashboard, directory::Directory, grpc, join_token, traces::Store,
};

/// For what does not end by itself when the runtime is taken down.
const RUNTIME_STOP: Duration = Duration::from_millis(200);

/// Runs the control plane until SIGTERM or SIGINT. Blocks: it has a runtime of its own, on this thread.
///
/// # Errors
/// The state folder is unusable, or a port is taken.
pub fn run(args: Args) -> anyhow::Result<()> {
    tls::install_crypto_provider();
    telemetry::init_logging(args.log_format)?;
    log_panics();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .context("no runtime could be made")?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let control_plane = ControlPlane::bind(&args).await?;
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
    let ca = Ca::open_or_create(&args.state_dir, &args.trust_domain)?;
    Ok(join_token::issue(&ca, &id, args.ttl)?)
}

/// A panic in a task is caught by the runtime: the log must say so.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(%panic, %backtrace, "a task panicked");
    }));
}

/// A control plane whose ports are bound.
pub(crate) struct ControlPlane {
    ca: Arc<Ca>,
    credentials: Arc<Credentials>,
    svid: Svid,
    state_dir: PathBuf,
    grpc: TcpListener,
    dashboard: TcpListener,
}

impl ControlPlane {
    pub(crate) async fn bind(args: &Args) -> anyhow::Result<Self> {
        let ca = Ca::open_or_create(&args.state_dir, &args.trust_domain)?;
        let (credentials, svid) = Credentials::new(&ca)?;
        let listen = async |address: SocketAddr, flag: &str| {
            TcpListener::bind(address).await.with_context(|| format!("can't listen on {address} ({flag})"))
        };
        Ok(Self {
            ca: Arc::new(ca),
            credentials: Arc::new(credentials),
            svid,
            state_dir: args.state_dir.clone(),
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
        let Self { ca, credentials, svid, state_dir, grpc, dashboard } = self;
        let directory = Directory::new();
        tracing::info!(
            trust_domain = %ca.trust_domain(),
            grpc = %grpc.local_addr()?,
            dashboard = %dashboard.local_addr()?,
            "ready"
        );
        let stopping = CancellationToken::new();
        let state =
            dashboard::State::new(Arc::new(Store::new()), Arc::clone(&directory) as Arc<dyn dashboard::Catalog>);
        let servers = async {
            let dashboard = dashboard::serve(dashboard, state, stopping.clone().cancelled_owned());
            let dashboard = async { dashboard.await.context("the dashboard failed") };
            let grpc =
                grpc::serve(grpc, Arc::clone(&ca), Arc::clone(&credentials), Arc::clone(&directory), stopping.clone());
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
        tokio::select! {
            result = servers => result?,
            () = time_limit => {}
            () = upkeep => {}
        }
        tracing::info!("stopped");
        Ok(())
    }
}
