//! Accepted connections of HTTP/2, on either port.

use std::{rc::Rc, sync::atomic::Ordering::Relaxed, time::SystemTime};

use tokio::io::{AsyncRead, AsyncWrite};
use weft_wire::{Code, Headers, StreamId};

use crate::{
    accept::refused,
    call::Call,
    message::{
        failure::{Failure, Hop},
        rpc::Rpc,
    },
    shared::Phase,
    thread::{account::Counted, loads::Load, wire_limits, worker::Worker},
    transport::link::{
        Link, Role,
        driver::{Incoming, LinkDriver, LinkError},
    },
};

/// Who a connection counts for, and how long it lives.
pub(crate) struct Terms<'l> {
    /// Who is charged for the memory that it holds.
    pub(crate) load: &'l Rc<Load>,
    /// The connection is drained from this phase on.
    pub(crate) last: Phase,
    /// When the first of the certificates that it was made with expires. It is drained some time before, and closed
    /// then.
    pub(crate) expiry: Option<SystemTime>,
}

/// Takes the calls of an HTTP/2 connection until it ends.
///
/// Calls start after the whole read is processed, so a request that is cancelled in the same read never reaches a
/// service (CVE-2023-44487).
pub(crate) async fn serve<IO>(
    worker: &Rc<Worker>,
    stream: IO,
    Terms { load, last, expiry }: Terms<'_>,
    name: &dyn std::fmt::Display,
    mut begin: impl FnMut(&Rc<Link>, StreamId, Headers, bool) -> Option<Rc<Call>> + Unpin,
    mut carry: impl FnMut(Rc<Call>) + Unpin,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    worker.tick();
    // Only connections of other sidecars are drained from `Draining` on, so this tells the side.
    let limits = if last == Phase::Draining { &worker.wire_limits.mesh } else { &worker.wire_limits.local };
    let hop = if last == Phase::Draining { Hop::Inbound } else { Hop::Outbound };
    let account = match hop {
        Hop::Inbound => &worker.accounts.inbound,
        Hop::Outbound => &worker.accounts.outbound,
    };
    let link = Link::server(worker, limits, Counted::new(account, load));
    let _accepted = worker.accepted(Rc::clone(&link) as _, last);
    let _listed = expiry.map(|end| worker.expiries.add(Rc::clone(&link) as _, SystemTime::now(), end));
    let mut begun: Vec<Rc<Call>> = Vec::new();
    let on = |incoming| match incoming {
        Incoming::Request(stream, head, is_whole) => {
            if let Some(call) = begin(&link, stream, head, is_whole) {
                begun.push(call);
            }
        }
        Incoming::TooLarge(stream, head, is_whole) => {
            let failure = Failure::headers_too_large(worker.shared.args.header_list_bytes);
            refuse(worker, &link, stream, &head, is_whole, &failure, hop);
            link.recycle(head);
        }
        Incoming::Read => {
            for call in &begun {
                if !call.is_over() {
                    carry(Rc::clone(call));
                }
            }
            begun.clear();
            // A burst of calls must not leave a large list with each of a thousand connections.
            if begun.capacity() > KEPT_BEGUN {
                begun.shrink_to(0);
            }
        }
    };
    let ended = LinkDriver::new(worker, &link, Role::Server, stream, on).await;
    if let Err(why @ (LinkError::Expired | LinkError::Paused)) = &ended {
        worker.log(|| format!("{name} closed: {why}"));
    }
    if let Err(LinkError::Protocol(e)) = ended {
        worker.shared.metrics.counters.connections_malformed.fetch_add(1, Relaxed);
        if let Some(bound) = e.limit {
            worker.shared.metrics.limit_reached(wire_limits::row(bound));
        }
        worker.log(|| format!("{name} closed: {e}"));
    }
}

/// Answers a request without starting a call.
pub(crate) fn refuse(
    worker: &Worker,
    link: &Link,
    stream: StreamId,
    head: &Headers,
    is_whole: bool,
    failure: &Failure,
    hop: Hop,
) {
    refused::note(worker, failure);
    let (answer, body) = failure.answer(Rpc::of(head), hop);
    link.respond(stream, &answer, body.is_empty());
    if !body.is_empty() {
        link.send_data(stream, &body, true);
    }
    if !is_whole {
        link.reset(stream, Code::NO_ERROR);
    }
}

/// How many calls that start in one turn a connection keeps room for.
const KEPT_BEGUN: usize = 32;
