//! With `--ask-contracts`: asks the local service for its contracts by gRPC server reflection.
//!
//! Until it has answered, nobody may call it, as its contracts may say who may. That holds for each process of the service
//! anew. A connection without calls tells when the process may have ended: then it is asked again, and if nothing listens
//! or its health check fails, its contracts are no longer known. A service that does not answer, or not with something
//! that can be used, is asked again and again: whoever can slow it down must not be able to remove its rules. Only its own
//! word that it has no server reflection, or no file of a contract, is taken for an answer.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until, timeout},
};
use weft_contracts::weft::discovery::v1::Health;
use weft_mesh::reflection::{ReflectionError, Told, told_by};

use super::{
    Control,
    contracts::{compile, set},
    retry::{Backoff, Trouble},
};
use crate::{shared::contracts::Contracts, transport::connect};

/// It is not asked more often when its connections end, as some servers close those without calls.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);
/// What to do about a service that can't tell its contracts.
const WAY_OUT: &str = "nobody may call it. If it can't tell them, name its .proto files: `protos` in mesh.yaml, or --descriptors. \
                       `protos: []` says that it has no contracts";
/// It is told when it was asked in vain so many times.
const TOLD_AFTER: u32 = 3;
/// How long it may take to notice that nothing listens any more. The next process may be there sooner.
const HEALTH_TIME: Duration = Duration::from_millis(100);

/// For as long as the sidecar runs.
pub(super) async fn run(control: Arc<Control>, app: SocketAddr) -> anyhow::Result<()> {
    let mut health = control.health.subscribe();
    let mut trouble = Trouble::new("asking the local service for its contracts");
    let mut in_vain = 0_u32;
    let mut before = None;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        health.wait_for(|health| *health == Health::Up).await?;
        // From before it is asked, so that the answer is not that of another process.
        let Some(mut process) = Process::connect(app).await else {
            sleep(backoff.wait()).await;
            continue;
        };
        let asked_at = Instant::now();
        let answer = tokio::select! {
            answer = ask(&control, app) => answer?,
            () = process.ended() => {
                sleep(backoff.wait()).await;
                continue;
            }
        };
        match answer {
            Ok((told, contracts)) => {
                trouble.is_over();
                backoff.reset();
                in_vain = 0;
                take(&control, before.as_ref(), &told, contracts);
                before = Some(told);
                let is_down = tokio::select! {
                    () = process.ended() => false,
                    changed = health.wait_for(|health| *health != Health::Up) => changed.map(|_| true)?,
                };
                if is_down || is_refused(app).await {
                    control.shared.local_terms.doubt_contracts();
                    control.shared.check_health_now.notify_one();
                    let _ = timeout(HEALTH_TIME, health.wait_for(|health| *health != Health::Up)).await;
                }
                sleep_until(asked_at + LEAST_INTERVAL).await;
            }
            Err(why) => {
                in_vain = in_vain.saturating_add(1);
                control.shared.metrics.counters.contracts_refused.fetch_add(1, Relaxed);
                // It may have gone in the meantime, or be busy for a moment.
                if in_vain >= TOLD_AFTER && *health.borrow() == Health::Up {
                    trouble.is(&format_args!("{why}; {WAY_OUT}"));
                }
                sleep(backoff.wait()).await;
            }
        }
    }
}

/// Asks once. What it has told is `None` if it has no server reflection. The inner error says for people why there is no
/// answer that can be used.
async fn ask(control: &Arc<Control>, app: SocketAddr) -> anyhow::Result<Result<(Option<Told>, Contracts), String>> {
    let told = match told_by(app).await {
        Ok(told) if told.implements.is_empty() => return Ok(Ok((Some(told), Contracts::default()))),
        Ok(told) => told,
        Err(ReflectionError::Missing(_)) => return Ok(Ok((None, Contracts::default()))),
        Err(error) => return Ok(Err(error.to_string())),
    };
    let shared = Arc::clone(&control.shared);
    // Large descriptors take long to compile.
    let compiling = spawn_blocking(move || {
        let what = "what it tells by server reflection";
        let set = told.descriptor_set.clone();
        let contracts = compile(what, set, Some(&told.implements), shared.local_service.as_ref());
        contracts.map(|contracts| (Some(told), contracts)).map_err(|error| format!("{error:#}"))
    });
    compiling.await.context("reading the contracts failed")
}

fn take(control: &Control, before: Option<&Option<Told>>, told: &Option<Told>, contracts: Contracts) {
    let is_same = before == Some(told);
    if is_same && control.shared.local_terms.get().are_known {
        return;
    }
    if !is_same {
        match told {
            Some(told) => tracing::info!(contracts = ?told.implements, "the local service has told its contracts"),
            None if matches!(before, Some(Some(_))) => tracing::warn!(
                "the local service no longer answers server reflection: the options of its contracts no longer hold"
            ),
            None => tracing::info!("the local service does not answer server reflection: it has no contracts here"),
        }
        for why in told.iter().flat_map(|told| &told.incomplete) {
            tracing::warn!(why, "a contract of the local service is not known");
        }
    }
    set(control, contracts);
}

/// A process of the service, by a connection to it on which there are no calls.
struct Process {
    /// Keeps the connection open.
    _calls: http2::SendRequest<Empty<Bytes>>,
    connection: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Process {
    async fn connect(app: SocketAddr) -> Option<Self> {
        let stream = TokioIo::new(connect::to_local(app, || true).await.ok()?);
        let (calls, connection) = http2::Builder::new(TokioExecutor::new()).handshake(stream).await.ok()?;
        // How it ends does not matter.
        Some(Self { _calls: calls, connection: Box::pin(async { drop(connection.await) }) })
    }

    /// Waits for the end of the connection. Must not be waited for again after it.
    async fn ended(&mut self) {
        (&mut self.connection).await;
    }
}

/// Whether nothing listens. A service that is only slow to accept is there.
async fn is_refused(app: SocketAddr) -> bool {
    let connected = connect::to_local(app, || true).await;
    connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
