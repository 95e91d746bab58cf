//! One watcher of the registry: what it follows, and what it has not been sent yet.
//!
//! A plain state machine. What waits is bounded by what is followed: up to [`limits::WATCH_QUEUE`] changes of a service
//! wait, and if there are more they are replaced by one snapshot, which is taken when the watcher reads it. So a
//! watcher that reads slowly costs little and never gets outdated state.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use weft_contracts::weft::discovery::v1::{
    Change, ContractOwner, NotFound, WatchResponse, not_found, watch_response::What,
};
use weft_mesh::{limits, names::ServiceName};

use super::{
    hints,
    registry::{Event, Registry},
};
use crate::claims::{is_address, visibility::Sight};

/// The watcher follows [`limits::SERVICES_WATCHED`] services and contracts already.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("one stream follows {} services and contracts at most", limits::SERVICES_WATCHED)]
pub(crate) struct TooManyWatched;

/// A service that is followed, and what waits to be sent of it: changes in their order, then perhaps a snapshot. Before
/// the registry is settled a snapshot removes nothing, so the changes before it are sent as well.
#[derive(Debug, Default)]
struct Followed {
    changes: VecDeque<Arc<Change>>,
    owes_snapshot: bool,
    /// A snapshot was sent, and changes apply to it.
    is_known: bool,
}

impl Followed {
    fn has_news(&self) -> bool {
        self.owes_snapshot || !self.changes.is_empty()
    }

    /// Sends a snapshot, and no change before it.
    fn begin_anew(&mut self) {
        self.changes.clear();
        self.owes_snapshot = true;
        self.is_known = false;
    }
}

/// A contract that was asked for.
#[derive(Debug, Default)]
struct Asked {
    owner: Option<ServiceName>,
    is_pending: bool,
}

#[derive(Debug)]
enum Item {
    Service(ServiceName),
    Contract(String),
    /// A name that no service or contract can have: it is answered once.
    Impossible(not_found::What),
}

/// A change of what a watcher follows, for the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Move {
    Follows(ServiceName),
    Leaves(ServiceName),
    /// It follows a contract or an address.
    Asks(String),
    Forgets(String),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Watcher {
    services: HashMap<ServiceName, Followed>,
    contracts: HashMap<String, Asked>,
    /// The names with something to send, each once, in the order in which it came.
    queue: VecDeque<Item>,
    /// The changes of `services` and `contracts` since [`Self::take_moves`] was last called.
    moves: Vec<Move>,
    /// How many answers may still contain the closest name, in this second.
    hints: u32,
    sight: Sight,
}

impl Default for Watcher {
    fn default() -> Self {
        Self::new(Sight::default())
    }
}

impl Watcher {
    /// A watcher of what is in sight. Everything else is answered as missing.
    pub(crate) fn new(sight: Sight) -> Self {
        let (services, contracts, queue, moves) = Default::default();
        Self { services, contracts, queue, moves, hints: limits::HINTS_PER_SECOND, sight }
    }

    /// The changes of what it follows since the last call, in order.
    pub(crate) fn take_moves(&mut self) -> impl Iterator<Item = Move> {
        std::mem::take(&mut self.moves).into_iter()
    }

    /// Ends the watcher: it leaves all that it followed.
    pub(crate) fn into_followed(self) -> impl Iterator<Item = Move> {
        let services = self.services.into_keys().map(Move::Leaves);
        services.chain(self.contracts.into_keys().map(Move::Forgets))
    }

    /// A second has passed: hints may be given again.
    pub(crate) fn allow_hints(&mut self) {
        self.hints = limits::HINTS_PER_SECOND;
    }

    /// Answers once that the name does not exist and cannot exist.
    pub(crate) fn answer_impossible(&mut self, what: not_found::What) {
        self.queue.push_back(Item::Impossible(what));
    }

    /// Follows a service by its full name, and sends a snapshot of it.
    pub(crate) fn subscribe_service(&mut self, name: &str) -> Result<(), TooManyWatched> {
        let Ok(service) = ServiceName::parse(name) else {
            self.answer_impossible(not_found::What::Service(name.to_owned()));
            return Ok(());
        };
        if !self.sight.sees(&service) {
            self.answer_impossible(not_found::What::Service(name.to_owned()));
            return Ok(());
        }
        if !self.services.contains_key(&service) {
            self.check_room()?;
        }
        self.owe_snapshot(service);
        Ok(())
    }

