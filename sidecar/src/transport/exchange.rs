//! What a connection reports to the call that runs on it.
//!
//! This trait is all that connections know of calls: [`crate::transport::link::Link`] and
//! [`crate::transport::socket::Socket`] move bytes, and [`crate::call::Call`] decides what happens to them.

use std::rc::Rc;

use weft_wire::{Cause, Code, Headers};

use crate::shared::survey::Live;

/// One end of a call on a connection. The connection on which the call came in (its role is the server's) reports the
/// parts of the request; the connection to an endpoint reports those of the answer.
pub(crate) trait Exchange: Live {
    /// A part of the request's body.
    fn request_data(&self, data: &[u8], is_end: bool);

    /// The request's trailers, which end it.
    fn request_trailers(&self, trailers: &Headers);

    /// This many bytes of the request that had to wait have been sent.
    fn request_sent(&self, bytes: usize);

    /// The caller has cancelled the call with this code, or its connection is gone.
    fn caller_gone(&self, code: Code);

    /// The caller's connection has the whole answer, and will not report how much of it was sent.
    fn caller_has_all(&self);

    /// A head of the answer, interim or final. Returns the list if it is no longer needed.
    fn response_head(self: Rc<Self>, head: Headers, is_end: bool) -> Option<Headers>;

    /// A part of the answer's body.
    fn response_data(&self, data: &[u8], is_end: bool);

    /// The answer's trailers, which end it.
    fn response_trailers(&self, trailers: &Headers);

    /// This many bytes of the answer that had to wait have been sent.
    fn response_sent(&self, bytes: usize);

    /// The stream to the endpoint was reset before its end.
    fn endpoint_reset(self: Rc<Self>, code: Code, cause: Cause);

    /// The endpoint has provably not processed the call.
    fn endpoint_unseen(self: Rc<Self>);

    /// The connection to the endpoint is gone.
    fn endpoint_lost(self: Rc<Self>, why: &str);

    /// This sidecar has closed the connection to the endpoint, because the endpoint exceeded a limit.
    fn endpoint_cut_off(self: Rc<Self>, why: &str);

    /// The idle connection was kept for too long: the service had already closed it, and has most likely not seen the
    /// call. Returns false if the call can't be sent again.
    fn endpoint_stale(self: Rc<Self>) -> bool;
}
