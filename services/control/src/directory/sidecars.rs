//! What is known of each sidecar: whether it is connected, whether it has been sent all that it follows, and of which
//! services it is an endpoint.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::Bound,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use weft_contracts::weft::discovery::v1::Health;
use weft_mesh::identity::SpiffeId;

use super::Directory;

/// How old the answer to a question may be.
const FRESH: Duration = Duration::from_millis(250);

/// By what a sidecar is known: its host's address and its identity. Connections that have both in common count as one.
pub(crate) type Key = (IpAddr, String);

/// A sidecar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sidecar {
    /// How many streams of discovery it has open. A sidecar has one, and for a moment two when it renews its identity.
    pub(crate) streams: usize,
    /// How long the oldest of them has been open, in seconds.
    pub(crate) connected_seconds: u64,
    /// How many services it follows.
    pub(crate) follows: usize,
    /// Of how many names it has not been sent the newest state.
    pub(crate) unsent: usize,
    pub(crate) endpoints: Vec<EndpointState>,
}

/// An endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndpointState {
    /// `NAME.NAMESPACE`
    pub(crate) service: String,
    pub(crate) health: Health,
    pub(crate) silent: bool,
}

/// All sidecars as they were at a time.
type Snapshot = (Instant, Arc<BTreeMap<Key, Sidecar>>);

/// The last snapshot, for all who ask within [`FRESH`]: making one takes time, and anybody can ask.
#[derive(Default)]
pub(super) struct LastSeen(Mutex<Option<Snapshot>>);

impl Directory {
    /// The sidecars after this one, sorted, at most so many, and whether there are more.
    pub(crate) fn sidecars(&self, after: Option<&Key>, most: usize) -> (Vec<(Key, Sidecar)>, bool) {
        let all = {
            let mut last = self.sidecars_seen.0.lock().unwrap_or_else(PoisonError::into_inner);
            match &*last {
                Some((at, all)) if at.elapsed() < FRESH => Arc::clone(all),
                _ => Arc::clone(&last.insert((Instant::now(), Arc::new(self.all_sidecars()))).1),
            }
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut later =
            all.range::<Key, _>((from, Bound::Unbounded)).map(|(key, sidecar)| (key.clone(), sidecar.clone()));
        let page = later.by_ref().take(most).collect();
        (page, later.next().is_some())
    }

    fn all_sidecars(&self) -> BTreeMap<Key, Sidecar> {
        let now = Instant::now();
        let mut all: BTreeMap<Key, Sidecar> = BTreeMap::new();
        let state = self.lock();
        for watched in state.watchers.states() {
            let id = SpiffeId::of_service(&self.trust_domain, &watched.who.service);
            let key = (watched.who.host.to_canonical(), id.to_string());
            let sidecar = all.entry(key).or_default();
            sidecar.streams += 1;
            let seconds = now.saturating_duration_since(watched.since).as_secs();
            sidecar.connected_seconds = sidecar.connected_seconds.max(seconds);
            sidecar.follows = sidecar.follows.max(watched.follows);
            sidecar.unsent += watched.unsent;
        }
        for (service, endpoint) in state.registry.endpoints() {
            let Ok(address) = endpoint.address.parse::<SocketAddr>() else { continue };
            let key = (address.ip().to_canonical(), endpoint.spiffe_id.clone());
            let of = EndpointState { service: service.to_string(), health: endpoint.health(), silent: endpoint.silent };
            all.entry(key).or_default().endpoints.push(of);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::{Claims, hosts::Hosts, visibility::Visibility};

    #[tokio::test(start_paused = true)]
    async fn each_sidecar_is_on_one_page() {
        let directory =
            Directory::new("weft.test".parse().unwrap(), Visibility::default(), Claims::default(), Hosts::default());
        let host = |last: u8| IpAddr::from([10, 0, 0, last]);
        let orders = weft_mesh::names::ServiceName::parse("orders.shop").unwrap();
        let watching: Vec<_> = (0..5).map(|last| directory.watch(&orders, host(last))).collect();
        let _second_stream = directory.watch(&orders, host(0));
        watching[1].update(|watcher| watcher.subscribe_service("users.shop")).unwrap();
        let (mut seen, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let (page, is_more) = directory.sidecars(after.as_ref(), 2);
            assert!(page.len() <= 2);
            after = page.last().map(|(key, _)| key.clone());
            seen.extend(page);
            pages += 1;
            if !is_more {
                break;
            }
        }
        assert_eq!(pages, 3);
        let hosts: Vec<IpAddr> = seen.iter().map(|((address, _), _)| *address).collect();
        assert_eq!(hosts, (0..5).map(host).collect::<Vec<_>>());
        assert!(seen.iter().all(|((_, id), _)| id == "spiffe://weft.test/ns/shop/sa/orders"));
        let states: Vec<_> = seen.iter().map(|(_, s)| (s.streams, s.follows, s.unsent)).collect();
        assert_eq!(states, [(2, 0, 0), (1, 1, 1), (1, 0, 0), (1, 0, 0), (1, 0, 0)]);
        assert!(watching[1].next().is_some());
        assert_eq!(directory.sidecars(None, 2).0[1].1.unsent, 1, "who asks again at once gets the same answer");
        tokio::time::advance(FRESH).await;
        assert_eq!(directory.sidecars(None, 2).0[1].1.unsent, 0, "it has read everything");
        drop(watching);
        tokio::time::advance(FRESH).await;
        assert_eq!(directory.sidecars(None, 9).0.len(), 1);
    }
}
