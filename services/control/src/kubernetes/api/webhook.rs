//! The port that adds sidecars to pods: a mutating admission webhook (`admission.k8s.io/v1`).
//!
//! The API server sends it each pod of the namespaces that have sidecars before it is stored, and it answers with a JSON
//! patch. It looks at nothing else, so any number of control planes answer alike. Every pod can reach the port and ask,
//! so a request costs little, and an answer changes nothing here.

mod bodies;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::post,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderValue, StatusCode, Version, header};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;
use weft_mesh::{
    http_server::{Ends, PortLimits, serve_tls},
    names::{is_label, shown, shown_up_to},
};

pub(crate) use self::bodies::WORK;
use self::bodies::{Bodies, Refusal, has_too_many_values};
use super::PAUSE;
use crate::{
    authority::ca::Ca,
    kubernetes::{
        inject::{Config, Decision, Namespace, inject},
        names::{NAMESPACE, WEBHOOK_SERVICE},
    },
    log_limit::STRANGERS,
};

/// The uid of a request is a UUID.
const UID_BYTES: usize = 64;
/// The longest message to the one who made a pod.
const REFUSAL_CHARS: usize = 1_000;
/// The life of its certificate, and how often it gets a new one.
const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
const RENEWAL: Duration = Duration::from_secs(24 * 3600);
/// How long the API server may take to learn that this pod ends.
const LINGER: Duration = Duration::from_secs(5);
/// The API server has few connections. Each may bring 1 MiB that waits for its turn: HTTP/2's window here.
const LIMITS: PortLimits = PortLimits {
    connections: 64,
    streams: 8,
    header_bytes: 32 * 1024,
    timeout: Duration::from_secs(10),
    idle: Duration::from_secs(120),
};

/// See the module.
pub(crate) struct Webhook {
    pub(crate) listener: TcpListener,
    pub(crate) config: Config,
}

impl Webhook {
    /// The configuration in a file, or the default one.
    ///
    /// # Errors
    /// All that is wrong with the file.
    pub(crate) fn configuration(file: Option<&Path>) -> anyhow::Result<Config> {
        Ok(file.map(Config::read).transpose()?.unwrap_or_default())
    }

    /// Serves until `stopping` is cancelled, and [`LINGER`] longer.
    ///
    /// # Errors
    /// There is no certificate.
    pub(crate) async fn serve(self, ca: &Ca, stopping: CancellationToken) -> anyhow::Result<()> {
        let Self { listener, config } = self;
        let (renewed, tls) = watch::channel(tls(ca)?);
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
        let app = app(config).layer(from_fn_with_state(stopping.clone(), say_goodbye));
        tokio::select! {
            () = serve_tls(listener, "the webhook", tls, LIMITS, app, (), lingered(stopping)) => Ok(()),
            () = renewal => Ok(()),
        }
    }
}

/// Waits until this process is to end, and then for as long as others take to learn of it.
pub(crate) async fn lingered(stopping: CancellationToken) {
    stopping.cancelled().await;
    sleep(LINGER).await;
}

