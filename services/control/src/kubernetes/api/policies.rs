//! The policies of the mesh as custom resources: watches them, has the rules that they say hold, and writes their status.
//!
//! What was read stays while the API server is away. What a new list has not is taken away when the list is whole.

mod programmed;

use std::{collections::BTreeSet, pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Duration, Instant, sleep, timeout},
};
use weft_mesh::limits::Rate;

use super::{LIST_PAUSE, MANAGER, TIMEOUT, due, seen::Seen};
use crate::{
    directory::rates::Buckets,
    kubernetes::{
        names::{POLICY_GROUP as GROUP, POLICY_VERSION as VERSION},
        policies::{Kind, Object, Policies, Programmed, Said, Settled, Told, Verdict, due::Due},
        workloads::Key,
    },
    rules::Rules,
};

/// How many objects a list has at once: each may be large, and all of a page are in memory.
const PAGE: u32 = 20;
/// The shortest time between two changes of the rules, however often objects change.
const SETTLE_PAUSE: Duration = Duration::from_millis(100);
/// How often the rules of one namespace change: at once, and then each second. What comes more often waits.
const SETTLED_OF_NAMESPACE: Rate = (10, 1, 0);
/// How long until what waits is looked at again.
const NEXT_LOOK: Duration = Duration::from_secs(1);
/// How many policies are read again at once.
const READ_AT_ONCE: usize = 4;
/// How many statuses are written at once.
const AT_ONCE: usize = 8;
/// The same of numbers of sidecars: with [`STATUS_PAUSE`], at most 20 are written in a second.
const COUNTS_AT_ONCE: usize = 2;
/// How many statuses are written for one namespace: at once, and then each second. Each is a write of the API server.
const WRITTEN_OF_NAMESPACE: Rate = (50, 1, 0);
/// How often sidecars are counted.
const COUNT_PAUSE: Duration = Duration::from_secs(10);
/// How soon after a change, when they have been told of it.
const COUNT_SOON: Duration = Duration::from_secs(2);
/// When first: by then, sidecars that were connected to a control plane before have found this one.
const COUNT_FIRST: Duration = Duration::from_secs(15);
/// How long a status takes the place of another one, so that nobody has the API server asked without end.
const STATUS_PAUSE: Duration = Duration::from_millis(100);
/// How long until a status that could not be written, or a policy that could not be read, is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long a kind may be there without being readable, where there were no rules of it before. Rights may follow after it.
const UNREADABLE: Duration = Duration::from_secs(60);
/// The longest reason and message that are taken from a status.
const TOLD_BYTES: usize = 8 * 1024;

type Found = Seen<DynamicObject, Content>;
type Events = Pin<Box<dyn Stream<Item = watcher::Result<Event<Found>>> + Send>>;

/// What is read of an object.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Content {
    spec: Value,
    status: Value,
}

/// The objects of a kind, as they are followed.
struct Followed {
    kind: Kind,
    events: Events,
    /// What a list that is not whole yet has.
    listed: BTreeSet<Key>,
    state: State,
    /// It was logged that nothing can be read yet.
    is_said: bool,
    /// Since when the cluster has a kind that it did not have before, and that can't be read.
    unreadable: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing is known yet.
    Waiting,
    /// The cluster has no such kind.
    Missing,
    Known,
    /// They are known, and the watch has broken.
    Broken,
}

/// Whether the API server has a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Has {
    Yes,
    No,
    Unknown,
}

/// What a request to the API server has come to.
enum Done {
    Told(Kind, Key, Result<Told, String>),
    Read(Kind, Key, Option<Object>),
    Counted(Kind, Key, Result<Said, String>),
}

