//! What a connection tells the call that runs on it.
//!
//! Connections know nothing of calls but this: [`crate::transport::link::Link`] and [`crate::transport::socket::Socket`] move bytes, and
//! [`crate::call::Call`] says what becomes of them.

use std::rc::Rc;

use weft_wire::{Cause, Code, Headers};

use crate::shared::survey::Live;

/// One end of a call on a connection. A connection on which the call came in (its role is the server's) tells of the
/// request's parts, one to an endpoint of the answer's.
pub(crate) trait Exchange: Live {
    /// A part of the request's body.
    fn request_data(&self, data: &[u8], is_end: bool);

    /// The request's trailers, which end it.
    fn request_trailers(&self, trailers: &Headers);

    /// So many bytes of the request that had to wait have been sent.
    fn request_sent(&self, bytes: usize);

    /// The caller has given the call up with this code, or its connection is gone.
    fn caller_gone(&self, code: Code);

    /// The caller's connection has all of the answer, and will not say how much of it has gone out.
    fn caller_has_all(&self);

    /// A head of the answer, an interim one or the final one. Gives the list back when it is done with it.
    fn response_head(self: Rc<Self>, head: Headers, is_end: bool) -> Option<Headers>;

    /// A part of the answer's body.
    fn response_data(&self, data: &[u8], is_end: bool);

    /// The answer's trailers, which end it.
    fn response_trailers(&self, trailers: &Headers);

    /// So many bytes of the answer that had to wait have been sent.
    fn response_sent(&self, bytes: usize);

    /// The stream to the endpoint is gone before its end.
    fn endpoint_reset(self: Rc<Self>, code: Code, cause: Cause);

    /// The endpoint has provably not looked at the call.
    fn endpoint_unseen(self: Rc<Self>);

    /// The connection to the endpoint is gone.
    fn endpoint_lost(self: Rc<Self>, why: &str);

    /// This sidecar has ended the connection to the endpoint, which went past a limit.
    fn endpoint_cut_off(self: Rc<Self>, why: &str);

    /// The connection to the endpoint was kept for too long: the service had closed it, and has most likely not seen the
    /// call. False if that can't be sent again.
    fn endpoint_stale(self: Rc<Self>) -> bool;
}
