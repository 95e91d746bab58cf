//! The configuration of a sidecar: flags, each with an environment variable.

mod command;
mod probes;
mod settings;

pub use command::{Command, Drain};
pub use probes::Probes;
pub(crate) use probes::{How, HttpProbe, Probe, ProbeKind, path_of};
pub use settings::Given;
pub(crate) use settings::{Origin, Setting};

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use clap::ValueEnum;
use weft_mesh::{
    identity::TrustDomain,
    limits,
    names::{DEFAULT_NAMESPACE, NameError, ServiceName, port},
    telemetry::{ExportTarget, LogFormat},
};

/// The flags of a sidecar.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The name of the local service; without one, the sidecar only carries outgoing calls
    #[arg(long, env = "WEFT_SERVICE", requires = "app")]
    pub service: Option<String>,
    /// The namespace of the local service, and of service names in calls that give none
    #[arg(long, env = "WEFT_NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    pub namespace: String,
    /// The trust domain of the mesh
    #[arg(long, env = "WEFT_TRUST_DOMAIN", default_value = "weft.local")]
    pub trust_domain: TrustDomain,
    /// Where the control plane listens: https://HOST:PORT
    #[arg(long, env = "WEFT_CONTROL_PLANE", default_value = "https://127.0.0.1:15010")]
    pub control_plane: http::Uri,
    /// The root certificates to trust at the start, as PEM
    #[arg(long, env = "WEFT_TRUST_BUNDLE", value_name = "FILE")]
    pub trust_bundle: PathBuf,
    /// The join token, which proves to the control plane who this sidecar is
    #[arg(long, env = "WEFT_JOIN_TOKEN_FILE", value_name = "FILE")]
    pub join_token_file: PathBuf,

    /// Where the local service listens
    #[arg(long, env = "WEFT_APP", value_name = "IP:PORT", requires = "service")]
    pub app: Option<SocketAddr>,
    /// The protocol of the local service
    #[arg(long, env = "WEFT_PROTOCOL", default_value = "grpc")]
    pub protocol: AppProtocol,
    /// The local service speaks HTTP/1.1 and answers CONNECT itself, as forward proxies do. Set this only if the
    /// service reads no more requests from a connection after it has accepted CONNECT; otherwise callers could forge
    /// their identity
    #[arg(long, env = "WEFT_CONNECT")]
    pub connect: bool,
    /// A protocol besides WebSocket to which the local service upgrades connections (the header `Upgrade`); may be
    /// given several times. It must not carry HTTP; otherwise callers could forge their identity
    #[arg(long, env = "WEFT_UPGRADE", value_name = "NAME", value_delimiter = ',', requires = "service")]
    pub upgrade: Vec<UpgradeName>,
    /// The contracts of the local service: a serialized google.protobuf.FileDescriptorSet
    #[arg(long, env = "WEFT_DESCRIPTORS", value_name = "FILE")]
    pub descriptors: Option<PathBuf>,
    /// The contracts that the local service implements [default: all in --descriptors except google.*, grpc.* and
    /// weft.*]
    #[arg(long, env = "WEFT_CONTRACTS", value_name = "NAME", value_delimiter = ',', requires = "descriptors")]
    pub contracts: Vec<String>,
    /// Ask the local service for its contracts by gRPC server reflection, each time it comes up. Nobody may call it before it
    /// has answered
    #[arg(long, env = "WEFT_ASK_CONTRACTS", requires = "service", conflicts_with = "descriptors")]
    pub ask_contracts: bool,
    /// How to check the health of the local service: grpc, tcp, http:/PATH [default: grpc for grpc, tcp for others]
    #[arg(long, env = "WEFT_HEALTH")]
    pub health: Option<HealthCheck>,

    /// Where the sidecar takes calls from the local service
    #[arg(long, env = "WEFT_OUTBOUND_LISTEN", default_value_t = loopback(port::OUTBOUND))]
    pub outbound: SocketAddr,
    /// Where the sidecar takes calls from other sidecars
    #[arg(long, env = "WEFT_INBOUND_LISTEN", default_value_t = everywhere(port::INBOUND))]
    pub inbound: SocketAddr,
    /// A port that leads to one service, for clients that can't name it: all its calls go to that service, and for a TCP
    /// service all its bytes; can be repeated
    #[arg(long, env = "WEFT_FORWARD", value_name = "IP:PORT=SERVICE", value_delimiter = ',')]
    pub forward: Vec<Forward>,
    /// The address at which other sidecars reach this one [default: that of --inbound, or loopback if that is
    /// unspecified]
    #[arg(long, env = "WEFT_ADVERTISE", value_name = "IP:PORT")]
    pub advertise: Option<SocketAddr>,
    /// Where clients that do not know the mesh call the local service [default: the port of --app at the address of
    /// --advertise]
    #[arg(long, env = "WEFT_APP_ADDRESS", value_name = "IP:PORT", requires = "service")]
    pub app_address: Option<SocketAddr>,
    /// A further such address, shared by all replicas of the local service; can be repeated
    #[arg(long, env = "WEFT_VIRTUAL_ADDRESS", value_name = "IP:PORT", value_delimiter = ',', requires = "service")]
    pub virtual_address: Vec<SocketAddr>,
    /// Take connections that the packet filter has redirected to --outbound, by their original destination: see
    /// `weft redirect`
    #[arg(long, env = "WEFT_INTERCEPT")]
    pub intercept: bool,
    /// What happens to redirected connections to addresses outside of the mesh
    #[arg(long, env = "WEFT_OUTSIDE", default_value = "allow")]
    pub outside: Outside,
    /// Where the admin page and API listen
    #[arg(long, env = "WEFT_ADMIN_LISTEN", default_value_t = loopback(port::ADMIN))]
    pub admin: SocketAddr,
    /// Where the metrics and probes listen
    #[arg(long, env = "WEFT_METRICS_LISTEN", default_value_t = everywhere(port::METRICS))]
    pub metrics: SocketAddr,

    /// Probes of the local service's containers that the metrics port makes for the kubelet (/probes/CONTAINER/KIND), as
    /// JSON
    #[arg(long, env = "WEFT_PROBES", value_name = "JSON")]
    pub probes: Option<Probes>,

    /// Where to keep the last good snapshots of discovery [default: nowhere]
    #[arg(long, env = "WEFT_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where to export spans: http://HOST:PORT (OTLP/gRPC) or console; can be repeated
    #[arg(long, env = "WEFT_OTLP", value_delimiter = ',')]
    pub otlp: Vec<ExportTarget>,
    /// The share of new traces to sample, 0 to 1; if the caller has decided, its decision holds
    #[arg(long, env = "WEFT_SAMPLE_RATIO", default_value_t = 0.01)]
    pub sample_ratio: f64,
    /// Threads that carry calls
    #[arg(long, env = "WEFT_WORKERS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub workers: u8,
    /// The longest header list of a call, in bytes as RFC 9113, section 6.5.2 counts them: names, values and 32 for each
    /// field. Set it for the sidecars at both ends of a call
    #[arg(long, env = "WEFT_HEADER_LIST_BYTES", default_value_t = limits::HEADER_LIST_BYTES)]
    #[arg(value_parser = header_list_bytes())]
    pub header_list_bytes: u32,
    /// What all connections together may hold, in bytes: data that was received and not yet forwarded, and data that
    /// waits to be written. Half is for inbound calls, half for outbound calls; a caller, or a callee, may hold as much
    /// of its half as all leave free. Past that, its new calls are refused, and its connections are read later
    #[arg(long, env = "WEFT_MEMORY", value_name = "BYTES", default_value_t = limits::MEMORY_BYTES, value_parser = memory())]
    pub memory: usize,
    /// How to choose an endpoint for a call
    #[arg(long, env = "WEFT_BALANCE", default_value = "p2c")]
    pub balance: Balance,
    /// How long running calls may go on after a signal to stop
    #[arg(long, env = "WEFT_DRAIN_SECONDS", default_value_t = 10)]
    pub drain_seconds: u64,
    /// How long calls that the local service makes may go on after inbound calls have ended, while the service still
    /// runs
    #[arg(long, env = "WEFT_OUTLIVE_SECONDS", default_value_t = 30)]
    pub outlive_seconds: u64,
    /// A Unix socket through which a new sidecar with the same flags replaces this one without losing a call
    #[arg(long, env = "WEFT_TAKEOVER", value_name = "PATH")]
    pub takeover: Option<PathBuf>,
    /// The format of log lines
    #[arg(long, env = "WEFT_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// The range of `--header-list-bytes`: 1 KiB to 16 MiB.
