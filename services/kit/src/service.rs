//! A service's life: start, answer, stop.

use std::{io, net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use axum::{http::header::CONTENT_TYPE, routing::get};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_stream::StreamExt;
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};
use weft_mesh::limits;

use crate::{
    Channel, Dependency, Settings, health::Health, inbound::InboundLayer, metrics::Metrics, settings::SettingsError,
    telemetry,
};

/// How long running calls may still take when the service is told to stop.
pub const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How long the accept loop pauses after an error, such as a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a service did not start, or ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A variable of the environment is missing or wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The address can't be listened on.
    #[error("can't listen on {address} (from WEFT_LISTEN or PORT): {source}")]
    Listen {
        /// As it was given.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The contracts can't be read.
    #[error("the service's contracts are not a serialized descriptor set: {0}")]
    Contracts(#[from] prost::DecodeError),
    /// The contracts can't be told by server reflection.
    #[error("the service's contracts can't be told: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The name of a dependency is not valid.
    #[error("`{0}` can't be the name of a service to depend on")]
    DependencyName(String),
    /// Logs or traces could not be set up.
    #[error("{0}")]
    Telemetry(String),
    /// The service's own code failed at its start.
    #[error("{0:#}")]
    Service(anyhow::Error),
    /// The server ended by itself.
    #[error("the server ended: {0}")]
    Server(String),
    /// The system refused threads or signal handlers.
    #[error("can't start: {0}")]
    Runtime(#[from] io::Error),
}

/// A service before its start: its name, its contracts, its dependencies.
#[must_use = "a service does nothing until it is served"]
pub struct Service {
    name: String,
    contracts: &'static [u8],
    implements: &'static [&'static str],
    depends_on: Vec<String>,
    dependencies: Vec<Dependency>,
    stop_limit: Duration,
}

/// What a service's code gets at its start. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    name: Arc<str>,
    channel: Channel,
    health: Health,
    metrics: Metrics,
    stopping: Stopping,
}

impl Context {
    /// The service's name in the mesh.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The channel to every contract of the mesh.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The service's health, which its own code can change.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// The service's metrics, to which its own code can add.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Tells when the service must stop: for streams that have no end of their own, and for tasks.
    pub fn stopping(&self) -> Stopping {
        self.stopping.clone()
    }
}

/// Tells when the service must stop.
#[derive(Clone)]
pub struct Stopping(watch::Receiver<bool>);

impl Stopping {
    /// One that never tells to stop: for tests of code that takes a [`Stopping`].
    pub fn never() -> Self {
        Self(watch::channel(false).1)
    }

    /// Whether the service has been told to stop.
    pub fn is_stopping(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the service is told to stop.
    pub async fn wait(&mut self) {
        // The sender tells before it is dropped. If it is gone without that, nobody ever will.
        if self.0.wait_for(|is_stopping| *is_stopping).await.is_err() {
            std::future::pending().await
        }
    }
}

impl Service {
    /// A service with this name. If it is deployed under another name, `WEFT_SERVICE` gives that one.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            contracts: &[],
            implements: &[],
            depends_on: Vec::new(),
            dependencies: Vec::new(),
            stop_limit: STOP_LIMIT,
        }
    }

    /// The contracts that it implements and calls, as a serialized `FileDescriptorSet`: the names of methods in its
    /// metrics and spans come from there.
    pub fn contracts(self, descriptor_set: &'static [u8]) -> Self {
        Self { contracts: descriptor_set, ..self }
    }

    /// The names of the contracts that it implements, which it tells to who asks by gRPC server reflection: a sidecar that
    /// is not given the service's contracts. Their options come along.
    pub fn implements(self, names: &'static [&'static str]) -> Self {
        Self { implements: names, ..self }
    }

    /// Adds another service of the mesh (`auth` or `auth.shop`), whose health is watched and shown. Its failure does
    /// not take this service down.
    pub fn depends_on(mut self, service: &str) -> Self {
        self.depends_on.push(service.to_owned());
        self
    }

    /// Adds any other dependency.
    pub fn dependency(mut self, dependency: Dependency) -> Self {
        self.dependencies.push(dependency);
        self
    }

    /// How long running calls may take when the service stops; the default is [`STOP_LIMIT`].
    pub fn stop_within(self, limit: Duration) -> Self {
        Self { stop_limit: limit, ..self }
    }

    /// Runs the service until SIGTERM or SIGINT: the whole of a `main`. `make` builds its gRPC services.
    ///
    /// If the start fails, the reason is one line on stderr, and the exit code is that of a failure.
    pub fn serve<F, Fut>(self, make: F) -> ExitCode
    where
        F: FnOnce(Context) -> Fut,
        Fut: Future<Output = anyhow::Result<Routes>>,
    {
        let name = self.name.clone();
        match self.run(make) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // Makes one line of an error that has several.
                let line = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
                eprintln!("{name}: {line}");
                ExitCode::FAILURE
            }
        }
    }

    fn run<F, Fut>(self, make: F) -> Result<(), StartError>
    where
        F: FnOnce(Context) -> Fut,
        Fut: Future<Output = anyhow::Result<Routes>>,
    {
        let settings = Settings::from_env()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let name = settings.service.clone().unwrap_or_else(|| self.name.clone());
        let telemetry = telemetry::start(&name, &settings).map_err(StartError::Telemetry)?;
        let outcome = runtime.block_on(async {
            // Before the start, so that a signal during the start is not lost.
            let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            let mut running = self.start(settings, make).await?;
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                error = running.ended() => return Err(error),
            }
            running.stop().await;
            Ok(())
        });
        // Tasks that still run have had their time.
        runtime.shutdown_timeout(Duration::from_millis(100));
        drop(telemetry);
        outcome
    }

    /// Starts the service inside an existing runtime: for tests, and for processes that are more than a service. Sets
    /// up neither logs nor traces, and waits for no signal.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start<F, Fut>(self, settings: Settings, make: F) -> Result<Running, StartError>
    where
        F: FnOnce(Context) -> Fut,
        Fut: Future<Output = anyhow::Result<Routes>>,
    {
        let name = settings.service.clone().unwrap_or(self.name);
        let listen = |source| StartError::Listen { address: settings.listen, source };
        let listener = TcpListener::bind(settings.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;

        let metrics = Metrics::new(&name, self.contracts)?;
        let channel = Channel::new(settings.outbound.clone(), metrics.clone());
        let mut dependencies = self.dependencies;
        for service in self.depends_on {
            match channel.to_service(&service) {
                Ok(channel) => dependencies.push(Dependency::service(&service, channel)),
                Err(_) => return Err(StartError::DependencyName(service)),
            }
        }
        let health = Health::new(&dependencies).await;
        let (stop, stopping) = watch::channel(false);
        let context = Context {
            name: name.as_str().into(),
            channel,
            health: health.clone(),
            metrics: metrics.clone(),
            stopping: Stopping(stopping),
        };

        let mut routes = make(context.clone()).await.map_err(StartError::Service)?;
        if !self.implements.is_empty() {
            routes = routes.add_service(told(self.contracts, self.implements)?);
        }
        let full_name = format!("{name}.{}", settings.namespace);
        let server = tokio::spawn(answer(listener, routes, &context, &full_name));
        let mut checks = JoinSet::new();
        for dependency in dependencies {
            checks.spawn(health.clone().watch(dependency, metrics.clone()));
        }
        health.set_up().await;
        tracing::info!(%address, outbound = %settings.outbound, "{name} is ready");
        Ok(Running { address, context, stop, server, checks, stop_limit: self.stop_limit })
    }
}

