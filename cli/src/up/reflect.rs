//! Which service has the contracts of services that `mesh.yaml` names no `.proto` files for. Each is asked by server
//! reflection, once it is up. Its sidecars ask as well, and hold its options; what is decided here is which of several
//! services is called by the name of a contract.
//!
//! `mesh.yaml` has the last word: a contract that it gives to a service belongs to that service. Of two services that
//! tell the same other contract, the first in the file has it, whichever answers first. So a service gets its contracts
//! when all services before it that are asked have answered. It keeps them until `weft up` ends.
//!
//! The control plane's file does not name these contracts, so they belong to nobody until they are granted to an identity.
//! That happens here.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures_util::future::select_all;
use tokio::{
    sync::{oneshot, watch},
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use weft_control::StateArgs;
use weft_mesh::{
    names::{ServiceName, shown_up_to},
    policy::ServicePolicy,
    reflection::{ReflectionError, Told, told_by},
};

use super::{
    launch::{Mesh, Replica},
    logs::Logs,
    ports::loopback,
    ready,
};
use crate::mesh_file::MeshFile;

/// How long the control plane may take to pin what is granted, even if it is just being started again.
const GRANT_LIMIT: Duration = Duration::from_secs(60);
const GRANT_INTERVAL: Duration = Duration::from_millis(50);
/// How often it is asked whether a service is up, after the first time.
const UP_INTERVAL: Duration = Duration::from_secs(1);
/// How long the first series of questions whether a service is up goes on.
const UP_LIMIT: Duration = Duration::from_secs(20);
/// The most characters of an error that is shown.
const WHY_CHARS: usize = 400;

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
pub(super) fn start(tasks: &mut JoinSet<()>, file: &MeshFile, mesh: &Arc<Mesh>, replicas: &[Arc<Replica>]) -> Notes {
    let (mut asked, mut answers) = (Vec::new(), Vec::new());
    for service in file.services.iter().filter(|service| service.is_asked) {
        let is_of_service =
            |replica: &&Arc<Replica>| replica.service.as_ref().is_some_and(|launch| launch.name == service.name);
        let replicas: Vec<_> = replicas.iter().filter(is_of_service).cloned().collect();
        let (sender, answer) = oneshot::channel();
        tasks.spawn(async move {
            // It fails only if nobody waits any more.
            let _ = sender.send(told_by(when_up(&replicas).await).await);
        });
        asked.push(service.name.name().to_owned());
        answers.push((service.name.clone(), answer));
    }
    let (notes, told) = watch::channel(Vec::new());
    let owners = file.services_by_contract().into_iter();
    let owners = owners.map(|(contract, of)| (contract.to_owned(), of[0].name().to_owned())).collect();
    tasks.spawn(give_all(answers, owners, notes, Arc::clone(mesh)));
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

type Answer = oneshot::Receiver<Result<Told, ReflectionError>>;

/// Gives each service its contracts, in the order of the file.
async fn give_all(
    answers: Vec<(ServiceName, Answer)>,
    mut owners: BTreeMap<String, String>,
    notes: watch::Sender<Vec<Note>>,
    mesh: Arc<Mesh>,
) {
    for (service, answer) in answers {
        // The asking task ends without an answer only if everything stops.
        let Ok(answer) = answer.await else { return };
        let name = service.name();
        let asked = name.to_owned();
        // Compiling a policy may take long.
        let judging = spawn_blocking(move || (judge(&asked, answer, &mut owners), owners));
        let Ok((judged, back)) = judging.await else { return };
        owners = back;
        let (text, contracts) = match judged {
            Err(text) => (text, None),
            Ok((contracts, text)) => match grant(&service, &contracts.implements, &mesh).await {
                Ok(()) => (text, Some(Arc::new(contracts))),
                Err(error) => (format!("it is not called by its contracts: {error:#}"), None),
            },
        };
        notes.send_modify(|notes| notes.push(Note { service: name.to_owned(), text, contracts }));
    }
}

/// What a service gets of what it has told, with a text for people; or the reason why it gets nothing.
fn judge(
    service: &str,
    answer: Result<Told, ReflectionError>,
    owners: &mut BTreeMap<String, String>,
) -> Result<(Told, String), String> {
    let unknown = |why: &str| format!("no contract known: no .proto files in mesh.yaml, and {why}");
    let contracts = answer.map_err(|why| unknown(&why.to_string()))?;
    if contracts.implements.is_empty() {
        return Err(match contracts.incomplete.first() {
            Some(why) => unknown(why),
            None => unknown("it tells no contract of its own by server reflection"),
        });
    }
    let (of_others, implements): (Vec<_>, Vec<_>) =
        contracts.implements.iter().cloned().partition(|contract| owners.contains_key(contract));
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
    for why in &contracts.incomplete {
        text.push_str(&format!("; {why}"));
    }
    Ok((Told { implements, ..contracts }, text))
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
