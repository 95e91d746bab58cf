//! Limits for streams that stay open: of one connection, and of all.
//!
//! An open stream costs memory, and events that concern many watchers cost time. A sidecar has one stream of each kind
//! on its connection, and for a moment a second connection when its identity is renewed. Identities share the limit of
//! all ([`weft_mesh::shares`]), and the networks of an identity share that identity's part. So many replicas on one
//! host do not lose anything.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::Semaphore;
use tonic::Status;
use weft_mesh::{limits, shares::part_may_have_more};

use super::unread::Unread;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Announce,
    Watch,
    WatchBundle,
}

impl Kind {
    /// The method's name.
    fn name(self) -> &'static str {
        match self {
            Self::Announce => "Announce",
            Self::Watch => "Watch",
            Self::WatchBundle => "WatchBundle",
        }
    }
}

/// How many streams are open, by kind.
#[derive(Debug, Default)]
pub(crate) struct Counts([AtomicUsize; 3]);

impl Counts {
    fn of(&self, kind: Kind) -> &AtomicUsize {
        &self.0[kind as usize]
    }

    /// Counts one more. Returns how many there were before.
    fn take(&self, kind: Kind) -> usize {
        self.of(kind).fetch_add(1, Relaxed)
    }

    fn give_back(&self, kind: Kind) {
        self.of(kind).fetch_sub(1, Relaxed);
    }
}

/// What the connections of one identity in one network share.
#[derive(Debug)]
pub(crate) struct OfIdentity {
    open: Counts,
    /// The streams of the same identity in all networks.
    in_all_networks: Arc<Counts>,
    /// The streams of all identities.
    of_all: Arc<Counts>,
    /// The turns to send descriptors ([`limits::DESCRIPTORS_ASKED`]).
    pub(crate) descriptors: Arc<Semaphore>,
    pub(crate) unread: Arc<Unread>,
}

impl Default for OfIdentity {
    fn default() -> Self {
        let descriptors = Arc::new(Semaphore::new(limits::DESCRIPTORS_ASKED));
        let (open, in_all_networks, of_all) = Default::default();
        Self { open, in_all_networks, of_all, descriptors, unread: Arc::default() }
    }
}

impl OfIdentity {
    /// An identity in a network, with the counts of its other networks and of other identities.
    pub(crate) fn new(in_all_networks: Arc<Counts>, of_all: Arc<Counts>) -> Self {
        Self { in_all_networks, of_all, ..Self::default() }
    }

    fn take(&self, kind: Kind) -> Result<(), Status> {
        let [in_network, of_identity, all] =
            [&self.open, &self.in_all_networks, &self.of_all].map(|counts| counts.take(kind));
        if part_may_have_more(in_network, of_identity, all, limits::CONTROL_STREAMS_OPEN) {
            return Ok(());
        }
        self.give_back(kind);
        Err(Status::resource_exhausted(format!(
            "there are {all} open streams of {}, of which this identity has {of_identity}, {in_network} of them from this \
             network: it may have no more, so that others find room",
            kind.name()
        )))
    }

    fn give_back(&self, kind: Kind) {
        for counts in [&self.open, &self.in_all_networks, &self.of_all] {
            counts.give_back(kind);
        }
    }
}

/// The streams of one connection.
#[derive(Debug, Default)]
pub(crate) struct OfConnection {
    open: Counts,
    pub(crate) identity: Arc<OfIdentity>,
}

/// An open stream. It counts until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenStream {
    kind: Kind,
    connection: Arc<OfConnection>,
}

impl OfConnection {
    /// A connection of an identity.
    pub(crate) fn of(identity: Arc<OfIdentity>) -> Self {
        Self { open: Counts::default(), identity }
    }

    /// Opens one more stream.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if there are as many as allowed.
    pub(crate) fn open(self: &Arc<Self>, kind: Kind) -> Result<OpenStream, Status> {
        let of_connection = limits::CONTROL_STREAMS_OF_A_KIND;
        if self.open.take(kind) >= of_connection {
            self.open.give_back(kind);
            let name = kind.name();
            return Err(Status::resource_exhausted(format!(
                "this connection has {of_connection} open streams of {name}, which is the limit: a sidecar needs one"
            )));
        }
        self.identity.take(kind).inspect_err(|_| self.open.give_back(kind))?;
        Ok(OpenStream { kind, connection: Arc::clone(self) })
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.connection.open.give_back(self.kind);
        self.connection.identity.give_back(self.kind);
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    /// Opens `on_each` streams on each of new connections of an identity in a network, until one is refused.
    fn open_all(identity: &Arc<OfIdentity>, on_each: usize) -> (Vec<OpenStream>, Status) {
        let mut open = Vec::new();
        loop {
            let connection = Arc::new(OfConnection::of(Arc::clone(identity)));
            for _ in 0..on_each {
                match connection.open(Kind::Watch) {
                    Ok(stream) => open.push(stream),
                    Err(refused) => return (open, refused),
                }
            }
        }
    }

    #[test]
    fn the_streams_of_one_connection_are_limited_by_kind() {
        let connection = Arc::new(OfConnection::default());
        let mut open: Vec<_> =
            (0..limits::CONTROL_STREAMS_OF_A_KIND).map(|_| connection.open(Kind::Watch).unwrap()).collect();
        let refused = connection.open(Kind::Watch).unwrap_err();
        assert!(refused.code() == Code::ResourceExhausted && refused.message().contains("this connection has 4"));
        assert!(connection.open(Kind::Announce).is_ok(), "streams are counted by kind");
        open.pop();
        open.push(connection.open(Kind::Watch).unwrap());
        drop(open);
        assert_eq!(connection.identity.of_all.of(Kind::Watch).load(Relaxed), 0, "a refused stream is not counted");
    }

    #[test]
    fn an_identity_that_takes_all_it_gets_leaves_room_for_others() {
        let of_all = Arc::<Counts>::default();
        let in_network = |own: &Arc<Counts>| Arc::new(OfIdentity::new(Arc::clone(own), Arc::clone(&of_all)));
        let hoard = Arc::<Counts>::default();
        let mut open = Vec::new();
        for network in 0..40 {
            let (taken, refused) = open_all(&in_network(&hoard), limits::CONTROL_STREAMS_OF_A_KIND);
            assert!(network > 5 || !taken.is_empty(), "it has room from another network");
            assert_eq!(refused.code(), Code::ResourceExhausted);
            open.push(taken);
        }
        let taken: usize = open.iter().map(Vec::len).sum();
        assert!(taken <= limits::CONTROL_STREAMS_OPEN / 2, "{taken}");
        assert_eq!(open[0].len(), limits::CONTROL_STREAMS_OPEN.div_ceil(3), "one network alone has a third");
        // A service with many replicas on one host, each with one stream.
        let (honest, refused) = open_all(&in_network(&Arc::default()), 1);
        assert!(honest.len() > 3_000, "{}: {refused}", honest.len());
        drop((open, honest));
        assert_eq!((hoard.of(Kind::Watch).load(Relaxed), of_all.of(Kind::Watch).load(Relaxed)), (0, 0));
    }
}
