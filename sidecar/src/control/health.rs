//! The health of the local service: checked every second, and at once after a call to it failed.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Empty;
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use weft_contracts::weft::discovery::v1::Health;
use weft_mesh::limits;

use super::{
    Control, request,
    retry::{Trouble, status},
};
use crate::{args::HealthCheck, shared::Phase, transport::connect};

/// The pause between checks of a service that is not up, during the first [`EAGER_FOR`]: it was most likely just
/// started.
const EAGER_INTERVAL: Duration = Duration::from_millis(25);
const EAGER_FOR: Duration = Duration::from_secs(10);
/// After this many checks in a row without an answer the service is down, if it answered no call meanwhile. Fewer may
/// be chance: an overloaded service answers late. Kubernetes has the same default (`failureThreshold`).
const UNANSWERED_UNTIL_DOWN: u8 = 3;

/// For this long, late checks do not take down a service that answers calls: as long as Kubernetes waits with its
/// defaults. There must be a limit: a service in which only a cheap method still works must not stay up because
/// somebody calls that method.
const BUSY_FOR: Duration = Duration::from_secs(30);

/// Checks for as long as the sidecar runs.
pub(super) async fn run(control: Arc<Control>, app: SocketAddr) -> anyhow::Result<()> {
    let checker = Checker::new(app, control.shared.args.health_check())?;
    let mut judge = Judge::default();
    let mut trouble = Trouble::of_starting("the health check of the local service", limits::STARTING_TIME);
    let mut was_up = false;
    let mut not_up_since = Instant::now();
    let mut calls_answered = control.shared.metrics.calls_answered();
    let mut answered_at = Instant::now();
    loop {
        let mut outcome = timeout(limits::HEALTH_CHECK_TIMEOUT, checker.check()).await.unwrap_or(Outcome::Unanswered);
        let answered_before = std::mem::replace(&mut calls_answered, control.shared.metrics.calls_answered());
        if outcome != Outcome::Unanswered {
            answered_at = Instant::now();
        } else if calls_answered > answered_before && answered_at.elapsed() < BUSY_FOR {
            outcome = Outcome::Busy;
        }
        // Later the service most likely stops as well, which is no failure, and its health is no longer announced.
        let is_news = control.shared.phase() == Phase::Running;
        match &outcome {
            Outcome::Up => trouble.is_over(),
            Outcome::Down(why) if is_news => trouble.is(why),
            Outcome::Unanswered if is_news => trouble.is(&"no answer in time"),
            Outcome::Busy if is_news => trouble.is(&"no answer in time, but calls are answered"),
            Outcome::Down(_) | Outcome::Unanswered | Outcome::Busy => {}
        }
        let before = judge.health;
        let health = judge.take(&outcome);
        if health != before {
            control.set_local_health(health);
            not_up_since = Instant::now();
            was_up |= health == Health::Up;
            match (is_news, was_up) {
                (true, true) => tracing::info!(health = health.as_str_name(), "the local service's health changed"),
                (true, false) => tracing::debug!(health = health.as_str_name(), "the local service is starting"),
                (false, _) => {}
            }
        }
        let is_eager = health != Health::Up && not_up_since.elapsed() < EAGER_FOR;
        let pause = if is_eager { EAGER_INTERVAL } else { limits::HEALTH_CHECK_INTERVAL };
        tokio::select! {
            () = sleep(pause) => {}
            () = control.shared.check_health_now.notified() => {
                // Many calls may fail at once: they share a check.
                sleep(EAGER_INTERVAL.min(pause) / 5).await;
            }
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Up,
    /// The service refused the connection, or answered that it is down.
    Down(String),
    Unanswered,
    /// The check was not answered either, but calls were. A caller whose load makes the checks late must not take the
    /// service away from other callers.
    Busy,
}

/// Turns outcomes into health.
#[derive(Debug)]
struct Judge {
    health: Health,
    unanswered: u8,
}

impl Default for Judge {
    fn default() -> Self {
        Self { health: Health::Unspecified, unanswered: 0 }
    }
}

impl Judge {
    fn take(&mut self, outcome: &Outcome) -> Health {
        self.unanswered = if *outcome == Outcome::Unanswered { self.unanswered.saturating_add(1) } else { 0 };
        match outcome {
            Outcome::Up => self.health = Health::Up,
            Outcome::Down(_) => self.health = Health::Down,
            Outcome::Unanswered if self.unanswered >= UNANSWERED_UNTIL_DOWN => self.health = Health::Down,
            Outcome::Unanswered | Outcome::Busy => {}
        }
        self.health
    }
}

enum Checker {
    /// The channel is kept, so that a check costs no connection.
    Grpc(HealthClient<Channel>),
    Http {
        app: SocketAddr,
        path: http::Uri,
    },
    Tcp(SocketAddr),
}

impl Checker {
    fn new(app: SocketAddr, check: HealthCheck) -> anyhow::Result<Self> {
        Ok(match check {
            HealthCheck::Grpc => {
                let endpoint = Endpoint::from_shared(format!("http://{app}"))?.connect_timeout(limits::CONNECT_TIMEOUT);
                Self::Grpc(HealthClient::new(endpoint.connect_lazy()))
            }
            HealthCheck::Http(path) => Self::Http { app, path: path.parse()? },
            HealthCheck::Tcp => Self::Tcp(app),
        })
    }

    async fn check(&self) -> Outcome {
        match self {
            Self::Grpc(client) => grpc(client.clone()).await,
            Self::Http { app, path } => http(*app, path).await,
            Self::Tcp(app) => match connect::to_local(*app, || true).await {
                Ok(_) => Outcome::Up,
                Err(error) => Outcome::Down(format!("{app}: {error}")),
            },
        }
    }
}

async fn grpc(mut client: HealthClient<Channel>) -> Outcome {
    match client.check(HealthCheckRequest::default()).await {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Outcome::Up,
            other => Outcome::Down(format!("the service says {}", other.as_str_name())),
        },
        // A server without the health service, or without an entry for the server as a whole, is up too.
        Err(answer) if matches!(answer.code(), Code::Unimplemented | Code::NotFound) => Outcome::Up,
        Err(answer) if matches!(answer.code(), Code::DeadlineExceeded | Code::Cancelled) => Outcome::Unanswered,
        Err(answer) => Outcome::Down(status(&answer)),
    }
}

async fn http(app: SocketAddr, path: &http::Uri) -> Outcome {
    match http_status(app, path).await {
        Ok(status) if status.is_success() => Outcome::Up,
        Ok(status) => Outcome::Down(format!("GET {path} was answered with {status}")),
        Err(error) => Outcome::Down(format!("GET {path} at {app}: {error}")),
    }
}

async fn http_status(app: SocketAddr, path: &http::Uri) -> anyhow::Result<http::StatusCode> {
    let stream = connect::to_local(app, || true).await?;
    let request = http::Request::get(path.clone())
        .header(http::header::HOST, app.to_string())
        .header(http::header::USER_AGENT, "weft-health-check")
        .header(http::header::CONNECTION, "close")
        .body(Empty::<bytes::Bytes>::new())?;
    request::status(stream, request).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn a_refusal_counts_at_once_and_a_missing_answer_after_three_checks() {
        let mut judge = Judge::default();
        assert_eq!(judge.take(&Outcome::Up), Health::Up);
        assert_eq!(judge.take(&Outcome::Unanswered), Health::Up);
        assert_eq!(judge.take(&Outcome::Up), Health::Up);
        assert_eq!(judge.take(&Outcome::Unanswered), Health::Up);
        assert_eq!(judge.take(&Outcome::Unanswered), Health::Up);
        assert_eq!(judge.take(&Outcome::Unanswered), Health::Down);
        assert_eq!(judge.take(&Outcome::Up), Health::Up);
        assert_eq!(judge.take(&Outcome::Down("refused".into())), Health::Down);
    }

    #[test]
    fn a_service_that_answers_calls_is_not_down_for_late_checks() {
        let mut judge = Judge::default();
        assert_eq!(judge.take(&Outcome::Busy), Health::Unspecified, "it is not up before a first check was answered");
        assert_eq!(judge.take(&Outcome::Up), Health::Up);
        for _ in 0..10 {
            assert_eq!(judge.take(&Outcome::Unanswered), Health::Up);
            assert_eq!(judge.take(&Outcome::Unanswered), Health::Up);
            assert_eq!(judge.take(&Outcome::Busy), Health::Up);
        }
        assert_eq!(judge.take(&Outcome::Down("NOT_SERVING".into())), Health::Down);
        assert_eq!(judge.take(&Outcome::Busy), Health::Down, "the service has answered that it is down");
    }

    #[tokio::test]
    async fn each_kind_of_check_tells_up_from_down() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 512];
                let read = stream.read(&mut head).await.unwrap();
                let is_known = head[..read].starts_with(b"GET /healthy ");
                let line = if is_known { "HTTP/1.1 204 No Content" } else { "HTTP/1.1 503 Service Unavailable" };
                let _ = stream.write_all(format!("{line}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
            }
        });
        let check = async |kind| Checker::new(app, kind).unwrap().check().await;
        assert_eq!(check(HealthCheck::Tcp).await, Outcome::Up);
        assert_eq!(check(HealthCheck::Http("/healthy".into())).await, Outcome::Up);
        assert!(matches!(check(HealthCheck::Http("/other".into())).await, Outcome::Down(why) if why.contains("503")));
        server.abort();
        let _ = server.await;
        for kind in [HealthCheck::Tcp, HealthCheck::Http("/healthy".into()), HealthCheck::Grpc] {
            assert!(matches!(check(kind).await, Outcome::Down(_)));
        }
    }

    #[tokio::test]
    async fn a_grpc_server_without_the_health_service_is_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app = listener.local_addr().unwrap();
        let routes = tonic::service::Routes::default().into_axum_router();
        let server = tokio::spawn(async move { axum::serve(listener, routes).await });
        assert_eq!(Checker::new(app, HealthCheck::Grpc).unwrap().check().await, Outcome::Up);
        server.abort();
    }
}