/// Tells these contracts to who asks for them. The files are sent as they are, with options that this program does not know.
fn told(
    contracts: &'static [u8],
    implements: &[&str],
) -> Result<ServerReflectionServer<impl ServerReflection>, tonic_reflection::server::Error> {
    let all = tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(contracts);
    implements.iter().fold(all, |some, name| some.with_service_name(*name)).build_v1()
}

/// The server's future: it answers until it is told to stop, and then until the last connection has ended.
fn answer(
    listener: TcpListener,
    routes: Routes,
    context: &Context,
    full_name: &str,
) -> impl Future<Output = Result<(), tonic::transport::Error>> + use<> {
    let metrics = context.metrics.clone();
    let page =
        get(move || async move { ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0")], metrics.text()) });
    let routes = Routes::from(routes.into_axum_router().route("/metrics", page)).add_service(context.health.server());
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).then(|connection| async {
        if let Err(error) = &connection {
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        connection
    });
    let mut stopping = context.stopping();
    Server::builder()
        // For /metrics: a browser and Prometheus speak HTTP/1.1.
        .accept_http1(true)
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(limits::HEADER_LIST_BYTES)
        .layer(InboundLayer::new(full_name, context.metrics.clone()))
        .add_routes(routes.prepare())
        .serve_with_incoming_shutdown(incoming, async move { stopping.wait().await })
}

/// A running service.
pub struct Running {
    address: SocketAddr,
    context: Context,
    stop: watch::Sender<bool>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    checks: JoinSet<()>,
    stop_limit: Duration,
}

impl Running {
    /// The address it answers at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its own code got at the start.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Waits for the server to end, which without a stop happens only if something is broken.
    async fn ended(&mut self) -> StartError {
        match (&mut self.server).await {
            Ok(Ok(())) => StartError::Server("it stopped accepting".to_owned()),
            Ok(Err(error)) => StartError::Server(error.to_string()),
            Err(error) => StartError::Server(error.to_string()),
        }
    }

    /// Stops: reports `NOT_SERVING`, accepts no new connections, sends GOAWAY on the existing ones, and waits for
    /// running calls within the limit.
    pub async fn stop(mut self) {
        tracing::info!("{} is stopping", self.context.name);
        self.context.health.set_stopping().await;
        self.stop.send_replace(true);
        match tokio::time::timeout(self.stop_limit, &mut self.server).await {
            Ok(Ok(Ok(()))) => tracing::info!("{} has stopped", self.context.name),
            Ok(Ok(Err(error))) => tracing::error!(%error, "the server failed while stopping"),
            Ok(Err(error)) => tracing::error!(%error, "the server failed while stopping"),
            Err(_) => tracing::warn!(limit = ?self.stop_limit, "calls were still running at the limit"),
        }
        self.server.abort();
        self.checks.shutdown().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.server.abort();
    }
}