    /// Follows a contract or an address, and with it the service that implements it or is called there. The name must
    /// be a possible one.
    pub(crate) fn subscribe_contract(&mut self, contract: &str) -> Result<(), TooManyWatched> {
        if !self.contracts.contains_key(contract) {
            self.check_room()?;
            self.contracts.insert(contract.to_owned(), Asked::default());
            self.moves.push(Move::Asks(contract.to_owned()));
        }
        self.owe_owner(contract);
        Ok(())
    }

    /// Stops following a service, and the contracts that it owns.
    pub(crate) fn unsubscribe_service(&mut self, name: &str) {
        let Ok(service) = ServiceName::parse(name) else { return };
        let Self { contracts, moves, .. } = self;
        contracts.retain(|contract, asked| {
            let is_of_others = asked.owner.as_ref() != Some(&service);
            if !is_of_others {
                moves.push(Move::Forgets(contract.clone()));
            }
            is_of_others
        });
        self.leave(service);
    }

    fn leave(&mut self, service: ServiceName) {
        if self.services.remove(&service).is_some() {
            self.moves.push(Move::Leaves(service));
        }
    }

    fn check_room(&self) -> Result<(), TooManyWatched> {
        if self.services.len() + self.contracts.len() < limits::SERVICES_WATCHED { Ok(()) } else { Err(TooManyWatched) }
    }

    /// Takes an event. True if there is something to send.
    pub(crate) fn observe(&mut self, event: &Event) -> bool {
        match event {
            Event::Endpoints(service, change) => self.owe_change(service, change),
            Event::Service(service) => {
                self.owe_snapshot_again(service);
            }
            Event::Contract(contract) => {
                if self.contracts.contains_key(contract) {
                    self.owe_owner(contract);
                }
            }
            Event::Settled => {
                let services: Vec<ServiceName> = self.services.keys().cloned().collect();
                services.iter().for_each(|service| self.owe_snapshot_again(service));
                let unknown = self.contracts.iter().filter(|(_, asked)| asked.owner.is_none());
                let unknown: Vec<String> = unknown.map(|(contract, _)| contract.clone()).collect();
                unknown.iter().for_each(|contract| self.owe_owner(contract));
            }
        }
        self.has_news()
    }

    /// How many services are followed.
    pub(crate) fn services_followed(&self) -> usize {
        self.services.len()
    }

    /// Whether all that is known of a service was sent.
    #[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only statuses of objects say it"))]
    pub(crate) fn has_sent(&self, service: &ServiceName) -> bool {
        self.services.get(service).is_some_and(|followed| followed.is_known && !followed.has_news())
    }

    /// Of how many names something waits to be sent.
    pub(crate) fn unsent(&self) -> usize {
        self.queue.len()
    }

    /// Whether [`Self::next`] has a response.
    pub(crate) fn has_news(&self) -> bool {
        !self.queue.is_empty()
    }

    fn owe_change(&mut self, service: &ServiceName, change: &Arc<Change>) {
        let Some(followed) = self.services.get_mut(service) else { return };
        if followed.owes_snapshot && !followed.is_known {
            // The snapshot is taken when it is read, so it will contain the change.
            return;
        }
        let had_news = followed.has_news();
        if followed.changes.len() < limits::WATCH_QUEUE {
            followed.changes.push_back(Arc::clone(change));
        } else {
            followed.begin_anew();
        }
        if !had_news {
            self.queue.push_back(Item::Service(service.clone()));
        }
    }

    /// A snapshot of a service, if it is followed.
    fn owe_snapshot_again(&mut self, service: &ServiceName) {
        let Some(followed) = self.services.get_mut(service) else { return };
        let had_news = followed.has_news();
        if followed.is_known {
            followed.owes_snapshot = true;
        } else {
            followed.begin_anew();
        }
        if !had_news {
            self.queue.push_back(Item::Service(service.clone()));
        }
    }

