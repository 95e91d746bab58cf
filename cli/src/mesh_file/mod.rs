//! Reads and checks `mesh.yaml`, and makes a model of it that needs no further checks.
//!
//! A file goes through four steps: [`Node`](config::Node) parses it into a tree in which each value knows its line,
//! [`Reader`](config::Reader) and [`model`] take the values out of that tree, [`program`] finds the programs to run, and [`contracts`] compiles the
//! `.proto` files, with the imports that [`imports`] finds, and checks their options. Each step records each
//! [`Problem`] and goes on, so that one run reports everything that is wrong.

mod contracts;
mod imports;
pub(crate) mod model;
mod program;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub(crate) use self::model::check_otlp;
pub(crate) use self::{
    contracts::{Contracts, Lookup, default_include},
    program::CommandLine,
};
pub(crate) use weft_mesh::config::{Located, Problem, Problems};
use weft_mesh::{config, identity::TrustDomain, names::ServiceName, policy::MeshRules};
use weft_sidecar::UpgradeName;

use crate::project_file;

/// A mesh file that has passed all checks.
#[derive(Debug)]
pub(crate) struct MeshFile {
    /// As the user named it.
    pub(crate) path: PathBuf,
    /// The absolute folder that everything in the file is relative to.
    pub(crate) folder: PathBuf,
    /// The namespace of its services.
    pub(crate) namespace: String,
    /// The trust domain of its identities.
    pub(crate) trust_domain: TrustDomain,
    /// Who may know of a service: `all`, or `namespace`.
    pub(crate) visibility: String,
    /// Who may call whom, besides what the contracts say.
    pub(crate) access: MeshRules,
    /// The commands that are run before the start.
    pub(crate) build: Vec<CommandLine>,
    /// The ports that someone outside must know.
    pub(crate) ports: Ports,
    /// Where traces go besides the built-in store.
    pub(crate) otlp: Option<String>,
    /// The share of calls that are traced when the caller did not decide.
    pub(crate) sample: f64,
    /// In the order of the file.
    pub(crate) services: Vec<Service>,
}

/// The ports that someone outside must know.
#[derive(Debug, Clone)]
pub(crate) struct Ports {
    /// The sidecar of the person at the keyboard.
    pub(crate) outbound: Port,
    /// The dashboard.
    pub(crate) dashboard: Port,
    /// The control plane.
    pub(crate) control: Port,
}

/// A port and where its number comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Port {
    /// 0: any that is free.
    pub(crate) number: u16,
    /// None: the default.
    pub(crate) line: Option<u64>,
}

/// A service of the mesh.
#[derive(Debug)]
pub(crate) struct Service {
    /// Its name.
    pub(crate) name: ServiceName,
    /// What is run.
    pub(crate) run: CommandLine,
    /// What its port speaks.
    pub(crate) protocol: Protocol,
    /// It answers CONNECT itself, as a forward proxy does.
    pub(crate) answers_connect: bool,
    /// The protocols besides WebSocket that it upgrades connections to.
    pub(crate) upgrades: Vec<UpgradeName>,
    /// `grpc`, `tcp` or `http:/path`, as the sidecar takes it.
    pub(crate) health: Option<String>,
    /// The number of replicas.
    pub(crate) replicas: u16,
    /// The fixed port that the service listens on, if the file names one.
    pub(crate) port: Option<Port>,
    /// The port that leads the person at the keyboard to this service only. If the file names none, a TCP service gets
    /// a free one.
    pub(crate) forward: Option<Port>,
    /// Added to its environment.
    pub(crate) env: Vec<(String, String)>,
    /// What its `.proto` files say.
    pub(crate) contracts: Option<Contracts>,
    /// Whether it has to be asked for its contracts: if the file does not name them for a service of gRPC.
    pub(crate) is_asked: bool,
}

