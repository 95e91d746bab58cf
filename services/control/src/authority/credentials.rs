//! What the control plane shows and asks for in a handshake: its own SVID, and the roots of its trust domain. Both
//! change while it runs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::sync::watch;
use weft_mesh::tls::{ClientCertificate, Svid, TlsSetupError, TrustBundle, server_config};

use super::ca::{BUNDLE, Ca, CaError, parse_bundle};

/// How soon a changed bundle is seen.
const POLL: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Credentials {
    config: ArcSwap<ServerConfig>,
    bundle: watch::Sender<TrustBundle>,
}

/// What of a file is looked at to see that it changed.
type Stamp = (SystemTime, u64);

impl Credentials {
    pub(crate) fn new(ca: &Ca) -> Result<(Self, Svid), CaError> {
        let svid = ca.own_svid()?;
        let config = ArcSwap::new(config(&svid, ca.bundle())?);
        Ok((Self { config, bundle: watch::Sender::new(ca.bundle().clone()) }, svid))
    }

    /// For the next handshake.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// The roots, now and whenever they change.
    pub(crate) fn bundle(&self) -> watch::Receiver<TrustBundle> {
        self.bundle.subscribe()
    }

    /// Renews the SVID in time and takes up a changed bundle; never ends.
    pub(crate) async fn keep_fresh(&self, ca: &Ca, mut svid: Svid, state_dir: &Path) {
        let path = state_dir.join(BUNDLE);
        // The bundle was read before: a first look that finds it unchanged since would miss what changed in between.
        let mut seen: Option<Stamp> = None;
        let mut ticks = tokio::time::interval(POLL);
        loop {
            ticks.tick().await;
            let is_due = is_due(&svid, SystemTime::now());
            let renewed = if is_due { self.renew(ca) } else { None };
            let changed = match stamp(&path) {
                Ok(stamp) if seen != Some(stamp) => {
                    seen = Some(stamp);
                    self.reload(ca, &path)
                }
                Ok(_) => false,
                Err(error) => {
                    if seen.take().is_some() {
                        tracing::error!(path = %path.display(), %error, "the trust bundle can't be read; the last stays");
                    }
                    false
                }
            };
            let is_renewed = renewed.is_some();
            svid = renewed.unwrap_or(svid);
            if is_renewed || changed {
                match config(&svid, &self.bundle.borrow()) {
                    Ok(config) => self.config.store(config),
                    Err(error) => tracing::error!(%error, "the new credentials can't be used; the last stay"),
                }
            }
        }
    }

    fn renew(&self, ca: &Ca) -> Option<Svid> {
        match ca.own_svid() {
            Ok(svid) => {
                tracing::info!("renewed the control plane's own SVID");
                Some(svid)
            }
            Err(error) => {
                tracing::error!(%error, "the control plane's own SVID can't be renewed");
                None
            }
        }
    }

    /// Whether the file holds other roots than before.
    fn reload(&self, ca: &Ca, path: &PathBuf) -> bool {
        let read = fs::read(path).map_err(|e| e.to_string());
        let bundle = match read.and_then(|pem| parse_bundle(&pem, ca.root_der())) {
            Ok(bundle) => bundle,
            Err(error) => {
                tracing::error!(path = %path.display(), error, "the trust bundle is unusable; the last stays");
                return false;
            }
        };
        let roots = bundle.der().count();
        let changed = self.bundle.send_if_modified(|last| {
            let is_other = *last != bundle;
            *last = bundle;
            is_other
        });
        if changed {
            tracing::info!(roots, "the trust bundle changed");
        }
        changed
    }
}

fn config(svid: &Svid, bundle: &TrustBundle) -> Result<Arc<ServerConfig>, TlsSetupError> {
    // Who has no SVID yet comes with a join token.
    server_config(svid, bundle, ClientCertificate::Optional)
}

/// After two thirds of its life; or before its beginning, as the clock was set back.
fn is_due(svid: &Svid, now: SystemTime) -> bool {
    let life = svid.not_after().duration_since(svid.not_before()).unwrap_or_default();
    now >= svid.not_before() + life * 2 / 3 || now < svid.not_before()
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.modified()?, metadata.len()))
}