    fn owe_snapshot(&mut self, service: ServiceName) {
        let moves = &mut self.moves;
        let followed = self.services.entry(service.clone()).or_insert_with_key(|service| {
            moves.push(Move::Follows(service.clone()));
            Followed::default()
        });
        let had_news = followed.has_news();
        followed.begin_anew();
        if !had_news {
            self.queue.push_back(Item::Service(service));
        }
    }

    fn owe_owner(&mut self, contract: &str) {
        if let Some(asked) = self.contracts.get_mut(contract)
            && !asked.is_pending
        {
            asked.is_pending = true;
            self.queue.push_back(Item::Contract(contract.to_owned()));
        }
    }

    /// The next response.
    pub(crate) fn next(&mut self, registry: &Registry) -> Option<WatchResponse> {
        loop {
            let what = match self.queue.pop_front()? {
                Item::Service(service) => self.next_of_service(service, registry),
                Item::Contract(contract) => self.next_of_contract(contract, registry),
                Item::Impossible(what) => Some(self.no_such(what, registry)),
            };
            if let Some(what) = what {
                return Some(WatchResponse { what: Some(what) });
            }
        }
    }

    /// `None` if it is no longer followed.
    fn next_of_service(&mut self, service: ServiceName, registry: &Registry) -> Option<What> {
        let followed = self.services.get_mut(&service)?;
        if let Some(change) = followed.changes.pop_front() {
            if followed.has_news() {
                self.queue.push_front(Item::Service(service));
            }
            return Some(What::Change(Arc::unwrap_or_clone(change)));
        }
        if !std::mem::take(&mut followed.owes_snapshot) {
            return None;
        }
        let snapshot = registry.snapshot(&service);
        followed.is_known = snapshot.is_some();
        Some(match snapshot {
            Some(snapshot) => What::Snapshot(snapshot),
            None => {
                // Any number of names does not exist: one is no longer followed once that is certain.
                let name = service.to_string();
                if registry.is_settled() {
                    self.leave(service);
                }
                self.no_such(not_found::What::Service(name), registry)
            }
        })
    }

    fn next_of_contract(&mut self, contract: String, registry: &Registry) -> Option<What> {
        let asked = self.contracts.get_mut(&contract)?;
        asked.is_pending = false;
        asked.owner = registry.owner(&contract).filter(|owner| self.sight.sees(owner)).cloned();
        Some(match asked.owner.clone() {
            Some(owner) => {
                let service = owner.to_string();
                self.owe_snapshot(owner);
                What::Owner(ContractOwner { contract, service })
            }
            None => {
                if registry.is_settled() {
                    self.contracts.remove(&contract);
                    self.moves.push(Move::Forgets(contract.clone()));
                }
                // An address of a service out of sight is inside the mesh, so the answer must not be final.
                let is_hidden = is_address(&contract) && registry.owner(&contract).is_some();
                match self.no_such(not_found::What::Contract(contract), registry) {
                    What::NotFound(said) if is_hidden => What::NotFound(NotFound { complete: false, ..said }),
                    said => said,
                }
            }
        })
    }

    fn no_such(&mut self, what: not_found::What, registry: &Registry) -> What {
        let hint = match &what {
            not_found::What::Contract(address) if is_address(address) => None,
            _ if self.hints == 0 => None,
            not_found::What::Service(name) => Some(hints::service(name, registry, &self.sight)),
            not_found::What::Contract(name) => Some(hints::contract(name, registry, &self.sight)),
        };
        self.hints -= u32::from(hint.is_some());
        let closest = hint.flatten().unwrap_or_default();
        What::NotFound(NotFound { closest, what: Some(what), complete: registry.is_settled() })
    }
}

#[cfg(test)]
impl Watcher {
    /// Whether a contract is followed.
    pub(crate) fn asks_for(&self, contract: &str) -> bool {
        self.contracts.contains_key(contract)
    }

    /// Whether a service is followed.
    pub(crate) fn follows(&self, service: &str) -> bool {
        self.services.contains_key(&ServiceName::parse(service).expect("a service's name"))
    }
}
