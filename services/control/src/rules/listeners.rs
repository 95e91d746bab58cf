//! The sidecars that are told who may call them, and what each was told last.
//!
//! A sidecar does not say when it has taken rules in. It counts as told when its connection has taken them from the control
//! plane: what is sent on a stream arrives in order, or the stream breaks, and then the sidecar does not count at all.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use weft_mesh::names::ServiceName;

use super::of_sidecar::Access;

/// How many sidecars something concerns, of those that are connected, and how many of them have been told of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) told: usize,
    pub(crate) of: usize,
}

impl Reach {
    /// One more sidecar.
    pub(crate) fn count(&mut self, is_told: bool) {
        self.of += 1;
        self.told += usize::from(is_told);
    }
}

/// The reach of the rules that hold now.
#[derive(Debug, Default)]
pub(crate) struct AccessReach {
    everybody: Reach,
    namespaces: HashMap<String, Reach>,
    /// By the Services that pods back.
    services: HashMap<ServiceName, Reach>,
}

#[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only statuses of objects say it"))]
impl AccessReach {
    pub(crate) fn everybody(&self) -> Reach {
        self.everybody
    }

    pub(crate) fn namespace(&self, namespace: &str) -> Reach {
        self.namespaces.get(namespace).copied().unwrap_or_default()
    }

    pub(crate) fn service(&self, service: &ServiceName) -> Reach {
        self.services.get(service).copied().unwrap_or_default()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Listeners(Mutex<Listening>);

#[derive(Debug, Default)]
struct Listening {
    made: u64,
    /// The newest last.
    all: BTreeMap<u64, Listener>,
}

/// A stream on which a sidecar is told. It is known what it was told by a number, since the rules may be large.
#[derive(Debug)]
struct Listener {
    host: IpAddr,
    id: ServiceName,
    /// The Services whose rules it is told; `None` if it was told nothing yet.
    services: Option<Vec<ServiceName>>,
    /// The version of the rules of the mesh by which it was told last, or need not be told anything new.
    version: u64,
    /// How often it was told something new.
    said: u64,
    /// Which of that its connection has taken last.
    taken: u64,
}

/// Rules for a sidecar, that it has not been told yet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Said {
    pub(crate) access: Access,
    /// For [`Taking::took`].
    pub(crate) number: u64,
}

/// A place among the listeners, until it is dropped.
#[derive(Debug)]
pub(crate) struct Listens {
    listeners: Arc<Listeners>,
    number: u64,
}

/// Says what a listener's connection takes.
#[derive(Debug)]
pub(crate) struct Taking {
    listeners: Arc<Listeners>,
    number: u64,
}

impl Listeners {
    fn lock(&self) -> MutexGuard<'_, Listening> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more stream, of the sidecar with this identity on this host.
    pub(super) fn add(self: &Arc<Self>, id: ServiceName, host: IpAddr) -> Listens {
        let mut listening = self.lock();
        listening.made += 1;
        let number = listening.made;
        let listener = Listener { host: host.to_canonical(), id, services: None, version: 0, said: 0, taken: 0 };
        listening.all.insert(number, listener);
        Listens { listeners: Arc::clone(self), number }
    }

    /// How many sidecars have been told what the rules of this version say of them. Of a sidecar with several streams, the
    /// newest counts.
    #[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only statuses of objects say it"))]
    pub(super) fn reach(&self, version: u64) -> AccessReach {
        let listening = self.lock();
        let mut newest = HashMap::new();
        for listener in listening.all.values().filter(|listener| listener.services.is_some()) {
            newest.insert((listener.host, &listener.id), listener);
        }
        let mut reach = AccessReach::default();
        for listener in newest.into_values() {
            let is_told = listener.version == version && listener.taken == listener.said;
            reach.everybody.count(is_told);
            reach.namespaces.entry(listener.id.namespace().to_owned()).or_default().count(is_told);
            let services: BTreeSet<&ServiceName> = listener.services.iter().flatten().collect();
            for service in services {
                reach.services.entry(service.clone()).or_default().count(is_told);
            }
        }
        reach
    }
}

impl Listens {
    /// It knows the rules of these Services, as they are in this version of the rules of the mesh.
    pub(crate) fn knows(&self, services: &[ServiceName], version: u64) {
        self.update(services, version, |_| {});
    }

