//! `weft.identity.v1.Identity`: SVIDs for those who prove who they are, and the trust bundle.

use std::{pin::Pin, sync::Arc};

use futures_util::stream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use weft_contracts::weft::identity::v1::{
    SignRequest, SignResponse, WatchBundleRequest, WatchBundleResponse, identity_server,
};
use weft_mesh::{identity::SpiffeId, tls::TrustBundle};

use crate::{
    ca::{Ca, SignError},
    join_token,
    peer::{authenticated, remote},
};

/// See the module.
pub(crate) struct IdentityService {
    pub(crate) ca: Arc<Ca>,
    pub(crate) bundle: watch::Receiver<TrustBundle>,
    pub(crate) stopping: CancellationToken,
}

#[tonic::async_trait]
impl identity_server::Identity for IdentityService {
    type WatchBundleStream = Pin<Box<dyn stream::Stream<Item = Result<WatchBundleResponse, Status>> + Send>>;

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let from = remote(&request);
        let id = self.proven(&request).inspect_err(|status| {
            tracing::warn!(from, why = status.message(), "an identity was refused");
        })?;
        let issued = self.ca.sign(&request.get_ref().csr_der, &id).map_err(|error| {
            tracing::warn!(from, %id, %error, "a certificate signing request was refused");
            match error {
                SignError::Malformed(_) | SignError::Unproven | SignError::KeyKind => {
                    Status::invalid_argument(error.to_string())
                }
                SignError::Foreign { .. } => Status::unauthenticated(error.to_string()),
                SignError::Expired => Status::failed_precondition(error.to_string()),
                // The inner text is for the log.
                SignError::Signing(_) => Status::internal("signing failed"),
            }
        })?;
        tracing::info!(from, %id, renews = request.get_ref().join_token.is_empty(), "signed an SVID");
        Ok(Response::new(SignResponse {
            chain_der: issued.chain_der.into_iter().map(Into::into).collect(),
            spiffe_id: id.to_string(),
            not_after: Some(issued.not_after.into()),
            bundle_der: bundle_der(&self.bundle.borrow()),
        }))
    }

    async fn watch_bundle(
        &self,
        request: Request<WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        authenticated(&request)?;
        let mut bundle = self.bundle.clone();
        bundle.mark_changed();
        let state = Some((bundle, self.stopping.clone()));
        let answers = stream::unfold(state, async |state| {
            let (mut bundle, stopping) = state?;
            let changed = tokio::select! {
                () = stopping.cancelled() => false,
                changed = bundle.changed() => changed.is_ok(),
            };
            if !changed {
                return Some((Err(Status::unavailable("the control plane is stopping")), None));
            }
            let bundle_der = bundle_der(&bundle.borrow_and_update());
            Some((Ok(WatchBundleResponse { bundle_der }), Some((bundle, stopping))))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

impl IdentityService {
    /// Whom the caller proves to be: by the token where there is one, else by the SVID of its connection.
    fn proven(&self, request: &Request<SignRequest>) -> Result<SpiffeId, Status> {
        let token = &request.get_ref().join_token;
        let id = match token.is_empty() {
            true => authenticated(request)?,
            false => join_token::verify(&self.ca, token).map_err(|e| Status::unauthenticated(e.to_string()))?,
        };
        if id == SpiffeId::of_control_plane(self.ca.trust_domain()) {
            return Err(Status::unauthenticated("the control plane's own identity is not given out"));
        }
        Ok(id)
    }
}

fn bundle_der(bundle: &TrustBundle) -> Vec<bytes::Bytes> {
    bundle.der().map(bytes::Bytes::copy_from_slice).collect()
}