impl Service {
    /// The ports that the file names for it, each with its field.
    pub(crate) fn named_ports(&self) -> impl Iterator<Item = (String, Port)> + use<'_> {
        let field = |key| format!("services.{}.{key}", self.name.name());
        [("port", self.port), ("forward", self.forward)]
            .into_iter()
            .filter_map(move |(key, port)| Some((field(key), port?)))
    }
}

/// What a service's port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// HTTP/1.1.
    Http1,
    /// Anything else over TCP.
    Tcp,
}

impl Protocol {
    /// As in the file and in the sidecar's flags.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http1 => "http1",
            Self::Tcp => "tcp",
        }
    }
}

/// Whether the programs of the services must exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Programs {
    /// All must exist.
    MustExist,
    /// They may be missing if the file has a `build`, which can make them.
    MayBeBuilt,
}

impl MeshFile {
    /// Reads and checks a mesh file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn load(path: &Path, programs: Programs) -> Result<Self, Problems> {
        let shown = path.display().to_string();
        let whole = |text: String| Problems::new(vec![Problem::new(&shown, 0, "", text)]);
        let text = project_file::read_text(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                let ways =
                    "run this in the folder of a mesh.yaml, name the file with --file, or let `weft init` write one";
                whole(format!("no such file; {ways}"))
            }
            _ => whole(format!("cannot be read: {error}")),
        })?;
        let folder = std::path::absolute(path)
            .map_err(|error| whole(format!("cannot be found: {error}")))?
            .parent()
            .map_or_else(|| PathBuf::from("/"), Path::to_path_buf);
        Self::check(path, &folder, &text, programs)
    }

    fn check(path: &Path, folder: &Path, text: &str, programs: Programs) -> Result<Self, Problems> {
        let shown = path.display().to_string();
        config::parse(&shown, text, |reader, root| model::read(reader, root, path, folder, programs))
    }

    /// The contracts that more than one service implements, with those services in the order of the file.
    pub(crate) fn shared_contracts(&self) -> BTreeMap<&str, Vec<&ServiceName>> {
        let mut services = self.services_by_contract();
        services.retain(|_, services| services.len() > 1);
        services
    }

    /// The services that implement each contract, in the order of the file. The first one owns the contract: calls that
    /// name no service go there.
    pub(crate) fn services_by_contract(&self) -> BTreeMap<&str, Vec<&ServiceName>> {
        let mut all: BTreeMap<&str, Vec<&ServiceName>> = BTreeMap::new();
        for service in &self.services {
            for contract in service.contracts.iter().flat_map(|contracts| &contracts.implements) {
                all.entry(contract).or_default().push(&service.name);
            }
        }
        all
    }

    /// The file for the control plane's `--services`: the services, their contracts, the number of their endpoints. The
    /// contracts of a service that has to be asked are not in the file, so they belong to nobody until `weft up` has granted
    /// them.
    pub(crate) fn services_file(&self) -> String {
        let owners = self.services_by_contract();
        let mut file = format!("# Made by `weft up`.\nvisibility: {}\ncomplete: true\nservices:\n", self.visibility);
        for service in &self.services {
            let contracts: Vec<&str> =
                owners.iter().filter(|(_, of)| of[0] == &service.name).map(|(contract, _)| *contract).collect();
            // In quotes, as YAML reads some words, such as `no` and `null`, as something else.
            let (name, endpoints) = (&service.name, service.replicas);
            let unlisted = if service.is_asked { ", unlisted: grant" } else { "" };
            file.push_str(&format!("  \"{name}\": {{ contracts: {contracts:?}, endpoints: {endpoints}{unlisted} }}\n"));
        }
        file
    }

    /// The file for the control plane's `--access`.
    pub(crate) fn access_file(&self) -> String {
        format!("# Made by `weft up`.\n{}", self.access.to_yaml())
    }

    /// The folder beside the file where `weft up` keeps its state.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.folder.join(".weft")
    }
}
