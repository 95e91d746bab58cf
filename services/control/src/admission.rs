//! How many connections the gRPC port has, and whose.
//!
//! A connection is a stranger's until its handshake has shown an SVID. Strangers have a budget of their own, in all and
//! for each address they come from, and members another, in all and for each identity on a host: so neither many
//! strangers nor one member keeps the others out. When there is no room for a stranger, the one goes that has waited
//! longest: first among those that have not sent a byte.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_mesh::{identity::SpiffeId, limits};

/// A stranger that has sent nothing for so long may be made to go: a client sends its first bytes at once.
const SILENT_FOR: Duration = Duration::from_secs(1);
/// One that has sent something, and has not shown who it is for so long.
const UNKNOWN_FOR: Duration = Duration::from_secs(3);

/// How many connections there may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) strangers: usize,
    pub(crate) strangers_of_host: usize,
    pub(crate) members: usize,
    pub(crate) members_of_identity: usize,
}

impl Budget {
    /// What the limits say, or less where so many files can't be open.
    pub(crate) fn of_files(files: u64) -> Self {
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        // The rest is for the dashboard, the state folder and the process itself.
        let (strangers, members) = (files / 4, files / 2);
        Self {
            strangers: limits::CONTROL_STRANGERS.min(strangers),
            strangers_of_host: limits::CONTROL_STRANGERS_PER_HOST.min(strangers / 2),
            members: limits::CONTROL_CONNECTIONS.min(members),
            members_of_identity: limits::CONTROL_CONNECTIONS_PER_IDENTITY.min(members / 2),
        }
    }
}

/// Why a connection is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("{0} connections that have not shown who they are come from this address")]
    StrangersOfHost(usize),
    #[error("{0} connections have not shown who they are")]
    Strangers(usize),
    #[error("this identity has {0} connections from this address")]
    OfIdentity(usize),
    #[error("there are {0} connections of members")]
    Members(usize),
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Admission(Arc<Mutex<Counts>>);

#[derive(Debug)]
struct Counts {
    budget: Budget,
    strangers: usize,
    strangers_of: HashMap<IpAddr, usize>,
    members: usize,
    members_of: HashMap<(SpiffeId, IpAddr), usize>,
    /// Strangers in the order in which they came. Those that are gone are dropped when they get to the front.
    waiting: VecDeque<Weak<Stranger>>,
}

#[derive(Debug)]
struct Stranger {
    host: IpAddr,
    since: Instant,
    has_sent: AtomicBool,
    /// It has proven who it is in another way, and need not make room.
    is_known: AtomicBool,
    /// Counted no longer: it went to make room, is a member now, or is gone.
    is_over: AtomicBool,
    must_go: CancellationToken,
}

/// A connection's place. Dropping it gives it to others.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Admission,
    stranger: Arc<Stranger>,
    member: Option<(SpiffeId, IpAddr)>,
}