/// A process that ends answers each request as the last one of its connection: the API server keeps connections of HTTP/1.1, and
/// a pod can't be created if one is closed just when it sends a request.
async fn say_goodbye(State(stopping): State<CancellationToken>, request: Request, next: Next) -> Response {
    let version = request.version();
    let mut response = next.run(request).await;
    if stopping.is_cancelled() && version == Version::HTTP_11 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A configuration with a fresh certificate for the name by which the API server calls the Service.
fn tls(ca: &Ca) -> anyhow::Result<Arc<ServerConfig>> {
    let name = format!("{WEBHOOK_SERVICE}.{NAMESPACE}.svc");
    let (leaf, key) = ca.certificate_for(&name, LIFE).context("the webhook gets no certificate")?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    let config = ServerConfig::builder().with_no_client_auth();
    let mut config = config.with_single_cert(vec![CertificateDer::from(leaf)], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

struct Injector {
    config: Config,
    bodies: Bodies,
}

fn app(config: Config) -> Router {
    let injector = Arc::new(Injector { config, bodies: Bodies::new() });
    Router::new().route("/inject", post(review)).with_state(injector)
}

async fn review(
    State(injector): State<Arc<Injector>>,
    Extension(ends): Extension<Ends>,
    body: Body,
) -> Result<Json<Value>, Refusal> {
    let turn = injector.bodies.read(ends.peer.ip(), body).await?;
    // Elsewhere, as a large pod takes a while. If the request is given up, it keeps its turn until it is done.
    let answering = spawn_blocking(move || injector.answer(&turn.body));
    // It panicked, which is logged.
    let answered = answering.await.map_err(|_| (StatusCode::INTERNAL_SERVER_ERROR, "no answer could be made"))?;
    answered.map(Json)
}

impl Injector {
    fn answer(&self, body: &[u8]) -> Result<Value, Refusal> {
        if has_too_many_values(body) {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, "the body has more values than a pod"));
        }
        let no_review = (StatusCode::BAD_REQUEST, "the body is no AdmissionReview");
        let review: Value = serde_json::from_slice(body).map_err(|_| no_review)?;
        let request = &review["request"];
        let uid = request["uid"].as_str().filter(|uid| uid.len() <= UID_BYTES).ok_or(no_review)?;
        let mut response = self.decide(request);
        response["uid"] = json!(uid);
        Ok(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
    }

    fn decide(&self, request: &Value) -> Value {
        let name = request["namespace"].as_str().unwrap_or_default();
        if !is_label(name) {
            return refused("", &format!("request.namespace: `{}` is not the name of a namespace", shown(name)));
        }
        // The webhook is called only for namespaces and pods with the label.
        match inject(&self.config, &Namespace::enabled(name), &request["object"]) {
            Ok(Decision::Patch(patch)) => {
                let patch = BASE64_STANDARD.encode(Value::Array(patch).to_string());
                json!({"allowed": true, "patchType": "JSONPatch", "patch": patch})
            }
            Ok(Decision::Skip(reason)) if !reason.is_refusal() => json!({"allowed": true}),
            Ok(Decision::Skip(reason)) => {
                if STRANGERS.allows() {
                    tracing::info!(namespace = name, %reason, "a pod gets no sidecar");
                }
                json!({"allowed": true, "warnings": [format!("Weft adds no sidecar: {reason}")]})
            }
            Err(error) => refused(name, &error.to_string()),
        }
    }
}

fn refused(namespace: &str, why: &str) -> Value {
    let why = shown_up_to(why, REFUSAL_CHARS);
    if STRANGERS.allows() {
        tracing::info!(namespace, error = why, "a pod was refused");
    }
    json!({"allowed": false, "status": {"code": 400, "reason": "BadRequest", "message": format!("Weft: {why}")}})
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(body: impl Into<Body>) -> (StatusCode, Value) {
        let ends = Ends { local: ([127, 0, 0, 1], 1).into(), peer: ([127, 0, 0, 1], 2).into() };
        let mut request = Request::post("/inject").body(body.into()).unwrap();
        request.extensions_mut().insert(ends);
        let (head, body) = app(Config::default()).oneshot(request).await.unwrap().into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (head.status, serde_json::from_slice(&body).unwrap_or_default())
    }

    fn review_of(namespace: &str, pod: Value) -> String {
        json!({"request": {"uid": "a-b", "namespace": namespace, "object": pod}}).to_string()
    }

    #[tokio::test]
    async fn a_review_is_answered_with_a_patch() {
        let (status, answer) = ask(review_of("shop", json!({"spec": {"containers": [{"name": "a"}]}}))).await;
        let response = &answer["response"];
        assert_eq!((status, &response["allowed"], &response["uid"]), (StatusCode::OK, &json!(true), &json!("a-b")));
        let patch = BASE64_STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
        assert!(String::from_utf8(patch).unwrap().contains("weft-sidecar"));
    }

    #[tokio::test]
    async fn a_control_plane_that_ends_says_so_to_the_api_server() {
        let stopping = CancellationToken::new();
        let app = app(Config::default()).layer(from_fn_with_state(stopping.clone(), say_goodbye));
        let ask = async || {
            let request = Request::post("/inject").body(Body::empty()).unwrap();
            app.clone().oneshot(request).await.unwrap().headers().get(header::CONNECTION).cloned()
        };
        assert_eq!(ask().await, None);
        stopping.cancel();
        assert_eq!(ask().await.unwrap(), "close");
    }

    /// Anybody can send a review.
    #[tokio::test]
    async fn a_review_that_the_api_server_would_not_send_is_refused() {
        let pod = json!({"spec": {"containers": [{"name": "a"}]}});
        for namespace in ["", "../kube-system", "a\nb", "Shop", &"x".repeat(1_000_000)] {
            let (_, answer) = ask(review_of(namespace, pod.clone())).await;
            let (response, message) = (&answer["response"], &answer["response"]["status"]["message"]);
            assert_eq!(response["allowed"], json!(false), "{namespace}");
            assert!(message.as_str().is_some_and(|text| text.len() < 200 && !text.contains('\n')), "{message}");
        }
        let annotations =
            json!({"metadata": {"annotations": {format!("weft.dev/{}", "x".repeat(1_000_000)): ""}}, "spec": {}});
        let (_, answer) = ask(review_of("shop", annotations)).await;
        assert!(answer["response"]["status"]["message"].as_str().unwrap().len() < 2_000);
        let many = vec![json!({}); 200_000];
        let (status, _) = ask(review_of("shop", json!({"spec": {"containers": many}}))).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        for no_review in ["", "{", "[]", "{}", r#"{"request":{"uid":1}}"#] {
            assert_eq!(ask(no_review).await.0, StatusCode::BAD_REQUEST, "{no_review}");
        }
    }
}
