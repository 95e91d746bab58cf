//! Who is at the other end of a connection, as its requests carry it.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use tonic::{Request, Status};
use weft_mesh::identity::{IdentityError, SpiffeId};

/// The peer of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    address: SocketAddr,
    svid: Option<PeerSvid>,
}

#[derive(Debug, Clone)]
struct PeerSvid {
    id: SpiffeId,
    not_after: SystemTime,
}

impl Peer {
    /// The peer with the leaf that its handshake proved, if it showed one.
    pub(crate) fn new(address: SocketAddr, leaf: Option<&[u8]>) -> Result<Self, IdentityError> {
        let svid = leaf.map(|der| {
            let (_, leaf) =
                x509_parser::parse_x509_certificate(der).map_err(|e| IdentityError::Certificate(e.to_string()))?;
            let seconds = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0);
            let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            Ok::<_, IdentityError>(PeerSvid { id: SpiffeId::of_certificate(der)?, not_after })
        });
        Ok(Self { address, svid: svid.transpose()? })
    }
}

/// The identity of a request's peer.
///
/// # Errors
/// `UNAUTHENTICATED` when the peer showed none, or one that has expired since.
pub(crate) fn authenticated<T>(request: &Request<T>) -> Result<SpiffeId, Status> {
    let peer = request.extensions().get::<Peer>();
    let Some(svid) = peer.and_then(|peer| peer.svid.as_ref()) else {
        let from = remote(request);
        tracing::warn!(from, "a call without an SVID was refused");
        return Err(Status::unauthenticated(
            "this needs an SVID: call weft.identity.v1.Identity/Sign with a join token",
        ));
    };
    // A connection may live longer than the certificate that it was opened with.
    if svid.not_after <= SystemTime::now() {
        tracing::warn!(peer = %svid.id, "a call with an expired SVID was refused");
        return Err(Status::unauthenticated("the SVID of this connection has expired: connect with the renewed one"));
    }
    Ok(svid.id.clone())
}

/// Where a request comes from, for the log.
pub(crate) fn remote<T>(request: &Request<T>) -> String {
    request.extensions().get::<Peer>().map_or_else(String::new, |peer| peer.address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_svid_that_expired_on_an_open_connection_counts_no_longer() {
        let request = |not_after| {
            let id = "spiffe://weft.test/ns/shop/sa/users".parse().unwrap();
            let address = SocketAddr::from(([127, 0, 0, 1], 1));
            let mut request = Request::new(());
            request.extensions_mut().insert(Peer { address, svid: Some(PeerSvid { id, not_after }) });
            request
        };
        let now = SystemTime::now();
        assert!(authenticated(&request(now + Duration::from_secs(60))).is_ok());
        let refused = authenticated(&request(now - Duration::from_secs(1))).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    }
}
