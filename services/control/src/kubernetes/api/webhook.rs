//! The port that adds sidecars to pods: a mutating admission webhook (`admission.k8s.io/v1`).
//!
//! The API server sends it each pod of the namespaces that have sidecars before it is stored, and it answers with a JSON
//! patch. It looks at nothing else, so any number of control planes answer alike.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    routing::post,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, time::sleep};
use weft_mesh::http_server::{PortLimits, serve_tls};

use super::{PAUSE, Trust};
use crate::{
    authority::ca::Ca,
    kubernetes::{
        inject::{Config, Decision, Namespace, inject},
        names::NAMESPACE,
    },
};

/// The API server's limit for an object is 3 MiB, and a review may have it twice.
const REVIEW_BYTES: usize = 7 * 1024 * 1024;
/// The life of its certificate, and how often it gets a new one.
const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
const RENEWAL: Duration = Duration::from_secs(24 * 3600);
const LIMITS: PortLimits = PortLimits {
    connections: 256,
    streams: 64,
    header_bytes: 32 * 1024,
    timeout: Duration::from_secs(10),
    idle: Duration::from_secs(120),
};

/// See the module.
pub(crate) struct Webhook {
    pub(crate) listener: TcpListener,
    pub(crate) config: Config,
    pub(crate) trust: Trust,
}

impl Webhook {
    /// The configuration in a file, or the default one.
    ///
    /// # Errors
    /// All that is wrong with the file.
    pub(crate) fn configuration(file: Option<&Path>) -> anyhow::Result<Config> {
        Ok(file.map(Config::read).transpose()?.unwrap_or_default())
    }

    /// Serves until `shutdown` completes.
    ///
    /// # Errors
    /// There is no certificate.
    pub(crate) async fn serve(self, ca: &Ca, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self { listener, config, trust } = self;
        let (renewed, tls) = watch::channel(tls(ca)?);
        let app = Router::new()
            .route("/inject", post(review))
            .layer(DefaultBodyLimit::max(REVIEW_BYTES))
            .with_state(Arc::new(Injector { config, trust }));
        let renewal = async {
            loop {
                sleep(RENEWAL).await;
                match self::tls(ca) {
                    Ok(tls) => drop(renewed.send_replace(tls)),
                    Err(error) => {
                        tracing::error!(error = %format_args!("{error:#}"), "the webhook has no new certificate");
                        sleep(PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = serve_tls(listener, "the webhook", tls, LIMITS, app, (), shutdown) => Ok(()),
            () = renewal => Ok(()),
        }
    }
}

/// A configuration with a fresh certificate for the name by which the API server calls the Service.
fn tls(ca: &Ca) -> anyhow::Result<Arc<ServerConfig>> {
    let name = format!("control.{NAMESPACE}.svc");
    let (leaf, key) = ca.certificate_for(&name, LIFE).context("the webhook gets no certificate")?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    let config = ServerConfig::builder().with_no_client_auth();
    let mut config = config.with_single_cert(vec![CertificateDer::from(leaf)], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

struct Injector {
    config: Config,
    trust: Trust,
}

async fn review(State(injector): State<Arc<Injector>>, Json(review): Json<Value>) -> Json<Value> {
    Json(injector.answer(&review))
}

impl Injector {
    fn answer(&self, review: &Value) -> Value {
        let request = &review["request"];
        let mut response = self.decide(request);
        response["uid"] = request["uid"].clone();
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }

    fn decide(&self, request: &Value) -> Value {
        let name = request["namespace"].as_str().unwrap_or_default();
        let pod = &request["object"];
        // The webhook is called only for namespaces and pods with the label.
        let namespace = Namespace::enabled(name);
        match inject(&self.config, &namespace, pod) {
            Ok(Decision::Patch(patch)) => {
                if request["dryRun"] != json!(true) {
                    self.trust.is_needed_in(name);
                }
                tracing::debug!(namespace = name, "a pod gets a sidecar");
                let patch = BASE64_STANDARD.encode(Value::Array(patch).to_string());
                json!({"allowed": true, "patchType": "JSONPatch", "patch": patch})
            }
            Ok(Decision::Skip(reason)) if !reason.is_refusal() => json!({"allowed": true}),
            Ok(Decision::Skip(reason)) => {
                tracing::info!(namespace = name, %reason, "a pod gets no sidecar");
                json!({"allowed": true, "warnings": [format!("Weft adds no sidecar: {reason}")]})
            }
            Err(error) => {
                tracing::info!(namespace = name, %error, "a pod was refused");
                json!({"allowed": false, "status": {"code": 400, "reason": "BadRequest", "message": format!("Weft: {error}")}})
            }
        }
    }
}
