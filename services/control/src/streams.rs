//! Streams that stay open, and how many there may be: of one connection, and of one identity in one network.
//!
//! Each costs memory for as long as it is open, and events that concern many watchers cost time. A sidecar has one of each
//! kind on its connection, and a second connection for a moment when its identity is renewed.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::Semaphore;
use tonic::Status;
use weft_mesh::limits;

use crate::answers::Unread;

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

    /// Counts one more, unless there are as many as there may be.
    fn take(&self, kind: Kind, limit: usize) -> bool {
        let had_room = self.of(kind).fetch_add(1, Relaxed) < limit;
        if !had_room {
            self.give_back(kind);
        }
        had_room
    }

    fn give_back(&self, kind: Kind) {
        self.of(kind).fetch_sub(1, Relaxed);
    }
}

/// What the connections of one identity in one network share.
#[derive(Debug)]
pub(crate) struct OfIdentity {
    open: Counts,
    /// Who may be sending descriptors now ([`limits::DESCRIPTORS_ASKED`]).
    pub(crate) descriptors: Arc<Semaphore>,
    pub(crate) unread: Arc<Unread>,
}

impl Default for OfIdentity {
    fn default() -> Self {
        let descriptors = Arc::new(Semaphore::new(limits::DESCRIPTORS_ASKED));
        Self { open: Counts::default(), descriptors, unread: Arc::default() }
    }
}

/// The streams of one connection.
#[derive(Debug, Default)]
pub(crate) struct OfConnection {
    open: Counts,
    pub(crate) identity: Arc<OfIdentity>,
}

/// An open stream, which counts until this is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    kind: Kind,
    connection: Arc<OfConnection>,
}

impl OfConnection {
    /// One of an identity.
    pub(crate) fn of(identity: Arc<OfIdentity>) -> Self {
        Self { open: Counts::default(), identity }
    }

    /// One more stream.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` when there are as many as there may be.
    pub(crate) fn open(self: &Arc<Self>, kind: Kind) -> Result<Open, Status> {
        let of_connection = limits::CONTROL_STREAMS_OF_A_KIND;
        if !self.open.take(kind, of_connection) {
            let name = kind.name();
            return Err(Status::resource_exhausted(format!(
                "this connection has {of_connection} open streams of {name}, which is the limit: a sidecar needs one"
            )));
        }
        let of_identity = limits::CONTROL_STREAMS_PER_IDENTITY;
        if !self.identity.open.take(kind, of_identity) {
            self.open.give_back(kind);
            let name = kind.name();
            return Err(Status::resource_exhausted(format!(
                "this identity has {of_identity} open streams of {name} from this network, which is the limit"
            )));
        }
        Ok(Open { kind, connection: Arc::clone(self) })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connection.open.give_back(self.kind);
        self.connection.identity.open.give_back(self.kind);
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn one_connection_and_one_identity_have_so_many_streams_of_a_kind() {
        let identity = Arc::<OfIdentity>::default();
        let connection = || Arc::new(OfConnection::of(Arc::clone(&identity)));
        let mut open = Vec::new();
        while open.len() < limits::CONTROL_STREAMS_PER_IDENTITY {
            let connection = connection();
            for _ in 0..limits::CONTROL_STREAMS_OF_A_KIND {
                open.push(connection.open(Kind::Watch).unwrap());
            }
            let refused = connection.open(Kind::Watch).unwrap_err();
            assert!(refused.code() == Code::ResourceExhausted && refused.message().contains("this connection has 4"));
            assert!(connection.open(Kind::Announce).is_ok(), "they are counted by kind");
        }
        let next = connection();
        let refused = next.open(Kind::Watch).unwrap_err();
        assert!(refused.code() == Code::ResourceExhausted && refused.message().contains("this identity has 256"));
        let other = Arc::new(OfConnection::default());
        assert!(other.open(Kind::Watch).is_ok(), "another identity has its own");
        open.pop();
        let again = next.open(Kind::Watch).unwrap();
        assert!(next.open(Kind::Watch).is_err());
        drop((open, again));
        assert_eq!(identity.open.of(Kind::Watch).load(Relaxed), 0, "a refusal takes nothing");
    }
}
