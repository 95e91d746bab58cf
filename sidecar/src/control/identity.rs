//! The identity of this sidecar: it makes its key, gets its certificate from the control plane and renews it in time.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use tokio::time::timeout;
use tonic::{Status, Streaming, transport::Channel};
use weft_contracts::weft::identity::v1::{
    SignRequest, WatchBundleRequest, WatchBundleResponse, identity_client::IdentityClient,
};
use weft_mesh::{
    identity::ProvenBy,
    limits,
    tls::{Svid, TrustBundle, WorkloadKey},
};

use super::{
    Control,
    channel::CALL_TIMEOUT,
    retry::{Backoff, Trouble, status},
};
use crate::shared::Identity;

/// A clock that was set, or a machine that slept, is noticed within this time.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// The longest pause between two tries to renew.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const FIRST_WAIT: Duration = Duration::from_millis(50);

/// Gets the first identity, then keeps it and the trust bundle current for as long as the sidecar runs.
///
/// # Errors
/// The certificate names another service than `--service`: no retry helps.
pub(super) async fn run(control: Arc<Control>, bundle: TrustBundle) -> anyhow::Result<()> {
    let mut trouble = Trouble::new("getting an identity");
    let mut backoff = Backoff::new(FIRST_WAIT, Duration::from_secs(2));
    let mut identity = loop {
        match by_token(&control, &bundle).await {
            Ok(identity) => break identity,
            Err(error) => trouble.is(&format_args!("{error:#}")),
        }
        tokio::time::sleep(backoff.wait()).await;
    };
    trouble.is_over();
    check_service(&control, &identity)?;
    publish(&control, &identity)?;
    tracing::info!(id = %identity.svid.id(), "has its identity");

    let mut bundles = Bundles::new(Arc::clone(&control));
    let mut renewal = Renewal::of(&identity);
    loop {
        tokio::select! {
            () = renewal.due() => match renew(&control, &identity).await {
                Ok(renewed) => {
                    renewal.succeeded(&renewed);
                    identity = renewed;
                }
                Err(error) => {
                    renewal.failed(&error);
                    continue;
                }
            },
            roots = bundles.next() => match changed_bundle(&identity, roots) {
                Ok(None) => continue,
                Ok(Some(with_new_bundle)) => {
                    tracing::info!(bundle = ?with_new_bundle.bundle, "the trust bundle changed");
                    identity = with_new_bundle;
                }
                Err(error) => {
                    tracing::error!(error = %format_args!("{error:#}"), "a trust bundle that can't be used is ignored");
                    continue;
                }
            },
        }
        publish(&control, &identity)?;
    }
}

fn publish(control: &Control, identity: &Arc<Identity>) -> anyhow::Result<()> {
    let expiry = identity.svid.not_after().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    control.shared.metrics.svid_not_after.store(expiry.as_secs(), Relaxed);
    control.shared.identity.store(Some(Arc::clone(identity)));
    control.plane.use_identity(identity).context("the new identity can't be used for the control plane")
}

/// A wrong service is a permanent failure: the flags and the token disagree.
fn check_service(control: &Control, identity: &Identity) -> anyhow::Result<()> {
    let id = identity.svid.id();
    match &control.shared.local_service {
        Some(local) if local != id.service() => bail!(
            "the join token in {} is for {id}, but the local service of this sidecar is {local}; give it a token for \
             that service, or set --service {} --namespace {}",
            control.shared.args.join_token_file.display(),
            id.service().name(),
            id.service().namespace(),
        ),
        _ => Ok(()),
    }
}

/// Proves the identity with the join token, which is read again each time: it may have been replaced.
async fn by_token(control: &Control, bundle: &TrustBundle) -> anyhow::Result<Arc<Identity>> {
    let file = &control.shared.args.join_token_file;
    let token = std::fs::read_to_string(file)
        .with_context(|| format!("the join token {} can't be read", file.display()))?
        .trim()
        .to_owned();
    let proof = |_: &[u8]| Ok(SignRequest { join_token: token, ..SignRequest::default() });
    sign(control.plane.without_identity(bundle)?, proof).await
}

/// Proves the identity with the key of an expired SVID, which no handshake accepts any more.
async fn by_expired(control: &Control, current: &Identity) -> anyhow::Result<Arc<Identity>> {
    let svid = &current.svid;
    let proof = |csr_der: &[u8]| {
        let expired_svid_proof = svid.prove_late(csr_der)?.into();
        Ok(SignRequest { expired_svid_der: svid.leaf().to_vec().into(), expired_svid_proof, ..SignRequest::default() })
    };
    sign(control.plane.without_identity(&current.bundle)?, proof).await
}

