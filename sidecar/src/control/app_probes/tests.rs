//! Probes of real servers.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use axum::{Router, routing::get};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{io::AsyncWriteExt, net::TcpListener, task::AbortHandle};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::args::Probes;

/// A guard: nothing here takes long.
const TIMEOUT: u64 = 60;
const LOOPBACK: Target = Target { pod: None };

/// A server that runs until it is ended.
struct Server {
    port: u16,
    task: AbortHandle,
}

impl Server {
    async fn start<F: Future<Output = ()> + Send + 'static>(
        address: &str,
        serve: impl FnOnce(TcpListener) -> F,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { port, task: tokio::spawn(serve(listener)).abort_handle() }
    }

    async fn of(app: Router) -> Self {
        Self::start("127.0.0.1", async |listener| axum::serve(listener, app).await.unwrap()).await
    }

    /// Nothing listens there any more.
    async fn end(self) -> u16 {
        self.task.abort();
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        self.port
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn probe(json: &serde_json::Value) -> Probe {
    let text = serde_json::json!({ "app": { "readiness": json } }).to_string();
    text.parse::<Probes>().unwrap().0.into_values().next().unwrap()
}

async fn asked(target: Target, mut handler: serde_json::Value) -> Result<(), String> {
    handler["timeoutSeconds"] = TIMEOUT.into();
    run(&probe(&handler), target).await
}

async fn http(port: u16, path: &str) -> Result<(), String> {
    asked(LOOPBACK, serde_json::json!({ "httpGet": { "port": port, "path": path } })).await
}

#[tokio::test]
async fn a_page_is_asked_for_as_the_kubelet_would() {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    /// What the probe said of itself.
    static TOLD: std::sync::Mutex<Option<String>> = std::sync::Mutex::new(None);
    let told = |headers: axum::http::HeaderMap| async move {
        let get = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        *TOLD.lock().unwrap() = Some(format!("{} {} {}", get("host"), get("user-agent"), get("x-from")));
        StatusCode::IM_A_TEAPOT
    };
    let app = Router::new()
        .route("/up", get(async || "up"))
        .route("/moved-away", get(async || (StatusCode::FOUND, [("location", "http://example.com/")])))
        .route("/moved", get(async || (StatusCode::MOVED_PERMANENTLY, [("location", "up")])))
        .route("/moved-to-bad", get(async || (StatusCode::TEMPORARY_REDIRECT, [("location", "/bad")])))
        .route("/loop", get(async || (StatusCode::FOUND, [("location", "/loop")])))
        .route("/not-modified", get(async || StatusCode::NOT_MODIFIED))
        .route("/bad", get(async || StatusCode::SERVICE_UNAVAILABLE))
        .route("/told", get(told));
    let server = Server::of(app).await;
    for path in ["/up", "up", "/moved", "/moved-away", "/not-modified"] {
        assert_eq!(http(server.port, path).await, Ok(()), "{path}");
    }
    for (path, said) in [
        ("/bad", "GET /bad on port"),
        ("/moved-to-bad", "GET /bad on port"),
        ("/gone?a=b", "GET /gone on port"),
        ("/loop", "stopped after 10 redirects"),
    ] {
        let why = http(server.port, path).await.expect_err(path);
        assert!(why.contains(said), "{why}");
    }
    // What it says of itself, and what the pod's owner wants it to say.
    for (headers, expected) in [
        (serde_json::json!([]), format!("127.0.0.1:{} kube-probe/weft-{VERSION} ", server.port)),
        (
            serde_json::json!([["Host", "web.example"], ["X-From", "kubelet"]]),
            format!("web.example kube-probe/weft-{VERSION} kubelet"),
        ),
        (serde_json::json!([["user-agent", "me"]]), format!("127.0.0.1:{} me ", server.port)),
    ] {
        let page = serde_json::json!({ "httpGet": { "port": server.port, "path": "/told", "headers": headers } });
        asked(LOOPBACK, page).await.expect_err("it is a teapot");
        assert_eq!(TOLD.lock().unwrap().take(), Some(expected));
    }
    let port = server.end().await;
    let why = http(port, "/up").await.expect_err("it is dead");
    assert!(why.contains("refused"), "{why}");
}

#[tokio::test]
async fn the_certificate_of_an_https_server_may_be_any() {
    let made = rcgen::generate_simple_self_signed(vec!["somewhere.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let server = Server::start("127.0.0.1", async move |listener| {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A connection without TLS ends here.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    })
    .await;
    let https = serde_json::json!({ "httpGet": { "port": server.port, "scheme": "HTTPS" } });
    assert_eq!(asked(LOOPBACK, https).await, Ok(()));
    assert!(http(server.port, "/").await.is_err(), "it does not speak plain HTTP");
}

#[tokio::test]
async fn a_grpc_server_says_whether_a_service_is_serving() {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("good", tonic_health::ServingStatus::Serving).await;
    reporter.set_service_status("bad", tonic_health::ServingStatus::NotServing).await;
    let server = Server::of(tonic::service::Routes::new(health).into_axum_router()).await;
    let check = async |port: u16, service: &str| {
        asked(LOOPBACK, serde_json::json!({ "grpc": { "port": port, "service": service } })).await
    };
    assert_eq!(check(server.port, "").await, Ok(()));
    assert_eq!(check(server.port, "good").await, Ok(()));
    for (service, said) in [("bad", "NOT_SERVING"), ("unknown", "NotFound")] {
        let why = check(server.port, service).await.expect_err(service);
        assert!(why.to_lowercase().replace('_', "").contains(&said.to_lowercase().replace('_', "")), "{why}");
    }
    let without = Server::of(tonic::service::Routes::default().into_axum_router()).await;
    check(without.port, "").await.expect_err("it has no health service");
    let port = server.end().await;
    check(port, "").await.expect_err("it is dead");
}

#[tokio::test]
async fn a_port_that_takes_connections_is_enough_for_tcp() {
    let server = Server::of(Router::new()).await;
    let tcp = |port: u16| serde_json::json!({ "tcpSocket": { "port": port } });
    assert_eq!(asked(LOOPBACK, tcp(server.port)).await, Ok(()));
    let port = server.end().await;
    asked(LOOPBACK, tcp(port)).await.expect_err("nothing listens there");
}

/// At the pod's address, as the kubelet does, and at loopback only if nothing is there.
#[tokio::test]
async fn an_application_is_found_at_the_pod_s_address_or_on_loopback() {
    let target = Target { pod: Some([127, 0, 0, 7].into()) };
    let app = |status: StatusCode| Router::new().route("/", get(async move || status));
    let loopback = Server::of(app(StatusCode::OK)).await;
    let page = serde_json::json!({ "httpGet": { "port": loopback.port } });
    assert_eq!(asked(target, page.clone()).await, Ok(()));
    let listener = TcpListener::bind(("127.0.0.7", loopback.port)).await.unwrap();
    let at_pod = tokio::spawn(async move { axum::serve(listener, app(StatusCode::NOT_FOUND)).await });
    asked(target, page).await.expect_err("another program is at the pod's address");
    at_pod.abort();
}

#[tokio::test]
async fn a_probe_without_an_answer_ends_at_its_time_limit() {
    let server = Server::start("127.0.0.1", async |listener| {
        // Accepted by the kernel, and never answered.
        let _listener = listener;
        std::future::pending().await
    })
    .await;
    let page = serde_json::json!({ "httpGet": { "port": server.port }, "timeoutSeconds": 1 });
    assert_eq!(run(&probe(&page), LOOPBACK).await, Err("no answer within 1s".to_owned()));
}

/// Whoever reaches the port can ask: neither how often it asks, nor that it goes away, may matter to others.
#[tokio::test]
async fn one_run_at_a_time_answers_all_who_ask() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let (release, released) = tokio::sync::watch::channel(false);
    let page = async move || {
        RUNS.fetch_add(1, Relaxed);
        let _ = released.clone().wait_for(|is_released| *is_released).await;
    };
    let server = Server::of(Router::new().route("/", get(page))).await;
    let page = probe(&serde_json::json!({ "httpGet": { "port": server.port }, "timeoutSeconds": TIMEOUT }));
    let probed = Arc::new(Probed::new("app", ProbeKind::Readiness, &page, None));
    let ask = || {
        let probed = Arc::clone(&probed);
        tokio::spawn(async move { probed.outcome(&|_| unreachable!()).await })
    };
    let first = ask();
    while RUNS.load(Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let others: Vec<_> = (0..100).map(|_| ask()).collect();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    release.send_replace(true);
    for other in others {
        assert_eq!(other.await.unwrap(), Ok(()));
    }
    assert_eq!(RUNS.load(Relaxed), 1, "the run of the one who has gone went on, and all shared it");
}
