//! `weft.identity.v1.Identity`: SVIDs for peers that prove their identity, and the trust bundle.

use std::{net::IpAddr, pin::Pin, sync::Arc, time::SystemTime};

use futures_util::stream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use weft_contracts::weft::identity::v1::{
    SignRequest, SignResponse, WatchBundleRequest, WatchBundleResponse, identity_server,
};
use weft_mesh::{
    identity::{ProvenBy, SpiffeId},
    tls::TrustBundle,
};

use super::{
    peer::{Caller, authenticated, host, remote},
    streams::Kind,
};
use crate::{
    authority::{
        ca::{Ca, SignError},
        join_token, late,
        network::Network,
    },
    directory::{Directory, rates::Rates},
    kubernetes::{
        accounts::{self, AccountError},
        cluster::Cluster,
        reviews::Reviews,
    },
    log_limit,
};

/// See the module.
pub(crate) struct IdentityService {
    pub(crate) ca: Arc<Ca>,
    pub(crate) bundle: watch::Receiver<TrustBundle>,
    pub(crate) directory: Arc<Directory>,
    /// On Kubernetes, tokens of service accounts are proofs, too.
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) reviews: Reviews,
    /// How often each identity may have a certificate signed.
    pub(crate) signatures: Rates,
    pub(crate) stopping: CancellationToken,
}