/// Renews as the identity was proven first: in a cluster with the token, which the kubelet keeps fresh and without which
/// the control plane renews nothing there.
async fn renew(control: &Control, current: &Identity) -> anyhow::Result<Arc<Identity>> {
    let renewed = match ProvenBy::of_certificate(current.svid.leaf())? {
        ProvenBy::Cluster => by_token(control, &current.bundle).await?,
        ProvenBy::JoinToken => by_any(control, current).await?,
    };
    if renewed.svid.id() != current.svid.id() {
        bail!("the control plane signed a certificate for {}, but this is {}", renewed.svid.id(), current.svid.id());
    }
    Ok(renewed)
}

/// Renews with the current SVID as the proof. If that is not accepted, with the token. If that fails too and the SVID
/// has expired, with the SVID's key.
async fn by_any(control: &Control, current: &Identity) -> anyhow::Result<Arc<Identity>> {
    let by_svid = match control.plane.channel() {
        Some(channel) => sign(channel, |_| Ok(SignRequest::default())).await,
        None => Err(anyhow::anyhow!("there is no channel with the SVID")),
    };
    let by_svid = match by_svid {
        Ok(renewed) => return Ok(renewed),
        Err(by_svid) => by_svid,
    };
    match by_token(control, &current.bundle).await {
        Ok(renewed) => Ok(renewed),
        Err(by_token) if SystemTime::now() < current.svid.not_after() => {
            Err(by_token.context(format!("by its SVID: {by_svid:#}; by its token")))
        }
        Err(by_token) => by_expired(control, current).await.with_context(|| {
            format!("by its SVID: {by_svid:#}; by its token: {by_token:#}; by the key of its expired SVID")
        }),
    }
}

/// Gets a certificate for a new key. `proof` turns the signing request into the message that proves this sidecar's
/// identity.
async fn sign(
    channel: Channel,
    proof: impl FnOnce(&[u8]) -> anyhow::Result<SignRequest>,
) -> anyhow::Result<Arc<Identity>> {
    let key = WorkloadKey::generate()?;
    let csr_der = key.signing_request()?;
    let request = SignRequest { csr_der: csr_der.clone().into(), ..proof(&csr_der)? };
    let mut client = client(channel);
    let answer = timeout(CALL_TIMEOUT, client.sign(request)).await.context("the control plane did not answer")?;
    let answer = answer.map_err(|s| anyhow::anyhow!("{}", status(&s)))?.into_inner();
    let chain = answer.chain_der.into_iter().map(Into::into).collect();
    let bundle = TrustBundle::from_der(answer.bundle_der.into_iter().map(Into::into))?;
    let svid = key.into_svid(chain)?;
    check_time(&svid, SystemTime::now())?;
    Ok(Arc::new(Identity::new(svid, bundle)?))
}

/// Rejects a certificate that is not valid now: the clocks disagree, and the current certificate is better.
fn check_time(svid: &Svid, now: SystemTime) -> anyhow::Result<()> {
    if let Ok(early) = svid.not_before().duration_since(now)
        && !early.is_zero()
    {
        bail!("the certificate becomes valid in {early:.0?}: the control plane's clock is ahead of this host's");
    }
    if let Ok(late) = now.duration_since(svid.not_after()) {
        bail!("the certificate expired {late:.0?} ago: the control plane's clock is behind this host's");
    }
    Ok(())
}

fn client(channel: Channel) -> IdentityClient<Channel> {
    IdentityClient::new(channel).max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES)
}

/// The identity with the new bundle, if the bundle has changed.
fn changed_bundle(identity: &Identity, roots: WatchBundleResponse) -> anyhow::Result<Option<Arc<Identity>>> {
    let bundle = TrustBundle::from_der(roots.bundle_der.into_iter().map(Into::into))?;
    if bundle == identity.bundle {
        return Ok(None);
    }
    Ok(Some(Arc::new(Identity::new(identity.svid.clone(), bundle)?)))
}

/// When to renew the SVID, by the wall clock, which certificates follow.
struct Renewal {
    at: SystemTime,
    not_before: SystemTime,
    not_after: SystemTime,
    /// The next try after a failure, by the monotonic clock.
    again: Option<tokio::time::Instant>,
    trouble: Trouble,
    backoff: Backoff,
}

