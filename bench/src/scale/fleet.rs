//! Simulated sidecars.

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use weft_contracts::weft::discovery::v1::{
    Announce, AnnounceRequest, Endpoint, Health, Heartbeat, Protocol, WatchRequest, WatchResponse,
    announce_request::What, discovery_client::DiscoveryClient, registry_client::RegistryClient, watch_request,
    watch_response,
};
use weft_mesh::{
    limits,
    tls::{Svid, TrustBundle},
};

use crate::{
    identity,
    weft::{Control, NAMESPACE, WeftOptions},
};

/// The largest number of sidecars: each has an address of its own, `127.1.X.Y`.
pub(super) const MOST: usize = 250 * 250;
/// How many join at once.
const AT_ONCE: usize = 64;
/// How long a watcher may take to learn of a change, or of the services that it watches.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) sidecars: usize,
    pub(super) services: usize,
    pub(super) watched: usize,
}

impl Size {
    /// The services that a sidecar watches, spread over all of them.
    fn watched_by(self, sidecar: usize) -> impl Iterator<Item = usize> {
        let step = (self.services / self.watched).max(1);
        (0..self.watched).map(move |n| (sidecar + n * step) % self.services)
    }

    /// How many sidecars watch a service.
    fn watchers_of(self, service: usize) -> usize {
        (0..self.sidecars).filter(|sidecar| self.watched_by(*sidecar).any(|watched| watched == service)).count()
    }
}

/// All sidecars.
pub(super) struct Fleet {
    size: Size,
    members: Vec<Member>,
    sightings: mpsc::UnboundedReceiver<Sighting>,
    heartbeats: JoinHandle<()>,
    /// The first failure of any of them.
    failure: Arc<Mutex<Option<String>>>,
}

/// One sidecar, whose streams are read by tasks.
struct Member {
    requests: mpsc::Sender<AnnounceRequest>,
    is_up: bool,
}

/// A watcher has learned of an endpoint's health.
struct Sighting {
    endpoint: usize,
    is_up: bool,
    at: Instant,
}

impl Fleet {
    /// Joins all sidecars, and returns when each knows all services that it watches.
    pub(super) async fn join(control: &Control, weft: &WeftOptions, size: Size) -> Result<Self> {
        let bundle = TrustBundle::from_pem(&control.bundle()?)?;
        let svids: Vec<Svid> = stream::iter(0..size.services)
            .map(|service| svid(control, weft, &bundle, service))
            .buffered(4)
            .try_collect()
            .await?;
        let (seen, sightings) = mpsc::unbounded_channel();
        let failure = Arc::new(Mutex::new(None));
        let joining = Joining { control, bundle: &bundle, svids: &svids, size, seen, failure: Arc::clone(&failure) };
        let members: Vec<Member> =
            stream::iter(0..size.sidecars).map(|sidecar| joining.join(sidecar)).buffered(AT_ONCE).try_collect().await?;
        drop(joining);
        let requests: Vec<_> = members.iter().map(|member| member.requests.clone()).collect();
        let heartbeats = tokio::spawn(keep(requests));
        Ok(Self { size, members, sightings, heartbeats, failure })
    }

    /// Changes the health of one endpoint. Returns how long each watcher took to learn of it, and how many did not.
    pub(super) async fn change(&mut self, number: usize) -> Result<(Vec<Duration>, usize)> {
        // Another service each time.
        let index = number * 7 % self.size.sidecars;
        let watchers = self.size.watchers_of(index % self.size.services);
        while self.sightings.try_recv().is_ok() {}
        let member = &mut self.members[index];
        member.is_up = !member.is_up;
        let is_up = member.is_up;
        let health = if is_up { Health::Up } else { Health::Down };
        let start = Instant::now();
        let what = Some(What::Heartbeat(Heartbeat { health: health.into() }));
        member.requests.send(AnnounceRequest { what }).await.context("an announcing stream has ended")?;
        let mut times = Vec::new();
        while times.len() < watchers {
            let Ok(Some(sighting)) = timeout(PATIENCE, self.sightings.recv()).await else { break };
            if sighting.endpoint == index && sighting.is_up == is_up {
                times.push(sighting.at.saturating_duration_since(start));
            }
        }
        let missed = watchers - times.len();
        Ok((times, missed))
    }

    /// Checks that all streams are still open.
    pub(super) fn check(&self) -> Result<()> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(failure.is_none(), "a sidecar lost its stream: {}", failure.as_deref().unwrap_or_default());
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.heartbeats.abort();
    }
}

fn service_name(service: usize) -> String {
    format!("s{service}")
}

fn endpoint_id(sidecar: usize) -> String {
    format!("sidecar-{sidecar}")
}

fn address(sidecar: usize) -> Ipv4Addr {
    let octet = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    Ipv4Addr::new(127, 1, octet(sidecar / 250), octet(1 + sidecar % 250))
}

async fn svid(control: &Control, weft: &WeftOptions, bundle: &TrustBundle, service: usize) -> Result<Svid> {
    let token = control.join_token(weft, &service_name(service)).await?;
    identity::join_with(control.address, token, bundle).await
}