pub fn header_list_bytes() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1_024..=16 * 1_024 * 1_024)
}

/// The range of `--memory`: 16 MiB to 1 TiB.
pub fn memory() -> impl clap::builder::TypedValueParser<Value = usize> {
    use clap::builder::TypedValueParser;
    clap::value_parser!(u64).range(16 * 1_024 * 1_024..=1 << 40).map(|bytes| bytes as usize)
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

/// The protocol of a local service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AppProtocol {
    /// HTTP/2 without TLS: gRPC.
    Grpc,
    /// HTTP/1.1.
    Http1,
    /// Anything else: its bytes are forwarded unchanged.
    Tcp,
}

/// The name of a protocol to which HTTP connections are upgraded and which does not carry HTTP itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpgradeName(String);

impl UpgradeName {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl std::fmt::Display for UpgradeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for UpgradeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A token of RFC 9110, section 5.6.2. A version after a slash is not part of the name.
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if text.is_empty() || !text.bytes().all(is_token) {
            return Err(format!("found {text:?}; allowed: a protocol's name, as in the header Upgrade"));
        }
        if weft_wire::http1::is_http_within(text.as_bytes()) {
            return Err(format!(
                "found {text:?}; allowed: one in which neither HTTP nor TLS goes on, as nobody would see who calls in it"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A port that leads to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where it listens.
    pub listen: SocketAddr,
    /// `NAME` or `NAME.NAMESPACE`
    pub service: String,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(listen, service)| Some((listen.parse().ok()?, service)));
        match parts {
            Some((listen, service)) if !service.is_empty() => Ok(Self { listen, service: service.to_owned() }),
            _ => Err(format!("`{text}` is not a forward; allowed: IP:PORT=SERVICE, such as 127.0.0.1:5432=db")),
        }
    }
}

/// What happens to connections to the outside of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Outside {
    /// They are passed through unchanged.
    Allow,
    /// They are reset.
    Deny,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Balance {
    /// The one with fewer calls in flight of two random ones (Mitzenmacher, "The Power of Two Choices", 2001).
    P2c,
    /// One after the other.
    RoundRobin,
    /// A random one.
    Random,
}

/// How the health of the local service is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthCheck {
    /// `grpc.health.v1.Health/Check`
    Grpc,
    /// It accepts a TCP connection.
    Tcp,
    /// A GET of this path is answered with 2xx.
    Http(String),
}

