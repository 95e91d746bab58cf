//! Asks services of gRPC for their contracts by server reflection, once they are up, if `mesh.yaml` names no `.proto`
//! files for them.
//!
//! `mesh.yaml` has the last word: a contract that it gives to a service belongs to that service. Of two services that
//! tell the same other contract, the first in the file has it, whichever answers first. So a service gets its contracts
//! when all services before it that are asked have answered. It keeps them until `weft up` ends.
//!
//! The control plane's file does not name these contracts, so the control plane refuses them to every identity until they
//! are granted to one. That happens here, before the sidecars are started that claim them.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use futures_util::future::select_all;
use tokio::{
    sync::{oneshot, watch},
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use tonic::transport::Endpoint;
use weft_control::StateArgs;
use weft_mesh::{
    limits,
    names::{ServiceName, is_contract_name, shown_up_to},
    policy::ServicePolicy,
};

use super::{
    launch::{Descriptors, Mesh, Replica, ServiceLaunch, write_secret},
    logs::Logs,
    orders::Orders,
    ports::loopback,
    ready,
};
use crate::{
    mesh_file::MeshFile,
    reflection::{NoReflection, Reflection, Teller},
};

/// A service is a program of the user's own, but its answers are read with bounds like those of anybody.
const SERVICE: Teller = Teller {
    name: "it",
    patience: Duration::from_secs(5),
    bytes: limits::DESCRIPTOR_SET_BYTES,
    memory_bytes: limits::DESCRIPTOR_MEMORY_BYTES,
    files: 1_000,
};
/// The most contracts of one service.
const MAX_CONTRACTS: usize = 100;
/// How long one service may take to tell everything.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// How long a sidecar may take to be replaced by one that knows the contracts.
const REPLACE_LIMIT: Duration = Duration::from_secs(60);
/// How long the control plane may take to pin what is granted, even if it is just being started again.
const GRANT_LIMIT: Duration = Duration::from_secs(60);
const GRANT_INTERVAL: Duration = Duration::from_millis(50);
/// How often it is asked whether a service is up, after the first time.
const UP_INTERVAL: Duration = Duration::from_secs(1);
/// How long the first series of questions whether a service is up goes on.
const UP_LIMIT: Duration = Duration::from_secs(20);
/// Packages whose contracts are not a service's own.
const FOREIGN: [&str; 3] = ["google.", "grpc.", "weft."];
/// The most characters of an error that is shown.
const WHY_CHARS: usize = 400;

/// What a service has told of its contracts.
#[derive(Debug)]
pub(super) struct Told {
    /// A serialized `google.protobuf.FileDescriptorSet`, as in the answers: with every option.
    pub(super) descriptor_set: Vec<u8>,
    /// The contracts that it implements.
    pub(super) implements: Vec<String>,
}

/// What became of asking a service.
#[derive(Clone)]
pub(super) struct Note {
    pub(super) service: String,
    /// For people: its contracts, or why none are known.
    pub(super) text: String,
    pub(super) contracts: Option<Arc<Told>>,
}

/// The notes on the services that are asked.
pub(super) struct Notes {
    /// The services, in the order of the file.
    asked: Vec<String>,
    /// The notes so far, in the same order.
    told: watch::Receiver<Vec<Note>>,
}

/// Starts asking. The tasks end when all services have answered.
pub(super) fn start(
    tasks: &mut JoinSet<()>,
    file: &MeshFile,
    mesh: &Arc<Mesh>,
    replicas: &[Arc<Replica>],
    orders: &Orders,
) -> Notes {
    let (mut asked, mut answers) = (Vec::new(), Vec::new());
    for service in file.services.iter().filter(|service| service.is_asked()) {
        let is_of_service =
            |replica: &&Arc<Replica>| replica.service.as_ref().is_some_and(|launch| launch.name == service.name);
        let replicas: Vec<_> = replicas.iter().filter(is_of_service).cloned().collect();
        let (sender, answer) = oneshot::channel();
        let asked_replicas = replicas.clone();
        tasks.spawn(async move {
            let address = when_up(&asked_replicas).await;
            let outcome = timeout(ASK_LIMIT, ask(address)).await;
            let outcome = outcome.unwrap_or_else(|_| Err(format!("it has not told everything within {ASK_LIMIT:?}")));
            // It fails only if nobody waits any more.
            let _ = sender.send(outcome);
        });
        asked.push(service.name.name().to_owned());
        answers.push((replicas, answer));
    }
    let (notes, told) = watch::channel(Vec::new());
    let owners = file.services_by_contract().into_iter();
    let owners = owners.map(|(contract, of)| (contract.to_owned(), of[0].name().to_owned())).collect();
    tasks.spawn(give_all(answers, owners, notes, Arc::clone(mesh), orders.clone()));
    Notes { asked, told }
}

impl Notes {
    /// Waits for the notes on the services before the first one that is not up, but not longer than `limit`. Returns a
    /// note on each service, and how many of them are final.
    pub(super) async fn first(&mut self, is_up: impl Fn(&str) -> bool, limit: Duration) -> (Vec<Note>, usize) {
        let first_down = self.asked.iter().position(|name| !is_up(name)).unwrap_or(self.asked.len());
        let _ = timeout(limit, self.told.wait_for(|notes| notes.len() >= first_down)).await;
        let mut notes = self.told.borrow_and_update().clone();
        let count = notes.len();
        let waited_for = self.asked.get(count).cloned().unwrap_or_default();
        for service in self.asked.iter().skip(count) {
            let text = match *service == waited_for {
                true => "no contract known yet: it is asked by server reflection once it is up".to_owned(),
                false => {
                    format!("no contract known yet: {waited_for} stands before it in mesh.yaml and is asked first")
                }
            };
            notes.push(Note { service: service.clone(), text, contracts: None });
        }
        (notes, count)
    }

    /// Logs the notes that come after the first `count`.
    pub(super) async fn say_later(mut self, mut count: usize, logs: &Logs) {
        while let Ok(notes) = self.told.wait_for(|notes| notes.len() > count).await {
            for note in &notes[count..] {
                logs.say(format!("{}: {}", note.service, note.text));
            }
            count = notes.len();
        }
    }
}

/// The address of the first replica that is up.
async fn when_up(replicas: &[Arc<Replica>]) -> SocketAddr {
    let wait = |replica: &Arc<Replica>| {
        let replica = Arc::clone(replica);
        Box::pin(async move {
            while ready::wait(|| loopback(replica.ports.borrow().metrics), UP_LIMIT).await.is_err() {
                sleep(UP_INTERVAL).await;
            }
            loopback(replica.ports.borrow().app)
        }) as Pin<Box<dyn Future<Output = SocketAddr> + Send>>
    };
    select_all(replicas.iter().map(wait)).await.0
}

/// Asks a service itself, not through the mesh. The error says for people why no contract is known.
async fn ask(address: SocketAddr) -> Result<Told, String> {
    fetch(address).await.map_err(|error| match error.is::<NoReflection>() {
        true => "it does not answer server reflection".to_owned(),
        false => shown_up_to(&format!("{error:#}"), WHY_CHARS),
    })
}

async fn fetch(address: SocketAddr) -> anyhow::Result<Told> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(SERVICE.patience);
    let channel = endpoint.connect().await.context("it can't be asked for contracts")?;
    let mut reflection = Reflection::new(channel, SERVICE);
    let mut implements = reflection.services().await?;
    implements.retain(|name| !FOREIGN.iter().any(|package| name.starts_with(package)));
    ensure!(!implements.is_empty(), "it tells no contract of its own by server reflection");
    ensure!(implements.len() <= MAX_CONTRACTS, "it tells more than {MAX_CONTRACTS} contracts");
    for name in &implements {
        ensure!(is_contract_name(name), "it tells a contract with the name {name:?}");
        ensure!(reflection.fetch_symbol(name).await?, "it tells the contract {name}, but no file of it");
    }
    Ok(Told { descriptor_set: reflection.descriptor_set(), implements })
}

