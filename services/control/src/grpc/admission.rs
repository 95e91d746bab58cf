//! How many connections the gRPC port takes, and from whom.
//!
//! A connection is a stranger's until its handshake has shown an SVID, and then a member's. Strangers have a budget in
//! all, and one for each network that they come from. Members have another budget: identities share it
//! ([`weft_mesh::shares`]), and the networks of an identity share that identity's part. So neither many strangers nor
//! one member can keep others out, not even other replicas of the same service. Many replicas on one host, or behind
//! one NAT, do not lose anything.
//!
//! When there is no room for a new stranger, the one that has waited longest is closed; strangers that have not sent a
//! byte go first. If none has waited for long, one from the network with the most strangers is closed, if that network
//! has more than the new one's.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_mesh::{
    identity::SpiffeId,
    limits,
    networks::{ByNetwork, Ticket, network},
    shares::part_may_have_more,
};

use super::streams::{Counts as StreamCounts, OfIdentity};

/// A stranger that has sent nothing for this long may be closed: a client sends its first bytes at once.
const SILENT_FOR: Duration = Duration::from_secs(1);
/// The same for a stranger that has sent something, but has not proven its identity.
const UNKNOWN_FOR: Duration = Duration::from_secs(3);

/// The most connections that are taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) strangers: usize,
    pub(crate) strangers_of_network: usize,
    pub(crate) members: usize,
}

impl Budget {
    /// The limits, or less if the process may not open enough files.
    pub(crate) fn of_files(files: u64) -> Self {
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        // The rest is for the dashboard, the state folder and the process itself.
        let (strangers, members) = (files / 4, files / 2);
        Self {
            strangers: limits::CONTROL_STRANGERS.min(strangers),
            strangers_of_network: limits::CONTROL_STRANGERS_PER_NETWORK.min(strangers / 2),
            members: limits::CONTROL_CONNECTIONS.min(members),
        }
    }
}

/// Why a connection is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("{0} connections that have not shown who they are come from this network")]
    StrangersOfNetwork(usize),
    #[error("{0} connections have not shown who they are")]
    Strangers(usize),
    #[error(
        "there are {all} connections of members, of which this identity has {own}, {in_network} of them from this network: \
         it may have no more, so that others find room"
    )]
    OfIdentity { in_network: usize, own: usize, all: usize },
    #[error("there are {0} connections of members")]
    Members(usize),
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Admission(Arc<Mutex<Counts>>);

#[derive(Debug)]
struct Counts {
    budget: Budget,
    /// Strangers that have not sent a byte.
    silent: ByNetwork<Stranger>,
    /// Strangers that have sent something.
    spoken: ByNetwork<Stranger>,
    members: usize,
    members_of: HashMap<SpiffeId, OfMember>,
    /// The streams of all members.
    streams: Arc<StreamCounts>,
}

#[derive(Debug)]
struct Stranger {
    /// Since when it is in this state: silent or spoken.
    since: Instant,
    must_go: CancellationToken,
}

/// The connections of one identity.
#[derive(Debug, Default)]
struct OfMember {
    count: usize,
    in_network: HashMap<IpAddr, InNetwork>,
    streams: Arc<StreamCounts>,
}

/// The connections of one identity from one network.
#[derive(Debug)]
struct InNetwork {
    count: usize,
    shared: Arc<OfIdentity>,
}

/// A connection's place. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Admission,
    network: IpAddr,
    must_go: CancellationToken,
    whose: Whose,
}

#[derive(Debug)]
enum Whose {
    Silent(Ticket),
    Spoken(Ticket),
    Member(SpiffeId),
}

impl Admission {
    pub(crate) fn new(budget: Budget) -> Self {
        let (silent, spoken, members, members_of, streams) = Default::default();
        Self(Arc::new(Mutex::new(Counts { budget, silent, spoken, members, members_of, streams })))
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection, of which only the address is known.
    pub(crate) fn enter(&self, from: IpAddr, now: Instant) -> Result<Place, Full> {
        let network = network(from);
        let mut counts = self.lock();
        let of_network = counts.strangers_of(network);
        if of_network >= counts.budget.strangers_of_network && !counts.make_room_in(network, now) {
            return Err(Full::StrangersOfNetwork(of_network));
        }
        let strangers = counts.strangers();
        if strangers >= counts.budget.strangers && !counts.make_room(network, now) {
            return Err(Full::Strangers(strangers));
        }
        let must_go = CancellationToken::new();
        let ticket = counts.silent.enter(network, Stranger { since: now, must_go: must_go.clone() });
        Ok(Place { admission: self.clone(), network, must_go, whose: Whose::Silent(ticket) })
    }
}

impl Counts {
    fn strangers(&self) -> usize {
        self.silent.count() + self.spoken.count()
    }