/// Keeps the rules as the objects say, once `are_read`. Ends only if there are rules that can't be read, where there were none
/// when it began, and says why. A control plane that starts anew waits for them.
pub(super) async fn keep(client: Client, rules: Arc<Rules>, are_read: watch::Sender<bool>) -> anyhow::Error {
    let mut of_access = Followed::start(&client, Kind::AccessPolicy);
    let mut of_methods = Followed::start(&client, Kind::MethodPolicy);
    let mut of_defaults = Followed::start(&client, Kind::MeshDefaults);
    let mut keeper = Keeper::new(client);
    loop {
        keeper.write();
        let are_told = *are_read.borrow();
        let is_ready = [&of_access, &of_methods, &of_defaults].iter().all(|followed| followed.state != State::Waiting);
        let taken = tokio::select! {
            Some(event) = of_access.events.next() => keeper.take(&mut of_access, event, are_told).await,
            Some(event) = of_methods.events.next() => keeper.take(&mut of_methods, event, are_told).await,
            Some(event) = of_defaults.events.next() => keeper.take(&mut of_defaults, event, are_told).await,
            Some(done) = keeper.running.next() => {
                keeper.done(done);
                Ok(())
            }
            () = due(keeper.write_at) => Ok(()),
            () = due(Some(keeper.count_at)), if is_ready => {
                keeper.count(&rules);
                Ok(())
            }
            () = due(keeper.list_at) => {
                keeper.list_at = None;
                let lists_again = std::mem::take(&mut keeper.lists_again);
                for followed in [&mut of_access, &mut of_methods] {
                    if lists_again.contains(&followed.kind) {
                        followed.begin_anew(&keeper.client);
                    }
                }
                Ok(())
            }
            () = due(keeper.settle_at), if is_ready => {
                keeper.settle(&rules);
                are_read.send_replace(true);
                Ok(())
            }
        };
        if let Err(error) = taken {
            return error;
        }
    }
}

/// What the objects say, and what is being done about it.
struct Keeper {
    client: Client,
    policies: Policies,
    due: Due<Verdict>,
    /// The numbers of sidecars that are still to be written, beside the verdicts.
    counts: Due<Programmed>,
    running: FuturesUnordered<BoxFuture<'static, Done>>,
    /// The policies that are read again.
    reading: BTreeSet<(Kind, Key)>,
    /// It was logged that statuses can't be written.
    is_failing: bool,
    /// The same of the numbers of sidecars.
    are_counts_failing: bool,
    /// When to count sidecars next.
    count_at: Instant,
    /// Not before this.
    count_from: Instant,
    /// When to list all policies again, and of which kinds.
    list_at: Option<Instant>,
    lists_again: BTreeSet<Kind>,
    /// When to look again for statuses that may be written.
    write_at: Option<Instant>,
    /// How often each namespace may change the rules.
    rates: Buckets<String>,
    settled: Instant,
    /// When the rules are to be settled next; `None` if nothing has changed.
    settle_at: Option<Instant>,
}

impl Keeper {
    fn new(client: Client) -> Self {
        Self {
            client,
            policies: Policies::default(),
            due: Due::new(AT_ONCE, WRITTEN_OF_NAMESPACE),
            counts: Due::new(COUNTS_AT_ONCE, WRITTEN_OF_NAMESPACE),
            running: FuturesUnordered::new(),
            reading: BTreeSet::new(),
            is_failing: false,
            are_counts_failing: false,
            count_at: Instant::now() + COUNT_FIRST,
            count_from: Instant::now() + COUNT_FIRST,
            list_at: None,
            lists_again: BTreeSet::new(),
            write_at: None,
            rates: Buckets::new(SETTLED_OF_NAMESPACE),
            settled: Instant::now(),
            settle_at: None,
        }
    }

    /// # Errors
    /// As [`keep`] says, if sidecars `are_told` already.
    async fn take(
        &mut self,
        from: &mut Followed,
        event: watcher::Result<Event<Found>>,
        are_told: bool,
    ) -> anyhow::Result<()> {
        match from.take(event, &self.client, &mut self.policies).await {
            Err(error) if are_told => return Err(error),
            // Nobody was told that there are none.
            Err(_) => from.state = State::Waiting,
            Ok(()) => {}
        }
        self.settle_in(SETTLE_PAUSE);
        Ok(())
    }