type Answer = oneshot::Receiver<Result<Told, String>>;

/// Gives each service its contracts, in the order of the file.
async fn give_all(
    answers: Vec<(Vec<Arc<Replica>>, Answer)>,
    mut owners: BTreeMap<String, String>,
    notes: watch::Sender<Vec<Note>>,
    mesh: Arc<Mesh>,
    orders: Orders,
) {
    for (replicas, answer) in answers {
        let Some(service) = replicas.first().and_then(|replica| replica.service.clone()) else { continue };
        // The asking task ends without an answer only if everything stops.
        let Ok(answer) = answer.await else { return };
        let name = service.name.name();
        let asked = name.to_owned();
        // Compiling a policy may take long.
        let judging = spawn_blocking(move || (judge(&asked, answer, &mut owners), owners));
        let Ok((judged, back)) = judging.await else { return };
        owners = back;
        let note = match judged {
            Err(text) => Note { service: name.to_owned(), text, contracts: None },
            Ok((contracts, text)) => match give(&service, &replicas, &contracts, &mesh, &orders).await {
                Ok(()) => Note { service: name.to_owned(), text, contracts: Some(Arc::new(contracts)) },
                Err(error) => {
                    let text = format!("its contracts can't be used: {error:#}");
                    Note { service: name.to_owned(), text, contracts: None }
                }
            },
        };
        notes.send_modify(|notes| notes.push(note));
    }
}