    fn strangers_of(&self, network: IpAddr) -> usize {
        self.silent.of(network) + self.spoken.of(network)
    }

    /// When the first stranger of a network came into its state.
    fn since(&self, network: IpAddr) -> Option<Instant> {
        let firsts = [self.silent.first_of(network), self.spoken.first_of(network)];
        firsts.into_iter().flatten().map(|(_, stranger)| stranger.since).min()
    }

    /// Closes a stranger of a network that has waited long enough. False if there is none.
    fn make_room_in(&mut self, network: IpAddr, now: Instant) -> bool {
        let silent = self.silent.first_of(network).filter(|first| has_waited(first, SILENT_FOR, now));
        let spoken = self.spoken.first_of(network).filter(|first| has_waited(first, UNKNOWN_FOR, now));
        let (silent, spoken) = (silent.map(|first| first.0), spoken.map(|first| first.0));
        self.send_away(silent, spoken)
    }

    /// Closes a stranger so that one of `network` has room: the one that has waited longest, or else one of a network
    /// with more strangers. False if there is none.
    fn make_room(&mut self, network: IpAddr, now: Instant) -> bool {
        let silent = self.silent.first().filter(|first| has_waited(first, SILENT_FOR, now));
        let spoken = self.spoken.first().filter(|first| has_waited(first, UNKNOWN_FOR, now));
        let (silent, spoken) = (silent.map(|first| first.0), spoken.map(|first| first.0));
        if self.send_away(silent, spoken) {
            return true;
        }
        // Of two networks with equally many, the one with the longest wait.
        let size = |network: &IpAddr| (self.strangers_of(*network), Reverse(self.since(*network)));
        let largest = [self.silent.largest(), self.spoken.largest()];
        let Some(largest) = largest.into_iter().flatten().max_by_key(size) else { return false };
        // It must still have as many after the exchange, or two networks would close each other's connections in turn.
        if self.strangers_of(largest) <= self.strangers_of(network) + 1 {
            return false;
        }
        let silent = self.silent.first_of(largest).map(|first| first.0);
        let spoken = self.spoken.first_of(largest).map(|first| first.0);
        self.send_away(silent, spoken)
    }

    fn send_away(&mut self, silent: Option<Ticket>, spoken: Option<Ticket>) -> bool {
        let leaving = match (silent, spoken) {
            (Some(ticket), _) => self.silent.leave(ticket),
            (None, Some(ticket)) => self.spoken.leave(ticket),
            (None, None) => None,
        };
        let Some(Stranger { must_go, .. }) = leaving else { return false };
        must_go.cancel();
        true
    }

    fn leave(&mut self, place: &Place) {
        // A stranger that was closed for another is not counted any more.
        match &place.whose {
            Whose::Silent(ticket) => drop(self.silent.leave(*ticket)),
            Whose::Spoken(ticket) => drop(self.spoken.leave(*ticket)),
            Whose::Member(id) => self.member_leaves(id, place.network),
        }
    }

    fn member_leaves(&mut self, id: &SpiffeId, network: IpAddr) {
        self.members -= 1;
        let Some(member) = self.members_of.get_mut(id) else { return };
        member.count -= 1;
        if let Some(in_network) = member.in_network.get_mut(&network) {
            in_network.count -= 1;
            if in_network.count == 0 {
                member.in_network.remove(&network);
            }
        }
        if member.count == 0 {
            self.members_of.remove(id);
        }
    }

    /// Adds a connection of an identity. Returns what its connections from the same network share.
    fn member_enters(&mut self, id: &SpiffeId, network: IpAddr) -> Result<Arc<OfIdentity>, Full> {
        let (all, limit) = (self.members, self.budget.members);
        if all >= limit {
            return Err(Full::Members(all));
        }
        let member = self.members_of.get(id);
        let own = member.map_or(0, |member| member.count);
        let in_network = member.and_then(|member| member.in_network.get(&network)).map_or(0, |there| there.count);
        if !part_may_have_more(in_network, own, all, limit) {
            return Err(Full::OfIdentity { in_network, own, all });
        }
        let member = self.members_of.entry(id.clone()).or_default();
        let there = member.in_network.entry(network).or_insert_with(|| {
            let shared = OfIdentity::new(Arc::clone(&member.streams), Arc::clone(&self.streams));
            InNetwork { count: 0, shared: Arc::new(shared) }
        });
        self.members += 1;
        member.count += 1;
        there.count += 1;
        Ok(Arc::clone(&there.shared))
    }
}

fn has_waited((_, stranger): &(Ticket, &Stranger), time: Duration, now: Instant) -> bool {
    now.saturating_duration_since(stranger.since) >= time
}

impl Place {
    /// Cancelled when the connection has to make room for another. A member's never has to.
    pub(crate) fn must_go(&self) -> CancellationToken {
        self.must_go.clone()
    }