    /// Has the rules settled, so long after the last time and not before now.
    fn settle_in(&mut self, pause: Duration) {
        let at = (self.settled + pause).max(Instant::now());
        self.settle_at = Some(self.settle_at.map_or(at, |before| before.min(at)));
    }

    fn settle(&mut self, rules: &Rules) {
        (self.settled, self.settle_at) = (Instant::now(), None);
        let (rates, at) = (&mut self.rates, self.settled);
        let Settled { rules: now, methods, is_whole, verdicts, to_read, lists_again } =
            self.policies.settle(|namespace| rates.take(namespace, at));
        let has_verdicts = !verdicts.is_empty();
        let (has_access, has_methods) = (rules.set(now), rules.set_methods(methods));
        if has_access || has_methods || has_verdicts {
            self.count_at = self.count_at.min(at + COUNT_SOON).max(self.count_from);
        }
        if has_access {
            tracing::debug!("the rules for who may call have changed");
        }
        if has_methods {
            tracing::debug!("what MethodPolicies say has changed");
        }
        if !lists_again.is_empty() {
            self.lists_again.extend(lists_again);
            self.list_at = self.list_at.or(Some(at + LIST_PAUSE));
        }
        if !is_whole {
            self.settle_in(NEXT_LOOK);
        }
        verdicts.into_iter().for_each(|(kind, key, verdict)| self.due.set(kind, key, verdict));
        for (kind, key) in to_read {
            if self.reading.len() >= READ_AT_ONCE {
                // When one of them is done, it is settled again.
                self.policies.look_again(&key.0);
            } else if self.reading.insert((kind, key.clone())) {
                self.running.push(Box::pin(read_again(self.client.clone(), kind, key)));
            }
        }
    }

    /// Starts to write statuses, as many as may be written at once.
    fn write(&mut self) {
        let now = Instant::now();
        while let Some((kind, key, verdict)) = self.due.next(now) {
            let since = self.policies.since(kind, &key);
            self.running.push(Box::pin(tell(self.client.clone(), kind, key, verdict, since)));
        }
        self.write_counts(now);
        // If there is room, the next ones were written too often.
        let is_held = self.due.is_held() || self.counts.is_held();
        self.write_at = is_held.then(|| now + NEXT_LOOK);
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Told(kind, key, told) => {
                self.due.done(kind, &key);
                match told {
                    Ok(told) => {
                        self.policies.told(kind, &key, told);
                        self.is_failing = false;
                    }
                    Err(error) => {
                        // Once for each trouble.
                        if !std::mem::replace(&mut self.is_failing, true) {
                            tracing::warn!(error, "the status of a policy could not be written; it is tried again");
                        }
                        self.policies.look_again(&key.0);
                        self.settle_in(AGAIN);
                    }
                }
            }
            Done::Counted(kind, key, said) => self.counted(kind, &key, said),
            Done::Read(kind, key, object) => {
                self.reading.remove(&(kind, key.clone()));
                match object {
                    Some(object) => {
                        self.policies.read_again(kind, key, object);
                        self.settle_in(SETTLE_PAUSE);
                    }
                    None => {
                        self.policies.look_again(&key.0);
                        self.settle_in(AGAIN);
                    }
                }
            }
        }
    }
}

/// A list of all objects of a kind, and then a watch.
fn events(client: &Client, kind: Kind) -> Events {
    let api = Api::<Found>::all_with(client.clone(), &resource(kind));
    Box::pin(watcher(api, watcher::Config::default().page_size(PAGE)).default_backoff())
}

impl Followed {
    fn start(client: &Client, kind: Kind) -> Self {
        Self {
            kind,
            events: events(client, kind),
            listed: BTreeSet::new(),
            state: State::Waiting,
            is_said: false,
            unreadable: None,
        }
    }

    /// Lists all again.
    fn begin_anew(&mut self, client: &Client) {
        self.events = events(client, self.kind);
        self.listed.clear();
    }

