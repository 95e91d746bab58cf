//! `weft-sidecar drain`: asks the sidecar of this host to drain, and waits until it has. On Kubernetes it is the `preStop`
//! hook of the sidecar's container, whose image has no other program.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::Empty;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout, timeout_at},
};
use weft_mesh::telemetry;

use crate::{args::Drain, control::request};

/// How long the sidecar may take to answer, however short the wait is.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to ask whether it has drained.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Blocks until it has drained, or the time is over.
///
/// # Errors
/// No sidecar listens there.
pub(crate) fn run(args: &Drain) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("there is no runtime")?;
    if !runtime.block_on(drain(args))? {
        telemetry::say_last(&format!("weft-sidecar drain: calls still run after {:?}", args.wait));
    }
    Ok(())
}

/// Whether it has drained in time.
async fn drain(args: &Drain) -> anyhow::Result<bool> {
    let (admin, metrics) = (reachable(args.admin), reachable(args.metrics));
    let end = Instant::now() + args.wait;
    let status = timeout(ANSWER_TIMEOUT, ask(admin, Method::POST, "/drain"))
        .await
        .map_err(|_| anyhow::anyhow!("no answer within {ANSWER_TIMEOUT:?}"))
        .flatten()
        .with_context(|| format!("no sidecar can be told to drain at {admin} (--admin)"))?;
    ensure!(status == StatusCode::OK, "POST /drain was answered with {status} at {admin}: is it a sidecar's --admin?");
    while Instant::now() < end {
        match timeout_at(end, ask(metrics, Method::GET, "/drainz")).await {
            Ok(Ok(StatusCode::OK)) => return Ok(true),
            Ok(Ok(StatusCode::SERVICE_UNAVAILABLE)) => sleep(LOOK_INTERVAL.min(end - Instant::now())).await,
            Ok(Ok(status)) => {
                bail!("GET /drainz was answered with {status} at {metrics}: are these a sidecar's --metrics?")
            }
            // It was told to end meanwhile, and no call can run any more.
            Ok(Err(_)) if TcpStream::connect(admin).await.is_err() => return Ok(true),
            Ok(Err(error)) => {
                return Err(error
                    .context(format!("a sidecar drains, but can't be asked how far it is at {metrics} (--metrics)")));
            }
            Err(_) => break,
        }
    }
    Ok(args.wait.is_zero())
}

/// Where to connect to what listens there. The admin port answers only if it is addressed as loopback.
fn reachable(listens: SocketAddr) -> SocketAddr {
    match listens.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, listens.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, listens.port()).into(),
        _ => listens,
    }
}

/// The status of an answer, over a connection of its own. Dropping the future closes that.
async fn ask(address: SocketAddr, method: Method, path: &str) -> anyhow::Result<StatusCode> {
    let request = http::Request::builder().method(method).uri(path);
    let request = request.header(http::header::HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    request::status(TcpStream::connect(address).await?, request).await
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::{Router, routing};
    use tokio::net::TcpListener;

    use super::*;

    /// What a sidecar was asked.
    type Asked = Arc<Mutex<Vec<&'static str>>>;

    /// Answers as the ports of a sidecar that has drained after `looks` questions; never if that is `None`.
    async fn sidecar(looks: Option<usize>) -> (SocketAddr, Asked) {
        let asked = Asked::default();
        let (told, looked) = (Arc::clone(&asked), Arc::clone(&asked));
        let drain = move || told.lock().unwrap().push("drain");
        let drainz = move || {
            let mut asked = looked.lock().unwrap();
            asked.push("look");
            let is_drained = looks.is_some_and(|looks| asked.len() > looks);
            if is_drained { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
        };
        let app = Router::new()
            .route("/drain", routing::post(async move || drain()))
            .route("/drainz", routing::get(async move || drainz()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async { axum::serve(listener, app).await });
        (address, asked)
    }

    fn args(admin: SocketAddr, metrics: SocketAddr, wait: Duration) -> Drain {
        Drain { admin, metrics, wait }
    }

    #[tokio::test]
    async fn it_waits_until_the_sidecar_has_drained_or_the_time_is_over() {
        let (at, asked) = sidecar(Some(3)).await;
        let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), at.port());
        assert!(drain(&args(everywhere, everywhere, Duration::from_secs(60))).await.unwrap());
        assert_eq!(*asked.lock().unwrap(), ["drain", "look", "look", "look"]);

        let (at, asked) = sidecar(None).await;
        assert!(!drain(&args(at, at, LOOK_INTERVAL)).await.unwrap(), "calls still run");
        assert!(drain(&args(at, at, Duration::ZERO)).await.unwrap(), "nobody waits for them");
        assert_eq!(asked.lock().unwrap().last(), Some(&"drain"));
    }

    #[tokio::test]
    async fn an_error_says_where_no_sidecar_listens() {
        let (at, _) = sidecar(None).await;
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let wait = Duration::from_secs(60);
        let told = async |admin, metrics| format!("{:#}", drain(&args(admin, metrics, wait)).await.unwrap_err());
        let none = told(closed, at).await;
        assert!(none.starts_with(&format!("no sidecar can be told to drain at {closed} (--admin): ")), "{none}");
        let half = told(at, closed).await;
        assert!(half.starts_with("a sidecar drains, but can't be asked how far it is"), "{half}");
    }
}
