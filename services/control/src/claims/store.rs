//! The pinned claims, in the control plane's state folder.
//!
//! Only the control plane writes `claims.json`. To release a claim, a command adds a line with its name to
//! `released-claims`; the control plane reads that file within seconds, or at its next start. To grant a contract to a
//! service, `weft up` adds a line with the contract and the identity to `granted-claims`. So none overwrites what
//! another has written.

use std::{collections::BTreeMap, fs, io::ErrorKind, path::Path};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use weft_mesh::{
    identity::{SpiffeId, TrustDomain},
    limits,
    names::{ServiceName, is_contract_name, shown},
};

use super::{Contest, Saved, hosts::Hosts};
use crate::authority::{
    network::Network,
    state_dir::{Access, StateDir, StateError},
};

const CLAIMS: &str = "claims.json";
const RELEASED: &str = "released-claims";
const GRANTED: &str = "granted-claims";

/// The file with the lines of another one that the control plane is handling, until the result is on disk.
fn taken(file: &str) -> String {
    format!("{file}.taken")
}

/// Why the store can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimsError {
    /// A file of the state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file does not contain what it should.
    #[error("{file}: {why}")]
    Content {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// It is not a possible claim.
    #[error("`{0}` is neither the full name of a protobuf service nor IP:PORT")]
    NoClaim(String),
    /// It is not pinned.
    #[error("`{0}` is not pinned to an identity; `weft identity list` shows the claims that are")]
    NotPinned(String),
    /// Too many releases or grants wait, as the control plane does not run.
    #[error("{most} lines of {0} wait for the control plane already: start it", most = limits::CLAIMS_RELEASED)]
    TooMany(&'static str),
}

/// Keeps a copy of `claims.json` where it outlives the state folder.
pub(crate) trait Backup: Send + Sync {
    /// Replaces the copy.
    fn put<'a>(&'a self, text: &'a str) -> BoxFuture<'a, anyhow::Result<()>>;
}

/// See the module.
pub(crate) struct Store {
    dir: StateDir,
    trust_domain: TrustDomain,
    saved: watch::Sender<()>,
}

/// `claims.json`
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Identities by claim.
    pinned: BTreeMap<String, String>,
    /// Networks where an identity's endpoints may be, besides the host that announces them.
    #[serde(default)]
    hosts: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    contested: Vec<Line>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    claim: String,
    owner: String,
    claimant: String,
}

impl Store {
    /// The store of a state folder.
    pub(crate) fn open(state_dir: &Path, trust_domain: &TrustDomain) -> Result<Self, ClaimsError> {
        let saved = watch::Sender::new(());
        Ok(Self { dir: StateDir::open(state_dir)?, trust_domain: trust_domain.clone(), saved })
    }

    /// The text of the file; `None` at the first start.
    pub(crate) fn text(&self) -> Result<Option<String>, ClaimsError> {
        Ok(self.dir.read(CLAIMS, Access::Public)?)
    }

    /// Replaces the file with the copy that a [`Backup`] has.
    #[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only there is a backup"))]
    pub(crate) fn restore(&self, text: &str) -> Result<(), ClaimsError> {
        self.parse(text)?;
        Ok(self.dir.write(CLAIMS, text, Access::Public)?)
    }

    /// Says when the file was saved.
    pub(crate) fn saved(&self) -> watch::Receiver<()> {
        self.saved.subscribe()
    }

    /// Loads what was saved; empty at the first start.
    pub(crate) fn load(&self) -> Result<(Saved, Hosts), ClaimsError> {
        self.text()?.map_or_else(|| Ok(Default::default()), |text| self.parse(&text))
    }

    fn parse(&self, text: &str) -> Result<(Saved, Hosts), ClaimsError> {
        let wrong = |why: String| ClaimsError::Content { file: self.dir.path(CLAIMS).display().to_string(), why };
        let file: File = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        let service = |text: &str| self.service(text).map_err(&wrong);
        let mut saved = Saved::default();
        for (claim, owner) in file.pinned {
            saved.pinned.insert(claim, service(&owner)?);
        }
        for Line { claim, owner, claimant } in file.contested {
            saved.contests.push(Contest { claim, owner: service(&owner)?, claimant: service(&claimant)? });
        }
        let mut hosts = Hosts::default();
        for (id, networks) in file.hosts {
            let networks = networks.iter().map(|network| network.parse::<Network>()).collect::<Result<_, _>>();
            hosts.allow(&service(&id)?, networks.map_err(&wrong)?);
        }
        Ok((saved, hosts))
    }

    /// Saves it, and replaces what was saved before.
    pub(crate) fn save(&self, saved: &Saved, hosts: &Hosts) -> Result<(), ClaimsError> {
        let id = |service: &ServiceName| self.id(service).to_string();
        let file = File {
            pinned: saved.pinned.iter().map(|(claim, owner)| (claim.clone(), id(owner))).collect(),
            hosts: hosts
                .all()
                .map(|(service, networks)| (id(service), networks.iter().map(ToString::to_string).collect()))
                .collect(),
            contested: saved
                .contests
                .iter()
                .map(|contest| Line {
                    claim: contest.claim.clone(),
                    owner: id(&contest.owner),
                    claimant: id(&contest.claimant),
                })
                .collect(),
        };
        let text = serde_json::to_string_pretty(&file).map_err(|e| ClaimsError::Content {
            file: self.dir.path(CLAIMS).display().to_string(),
            why: e.to_string(),
        })?;
        self.dir.write(CLAIMS, &(text + "\n"), Access::Public)?;
        self.saved.send_replace(());
        Ok(())
    }

