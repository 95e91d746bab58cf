//! One side of an HTTP/2 connection.

mod event;

pub use event::{CannotOpen, ConnectionError, Event, Notice, Side};

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use crate::code::Code;
use crate::headers::Headers;
use crate::limits::Limits;
use crate::stream::StreamId;

/// One side of an HTTP/2 connection, without its transport. `T` is what the user attaches to a stream.
pub struct Connection<T> {
    call: PhantomData<T>,
}

#[allow(unused_variables, missing_docs, clippy::unimplemented)]
impl<T: Clone> Connection<T> {
    /// A client's side. The preface and SETTINGS are in the output at once.
    pub fn client(limits: &Arc<Limits>, now: Instant) -> Connection<T> {
        unimplemented!()
    }
    pub fn server(limits: &Arc<Limits>, now: Instant) -> Connection<T> {
        unimplemented!()
    }
    pub fn receive<'a>(&mut self, input: &mut &'a [u8], now: Instant) -> Result<Option<Event<'a, T>>, ConnectionError> {
        unimplemented!()
    }
    pub fn next_notice(&mut self) -> Option<Notice<T>> {
        unimplemented!()
    }
    pub fn attach(&mut self, stream: StreamId, call: T) {
        unimplemented!()
    }
    pub fn open(&mut self, headers: &Headers, is_end: bool, call: T) -> Result<StreamId, CannotOpen> {
        unimplemented!()
    }
    pub fn respond(&mut self, stream: StreamId, headers: &Headers, is_end: bool) {
        unimplemented!()
    }
    pub fn send_data(&mut self, stream: StreamId, data: &[u8], is_end: bool) -> usize {
        unimplemented!()
    }
    pub fn send_trailers(&mut self, stream: StreamId, headers: &Headers) {
        unimplemented!()
    }
    pub fn reset(&mut self, stream: StreamId, code: Code) {
        unimplemented!()
    }
    pub fn detach(&mut self, stream: StreamId) {
        unimplemented!()
    }
    pub fn release(&mut self, stream: StreamId, bytes: usize) {
        unimplemented!()
    }
    pub fn output(&self) -> &[u8] {
        unimplemented!()
    }
    pub fn wrote(&mut self, bytes: usize) {
        unimplemented!()
    }
    pub fn is_congested(&self) -> bool {
        unimplemented!()
    }
    pub fn can_open(&self) -> bool {
        unimplemented!()
    }
    pub fn streams(&self) -> usize {
        unimplemented!()
    }
    pub fn peer_stream_limit(&self) -> usize {
        unimplemented!()
    }
    pub fn has_settings(&self) -> bool {
        unimplemented!()
    }
    /// Whether the peer allows RFC 8441's extended CONNECT.
    pub fn is_connect_protocol_enabled(&self) -> bool {
        unimplemented!()
    }
    pub fn drain(&mut self, now: Instant) {
        unimplemented!()
    }
    pub fn is_finished(&self) -> bool {
        unimplemented!()
    }
    pub fn close(&mut self, code: Code) {
        unimplemented!()
    }
    pub fn take_all(&mut self) -> Vec<T> {
        unimplemented!()
    }
    pub fn next_timeout(&self) -> Option<Instant> {
        unimplemented!()
    }
    pub fn on_timeout(&mut self, now: Instant) -> Result<(), ConnectionError> {
        unimplemented!()
    }
    pub fn recycle(&mut self, headers: Headers) {
        unimplemented!()
    }
    pub fn shrink(&mut self) {
        unimplemented!()
    }
}
