//! The processes to start, as commands: the control plane, and for each replica a sidecar and the service itself.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{process::Command, sync::watch};
use weft_control::{ca::Ca, join_token};
use weft_mesh::{
    identity::{SpiffeId, TrustDomain},
    names::ServiceName,
};

use weft_sidecar::UpgradeName;

use super::{
    Bounds,
    ports::{self, Ports, loopback},
    process::RUN_VARIABLE,
    run_file::ReplicaPorts,
};
use crate::mesh_file::{CommandLine, MeshFile, Protocol, Service, model::KEYBOARD};

/// How long a join token is valid; each start of a sidecar gets a new one.
const TOKEN_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a sidecar that stops lets running calls go on; `weft up` waits longer for it.
pub(super) const DRAIN_SECONDS: u64 = 10;

/// The space for the path of a Unix socket (`sun_path`).
const SOCKET_NAME_BYTES: usize = 108;

/// What all processes of a run have in common.
pub(crate) struct Mesh {
    /// The path of this program: the control plane and the sidecar are part of it.
    pub(crate) weft: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) run_id: String,
    pub(crate) namespace: String,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) sample: f64,
    /// The OTLP receivers; the first is the dashboard's.
    pub(crate) otlp: Vec<String>,
    pub(crate) bounds: Bounds,
    pub(crate) control: u16,
    pub(crate) dashboard: u16,
    pub(crate) ca: Ca,
    pub(crate) ports: Ports,
}

/// One replica of a service with its sidecar; or the sidecar of the person at the keyboard, which has no service.
pub(crate) struct Replica {
    /// `users-1`
    pub(crate) name: String,
    pub(crate) service: Option<Arc<ServiceLaunch>>,
    identity: SpiffeId,
    /// The ports that the two processes must agree on, and the other ports that the sidecar has now.
    pub(crate) ports: watch::Sender<ReplicaPorts>,
    /// Services that have a port of their own at this sidecar, and that port: those that speak TCP and, at the
    /// keyboard's sidecar, those for which the file names one.
    pub(crate) forwards: Vec<(ServiceName, u16)>,
    has_fixed_app_port: bool,
    has_fixed_outbound: bool,
}

/// What the replicas of a service share.
pub(crate) struct ServiceLaunch {
    pub(crate) name: ServiceName,
    run: CommandLine,
    protocol: Protocol,
    answers_connect: bool,
    upgrades: Vec<UpgradeName>,
    health: Option<String>,
    env: Vec<(String, String)>,
    /// Its contracts, if the file names `.proto` files.
    descriptors: Option<Descriptors>,
    /// Its sidecars have to ask it for its contracts.
    is_asked: bool,
}

/// The contracts of a service, as its sidecars get them.
struct Descriptors {
    /// Where the compiled contracts are.
    file: PathBuf,
    /// Those of them that it implements; the others are only imports.
    implements: Vec<String>,
}