    /// Whether it is a member's.
    pub(crate) fn is_member(&self) -> bool {
        matches!(self.whose, Whose::Member(_))
    }

    /// The connection has sent its first bytes.
    pub(crate) fn note_sent(&mut self, now: Instant) {
        let Whose::Silent(ticket) = self.whose else { return };
        let mut counts = self.admission.lock();
        // If it is missing, it was closed for another and is about to notice.
        if let Some(stranger) = counts.silent.leave(ticket) {
            self.whose = Whose::Spoken(counts.spoken.enter(self.network, Stranger { since: now, ..stranger }));
        }
    }

    /// The handshake has shown an SVID. Returns what the identity's connections from this network share.
    pub(crate) fn become_member(&mut self, id: &SpiffeId) -> Result<Arc<OfIdentity>, Full> {
        let admission = self.admission.clone();
        let mut counts = admission.lock();
        let shared = counts.member_enters(id, self.network)?;
        counts.leave(self);
        self.whose = Whose::Member(id.clone());
        Ok(shared)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.clone().lock().leave(self);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    const SMALL: Budget = Budget { strangers: 4, strangers_of_network: 3, members: 6 };

    fn small() -> Admission {
        Admission::new(SMALL)
    }

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://weft.test/ns/shop/sa/{name}").parse().unwrap()
    }