    /// # Errors
    /// As [`keep`] says.
    async fn take(
        &mut self,
        event: watcher::Result<Event<Found>>,
        client: &Client,
        to: &mut Policies,
    ) -> anyhow::Result<()> {
        let kind = self.kind;
        match event {
            Ok(Event::Init) => self.listed.clear(),
            Ok(Event::InitApply(found)) => {
                self.listed.insert(key(&found));
                to.set(kind, key(&found), object(found));
            }
            Ok(Event::InitDone) => {
                to.retain(kind, &std::mem::take(&mut self.listed));
                match self.state {
                    State::Missing => {
                        tracing::info!(kind = kind.as_str(), "the cluster has such a kind of objects now")
                    }
                    State::Broken => tracing::info!(kind = kind.as_str(), "the watch goes on"),
                    State::Waiting | State::Known => {}
                }
                (self.state, self.unreadable) = (State::Known, None);
            }
            Ok(Event::Apply(found)) => to.set(kind, key(&found), object(found)),
            Ok(Event::Delete(found)) => to.remove(kind, &key(&found)),
            Err(error) => return self.broken(error, client).await,
        }
        Ok(())
    }

    /// As long as nothing was read, only a cluster that has no such kind is one without rules.
    ///
    /// # Errors
    /// As [`keep`] says.
    async fn broken(&mut self, error: watcher::Error, client: &Client) -> anyhow::Result<()> {
        let (kind, plural) = (self.kind.as_str(), self.kind.plural());
        let before = self.state;
        let found = match before {
            State::Known | State::Broken => Has::Unknown,
            State::Waiting | State::Missing => find(client, self.kind).await,
        };
        self.state = match (before, found) {
            (State::Known | State::Broken, _) => State::Broken,
            (_, Has::No) => State::Missing,
            (before, _) => before,
        };
        let error = error.to_string();
        match (before, found) {
            (State::Missing, Has::Yes) => {
                let since = *self.unreadable.get_or_insert_with(|| {
                    tracing::warn!(
                        kind,
                        error,
                        "the cluster has such a kind of objects now, and they can't be read, so they have no effect: the \
                         control plane needs the right to list and watch {plural}.{GROUP}, which `weft install` has"
                    );
                    Instant::now()
                });
                anyhow::ensure!(
                    since.elapsed() < UNREADABLE || self.kind == Kind::MethodPolicy,
                    "there may be rules for who may call, and {plural}.{GROUP} can't be read: {error}; the control plane \
                     needs the right to list and watch them, which `weft install` has"
                );
            }
            (_, Has::No) => self.unreadable = None,
            _ => {}
        }
        match (before, self.state) {
            (State::Waiting, State::Missing) => tracing::info!(
                kind,
                "the cluster has no such kind of objects, so there are no rules of it: `weft install --crds` has it"
            ),
            (State::Waiting, _) if !std::mem::replace(&mut self.is_said, true) => {
                tracing::warn!(kind, error, "can't be read yet; sidecars wait for it");
            }
            (State::Known, _) => tracing::warn!(kind, error, "a watch broke; it is begun anew"),
            _ => tracing::debug!(kind, error, "can't be read or watched; it is begun anew"),
        }
        Ok(())
    }
}

/// Whether the API server says that it has a kind. Its answer to a list is no proof: that may be a lack of rights.
async fn find(client: &Client, kind: Kind) -> Has {
    match timeout(TIMEOUT, client.list_api_group_resources(&format!("{GROUP}/{VERSION}"))).await {
        Ok(Ok(found)) if found.resources.iter().any(|resource| resource.name == kind.plural()) => Has::Yes,
        Ok(Ok(_)) => Has::No,
        // It says so in plain text.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Has::No,
        _ => Has::Unknown,
    }
}

