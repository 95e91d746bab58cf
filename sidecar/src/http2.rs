//! Connections of HTTP/2 on which calls come in, on either port.

use std::{rc::Rc, sync::atomic::Ordering::Relaxed};

use tokio::io::{AsyncRead, AsyncWrite};
use weft_wire::{Headers, StreamId};

use crate::{
    call::Call,
    link::{Driver, Incoming, Link, LinkError, Role},
    shared::Phase,
    wire_limits,
    worker::Worker,
};

/// Takes the calls of an HTTP/2 connection until it ends; from `last` on it is drained.
///
/// Calls go their way once all that came with them has been read: one that was cancelled in the same breath costs nobody
/// else anything (CVE-2023-44487).
pub(crate) async fn serve<IO>(
    worker: &Rc<Worker>,
    stream: IO,
    last: Phase,
    name: &dyn std::fmt::Display,
    mut begin: impl FnMut(&Rc<Link>, StreamId, Headers, bool) -> Option<Rc<Call>> + Unpin,
    mut carry: impl FnMut(Rc<Call>) + Unpin,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    worker.tick();
    // Only sidecars are let in from outside, and only they are drained so early.
    let limits = if last == Phase::Draining { &worker.wire_limits.mesh } else { &worker.wire_limits.local };
    let link = Link::server(worker, limits);
    let _accepted = worker.accepted(Rc::clone(&link) as _, last);
    let mut begun: Vec<Rc<Call>> = Vec::new();
    let on = |incoming| match incoming {
        Incoming::Request(stream, head, is_whole) => {
            if let Some(call) = begin(&link, stream, head, is_whole) {
                begun.push(call);
            }
        }
        Incoming::Read => {
            for call in &begun {
                if !call.is_over() {
                    carry(Rc::clone(call));
                }
            }
            begun.clear();
            // What many calls at once have needed is not kept by a thousand connections.
            if begun.capacity() > KEPT_BEGUN {
                begun.shrink_to(0);
            }
        }
    };
    let ended = Driver::new(worker, &link, Role::Server, stream, on).await;
    if let Err(LinkError::Protocol(e)) = ended {
        worker.shared.metrics.counters.connections_malformed.fetch_add(1, Relaxed);
        if let Some(bound) = e.limit {
            worker.shared.metrics.limit_reached(wire_limits::row(bound));
        }
        worker.log(|| format!("{name} closed: {e}"));
    }
}

/// Calls that begin in one turn for which a connection keeps room.
const KEPT_BEGUN: usize = 32;