    /// Asks the control plane to release a claim. Returns its owner.
    pub(crate) fn release(&self, claim: &str) -> Result<SpiffeId, ClaimsError> {
        if !is_contract_name(claim) && claim.parse::<std::net::SocketAddr>().is_err() {
            return Err(ClaimsError::NoClaim(shown(claim)));
        }
        let _lock = self.dir.lock()?;
        let (saved, _) = self.load()?;
        let owner = saved.pinned.get(claim).ok_or_else(|| ClaimsError::NotPinned(claim.to_owned()))?;
        self.add(RELEASED, [claim.to_owned()])?;
        Ok(self.id(owner))
    }

    /// The claims that wait to be released. Each call returns them until [`Self::released`] is called.
    pub(crate) fn to_release(&self) -> Result<Vec<String>, ClaimsError> {
        self.take(RELEASED)
    }

    /// The claims of [`Self::to_release`] are released, and the result is saved.
    pub(crate) fn released(&self) -> Result<(), ClaimsError> {
        self.remove(&taken(RELEASED))
    }

    /// Asks the control plane to pin contracts to a service.
    pub(crate) fn grant(&self, service: &ServiceName, contracts: &[String]) -> Result<(), ClaimsError> {
        if let Some(wrong) = contracts.iter().find(|contract| !is_contract_name(contract)) {
            return Err(ClaimsError::NoClaim(shown(wrong)));
        }
        let _lock = self.dir.lock()?;
        self.add(GRANTED, contracts.iter().map(|contract| format!("{contract} {}", self.id(service))))
    }

    /// The contracts that wait to be granted. Each call returns them until [`Self::granted`] is called.
    pub(crate) fn to_grant(&self) -> Result<Vec<(String, ServiceName)>, ClaimsError> {
        let read = |line: String| {
            let (contract, id) = line.split_once(' ').ok_or("a line is not of the form CONTRACT IDENTITY")?;
            if !is_contract_name(contract) {
                return Err(format!("`{}` is not the full name of a protobuf service", shown(contract)));
            }
            Ok((contract.to_owned(), self.service(id)?))
        };
        let file = || self.dir.path(&taken(GRANTED)).display().to_string();
        let wrong = |why| ClaimsError::Content { file: file(), why };
        self.take(GRANTED)?.into_iter().map(|line| read(line).map_err(wrong)).collect()
    }

    /// The contracts of [`Self::to_grant`] are granted, and the result is saved.
    pub(crate) fn granted(&self) -> Result<(), ClaimsError> {
        self.remove(&taken(GRANTED))
    }

    /// Forgets the grants that no control plane has handled.
    pub(crate) fn forget_grants(&self) -> Result<(), ClaimsError> {
        let _lock = self.dir.lock()?;
        self.remove(GRANTED)?;
        self.remove(&taken(GRANTED))
    }

    /// Adds lines to a file. The folder is locked.
    fn add(&self, file: &'static str, lines: impl IntoIterator<Item = String>) -> Result<(), ClaimsError> {
        let mut text = self.dir.read(file, Access::Public)?.unwrap_or_default();
        for line in lines {
            text.push_str(&line);
            text.push('\n');
        }
        if text.lines().count() > limits::CLAIMS_RELEASED {
            return Err(ClaimsError::TooMany(file));
        }
        Ok(self.dir.write(file, &text, Access::Public)?)
    }

    /// The lines of a file, which is put aside until it is handled.
    fn take(&self, file: &str) -> Result<Vec<String>, ClaimsError> {
        let (given, taken) = (self.dir.path(file), taken(file));
        if !self.dir.path(&taken).exists() {
            if !given.exists() {
                return Ok(Vec::new());
            }
            let _lock = self.dir.lock()?;
            let renamed = fs::rename(&given, self.dir.path(&taken));
            renamed.map_err(|source| StateError::Io { what: "rename", path: given, source })?;
        }
        let text = self.dir.read(&taken, Access::Public)?.unwrap_or_default();
        Ok(text.lines().take(limits::CLAIMS_RELEASED).map(str::to_owned).collect())
    }

    fn remove(&self, file: &str) -> Result<(), ClaimsError> {
        let path = self.dir.path(file);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(StateError::Io { what: "remove", path, source }.into())
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn id(&self, service: &ServiceName) -> SpiffeId {
        SpiffeId::of_service(&self.trust_domain, service)
    }

    fn service(&self, text: &str) -> Result<ServiceName, String> {
        let id: SpiffeId = text.parse().map_err(|e| format!("{e}"))?;
        match id.trust_domain() == &self.trust_domain {
            true => Ok(id.service().clone()),
            false => Err(format!("{id} is not of the trust domain {}", self.trust_domain)),
        }
    }
}