impl Mesh {
    /// A command with the environment that every process gets, and without the `WEFT_` variables of the caller's shell:
    /// those may be for another Weft.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("WEFT_")) {
                command.env_remove(name);
            }
        }
        command.current_dir(&self.folder).env(RUN_VARIABLE, &self.run_id);
        command
    }

    /// This program itself, even if a build has replaced its file since.
    fn weft_command(&self) -> Command {
        self.command(if self.weft.exists() { &self.weft } else { Path::new("/proc/self/exe") })
    }

    /// `weft control …`
    pub(crate) fn control_command(&self) -> Command {
        let mut command = self.weft_command();
        command
            .arg("control")
            .arg("--state-dir")
            .arg(self.state_dir.join("control"))
            .args(["--listen", &loopback(self.control).to_string()])
            .args(["--dashboard", &loopback(self.dashboard).to_string()])
            .args(["--trust-domain", self.trust_domain.as_str()])
            .arg("--services")
            .arg(services_file(&self.state_dir))
            .arg("--access")
            .arg(access_file(&self.state_dir));
        command
    }

    /// `weft sidecar …`, with the ports of the sidecar that it takes over from, or with new ones.
    pub(crate) fn sidecar_command(&self, replica: &Replica, takes_over: bool) -> anyhow::Result<Command> {
        let ports = match takes_over {
            true => *replica.ports.borrow(),
            false => self.pick_own_ports(replica).context("no ports for the sidecar")?,
        };
        let dir = self.state_dir.join("sidecars").join(&replica.name);
        std::fs::create_dir_all(&dir).with_context(|| format!("{} can't be made", dir.display()))?;
        let token_file = dir.join("join-token");
        let token = join_token::issue(&self.ca, &replica.identity, TOKEN_LIFE)?;
        write_secret(&token_file, token.as_bytes())
            .with_context(|| format!("{} can't be written", token_file.display()))?;

        let mut command = self.weft_command();
        command
            .arg("sidecar")
            .args(["--namespace", &self.namespace, "--trust-domain", self.trust_domain.as_str()])
            .args(["--control-plane", &format!("https://{}", loopback(self.control))])
            .arg("--trust-bundle")
            .arg(self.state_dir.join("control").join("bundle.pem"))
            .arg("--join-token-file")
            .arg(token_file)
            .arg("--state-dir")
            .arg(&dir)
            .args(["--outbound", &loopback(ports.outbound).to_string()])
            .args(["--inbound", &loopback(ports.inbound).to_string()])
            .args(["--admin", &loopback(ports.admin).to_string()])
            .args(["--metrics", &loopback(ports.metrics).to_string()])
            .args(["--sample-ratio", &self.sample.to_string()])
            .args(["--drain-seconds", &DRAIN_SECONDS.to_string()]);
        let takeover = dir.join("takeover");
        // A longer path can't be a socket's. Without the socket, a sidecar is stopped before the next one is started.
        if takeover.as_os_str().len() < SOCKET_NAME_BYTES {
            command.arg("--takeover").arg(takeover);
        }
        if let Some(bytes) = self.bounds.header_list_bytes {
            command.args(["--header-list-bytes", &bytes.to_string()]);
        }
        if let Some(bytes) = self.bounds.memory {
            command.args(["--memory", &bytes.to_string()]);
        }
        for url in &self.otlp {
            command.args(["--otlp", url]);
        }
        for (service, port) in &replica.forwards {
            command.args(["--forward", &format!("{}={service}", loopback(*port))]);
        }
        if let Some(service) = &replica.service {
            command
                .args(["--service", service.name.name(), "--app", &loopback(ports.app).to_string()])
                .args(["--protocol", service.protocol.as_str()]);
            if service.answers_connect {
                command.arg("--connect");
            }
            for name in &service.upgrades {
                command.args(["--upgrade", &name.to_string()]);
            }
            if let Some(health) = &service.health {
                command.args(["--health", health]);
            }
            if let Some(Descriptors { file, implements }) = &service.descriptors {
                command.arg("--descriptors").arg(file).args(["--contracts", &implements.join(",")]);
            }
            if service.is_asked {
                command.arg("--ask-contracts");
            }
        }
        Ok(command)
    }

    fn pick_own_ports(&self, replica: &Replica) -> io::Result<ReplicaPorts> {
        let (inbound, admin, metrics) = (self.ports.pick()?, self.ports.pick()?, self.ports.pick()?);
        replica.ports.send_modify(|ports| *ports = ReplicaPorts { inbound, admin, metrics, ..*ports });
        Ok(*replica.ports.borrow())
    }

    /// The service's own program.
    pub(crate) fn app_command(&self, replica: &Replica, service: &ServiceLaunch) -> Command {
        let ports = *replica.ports.borrow();
        let mut command = self.command(&service.run.program);
        command
            .args(service.run.arguments_with(ports.app, &replica.name))
            .env("PORT", ports.app.to_string())
            .env("WEFT_SERVICE", service.name.name())
            .env("WEFT_NAMESPACE", &self.namespace)
            .env("WEFT_LISTEN", loopback(ports.app).to_string())
            .env("WEFT_OUTBOUND", format!("http://{}", loopback(ports.outbound)))
            .env("WEFT_OTLP", self.otlp.join(","))
            .env("WEFT_LOG_FORMAT", "text")
            // With these a program that knows OpenTelemetry, but not Weft, is part of the same traces.
            .env("OTEL_SERVICE_NAME", service.name.name())
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &self.otlp[0])
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
            .env("OTEL_PROPAGATORS", "tracecontext,baggage")
            .env("OTEL_METRICS_EXPORTER", "none")
            .env("OTEL_LOGS_EXPORTER", "none")
            .envs(replica.forwards.iter().map(|(name, port)| (forward_variable(name), loopback(*port).to_string())))
            .envs(service.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

impl Replica {
    /// Every replica of every service, and the keyboard's sidecar, with the ports that two processes must agree on.
    pub(crate) fn all(file: &MeshFile, mesh: &Mesh, outbound: u16) -> anyhow::Result<Vec<Arc<Self>>> {
        let identity = |name: &ServiceName| SpiffeId::of_service(&file.trust_domain, name);
        let mut replicas = Vec::new();
        for service in &file.services {
            let launch = Arc::new(ServiceLaunch::new(service, &mesh.state_dir)?);
            for number in 1..=service.replicas {
                let app = match service.port {
                    Some(port) => port.number,
                    None => mesh.ports.pick()?,
                };
                replicas.push(Arc::new(Self {
                    forwards: tcp_forwards(file, &mesh.ports)?,
                    name: format!("{}-{number}", service.name.name()),
                    service: Some(Arc::clone(&launch)),
                    identity: identity(&service.name),
                    ports: watch::Sender::new(ReplicaPorts { app, outbound: mesh.ports.pick()?, ..Default::default() }),
                    has_fixed_app_port: service.port.is_some(),
                    has_fixed_outbound: false,
                }));
            }
        }
        let keyboard = ServiceName::new(KEYBOARD, &file.namespace)?;
        replicas.push(Arc::new(Self {
            forwards: keyboard_forwards(file, &mesh.ports)?,
            name: KEYBOARD.to_owned(),
            service: None,
            identity: identity(&keyboard),
            ports: watch::Sender::new(ReplicaPorts { outbound, ..Default::default() }),
            has_fixed_app_port: true,
            has_fixed_outbound: true,
        }));
        Ok(replicas)
    }

    /// The sidecar's name in the logs.
    pub(crate) fn sidecar_name(&self) -> String {
        format!("{}·sidecar", self.name)
    }

    /// The ports that both processes must have. One that was started with other ports must be restarted.
    pub(crate) fn agreed(&self) -> (u16, u16) {
        let ports = self.ports.borrow();
        (ports.app, ports.outbound)
    }

    /// After an early death: if another process has taken the port in the meantime, both get a new one.
    pub(crate) fn move_if_taken(&self, mesh: &Mesh, is_sidecar: bool) -> io::Result<()> {
        let (app, outbound) = self.agreed();
        if is_sidecar && !self.has_fixed_outbound && !ports::is_free(outbound) {
            let outbound = mesh.ports.pick()?;
            self.ports.send_modify(|ports| ports.outbound = outbound);
        }
        if !is_sidecar && !self.has_fixed_app_port && !ports::is_free(app) {
            let app = mesh.ports.pick()?;
            self.ports.send_modify(|ports| ports.app = app);
        }
        Ok(())
    }
}

impl ServiceLaunch {
    fn new(service: &Service, state_dir: &Path) -> anyhow::Result<Self> {
        let descriptors = match &service.contracts {
            Some(contracts) => {
                let file = contracts_file(state_dir, service.name.name());
                std::fs::write(&file, &contracts.descriptor_set)
                    .with_context(|| format!("{} can't be written", file.display()))?;
                Some(Descriptors { file, implements: contracts.implements.clone() })
            }
            None => None,
        };
        Ok(Self {
            name: service.name.clone(),
            run: service.run.clone(),
            protocol: service.protocol,
            answers_connect: service.answers_connect,
            upgrades: service.upgrades.clone(),
            health: service.health.clone(),
            env: service.env.clone(),
            descriptors,
            is_asked: service.is_asked,
        })
    }
}

/// The file with a service's compiled contracts, for its sidecars.
pub(super) fn contracts_file(state_dir: &Path, service: &str) -> PathBuf {
    state_dir.join("sidecars").join(format!("{service}.binpb"))
}

/// The file that tells the control plane which service owns which contracts.
pub(super) fn services_file(state_dir: &Path) -> PathBuf {
    state_dir.join("services.yaml")
}

/// The file that tells the control plane who may call whom.
pub(super) fn access_file(state_dir: &Path) -> PathBuf {
    state_dir.join("access.yaml")
}

/// A port for each service that speaks TCP.
fn tcp_forwards(file: &MeshFile, ports: &Ports) -> io::Result<Vec<(ServiceName, u16)>> {
    let services = file.services.iter().filter(|service| service.protocol == Protocol::Tcp);
    services.map(|service| Ok((service.name.clone(), ports.pick()?))).collect()
}

/// The same for the sidecar of the person at the keyboard, and the ports that the file names, for services of HTTP too.
fn keyboard_forwards(file: &MeshFile, ports: &Ports) -> io::Result<Vec<(ServiceName, u16)>> {
    let mut forwards = Vec::new();
    for service in &file.services {
        let port = match service.forward {
            Some(port) => port.number,
            None if service.protocol == Protocol::Tcp => ports.pick()?,
            None => continue,
        };
        forwards.push((service.name.clone(), port));
    }
    Ok(forwards)
}

/// The variable with the address of a service that speaks TCP: `WEFT_TCP_ORDERS_DB` for `orders-db`.
fn forward_variable(service: &ServiceName) -> String {
    format!("WEFT_TCP_{}", service.name().replace('-', "_").to_ascii_uppercase())
}

/// Replaces a file as a whole by one that only its owner may read.
pub(super) fn write_secret(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let temporary = path.with_extension("new");
    let _ = std::fs::remove_file(&temporary);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    std::fs::rename(&temporary, path)
}
