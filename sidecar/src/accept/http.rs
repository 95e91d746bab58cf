//! Calls of the local service, over HTTP/1.1 or HTTP/2.

use std::{net::SocketAddr, rc::Rc};

use tokio::net::TcpStream;
use weft_wire::Headers;

use crate::{
    accept::{
        detect::Wire,
        http1,
        http2::{self, Terms},
    },
    call::{Call, Side},
    message::failure::Hop,
    proxy::outbound::{Downstream, carry, too_many_calls},
    shared::Phase,
    thread::step::Steps,
    transport::link::Link,
};

/// Takes the calls of a connection whose protocol is known.
pub(crate) async fn speak(downstream: Rc<Downstream>, wire: Wire, stream: TcpStream, from: SocketAddr) {
    let worker = &Rc::clone(downstream.worker());
    match wire {
        // In a box, so that connections of HTTP/2 need no room for it.
        Wire::Http1 => Box::pin(http1::serve(downstream, stream, from)).await,
        Wire::Http2 => {
            let mut steps = Steps::new();
            let begin = |link: &Rc<Link>, stream, head: Headers, is_whole| {
                let Some(slot) = worker.call_slot() else {
                    http2::refuse(worker, link, stream, &head, is_whole, &too_many_calls(worker), Hop::Outbound);
                    return None;
                };
                let caller = Side::Stream(Rc::clone(link), stream);
                Some(Call::begin(worker, Rc::clone(&downstream) as _, caller, head, is_whole, slot))
            };
            let carry = |call: Rc<Call>| {
                call.waits_in(steps.run(carry(Rc::clone(&downstream), Rc::clone(&call))));
            };
            let name = format_args!("outbound connection from {from}");
            let terms = Terms { load: &worker.local_load, last: Phase::Stopping, expiry: None };
            http2::serve(worker, stream, terms, &name, begin, carry).await;
        }
    }
}