impl FromStr for HealthCheck {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "grpc" => Ok(Self::Grpc),
            "tcp" => Ok(Self::Tcp),
            _ => match text.strip_prefix("http:") {
                Some(path) if path.starts_with('/') => Ok(Self::Http(path.to_owned())),
                _ => Err(format!("`{text}` is not a health check; allowed: grpc, tcp, http:/PATH")),
            },
        }
    }
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grpc => f.write_str("grpc"),
            Self::Tcp => f.write_str("tcp"),
            Self::Http(path) => write!(f, "http:{path}"),
        }
    }
}

impl Args {
    /// The full name of the local service.
    ///
    /// # Errors
    /// A part of the name is not a DNS label.
    pub fn service_name(&self) -> Result<Option<ServiceName>, NameError> {
        self.service.as_deref().map(|name| ServiceName::new(name, &self.namespace)).transpose()
    }

    /// The services of its forwards, in order.
    ///
    /// # Errors
    /// One of them is not a valid name.
    pub fn forwarded(&self) -> Result<Vec<ServiceName>, NameError> {
        self.forward.iter().map(|forward| ServiceName::parse_in(&forward.service, &self.namespace)).collect()
    }

    /// How the health of the local service is checked.
    pub fn health_check(&self) -> HealthCheck {
        self.health.clone().unwrap_or(match self.protocol {
            AppProtocol::Grpc => HealthCheck::Grpc,
            AppProtocol::Http1 | AppProtocol::Tcp => HealthCheck::Tcp,
        })
    }

    /// Where clients that do not know the mesh call the local service.
    pub fn called_at(&self) -> impl Iterator<Item = SocketAddr> + use<'_> {
        let own = self.app.map(|app| SocketAddr::new(self.advertised().ip(), app.port()));
        self.app_address.or(own).into_iter().chain(self.virtual_address.iter().copied())
    }

    /// The address at which other sidecars reach this one.
    pub fn advertised(&self) -> SocketAddr {
        self.advertise.unwrap_or_else(|| {
            let ip = self.inbound.ip();
            let ip = if ip.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { ip };
            SocketAddr::new(ip, self.inbound.port())
        })
    }
}
