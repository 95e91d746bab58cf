//! What is started: the control plane, and for each replica a sidecar and the service itself.

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

/// How long a join token is good for; each start of a sidecar gets a new one.
const TOKEN_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// For how long a sidecar lets running calls go on; less than what `weft up` waits for it.
pub(super) const DRAIN_SECONDS: u64 = 10;

/// What the name of a Unix socket may have (`sun_path`).
const SOCKET_NAME_BYTES: usize = 108;

/// What all processes of a run have in common.
pub(crate) struct Mesh {
    /// This very program: the control plane and the sidecars are in it.
    pub(crate) weft: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) run_id: String,
    pub(crate) namespace: String,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) sample: f64,
    /// OTLP receivers, the dashboard's own first.
    pub(crate) otlp: Vec<String>,
    pub(crate) bounds: Bounds,
    pub(crate) control: u16,
    pub(crate) dashboard: u16,
    pub(crate) ca: Ca,
    pub(crate) ports: Ports,
}

/// One replica of a service with its sidecar; or the sidecar of the person at the keyboard, which fronts nothing.
pub(crate) struct Replica {
    /// `users-1`
    pub(crate) name: String,
    pub(crate) service: Option<Arc<ServiceLaunch>>,
    identity: SpiffeId,
    /// The ports that two processes must agree on, and those that the sidecar has now.
    pub(crate) ports: watch::Sender<ReplicaPorts>,
    /// The services that speak TCP, and where its sidecar takes connections to each.
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
    /// Where the compiled contracts are.
    descriptors: Option<PathBuf>,
    /// Those of them that it implements; others only come along as imports.
    implements: Vec<String>,
}

impl Mesh {
    /// A command with what every process gets, and without what the caller's shell says to some other Weft.
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

    /// This program itself, even if its file was replaced by a build since.
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
            .arg(services_file(&self.state_dir));
        command
    }

    /// `weft sidecar …`, with ports of its own: those of the one whose place it takes, or picked anew.
    pub(crate) fn sidecar_command(&self, replica: &Replica, takes_over: bool) -> anyhow::Result<Command> {
        let ports = match takes_over {
            true => *replica.ports.borrow(),
            false => self.pick_own_ports(replica).context("no ports for the sidecar")?,
        };
        let dir = self.state_dir.join("sidecars").join(&replica.name);
        std::fs::create_dir_all(&dir).with_context(|| format!("{} can't be made", dir.display()))?;
        let token_file = dir.join("join-token");
        let token = join_token::issue(&self.ca, &replica.identity, TOKEN_LIFE)?;
        write_secret(&token_file, &token).with_context(|| format!("{} can't be written", token_file.display()))?;

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
        // The name of a socket is short, by POSIX; without one a sidecar is stopped before it is started again.
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
            if let Some(descriptors) = &service.descriptors {
                command.arg("--descriptors").arg(descriptors).args(["--contracts", &service.implements.join(",")]);
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
            // So that a program that knows OpenTelemetry, but not Weft, is part of the same traces.
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

    /// What both processes were told: whoever was started with other ports must be started again.
    pub(crate) fn agreed(&self) -> (u16, u16) {
        let ports = self.ports.borrow();
        (ports.app, ports.outbound)
    }

    /// After an early death: if somebody else has taken the port in the meantime, both get another.
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
                let file = state_dir.join("sidecars").join(format!("{}.binpb", service.name.name()));
                std::fs::write(&file, &contracts.descriptor_set)
                    .with_context(|| format!("{} can't be written", file.display()))?;
                Some(file)
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
            implements: service.contracts.as_ref().map_or_else(Vec::new, |contracts| contracts.implements.clone()),
        })
    }
}

/// The file from which the control plane learns which contracts are whose.
pub(super) fn services_file(state_dir: &Path) -> PathBuf {
    state_dir.join("services.yaml")
}

/// A port for each service that speaks TCP.
fn tcp_forwards(file: &MeshFile, ports: &Ports) -> io::Result<Vec<(ServiceName, u16)>> {
    let services = file.services.iter().filter(|service| service.protocol == Protocol::Tcp);
    services.map(|service| Ok((service.name.clone(), ports.pick()?))).collect()
}

/// The same for the person at the keyboard, with the ports that the file names, of services that speak HTTP too.
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

/// Where a program finds a service that speaks TCP: `WEFT_TCP_ORDERS_DB` for `orders-db`.
fn forward_variable(service: &ServiceName) -> String {
    format!("WEFT_TCP_{}", service.name().replace('-', "_").to_ascii_uppercase())
}

/// Replaces a file that only its owner may read.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let temporary = path.with_extension("new");
    let _ = std::fs::remove_file(&temporary);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&temporary, path)
}