    /// It is told these rules of these Services.
    pub(crate) fn is_told(&self, services: &[ServiceName], version: u64, access: Access) -> Said {
        let mut number = 0;
        self.update(services, version, |listener| {
            listener.said += 1;
            number = listener.said;
        });
        Said { access, number }
    }

    fn update(&self, services: &[ServiceName], version: u64, also: impl FnOnce(&mut Listener)) {
        if let Some(listener) = self.listeners.lock().all.get_mut(&self.number) {
            if listener.services.as_deref() != Some(services) {
                listener.services = Some(services.to_vec());
            }
            listener.version = version;
            also(listener);
        }
    }

    /// For its connection.
    pub(crate) fn taking(&self) -> Taking {
        Taking { listeners: Arc::clone(&self.listeners), number: self.number }
    }
}

impl Drop for Listens {
    fn drop(&mut self) {
        self.listeners.lock().all.remove(&self.number);
    }
}

impl Taking {
    /// The connection has taken what was said under this number.
    pub(crate) fn took(&self, said: u64) {
        if let Some(listener) = self.listeners.lock().all.get_mut(&self.number) {
            listener.taken = said;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ServiceName {
        ServiceName::parse(text).unwrap()
    }

    fn host(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn reach(told: usize, of: usize) -> Reach {
        Reach { told, of }
    }

    /// Its connection takes what it is told.
    fn tell(listens: &Listens, services: &[&str], version: u64) {
        let services: Vec<ServiceName> = services.iter().map(|text| name(text)).collect();
        let said = listens.is_told(&services, version, Access::default());
        listens.taking().took(said.number);
    }

    #[test]
    fn a_sidecar_is_told_when_its_connection_has_taken_what_holds_now() {
        let listeners = Arc::<Listeners>::default();
        let listens: Vec<Listens> = (1..=3).map(|last| listeners.add(name("account.shop"), host(last))).collect();
        assert_eq!(listeners.reach(1).everybody(), reach(0, 0), "they have announced nothing");
        tell(&listens[0], &["web.shop"], 1);
        tell(&listens[1], &["web.shop", "old.shop", "web.shop"], 1);
        tell(&listens[2], &["users.shop"], 1);
        let all = listeners.reach(1);
        assert_eq!((all.service(&name("web.shop")), all.service(&name("old.shop"))), (reach(2, 2), reach(1, 1)));
        assert_eq!((all.namespace("shop"), all.namespace("other")), (reach(3, 3), reach(0, 0)));
        assert_eq!(all.everybody(), reach(3, 3));
        // Other rules, of which only one has nothing to be told.
        let web = || listeners.reach(2).service(&name("web.shop"));
        assert_eq!(web(), reach(0, 2), "nobody has looked at them yet");
        listens[2].knows(&[name("users.shop")], 2);
        let said = listens[0].is_told(&[name("web.shop")], 2, Access::default());
        assert_eq!((web(), listeners.reach(2).everybody()), (reach(0, 2), reach(1, 3)), "it was not read");
        listens[0].taking().took(said.number - 1);
        assert_eq!(web(), reach(0, 2), "an older answer was read");
        listens[0].taking().took(said.number);
        assert_eq!((web(), listeners.reach(2).everybody()), (reach(1, 2), reach(2, 3)));
    }

    /// Otherwise a sidecar that renews its identity counts twice for a moment, and one that has left for ever.
    #[test]
    fn the_newest_stream_of_a_sidecar_counts_as_long_as_it_is_there() {
        let listeners = Arc::<Listeners>::default();
        let older = listeners.add(name("account.shop"), host(1));
        tell(&older, &["web.shop"], 1);
        let newer = listeners.add(name("account.shop"), host(1));
        assert_eq!(listeners.reach(1).everybody(), reach(1, 1), "it has announced nothing");
        newer.is_told(&[name("web.shop")], 1, Access::default());
        assert_eq!(listeners.reach(1).everybody(), reach(0, 1));
        let taking = newer.taking();
        drop(newer);
        // What the connection takes later says nothing any more.
        taking.took(1);
        assert_eq!(listeners.reach(1).everybody(), reach(1, 1));
        drop(older);
        assert_eq!(listeners.reach(1).everybody(), reach(0, 0));
        assert!(listeners.lock().all.is_empty());
    }
}
