//! Descriptors are read and compiled on a thread of their own, while the directory serves others.

use std::{future::Future, pin::Pin, sync::Arc};

use tokio::task::spawn_blocking;
use weft_contracts::weft::policy::v1::ServicePolicy;
use weft_mesh::names::ServiceName;

use super::{
    Directory,
    descriptors::DescriptorSet,
    registry::{Contracts, Digest},
    shelf::{DescriptorsRefused, Made},
};

/// The policy in descriptors, for [`super::Membership::keep`].
#[derive(Debug)]
pub(crate) struct Read {
    /// `None` if a replica was faster.
    pub(super) set: Option<Arc<DescriptorSet>>,
    pub(super) policy: Arc<ServicePolicy>,
}

/// Waits for its turn and then for the result. If it is dropped, a reading that has started continues.
pub(crate) type Reading = Pin<Box<dyn Future<Output = Result<Read, DescriptorsRefused>> + Send>>;

/// The service whose descriptors are read, and the contracts that they are read for.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) service: ServiceName,
    pub(super) digest: Digest,
    pub(super) contracts: Contracts,
}

impl Directory {
    /// Runs `make` in its service's turn, unless the result is known by then. The turn lasts until `make` has finished,
    /// even if the future is dropped: otherwise a member could have any number of sets read at once, by announcing
    /// itself and leaving again and again. For the same reason a refusal is remembered even if nobody waits for it.
    pub(super) fn read(
        self: &Arc<Self>,
        subject: Subject,
        make: impl FnOnce() -> Result<Made, DescriptorsRefused> + Send + 'static,
    ) -> Reading {
        let directory = Arc::clone(self);
        Box::pin(async move {
            let turn = directory.reading.take(&subject.service).await;
            if let Some(known) = directory.known_result(&subject) {
                return known.map(|policy| Read { set: None, policy });
            }
            let making = spawn_blocking(move || {
                let made = make();
                if let Err(refused) = &made
                    && refused.is_for_good()
                {
                    let Subject { service, digest, contracts } = &subject;
                    directory.lock().shelf.refuse(service, *digest, contracts, refused);
                }
                drop(turn);
                made
            });
            match making.await {
                Ok(made) => made.map(|(set, policy)| Read { set: Some(set), policy }),
                Err(_) => Err(DescriptorsRefused::Unreadable),
            }
        })
    }

    fn known_result(&self, subject: &Subject) -> Option<Result<Arc<ServicePolicy>, DescriptorsRefused>> {
        let Subject { service, digest, contracts } = subject;
        let state = self.lock();
        let names = || contracts.iter().map(|name| &**name);
        let refused = || Some(Err(DescriptorsRefused::Known(state.shelf.refusal(service, digest, names)?)));
        state.shelf.policy(service, digest, names).map(Ok).or_else(refused)
    }
}
