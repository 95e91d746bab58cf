//! `weft.discovery.v1.Discovery`: sidecars learn of the services that they call.
//!
//! The stream has no task: its reader drives it. While a sidecar does not read, its questions are not read either, and
//! its answers wait in its [`Watcher`], which is bounded.

use std::{pin::Pin, sync::Arc};

use futures_util::stream;
use prost::Message as _;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use weft_contracts::weft::discovery::v1::{
    WatchRequest, WatchResponse, discovery_server, not_found, watch_request::What,
};
use weft_mesh::{limits, names::is_contract_name};

use super::{
    pace::Pace,
    peer::{Caller, authenticated},
    streams::{Kind, OpenStream},
};
use crate::{
    directory::{
        Directory, Watching,
        watcher::{TooManyWatched, Watcher},
    },
    log_limit,
};

/// How many bytes are sent before other streams have their turn.
const UNSENT_BYTES: usize = 2 * 1024;

/// See the module.
pub(crate) struct DiscoveryService {
    pub(crate) directory: Arc<Directory>,
    pub(crate) stopping: CancellationToken,
}

#[tonic::async_trait]
impl discovery_server::Discovery for DiscoveryService {
    type WatchStream = Pin<Box<dyn stream::Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = authenticated(&request)?;
        let open = caller.open(Kind::Watch)?;
        tracing::debug!(peer = %caller, "watches");
        let watch = Watch {
            watching: self.directory.watch(caller.id.service(), caller.host),
            caller,
            requests: Some(request.into_inner()),
            pace: Pace::new(limits::WATCH_MESSAGES),
            stopping: self.stopping.clone(),
            is_over: false,
            unsent: 0,
            _open: open,
        };
        let answers = stream::unfold(watch, async |mut watch| watch.next().await.map(|answer| (answer, watch)));
        Ok(Response::new(Box::pin(answers)))
    }
}

struct Watch {
    watching: Watching,
    caller: Caller,
    /// `None` when the sidecar has closed its side: it still gets what it asked for.
    requests: Option<Streaming<WatchRequest>>,
    pace: Pace,
    stopping: CancellationToken,
    is_over: bool,
    /// The bytes sent since other streams had their turn.
    unsent: usize,
    _open: OpenStream,
}

/// What the answers of a watch wait for.
enum Signal {
    Stop,
    Expired,
    Request(Result<Option<WatchRequest>, Status>),
    News,
}

impl Watch {
    /// The next response; `None` at the end. Dropping the future loses nothing.
    async fn next(&mut self) -> Option<Result<WatchResponse, Status>> {
        if self.is_over {
            return None;
        }
        loop {
            if self.unsent >= UNSENT_BYTES {
                // Lets the connection's task send it first. An event that concerns all watchers produces answers for
                // all of them, which would otherwise be in memory at the same time.
                self.unsent = 0;
                yield_now().await;
            }
            if let Some(answer) = self.watching.next() {
                self.unsent += answer.encoded_len();
                return Some(Ok(answer));
            }
            self.unsent = 0;
            let step = tokio::select! {
                biased;
                () = self.stopping.cancelled() => Signal::Stop,
                () = self.caller.expired() => Signal::Expired,
                request = next_request(&mut self.requests, &mut self.pace) => Signal::Request(request),
                () = self.watching.news() => Signal::News,
            };
            let taken = match step {
                Signal::Stop => Err(Status::unavailable("the control plane is stopping")),
                Signal::Expired => {
                    if log_limit::MEMBERS.allows(self.caller.id.service()) {
                        tracing::info!(peer = %self.caller, "a watch is over: the SVID of its connection has expired");
                    }
                    Err(Caller::expiry_status())
                }
                Signal::News => Ok(()),
                Signal::Request(Ok(Some(request))) => self.take(request),
                Signal::Request(Ok(None)) => {
                    self.requests = None;
                    Ok(())
                }
                Signal::Request(Err(status)) => Err(status),
            };
            if let Err(status) = taken {
                self.is_over = true;
                return Some(Err(status));
            }
        }
    }

    fn take(&self, request: WatchRequest) -> Result<(), Status> {
        // A newer sidecar may send messages that are not known here: they are ignored.
        let Some(what) = request.what else { return Ok(()) };
        let taken = self.watching.update(|watcher| match &what {
            What::SubscribeService(name) => watcher.subscribe_service(name),
            What::SubscribeContract(name) => subscribe_claim(watcher, name, is_contract_name(name)),
            What::SubscribeAddress(address) => {
                subscribe_claim(watcher, address, address.parse::<std::net::SocketAddr>().is_ok())
            }
            What::UnsubscribeService(name) => {
                watcher.unsubscribe_service(name);
                Ok(())
            }
        });
        taken.map_err(|e| Status::resource_exhausted(e.to_string()))
    }
}

/// An impossible name is not kept, as the caller may make it as long as it likes.
fn subscribe_claim(watcher: &mut Watcher, claim: &str, is_possible: bool) -> Result<(), TooManyWatched> {
    if is_possible {
        return watcher.subscribe_contract(claim);
    }
    watcher.answer_impossible(not_found::What::Contract(claim.to_owned()));
    Ok(())
}

async fn next_request(
    requests: &mut Option<Streaming<WatchRequest>>,
    pace: &mut Pace,
) -> Result<Option<WatchRequest>, Status> {
    match requests {
        Some(requests) => pace.next(requests).await,
        None => std::future::pending().await,
    }
}