#[tonic::async_trait]
impl identity_server::Identity for IdentityService {
    type WatchBundleStream = Pin<Box<dyn stream::Stream<Item = Result<WatchBundleResponse, Status>> + Send>>;

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let from = remote(&request);
        let (id, by) = self.proven(&request).await.inspect_err(|status| {
            if log_limit::STRANGERS.allows() {
                tracing::warn!(from, why = status.message(), "an identity was refused");
            }
        })?;
        let service = id.service();
        if !self.signatures.allows(service) {
            self.reviews.note_spent(service);
            return Err(self.signatures.refusal(service, "asks for certificates"));
        }
        let issued = self.ca.sign_proven(&request.get_ref().csr_der, &id, by).map_err(|error| {
            if log_limit::MEMBERS.allows(id.service()) {
                tracing::warn!(from, %id, %error, "a certificate signing request was refused");
            }
            match error {
                SignError::Malformed(_) | SignError::Unproven | SignError::KeyKind => {
                    Status::invalid_argument(error.to_string())
                }
                SignError::Foreign { .. } => Status::unauthenticated(error.to_string()),
                SignError::Expired => Status::failed_precondition(error.to_string()),
                // The inner text is only for the log.
                SignError::Signing(_) => Status::internal("signing failed"),
            }
        })?;
        if log_limit::MEMBERS.allows(service) {
            let SignRequest { join_token, expired_svid_der, .. } = request.get_ref();
            let (renews, is_late) = (join_token.is_empty(), join_token.is_empty() && !expired_svid_der.is_empty());
            tracing::info!(from, %id, renews, is_late, "signed an SVID");
        }
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
        let caller = authenticated(&request)?;
        let open = caller.open(Kind::WatchBundle)?;
        let mut bundle = self.bundle.clone();
        bundle.mark_changed();
        let state = Some((bundle, self.stopping.clone(), caller, open));
        let answers = stream::unfold(state, async |state| {
            let (mut bundle, stopping, caller, open) = state?;
            let is_over = tokio::select! {
                () = stopping.cancelled() => Some(Status::unavailable("the control plane is stopping")),
                () = caller.expired() => Some(Caller::expiry_status()),
                changed = bundle.changed() => {
                    changed.is_err().then(|| Status::unavailable("the control plane is stopping"))
                }
            };
            if let Some(status) = is_over {
                return Some((Err(status), None));
            }
            let bundle_der = bundle_der(&bundle.borrow_and_update());
            Some((Ok(WatchBundleResponse { bundle_der }), Some((bundle, stopping, caller, open))))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

impl IdentityService {
    /// The identity that the caller proves: with the token if there is one, or else with an expired SVID if there is
    /// one, or else with the SVID of its connection. And what proved it first.
    async fn proven(&self, request: &Request<SignRequest>) -> Result<(SpiffeId, ProvenBy), Status> {
        let SignRequest { csr_der, join_token, expired_svid_der, expired_svid_proof } = request.get_ref();
        let (id, by, hosts) = if !join_token.is_empty() {
            self.proven_by_token(join_token, host(request)).await?
        } else if !expired_svid_der.is_empty() {
            let late = late::verify(&self.ca, expired_svid_der, expired_svid_proof, csr_der, SystemTime::now());
            let id = late.map_err(|e| Status::unauthenticated(e.to_string()))?;
            let by = ProvenBy::of_certificate(expired_svid_der).map_err(|e| Status::unauthenticated(e.to_string()))?;
            (id, renewable(by)?, Vec::new())
        } else {
            let caller = authenticated(request)?;
            (caller.id.clone(), renewable(caller.proven_by)?, Vec::new())
        };
        if id == SpiffeId::of_control_plane(self.ca.trust_domain()) {
            return Err(Status::unauthenticated("the control plane's own identity is not given out"));
        }
        if !hosts.is_empty() {
            self.directory.allow_hosts(id.service(), hosts);
        }
        Ok((id, by))
    }

    /// The identity that a token proves, whose token it is, and where the identity's endpoints may be.
    async fn proven_by_token(
        &self,
        token: &str,
        from: Option<IpAddr>,
    ) -> Result<(SpiffeId, ProvenBy, Vec<Network>), Status> {
        let refused = match join_token::verify(&self.ca, token) {
            Ok(proven) => return Ok((proven.id, ProvenBy::JoinToken, proven.hosts)),
            Err(refused) => Status::unauthenticated(refused.to_string()),
        };
        let (Some(cluster), Some(from)) = (&self.cluster, from) else { return Err(refused) };
        Ok((self.proven_by_account(cluster, token, from).await?, ProvenBy::Cluster, Vec::new()))
    }

    /// The identity that the token of a service account proves.
    async fn proven_by_account(&self, cluster: &Cluster, token: &str, from: IpAddr) -> Result<SpiffeId, Status> {
        let proven = async {
            let claimed = accounts::claimed(token, SystemTime::now())?;
            if self.reviews.is_spent(&claimed) {
                return Ok(Err(self.signatures.refusal(&claimed, "asks for certificates")));
            }
            let review = self.reviews.review(&*cluster.tokens, token, from).await?;
            accounts::judge(self.ca.trust_domain(), review).map(Ok)
        };
        proven.await.unwrap_or_else(|refused| {
            let text = refused.to_string();
            Err(match refused {
                AccountError::Unanswered(error) => {
                    // Whoever reaches the control plane can cause such a line.
                    if log_limit::STRANGERS.allows() {
                        let error = format_args!("{error:#}");
                        tracing::warn!(%from, %error, "the API server could not be asked about a token");
                    }
                    Status::unavailable(text)
                }
                AccountError::Busy => Status::unavailable(text),
                AccountError::TooOften => Status::resource_exhausted(text),
                _ => Status::unauthenticated(text),
            })
        })
    }
}

/// Refuses an SVID as the proof of an identity that a cluster has proven: its pod, its service account and its namespace may
/// be gone since. The SVID decides, and not the address that it comes from: whoever took the key of a pod along may be
/// anywhere.
fn renewable(by: ProvenBy) -> Result<ProvenBy, Status> {
    match by {
        ProvenBy::JoinToken => Ok(by),
        ProvenBy::Cluster => Err(Status::unauthenticated(
            "the cluster has proven this identity, so its SVID does not renew it: show the token of the pod's service account",
        )),
    }
}

fn bundle_der(bundle: &TrustBundle) -> Vec<bytes::Bytes> {
    bundle.der().map(bytes::Bytes::copy_from_slice).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        net::SocketAddr,
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        time::Duration,
    };

    use futures_util::future::BoxFuture;
    use tokio::time::Instant;
    use weft_mesh::{limits, names::ServiceName, tls::WorkloadKey};

    use super::*;
    use crate::{
        authority::credentials::Credentials,
        claims::{Claims, hosts::Hosts, visibility::Visibility},
        grpc::{activity::Activity, peer::Peer},
        kubernetes::accounts::{Review, Tokens, token_of},
    };

    /// An API server that counts how often it is asked, and accepts the tokens with the signature `right`.
    #[derive(Default)]
    struct Counting(Arc<AtomicUsize>);

    impl Tokens for Counting {
        fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, anyhow::Result<Review>> {
            self.0.fetch_add(1, Relaxed);
            let review = Review {
                is_authenticated: token == token_of("shop", "users", "right"),
                username: "system:serviceaccount:shop:users".into(),
                audiences: vec!["weft".into()],
                extra: BTreeMap::from([("authentication.kubernetes.io/pod-uid".into(), vec!["0a1b".into()])]),
                error: "it is forged".into(),
            };
            Box::pin(async move { Ok(review) })
        }
    }

    struct Fixture {
        service: IdentityService,
        _dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            weft_mesh::tls::install_crypto_provider();
            let dir = tempfile::tempdir().unwrap();
            let ca = Ca::open_or_create(dir.path(), &"weft.test".parse().unwrap()).unwrap();
            let (credentials, _) = Credentials::new(&ca).unwrap();
            let directory =
                Directory::new(ca.trust_domain().clone(), Visibility::All, Claims::default(), Hosts::default());
            let service = IdentityService {
                bundle: credentials.bundle(),
                directory,
                cluster: None,
                reviews: Reviews::default(),
                ca: Arc::new(ca),
                signatures: Rates::new(limits::SIGNATURES),
                stopping: CancellationToken::new(),
            };
            Self { service, _dir: dir }
        }

        async fn sign(&self, service: &str, activity: &Arc<Activity>) -> Result<Response<SignResponse>, Status> {
            let id: SpiffeId = format!("spiffe://weft.test/ns/shop/sa/{service}").parse().unwrap();
            let join_token = join_token::issue(&self.service.ca, &id, Duration::from_secs(60)).unwrap();
            self.sign_by(join_token, activity).await
        }

        async fn sign_by(
            &self,
            join_token: String,
            activity: &Arc<Activity>,
        ) -> Result<Response<SignResponse>, Status> {
            let csr_der = WorkloadKey::generate().unwrap().signing_request().unwrap().into();
            let mut request = Request::new(SignRequest { csr_der, join_token, ..SignRequest::default() });
            let peer = Peer::new(SocketAddr::from(([127, 0, 0, 1], 1)), None, Arc::clone(activity)).unwrap();
            request.extensions_mut().insert(peer);
            identity_server::Identity::sign(&self.service, request).await
        }
    }

    #[tokio::test]
    async fn signing_alone_does_not_keep_a_connection_open_longer() {
        let fixture = Fixture::new();
        let (activity, before) = (Arc::<Activity>::default(), Instant::now());
        fixture.sign("users", &activity).await.unwrap();
        let deadline = activity.deadline().expect("it has a deadline");
        assert!(deadline <= before + limits::CONTROL_PROOF_WAIT, "it counts from the handshake");
    }

    #[tokio::test(start_paused = true)]
    async fn certificates_are_limited_for_each_identity() {
        let fixture = Fixture::new();
        let activity = Arc::<Activity>::default();
        let (at_once, ..) = limits::SIGNATURES;
        let users = ServiceName::parse("users.shop").unwrap();
        assert!((1..at_once).all(|_| fixture.service.signatures.allows(&users)), "as many replicas may start together");
        fixture.sign("users", &activity).await.unwrap();
        let refused = fixture.sign("users", &activity).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
        assert!(refused.message().contains("users.shop asks for certificates too often"), "{refused}");
        fixture.sign("orders", &activity).await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        fixture.sign("users", &activity).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_identity_without_signatures_causes_no_reviews_and_who_only_claims_it_takes_none() {
        let mut fixture = Fixture::new();
        let asked = Arc::<AtomicUsize>::default();
        let tokens = Box::new(Counting(Arc::clone(&asked)));
        fixture.service.cluster = Some(Arc::new(Cluster { workloads: Arc::default(), tokens }));
        let activity = Arc::<Activity>::default();
        let by = |signature: &str| fixture.sign_by(token_of("shop", "users", signature), &activity);
        for number in 0..100 {
            let refused = by(&number.to_string()).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused}");
        }
        let (at_once, ..) = limits::SIGNATURES;
        let users = ServiceName::parse("users.shop").unwrap();
        assert!((1..at_once).all(|_| fixture.service.signatures.allows(&users)), "false tokens took some");
        by("right").await.unwrap();
        assert_eq!(by("right").await.unwrap_err().code(), tonic::Code::ResourceExhausted);
        let before = asked.load(Relaxed);
        assert_eq!(by("right").await.unwrap_err().code(), tonic::Code::ResourceExhausted);
        assert_eq!(asked.load(Relaxed), before, "nothing would be signed");
        tokio::time::advance(Duration::from_secs(1)).await;
        by("right").await.unwrap();
    }
}