impl Admission {
    pub(crate) fn new(budget: Budget) -> Self {
        Self(Arc::new(Mutex::new(Counts {
            budget,
            strangers: 0,
            strangers_of: HashMap::new(),
            members: 0,
            members_of: HashMap::new(),
            waiting: VecDeque::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection of which only the address is known.
    pub(crate) fn enter(&self, host: IpAddr, now: Instant) -> Result<Place, Full> {
        let host = host.to_canonical();
        let mut counts = self.lock();
        counts.tidy();
        let of_host = counts.strangers_of.get(&host).copied().unwrap_or_default();
        if of_host >= counts.budget.strangers_of_host && !counts.make_room(Some(host), now) {
            return Err(Full::StrangersOfHost(of_host));
        }
        if counts.strangers >= counts.budget.strangers && !counts.make_room(None, now) {
            return Err(Full::Strangers(counts.strangers));
        }
        let (has_sent, is_known, is_over, must_go) = Default::default();
        let stranger = Arc::new(Stranger { host, since: now, has_sent, is_known, is_over, must_go });
        counts.strangers += 1;
        *counts.strangers_of.entry(host).or_default() += 1;
        counts.waiting.push_back(Arc::downgrade(&stranger));
        Ok(Place { admission: self.clone(), stranger, member: None })
    }
}

impl Counts {
    fn tidy(&mut self) {
        while self.waiting.front().is_some_and(|first| first.upgrade().is_none_or(|s| s.is_over.load(Relaxed))) {
            self.waiting.pop_front();
        }
    }

    /// Has one stranger go, of one host or of any. False when none has waited long enough.
    fn make_room(&mut self, host: Option<IpAddr>, now: Instant) -> bool {
        let may_go = |stranger: &Arc<Stranger>| {
            let waited = now.saturating_duration_since(stranger.since);
            let long = if stranger.has_sent.load(Relaxed) { UNKNOWN_FOR } else { SILENT_FOR };
            let is_unknown = !stranger.is_over.load(Relaxed) && !stranger.is_known.load(Relaxed);
            is_unknown && waited >= long && host.is_none_or(|host| host == stranger.host)
        };
        let of = |has_sent: bool| {
            let waiting = self.waiting.iter().filter_map(Weak::upgrade);
            waiting.filter(may_go).find(|stranger| stranger.has_sent.load(Relaxed) == has_sent)
        };
        let Some(stranger) = of(false).or_else(|| of(true)) else { return false };
        self.forget(&stranger);
        stranger.must_go.cancel();
        true
    }

    fn forget(&mut self, stranger: &Stranger) {
        if stranger.is_over.swap(true, Relaxed) {
            return;
        }
        self.strangers -= 1;
        take_one(&mut self.strangers_of, &stranger.host);
    }
}

fn take_one<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Place {
    /// Waits until the connection has to make room for another.
    pub(crate) fn must_go(&self) -> CancellationToken {
        self.stranger.must_go.clone()
    }

    /// It has sent its first bytes.
    pub(crate) fn note_sent(&self) {
        self.stranger.has_sent.store(true, Relaxed);
    }

    /// It is a stranger still, but has proven who it is: it need not make room for others.
    pub(crate) fn note_known(&self) {
        self.stranger.is_known.store(true, Relaxed);
    }

    /// Its handshake has shown an SVID.
    pub(crate) fn become_member(&mut self, id: &SpiffeId) -> Result<(), Full> {
        let key = (id.clone(), self.stranger.host);
        let mut counts = self.admission.lock();
        if counts.members >= counts.budget.members {
            return Err(Full::Members(counts.members));
        }
        let of_identity = counts.members_of.get(&key).copied().unwrap_or_default();
        if of_identity >= counts.budget.members_of_identity {
            return Err(Full::OfIdentity(of_identity));
        }
        counts.forget(&self.stranger);
        counts.members += 1;
        *counts.members_of.entry(key.clone()).or_default() += 1;
        drop(counts);
        self.member = Some(key);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.admission.lock();
        counts.forget(&self.stranger);
        if let Some(member) = &self.member {
            counts.members -= 1;
            take_one(&mut counts.members_of, member);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn small() -> Admission {
        Admission::new(Budget { strangers: 4, strangers_of_host: 3, members: 3, members_of_identity: 2 })
    }

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://weft.test/ns/shop/sa/{name}").parse().unwrap()
    }

    fn enter(admission: &Admission, host: IpAddr) -> Result<Place, Full> {
        admission.enter(host, Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_of_one_host_leave_room_for_those_of_others() {
        let admission = small();
        let _here: Vec<Place> = (0..3).map(|_| enter(&admission, HERE).unwrap()).collect();
        assert_eq!(enter(&admission, HERE).unwrap_err(), Full::StrangersOfHost(3));
        let there = enter(&admission, THERE).unwrap();
        assert_eq!(enter(&admission, THERE).unwrap_err(), Full::Strangers(4));
        drop(there);
        assert!(enter(&admission, THERE).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_waited_longest_without_a_byte_makes_room() {
        let admission = small();
        let spoke = enter(&admission, HERE).unwrap();
        spoke.note_sent();
        let silent = enter(&admission, HERE).unwrap();
        advance(SILENT_FOR).await;
        let new = enter(&admission, HERE).unwrap();
        assert!(!silent.must_go().is_cancelled());
        let newer = enter(&admission, HERE).unwrap();
        assert!(silent.must_go().is_cancelled() && !spoke.must_go().is_cancelled());
        drop(silent);
        assert!(enter(&admission, HERE).is_err(), "its place is taken: it does not count twice");
        advance(SILENT_FOR).await;
        new.note_sent();
        newer.note_sent();
        assert!(enter(&admission, HERE).is_err());
        advance(UNKNOWN_FOR).await;
        let _newest = enter(&admission, HERE).unwrap();
        assert!(spoke.must_go().is_cancelled(), "the one that came first");
    }

    #[tokio::test(start_paused = true)]
    async fn members_do_not_count_as_strangers_and_one_identity_does_not_take_all_places() {
        let admission = small();
        let member = |name: &str| {
            let mut place = enter(&admission, HERE)?;
            place.become_member(&id(name))?;
            Ok::<_, Full>(place)
        };
        let _greedy = [member("greedy").unwrap(), member("greedy").unwrap()];
        assert_eq!(member("greedy").unwrap_err(), Full::OfIdentity(2));
        let last = member("users").unwrap();
        assert_eq!(member("orders").unwrap_err(), Full::Members(3));
        drop(last);
        let _orders = member("orders").unwrap();
        let _strangers: Vec<Place> = (0..3).map(|_| enter(&admission, HERE).unwrap()).collect();
    }

    #[test]
    fn where_few_files_may_be_open_strangers_do_not_take_those_of_members() {
        let few = Budget::of_files(1_024);
        assert!(few.strangers + few.members < 1_024 && few.members >= 512);
        assert_eq!(Budget::of_files(1 << 20).members, limits::CONTROL_CONNECTIONS);
    }
}