fn resource(kind: Kind) -> ApiResource {
    ApiResource {
        group: GROUP.to_owned(),
        version: VERSION.to_owned(),
        api_version: format!("{GROUP}/{VERSION}"),
        kind: kind.as_str().to_owned(),
        plural: kind.plural().to_owned(),
    }
}

fn key(object: &Found) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn object(found: Found) -> Object {
    let Content { spec, status } = found.content;
    let metadata = found.metadata;
    Object {
        uid: metadata.uid.unwrap_or_default(),
        created: metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
        generation: metadata.generation.unwrap_or_default(),
        spec,
        told: told(&status),
        said: programmed::said(&status),
    }
}

/// What the condition `Accepted` says. `None` if it is not as the control plane writes it.
fn told(status: &Value) -> Option<Told> {
    let conditions = status["conditions"].as_array()?;
    let condition = conditions.iter().find(|condition| condition["type"] == "Accepted")?;
    let text = |key: &str| condition[key].as_str().filter(|text| text.len() <= TOLD_BYTES).map(str::to_owned);
    let verdict = Verdict {
        generation: condition["observedGeneration"].as_i64()?,
        is_accepted: match condition["status"].as_str()? {
            "True" => true,
            "False" => false,
            _ => return None,
        },
        reason: text("reason")?,
        message: text("message")?,
    };
    Some(Told { verdict, since: text("lastTransitionTime")? })
}

/// Writes a status. What is there besides the condition stays.
async fn tell(client: Client, kind: Kind, key: Key, verdict: Verdict, since: Option<(bool, String)>) -> Done {
    let since = began(since, verdict.is_accepted);
    let status = json!({"conditions": [{
        "type": "Accepted",
        "status": if verdict.is_accepted { "True" } else { "False" },
        "reason": verdict.reason,
        "message": verdict.message,
        "observedGeneration": verdict.generation,
        "lastTransitionTime": since,
    }]});
    let told = write(&client, MANAGER, kind, &key, status).await.map(|()| Told { verdict, since });
    Done::Told(kind, key, told)
}

/// When a condition began to be true, or not: as it was written if it `is` as before, or else now.
fn began(before: Option<(bool, String)>, is: bool) -> String {
    let before = before.filter(|(was, _)| *was == is).map(|(_, since)| since);
    before.unwrap_or_else(|| k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// Writes what a manager says in the status of an object. What others say there stays.
async fn write(client: &Client, manager: &str, kind: Kind, key: &Key, status: Value) -> Result<(), String> {
    let (namespace, name) = key;
    let mut metadata = json!({"name": name});
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.as_str().into();
    }
    let content = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": kind.as_str(),
        "metadata": metadata,
        "status": status,
    });
    let api = api_of(client, kind, namespace);
    let params = PatchParams::apply(manager).force();
    let written = timeout(TIMEOUT, api.patch_status(name, &params, &Patch::Apply(content))).await;
    sleep(STATUS_PAUSE).await;
    match written {
        Ok(Ok(_)) => Ok(()),
        // It was deleted meanwhile, which the watch tells.
        Ok(Err(kube::Error::Api(status))) if status.is_not_found() => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// Reads a policy that there was no room for before.
async fn read_again(client: Client, kind: Kind, key: Key) -> Done {
    let api = api_of(&client, kind, &key.0);
    // Like the watch, this needs the right to list and no other.
    let params = ListParams::default().fields(&format!("metadata.name={}", key.1));
    let found = timeout(TIMEOUT, api.list(&params)).await;
    sleep(STATUS_PAUSE).await;
    let found = found.ok().and_then(Result::ok).and_then(|found| found.items.into_iter().next());
    Done::Read(kind, key, found.map(object))
}

fn api_of(client: &Client, kind: Kind, namespace: &str) -> Api<Found> {
    match kind {
        Kind::AccessPolicy | Kind::MethodPolicy => Api::namespaced_with(client.clone(), namespace, &resource(kind)),
        Kind::MeshDefaults => Api::all_with(client.clone(), &resource(kind)),
    }
}

#[cfg(test)]
mod tests;
