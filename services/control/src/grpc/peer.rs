//! The peer of a connection, as its requests carry it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::Semaphore;
use tonic::{Request, Status};
use weft_mesh::identity::{IdentityError, ProvenBy, SpiffeId};

use super::{
    activity::{Activity, Call},
    streams::{Kind, OfConnection, OfIdentity, OpenStream},
    unread::Unread,
};
use crate::log_limit;

/// A change of the wall clock, or a suspended machine, is noticed within this time.
const LONGEST_SLEEP: Duration = Duration::from_secs(20);

/// The peer of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    address: SocketAddr,
    svid: Option<PeerSvid>,
    activity: Arc<Activity>,
    streams: Arc<OfConnection>,
}

#[derive(Debug, Clone)]
struct PeerSvid {
    id: SpiffeId,
    proven_by: ProvenBy,
    not_after: SystemTime,
}

/// The identity that makes a call, proven by the SVID of its connection. The call runs until this is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) id: SpiffeId,
    /// What proved the identity first.
    pub(crate) proven_by: ProvenBy,
    /// The address that its connection comes from.
    pub(crate) host: IpAddr,
    not_after: SystemTime,
    streams: Arc<OfConnection>,
    _call: Arc<Call>,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}

impl Caller {
    /// Waits until the SVID of the connection has expired. Dropping the future changes nothing.
    pub(crate) async fn expired(&self) {
        while let Ok(left) = self.not_after.duration_since(SystemTime::now()) {
            if left.is_zero() {
                return;
            }
            // Certificates use the wall clock, and timers do not.
            tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
        }
    }

    /// The status for streams that are still open then.
    pub(crate) fn expiry_status() -> Status {
        Status::unauthenticated("the SVID of this connection has expired: connect with the renewed one")
    }

    /// Opens a stream that stays open.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if its connection or its identity has as many as it may have.
    pub(crate) fn open(&self, kind: Kind) -> Result<OpenStream, Status> {
        self.streams.open(kind).inspect_err(|status| {
            if log_limit::MEMBERS.allows(self.id.service()) {
                tracing::warn!(peer = %self, why = status.message(), "a stream was refused");
            }
        })
    }

    /// The turns to send descriptors, for its identity and network.
    pub(crate) fn turns(&self) -> &Arc<Semaphore> {
        &self.streams.identity.descriptors
    }

    /// The answers that its identity has not read.
    pub(crate) fn unread(&self) -> &Unread {
        &self.streams.identity.unread
    }

    #[cfg(test)]
    pub(crate) fn new(id: SpiffeId, host: IpAddr, not_after: SystemTime) -> Self {
        let call = Arc::new(Arc::<Activity>::default().begin());
        Self { id, proven_by: ProvenBy::JoinToken, host, not_after, streams: Arc::default(), _call: call }
    }
}

impl Peer {
    /// The peer with the leaf certificate that its handshake proved, if there was one.
    pub(crate) fn new(
        address: SocketAddr,
        leaf: Option<&[u8]>,
        activity: Arc<Activity>,
    ) -> Result<Self, IdentityError> {
        let svid = leaf.map(|der| {
            let (_, leaf) =
                x509_parser::parse_x509_certificate(der).map_err(|e| IdentityError::Certificate(e.to_string()))?;
            let seconds = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0);
            let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let (id, proven_by) = (SpiffeId::of_certificate(der)?, ProvenBy::of_certificate(der)?);
            Ok::<_, IdentityError>(PeerSvid { id, proven_by, not_after })
        });
        Ok(Self { address, svid: svid.transpose()?, activity, streams: Arc::default() })
    }

    /// The same peer, which shares the limits of its identity with that identity's other connections.
    pub(crate) fn of_identity(self, identity: Arc<OfIdentity>) -> Self {
        Self { streams: Arc::new(OfConnection::of(identity)), ..self }
    }

    /// The identity that the handshake proved.
    pub(crate) fn id(&self) -> Option<&SpiffeId> {
        self.svid.as_ref().map(|svid| &svid.id)
    }

    /// The answers that its identity has not read.
    pub(crate) fn unread(&self) -> Arc<Unread> {
        Arc::clone(&self.streams.identity.unread)
    }

    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }
}

/// The identity that makes a request.
///
/// # Errors
/// `UNAUTHENTICATED` if the peer has no SVID, or an expired one.
pub(crate) fn authenticated<T>(request: &Request<T>) -> Result<Caller, Status> {
    let peer = request.extensions().get::<Peer>();
    let Some((peer, svid)) = peer.and_then(|peer| Some((peer, peer.svid.as_ref()?))) else {
        let from = remote(request);
        if log_limit::STRANGERS.allows() {
            tracing::warn!(from, "a call without an SVID was refused");
        }
        return Err(Status::unauthenticated(
            "this needs an SVID: call weft.identity.v1.Identity/Sign with a join token",
        ));
    };
    // A connection may outlive the certificate that it was opened with.
    if svid.not_after <= SystemTime::now() {
        if log_limit::MEMBERS.allows(svid.id.service()) {
            tracing::warn!(peer = %svid.id, "a call with an expired SVID was refused");
        }
        return Err(Caller::expiry_status());
    }
    peer.activity.note_known();
    let call = Arc::new(peer.activity.begin());
    Ok(Caller {
        id: svid.id.clone(),
        proven_by: svid.proven_by,
        host: peer.address.ip(),
        not_after: svid.not_after,
        streams: Arc::clone(&peer.streams),
        _call: call,
    })
}

/// The host that a request comes from.
pub(crate) fn host<T>(request: &Request<T>) -> Option<IpAddr> {
    request.extensions().get::<Peer>().map(|peer| peer.address.ip())
}

/// The address that a request comes from, for the log.
pub(crate) fn remote<T>(request: &Request<T>) -> String {
    request.extensions().get::<Peer>().map_or_else(String::new, |peer| peer.address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> SpiffeId {
        "spiffe://weft.test/ns/shop/sa/users".parse().unwrap()
    }

    #[tokio::test]
    async fn an_svid_that_expired_on_an_open_connection_is_refused() {
        let request = |not_after| {
            let address = SocketAddr::from(([127, 0, 0, 1], 1));
            let svid = Some(PeerSvid { id: users(), proven_by: ProvenBy::JoinToken, not_after });
            let mut request = Request::new(());
            request.extensions_mut().insert(Peer { address, svid, activity: Arc::default(), streams: Arc::default() });
            request
        };
        let now = SystemTime::now();
        assert!(authenticated(&request(now + Duration::from_secs(60))).is_ok());
        let refused = authenticated(&request(now - Duration::from_secs(1))).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    }

    #[tokio::test]
    async fn an_expiry_that_has_passed_is_not_waited_for() {
        let caller = |not_after| Caller::new(users(), [127, 0, 0, 1].into(), not_after);
        caller(SystemTime::now() - Duration::from_secs(1)).expired().await;
        let mut later = std::pin::pin!(async {
            let later = caller(SystemTime::now() + Duration::from_secs(3600));
            later.expired().await;
        });
        assert!(futures_util::poll!(&mut later).is_pending());
    }
}
