//! Endpoints that are only announced: each is another address of the only sidecar of the service, which listens on all
//! loopback addresses. They join as its service does, with a token, and have the same identity.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};
use weft_contracts::weft::discovery::v1::{
    Announce, AnnounceRequest, AnnounceResponse, Endpoint, Health, Heartbeat, Protocol, announce_request::What,
    registry_client::RegistryClient,
};
use weft_mesh::{identity::SpiffeId, limits, tls::TrustBundle};

use crate::{
    bed::{AUTHORITY, Joinable},
    identity,
};

/// Streams on one connection to the control plane: half of its limit.
const STREAMS: usize = limits::CONTROL_STREAMS as usize / 2;
/// The interval of heartbeats: the control plane forgets an endpoint that is silent for three of them.
const HEARTBEAT: Duration = Duration::from_secs(limits::ENDPOINT_EXPIRY.as_secs() / 3);

/// Announces endpoints until it is dropped.
pub(super) struct Announcer {
    heartbeats: JoinHandle<()>,
}

/// One endpoint's stream.
struct Membership {
    requests: mpsc::Sender<AnnounceRequest>,
    /// Kept open: the control plane ends a stream whose answers nobody reads.
    _answers: Streaming<AnnounceResponse>,
}

impl Announcer {
    /// Announces `count` endpoints, and returns when the control plane has accepted them all.
    pub(super) async fn start(mesh: &Joinable, count: usize) -> Result<Self> {
        let bundle = TrustBundle::from_pem(&mesh.bundle)?;
        let svid = identity::join(mesh, &bundle).await?;
        let mut members = Vec::new();
        let mut channel = identity::connect(mesh.control, Some(&svid), &bundle).await?;
        for index in 0..count {
            if index % STREAMS == STREAMS - 1 {
                channel = identity::connect(mesh.control, Some(&svid), &bundle).await?;
            }
            let address = SocketAddr::from((address(index), mesh.inbound.port()));
            members.push(announce(channel.clone(), index, address, svid.id()).await?);
        }
        Ok(Self { heartbeats: tokio::spawn(keep(members)) })
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.heartbeats.abort();
    }
}

/// A loopback address that no other endpoint has. Others use 127.0.0.x.
fn address(index: usize) -> Ipv4Addr {
    let host = u32::try_from(index).unwrap_or(u32::MAX) + 0x7f00_0100;
    Ipv4Addr::from(host)
}

async fn announce(channel: Channel, index: usize, address: SocketAddr, id: &SpiffeId) -> Result<Membership> {
    let endpoint = Endpoint {
        id: format!("announced-{index}"),
        address: address.to_string(),
        spiffe_id: id.to_string(),
        health: Health::Up.into(),
        silent: false,
    };
    // Without contracts: the real sidecar has announced them.
    let announce = Announce {
        service: AUTHORITY.to_owned(),
        endpoint: Some(endpoint),
        protocol: Protocol::Http2.into(),
        ..Announce::default()
    };
    let (requests, queue) = mpsc::channel(2);
    requests.send(AnnounceRequest { what: Some(What::Announce(announce)) }).await?;
    let opened = RegistryClient::new(channel).announce(ReceiverStream::new(queue)).await;
    let mut answers = opened.context("an endpoint can't be announced")?.into_inner();
    answers.message().await.context("an endpoint was not taken")?.context("an endpoint was not answered")?;
    Ok(Membership { requests, _answers: answers })
}

/// Sends heartbeats for all endpoints.
async fn keep(members: Vec<Membership>) {
    let mut ticks = tokio::time::interval(HEARTBEAT);
    loop {
        ticks.tick().await;
        for member in &members {
            let what = Some(What::Heartbeat(Heartbeat { health: Health::Up.into() }));
            // If a stream has ended, failing calls will show it.
            let _ = member.requests.try_send(AnnounceRequest { what });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_endpoint_has_an_address_of_its_own_on_loopback() {
        let addresses: HashSet<_> = (0..999).map(address).collect();
        assert_eq!(addresses.len(), 999);
        assert!(addresses.iter().all(Ipv4Addr::is_loopback));
    }
}