/// What a service gets of what it has told, with a text for people; or the reason why it gets nothing.
fn judge(
    service: &str,
    answer: Result<Told, String>,
    owners: &mut BTreeMap<String, String>,
) -> Result<(Told, String), String> {
    let contracts = answer.map_err(|why| format!("no contract known: no .proto files in mesh.yaml, and {why}"))?;
    let (of_others, implements): (Vec<_>, Vec<_>) =
        contracts.implements.into_iter().partition(|contract| owners.contains_key(contract));
    let of_others: Vec<_> =
        of_others.iter().map(|contract| format!("{contract} belongs to {}", owners[contract])).collect();
    if implements.is_empty() {
        return Err(format!("no contract of its own: {}", of_others.join(", ")));
    }
    if let Err(error) = ServicePolicy::from_descriptors(&contracts.descriptor_set, Some(&implements)) {
        let why = shown_up_to(&error.to_string(), WHY_CHARS);
        return Err(format!("no contract known: what it tells by server reflection is not valid: {why}"));
    }
    owners.extend(implements.iter().map(|contract| (contract.clone(), service.to_owned())));
    let mut text = format!("{}, told by server reflection", implements.join(", "));
    if !of_others.is_empty() {
        text.push_str(&format!("; {}", of_others.join(", ")));
    }
    Ok((Told { descriptor_set: contracts.descriptor_set, implements }, text))
}

/// Has the control plane pin contracts to a service, and waits until it has.
async fn grant(service: &ServiceName, contracts: &[String], mesh: &Mesh) -> anyhow::Result<()> {
    let state = StateArgs { state_dir: mesh.state_dir.join("control"), trust_domain: mesh.trust_domain.clone() };
    let (of, to, what) = (state.clone(), service.clone(), contracts.to_vec());
    // It may wait for the lock of the folder.
    tokio::task::spawn_blocking(move || weft_control::grant_contracts(&of, &to, &what)).await??;
    let pinned = async {
        while !weft_control::are_pinned_to(&state, service, contracts)? {
            sleep(GRANT_INTERVAL).await;
        }
        Ok(())
    };
    let late = || format!("the control plane did not grant them to {service} within {GRANT_LIMIT:?}");
    timeout(GRANT_LIMIT, pinned).await.with_context(late)?
}

/// Replaces the sidecars of a service by some that know its contracts. No call is lost.
async fn give(
    service: &ServiceLaunch,
    replicas: &[Arc<Replica>],
    contracts: &Told,
    mesh: &Mesh,
    orders: &Orders,
) -> anyhow::Result<()> {
    let file = mesh.state_dir.join("sidecars").join(format!("{}.told.binpb", service.name.name()));
    write_secret(&file, &contracts.descriptor_set).with_context(|| format!("{} can't be written", file.display()))?;
    grant(&service.name, &contracts.implements, mesh).await?;
    service.set_descriptors(Some(Descriptors { file, implements: contracts.implements.clone() }));
    for (index, replica) in replicas.iter().enumerate() {
        let name = replica.sidecar_name();
        let replaced = timeout(REPLACE_LIMIT, orders.give(&name, true)).await;
        let replaced = replaced.unwrap_or_else(|_| Err(format!("{name} was not replaced within {REPLACE_LIMIT:?}")));
        if let Err(why) = replaced {
            if index == 0 {
                // The next start of a sidecar would fail for the same reason.
                service.set_descriptors(None);
            }
            anyhow::bail!(why);
        }
    }
    Ok(())
}