impl Renewal {
    fn of(identity: &Identity) -> Self {
        Self {
            at: renewal_time(identity.svid.not_before(), identity.svid.not_after(), fastrand::f64()),
            not_before: identity.svid.not_before(),
            not_after: identity.svid.not_after(),
            again: None,
            trouble: Trouble::new("renewing the certificate"),
            backoff: Backoff::new(Duration::from_secs(1), LONGEST_WAIT),
        }
    }

    async fn due(&self) {
        if let Some(again) = self.again {
            return tokio::time::sleep_until(again).await;
        }
        while let Some(left) = self.left(SystemTime::now()) {
            tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
        }
    }

    /// The time until renewal is due. `None` if it is due, or if the clock was set back to before the certificate's
    /// start.
    fn left(&self, now: SystemTime) -> Option<Duration> {
        self.at.duration_since(now).ok().filter(|left| !left.is_zero() && now >= self.not_before)
    }

    fn succeeded(&mut self, identity: &Identity) {
        self.trouble.is_over();
        *self = Self::of(identity);
        tracing::info!(id = %identity.svid.id(), "has renewed its certificate");
    }

    fn failed(&mut self, error: &anyhow::Error) {
        self.trouble.is(&format_args!("{error:#}"));
        if SystemTime::now() >= self.not_after {
            tracing::error!("the certificate has expired: other sidecars accept no connection from this one");
        }
        self.again = Some(tokio::time::Instant::now() + self.backoff.wait());
    }
}

/// At two thirds of the certificate's life, or up to a tenth of it earlier, so that sidecars that started together do
/// not renew together.
fn renewal_time(not_before: SystemTime, not_after: SystemTime, chance: f64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    not_before + life.mul_f64(2.0 / 3.0 - 0.1 * chance)
}

/// The trust bundles that the control plane sends, across broken streams.
struct Bundles {
    control: Arc<Control>,
    stream: Option<Streaming<WatchBundleResponse>>,
    backoff: Backoff,
    /// When the next stream may be opened. Kept here, so that a dropped wait does not start again.
    not_before: tokio::time::Instant,
}

impl Bundles {
    fn new(control: Arc<Control>) -> Self {
        let backoff = Backoff::new(FIRST_WAIT, Duration::from_secs(5));
        Self { control, stream: None, backoff, not_before: tokio::time::Instant::now() }
    }

    /// The next bundle. Dropping the future loses none: a new stream starts with the whole bundle.
    async fn next(&mut self) -> WatchBundleResponse {
        loop {
            match self.try_next().await {
                Ok(Some(bundle)) => {
                    self.backoff.reset();
                    return bundle;
                }
                // Other tasks log what is wrong with the connection.
                Ok(None) => tracing::debug!("the stream of trust bundles ended"),
                Err(error) => tracing::debug!(error = status(&error), "no trust bundles"),
            }
            self.stream = None;
            self.not_before = tokio::time::Instant::now() + self.backoff.wait();
        }
    }

    async fn try_next(&mut self) -> Result<Option<WatchBundleResponse>, Status> {
        if self.stream.is_none() {
            tokio::time::sleep_until(self.not_before).await;
            let mut client = client(self.control.plane.ready().await);
            let opened = timeout(CALL_TIMEOUT, client.watch_bundle(WatchBundleRequest {})).await;
            self.stream = Some(opened.map_err(|_| Status::deadline_exceeded("no answer"))??.into_inner());
        }
        match &mut self.stream {
            Some(stream) => stream.message().await,
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_before_two_thirds_of_the_life_and_after_half() {
        let start = SystemTime::UNIX_EPOCH;
        let hours = |h: u64| start + Duration::from_secs(h * 3600);
        assert!(renewal_time(start, hours(24), 0.0) <= hours(16));
        assert!(renewal_time(start, hours(24), 0.0) > hours(15));
        assert!(renewal_time(start, hours(24), 1.0) > hours(13));
    }

    #[test]
    fn a_certificate_that_is_not_valid_yet_is_renewed_like_one_that_expires() {
        let hours = |h: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(h * 3600);
        let renewal = Renewal {
            at: hours(40),
            not_before: hours(24),
            not_after: hours(48),
            again: None,
            trouble: Trouble::new("renewing"),
            backoff: Backoff::new(Duration::from_secs(1), LONGEST_WAIT),
        };
        assert_eq!(renewal.left(hours(39)), Some(Duration::from_secs(3600)));
        assert_eq!(renewal.left(hours(40)), None);
        assert_eq!(renewal.left(hours(23)), None, "the clock was set back");
    }
}
