//! Descriptors that are read, or compiled, beside what others ask for.

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

/// What came of descriptors, for [`super::Membership::keep`].
#[derive(Debug)]
pub(crate) struct Read {
    /// `None` where a replica was quicker.
    pub(super) set: Option<Arc<DescriptorSet>>,
    pub(super) policy: Arc<ServicePolicy>,
}

/// Waits for its turn, and then for what comes of descriptors. What has begun goes on when this is dropped.
pub(crate) type Reading = Pin<Box<dyn Future<Output = Result<Read, DescriptorsRefused>> + Send>>;

/// Whose descriptors are read, and for which contracts.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) service: ServiceName,
    pub(super) digest: Digest,
    pub(super) contracts: Contracts,
}

impl Directory {
    /// Makes something of descriptors in its service's turn, unless it is known by then. The turn ends when it is made, also
    /// where nobody waits for it any more: else a member that announces and goes, again and again, would have any number of
    /// sets read at once. For the same reason a refusal is remembered then, whoever waits for it.
    pub(super) fn read(
        self: &Arc<Self>,
        subject: Subject,
        make: impl FnOnce() -> Result<Made, DescriptorsRefused> + Send + 'static,
    ) -> Reading {
        let directory = Arc::clone(self);
        Box::pin(async move {
            let turn = directory.reading.take(&subject.service).await;
            if let Some(known) = directory.what_came_of(&subject) {
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

    fn what_came_of(&self, subject: &Subject) -> Option<Result<Arc<ServicePolicy>, DescriptorsRefused>> {
        let Subject { service, digest, contracts } = subject;
        let state = self.lock();
        let names = || contracts.iter().map(|name| &**name);
        let refused = || Some(Err(DescriptorsRefused::Known(state.shelf.refusal(service, digest, names)?)));
        state.shelf.policy(service, digest, names).map(Ok).or_else(refused)
    }
}