/// What each sidecar needs to join.
struct Joining<'a> {
    control: &'a Control,
    bundle: &'a TrustBundle,
    /// By service.
    svids: &'a [Svid],
    size: Size,
    seen: mpsc::UnboundedSender<Sighting>,
    failure: Arc<Mutex<Option<String>>>,
}

impl Joining<'_> {
    async fn join(&self, sidecar: usize) -> Result<Member> {
        let service = sidecar % self.size.services;
        let svid = &self.svids[service];
        let from = address(sidecar);
        let channel = identity::connect_from(from, self.control.address, Some(svid), self.bundle).await?;

        let endpoint = Endpoint {
            id: endpoint_id(sidecar),
            address: format!("{from}:15006"),
            spiffe_id: svid.id().to_string(),
            health: Health::Up.into(),
            silent: false,
        };
        let announce = Announce {
            service: format!("{}.{NAMESPACE}", service_name(service)),
            endpoint: Some(endpoint),
            protocol: Protocol::Http2.into(),
            contracts: vec![format!("bench.v1.S{service}")],
            ..Announce::default()
        };
        let (requests, queue) = mpsc::channel(4);
        requests.send(AnnounceRequest { what: Some(What::Announce(announce)) }).await?;
        let opened = RegistryClient::new(channel.clone()).announce(ReceiverStream::new(queue)).await;
        let mut answers = opened.context("an endpoint can't be announced")?.into_inner();
        answers.message().await.context("an endpoint was not taken")?.context("an endpoint was not answered")?;
        let failure = Arc::clone(&self.failure);
        tokio::spawn(async move {
            while let Ok(Some(_)) = answers.message().await {}
            note(&failure, "announcing ended");
        });
        timeout(PATIENCE, self.watch(sidecar, channel))
            .await
            .context("the control plane has not answered a subscription")??;
        Ok(Member { requests, is_up: true })
    }

    /// Subscribes, waits until all services are known, and leaves further reading to a task.
    async fn watch(&self, sidecar: usize, channel: tonic::transport::Channel) -> Result<()> {
        let mut missing: HashSet<String> =
            self.size.watched_by(sidecar).map(|service| format!("{}.{NAMESPACE}", service_name(service))).collect();
        let asked = missing.clone().into_iter().map(watch_request::What::SubscribeService);
        let asked = stream::iter(asked.map(|what| WatchRequest { what: Some(what) }).collect::<Vec<_>>());
        // The stream of requests stays open, as a sidecar's does.
        let asked = asked.chain(stream::pending());
        let mut told = DiscoveryClient::new(channel).watch(asked).await?.into_inner();
        while !missing.is_empty() {
            match told.message().await?.context("a watching stream ended")?.what {
                Some(watch_response::What::Snapshot(snapshot)) => drop(missing.remove(&snapshot.name)),
                // Its first endpoint may not have joined yet. A snapshot follows when it does.
                Some(watch_response::What::NotFound(not_found)) => {
                    if let Some(weft_contracts::weft::discovery::v1::not_found::What::Service(name)) = not_found.what {
                        missing.remove(&name);
                    }
                }
                _ => {}
            }
        }
        let (seen, failure) = (self.seen.clone(), Arc::clone(&self.failure));
        tokio::spawn(async move {
            loop {
                match told.message().await {
                    Ok(Some(response)) => report(&seen, response),
                    Ok(None) => return note(&failure, "watching ended"),
                    Err(status) => return note(&failure, &status.to_string()),
                }
            }
        });
        Ok(())
    }
}

fn note(failure: &Mutex<Option<String>>, what: &str) {
    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| what.to_owned());
}

fn report(seen: &mpsc::UnboundedSender<Sighting>, response: WatchResponse) {
    let Some(watch_response::What::Change(change)) = response.what else { return };
    for endpoint in change.upserted {
        let number = endpoint.id.strip_prefix("sidecar-").and_then(|number| number.parse().ok());
        if let Some(number) = number {
            let is_up = endpoint.health() == Health::Up;
            // Fails at the end of the run.
            let _ = seen.send(Sighting { endpoint: number, is_up, at: Instant::now() });
        }
    }
}

/// Sends a heartbeat for each sidecar in turn, for all of them within the interval.
async fn keep(members: Vec<mpsc::Sender<AnnounceRequest>>) {
    let pause = limits::HEARTBEAT_INTERVAL / u32::try_from(members.len().max(1)).unwrap_or(u32::MAX);
    let mut ticks = tokio::time::interval(pause.max(Duration::from_micros(1)));
    loop {
        for member in &members {
            ticks.tick().await;
            // `Unspecified` does not change its health. If a stream has ended, the task that reads it notes it.
            let _ = member.try_send(AnnounceRequest { what: Some(What::Heartbeat(Heartbeat::default())) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_has_the_same_number_of_watchers() {
        let size = Size { sidecars: 200, services: 20, watched: 10 };
        assert!((0..20).all(|service| size.watchers_of(service) == 100));
        assert!((0..200).all(|sidecar| size.watched_by(sidecar).collect::<HashSet<_>>().len() == 10));
    }

    #[test]
    fn every_sidecar_has_an_address_of_its_own() {
        let addresses: HashSet<_> = (0..5_000).map(address).collect();
        assert_eq!(addresses.len(), 5_000);
    }
}