    fn enter(admission: &Admission, host: IpAddr) -> Result<Place, Full> {
        admission.enter(host, Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_of_one_network_leave_room_for_other_networks() {
        let admission = small();
        let _here: Vec<Place> = (0..3).map(|_| enter(&admission, HERE).unwrap()).collect();
        assert_eq!(enter(&admission, HERE).unwrap_err(), Full::StrangersOfNetwork(3));
        let there = [enter(&admission, THERE).unwrap(), enter(&admission, THERE).unwrap()];
        assert_eq!(enter(&admission, THERE).unwrap_err(), Full::Strangers(4));
        drop(there);
        assert!(enter(&admission, THERE).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_stranger_that_was_silent_longest_makes_room() {
        let admission = small();
        let mut spoke = enter(&admission, HERE).unwrap();
        spoke.note_sent(Instant::now());
        let silent = enter(&admission, HERE).unwrap();
        advance(SILENT_FOR).await;
        let mut new = enter(&admission, HERE).unwrap();
        assert!(!silent.must_go().is_cancelled());
        let mut newer = enter(&admission, HERE).unwrap();
        assert!(silent.must_go().is_cancelled() && !spoke.must_go().is_cancelled());
        drop(silent);
        assert!(enter(&admission, HERE).is_err(), "the silent one had its place freed already");
        advance(SILENT_FOR).await;
        new.note_sent(Instant::now());
        newer.note_sent(Instant::now());
        assert!(enter(&admission, HERE).is_err());
        advance(UNKNOWN_FOR).await;
        let _newest = enter(&admission, HERE).unwrap();
        assert!(spoke.must_go().is_cancelled(), "it has waited longest");
    }

    /// Opens connections of an identity from a network until one is refused.
    fn enter_all(admission: &Admission, name: &str, from: IpAddr) -> (Vec<Place>, Full) {
        let mut places = Vec::new();
        loop {
            let mut place = enter(admission, from).unwrap();
            match place.become_member(&id(name)) {
                Ok(_) => places.push(place),
                Err(full) => return (places, full),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn members_do_not_count_as_strangers_and_one_identity_cannot_take_all_places() {
        let admission = small();
        let (mut greedy, full) = enter_all(&admission, "greedy", HERE);
        assert_eq!((greedy.len(), full), (2, Full::OfIdentity { in_network: 2, own: 2, all: 2 }));
        greedy.extend(enter_all(&admission, "greedy", THERE).0);
        assert_eq!(greedy.len(), 3, "from two networks it gets half of all");
        let others = ["users", "orders", "auth"].map(|name| enter_all(&admission, name, HERE));
        assert!(others.iter().all(|(places, _)| places.len() == 1), "each identity gets a place");
        assert_eq!(others[2].1, Full::Members(6));
        let _strangers: Vec<Place> = (0..3).map(|_| enter(&admission, HERE).unwrap()).collect();
        drop((greedy, others));
        let counts = admission.lock();
        assert_eq!((counts.members, counts.members_of.len()), (0, 0), "closed connections leave nothing behind");
    }

    #[tokio::test(start_paused = true)]
    async fn an_identity_on_many_networks_gets_at_most_half_of_all() {
        let admission = Admission::new(Budget::of_files(1 << 20));
        let mut hoard = Vec::new();
        for last in 1..=40 {
            let (places, full) = enter_all(&admission, "greedy", IpAddr::from([10, 0, 1, last]));
            assert!((last > 5 || !places.is_empty()) && matches!(full, Full::OfIdentity { .. }), "{last}: {full}");
            hoard.push(places);
        }
        let taken: usize = hoard.iter().map(Vec::len).sum();
        assert!(taken <= limits::CONTROL_CONNECTIONS / 2, "{taken}");
        // Many replicas of one service behind one NAT, each with a second connection while it renews its SVID.
        let (honest, _) = enter_all(&admission, "users", HERE);
        assert!(honest.len() > 1_500, "{}", honest.len());
        let (orders, _) = enter_all(&admission, "orders", HERE);
        assert!(orders.len() > 500, "{}", orders.len());
    }

    #[tokio::test(start_paused = true)]
    async fn all_ipv6_addresses_of_a_host_count_as_one_network() {
        let admission = small();
        let address = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
        let _strangers: Vec<Place> = (0..3).map(|last| enter(&admission, address(last)).unwrap()).collect();
        assert_eq!(enter(&admission, address(3)).unwrap_err(), Full::StrangersOfNetwork(3));
        let member = |last: u16| {
            // Another network, which strangers have not filled.
            let mut place = enter(&admission, IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last])).unwrap();
            place.become_member(&id("greedy")).map(|_| place)
        };
        let _members = [member(1).unwrap(), member(2).unwrap()];
        assert_eq!(member(3).unwrap_err(), Full::OfIdentity { in_network: 2, own: 2, all: 2 });
        let counts = admission.lock();
        assert_eq!(counts.members_of[&id("greedy")].in_network.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_with_many_strangers_makes_room_for_one_with_few_at_once() {
        let admission = small();
        let hoard: Vec<Place> = (0..3).map(|_| enter(&admission, HERE).unwrap()).collect();
        let _other = enter(&admission, THERE).unwrap();
        let third = IpAddr::from([10, 0, 0, 3]);
        let _new = enter(&admission, third).unwrap();
        assert!(hoard[0].must_go().is_cancelled() && !hoard[1].must_go().is_cancelled());
        assert_eq!(
            enter(&admission, third).unwrap_err(),
            Full::Strangers(4),
            "with one more it would have as many as the largest"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn of_equally_large_networks_the_one_with_the_longest_wait_makes_room() {
        let hosts = [IpAddr::from([10, 0, 0, 5]), IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 9])];
        let step = SILENT_FOR / 10;
        for order in [[0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let admission = Admission::new(Budget { strangers: 6, strangers_of_network: 3, ..SMALL });
            let mut waiting = Vec::new();
            for host in [order, order].concat() {
                // Each network has one stranger that has sent something, and one that has not.
                let mut place = enter(&admission, hosts[host]).unwrap();
                if waiting.len() % 2 == 0 {
                    place.note_sent(Instant::now());
                }
                waiting.push(place);
                advance(step).await;
            }
            let _new = enter(&admission, IpAddr::from([10, 0, 0, 3])).unwrap();
            let gone: Vec<bool> = waiting.iter().map(|place| place.must_go().is_cancelled()).collect();
            let first = order[0];
            let silent = (0..6).find(|at| [order, order].concat()[*at] == first && at % 2 == 1).unwrap();
            assert_eq!(gone, (0..6).map(|at| at == silent).collect::<Vec<_>>(), "{order:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn closed_connections_leave_nothing_behind_while_an_early_one_stays() {
        let admission = small();
        let _stays = enter(&admission, HERE).unwrap();
        for _ in 0..10_000 {
            let mut place = enter(&admission, HERE).unwrap();
            place.note_sent(Instant::now());
        }
        let counts = admission.lock();
        assert_eq!((counts.silent.count(), counts.spoken.count()), (1, 0));
    }

    #[test]
    fn with_few_open_files_strangers_do_not_take_those_of_members() {
        let few = Budget::of_files(1_024);
        assert!(few.strangers + few.members < 1_024 && few.members >= 512);
        assert_eq!(Budget::of_files(1 << 20).members, limits::CONTROL_CONNECTIONS);
    }
}
