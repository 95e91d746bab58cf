//! The control plane's own SVID and the roots of its trust domain, for TLS handshakes. Both change while it runs.

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

/// How often the bundle's file is checked for changes.
const POLL: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Credentials {
    config: ArcSwap<ServerConfig>,
    bundle: watch::Sender<TrustBundle>,
}

/// A file's modification time and size, which tell that it changed.
type Stamp = (SystemTime, u64);

impl Credentials {
    pub(crate) fn new(ca: &Ca) -> Result<(Self, Svid), CaError> {
        let svid = ca.own_svid()?;
        let config = ArcSwap::new(config(&svid, ca.bundle())?);
        Ok((Self { config, bundle: watch::Sender::new(ca.bundle().clone()) }, svid))
    }

    /// The configuration for the next handshake.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// The roots, now and after each change.
    pub(crate) fn bundle(&self) -> watch::Receiver<TrustBundle> {
        self.bundle.subscribe()
    }

    /// Renews the SVID in time and reads the bundle again when it changes; never ends.
    pub(crate) async fn keep_fresh(&self, ca: &Ca, mut svid: Svid, state_dir: &Path) {
        let path = state_dir.join(BUNDLE);
        // No stamp at first: the bundle was read earlier, and may have changed since.
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

    /// Reads the file again. True if it has other roots than before.
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
    // A sidecar without an SVID proves itself with a join token.
    server_config(svid, bundle, ClientCertificate::Optional)
}

/// True after two thirds of its life. Also before its start, which means that the clock was set back.
fn is_due(svid: &Svid, now: SystemTime) -> bool {
    let life = svid.not_after().duration_since(svid.not_before()).unwrap_or_default();
    now >= svid.not_before() + life * 2 / 3 || now < svid.not_before()
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.modified()?, metadata.len()))
}
