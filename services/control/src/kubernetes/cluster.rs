//! The cluster that the control plane runs in: what the API server knows, and who may be what by it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tonic::Status;
use weft_mesh::identity::SpiffeId;

use super::{
    accounts::Tokens,
    workloads::{Following, Workloads},
};
use crate::directory::registry::Announcement;

/// See the module.
pub(crate) struct Cluster {
    pub(crate) workloads: Arc<Workloads>,
    pub(crate) tokens: Box<dyn Tokens>,
}

impl Cluster {
    /// Whether the API server knows a pod that runs as this identity and has both addresses.
    pub(crate) fn is_pod_of(&self, ip: IpAddr, id: &SpiffeId, host: IpAddr) -> bool {
        self.workloads.at(ip).is_pod_of(id, host)
    }

    /// Checks that an announced endpoint is a pod of its identity. A pod that the API server has not told of yet backs
    /// nothing until it does.
    pub(crate) fn check(&self, id: &SpiffeId, host: IpAddr, announcement: &Announcement) -> Result<Following, Status> {
        let address: SocketAddr = announcement
            .endpoint
            .address
            .parse()
            .map_err(|_| Status::invalid_argument("the endpoint's address is not IP:PORT"))?;
        let mut pod = self.workloads.follow(address.ip());
        let known = pod.now();
        if known.account.is_some() && !known.is_of(id) {
            return Err(Status::permission_denied(format!(
                "{id} announces an endpoint at {address}, but the pod there runs as another service account"
            )));
        }
        // Two pods of one account may back different Services.
        if known.account.is_some() && !known.ips.contains(&host) {
            return Err(Status::permission_denied(format!(
                "{id} announces an endpoint at {address}, but its connection comes from {host}, which is not that pod's"
            )));
        }
        Ok(pod)
    }
}
